"""Where polygons come from: every source yields shapes in metres of EPSG:3857, and counts what it leaves out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shapely.geometry.base import BaseGeometry

from shared.errors import FeatureError
from shared.features import expand, polygonal, read_crs, read_features, to_mercator

Bounds = tuple[float, float, float, float]

# Reasons to leave a feature out, beside the types of geometry that have no area.
NULL = "null geometry"
BROKEN = "geometry that cannot be built"
FLAT = "polygon without an area"
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

    def __init__(self, pattern: str) -> None:
        self.skipped: Counter[str] = Counter()
        self._paths = expand(pattern)

    def polygons(self, bounds: Bounds) -> Iterator[BaseGeometry]:
        for path in self._paths:
            yield from self._file(path)

    def _file(self, path: Path) -> Iterator[BaseGeometry]:
        epsg = read_crs(path)
        found = False
        for feature in read_features(path, broken=self._broken):
            if feature.geometry is None or feature.geometry.is_empty:
                self.skipped[NULL] += 1
                continue
            if not _has_polygon(feature.geometry):
                self.skipped[feature.geometry.geom_type] += 1
                continue
            found = True
            try:
                polygon = polygonal(to_mercator(feature.geometry, epsg))
            except FeatureError:  # coordinates that are none in this CRS
                self.skipped[BROKEN] += 1
                continue
            if polygon is None:
                self.skipped[FLAT] += 1
                continue
            yield polygon
        if not found:
            print(f"rasterize: warning: no polygon in {path}", file=sys.stderr)

    def _broken(self, reason: str) -> None:
        self.skipped[BROKEN] += 1
        if self.skipped[BROKEN] == 1:
            print(f"rasterize: skipped: {reason}", file=sys.stderr)


def _has_polygon(geometry: BaseGeometry) -> bool:
    """Tell whether a geometry is, or holds, a polygon."""
    if geometry.geom_type == "GeometryCollection":
        return any(map(_has_polygon, geometry.geoms))  # type: ignore[attr-defined]
    return geometry.geom_type in ("Polygon", "MultiPolygon")
