"""Joins what tile edges have cut, in one sweep from north to south.

Only the features that reach the southern edge of the current row of tiles are kept in memory; the others are
finished and go.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

from rsp.shared.disjoint import DisjointSets
from rsp.shared.featureset import Features, Integers, no_sums
from rsp.shared.polygons import Grid, Objects, Shaping, finish
from rsp.shared.tiles import Tile

Edge = Literal["north", "south", "west", "east"]


class InTile(Protocol):
    """What was found in a tile."""

    tile: Tile


Found = TypeVar("Found", bound=InTile)


class Span(NamedTuple):
    """Where a polygon lies on an edge of its tile, in pixels of the grid, and the polygon's number."""

    low: float
    high: float
    number: int


@dataclass
class TilePolygons:
    """What was found in a tile.

    Attributes:
        whole: Features that reach no edge shared with another tile: finished. None where there are none.
        cut: Polygons that reach such an edge, in pixels of the grid.
        sums: What the probabilities of the pixels of each of them sum to, and how many these are, shape (n, 2);
            zeros where nobody asked.
        beyond: Which of these reach a tile of another block, by their places in `cut`.
        dropped: How many were too small.
    """

    tile: Tile
    whole: Features | None = None
    cut: Objects = field(default_factory=lambda: np.empty(0, object))
    sums: Integers = field(default_factory=lambda: no_sums(0))
    beyond: frozenset[int] = frozenset()
    dropped: int = 0


class Member(NamedTuple):
    """A piece of a feature: its number in the order of the sweep, its place among the cut ones of its tile.

    Attributes:
        sums: See `TilePolygons.sums`.
        beyond: Whether it reaches a tile of another block.
    """

    number: int
    tile: Tile
    place: int
    polygon: Polygon
    sums: tuple[int, int]
    beyond: bool


def edges(tile: Tile, size: int) -> dict[Edge, tuple[int, float]]:
    """Return the edges of a tile: the axis that is constant along each, and its value in pixels of the grid."""
    return {
        "north": (1, tile.y * size),
        "south": (1, (tile.y + 1) * size),
        "west": (0, tile.x * size),
        "east": (0, (tile.x + 1) * size),
    }


def reaching(polygons: Objects, tile: Tile, size: int, shared: Iterable[Edge]) -> npt.NDArray[np.bool_]:
    """Tell which polygons lie on one of the edges of their tile that are shared with another."""
    at = dict(zip(("west", "north", "east", "south"), shapely.bounds(polygons).T, strict=True))
    places, found = edges(tile, size), np.zeros(len(polygons), bool)
    for edge in shared:
        found |= at[edge] == places[edge][1]
    return found


def spans(polygons: Objects, tile: Tile, size: int, number: int) -> dict[Edge, list[Span]]:
    """Return where the outlines of polygons run along the edges of their tile; `number` is that of the first."""
    outlines = shapely.get_exterior_ring(polygons)
    points, of = shapely.get_coordinates(outlines, return_index=True)
    found: dict[Edge, list[Span]] = {}
    for edge, (axis, value) in edges(tile, size).items():
        on = points[:, axis] == value
        at = np.flatnonzero(on[:-1] & on[1:] & (of[:-1] == of[1:]))
        along = np.sort(np.stack([points[at, 1 - axis], points[at + 1, 1 - axis]], axis=1), axis=1)
        listed = zip(along.tolist(), (of[at] + number).tolist(), strict=True)
        found[edge] = [Span(low, high, owner) for (low, high), owner in listed]
    return found


def contacts(one: list[Span], other: list[Span]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of polygons whose spans on a common edge overlap (in more than a point)."""
    one, other = sorted(one), sorted(other)
    i = j = 0
    while i < len(one) and j < len(other):
        if max(one[i].low, other[j].low) < min(one[i].high, other[j].high):
            yield one[i].number, other[j].number
        if one[i].high < other[j].high:
            i += 1
        else:
            j += 1


def rows_of(found: Iterable[Found]) -> Iterator[tuple[int, Iterator[Found]]]:
    """Yield rows of tiles from north to south, with their y, and an empty one below each that no other follows.

    What waits for such a row ends there: it failed as a whole, or has nothing.
    """
    last = None
    for y, row in groupby(found, key=lambda one: one.tile.y):
        if last is not None and y != last + 1:
            yield last + 1, iter(())
        last = y
        yield y, row
    if last is not None:
        yield last + 1, iter(())


class Sweep:
    """Joins the polygons of tiles that come in row by row, from north to south, each row from west to east.

    Of a block of a larger area, what reaches tiles of other blocks is not finished: `left` has its pieces.

    Attributes:
        row: The last row that came in.
        dropped: How many features were too small.
        left: The pieces of features that go on in other blocks.
    """

    def __init__(self, grid: Grid, tiles: Container[tuple[int, int, int]], shaping: Shaping) -> None:
        self.grid, self.shaping = grid, shaping
        self.dropped = self.row = 0
        self.left: list[Member] = []
        self._tiles = tiles
        self._next = 0
        self._groups = DisjointSets()
        self._members: dict[int, list[Member]] = {}  # by root
        self._south: dict[int, list[Span]] = {}  # spans on the southern edge of the last row, by tile.x

    def features(self, found: Iterable[TilePolygons]) -> Iterator[Features]:
        """Yield the features, row by row, in an order that follows from the tiles alone."""
        for _, features in self.rows(found):
            yield features

    def rows(self, found: Iterable[TilePolygons]) -> Iterator[tuple[int, Features]]:
        """Yield the features that are whole after each row of tiles, with the row; see `Features.orders`."""
        for self.row, row in rows_of(found):
            yield self.row, self._row(row)

    def waiting(self) -> Objects:
        """Return the pieces, in pixels of the grid, of features that go on in the row below."""
        return np.array([member.polygon for members in self._members.values() for member in members], object)

    def _row(self, row: Iterable[TilePolygons]) -> Features:
        done: list[Features] = []
        south: dict[int, list[Span]] = {}
        east: tuple[int, list[Span]] = (-2, [])
        for one in row:
            self.dropped += one.dropped
            if one.whole is not None:
                done.append(one.whole)
            at = spans(one.cut, one.tile, self.grid.size, self._next)
            for place, (polygon, (total, pixels)) in enumerate(zip(one.cut, one.sums.tolist(), strict=True)):
                self._add(one.tile, place, polygon, (total, pixels), beyond=place in one.beyond)
            if east[0] == one.tile.x - 1:
                self._join(east[1], at["west"])
            self._join(self._south.get(one.tile.x, []), at["north"])
            east = (one.tile.x, at["east"])
            if (one.tile.x, one.tile.y + 1, one.tile.z) in self._tiles:
                south[one.tile.x] = at["south"]
        self._south = south
        done.append(self._close())
        return Features.sorted(done, self.grid.zoom)

    def _add(self, tile: Tile, place: int, polygon: Polygon, sums: tuple[int, int], *, beyond: bool) -> None:
        number = self._next
        self._next += 1
        self._members[number] = [Member(number, tile, place, polygon, sums, beyond)]

    def _join(self, one: list[Span], other: list[Span]) -> None:
        for first, second in contacts(one, other):
            if joined := self._groups.join(first, second):
                keep, drop = joined
                self._members[keep] += self._members.pop(drop)

    def _close(self) -> Features:
        """Finish what does not reach the southern edge of the row, and forget it."""
        held = {self._groups.root(span.number) for row in self._south.values() for span in row}
        closed: list[list[Member]] = []
        for root in [root for root in self._members if root not in held]:
            members = self._members.pop(root)
            if any(member.beyond for member in members):
                self.left += members
            else:
                closed.append(members)
        self._groups.keep(self._members)
        # A union depends on the order of its pieces. It follows from their contacts alone, row by row, so that a
        # sweep over the parts of blocks ends with the same vertices.
        pieces = np.array([member.polygon for members in closed for member in members], object)
        lengths = [len(members) for members in closed]
        tiles = [{member.tile for member in members} for members in closed]
        starts = [min(some, key=lambda tile: (tile.y, tile.x))[:2] for some in tiles]
        features, dropped = finish(
            pieces,
            np.repeat(np.arange(len(closed)), lengths),
            np.array(starts, np.int64).reshape(-1, 2),
            np.array([len(some) for some in tiles], np.int64),
            np.array([np.sum([member.sums for member in members], axis=0) for members in closed], np.int64)
            .reshape(-1, 2),
            self.grid, self.shaping,
        )  # fmt: skip
        self.dropped += dropped
        return features
