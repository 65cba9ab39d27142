"""Simplifies all regions of a mask at once, so that those that touch still do, and none overlap.

The borders of regions are cut into arcs where three or more edges meet, and at the edges of the tile. Arcs are
simplified together, so that none crosses another, and each is the same for the regions on both of its sides. What
lies on the edge of the tile does not move: what is found in one tile follows from that tile alone, and fits what
is found in the next, in whichever process or block that is traced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.contours import trace
from rsp.shared.images import Mask
from rsp.shared.polygons import Objects, from_a_corner

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# More than a side of a mask has pixels, twice.
WIDE = 1 << 20


def simplified_together(mask: Mask, tolerance: float) -> dict[int, Objects]:
    """Return the regions of each class of a mask, with the background, as polygons that share their borders.

    Args:
        mask: Shape (height, width).
        tolerance: How far borders may move, in pixels. Where regions would not stay valid, those of this mask are
            simplified by half of it, or not at all.

    Returns:
        For each value of the mask its polygons, in pixels of the mask and in the order of `trace`. They cover it
        without gaps, and two that touch have each vertex of their border in common.
    """
    values: list[int] = np.unique(mask).tolist()
    each = [trace(mask == value) for value in values]
    every = np.concatenate([np.empty(0, object), *each])
    # Where regions meet, one of them need not have a corner: it gets those that others have on its outline.
    dense: Objects = shapely.transform(shapely.segmentize(every, 1), np.rint)
    found = whole = _only(dense, _codes(shapely.get_coordinates(every)))
    arcs = _arcs(whole, mask.shape)
    for allowed in (tolerance, tolerance / 2, 0.0):
        fewer = _only(
            whole, _codes(shapely.get_coordinates(shapely.simplify(arcs, allowed, preserve_topology=True)))
        )
        if len(fewer) and shapely.is_valid(fewer).all() and shapely.coverage_is_valid(fewer):
            found = fewer
            break
    ends = np.cumsum([len(some) for some in each])[:-1]
    return dict(zip(values, np.split(found, ends), strict=True))


def _arcs(whole: Objects, shape: tuple[int, ...]) -> Any:
    """Return the arcs between regions, and the pieces of the edges of the tile that they part, as one geometry."""
    far = np.array(shape[::-1], np.float64)
    points, ring = shapely.get_coordinates(shapely.get_rings(whole), return_index=True)
    inside = ring[1:] == ring[:-1]
    edges = np.stack([points[:-1][inside], points[1:][inside]], axis=1)
    # An edge has a region on each side, and counts once: it is told by its middle.
    edges = edges[np.unique(_codes(edges.sum(axis=1)), return_index=True)[1]]
    outer = ((edges[:, 0] == edges[:, 1]) & ((edges[:, 0] == 0) | (edges[:, 0] == far))).any(axis=1)
    inner = edges[~outer]
    merged: Any = shapely.line_merge(shapely.multilinestrings(shapely.linestrings(inner)))
    lines = shapely.get_parts(merged)
    closed = shapely.is_closed(lines)
    ends = inner.reshape(-1, 2)
    return shapely.multilinestrings(
        np.concatenate([lines[~closed], _rings(lines[closed]), _frame(ends, far)]).astype(object)
    )


def _rings(lines: Objects) -> Objects:
    """Return closed lines that begin at a corner: where one begins it keeps its vertex."""
    if not len(lines):
        return lines
    points, of = shapely.get_coordinates(lines, return_index=True)
    turned = from_a_corner(np.asarray(shapely.polygons(shapely.linearrings(points, indices=of)), object))
    points, of = shapely.get_coordinates(turned, return_index=True)
    found: Any = shapely.linestrings(points, indices=of)
    return np.asarray(found, object)


def _frame(ends: Floats, far: Floats) -> Objects:
    """Return the four edges of a tile, cut where borders of regions end on them."""
    corners = np.array([[0, 0], [far[0], 0], far, [0, far[1]]])
    every = np.concatenate([ends, corners])
    segments: list[Floats] = []
    for axis in (0, 1):
        for place in (0.0, far[axis]):
            along = np.unique(every[every[:, axis] == place], axis=0)
            segments.append(np.stack([along[:-1], along[1:]], axis=1))
    found: Any = shapely.linestrings(np.concatenate(segments))
    return np.asarray(found, object)


def _only(polygons: Objects, kept: Integers) -> Objects:
    """Return polygons with those of their points that are kept; nothing where a ring would be none."""
    rings, of = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    last = np.append(ring[1:] != ring[:-1], True)
    chosen = np.isin(_codes(points), kept) & ~last
    if np.bincount(ring[chosen], minlength=len(rings)).min() < 3:
        return np.empty(0, object)
    lines: Any = shapely.linearrings(points[chosen], indices=ring[chosen])
    found: Any = shapely.polygons(lines, indices=of)
    return np.asarray(found, object)


def _codes(points: Floats) -> Integers:
    """Return a number for each point, the same for the same."""
    whole = points.astype(np.int64)
    codes: Integers = whole[:, 0] * WIDE + whole[:, 1]
    return codes
