"""Which objects of a map and of a prediction belong together: pairs, parts of one, and what has moved.

Objects that overlap make a graph whose components can be whole streets of row houses. So pairs come first, those
of the highest IoU before others; what is left is a part of an object that has a pair, or alone. No group is more
than a pair and its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import shapely

from rsp.components.changes.layer import ANY, Flags, Floats, Integers, Layer, Objects
from rsp.shared.overlap import iou_of, overlap

# Objects belong together where what they share is at least so much of the smaller one.
PART = 0.5
# Of what has moved without an overlap, the smaller one has at least so much of the area of the larger one.
ALIKE = 0.5
# What is shared is no more than rounding, as a share of the smaller one: they touch.
ROUNDING = 1e-9
NONE = -1


class Pairs(NamedTuple):
    """Objects that overlap, n pairs of them.

    Attributes:
        mapped: The place of each in the layer of the map.
        predicted: The place of the other.
        shared: What they share, in square metres of EPSG:3857.
        iou: What they share of what they cover together.
    """

    mapped: Integers
    predicted: Integers
    shared: Floats
    iou: Floats

    def take(self, chosen: Flags) -> Pairs:
        """Return some of them."""
        return Pairs._make(column[chosen] for column in self)


def pairs_of(mapped: Layer, predicted: Layer, classes: tuple[Integers, Integers]) -> Pairs:
    """Return all pairs that overlap, of classes that may be the same."""
    tree = shapely.STRtree(mapped.polygons)
    theirs, ours = tree.query(predicted.polygons, predicate="intersects")
    order = np.lexsort((theirs, ours))
    ours, theirs = ours[order], theirs[order]
    same = _same(classes[0][ours], classes[1][theirs])
    ours, theirs = ours[same], theirs[same]
    shared = overlap(mapped.polygons[ours], predicted.polygons[theirs])
    one, other = mapped.planar[ours], predicted.planar[theirs]
    pairs = Pairs(ours, theirs, shared, shared / (one + other - shared))
    return pairs.take(shared > ROUNDING * np.minimum(one, other))


def _same(one: Integers, other: Integers) -> Any:
    return (one == other) | (one == ANY) | (other == ANY)


def matched(pairs: Pairs, count: int) -> Integers:
    """Pair objects one to one, by the highest IoU first.

    Returns:
        The partner of each of so many objects of the map; `NONE` where it has none.
    """
    partners = np.full(count, NONE)
    for one, other in _greedy(pairs.mapped, pairs.predicted, -pairs.iou):
        partners[one] = other
    return partners


def _greedy(one: Integers, other: Integers, *keys: Floats) -> Iterator[tuple[int, int]]:
    """Yield pairs in the order of some keys, the first the most important, each object once."""
    order = np.lexsort((other, one, *keys[::-1]))
    taken: tuple[set[int], set[int]] = set(), set()
    for ours, theirs in zip(one[order].tolist(), other[order].tolist(), strict=True):
        if ours not in taken[0] and theirs not in taken[1]:
            taken[0].add(ours)
            taken[1].add(theirs)
            yield ours, theirs


@dataclass(frozen=True)
class Groups:
    """Objects that belong together; an object alone is a group, too.

    Attributes:
        mapped: The group of each object of the map.
        predicted: The group of each that is predicted.
        count: How many groups there are.
        pairs: All pairs that overlap.
        partners: The partner of each object of the map, of those that overlap; `NONE` where it has none.
    """

    mapped: Integers
    predicted: Integers
    count: int
    pairs: Pairs
    partners: Integers


def groups_of(
    mapped: Layer, predicted: Layer, classes: tuple[Integers, Integers], *, max_offset: float, iou: float
) -> Groups:
    """Group objects.

    Args:
        mapped: Objects of the map.
        predicted: Those that are predicted.
        classes: The number of the class of each.
        max_offset: How far an object may have moved that no longer overlaps with what it was, in metres.
        iou: What IoU it has to have at least when it is moved back.
    """
    pairs = pairs_of(mapped, predicted, classes)
    least = np.minimum(mapped.planar[pairs.mapped], predicted.planar[pairs.predicted])
    close = pairs.take(pairs.shared >= PART * least)
    partners = matched(close, len(mapped))
    group = np.full(len(mapped), NONE)
    paired = np.flatnonzero(partners != NONE)
    group[paired] = np.arange(len(paired))
    other = np.full(len(predicted), NONE)
    other[partners[paired]] = group[paired]
    # What has no pair is a part of an object that has one: of several, of the one in which most of it lies.
    first = group.copy(), other.copy()
    for mine, hubs, its, size, own in (
        (close.mapped, close.predicted, group, mapped.planar, first[1]),
        (close.predicted, close.mapped, other, predicted.planar, first[0]),
    ):
        share = close.shared / size[mine]
        free = (its[mine] == NONE) & (own[hubs] != NONE) & (share >= PART)
        order = np.flatnonzero(free)[np.lexsort((hubs[free], -close.iou[free], -share[free], mine[free]))]
        some, places = np.unique(mine[order], return_index=True)
        its[some] = own[hubs[order[places]]]
    count = len(paired)
    for one, two in _moved(mapped, predicted, group, other, classes, max_offset, iou):
        group[one] = other[two] = count
        count += 1
    for its in (group, other):
        alone = np.flatnonzero(its == NONE)
        its[alone] = np.arange(count, count + len(alone))
        count += len(alone)
    return Groups(group, other, count, pairs, partners)


def shifted(layer: Layer, places: Integers, to: Floats) -> Objects:
    """Return objects moved so that their centroids lie at other places."""
    polygons = layer.polygons[places]
    points, of = shapely.get_coordinates(polygons, return_index=True)
    moved: Objects = shapely.set_coordinates(polygons.copy(), points + (to - layer.centres[places])[of])
    return moved


def offsets(mapped: Floats, predicted: Floats, scale: Floats) -> Floats:
    """Return how far centroids lie from each other, in metres on the ground."""
    away: Floats = np.hypot(*((predicted - mapped) / scale).T)
    return away


def _moved(
    mapped: Layer, predicted: Layer, group: Integers, other: Integers, classes: tuple[Integers, Integers],
    max_offset: float, iou: float,
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Yield what is alone on both sides, near to each other and alike, the most alike first."""
    ours, theirs = np.flatnonzero(group == NONE), np.flatnonzero(other == NONE)
    if not len(ours) or not len(theirs) or max_offset <= 0:
        return
    tree = shapely.STRtree(np.asarray(shapely.points(mapped.centres[ours])))
    reach = max_offset * predicted.scale[theirs].max(axis=1)
    two, one = tree.query(shapely.points(predicted.centres[theirs]), predicate="dwithin", distance=reach)
    one, two = ours[one], theirs[two]
    away = offsets(mapped.centres[one], predicted.centres[two], predicted.scale[two])
    sizes = mapped.area[one], predicted.area[two]
    fit = (away <= max_offset) & (np.minimum(*sizes) >= ALIKE * np.maximum(*sizes))
    fit &= _same(classes[0][one], classes[1][two])
    one, two, away = one[fit], two[fit], away[fit]
    alike = iou_of(mapped.polygons[one], shifted(predicted, two, mapped.centres[one]))
    good = alike >= iou
    # Which of two that are as alike has moved must not follow from the last digits of coordinates.
    yield from _greedy(one[good], two[good], -alike[good].round(2), away[good])
