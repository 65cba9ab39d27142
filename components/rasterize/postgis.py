"""Polygons from PostGIS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import shapely

from rsp.components.rasterize.layers import Input
from rsp.components.rasterize.source import Bounds, Naming, Polygons
from rsp.shared.errors import ConfigError
from rsp.shared.features import BROKEN, polygons_of
from rsp.shared.postgis import Query


class PostgisSource:
    """The polygons in the column `geom` of SELECTs, those near the cover only."""

    def __init__(self, inputs: Sequence[Input], naming: Naming, skipped: Counter[str], dsn: str | None) -> None:
        if not dsn:
            raise ConfigError(
                "--postgis needs a connection: set `pg` under [auth] (or `pg_dsn` under [dataset]) in the "
                'configuration, as "host=localhost dbname=gis user=me"; the password belongs in ~/.pgpass'
            )
        self.skipped = skipped
        self._naming = naming
        self._queries = [(Query(text, dsn, "--postgis"), value) for text, value, _ in inputs]

    def owners(self) -> str | None:
        """Return whose the rows are: a database does not say."""
        return None

    def polygons(self, bounds: Bounds) -> Iterator[Polygons]:
        for query, value in self._queries:
            for rows in query.batches(bounds, self._naming.field if value is None else None):
                if rows.broken:
                    self.skipped[BROKEN] += rows.broken
                polygons = polygons_of(
                    rows.geometries, self.skipped, crs=rows.epsg, where=lambda _: "the query: a geometry"
                )
                there = np.flatnonzero(~shapely.is_missing(polygons))
                if value is None:
                    classes = self._naming.classes([rows.values[index] for index in there], "the query")
                    yield Polygons(polygons[there][classes > 0], classes[classes > 0])
                else:
                    yield Polygons(polygons[there], np.full(len(there), value, np.uint8))
