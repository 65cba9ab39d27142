"""Simplifies all regions of a mask at once, so that those that touch still do, and none overlap.

The borders of regions are cut into arcs where three or more edges meet, and at the edges of the tile. Arcs are
simplified together, so that none crosses another, and each is the same for the regions on both of its sides. What
lies on the edge of the tile does not move: what is found in one tile follows from that tile alone, and fits what
is found in the next, in whichever process or block that is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.contours import trace
from rsp.shared.images import Mask
from rsp.shared.polygons import Objects, from_a_corner, turn

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# More than a side of a mask has pixels, twice.
WIDE = 1 << 20


class Rings(NamedTuple):
    """Rings of points, one after the other, none with its first point again at its end.

    Attributes:
        points: In pixels of the mask. Shape (N, 2).
        ring: The ring of each point, ascending.
        of: The polygon of each ring.
    """

    points: Floats
    ring: Integers
    of: Integers

    def sides(self, far: Floats) -> Flags:
        """Tell for each point on which of the four edges of the tile it is. Shape (N, 4)."""
        return np.concatenate([self.points == 0, self.points == far], axis=1)

    def along(self, far: Floats) -> int:
        """Return how many edges run along those of the tile."""
        sides = self.sides(far)
        starts = np.flatnonzero(np.append(True, self.ring[1:] != self.ring[:-1]))
        following = turn(starts, np.diff(np.append(starts, len(sides))), 1)
        return int((sides & sides[following]).any(axis=1).sum())


def simplified_together(mask: Mask, tolerance: float, values: Sequence[int] | None = None) -> dict[int, Objects]:
    """Return the regions of classes of a mask, as polygons that share their borders.

    Args:
        mask: Shape (height, width).
        tolerance: How far borders may move, in pixels. Where regions would not stay valid, those of this mask are
            simplified by half of it, or not at all.
        values: The classes; None for all that the mask holds.

    Returns:
        For each value its polygons, in pixels of the mask and in the order of `trace`. Two that touch have each
        vertex of their border in common, so that those of all values cover the mask without gaps.
    """
    chosen: list[int] = np.unique(mask).tolist() if values is None else list(values)
    each = [trace(mask == value) for value in chosen]
    every = np.concatenate([np.empty(0, object), *each])
    if not len(every):
        return dict(zip(chosen, each, strict=True))
    meeting, far = _meeting(mask), np.array(mask.shape[::-1], np.float64)
    rings = _with_meeting(every, meeting)
    arcs = _arcs(rings, far, meeting)
    for allowed in (tolerance, tolerance / 2, 0.0):
        fewer = _only(rings, _codes(shapely.get_coordinates(shapely.simplify(arcs, allowed))), far)
        if len(fewer) and shapely.is_valid(fewer).all() and shapely.coverage_is_valid(fewer):
            break
    else:
        fewer = _only(rings, _codes(rings.points), far)
    ends = np.cumsum([len(some) for some in each])[:-1]
    return dict(zip(chosen, np.split(fewer, ends), strict=True))


def _meeting(mask: Mask) -> Integers:
    """Return the codes, ascending, of the points inside a mask where three or more edges meet."""
    upright, level = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edges = upright[1:].astype(np.int8) + upright[:-1] + level[:, 1:] + level[:, :-1]
    y, x = np.nonzero(edges > 2)
    return np.sort((x + 1) * WIDE + y + 1)


def _with_meeting(polygons: Objects, meeting: Integers) -> Rings:
    """Return the rings of polygons, with the points where edges meet and the ring goes straight on."""
    lines, of = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(lines, return_index=True)
    inside = ring[1:] == ring[:-1]
    start, end, ring = points[:-1][inside], points[1:][inside], ring[1:][inside]
    # Points of a column have codes that follow each other, and those of a row where x and y are exchanged.
    codes = np.concatenate([meeting, np.sort(_exchanged(meeting))])
    level = start[:, 1] == end[:, 1]
    ends = np.sort(np.stack([start, end]), axis=0)
    ends[:, level] = ends[:, level, ::-1]
    first, last = _codes(ends)
    low = np.where(
        level,
        len(meeting) + np.searchsorted(codes[len(meeting) :], first, "right"),
        np.searchsorted(meeting, first, "right"),
    )
    high = np.where(
        level, len(meeting) + np.searchsorted(codes[len(meeting) :], last), np.searchsorted(meeting, last)
    )
    counts = high - low
    edge = np.repeat(np.arange(len(start)), counts + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(counts + 1) - counts, counts + 1)
    added = np.flatnonzero(step >= 0)
    on, step = edge[added], step[added]
    back = (end < start).any(axis=1)[on]
    found = start[edge]
    between = codes[np.where(back, high[on] - 1 - step, low[on] + step)]
    found[added] = _points(np.where(level[on], _exchanged(between), between))
    return Rings(found, ring[edge], of)


def _arcs(rings: Rings, far: Floats, meeting: Integers) -> Any:
    """Return the arcs between regions, and the pieces of the edges of the tile that they part, as one geometry."""
    points, ring, _ = rings
    ends = np.isin(_codes(points), meeting) | rings.sides(far).any(axis=1)
    closing = (np.bincount(ring, ends, len(rings.of)) == 0)[ring]
    loops = _loops(points[closing], ring[closing])
    points, ring, ends = points[~closing], ring[~closing], ends[~closing]
    if not len(points):
        return shapely.multilinestrings(loops)
    # Each ring from the first of its ends on, and to the next of them each time.
    starts = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))
    lengths = np.diff(np.append(starts, len(ring)))
    heads = np.flatnonzero(ends)
    turned = turn(starts, lengths, heads[np.searchsorted(heads, starts)] - starts)
    points, heads = points[turned], np.flatnonzero(ends[turned])
    following = turn(starts, lengths, 1)
    tails = np.append(heads[1:], len(points)) - 1
    lasts = points[following[tails]]
    # The same arc in the other direction is that of the region on its other side.
    ways = np.sort([_codes(points[heads] + points[following[heads]]), _codes(points[tails] + lasts)], axis=0)
    order = np.lexsort(ways)
    other = np.append(False, (np.diff(ways[:, order]) == 0).all(axis=0))
    once = np.ones(len(heads), bool)
    once[order[other]] = False
    arc = np.repeat(np.arange(len(heads)), tails - heads + 1)
    lines = np.insert(points, tails + 1, lasts, axis=0), np.insert(arc, tails + 1, np.arange(len(heads)))
    kept = once[lines[1]]
    arcs: Any = shapely.linestrings(lines[0][kept], indices=np.cumsum(once)[lines[1][kept]] - 1)
    return shapely.multilinestrings(np.concatenate([arcs, loops]))


def _loops(points: Floats, ring: Integers) -> Objects:
    """Return rings that meet no others as lines, each once, from a corner on: there they keep their vertex."""
    if not len(points):
        return np.empty(0, object)
    starts = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))
    # The region inside and what is around it may both be there.
    _, once = np.unique(np.minimum.reduceat(_codes(points), starts), return_index=True)
    number = np.cumsum(np.bincount(starts, minlength=len(ring))) - 1
    kept = np.isin(number, once)
    lines: Any = shapely.linearrings(points[kept], indices=np.unique(number[kept], return_inverse=True)[1])
    turned = from_a_corner(np.asarray(shapely.polygons(lines), object))
    points, of = shapely.get_coordinates(turned, return_index=True)
    found: Any = shapely.linestrings(points, indices=of)
    return np.asarray(found, object)


def _only(rings: Rings, kept: Integers, far: Floats) -> Objects:
    """Return the polygons of those points of rings that are kept; nothing where a region would be another one."""
    chosen = np.isin(_codes(rings.points), kept)
    fewer = Rings(rings.points[chosen], rings.ring[chosen], rings.of)
    if np.bincount(fewer.ring, minlength=len(rings.of)).min() < 3 or fewer.along(far) > rings.along(far):
        return np.empty(0, object)
    lines: Any = shapely.linearrings(fewer.points, indices=fewer.ring)
    found: Any = shapely.polygons(lines, indices=rings.of)
    return np.asarray(found, object)


def _codes(points: Floats) -> Integers:
    """Return a number for each point, the same for the same; the last axis of points is x and y."""
    whole = points.astype(np.int64)
    codes: Integers = whole[..., 0] * WIDE + whole[..., 1]
    return codes


def _points(codes: Integers) -> Floats:
    """Return the points that have these codes."""
    return np.column_stack(np.divmod(codes, WIDE)).astype(np.float64)


def _exchanged(codes: Integers) -> Integers:
    """Return the codes of points whose x and y are exchanged."""
    x, y = np.divmod(codes, WIDE)
    return y * WIDE + x
