"""Geometries out of WKB: what shapely reads at once, and curves, surfaces and triangles, which it does not."""

from __future__ import annotations

import cmath
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

Objects = npt.NDArray[np.object_]
Points = list[tuple[float, float]]

# Degrees of an arc from a point to the next, as GDAL draws arcs.
STEP = 4.0

# How deep geometries may lie in each other.
MAX_DEPTH = 32

_POINT, _LINE, _POLYGON, _COLLECTION = 1, 2, 3, 7
_ARCS, _COMPOUND, _CURVE_POLYGON, _TRIANGLE = 8, 9, 10, 17
_MULTI = {4, 5, 6, 7, 11, 12, 15, 16}


def geometries_of(data: Objects) -> tuple[Objects, npt.NDArray[np.bool_]]:
    """Build geometries of WKB, each in two dimensions.

    Curves become lines with a point every 4 degrees of an arc, surfaces of polygons or triangles collections.

    Args:
        data: Bytes; None, or none of them, where there is no geometry.

    Returns:
        The geometries, None where there is none, and which of them cannot be built.
    """
    try:
        found: Objects = shapely.from_wkb(data, on_invalid="raise")
    except (shapely.errors.ShapelyError, NotImplementedError, TypeError, ValueError):
        found = np.empty(len(data), dtype=object)
        found[:] = [_single(each) for each in data.tolist()]
    # Curves in collections pass for geometries until something looks at them.
    for index in np.flatnonzero(shapely.get_type_id(found) == _COLLECTION).tolist():
        found[index] = _decoded(data[index])
    missing = shapely.is_missing(found)
    broken = missing.copy()
    broken[missing] = [bool(each) for each in data[missing].tolist()]
    return shapely.force_2d(found), broken


def _single(data: bytes | None) -> BaseGeometry | None:
    """Build one geometry; None where it cannot be built."""
    if not data:
        return None
    try:
        built: BaseGeometry = shapely.from_wkb(data)
    except (shapely.errors.ShapelyError, NotImplementedError, TypeError, ValueError):
        return _decoded(data)
    return built


def _decoded(data: bytes) -> BaseGeometry | None:
    """Build one geometry without shapely's reader; None where it cannot be built."""
    try:
        return _Reader(data).geometry()
    except (ValueError, struct.error, IndexError, shapely.errors.ShapelyError):
        return None


class _Reader:
    """Reads WKB of any kind, ISO's or PostGIS's."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def geometry(self, depth: int = 0) -> BaseGeometry:
        kind, order, width = self._head(depth)
        if kind == _POINT:
            return shapely.Point(self._numbers(order, 1, width)[0])
        if kind in (_LINE, _ARCS, _COMPOUND):
            return shapely.LineString(self._line(kind, order, width, depth))
        if kind in (_POLYGON, _TRIANGLE):
            return _polygon([self._numbers(order, self._count(order), width) for _ in range(self._count(order))])
        if kind == _CURVE_POLYGON:
            return _polygon([self._any_line(depth + 1) for _ in range(self._count(order))])
        if kind in _MULTI:
            return shapely.GeometryCollection([self.geometry(depth + 1) for _ in range(self._count(order))])
        raise ValueError(f"geometries of type {kind} cannot be read")

    def _head(self, depth: int) -> tuple[int, str, int]:
        """Return the type, the order of bytes, and how many numbers a point has."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        order = "<" if self._data[self._at] else ">"
        (code,) = struct.unpack_from(f"{order}I", self._data, self._at + 1)
        self._at += 5 + (4 if code & 0x20000000 else 0)
        further = bool(code & 0x80000000) + bool(code & 0x40000000)
        thousands, kind = divmod(code & 0x0FFFFFFF, 1000)
        if thousands > 3:
            raise ValueError("not WKB")
        return kind, order, 2 + (further or (0, 1, 1, 2)[thousands])

    def _count(self, order: str) -> int:
        (count,) = struct.unpack_from(f"{order}I", self._data, self._at)
        self._at += 4
        if count > len(self._data) - self._at:  # each thing counted has a byte at least
            raise ValueError("cut off")
        return int(count)

    def _numbers(self, order: str, count: int, width: int) -> Points:
        values = np.frombuffer(self._data, f"{order}f8", count * width, self._at).reshape(count, width)
        self._at += values.nbytes
        return [(x, y) for x, y in values[:, :2].tolist()]

    def _any_line(self, depth: int) -> Points:
        kind, order, width = self._head(depth)
        return self._line(kind, order, width, depth)

    def _line(self, kind: int, order: str, width: int, depth: int) -> Points:
        if kind == _COMPOUND:
            points: Points = []
            for _ in range(self._count(order)):
                part = self._any_line(depth + 1)
                points += part[1:] if points and points[-1] == part[0] else part
            return points
        if kind not in (_LINE, _ARCS):
            raise ValueError(f"a line of type {kind}")
        points = self._numbers(order, self._count(order), width)
        return arcs(points) if kind == _ARCS else points


def _polygon(rings: list[Points]) -> BaseGeometry:
    return shapely.Polygon(rings[0], rings[1:]) if rings else shapely.Polygon()


def arcs(points: Points) -> Points:
    """Return points on the arcs that go on through each second of these points."""
    if len(points) < 3 or len(points) % 2 == 0:
        raise ValueError("an arc has three points")
    found = [points[0]]
    for start, middle, end in zip(points[:-2:2], points[1:-1:2], points[2::2], strict=True):
        found += _arc(start, middle, end)
    return found


def _arc(start: Any, middle: Any, end: Any) -> Points:
    """Return points of the arc from one point to another through a third, but for the first of them."""
    a, b, c = complex(*start), complex(*middle), complex(*end)
    if a == c:  # a circle, whose middle is halfway to the point on it
        centre, turn = (a + b) / 2, 2 * math.pi
    else:
        b, c = b - a, c - a
        across = 2 * (b.real * c.imag - b.imag * c.real)
        if across == 0:
            return [middle, end]
        centre = a + (abs(b) ** 2 * c - abs(c) ** 2 * b) * 1j / -across
        turn = cmath.phase((a + c - centre) / (a - centre)) % (2 * math.pi)
        if across < 0:  # the points turn right
            turn -= 2 * math.pi
    steps = max(2, math.ceil(abs(turn) / math.radians(STEP) - 1e-6))
    spoke = a - centre
    on = [
        centre + spoke * complex(math.cos(angle), math.sin(angle))
        for angle in (turn * n / steps for n in range(1, steps))
    ]
    return [*((each.real, each.imag) for each in on), end]
