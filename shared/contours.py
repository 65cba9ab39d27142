"""Traces the outlines of regions of pixels, by arrays instead of pixel by pixel.

Outlines run between pixels: where two pixels differ there is an edge, and where edges turn there is a corner. In a
row of the grid corners come in pairs, the two ends of an edge, and so they do in a column; where four edges meet,
there are two corners, one of each region. The ends say how the outline goes on, and what is left to do one by one
is to follow it from corner to corner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]


def trace(found: Flags) -> Objects:
    """Return the polygons of the regions of pixels that are True, regions connected by the edges of their pixels.

    Args:
        found: Shape (height, width).

    Returns:
        A valid polygon for each region, by the place of its first pixel, row by row; the pixel in row r and
        column c lies from (c, r) to (c + 1, r + 1). A ring begins at the westernmost of its northernmost vertices,
        and has the region on the left as one goes along (north being up).
    """
    height, width = found.shape
    pixels = np.zeros((height + 2, width + 2), bool)
    pixels[1:-1, 1:-1] = found
    upright = pixels[:, 1:] != pixels[:, :-1]  # edges that run north to south, [row of pixels, vertex]
    above, below = upright[:-1], upright[1:]
    level = pixels[1:, :-1] != pixels[:-1, :-1]  # and from west to east, those that end at a vertex
    crossing = above & below & level
    places = np.flatnonzero((above != below) | crossing)
    if not len(places):
        return np.empty(0, object)
    twice = crossing.ravel()[places]
    # A crossing has two corners: the first has the edge to the west, the second that to the east.
    corners = np.repeat(places, twice + 1)
    second = np.zeros(len(corners), np.int64)
    second[np.cumsum(twice + 1)[twice] - 1] = 1
    y, x = np.divmod(corners, width + 1)
    after = _next(pixels, x, y, second)
    rings, ring_of = _follow(after)
    region = _regions(pixels, upright, x, y, rings, ring_of)
    meeting = np.flatnonzero(second)
    meeting = meeting[region[ring_of[meeting - 1]] == region[ring_of[meeting]]]
    if len(meeting):
        # Where a region meets itself in a point its outline would touch itself there: a hole begins instead.
        after[meeting], after[meeting - 1] = after[meeting - 1], after[meeting]
        rings, ring_of = _changed(after, rings, ring_of, meeting)
        region = _regions(pixels, upright, x, y, rings, ring_of)
    points = np.stack([x, y], axis=1)[np.concatenate(rings)].astype(np.float64)
    return _polygons(points, np.array([len(ring) for ring in rings]), region)


def _regions(
    pixels: Flags, upright: Flags, x: Integers, y: Integers, rings: list[list[int]], ring_of: Integers
) -> Integers:
    """Return the region of each ring."""
    starts = np.array([ring[0] for ring in rings])
    # To the south-east of the first corner of an outline is its region, of that of a hole what is not.
    shell = pixels[y[starts] + 1, x[starts] + 1]
    region = np.cumsum(shell) - 1
    if not shell.all():
        _own(region, shell, starts, ring_of, upright, x, y)
    return region


def _next(pixels: Flags, x: Integers, y: Integers, second: Integers) -> Integers:
    """Return which corner comes after each, the region on the left."""
    north_east, south_east = pixels[y, x + 1], pixels[y + 1, x + 1]
    after = np.empty(len(x), np.int64)
    west, east = np.arange(0, len(x), 2), np.arange(1, len(x), 2)
    ahead = north_east[west]
    after[west[ahead]] = east[ahead]
    after[east[~ahead]] = west[~ahead]
    # Of a crossing the first corner is the northern one where its region lies to the north-west.
    lower = second ^ (north_east & ~south_east)
    columns = np.lexsort((lower, y, x))
    north, south = columns[::2], columns[1::2]
    ahead = south_east[north]
    after[north[ahead]] = south[ahead]
    after[south[~ahead]] = north[~ahead]
    return after


def _follow(after: Integers) -> tuple[list[list[int]], Integers]:
    """Return the corners of each ring, and the ring of each corner."""
    following = after.tolist()
    ring_of = [-1] * len(following)
    rings: list[list[int]] = []
    for start, known in enumerate(ring_of):  # the list changes on the way, and `known` is what it is by then
        if known < 0:
            rings.append(_ring(following, ring_of, start, len(rings)))
    return rings, np.array(ring_of)


def _ring(following: list[int], ring_of: list[int], start: int, number: int) -> list[int]:
    ring, corner = [], start
    while ring_of[corner] < 0:
        ring_of[corner] = number
        ring.append(corner)
        corner = following[corner]
    return ring


def _changed(
    after: Integers, rings: list[list[int]], ring_of: Integers, at: Integers
) -> tuple[list[list[int]], Integers]:
    """Return the same as `_follow` where the order of corners has changed in the rings of some corners."""
    others = np.unique(ring_of[at])
    corners = np.flatnonzero(np.isin(ring_of, others)).tolist()
    following, known = after.tolist(), ring_of.tolist()
    for corner in corners:
        known[corner] = -1
    old = set(others.tolist())
    found = [ring for number, ring in enumerate(rings) if number not in old]
    for corner in corners:
        if known[corner] < 0:
            found.append(_ring(following, known, corner, len(found)))
    found.sort(key=lambda ring: ring[0])
    lengths = [len(ring) for ring in found]
    ring_of = np.empty(len(after), np.int64)
    ring_of[np.concatenate(found)] = np.repeat(np.arange(len(found)), lengths)
    return found, ring_of


def _own(
    region: Integers, shell: Flags, starts: Integers, ring_of: Integers, upright: Flags, x: Integers, y: Integers
) -> None:
    """Find for each hole the region that it is in: that of the first edge to the west of its first pixel."""
    across = upright.shape[1]
    ring_at = np.empty(upright.size, np.int64)
    columns = np.lexsort((y, x))
    north, south = columns[::2], columns[1::2]
    lengths = y[south] - y[north]
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ring_at[(np.repeat(y[north], lengths) + 1 + steps) * across + np.repeat(x[north], lengths)] = np.repeat(
        ring_of[north], lengths
    )
    edges = np.flatnonzero(upright)
    holes = np.flatnonzero(~shell)
    first = (y[starts[holes]] + 1) * across + x[starts[holes]]
    beside = ring_at[edges[np.searchsorted(edges, first) - 1]]
    for hole, ring in zip(holes.tolist(), beside.tolist(), strict=True):
        region[hole] = region[ring]  # known: rings come by their first corners, and that one began before


def _polygons(points: npt.NDArray[np.float64], lengths: Integers, region: Integers) -> Objects:
    """Return the polygon of each region, its outline first, then its holes."""
    lines: Any = shapely.linearrings(points, indices=np.repeat(np.arange(len(lengths)), lengths))
    order = np.argsort(region, kind="stable")
    found: Any = shapely.polygons(lines[order], indices=region[order])
    return np.asarray(found, dtype=object)
