"""What is predicted beside several objects of a map, as a part of one: of a row of houses, one.

Where houses stand wall to wall, what is predicted is the whole row. It belongs to all that the map has of it, and
how well they agree says little of one that is missing. So what lies on nothing mapped is an object by itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely

from rsp.components.changes.area import Area, unions
from rsp.components.changes.layer import Integers, Layer, Objects, concatenated, layer_of
from rsp.components.changes.matching import Groups

# Metres by which outlines may differ: what is narrower than two of them is no object.
EDGE = 1.0
# Square metres that an object has at least.
LEAST = 10.0


def with_rest(mapped: Layer, predicted: Layer, groups: Groups, area: Area | None) -> tuple[Layer, Groups]:
    """Make what of predicted objects lies beside several of the map objects of their own.

    Args:
        mapped: The objects of the map.
        predicted: Those that are predicted.
        groups: Which belong together.
        area: Whose border cuts objects; None where there is none.

    Returns:
        The predicted objects, in their order, without what is an object of its own now; these after them, with the
        numbers of what they were parts of; and the groups of all.
    """
    pairs = groups.pairs
    several = np.bincount(groups.mapped, minlength=groups.count)[groups.predicted] > 1
    beside = predicted.planar - np.bincount(pairs.predicted, pairs.shared, len(predicted))
    wanted = several & (beside >= LEAST * predicted.scale.prod(axis=1))
    of = wanted[pairs.predicted]
    places, known = unions(mapped.polygons[pairs.mapped[of]], pairs.predicted[of])
    found, nth = _opened(shapely.difference(predicted.polygons[places], known), predicted.take(places))
    if not len(found):
        return predicted, groups
    owners = places[nth]
    fewer = predicted.polygons.copy()
    numbers, joined = unions(found, owners)
    fewer[numbers] = shapely.difference(fewer[numbers], joined)
    rest = layer_of(found, predicted.numbers[owners], predicted.titles[owners])
    if area is not None:
        rest = area.clip(rest)
    own = np.arange(groups.count, groups.count + len(rest))
    return (
        concatenated([predicted.within(fewer, predicted.inside, predicted.cut), rest]),
        replace(groups, predicted=np.concatenate([groups.predicted, own]), count=groups.count + len(rest)),
    )


def _opened(polygons: Objects, layer: Layer) -> tuple[Objects, Integers]:
    """Return the parts of polygons that are wide and large enough, and of which polygon each is one."""
    edge = EDGE * layer.scale.mean(axis=1)
    opened = shapely.buffer(shapely.buffer(polygons, -edge, join_style="mitre"), edge, join_style="mitre")
    crossed = ~shapely.is_valid(opened)  # a mitre may cross what is near to it
    opened[crossed] = shapely.make_valid(opened[crossed], method="structure", keep_collapsed=False)
    wide = shapely.intersection(opened, polygons)
    parts, nth = shapely.get_parts(wide, return_index=True)
    large = shapely.area(parts) >= LEAST * layer.scale.prod(axis=1)[nth]
    return parts[large], nth[large]
