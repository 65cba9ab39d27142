"""From the pixels of a tile and around it to the centre lines of its regions, cut at the edges of the tile.

A region is thinned, and what is left is a graph: pixels with one neighbour are ends, those with three or more are
junctions, and lines go from one of these to another. Branches that are shorter than the region is wide where they
begin are its corners, and go. Junctions that lie in the middle of a wider place are one.

All of it follows from what is less than some three widths of a region away, so the next tile, which sees the same,
finds lines that go on where these end; `rsp.shared.linesweep` joins them. Where a region is wider than a third of
what is seen around a tile, lines may end at its edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.contours import Flags
from rsp.shared.thinning import AROUND, Distances, Floats, measured, thinned

# A pixel of the grid, x and y.
Place = tuple[int, int]

# How far around a tile is looked, in pixels, if its neighbours are as large.
MARGIN = 192
# Branches of branches go one after the other: more often than this is not looked for them.
ROUNDS = 3
# How far from a tile its lines may follow from what is there, in the radius of the widest place: a branch is as
# long as that is wide, and whether it goes follows from others of its junction; junctions are merged over twice
# as much.
REACH = 4 * ROUNDS + 2


class End(NamedTuple):
    """Where a line ends.

    Attributes:
        node: Middle of the junction that it ends in, x and y in pixels of the grid; None where it ends elsewhere.
        radius: How far the edges of the region are from there, in pixels.
        link: The pixel of the line, and the one of the next tile on which it goes on, in order; None where it does
            not.
    """

    node: tuple[float, float] | None = None
    radius: float = 0.0
    link: tuple[Place, Place] | None = None


@dataclass
class Line:
    """A line, from one end to the other.

    Attributes:
        points: x and y in pixels of the grid, shape (n, 2).
        widths: Of the region at each of them, in pixels.
        ends: Of its first and its last point.
        closed: Whether the last point is beside the first one.
        sums: What the probabilities along it sum to (255 is 1), and of how many pixels; zeros where nobody asked.
    """

    points: Floats
    widths: Floats
    ends: tuple[End, End]
    closed: bool = False
    sums: tuple[int, int] = (0, 0)


def lines_of(
    pixels: Flags, margin: int, corner: Place, probabilities: npt.NDArray[np.uint8] | None = None
) -> list[Line]:
    """Return the centre lines of the regions in a tile.

    Args:
        pixels: The tile with a margin on each side, shape (height, width).
        margin: In pixels.
        corner: x and y of the first pixel of the tile, in pixels of the grid.
        probabilities: Of the pixels of the tile, if somebody asks.
    """
    height, width = pixels.shape
    if not pixels[margin : height - margin, margin : width - margin].any():
        return []
    return list(_Graph(pixels, margin, corner, probabilities).lines())


class _Graph:
    """The pixels of the lines of a tile and around it, numbered row by row."""

    def __init__(
        self, pixels: Flags, margin: int, corner: Place, probabilities: npt.NDArray[np.uint8] | None
    ) -> None:
        height, width = pixels.shape
        self._margin, self._corner, self._probabilities = margin, corner, probabilities
        # `np.nonzero` of an image with few pixels takes eight times as long.
        rows, columns = np.divmod(np.flatnonzero(thinned(pixels)), width)
        distances = Distances(pixels)
        squared, _, _ = distances(rows, columns)
        # What a line in the tile may follow from.
        far = REACH * (float(squared.max(initial=0)) ** 0.5 + 1)
        inside = (np.abs(rows - (height - 1) / 2) < height / 2 - margin + far) & (
            np.abs(columns - (width - 1) / 2) < width / 2 - margin + far
        )
        self._rows, self._columns, self._squared = rows[inside], columns[inside], squared[inside]
        # In the flat image with a border of one: the number of the pixel that is there, or -1.
        self._numbers = np.full((height + 2) * (width + 2), -1, np.int32)
        self._at = (self._rows + 1) * (width + 2) + self._columns + 1
        self._places = self._at.tolist()
        self._numbers[self._at] = np.arange(len(self._at))
        self._steps = np.array([down * (width + 2) + right for down, right in AROUND])
        self._look()
        for _ in range(ROUNDS):
            if not self._prune():
                break
            self._look()
        last = (height - margin, width - margin)
        places = np.stack([self._rows, self._columns], axis=1)
        self._core = self._there & ((places >= margin) & (places < last)).all(axis=1)
        self._measure(distances)

    def _look(self) -> None:
        """Find the neighbours of each pixel: diagonal ones only where no straight one leads there, too."""
        self._there = self._numbers[self._at] >= 0
        beside = self._numbers[self._at[self._there, np.newaxis] + self._steps]
        found = beside >= 0
        straight = found[:, ::2]
        found[:, 1::2] &= ~(straight | np.roll(straight, -1, axis=1))
        self._degrees = np.zeros(len(self._at), np.int64)
        self._degrees[self._there] = found.sum(axis=1)
        others = beside[found]
        self._others = others.tolist()
        ends = np.cumsum(self._degrees)
        self._starts = [0, *ends.tolist()]
        # Of pixels with two neighbours: the one is this less the other.
        through = np.flatnonzero(self._degrees == 2)
        sums = np.full(len(self._at), -1)
        sums[through] = others[ends[through] - 2] + others[ends[through] - 1]
        self._sums = sums.tolist()

    def _beside(self, pixel: int) -> list[int]:
        """Return the neighbours of a pixel."""
        return self._others[self._starts[pixel] : self._starts[pixel + 1]]

    def _prune(self) -> bool:
        """Remove branches shorter than the region is wide where they begin; tell whether there were any."""
        found: dict[int, list[tuple[float, list[int]]]] = {}
        most = 2 * float(self._squared.max(initial=0)) ** 0.5
        at, sums, straight = self._places, self._sums, (1, int(self._steps[4]))
        for pixel in np.flatnonzero(self._degrees == 1).tolist():
            branch, long, here, (ahead,) = [pixel], 0.0, pixel, self._beside(pixel)
            while True:
                away = abs(at[here] - at[ahead])
                long += 1.0 if away in straight else 2**0.5
                if sums[ahead] < 0 or long >= most:
                    break
                branch.append(ahead)
                here, ahead = ahead, sums[ahead] - here
            if self._degrees[ahead] > 2 and long < most:
                found.setdefault(ahead, []).append((-long, branch))
        gone: list[int] = []
        for junction, branches in found.items():
            radius = self._widest(junction)
            short = [(long, branch) for long, branch in branches if -long < 2 * radius]
            # Of those at the end of a region, the longest is where the line ends.
            kept = max(2 - (len(self._beside(junction)) - len(short)), 0)
            for _, branch in sorted(short)[kept:]:
                gone += branch
        self._numbers[self._at[gone]] = -1
        return bool(gone)

    def _widest(self, junction: int) -> float:
        """Return the radius of the widest place that a junction is in: in a bump, of the road beside it."""
        row, column = self._rows[junction], self._columns[junction]
        far = int(self._squared.max() ** 0.5) + 1
        near = slice(*np.searchsorted(self._rows, (row - far, row + far + 1)))
        away = (self._rows[near] - row) ** 2 + (self._columns[near] - column) ** 2
        over = self._there[near] & (away <= self._squared[near])
        return float(self._squared[near][over].max()) ** 0.5

    def _measure(self, distances: Distances) -> None:
        """Measure the pixels in the tile, and junctions."""
        some = np.flatnonzero(self._core | (self._degrees > 2))
        found = measured(distances, self._rows[some], self._columns[some])
        self._middles = np.zeros((len(self._at), 2))
        self._widths = np.zeros(len(self._at))
        places = np.stack([self._columns, self._rows], axis=1)[some] - self._margin + self._corner
        self._middles[some] = places + (0.5 + found.shift)
        self._widths[some] = found.width

    def _nodes(self) -> dict[int, End]:
        """Return the ends that junctions are; those in the middle of a wider place are the widest of them."""
        places = np.flatnonzero(self._degrees > 2)
        if not len(places):
            return {}
        radius = np.sqrt(self._squared[places])
        rows, columns = self._rows[places], self._columns[places]
        order = np.lexsort((columns, rows, -radius))  # the widest first, and of equal ones the northernmost
        points = shapely.points(columns, rows)
        near = shapely.STRtree(points).query(points[order], predicate="dwithin", distance=radius[order])
        rank = np.empty(len(places), np.int64)
        rank[order] = np.arange(len(places))
        above, other = near[0], rank[near[1]]
        beaten = np.zeros(len(places), bool)
        beaten[other[above < other]] = True
        leader = np.arange(len(places))
        held = np.full(len(places), len(places))
        mine = ~beaten[above] & beaten[other]
        np.minimum.at(held, other[mine], above[mine])
        leader[held < len(places)] = held[held < len(places)]
        firsts = order[leader[rank]]
        ends = zip(places.tolist(), self._middles[places[firsts]].tolist(), radius[firsts].tolist(), strict=True)
        return {pixel: End((x, y), far) for pixel, (x, y), far in ends}

    def lines(self) -> Iterator[Line]:
        """Yield the lines in the tile."""
        nodes = self._nodes()
        core = self._core.tolist()
        inside = np.flatnonzero(self._core).tolist()
        seen = [False] * len(core)
        for start in inside:
            if start not in nodes:
                continue
            for ahead in self._beside(start):
                if ahead in nodes and core[ahead] and ahead < start:
                    continue  # it was the other way round
                if not seen[ahead]:
                    yield self._line([start], ahead, nodes, core, seen)
        plain = [pixel for pixel in inside if pixel not in nodes]
        for start in plain:
            beside = self._beside(start)
            if seen[start] or (len(beside) == 2 and core[beside[0]] and core[beside[1]]):
                continue
            seen[start] = True
            nexts = [each for each in beside if core[each]]
            if nexts:
                yield self._line([start], nexts[0], nodes, core, seen)
            else:
                yield self._made([start], self._end(start, beside[:1]), self._end(start, beside[1:]))
        for start in plain:
            if not seen[start]:
                seen[start] = True
                yield self._line([start], self._beside(start)[0], nodes, core, seen)

    def _line(self, way: list[int], ahead: int, nodes: dict[int, End], core: list[bool], seen: list[bool]) -> Line:
        """Follow a line from its first pixel on."""
        start = way[0]
        if start in nodes:
            first = nodes[start]
        else:
            behind = [each for each in self._beside(start) if each != ahead]
            first = self._end(start, behind)
        here, sums = start, self._sums
        while True:
            if not core[ahead]:
                return self._made(way, first, End(link=self._link(here, ahead)))
            if ahead in nodes:
                return self._made([*way, ahead], first, nodes[ahead])
            if ahead == start:
                return self._made(way, first, End(), closed=True)
            way.append(ahead)
            seen[ahead] = True
            if sums[ahead] < 0:
                return self._made(way, first, End())
            here, ahead = ahead, sums[ahead] - here

    def _end(self, pixel: int, beside: list[int]) -> End:
        """Return the end of a line that begins at a pixel of which the one behind, if any, is in the next tile."""
        if not beside or self._core[beside[0]]:
            return End()
        return End(link=self._link(pixel, beside[0]))

    def _link(self, pixel: int, other: int) -> tuple[Place, Place]:
        one, two = sorted((self._place(pixel), self._place(other)))
        return one, two

    def _place(self, pixel: int) -> Place:
        column, row = int(self._columns[pixel]), int(self._rows[pixel])
        return column - self._margin + self._corner[0], row - self._margin + self._corner[1]

    def _made(self, way: list[int], first: End, last: End, *, closed: bool = False) -> Line:
        sums = (0, 0)
        if self._probabilities is not None:
            rows, columns = self._rows[way] - self._margin, self._columns[way] - self._margin
            sums = int(self._probabilities[rows, columns].sum(dtype=np.int64)), len(way)
        return Line(self._middles[way], self._widths[way], (first, last), closed, sums)
