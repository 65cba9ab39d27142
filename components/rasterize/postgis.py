"""Polygons from PostGIS: one query, read through a cursor that the server keeps, as it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import shapely

from rsp.components.rasterize.layers import Input
from rsp.components.rasterize.source import Bounds, Naming, Polygons
from rsp.shared.errors import ConfigError, FeatureError, UsageError
from rsp.shared.features import BROKEN, polygons_of

# Rows that travel at once.
ROWS = 2000

# Points along each side of the bounds, as they bend in another projection.
BEND = 16


class PostgisSource:
    """The polygons in the column `geom` of SELECTs, those near the cover only."""

    def __init__(self, inputs: Sequence[Input], naming: Naming, skipped: Counter[str], dsn: str | None) -> None:
        if not dsn:
            raise ConfigError(
                "--postgis needs a connection: set `pg` under [auth] (or `pg_dsn` under [dataset]) in the "
                'configuration, as "host=localhost dbname=gis user=me"; the password belongs in ~/.pgpass'
            )
        self.skipped = skipped
        self._naming, self._dsn = naming, dsn
        # A query of the person's own goes in as it is: it runs with that person's rights, and reads only.
        self._selects = [(f"FROM ({text.strip().rstrip(';')}\n) AS asked", value) for text, value in inputs]

    def polygons(self, bounds: Bounds) -> Iterator[Polygons]:
        with self._connection() as connection:
            for select, value in self._selects:
                yield from self._query(connection, select, value, bounds)

    def _query(self, connection: Any, select: str, value: int | None, bounds: Bounds) -> Iterator[Polygons]:
        srid = self._srid(connection, select)
        if srid is None:
            return
        west, south, east, north = bounds
        box = f"ST_MakeEnvelope({west!r}, {south!r}, {east!r}, {north!r}, 3857)"
        step = max(east - west, north - south) / BEND
        near = f"asked.geom IS NULL OR asked.geom && ST_Transform(ST_Segmentize({box}, {step!r}), {srid})"
        name = "" if value is not None or self._naming.field is None else f", asked.{_quoted(self._naming.field)}"
        with connection.cursor(name="rsp", binary=True) as cursor:
            cursor.execute(f"SELECT ST_AsBinary(asked.geom){name} {select} WHERE {near}")
            while rows := cursor.fetchmany(ROWS):
                # Some kinds only PostGIS has, as a surface of triangles.
                geometries = shapely.from_wkb(np.array([row[0] for row in rows], object), on_invalid="ignore")
                null = np.array([row[0] is None for row in rows])
                broken = shapely.is_missing(geometries) & ~null
                if broken.any():
                    self.skipped[BROKEN] += int(broken.sum())
                geometries, rows = geometries[~broken], [rows[index] for index in np.flatnonzero(~broken)]
                polygons = polygons_of(geometries, self.skipped, crs=srid, where=lambda _: "the query: a geometry")
                there = np.flatnonzero(~shapely.is_missing(polygons))
                if value is None:
                    classes = self._naming.classes([rows[index][1] for index in there], "the query")
                    yield Polygons(polygons[there][classes > 0], classes[classes > 0])
                else:
                    yield Polygons(polygons[there], np.full(len(there), value, np.uint8))

    def _srid(self, connection: Any, select: str) -> int | None:
        """Return the one SRID of the column, or None where there is no geometry."""
        asked = f"SELECT ST_SRID(asked.geom) {select} WHERE"
        row = connection.execute(f"{asked} asked.geom IS NOT NULL LIMIT 1").fetchone()
        if row is None:
            return None
        srid = int(row[0])
        if srid == 0:
            raise FeatureError("the column `geom` has no SRID; set it in the query with ST_SetSRID(geom, 4326)")
        # A column declared as geometry(Polygon, 4326) holds no other SRID; one without must be looked through.
        declared = connection.execute(f"SELECT asked.geom {select} LIMIT 0").pgresult.fmod(0) != -1
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


def _quoted(name: str) -> str:
    """Return the name of a column as SQL."""
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: Exception) -> str:
    """Return what the database says, without the query that follows."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
