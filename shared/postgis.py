"""Geometries from PostGIS: one query, read through a cursor that the server keeps, as it comes.

Where the database is, and who asks, libpq finds out: what is not in the connection string comes from `PGHOST`,
`PGUSER` and the like, `PGPASSWORD` or `~/.pgpass`, or the service that `PGSERVICE` names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.errors import FeatureError, UsageError

# Rows that travel at once.
ROWS = 4096

# Points along each side of the bounds, as they bend in another projection.
BEND = 16

Bounds = tuple[float, float, float, float]


class Rows(NamedTuple):
    """Rows of a query.

    Attributes:
        geometries: What shapely can build of them; None for NULL.
        epsg: Their CRS.
        values: What another column says of each; empty where none was asked for.
        broken: How many rows it cannot build: kinds that only PostGIS has, as a surface of triangles.
    """

    geometries: npt.NDArray[np.object_]
    epsg: int
    values: list[Any]
    broken: int


class Query:
    """The geometries in the column `geom` of a SELECT.

    Args:
        select: The query; it goes in as it is: it runs with the rights of whoever asks, and reads only.
        dsn: How to connect, as `host=localhost dbname=gis`; empty for what the environment says.
        flag: The argument that it came from, for messages.
    """

    def __init__(self, select: str, dsn: str, flag: str) -> None:
        self._select = f"FROM ({select.strip().rstrip(';')}\n) AS asked"
        self._dsn = dsn
        self._flag = flag

    def batches(self, bounds: Bounds | None = None, column: str | None = None) -> Iterator[Rows]:
        """Yield the rows, at most `ROWS` at a time.

        Args:
            bounds: West, south, east, north in EPSG:3857, near which they have to lie; None for all of them.
            column: Another column to read.

        Raises:
            FeatureError: the database or the query does not answer, or the column has no one SRID.
            UsageError: psycopg is not installed.
        """
        with self._connection() as connection:
            srid = self._srid(connection)
            if srid is None:
                return
            near = ""
            if bounds is not None:
                west, south, east, north = bounds
                box = f"ST_MakeEnvelope({west!r}, {south!r}, {east!r}, {north!r}, 3857)"
                step = max(east - west, north - south) / BEND
                bent = f"ST_Transform(ST_Segmentize({box}, {step!r}), {srid})"
                near = f" WHERE asked.geom IS NULL OR asked.geom && {bent}"
            more = "" if column is None else f", asked.{_quoted(column)}"
            with connection.cursor(name="rsp", binary=True) as cursor:
                cursor.execute(f"SELECT ST_AsBinary(asked.geom){more} {self._select}{near}")
                while rows := cursor.fetchmany(ROWS):
                    # Some kinds only PostGIS has, as a surface of triangles.
                    geometries = shapely.from_wkb(np.array([row[0] for row in rows], object), on_invalid="ignore")
                    broken = shapely.is_missing(geometries) & np.array([row[0] is not None for row in rows])
                    values = [] if column is None else [rows[index][1] for index in np.flatnonzero(~broken)]
                    yield Rows(geometries[~broken], srid, values, int(broken.sum()))

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
            raise UsageError(f"{self._flag} needs psycopg: pip install 'rsp-tools[rasterize]'") from None
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
