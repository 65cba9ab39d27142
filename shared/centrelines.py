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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.contours import Flags, Integers, trace
from rsp.shared.ground import scale
from rsp.shared.mercator import AROUND as AROUND_WORLD
from rsp.shared.mercator import HALF
from rsp.shared.polygons import Grid
from rsp.shared.thinning import AROUND, Floats, measured, thinned

# How far around a tile is looked, in pixels, if its neighbours are as large.
MARGIN = 192
# Holes are filled only where they are no longer than this, in pixels: what lies beyond may not be seen whole.
LONGEST_HOLE = 24
# Branches of branches go one after the other: more often than this is not looked for them.
ROUNDS = 3

# A pixel of the grid, x and y.
Place = tuple[int, int]


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


def without_small(pixels: Flags, least: float, margin: int, corner: Place, grid: Grid) -> tuple[Flags, int]:
    """Return regions without those that are too small, and with holes filled that are.

    Which these are must be the same for whoever sees them: one that is longer than the margin may not be seen
    whole, and so is not small.

    Args:
        pixels: A tile with a margin.
        least: In square metres on the ground.
        margin: The margin on each side, in pixels.
        corner: x and y of the first pixel of the tile, in pixels of the grid.
        grid: The grid.

    Returns:
        The regions, and how many that begin in the tile were too small.
    """
    regions = trace(pixels)
    if not least or not len(regions):
        return pixels, 0
    rings, of = shapely.get_rings(regions, return_index=True)
    hole = np.append(False, of[1:] == of[:-1])
    holes = np.asarray(shapely.polygons(rings[hole]), object)
    firsts = shapely.get_coordinates(shapely.get_point(rings, 0))
    ground = _ground_area(firsts[:, 1] - margin + corner[1], grid)
    inside = shapely.area(holes)
    filled = (inside * ground[hole] < least) & _no_longer(holes, LONGEST_HOLE)
    areas = shapely.area(regions) + np.bincount(of[hole], inside * filled, len(regions))
    small = (areas * ground[~hole] < least) & _no_longer(regions, margin)
    found = pixels
    # Holes first: what lies in them goes by itself.
    for some, value in ((holes[filled], True), (regions[small], False)):
        if len(some):
            found = np.where(_painted(some, pixels.shape), value, found)
    height, width = pixels.shape
    starts = firsts[~hole]
    here = ((starts >= margin) & (starts < (width - margin, height - margin))).all(axis=1)
    return found, int((small & here).sum())


def _painted(regions: npt.NDArray[np.object_], shape: tuple[int, ...]) -> Flags:
    """Return which pixels lie in regions that are made of pixels, and whose rings turn as those of `trace` do."""
    rings, _ = shapely.get_rings(regions, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = points.astype(np.int64)
    upright = np.flatnonzero((ring[1:] == ring[:-1]) & (points[1:, 0] == points[:-1, 0]))
    x, one, other = points[upright, 0], points[upright, 1], points[upright + 1, 1]
    first, rows = np.minimum(one, other), np.abs(other - one)
    down = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    # Along a row, what goes down is the western edge of a region, or the eastern one of a hole in it.
    height, width = shape
    places = (np.repeat(first, rows) + down) * (width + 1) + np.repeat(x, rows)
    ways = np.repeat(np.sign(other - one), rows)
    crossed = np.bincount(places, ways, height * (width + 1)).reshape(height, width + 1)
    return (np.cumsum(crossed, axis=1) != 0)[:, :-1]


def _ground_area(y: Floats, grid: Grid) -> Floats:
    """Return the area of pixels on the ground, in square metres, by their rows in the grid."""
    side = AROUND_WORLD / (grid.size << grid.zoom)
    found: Floats = side**2 / scale(HALF - y * side).prod(axis=1)
    return found


def _no_longer(polygons: npt.NDArray[np.object_], most: int) -> Flags:
    west, north, east, south = shapely.bounds(polygons).reshape(-1, 4).T
    return np.asarray(np.maximum(east - west, south - north) <= most)


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
    """The pixels of the lines of a tile and around it, by their places in the flat image with a border of one."""

    def __init__(
        self, pixels: Flags, margin: int, corner: Place, probabilities: npt.NDArray[np.uint8] | None
    ) -> None:
        self._width = pixels.shape[1] + 2
        self._steps = np.array([down * self._width + right for down, right in AROUND])
        self._margin, self._corner, self._probabilities = margin, corner, probabilities
        skeleton = thinned(pixels)
        self._flat = np.pad(skeleton, 1).ravel()
        self._core = np.pad(np.zeros_like(pixels), 1)
        inner = margin + 1
        self._core[inner : self._core.shape[0] - inner, inner : self._width - inner] = True
        self._core = self._core.ravel()
        self._at = np.flatnonzero(self._flat)
        rows, columns = np.divmod(self._at, self._width)
        self._measured = measured(pixels, rows - 1, columns - 1)
        self._number = dict(zip(self._at.tolist(), range(len(self._at)), strict=True))
        self._look()
        for _ in range(ROUNDS):
            if not self._prune():
                break
            self._look()

    def _look(self) -> None:
        """Find the neighbours of each pixel: diagonal ones only where no straight one leads there, too."""
        there = np.flatnonzero(self._flat)
        beside = self._flat[there[:, np.newaxis] + self._steps]
        straight = beside[:, ::2]
        beside[:, 1::2] &= ~(straight | np.roll(straight, -1, axis=1))
        which, way = np.nonzero(beside)
        others = (there[which] + self._steps[way]).tolist()
        ends = np.cumsum(beside.sum(axis=1)).tolist()
        self._beside: dict[int, list[int]] = {}
        start = 0
        for pixel, end in zip(there.tolist(), ends, strict=True):
            self._beside[pixel] = others[start:end]
            start = end

    def _prune(self) -> bool:
        """Remove branches shorter than the region is wide where they begin; tell whether there were any."""
        short: dict[int, list[tuple[float, list[int]]]] = {}
        radius = self._widest()
        most = 2 * max(radius.values(), default=0.0)
        for pixel, beside in self._beside.items():
            if len(beside) != 1:
                continue
            branch, long, here, ahead = [pixel], 0.0, pixel, beside[0]
            while True:
                long += self._long(here, ahead)
                nexts = self._beside[ahead]
                if len(nexts) != 2 or long >= most:
                    break
                branch.append(ahead)
                here, ahead = ahead, nexts[0] if nexts[1] == here else nexts[1]
            if len(nexts) > 2 and long < 2 * radius[ahead]:
                short.setdefault(ahead, []).append((-long, branch))
        gone: list[int] = []
        for junction, branches in short.items():
            # Of those at the end of a region, the longest is where the line ends.
            kept = max(2 - (len(self._beside[junction]) - len(branches)), 0)
            for _, branch in sorted(branches)[kept:]:
                gone += branch
        self._flat[gone] = False
        return bool(gone)

    def _widest(self) -> dict[int, float]:
        """Return the radius of the widest place that each junction is in: in a bump, of the road beside it."""
        places = np.array([pixel for pixel, beside in self._beside.items() if len(beside) > 2], np.int64)
        there = np.array(list(self._beside), np.int64)
        radius = self._measured.radius[[self._number[pixel] for pixel in self._beside]]
        tree = shapely.STRtree(self._points(places))
        which, junction = tree.query(self._points(there), predicate="dwithin", distance=radius)
        widest = np.zeros(len(places))
        np.maximum.at(widest, junction, radius[which])
        return dict(zip(places.tolist(), widest.tolist(), strict=True))

    def _points(self, pixels: Integers) -> Any:
        rows, columns = np.divmod(pixels, self._width)
        return shapely.points(columns, rows)

    def _long(self, one: int, other: int) -> float:
        return 1.0 if abs(one - other) in (1, self._width) else 2**0.5

    def _place(self, pixel: int) -> Place:
        row, column = divmod(pixel, self._width)
        return column - 1 - self._margin + self._corner[0], row - 1 - self._margin + self._corner[1]

    def _middle(self, pixel: int) -> tuple[float, float]:
        (x, y), (right, down) = self._place(pixel), self._measured.shift[self._number[pixel]].tolist()
        return x + (0.5 + right), y + (0.5 + down)

    def _nodes(self) -> dict[int, End]:
        """Return the ends that junctions are; those in the middle of a wider place are the widest of them."""
        places = [pixel for pixel, beside in self._beside.items() if len(beside) > 2]
        if not places:
            return {}
        radius = self._measured.radius[[self._number[pixel] for pixel in places]]
        rows, columns = np.divmod(np.array(places), self._width)
        order = np.lexsort((columns, rows, -radius))  # the widest first, and of equal ones the northernmost
        points = self._points(np.array(places))
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
        found = {}
        for number, pixel in enumerate(places):
            first = places[order[leader[rank[number]]]]
            found[pixel] = End(self._middle(first), float(self._measured.radius[self._number[first]]))
        return found

    def lines(self) -> Iterator[Line]:
        """Yield the lines in the tile."""
        nodes = self._nodes()
        core = {pixel for pixel in self._beside if self._core[pixel]}
        seen: set[int] = set()
        for start in sorted(core & nodes.keys()):
            for ahead in self._beside[start]:
                if ahead in nodes and ahead in core and ahead < start:
                    continue  # it was the other way round
                if ahead not in seen:
                    yield self._line([start], ahead, nodes, core, seen)
        plain = sorted(core - nodes.keys())
        for start in plain:
            beside = self._beside[start]
            if start in seen or (len(beside) == 2 and core.issuperset(beside)):
                continue
            seen.add(start)
            inside = [each for each in beside if each in core]
            if inside:
                yield self._line([start], inside[0], nodes, core, seen)
            else:
                yield self._made([start], self._end(start, beside[:1]), self._end(start, beside[1:]))
        for start in plain:
            if start not in seen:
                seen.add(start)
                yield self._line([start], self._beside[start][0], nodes, core, seen)

    def _line(self, way: list[int], ahead: int, nodes: dict[int, End], core: set[int], seen: set[int]) -> Line:
        """Follow a line from its first pixel on."""
        start = way[0]
        if start in nodes:
            first = nodes[start]
        else:
            behind = [each for each in self._beside[start] if each != ahead]
            first = self._end(start, behind)
        here = start
        while True:
            if ahead not in core:
                return self._made(way, first, End(link=self._link(here, ahead)))
            if ahead in nodes:
                return self._made([*way, ahead], first, nodes[ahead])
            if ahead == start:
                return self._made(way, first, End(), closed=True)
            way.append(ahead)
            seen.add(ahead)
            nexts = [each for each in self._beside[ahead] if each != here]
            if not nexts:
                return self._made(way, first, End())
            here, ahead = ahead, nexts[0]

    def _end(self, pixel: int, beside: list[int]) -> End:
        """Return the end of a line that begins at a pixel of which the one behind, if any, is in the next tile."""
        if not beside or self._core[beside[0]]:
            return End()
        return End(link=self._link(pixel, beside[0]))

    def _link(self, pixel: int, other: int) -> tuple[Place, Place]:
        one, two = sorted((self._place(pixel), self._place(other)))
        return one, two

    def _made(self, way: list[int], first: End, last: End, *, closed: bool = False) -> Line:
        numbers = [self._number[pixel] for pixel in way]
        points = np.array([self._middle(pixel) for pixel in way])
        sums = (0, 0)
        if self._probabilities is not None:
            places = np.array([self._place(pixel) for pixel in way]) - self._corner
            sums = int(self._probabilities[places[:, 1], places[:, 0]].sum(dtype=np.int64)), len(way)
        return Line(points, self._measured.width[numbers], (first, last), closed, sums)
