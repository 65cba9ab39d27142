"""Outlines with right angles: the edges of a polygon snapped to the two directions of its walls.

The direction of a building is the one to which its edges are most nearly parallel or perpendicular. In its frame
each edge lies along one of two axes; those of one axis that follow each other are a wall, at the mean of their
places, and corners are where walls meet. Walls that are too short go, the shortest first, and the two that they
parted become one.

All is done for many polygons at once, in arrays of edges or walls, ring by ring.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.overlap import iou_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Objects = npt.NDArray[np.object_]

# How far stair-steps of pixels are from the line that they stand for, in pixels.
STAIRS = 1.0
# Edges count as walls, where the direction is measured, up to this angle from it, in radians.
NEARLY = np.radians(12)
# How much better the edges must follow their mean direction than that of the rectangle around them.
BETTER = 0.1
# The shortest wall, as a part of the square root of the area: the coarsest form is tried first. And in pixels.
STEPS = (0.3, 0.2, 0.12, 0.06)
LEAST_WALL = 3.0
# A simpler form may have so much less of an IoU than the best one.
SPARE = 0.01
# What is less like the outline is left as it was.
LEAST_IOU = 0.9
# So is what goes farther beyond the outline, in pixels.
FARTHEST = 16.0

TINY = np.finfo(float).tiny


class Walls(NamedTuple):
    """Walls of rings, those of a ring one after the other; each second one is upright.

    Attributes:
        at: Where each lies on the axis that it is perpendicular to. Shape (N,), as all.
        length: How long the edges are that it stands for.
        ring: The ring of each, ascending.
        upright: Whether it is perpendicular to the first axis.
    """

    at: Floats
    length: Floats
    ring: Integers
    upright: Flags

    def some(self, chosen: Flags | Integers) -> Walls:
        """Return those that are chosen, or all in another order."""
        return Walls(self.at[chosen], self.length[chosen], self.ring[chosen], self.upright[chosen])


def regularize(outlines: Objects) -> tuple[Objects, Flags]:
    """Give polygons right angles where they stay what they are.

    Args:
        outlines: As traced, in stair-steps of pixels.

    Returns:
        The polygons, simplified by a pixel where they have no such form, and which of them have one: valid, with
        an IoU of at least 0.9 with what is simplified, and no farther than 16 pixels beyond the outline. Its
        corners have any coordinates.
    """
    found = shapely.simplify(outlines, STAIRS, preserve_topology=True)
    areas = shapely.area(found)
    if not len(found):
        return found, np.zeros(0, bool)
    direction = directions(outlines, found)
    rings, of = shapely.get_rings(found, return_index=True)
    walls = _walls(rings, direction[of])
    form, iou = np.full(len(found), None, object), np.zeros(len(found))
    forms, alike = np.full((len(STEPS), len(found)), None, object), np.zeros((len(STEPS), len(found)))
    changed = np.ones(len(found), bool)
    # The finest form first: the next one has fewer walls of it, or is the same.
    for place in reversed(range(len(STEPS))):
        counts = np.bincount(walls.ring, minlength=len(rings))
        walls = _long_enough(walls, np.maximum(LEAST_WALL, STEPS[place] * np.sqrt(areas))[of])
        changed[of[np.bincount(walls.ring, minlength=len(rings)) != counts]] = True
        form[changed], iou[changed] = _polygons(walls, of, direction)[changed], 0
        there = np.flatnonzero(changed & shapely.is_valid(form))
        iou[there] = iou_of(form[there], found[there])
        forms[place], alike[place] = form, iou
        changed[:] = False
    chosen = np.argmax(alike >= alike.max(axis=0) - SPARE, axis=0)
    places = np.arange(len(found))
    form, iou = forms[chosen, places], alike[chosen, places]
    right = iou >= LEAST_IOU
    # What goes so far beyond is as wide as a wall at least, and most forms have less than that outside.
    size = shapely.area(form)
    some = np.flatnonzero(right & (size - (areas + size) * iou / (1 + iou) > LEAST_WALL * (FARTHEST - STAIRS)))
    right[some] = shapely.covers(shapely.buffer(found[some], FARTHEST - STAIRS, quad_segs=2), form[some])
    found[right] = form[right]
    return found, right


def directions(outlines: Objects, simple: Objects) -> Floats:
    """Return the directions of the walls of polygons, in radians.

    It is that of the smallest rectangle around the outline, or the mean direction of its edges (of four times
    their angles, weighted by the squares of their lengths; then of those alone that are nearly so), where they
    follow that one better, as those of a cross do.

    Args:
        outlines: As traced: the rectangle around stair-steps is the more exact one.
        simple: The same, simplified.
    """
    rings, of = shapely.get_rings(simple, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    within = ring[1:] == ring[:-1]
    edges, owner, count = np.diff(points, axis=0)[within], of[ring[1:][within]], len(simple)
    angles, lengths = np.arctan2(edges[:, 1], edges[:, 0]), np.hypot(edges[:, 0], edges[:, 1])
    whole = np.maximum(np.bincount(owner, lengths, count), TINY)

    def followed(direction: Floats) -> Floats:
        """Return 1 where all edges have a direction, 0 for a disc."""
        found: Floats = np.bincount(owner, lengths * np.cos(4 * (angles - direction[owner])), count) / whole
        return found

    squares = lengths**2
    east, north = (np.bincount(owner, squares * part(4 * angles), count) for part in (np.cos, np.sin))
    direction: Floats = np.arctan2(north, east) / 4
    for _ in range(2):
        off = (angles - direction[owner] + np.pi / 4) % (np.pi / 2) - np.pi / 4
        weight = squares * (np.abs(off) < NEARLY)
        direction += np.bincount(owner, weight * off, count) / np.maximum(np.bincount(owner, weight, count), TINY)
    corners = shapely.get_coordinates(shapely.minimum_rotated_rectangle(outlines)).reshape(-1, 5, 2)
    around = np.arctan2(*(corners[:, 1] - corners[:, 0]).T[::-1])
    return np.where(followed(direction) > followed(around) + BETTER, direction, around)


def _polygons(walls: Walls, of: Integers, direction: Floats) -> Objects:
    """Return the polygons that walls make, one for each direction; None where there are no walls.

    Args:
        walls: At least four of each ring.
        of: The polygon of each ring.
        direction: Of the walls of each polygon, in radians.
    """
    found = np.full(len(direction), None, object)
    if not len(walls.ring):
        return found
    following = _neighbours(walls.ring)[1]
    x = np.where(walls.upright, walls.at, walls.at[following])
    y = np.where(walls.upright, walls.at[following], walls.at)
    corners = _rotated(np.column_stack([x, y]), direction[of[walls.ring]])
    left, number = np.unique(walls.ring, return_inverse=True)
    lines: Any = shapely.linearrings(corners, indices=number)
    owners, indices = np.unique(of[left], return_inverse=True)
    found[owners] = shapely.polygons(lines, indices=indices)
    return found


def _walls(rings: Objects, direction: Floats) -> Walls:
    """Return the walls of rings; those of rings that turn fewer than four times are left out."""
    points, of = shapely.get_coordinates(rings, return_index=True)
    points = _rotated(points, -direction[of])
    inside = of[1:] == of[:-1]
    start, end, ring = points[:-1][inside], points[1:][inside], np.asarray(of[1:][inside], np.int64)
    extent = np.abs(end - start)
    upright = extent[:, 1] > extent[:, 0]
    length = np.where(upright, extent[:, 1], extent[:, 0])
    middle = (start + end) / 2
    at = np.where(upright, middle[:, 0], middle[:, 1])
    begins = upright != upright[_neighbours(ring)[0]]
    turning = np.bincount(ring, begins, len(rings)) >= 4
    chosen = turning[ring]
    every, begins = Walls(at, length, ring, upright).some(chosen), begins[chosen]
    # Edges before the first wall of a ring belong to its last one.
    number = np.cumsum(begins) - 1
    lasts = np.cumsum(np.bincount(every.ring[begins], minlength=len(rings))) - 1
    heads = np.flatnonzero(begins)
    number = np.where((number < 0) | (every.ring[heads[number]] != every.ring), lasts[every.ring], number)
    total: Floats = np.bincount(number, every.length, len(heads)).astype(np.float64)
    mean: Floats = np.bincount(number, every.length * every.at, len(heads)) / np.maximum(total, TINY)
    return Walls(mean, total, every.ring[heads], every.upright[heads])


def _long_enough(walls: Walls, step: Floats) -> Walls:
    """Take walls away, of each ring the shortest that is shorter than its step, until there is none or four."""
    done: list[Walls] = []
    while len(walls.ring):
        before, after = _neighbours(walls.ring)
        extent = np.abs(walls.at[after] - walls.at[before])
        starts = np.flatnonzero(np.append(True, walls.ring[1:] != walls.ring[:-1]))
        counts = np.diff(np.append(starts, len(walls.ring)))
        shortest = np.minimum.reduceat(extent, starts)
        short = np.repeat((shortest < step[walls.ring[starts]]) & (counts > 4), counts)
        done.append(walls.some(~short))
        candidates = np.flatnonzero(short & (extent == np.repeat(shortest, counts)))
        gone = candidates[np.unique(walls.ring[candidates], return_index=True)[1]]
        left, right = before[gone], after[gone]
        at, length = walls.at.copy(), walls.length.copy()
        length[left] = walls.length[left] + walls.length[right]
        ours, theirs = walls.length[left] ** 2, walls.length[right] ** 2
        at[left] = (walls.at[left] * ours + walls.at[right] * theirs) / (ours + theirs)
        short[gone] = short[right] = False
        walls = Walls(at, length, walls.ring, walls.upright).some(short)
    if not done:
        return walls
    columns: list[Any] = [np.concatenate(column) for column in zip(*done, strict=True)]
    together = Walls(*columns)
    return together.some(np.argsort(together.ring, kind="stable"))


def _neighbours(ring: Integers) -> tuple[Integers, Integers]:
    """Return the places before and after each one, going round its ring."""
    before, after = np.arange(len(ring)) - 1, np.arange(len(ring)) + 1
    starts = np.flatnonzero(np.append(True, ring[1:] != ring[:-1])[: len(ring)])
    ends = np.append(starts[1:], len(ring)) - 1
    before[starts], after[ends] = ends, starts
    return before, after


def _rotated(points: Floats, angle: Floats) -> Floats:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.column_stack([points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos])
