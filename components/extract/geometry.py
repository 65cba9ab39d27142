"""Geometries out of OpenStreetMap, many at once: areas and lines from osmium's WKB, and lines with a width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

if TYPE_CHECKING:
    from pyproj import Transformer

Points = npt.NDArray[np.float64]
Shapes = npt.NDArray[np.object_]
Project = Callable[[Points], Points]

# Hexadecimal digits of a line in WKB: a head with the number of points, then two doubles each.
LINE_HEAD, POINT = 18, 32

# Round ends and corners, so that the ways of a road meet without a notch. A dead end grows by half the width.
QUARTER_CIRCLE = 4


def polygons(rings: Sequence[str]) -> Shapes:
    """Return polygons of one ring each, whose points are doubles in hexadecimal digits."""
    points, offsets = _points(rings)
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (offsets, np.arange(len(rings) + 1)))


def lines(paths: Sequence[str]) -> Shapes:
    """Return lines, whose points are doubles in hexadecimal digits."""
    points, offsets = _points(paths)
    return shapely.from_ragged_array(shapely.GeometryType.LINESTRING, points, (offsets,))


def _points(paths: Sequence[str]) -> tuple[Points, npt.NDArray[np.int64]]:
    """Return the points of all paths, and where each path begins."""
    offsets = np.zeros(len(paths) + 1, np.int64)
    np.cumsum([len(path) // POINT for path in paths], out=offsets[1:])
    return np.frombuffer(bytes.fromhex("".join(paths)), "<f8").reshape(-1, 2), offsets


class Widener:
    """Turns lines in degrees into polygons of a width in metres.

    Each line is buffered in the UTM zone of its middle, whose scale is within 0.1 % of the truth at every
    latitude (a buffer in degrees is half as wide as it should be at 60 degrees north).
    """

    def __init__(self) -> None:
        self._zones: dict[int, tuple[Project, Project]] = {}

    def widen(self, lines: Shapes, metres: Sequence[float]) -> Shapes:
        """Return a polygon for each line, as wide as its entry in `metres`; lines of one zone go together."""
        wide = np.empty(len(lines), object)
        half = np.asarray(metres, np.float64) / 2
        zones = _zones(lines)
        for zone in np.unique(zones).tolist():
            if zone not in self._zones:
                self._zones[zone] = (_projection(4326, zone), _projection(zone, 4326))
            there, back = self._zones[zone]
            members = zones == zone
            flat = shapely.transform(lines[members], there)
            wide[members] = shapely.transform(shapely.buffer(flat, half[members], quad_segs=QUARTER_CIRCLE), back)
        return wide


def _projection(source: int, target: int) -> Project:
    from pyproj import Transformer

    transformer: Transformer = Transformer.from_crs(source, target, always_xy=True)
    return lambda points: np.column_stack(transformer.transform(points[:, 0], points[:, 1]))


def _zones(lines: Shapes) -> npt.NDArray[np.int64]:
    """Return for each line the EPSG code of the UTM zone of its middle."""
    west, south, east, north = shapely.bounds(lines).T
    number = ((west + east) / 2 + 180) // 6 % 60 + 1
    return np.asarray(np.where(south + north >= 0, 32600, 32700) + number.astype(np.int64))
