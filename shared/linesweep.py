"""Joins the centre lines of tiles, in one sweep from north to south, and brings them to the ground.

A line goes from a junction or an end to the next one, however many tiles it lies in. Only lines that go on in the
row of tiles to the south are kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import LineString

from rsp.shared.centrelines import End, Line, Place
from rsp.shared.featureset import ending, ordered, properties_of
from rsp.shared.featuretext import DECIMALS
from rsp.shared.geometry import to_mercator
from rsp.shared.ground import scale
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.polygons import Grid, Shaping
from rsp.shared.sweep import rows_of
from rsp.shared.tiles import Tile

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]

# Over how much of a line, in its widths, one looks to see where it leads where it ends.
BACK = 1.5


@dataclass
class TileLines:
    """What was found in a tile.

    Attributes:
        lines: The lines, cut at the edges of the tile.
        dropped: How many regions were too small.
    """

    tile: Tile
    lines: list[Line]
    dropped: int = 0


class Lines(NamedTuple):
    """Lines on the ground; n of them.

    Attributes:
        lines: LineStrings in degrees, rounded as they are written.
        lengths: In metres on the ellipsoid.
        widths: The mean of each, in metres.
        starts: x and y of the tile where each starts: of its tiles the northernmost, of these the westernmost.
        tiles: How many tiles each lies in.
        sums: What the probabilities along each sum to, and of how many pixels.
        zoom: Zoom of the tiles.
    """

    lines: Objects
    lengths: Floats
    widths: Floats
    starts: Integers
    tiles: Integers
    sums: Integers
    zoom: int

    def take(self, chosen: Integers) -> Lines:
        """Return some of them."""
        return Lines(
            self.lines[chosen], self.lengths[chosen], self.widths[chosen], self.starts[chosen], self.tiles[chosen],
            self.sums[chosen], self.zoom,
        )  # fmt: skip

    def properties(self, title: str, model: str | None = None) -> list[dict[str, Any]]:
        """Return the properties that they have as GeoJSON, as those of `rsp.shared.featureset.Features`."""
        measures = [
            {"length_m": round(length, 2), "width_m": round(width, 2)}
            for length, width in zip(self.lengths.tolist(), self.widths.tolist(), strict=True)
        ]
        return properties_of(self, title, measures, model)


@dataclass
class Open:
    """A line that goes on, with the tiles that it lies in."""

    line: Line
    tiles: set[Tile] = field(default_factory=set)


class LineSweep:
    """Joins the lines of tiles that come in row by row, from north to south.

    Attributes:
        dropped: How many regions were too small.
    """

    def __init__(self, grid: Grid, shaping: Shaping, *, merge: bool) -> None:
        self.grid, self.shaping = grid, shaping
        self.dropped = 0
        self._merge = merge
        self._open: dict[tuple[Place, Place], Open] = {}  # by the link that waits for its other side
        self._done: list[Open] = []

    def features(self, found: Iterable[TileLines]) -> Iterator[Lines]:
        """Yield the lines that are whole after each row of tiles, as `rsp.shared.sweep.Sweep.features` does."""
        for y, row in rows_of(found):
            for one in row:
                self.dropped += one.dropped
                for line in one.lines:
                    self._add(Open(line, {one.tile}))
            yield self._closed(y)

    def _add(self, new: Open) -> None:
        """Join a line with those that wait for it, and let it wait for others, or be done."""
        if self._merge:
            for place in (0, 1):
                link = new.line.ends[place].link
                if link is None:
                    continue
                other = self._open.pop(link, None)
                if other is None:
                    continue
                for each in other.line.ends:
                    if each.link is not None:
                        self._open.pop(each.link, None)
                new = _joined(other, new, link)
                self._add(new)
                return
            links = [end.link for end in new.line.ends if end.link is not None]
            if len(links) == 2 and links[0] == links[1]:
                new.line.closed, new.line.ends = True, (End(), End())
                links = []
            for link in links:
                self._open[link] = new
            if links:
                return
        self._done.append(new)

    def _closed(self, row: int) -> Lines:
        """Return what does not go on beyond a row of tiles, and forget it."""
        edge = (row + 1) * self.grid.size
        for link, waiting in list(self._open.items()):
            if link in self._open and max(y for _, y in link) < edge:
                ours = {end.link for end in waiting.line.ends} - {None}
                if any(self._reaches(each, edge) for each in ours if each in self._open):
                    continue  # its other end goes on
                for each in ours:
                    self._open.pop(each, None)  # type: ignore[arg-type]
                self._done.append(waiting)
        done, self._done = self._done, []
        return _placed(done, self.grid, self.shaping.tolerance)

    @staticmethod
    def _reaches(link: Any, edge: int) -> bool:
        return max(y for _, y in link) >= edge


def _turned(line: Line) -> Line:
    return Line(line.points[::-1], line.widths[::-1], line.ends[::-1], line.closed, line.sums)


def _joined(one: Open, other: Open, link: tuple[Place, Place]) -> Open:
    """Return two lines that go on over a link as one."""
    first = one.line if one.line.ends[1].link == link else _turned(one.line)
    second = other.line if other.line.ends[0].link == link else _turned(other.line)
    line = Line(
        np.concatenate([first.points, second.points]), np.concatenate([first.widths, second.widths]),
        (first.ends[0], second.ends[1]),
        sums=(first.sums[0] + second.sums[0], first.sums[1] + second.sums[1]),
    )  # fmt: skip
    return Open(line, one.tiles | other.tiles)


def _placed(some: list[Open], grid: Grid, tolerance: float) -> Lines:
    """Return lines on the ground, from north to south."""
    kept = [(shape, one) for one in some if (shape := shaped(one.line, tolerance)) is not None]
    shapes: Any = np.array([*(shape.line for shape, _ in kept), None], object)[:-1]
    lines: Objects = shapely.transform(shapes, lambda pixels: np.round(grid.to_lonlat(pixels), DECIMALS))
    lengths = ground_lengths(lines)
    firsts = [min((tile.y, tile.x) for tile in one.tiles)[::-1] for _, one in kept]
    found = Lines(
        lines, lengths, np.array([_ground_width(shape, grid) for shape, _ in kept]),
        np.array(firsts, np.int64).reshape(-1, 2), np.array([len(one.tiles) for _, one in kept], np.int64),
        np.array([one.line.sums for _, one in kept], np.int64).reshape(-1, 2), grid.zoom,
    )  # fmt: skip
    keys = np.column_stack([found.starts[:, ::-1], shapely.bounds(lines).reshape(-1, 4)])
    order = ordered(keys, lambda place: (ending(lines[place]),))
    return found.take(order[lengths[order] > 0])


class Shaped(NamedTuple):
    """A line, the points in the middle of a region that it goes through, and how wide this is there, in pixels."""

    line: LineString
    points: Floats
    widths: Floats


def shaped(line: Line, tolerance: float) -> Shaped | None:
    """Return a line in pixels of the grid, up to the junctions and to the edge of the region where it ends.

    Args:
        line: The line.
        tolerance: How far it may move, in pixels.

    Returns:
        The line, or None where it has no length, or lies in the middle of one junction.
    """
    middle = _canonical(line)
    widths = line.widths
    if line.closed:
        if len(middle) < 3:
            return None
        points = np.concatenate([middle, middle[:1]])
    else:
        ends = line.ends
        if middle is not line.points:
            ends, widths = ends[::-1], widths[::-1]
        head, first = _ended(ends[0], middle, widths)
        tail, last = _ended(ends[1], middle[::-1], widths[::-1])
        middle, widths = middle[first : len(middle) - last], widths[first : len(middle) - last]
        points = np.concatenate([head, middle, tail[::-1]])
    steps = np.hypot(*np.diff(points, axis=0).T)
    if not steps.sum():
        return None
    one, other = line.ends
    if one.node is not None and one.node == other.node and steps.sum() <= 2 * np.pi * one.radius:
        return None
    found: Any = shapely.simplify(shapely.linestrings(points), tolerance, preserve_topology=True)
    return Shaped(found, middle, widths)


def _canonical(line: Line) -> Floats:
    """Return the points of a line in an order that does not follow from how it was found."""
    points = line.points
    if not line.closed:
        there, back = points[:2].ravel().tolist(), points[: -3 if len(points) > 2 else None : -1].ravel().tolist()
        return points if there <= back else points[::-1]
    start = int(np.lexsort((points[:, 0], points[:, 1]))[0])
    turned = np.roll(points, -start, axis=0)
    return turned if tuple(turned[1]) <= tuple(turned[-1]) else np.roll(turned[::-1], 1, axis=0)


def _ended(end: End, points: Floats, widths: Floats) -> tuple[Floats, int]:
    """Return what is before the points of a line, and how many of the first ones it is in place of.

    In a junction that is its middle. Where a region ends its line bends to a corner, or ends before: so it is led
    on as straight as it comes, as far as the region goes.
    """
    none = points[:0]
    if end.node is not None:
        node = np.array([end.node])
        return (node if (node != points[:1]).any() else none), 0
    if end.link is not None or len(points) < 2:
        return none, 0
    usual, count = float(np.median(widths)), len(points)
    first = max(min(int(usual) + 1, (count - 3) // 2), 0)  # the middle stays
    back = min(first + max(int(BACK * usual), 2), max(count - 1 - first, first + 2), count - 1)
    away = points[first] - points[back]
    away = away / max(np.hypot(*away), 1e-9)
    # As far as what is around the points that go.
    far = float(((points[: first + 1] - points[first]) @ away + widths[: first + 1] / 2 - 0.5).max())
    return (points[first] + away * far)[np.newaxis] if far > 0 else none, first


def ground_lengths(lines: Any) -> Floats:
    """Return the lengths of lines in degrees, in metres on the ellipsoid."""
    points, of = shapely.get_coordinates(to_mercator(lines, 4326), return_index=True)
    steps = of[1:] == of[:-1]
    middle = (points[1:, 1] + points[:-1, 1]) / 2
    along = np.hypot(*(np.diff(points, axis=0) / scale(middle)).T)
    return np.bincount(of[1:][steps], along[steps], len(lines)).astype(np.float64)


def _ground_width(shape: Shaped, grid: Grid) -> float:
    side = AROUND / (grid.size << grid.zoom)
    y = HALF - shape.points[:, 1].mean(keepdims=True) * side
    return float(shape.widths.mean() * side / scale(y).mean())
