"""Runs of tiles: what geometries meet of the grid, column by column, worked out in whole arrays.

A geometry meets a tile where its outline enters it, or where the middle of the tile lies inside. Both follow from
where edges cross the columns of the grid, so that the work goes with the outline, not with the area, and tiles are
counted before there are any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.tilekeys import Keys
from rsp.shared.tiles import check_budget

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# A polygon whose edge lies on the edge of a tile does not cover the next one: tiles are tested this much
# smaller (in tiles; a micrometre at zoom 18), or by so much of the world as coordinates are exact to.
MARGIN, EXACT = 1e-8, 2.0**-48

# Crossings of edges and columns that are worked out at once, and runs that are kept before they are merged.
AT_ONCE, FOLD = 1 << 18, 1 << 16

# Type ids of shapely.
POINT, LINE, POLYGON, FIRST_COLLECTION = 0, 1, 3, 4


class Runs(NamedTuple):
    """Tiles of one zoom that follow each other in a column: from the key `first` to the key `last`, inclusive."""

    first: Keys
    last: Keys

    def total(self) -> int:
        """Return how many tiles there are, where no two runs overlap."""
        return int((self.last - self.first + 1).sum())

    def keys(self) -> Keys:
        """Return the tiles of merged runs, sorted."""
        total = self.total()
        found: Keys = np.ones(total, np.int64)
        if total:
            # Each key is one more than the one before it, but for the first of a run. In place: there may be many.
            starts = (self.last - self.first + 1).cumsum()[:-1]
            found[0] = self.first[0]
            found[starts] = self.first[1:] - self.last[:-1]
            np.cumsum(found, out=found)
        return found


def merged(runs: list[Runs]) -> Runs:
    """Return the runs of all tiles in some runs, sorted; no two of them overlap or touch."""
    if not runs:
        return Runs(np.empty(0, np.int64), np.empty(0, np.int64))
    first, last = (np.concatenate(ends) for ends in zip(*runs, strict=True))
    order = np.argsort(first, kind="stable")
    first, last = first[order], np.maximum.accumulate(last[order])
    begins = np.ones(len(first), bool)
    begins[1:] = first[1:] > last[:-1] + 1
    ends = np.ones(len(first), bool)
    ends[:-1] = begins[1:]
    return Runs(first[begins], last[ends])


class Gathered:
    """Runs that come one after another, merged now and then, within a budget of tiles."""

    def __init__(self, max_tiles: int, what: str) -> None:
        self._budget = (max_tiles, what)
        self._runs: list[Runs] = []
        self._fresh = self._kept = 0

    def add(self, runs: Runs) -> None:
        """Add runs; raise `UsageError` where there are too many tiles already."""
        self._runs.append(runs)
        self._fresh += len(runs.first)
        # Seldom enough that merging takes no more time for each run the more there are.
        if self._fresh > max(FOLD, self._kept):
            self._runs, self._fresh = [merged(self._runs)], 0
            self._kept = len(self._runs[0].first)
            check_budget(self._runs[0].total(), *self._budget, at_least=True)

    def keys(self) -> Keys:
        """Return the tiles, sorted; raise `UsageError` where there are too many."""
        runs = merged(self._runs)
        check_budget(runs.total(), *self._budget)
        return runs.keys()


def runs_of(geometries: npt.NDArray[np.object_], zoom: int, max_tiles: int, what: str) -> Iterator[Runs]:
    """Yield the tiles that geometries meet.

    A polygon has to enter a tile; points and lines belong to the tile whose upper left edges they lie on. Columns
    beyond the antimeridian go on at the other side of the world, rows beyond the poles are left out.

    Args:
        geometries: Of any kind, in units of tiles, y down; none is None.
        zoom: Zoom of the tiles.
        max_tiles: How many a geometry may meet.
        what: What would have them, for the message.

    Raises:
        UsageError: one of them meets more tiles.
    """
    side = 1 << zoom
    margin = max(MARGIN, side * EXACT)
    parts = geometries
    while ((kinds := shapely.get_type_id(parts)) >= FIRST_COLLECTION).any():
        parts = shapely.get_parts(parts)
    filled = ~shapely.is_empty(parts)
    parts, kinds = parts[filled], kinds[filled]
    bounds = np.floor(shapely.bounds(parts)).astype(np.int64).reshape(-1, 4)
    # Where the bounds are one tile there is nothing to work out (and nothing to be lost to rounding).
    one = (bounds[:, :2] == bounds[:, 2:]).all(axis=1)
    yield _placed(bounds[one, 0], bounds[one, 1], bounds[one, 1], side)
    parts, kinds, bounds = parts[~one], kinds[~one], bounds[~one]
    if not len(parts):
        return
    # Whatever is in one piece meets each column and each row between its bounds, but those that it only touches.
    least = np.floor(shapely.bounds(parts) + np.array([margin, margin, -margin, -margin])).astype(np.int64)
    columns = np.minimum(least[:, 2] - least[:, 0] + 1, side)
    rows = np.minimum(least[:, 3], side - 1) - np.maximum(least[:, 1], 0) + 1
    check_budget(int(np.where(rows > 0, np.maximum(columns, rows), 0).max()), max_tiles, what, at_least=True)
    edges = _edges_of(parts, kinds == POLYGON)
    found = np.zeros(len(parts), bool)
    for some, first, last in edges.windows(int(bounds[:, 0].min()), int(bounds[:, 2].max()) + 1):
        yield _touched(some, first, last, side, margin, found)
        yield _inside(some, first, last, side, found)
    lost = ~found
    if lost.any():  # thinner than the margins, along the edge of a tile
        middle = shapely.bounds(parts[lost]).reshape(-1, 2, 2).mean(axis=1)
        x, y = np.floor(middle).astype(np.int64).T
        yield _placed(x, y, y, side)


def _placed(column: Ints, top: Ints, bottom: Ints, side: int) -> Runs:
    """Return the runs from row to row of columns: without what is beyond the poles; x turns around."""
    top, bottom = np.maximum(top, 0), np.minimum(bottom, side - 1)
    there = top <= bottom
    column = column[there] % side << 32
    return Runs(column | top[there], column | bottom[there])


class _Edges(NamedTuple):
    """Edges of the outlines of geometries, each from west to east.

    Attributes:
        start, end: Their ends, shape (n, 2).
        owner: The number of the geometry that each belongs to.
        area: Whether that is a polygon.
    """

    start: Floats
    end: Floats
    owner: Ints
    area: Bools

    def windows(self, first: int, last: int) -> Iterator[tuple[_Edges, int, int]]:
        """Yield the columns from `first` to `last` (exclusive) in parts, each with the edges that reach there."""
        low, high = np.floor(self.start[:, 0]), np.floor(self.end[:, 0])
        crossings = (np.minimum(high, last - 1) - np.maximum(low, first) + 1).clip(0).sum()
        if crossings <= AT_ONCE or last - first == 1:
            yield self, first, last
            return
        middle = (first + last) // 2
        for start, end in ((first, middle), (middle, last)):
            # An edge that ends where the columns begin still lies on their edge.
            near = (self.end[:, 0] >= start) & (self.start[:, 0] <= end)
            some = _Edges(self.start[near], self.end[near], self.owner[near], self.area[near])
            yield from some.windows(start, end)


def _edges_of(parts: npt.NDArray[np.object_], areas: Bools) -> _Edges:
    """Return the edges of polygons and lines."""
    rings, owners = shapely.get_rings(parts[areas], return_index=True)
    outlines = np.concatenate([rings, parts[~areas]])
    owners = np.concatenate([np.flatnonzero(areas)[owners], np.flatnonzero(~areas)])
    points, index = shapely.get_coordinates(outlines, return_index=True)
    joined = index[1:] == index[:-1]
    start, end = points[:-1][joined], points[1:][joined]
    turned = start[:, :1] > end[:, :1]
    start, end = np.where(turned, end, start), np.where(turned, start, end)
    owner = owners[index[1:][joined]]
    return _Edges(start, end, owner, areas[owner])


def _each_column(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Return the number of an edge and a column, for each column from an edge's first to its last."""
    counts = (last - first + 1).clip(0)
    edge = np.repeat(np.arange(len(first)), counts)
    before = counts.cumsum() - counts
    return edge, np.arange(len(edge)) + np.repeat(first - before, counts)


def _touched(edges: _Edges, first: int, last: int, side: int, margin: float, found: Bools) -> Runs:
    """Return the tiles that edges enter, of the columns from `first` to `last` (exclusive); mark who has some."""
    start, end, owner, area = edges
    # From which column on, and up to which one, an edge reaches into what a column is without its margins.
    west = np.where(area, np.ceil(start[:, 0] - 1 + margin), np.floor(start[:, 0]))
    east = np.where(area, np.floor(end[:, 0] - margin), np.floor(end[:, 0]))
    edge, column = _each_column(
        np.maximum(west, first).astype(np.int64), np.minimum(east, last - 1).astype(np.int64)
    )
    (x0, y0), (x1, y1), area = start[edge].T, end[edge].T, area[edge]
    left = np.maximum(x0, column + np.where(area, margin, 0))
    right = np.maximum(np.minimum(x1, column + 1 - margin), left)
    with np.errstate(divide="ignore", invalid="ignore"):  # upright edges are not cut, only taken as they are
        slope = (y1 - y0) / (x1 - x0)
        ya = np.where(left > x0, y0 + (left - x0) * slope, y0)
        yb = np.where(right < x1, y0 + (right - x0) * slope, y1)
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    ya, yb = ya.clip(low, high), yb.clip(low, high)
    upper, lower = np.minimum(ya, yb), np.maximum(ya, yb)
    top = np.where(area, np.ceil(upper - 1 + margin), np.floor(upper)).astype(np.int64)
    bottom = np.floor(np.where(area, lower - margin, lower)).astype(np.int64)
    met = top <= bottom
    found[owner[edge[met]]] = True
    return _placed(column[met], top[met], bottom[met], side)


def _inside(edges: _Edges, first: int, last: int, side: int, found: Bools) -> Runs:
    """Return the tiles whose middle is inside polygons: between every other two edges that cross the column."""
    start, end, owner = edges.start[edges.area], edges.end[edges.area], edges.owner[edges.area]
    west, east = np.ceil(start[:, 0] - 0.5), np.ceil(end[:, 0] - 0.5) - 1
    edge, column = _each_column(
        np.maximum(west, first).astype(np.int64), np.minimum(east, last - 1).astype(np.int64)
    )
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    y = y0 + (column + 0.5 - x0) * ((y1 - y0) / (x1 - x0))
    place = owner[edge] * (last - first) + (column - first)
    order = np.lexsort((y, place))
    place, y, column = place[order], y[order], column[order]
    # Rings are closed, so each column's middle is crossed an even number of times by each polygon.
    top = np.ceil(y[::2] - 0.5).astype(np.int64)
    bottom = np.floor(y[1::2] - 0.5).astype(np.int64)
    met = top <= bottom
    found[(place[::2] // (last - first))[met]] = True
    return _placed(column[::2][met], top[met], bottom[met], side)
