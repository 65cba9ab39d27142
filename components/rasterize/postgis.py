"""Polygons from PostGIS: one query, read through a cursor that the server keeps, as it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from rsp.components.rasterize.source import Bounds, polygon_of
from rsp.shared.errors import ConfigError, FeatureError, UsageError
from rsp.shared.features import BROKEN, NULL

# Rows that travel at once.
ROWS = 2000

# Points along each side of the bounds, as they bend in another projection.
BEND = 16


class PostgisSource:
    """The polygons in the column `geom` of a SELECT, those near the cover only."""

    def __init__(self, select: str, dsn: str | None) -> None:
        if not dsn:
            raise ConfigError(
                "--postgis needs a connection: set `pg` under [auth] (or `pg_dsn` under [dataset]) in the "
                'configuration, as "host=localhost dbname=gis user=me"; the password belongs in ~/.pgpass'
            )
        self.skipped: Counter[str] = Counter()
        # A query of the person's own goes in as it is: it runs with that person's rights, and reads only.
        self._select = f"FROM ({select.strip().rstrip(';')}\n) AS asked"
        self._dsn = dsn

    def polygons(self, bounds: Bounds) -> Iterator[BaseGeometry]:
        with self._connection() as connection:
            srid = self._srid(connection)
            if srid is None:
                return
            west, south, east, north = bounds
            box = f"ST_MakeEnvelope({west!r}, {south!r}, {east!r}, {north!r}, 3857)"
            step = max(east - west, north - south) / BEND
            near = f"asked.geom IS NULL OR asked.geom && ST_Transform(ST_Segmentize({box}, {step!r}), {srid})"
            with connection.cursor(name="rsp", binary=True) as cursor:
                cursor.itersize = ROWS
                cursor.execute(f"SELECT ST_AsBinary(asked.geom) {self._select} WHERE {near}")
                for (data,) in cursor:
                    polygon = self._polygon(data, srid)
                    if polygon is not None:
                        yield polygon

    def _polygon(self, data: bytes | None, srid: int) -> BaseGeometry | None:
        if data is None:
            self.skipped[NULL] += 1
            return None
        try:
            geometry: BaseGeometry = shapely.from_wkb(data)
        except shapely.errors.ShapelyError:  # a kind that only PostGIS has, as a surface of triangles
            self.skipped[BROKEN] += 1
            return None
        return polygon_of(geometry, srid, self.skipped, "the query: a geometry")

    def _srid(self, connection: Any) -> int | None:
        """Return the one SRID of the column, or None where there is no geometry."""
        asked = f"SELECT ST_SRID(asked.geom) {self._select} WHERE"
        row = connection.execute(f"{asked} asked.geom IS NOT NULL LIMIT 1").fetchone()
        if row is None:
            return None
        srid = int(row[0])
        if srid == 0:
            raise FeatureError("the column `geom` has no SRID; set it in the query with ST_SetSRID(geom, 4326)")
        # A column declared as geometry(Polygon, 4326) holds no other SRID; one without must be looked through.
        declared = connection.execute(f"SELECT asked.geom {self._select} LIMIT 0").pgresult.fmod(0) != -1
        if not declared:
            other = connection.execute(f"{asked} ST_SRID(asked.geom) <> {srid} LIMIT 1").fetchone()
            if other is not None:
                raise FeatureError(f"the column `geom` mixes the SRIDs {srid} and {other[0]}; use ST_Transform")
        return srid

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """Connect for reading, and turn the errors of the database into ours."""
        try:
            import psycopg
        except ImportError:
            raise UsageError("--postgis needs psycopg: pip install 'rsp-tools[rasterize]'") from None
        try:
            with psycopg.connect(self._dsn) as connection:
                connection.read_only = True
                yield connection
        except psycopg.OperationalError as error:
            raise FeatureError(f"cannot read from PostGIS: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise FeatureError(
                f"PostGIS refuses the query: {_first_line(error)}; it must be a SELECT with a column `geom`"
            ) from error


def _first_line(error: Exception) -> str:
    """Return what the database says, without the query that follows."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
