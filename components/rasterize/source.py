"""Where polygons come from: every source yields shapes in metres of EPSG:3857, and counts what it leaves out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.features import expand, polygonal, project, read_crs, read_features
from rsp.shared.locations import Location

Bounds = tuple[float, float, float, float]

# Reasons to leave a feature out, beside the types of geometry that have no area.
NULL = "null geometry"
BROKEN = "geometry that cannot be built"
FLAT = "polygon without an area"
TANGLED = "outline that crosses itself too often to be repaired"
OUTSIDE = "outside the cover"

# Outlines of fewer points are repaired however they cross themselves; of others the crossings are estimated from
# so many of their segments.
MANY_POINTS, SAMPLE, MAX_CROSSINGS = 2000, 200, 200_000


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
        for feature in read_features(path, broken=self._broken):
            if feature.geometry is None:
                self.skipped[NULL] += 1
                continue
            found = found or has_polygon(feature.geometry)
            polygon = polygon_of(feature.geometry, epsg, self.skipped, f"{path}: feature {feature.number}")
            if polygon is not None:
                yield polygon
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
    reason = None
    if geometry.is_empty:
        reason = NULL
    elif not has_polygon(geometry):
        reason = geometry.geom_type
    else:
        mercator = project(np.array([geometry], dtype=object), epsg, lambda _: where)[0]
        if is_tangled(mercator):
            reason = TANGLED
        else:
            polygon = polygonal(mercator)
            if polygon is not None:
                return polygon
            reason = FLAT
    skipped[reason] += 1
    return None


def is_tangled(geometry: BaseGeometry) -> bool:
    """Tell whether an outline crosses itself so often that its repair would not end.

    The number of crossings is estimated from some of the segments: what they meet beside their neighbours.
    """
    if shapely.get_num_coordinates(geometry) < MANY_POINTS or geometry.is_valid:
        return False
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts([geometry])), return_index=True)
    segments = np.asarray(shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1)[ring[:-1] == ring[1:]]))
    sample = segments[:: max(1, len(segments) // SAMPLE)]
    tree = shapely.STRtree(segments)
    met = sum(len(tree.query(segment, predicate="crosses")) for segment in sample)
    return met / len(sample) * len(segments) / 2 > MAX_CROSSINGS


def has_polygon(geometry: BaseGeometry) -> bool:
    """Tell whether a geometry is, or holds, a polygon."""
    if geometry.geom_type == "GeometryCollection":
        return any(map(has_polygon, geometry.geoms))  # type: ignore[attr-defined]
    return geometry.geom_type in ("Polygon", "MultiPolygon")
