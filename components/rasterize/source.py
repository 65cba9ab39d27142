"""Where polygons come from: every source yields shapes in metres of EPSG:3857, and counts what it leaves out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shapely.geometry.base import BaseGeometry

from rsp.shared.errors import FeatureError
from rsp.shared.features import expand, polygonal, read_crs, read_features, to_mercator

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
            if feature.geometry is None:
                self.skipped[NULL] += 1
                continue
            found = found or has_polygon(feature.geometry)
            polygon = polygon_of(feature.geometry, epsg, self.skipped)
            if polygon is not None:
                yield polygon
        if not found:
            print(f"rasterize: warning: no polygon in {path}", file=sys.stderr)

    def _broken(self, reason: str) -> None:
        self.skipped[BROKEN] += 1
        if self.skipped[BROKEN] == 1:
            print(f"rasterize: skipped: {reason}", file=sys.stderr)


def polygon_of(geometry: BaseGeometry, epsg: int, skipped: Counter[str]) -> BaseGeometry | None:
    """Return the valid polygon that a geometry amounts to, in metres of EPSG:3857, or count why there is none."""
    reason = None
    if geometry.is_empty:
        reason = NULL
    elif not has_polygon(geometry):
        reason = geometry.geom_type
    else:
        try:
            polygon = polygonal(to_mercator(geometry, epsg))
        except FeatureError:  # coordinates that are none in this CRS
            reason = BROKEN
        else:
            if polygon is not None:
                return polygon
            reason = FLAT
    skipped[reason] += 1
    return None


def has_polygon(geometry: BaseGeometry) -> bool:
    """Tell whether a geometry is, or holds, a polygon."""
    if geometry.geom_type == "GeometryCollection":
        return any(map(has_polygon, geometry.geoms))  # type: ignore[attr-defined]
    return geometry.geom_type in ("Polygon", "MultiPolygon")
