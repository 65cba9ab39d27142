"""Keeps features with right angles out of their neighbours.

A wall lies where most of its pixels end, so a form goes beyond its outline in places, and may lie in another one.
Outlines themselves never do. So of the ground that a form would take, what is inside of another outline is not
taken, and what two forms would take outside of both outlines is that of the smaller feature. What is too unlike
its outline then becomes the outline again. What becomes of a feature follows from those that it meets alone, and
of these from nothing but their forms and outlines: none waits for what becomes of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.featureset import Features
from rsp.shared.featuretext import DECIMALS
from rsp.shared.polygons import Grid, Objects, Shaping, rounded, without_small_holes
from rsp.shared.regular import FARTHEST, LEAST_IOU
from rsp.shared.sweep import TilePolygons

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

# The unit that coordinates are written in, in degrees, and its square: what is smaller is rounding.
UNIT = 10.0**-DECIMALS
NOISE = UNIT**2


class Claims(NamedTuple):
    """Features of a run that may meet, with the ground that they would take.

    Attributes:
        forms: What they would be, in degrees.
        outlines: As traced, in pixels of the grid.
        kinds: The place of the class of each.
    """

    forms: Objects
    outlines: Objects
    kinds: Integers

    @classmethod
    def of(cls, several: Sequence[Features | None]) -> Claims:
        """Return those of features with outlines, class by class; None where a class has none."""
        some = [(place, one) for place, one in enumerate(several) if one is not None and one.outlines is not None]
        return cls(
            np.concatenate([np.empty(0, object), *(one.polygons for _, one in some)]),
            np.concatenate([np.empty(0, object), *(one.outlines for _, one in some if one.outlines is not None)]),
            np.repeat(np.array([place for place, _ in some], np.int64), [len(one.polygons) for _, one in some]),
        )

    @classmethod
    def joined(cls, several: Sequence[Claims]) -> Claims:
        """Return those of several, one after another."""
        columns = zip(*several, strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, chosen: Flags | Integers) -> Claims:
        """Return some of them."""
        return Claims(self.forms[chosen], self.outlines[chosen], self.kinds[chosen])


class Ground:
    """The ground that features share.

    Attributes:
        reach: Features may meet whose outlines are no farther apart than this, in pixels. No more than a tile, so
            that none meets one that is two rows away.

    Args:
        grid: The grid of their outlines.
        shapings: What became of those of each class. Classes without right angles stay as they are.
    """

    def __init__(self, grid: Grid, shapings: Sequence[Shaping]) -> None:
        self.grid = grid
        self._free = np.array([shaping.regularize for shaping in shapings])
        self._min_area = shapings[0].min_area
        self.reach = min(2 * max(FARTHEST, shapings[0].tolerance), float(grid.size))

    def near(self, outlines: Objects, others: Objects) -> Flags:
        """Tell which outlines are so near to others, all in pixels of the grid, that the features may meet."""
        found = np.zeros(len(outlines), bool)
        if len(others):
            found[shapely.STRtree(others).query(outlines, "dwithin", self.reach)[0]] = True
        return found

    def meeting(self, claims: Claims, fresh: int = 0) -> tuple[Integers, Integers]:
        """Return the pairs of which the first has to mind the second.

        Args:
            claims: The features.
            fresh: The place from which they are new: pairs of others are left out.
        """
        boxes = self._boxes(claims)
        one, other = shapely.STRtree(boxes).query(boxes[fresh:])
        one += fresh
        chosen = other < one
        one, other = np.concatenate([one[chosen], other[chosen]]), np.concatenate([other[chosen], one[chosen]])
        chosen = self._free[claims.kinds[one]]
        one, other = one[chosen], other[chosen]
        used, place = np.unique(np.concatenate([one, other]), return_inverse=True)
        outlines = self._placed(claims.outlines[used])[place]
        mine, theirs, form = outlines[: len(one)], outlines[len(one) :], claims.forms[other]
        met = _overlapping(claims.forms[one], form) | _overlapping(claims.forms[one], theirs)
        # Outlines of a class have nothing in common, and those of several only where they were grown.
        across = np.flatnonzero(~met & (claims.kinds[one] != claims.kinds[other]))
        fixed = ~self._free[claims.kinds[other[across]]]
        met[across] = _overlapping(mine[across], np.where(fixed, form[across], theirs[across]))
        return one[met], other[met]

    def divided(self, claims: Claims) -> Objects:
        """Return what becomes of features, in degrees.

        Where all of an outline is the ground of others, which are of classes that stay as they are or were grown,
        it is left, so that the feature is not lost.

        Args:
            claims: They, and all that they meet.
        """
        one, other = self.meeting(claims)
        found = claims.forms.copy()
        used = np.unique(np.concatenate([one, other]))
        outlines = dict(zip(used.tolist(), self._placed(claims.outlines[used]), strict=True))
        order = {place: _order(outlines[place], int(claims.kinds[place])) for place in outlines}
        for place in np.unique(one).tolist():
            mine = outlines[place]
            firm: list[BaseGeometry] = []
            loose: list[BaseGeometry] = []  # where it is no part of the outline
            for each in other[one == place].tolist():
                if not self._free[claims.kinds[each]]:
                    firm.append(claims.forms[each])
                elif order[each] < order[place]:
                    firm.append(outlines[each])
                    loose.append(claims.forms[each])
                else:
                    loose.append(outlines[each])
            form = _without(claims.forms[place], [*firm, *shapely.difference(loose, mine)])
            if form is None or _iou(form, mine) < LEAST_IOU:
                form = _without(mine, firm) or mine
            found[place] = form
        return found

    def _boxes(self, claims: Claims) -> Objects:
        """Return boxes around forms and outlines."""
        west, north, east, south = shapely.bounds(claims.outlines).reshape(-1, 4).T
        low = self.grid.to_lonlat(np.column_stack([west, south]))
        high = self.grid.to_lonlat(np.column_stack([east, north]))
        forms = shapely.bounds(claims.forms).reshape(-1, 4)
        low, high = np.minimum(low, forms[:, :2]), np.maximum(high, forms[:, 2:])
        found: Objects = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
        return found

    def _placed(self, outlines: Objects) -> Objects:
        """Return outlines in degrees, without the holes that features have not."""
        return without_small_holes(rounded(outlines, self.grid), self._min_area)


def hold(found: Sequence[TilePolygons], shapings: Sequence[Shaping], grid: Grid) -> None:
    """Take the outlines from all features of a tile that meet none, whatever is in other tiles: they are finished.

    Args:
        found: What was found in the tile of each class.
        shapings: What became of those of each.
        grid: The grid.
    """
    ground, tile = Ground(grid, shapings), found[0].tile
    claims = Claims.of([one.whole for one in found])
    corner = np.array([tile.x, tile.y, -tile.x - 1, -tile.y - 1]) * grid.size
    bounds = shapely.bounds(claims.outlines).reshape(-1, 4) * (1, 1, -1, -1)
    held: Flags = np.any(bounds - ground.reach < corner, axis=1)
    held[~held] = ground.near(claims.outlines[~held], np.concatenate([one.cut for one in found]))
    for some in ground.meeting(claims):
        held[some] = True
    for place, one in enumerate(found):
        if one.whole is not None:
            outlines = claims.outlines.copy()
            outlines[~held] = None
            one.whole = one.whole._replace(outlines=outlines[claims.kinds == place])


def _order(outline: BaseGeometry, kind: int) -> tuple[float, bytes, int]:
    """Return what tells which of two features takes the ground that both would: the smaller one."""
    return shapely.area(outline), shapely.to_wkb(outline), kind


def _overlapping(one: Objects, other: Objects) -> Flags:
    """Tell which pairs have more in common than rounding makes."""
    found: Flags = np.asarray(shapely.intersects(one, other), bool)
    found[found] = shapely.area(shapely.intersection(one[found], other[found])) > NOISE
    return found


def _without(form: BaseGeometry, others: Sequence[BaseGeometry]) -> BaseGeometry | None:
    """Return the largest part of a polygon that is in none of some others; None where nothing is left."""
    taken = [other for other in others if shapely.area(shapely.intersection(form, other)) > NOISE]
    if not taken:
        return form
    # Rounding moves edges, of both, by less than the unit each.
    wide = shapely.union_all(shapely.buffer(taken, 2 * UNIT, join_style="mitre"))
    left = shapely.difference(form, wide)
    parts = shapely.get_parts(shapely.set_precision(left, UNIT))
    parts = parts[shapely.area(parts) > NOISE]
    if not len(parts):
        return None
    largest = parts[np.argmax(shapely.area(parts))]
    plain = shapely.transform(largest, lambda points: np.round(points, DECIMALS))
    return shapely.orient_polygons(plain) if plain.is_valid else None


def _iou(one: BaseGeometry, other: BaseGeometry) -> float:
    common = shapely.area(shapely.intersection(one, other))
    return float(common / (shapely.area(one) + shapely.area(other) - common))
