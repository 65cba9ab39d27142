"""Geometries out of OpenStreetMap: roads with a width in metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer
from shapely.geometry.base import BaseGeometry

Points = npt.NDArray[np.float64]
Project = Callable[[Points], Points]

# Round ends and corners, so that the ways of a road meet without a notch. A dead end grows by half the width.
QUARTER_CIRCLE = 4


class Widener:
    """Turns lines in degrees into polygons of a width in metres.

    Each line is buffered in the UTM zone of its middle, whose scale is within 0.1 % of the truth at every
    latitude (a buffer in degrees is half as wide as it should be at 60 degrees north).
    """

    def __init__(self) -> None:
        self._zones: dict[int, tuple[Project, Project]] = {}

    def widen(self, lines: Sequence[BaseGeometry], metres: Sequence[float]) -> list[BaseGeometry]:
        """Return a polygon for each line, as wide as its entry in `metres`; lines of one zone go together."""
        if not lines:
            return []
        polygons: list[BaseGeometry] = [shapely.Polygon()] * len(lines)
        members: dict[int, list[int]] = {}
        for number, zone in enumerate(_zones(lines)):
            members.setdefault(zone, []).append(number)
        for zone, numbers in members.items():
            if zone not in self._zones:
                self._zones[zone] = (_projection(4326, zone), _projection(zone, 4326))
            there, back = self._zones[zone]
            flat = shapely.transform(np.array([lines[number] for number in numbers], dtype=object), there)
            half = np.array([metres[number] / 2 for number in numbers])
            wide = shapely.transform(shapely.buffer(flat, half, quad_segs=QUARTER_CIRCLE), back)
            for number, polygon in zip(numbers, wide, strict=True):
                polygons[number] = polygon
        return polygons


def _projection(source: int, target: int) -> Project:
    transformer = Transformer.from_crs(source, target, always_xy=True)
    return lambda points: np.column_stack(transformer.transform(points[:, 0], points[:, 1]))


def _zones(lines: Sequence[BaseGeometry]) -> list[int]:
    """Return for each line the EPSG code of the UTM zone of its middle."""
    west, south, east, north = shapely.bounds(np.array(lines, dtype=object)).T
    number = ((west + east) / 2 + 180) // 6 % 60 + 1
    return (np.where(south + north >= 0, 32600, 32700) + number.astype(int)).tolist()  # type: ignore[no-any-return]
