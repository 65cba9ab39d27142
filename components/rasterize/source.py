"""Where polygons come from: every source yields shapes in metres of EPSG:3857, and counts what it leaves out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.features import BROKEN, expand, has_polygon, polygons_of, read_batches, read_crs
from rsp.shared.locations import Location

Bounds = tuple[float, float, float, float]

# The reason to leave out what meets no tile; others are in rsp.shared.geometry.
OUTSIDE = "outside the cover"


class Source(Protocol):
    """Polygons from somewhere.

    Attributes:
        skipped: How many features were left out, by reason.
    """

    skipped: Counter[str]

    def polygons(self, bounds: Bounds) -> Iterator[BaseGeometry]:
        """Yield the valid Polygon or MultiPolygon of each feature, in metres of EPSG:3857.

        Args:
            bounds: West, south, east, north in the same metres: what lies outside may be left out.
        """
        ...


class GeoJsonSource:
    """The polygons of one or more GeoJSON files, read one feature at a time."""

    def __init__(self, pattern: str, epsg: int | None = None) -> None:
        self.skipped: Counter[str] = Counter()
        self._epsg = epsg
        self._paths = expand(pattern)

    def polygons(self, bounds: Bounds) -> Iterator[BaseGeometry]:
        for path in self._paths:
            yield from self._file(path)

    def _file(self, path: Location) -> Iterator[BaseGeometry]:
        epsg = read_crs(path) if self._epsg is None else self._epsg
        found = False
        for batch in read_batches(path, broken=self._broken):
            found = found or any(has_polygon(geometry) for geometry in batch.geometries if geometry is not None)
            numbers = batch.numbers
            polygons = polygons_of(
                batch.geometries,
                self.skipped,
                crs=epsg,
                where=lambda nth, numbers=numbers: f"{path}: feature {numbers[nth]}",  # type: ignore[misc]
            )
            yield from polygons[~shapely.is_missing(polygons)]
        if not found:
            print(f"rasterize: warning: no polygon in {path}", file=sys.stderr)

    def _broken(self, reason: str) -> None:
        self.skipped[BROKEN] += 1
        if self.skipped[BROKEN] == 1:
            print(f"rasterize: skipped: {reason}", file=sys.stderr)


def polygon_of(geometry: BaseGeometry, epsg: int, skipped: Counter[str], where: str) -> BaseGeometry | None:
    """Return the valid polygon that a geometry amounts to, in metres of EPSG:3857, or count why there is none.

    Raises:
        FeatureError: coordinates that cannot be meant; says `where`, and the likely cause.
    """
    polygon: BaseGeometry | None = polygons_of(
        np.array([geometry], dtype=object), skipped, crs=epsg, where=lambda _: where
    )[0]
    return polygon
