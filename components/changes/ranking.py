"""Which objects to look at first: those that are least likely by what is normal among the others.

What is normal is not the same for a shed and a hall, nor for a good model and a poor one. So it is learned from
the objects themselves, by size: how often an object of the map is found at all, how often a predicted one is on
the map, how well pairs of that size agree, and how compact and certain those are that are on the map.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rsp.components.changes.judging import Judged
from rsp.components.changes.layer import Floats, Integers

# Objects of about one size that say together what is normal; no more sizes than these are told apart.
ALIKE, SIZES = 100, 32
# How many objects what is usual elsewhere counts for, so that a few do not say what is normal.
PRIOR = 10.0
# What is usual: the share of objects that the other side has too, the IoU of pairs and its deviation, and what is
# left of an object without a metre of its outline.
FOUND, IOU, DEVIATION, EVIDENCE = 0.9, 0.8, 0.06, 0.5
# The least deviation, and how many deviations below what is normal make a pair as suspicious as not.
LEAST, HALFWAY = 0.02, 4.0
# What the score of an object is worth that the border of the area cuts.
CUT = 0.5
DECIMALS = 4

# A median absolute deviation is so much less than a standard deviation.
_NORMAL = 1.4826


def scores(judged: Judged) -> Floats:
    """Return how suspicious each group of objects is, from 0 to 1.

    - Predicted only: its evidence, against what is normal for that size, times the share of it that lies on
      nothing mapped, times how often predicted objects of that size are on the map.
    - Mapped only: the share that has no support, times how often objects of that size are found.
    - Both: how many deviations the IoU lies below what is normal for that size.

    What the border of the area cuts is known in part only: half, times the share that is known.
    """
    one, other = judged.mapped, judged.predicted
    size = judged.size
    both = (one.counts > 0) & (other.counts > 0)
    found = np.zeros(len(size))
    # Which objects, and which pairs, say what is normal: not those that are cut.
    whole = ~judged.cut
    gone, missing = other.counts == 0, one.counts == 0
    pairs = both & whole
    normal = _by_size(size[pairs], judged.iou[pairs], size, np.median, IOU)
    apart = np.abs(judged.iou - normal)
    deviation = np.maximum(
        _NORMAL * _by_size(size[pairs], apart[pairs], size, np.median, DEVIATION / _NORMAL), LEAST
    )
    below = np.maximum(normal - judged.iou, 0.0)[both] / deviation[both]
    found[both] = below / (below + HALFWAY)
    on_map = _by_size(size[whole & ~gone], both[whole & ~gone].astype(float), size, np.mean, FOUND)
    usual = _by_size(size[pairs], judged.evidence[pairs], size, np.median, EVIDENCE)
    strong = np.minimum(judged.evidence[missing] / np.maximum(usual[missing], LEAST), 1.0)
    found[missing] = strong * judged.novel[missing] * on_map[missing]
    seen = _by_size(size[whole & ~missing], both[whole & ~missing].astype(float), size, np.mean, FOUND)
    found[gone] = (1 - judged.support[gone]) * seen[gone]
    found[judged.cut] *= CUT * judged.inside[judged.cut]
    return np.clip(found, 0.0, 1.0).round(DECIMALS)


def _by_size(
    sizes: Floats, values: Floats, wanted: Floats, middle: Callable[[Floats], float], usual: float
) -> Floats:
    """Return what is normal for some sizes: the middle of the values of objects that are as large.

    Args:
        sizes: Of the objects, in square metres.
        values: What is known of them.
        wanted: The sizes that are asked for.
        middle: Mean or median.
        usual: What counts as much as `PRIOR` objects do.
    """
    if not len(sizes):
        return np.full(len(wanted), usual)
    logs = np.log(np.maximum(sizes, 1e-6))
    order = np.lexsort((values, logs))
    parts = np.array_split(order, int(np.clip(len(order) // ALIKE, 1, SIZES)))
    places = [float(logs[part].mean()) for part in parts]
    found = [(len(part) * middle(values[part]) + PRIOR * usual) / (len(part) + PRIOR) for part in parts]
    return np.interp(np.log(np.maximum(wanted, 1e-6)), places, found)


def worst_first(judged: Judged, found: Floats) -> Integers:
    """Return the order of groups, those of the highest scores first; of equal ones the larger."""
    return np.lexsort((judged.predicted.first, judged.mapped.first, -judged.size, -found))
