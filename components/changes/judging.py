"""What became of each group of objects: its status, and what speaks for and against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from rsp.components.changes.area import unions
from rsp.components.changes.evidence import eroded, left_over
from rsp.components.changes.layer import Flags, Floats, Integers, Layer, Objects, texts
from rsp.components.changes.matching import NONE, Groups, offsets, shifted
from rsp.shared.ground import scale
from rsp.shared.overlap import iou_of, overlap

MATCHED, MOVED, RESHAPED, MERGED, SPLIT, MISSING, GONE = STATUSES = (
    "matched", "moved", "reshaped", "merged", "split", "missing_on_map", "gone",
)  # fmt: skip

# Pairs whose boundary IoU is worked out: of more, so many of them at equal distances.
BOUNDARIES = 10_000
# At which IoU of a pair objects count as found, in the metrics.
THRESHOLDS = tuple(number / 100 for number in range(50, 100, 5))


@dataclass(frozen=True)
class Side:
    """What a layer has in each of n groups.

    Attributes:
        counts: How many objects.
        shapes: Their union, in metres of EPSG:3857; None where there are none.
        first: The place of the first of them; `NONE` where there are none.
        weighted: Per object, what share of its group it is.
    """

    layer: Layer
    group: Integers
    counts: Integers
    shapes: Objects
    first: Integers

    @classmethod
    def of(cls, layer: Layer, group: Integers, count: int) -> Side:
        """Gather the objects of a layer by their groups."""
        counts = np.bincount(group, minlength=count)
        shapes = np.full(count, None, object)
        shapes[group] = layer.polygons
        several = counts[group] > 1
        numbers, joined = unions(layer.polygons[several], group[several])
        shapes[numbers] = joined
        first = np.full(count, NONE)
        first[group[::-1]] = np.arange(len(group))[::-1]
        return cls(layer, group, counts, shapes, first)

    def mean(self, values: Floats) -> Floats:
        """Return the means of values of objects by group, weighted by their areas; NaN where there are none."""
        count = len(self.counts)
        weights = np.bincount(self.group, self.layer.area, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.bincount(self.group, self.layer.area * values, count) / weights

    def centres(self, groups: Integers) -> Floats:
        """Return x and y of the centroids of some groups that have objects, in metres of EPSG:3857."""
        found = self.layer.centres[self.first[groups]]
        several = self.counts[groups] > 1
        found[several] = shapely.get_coordinates(shapely.centroid(self.shapes[groups[several]])).reshape(-1, 2)
        return found

    def numbers(self) -> Objects:
        """Return the numbers of the objects of each group as text, separated by commas."""
        order = np.lexsort((self.layer.numbers, self.group))
        each = [str(number) for number in self.layer.numbers[order].tolist()]
        ends = np.cumsum(self.counts).tolist()
        starts = [0, *ends[:-1]]
        return texts(",".join(each[start:end]) for start, end in zip(starts, ends, strict=True))


@dataclass(frozen=True)
class Judged:
    """Groups of objects, n of them, as they are ranked and written.

    Attributes:
        mapped: What the map has of each.
        predicted: What is predicted.
        status: One of `STATUSES`.
        iou: Of both unions; NaN where one side has nothing.
        offset: How far their centroids lie from each other, in metres; NaN likewise.
        support: Which share of what is mapped is covered by what is predicted, or how probable it is.
        evidence: What is left of what is predicted without a metre of its outline, times its probability.
        novel: Which share of what is predicted lies on nothing that is mapped.
        size: Area in square metres: of what is predicted, else of what is mapped.
        cut: Whether the border of the area cuts it.
        inside: Which share of it lies in the area.
    """

    mapped: Side
    predicted: Side
    status: Objects
    iou: Floats
    offset: Floats
    support: Floats
    evidence: Floats
    novel: Floats
    size: Floats
    cut: Flags
    inside: Floats

    @property
    def shapes(self) -> Objects:
        """What each looks like: as it is predicted, or as it is mapped where nothing is."""
        return np.where(self.predicted.counts > 0, self.predicted.shapes, self.mapped.shapes)

    @property
    def titles(self) -> Objects:
        """The title of the class of each: of what is predicted, else of what is mapped."""
        found = np.full(len(self.status), "", object)
        for side in (self.mapped, self.predicted):
            there = np.flatnonzero(side.first != NONE)
            titles = side.layer.titles[side.first[there]]
            found[there] = np.where(titles == "", found[there], titles)
        return found


def judge(
    mapped: Layer, predicted: Layer, groups: Groups, *, iou: float, max_offset: float,
    probabilities: tuple[Floats, Floats] | None,
) -> Judged:  # fmt: skip
    """Say what became of each group.

    Args:
        mapped: The objects of the map.
        predicted: Those that are predicted.
        groups: Which belong together.
        iou: From which IoU on a pair is matched.
        max_offset: How far, in metres, a pair may have moved.
        probabilities: The mean probability of each object of both; NaN where it is not known.
    """
    one, other = Side.of(mapped, groups.mapped, groups.count), Side.of(predicted, groups.predicted, groups.count)
    pairs = groups.pairs
    shared = [
        np.bincount(places, pairs.shared, len(layer))
        for places, layer in ((pairs.mapped, mapped), (pairs.predicted, predicted))
    ]
    covered, known = (
        np.minimum(some / layer.planar, 1.0) for some, layer in zip(shared, (mapped, predicted), strict=True)
    )
    evidence, support = left_over(predicted), covered
    if probabilities is not None:
        support = np.where(np.isnan(probabilities[0]), covered, probabilities[0])
        evidence = evidence * np.where(np.isnan(probabilities[1]), 1.0, probabilities[1])
    both = (one.counts > 0) & (other.counts > 0)
    found, away = _compared(one, other, groups, both)
    status = np.full(groups.count, RESHAPED, object)
    status[one.counts == 0] = MISSING
    status[other.counts == 0] = GONE
    status[both & (one.counts > other.counts)] = MERGED
    status[both & (one.counts < other.counts)] = SPLIT
    single = (one.counts == 1) & (other.counts == 1)
    status[single & (found >= iou)] = MATCHED
    maybe = np.flatnonzero(single & (found < iou) & (away <= max_offset))
    back = shifted(predicted, other.first[maybe], mapped.centres[one.first[maybe]])
    again = iou_of(one.shapes[maybe], back)
    status[maybe[again >= iou]] = MOVED

    def either(ours: Floats, theirs: Floats) -> Floats:
        return np.where(other.counts > 0, other.mean(theirs), one.mean(ours))

    count = groups.count
    sums = [np.bincount(side.group, side.layer.area, count) for side in (one, other)]
    cut = np.zeros(count, bool)
    for side in (one, other):
        cut[side.group[side.layer.cut]] = True
    return Judged(
        mapped=one, predicted=other, status=status, iou=found, offset=away,
        support=one.mean(support), evidence=other.mean(evidence), novel=other.mean(1 - known),
        size=np.where(other.counts > 0, sums[1], sums[0]), cut=cut, inside=either(mapped.inside, predicted.inside),
    )  # fmt: skip


def _compared(one: Side, other: Side, groups: Groups, both: Flags) -> tuple[Floats, Floats]:
    """Return IoU and offset of groups that have something on both sides; NaN for others."""
    count, pairs = groups.count, groups.pairs
    found, away = np.full(count, np.nan), np.full(count, np.nan)
    # Of a pair the IoU is known already; nought where it does not overlap.
    found[both] = 0.0
    own = groups.mapped[pairs.mapped] == groups.predicted[pairs.predicted]
    found[groups.mapped[pairs.mapped[own]]] = pairs.iou[own]
    several = np.flatnonzero(both & (one.counts + other.counts > 2))
    found[several] = iou_of(one.shapes[several], other.shapes[several])
    places = np.flatnonzero(both)
    centres = [side.centres(places) for side in (one, other)]
    away[places] = offsets(centres[0], centres[1], scale(centres[1][:, 1]))
    return found, away


def object_metrics(groups: Groups, mapped: Layer, predicted: Layer) -> dict[str, Any]:
    """Return precision, recall and F1 of objects, by the IoU that a pair has to have: 0/0 is None."""
    best = np.zeros(len(mapped))
    pairs = groups.pairs
    own = groups.partners[pairs.mapped] == pairs.predicted
    best[pairs.mapped[own]] = pairs.iou[own]
    rows: list[dict[str, Any]] = []
    for threshold in THRESHOLDS:
        true = int((best >= threshold).sum())
        rows.append({"iou": threshold, "true": true, **_scores(true, len(mapped), len(predicted))})
    means = [row["f1"] for row in rows if row["f1"] is not None]
    first = {name: rows[0][name] for name in ("precision", "recall", "f1")}
    return {**first, "f1_mean": sum(means) / len(means) if means else None, "thresholds": rows}


def _scores(true: int, mapped: int, predicted: int) -> dict[str, float | None]:
    return {
        "precision": true / predicted if predicted else None,
        "recall": true / mapped if mapped else None,
        "f1": 2 * true / (mapped + predicted) if mapped + predicted else None,
    }


def boundary_iou(groups: Groups, mapped: Layer, predicted: Layer, iou: float) -> float | None:
    """Return the mean IoU of the inner metre along the outlines of matched pairs; None where there is none.

    Args:
        groups: Which objects belong together.
        mapped: The objects of the map.
        predicted: Those that are predicted.
        iou: From which IoU on a pair is matched.
    """
    pairs = groups.pairs
    own = np.flatnonzero((groups.partners[pairs.mapped] == pairs.predicted) & (pairs.iou >= iou))
    own = own[:: max(1, -(-len(own) // BOUNDARIES))]
    if not len(own):
        return None
    ours, theirs = mapped.take(pairs.mapped[own]), predicted.take(pairs.predicted[own])
    our_deep, their_deep = eroded(ours), eroded(theirs)
    # The bands overlap in what the wholes share, without what either has deep inside.
    both = (
        pairs.shared[own]
        - overlap(our_deep, theirs.polygons)
        - overlap(ours.polygons, their_deep)
        + overlap(our_deep, their_deep)
    )
    bands = [
        shapely.area(whole) - shapely.area(deep)
        for whole, deep in ((ours.polygons, our_deep), (theirs.polygons, their_deep))
    ]
    return float((both / (bands[0] + bands[1] - both)).mean())
