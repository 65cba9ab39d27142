"""Joins features that lie near each other, by metres on the ground, as rows of tiles come in from north to south.

Two features whose distance is no more than asked are one, and so are all that are connected over such pairs. What
lies between two of them and is narrower than that becomes part of it; each keeps its own holes and recesses. Where
nothing can be filled, as between corners, the feature has several parts.

Only what later rows may still come near to is looked at again, and only features that are connected with that are
held. Distances are Euclidean ones in EPSG:3857 at the scale of the latitude, and no more than 0.4 % off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.disjoint import connected
from rsp.shared.featureset import Features
from rsp.shared.featuretext import DECIMALS
from rsp.shared.geometry import to_mercator
from rsp.shared.ground import BAND, scale
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.polygons import Objects, ground_area, without_small_holes
from rsp.shared.sweep import Sweep, TilePolygons

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# The unit that coordinates are written in, in degrees.
UNIT = 10.0**-DECIMALS
# By which part of it more than half the distance outlines are widened: so that those at the very distance meet.
MORE = 0.01
# How far around a band, in distances, what lies there counts: beyond no corner of a widened outline reaches.
REACH = 6


class Near:
    """Joins the features of a sweep.

    Attributes:
        joined: How many features went into others.
        dropped: How many were too small, after they were joined.
    """

    def __init__(self, sweep: Sweep, metres: float, min_area: float) -> None:
        self.joined = self.dropped = 0
        self._sweep, self._metres, self._min_area = sweep, metres, min_area
        self._held = Features.sorted([], sweep.grid.zoom)
        self._mercator: Objects = np.empty(0, object)
        self._reach: Floats = np.empty(0)  # metres of EPSG:3857, where they are longest
        self._open = np.empty(0, bool)  # what later rows may come near to
        self._cluster: Integers = np.empty(0, np.int64)
        self._pixel = AROUND / (sweep.grid.size << sweep.grid.zoom)

    def features(self, found: Iterable[TilePolygons]) -> Iterator[Features]:
        """Yield the features, row by row, in an order that follows from the tiles alone."""
        for y, features in self._sweep.rows(found):
            self._take(features)
            self._look(y)
            yield self._closed()
        self._open[:] = False
        yield self._closed()

    def _take(self, new: Features) -> None:
        """Add features, and connect them with what they are near to."""
        before, count = len(self._mercator), len(new.polygons)
        mercator: Objects = to_mercator(new.polygons, 4326)
        highest = np.abs(shapely.bounds(mercator)[:, 1::2]).max(axis=1, initial=0.0)
        reach = self._metres * scale(highest).max(axis=1)
        self._held = Features.joined([self._held, new])
        self._mercator = np.concatenate([self._mercator, mercator])
        self._reach = np.concatenate([self._reach, reach])
        self._open = np.concatenate([self._open, np.ones(count, bool)])
        self._cluster = np.concatenate([self._cluster, np.arange(before, before + count)])
        there = np.flatnonzero(self._open)
        tree = shapely.STRtree(self._mercator[there])
        one, other = tree.query(mercator, predicate="dwithin", distance=reach)
        one, other = one + before, there[other]
        one, other = one[other < one], other[other < one]
        near = ground_distance(self._mercator[one], self._mercator[other]) <= self._metres
        self._cluster = connected(self._cluster, one[near], other[near])

    def _look(self, y: int) -> None:
        """Find out what the rows after a row, or features that go on there, may come near to."""
        size = self._sweep.grid.size
        edge = HALF - (y + 1) * size * self._pixel
        there = np.flatnonzero(self._open)
        # Outlines moved when they were simplified.
        reach = self._reach[there] + (self._sweep.shaping.tolerance + 1) * self._pixel
        still = shapely.bounds(self._mercator[there])[:, 1] - reach <= edge
        pending = shapely.transform(self._sweep.waiting(), lambda at: (at * (1, -1)) * self._pixel + (-HALF, HALF))
        tree = shapely.STRtree(pending)
        still[tree.query(self._mercator[there], predicate="dwithin", distance=reach)[0]] = True
        self._open[there[~still]] = False

    def _closed(self) -> Features:
        """Return the features of which no member is near to what comes, and forget them."""
        done = ~np.isin(self._cluster, self._cluster[self._open])
        held = self._held
        _, numbers, sizes = np.unique(self._cluster[done], return_inverse=True, return_counts=True)
        places = np.flatnonzero(done)
        alone = places[sizes[numbers] == 1]
        found = [held.take(alone)]
        for number in np.flatnonzero(sizes > 1):
            members = places[numbers == number]
            self.joined += len(members) - 1
            found.append(self._as_one(members))
        left = ~done
        self._held = held.take(left)
        self._mercator, self._reach = self._mercator[left], self._reach[left]
        self._open, self._cluster = self._open[left], np.unique(self._cluster[left], return_inverse=True)[1]
        return self._large(Features.sorted(found, held.zoom))

    def _as_one(self, members: Integers) -> Features:
        """Return some of the features held as one."""
        held, zoom = self._held, self._held.zoom
        polygon = together(held.polygons[members], self._mercator[members], self._metres)
        found: Objects = np.empty(1, object)
        found[0] = polygon
        first = min(held.starts[members].tolist(), key=lambda start: (start[1], start[0]))
        tiles = count_tiles(to_mercator(found, 4326)[0], zoom)
        sums = held.sums[members].sum(axis=0, keepdims=True)
        return Features(found, ground_area(found), np.array([first]), np.array([tiles]), sums, zoom)

    def _large(self, found: Features) -> Features:
        """Return the features that are not too small."""
        whole = without_small_holes(found.polygons, self._min_area)
        areas = ground_area(whole)
        large = areas >= self._min_area
        self.dropped += int((~large).sum())
        return found._replace(polygons=whole, areas=areas).take(large)


def ground_distance(one: Objects, other: Objects) -> Floats:
    """Return how far apart geometries in EPSG:3857 are, pair by pair, in metres on the ground."""
    lines = shapely.shortest_line(one, other)
    ends = shapely.get_coordinates(lines).reshape(-1, 2, 2)
    steps = (ends[:, 1] - ends[:, 0]) / scale(ends[:, :, 1].mean(axis=1))
    distance: Floats = np.hypot(steps[:, 0], steps[:, 1])
    return distance


def together(polygons: Objects, mercator: Objects, metres: float) -> BaseGeometry:
    """Return polygons as one geometry, with what lies between them and is narrower than some metres.

    Args:
        polygons: Valid, in degrees.
        mercator: The same in EPSG:3857.
        metres: On the ground.

    Returns:
        A Polygon or MultiPolygon in degrees, with the decimals that are written.
    """
    _, south, _, north = shapely.total_bounds(mercator)
    edges = np.array([south, north])
    if north - south > BAND:
        edges = np.arange(np.floor(south / BAND), np.ceil(north / BAND) + 1) * BAND
    fills = [
        _between(mercator, low, high, metres, whole=len(edges) == 2) for low, high in pairwise(edges.tolist())
    ]
    # Where a gap ends in a point, rounding lets outlines cross, here and when the scale is taken back.
    degrees = shapely.make_valid(shapely.transform(np.array(fills, object), _degrees))
    fill = shapely.get_parts(shapely.union_all(degrees, grid_size=UNIT))
    fill = fill[shapely.get_dimensions(fill) == 2]
    # What touches one of them alone is rounding along its outline.
    tree = shapely.STRtree(polygons)
    met = np.bincount(tree.query(fill, predicate="dwithin", distance=2 * UNIT)[0], minlength=len(fill))
    union = shapely.union_all(np.concatenate([polygons, fill[met > 1]]), grid_size=UNIT)
    # Without the points where outlines met.
    plain = shapely.simplify(union, UNIT, preserve_topology=True)
    rounded = shapely.transform(plain, lambda points: np.round(points, DECIMALS))
    return shapely.orient_polygons(rounded if rounded.is_valid else union)


def _between(mercator: Objects, low: float, high: float, metres: float, *, whole: bool) -> BaseGeometry:
    """Return what lies between polygons of a band of latitudes, in EPSG:3857."""
    middle = np.array([0.0, (low + high) / 2])
    scales = scale(middle[1:])[0]
    if not whole:
        around = REACH * metres * scales[1]
        mercator = shapely.intersection(mercator, shapely.box(-AROUND, low - around, AROUND, high + around))
        mercator = mercator[~shapely.is_empty(mercator)]
    flat = shapely.transform(mercator, lambda points: (points - middle) / scales)
    closed = _closing(np.array([*flat, shapely.union_all(flat)], object), metres)
    between = shapely.difference(closed[-1], shapely.union_all(closed[:-1]))
    found: BaseGeometry = shapely.make_valid(shapely.transform(between, lambda points: points * scales + middle))
    return found if whole else shapely.intersection(found, shapely.box(-AROUND, low, AROUND, high))


def _closing(flat: Objects, metres: float) -> Objects:
    """Return geometries with what is narrower filled: widened and shrunk again, with sharp corners."""
    wide = metres / 2 * (1 + MORE)
    closed: Objects = shapely.buffer(shapely.buffer(flat, wide, join_style="mitre"), -wide, join_style="mitre")
    return np.asarray(shapely.make_valid(closed), object)  # a mitre may cross what is near to it


def _degrees(mercator: Floats) -> Floats:
    latitude = np.arctan(np.sinh(mercator[:, 1] * (np.pi / HALF)))
    return np.column_stack([mercator[:, 0] * (180 / HALF), np.degrees(latitude)])


def count_tiles(mercator: BaseGeometry, zoom: int) -> int:
    """Return how many tiles a geometry in EPSG:3857 lies in, with more than its outline."""
    count, quads = 0, [(mercator, 0, 0, 0)]
    while quads:
        whole, z, x, y = quads.pop()
        side = AROUND / (1 << z)
        west, north = x * side - HALF, HALF - y * side
        edge = side * 1e-6 if z == zoom else 0.0
        piece = shapely.clip_by_rect(whole, west + edge, north - side + edge, west + side - edge, north - edge)
        if shapely.area(piece) == 0:
            continue
        if z == zoom:
            count += 1
        else:
            quads += [(piece, z + 1, 2 * x + dx, 2 * y + dy) for dx in (0, 1) for dy in (0, 1)]
    return count
