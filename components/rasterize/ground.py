"""Polygons widened and shrunk by metres on the ground, wherever they lie.

How long a metre is where, `rsp.shared.ground` says.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.ground import BAND, scale
from rsp.shared.mercator import AROUND, HALF

Polygons = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]

# What ends so near to the antimeridian, in metres, ends there.
_NEAR = 1e-2


def buffer(polygons: Polygons, metres: float) -> Polygons:
    """Return polygons widened by metres on the ground, with round corners; below 0, shrunk.

    Those that are cut at the antimeridian, and go on at its other side, are no narrower at the cut.

    Args:
        polygons: Valid, in metres of EPSG:3857.
        metres: On the ground.

    Returns:
        Polygons, some of which may be empty.
    """
    bounds = shapely.bounds(polygons)
    result = np.empty(len(polygons), dtype=object)
    around = (bounds[:, 0] <= _NEAR - HALF) & (bounds[:, 2] >= HALF - _NEAR)
    tall = (bounds[:, 3] - bounds[:, 1] > BAND) | around
    result[~tall] = _buffer_low(polygons[~tall], bounds[~tall], metres)
    for number in np.flatnonzero(tall):
        polygon = polygons[number]
        if around[number]:
            copies = np.concatenate([turned(polygons[number : number + 1], turns) for turns in (0, -1, 1)])
            world = shapely.box(-HALF, -AROUND, HALF, AROUND)
            polygon = shapely.intersection(_buffer_tall(shapely.union_all(copies), metres), world)
        else:
            polygon = _buffer_tall(polygon, metres)
        result[number] = polygon
    return result


def turned(polygons: Polygons, turns: int) -> Polygons:
    """Return polygons so many times around the Earth further east."""
    step = np.array([turns * AROUND, 0.0])
    moved: Polygons = shapely.transform(polygons, lambda points: points + step)
    return moved


def _buffer_low(shapes: Polygons, bounds: Floats, metres: float) -> Polygons:
    """Widen shapes, of which each has one scale: in metres on the ground around their middle, and back."""
    if not len(shapes):
        return shapes
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2
    scales = scale(middle[:, 1])
    points, shape = shapely.get_coordinates(shapes, return_index=True)
    flat = shapely.set_coordinates(shapes.copy(), (points - middle[shape]) / scales[shape])
    wide = shapely.buffer(flat, metres)
    points, shape = shapely.get_coordinates(wide, return_index=True)
    back: Polygons = shapely.set_coordinates(wide, points * scales[shape] + middle[shape])
    return back


def _buffer_tall(polygon: BaseGeometry, metres: float) -> BaseGeometry:
    """Widen a polygon by what lies near its outline, each part of which has the scale of its latitude."""
    outline = polygon.boundary
    west, south, east, north = outline.bounds
    edges = np.arange(np.floor(south / BAND), np.ceil(north / BAND) + 1) * BAND
    bands = shapely.box(
        np.full(len(edges) - 1, west - 1), edges[:-1], np.full(len(edges) - 1, east + 1), edges[1:]
    )
    parts = shapely.intersection(outline, bands)
    parts = parts[~shapely.is_empty(parts)]
    near = shapely.union_all(_buffer_low(parts, shapely.bounds(parts), abs(metres)))
    return shapely.union(polygon, near) if metres > 0 else shapely.difference(polygon, near)
