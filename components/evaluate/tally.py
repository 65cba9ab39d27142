"""What the tiles of an evaluation add up to."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rsp.components.evaluate.calibration import Levels, brier, brier_of_class, ece
from rsp.components.evaluate.scores import by_class, overall
from rsp.components.evaluate.work import Found
from rsp.shared.bootstrap import LEAST_BLOCKS, Gathering, draws
from rsp.shared.classes import ignored_classes
from rsp.shared.config import ClassDef
from rsp.shared.metrics import Counts, iou_per_class
from rsp.shared.tiles import Tile

# How much of the draws an interval holds, as much on either side.
CONFIDENCE = 0.95
# Bars of the histogram of tiles by IoU.
BINS = 20
# Tiles that are remembered to be shown.
WORST = 24


@dataclass(frozen=True)
class Row:
    """The measures of a tile.

    Attributes:
        tile: Which.
        pixels: How many pixels count.
        ignored: How many do not.
        values: The measures by name, see `overall`, and with probabilities `ece` and `brier`.
        classes: The IoU of each class.
    """

    tile: Tile
    pixels: int
    ignored: int
    values: dict[str, float]
    classes: list[float]

    @property
    def wrong(self) -> float:
        """The share of the pixels whose class is wrong; 0 where none counts."""
        accuracy = self.values["accuracy"]
        return 0.0 if math.isnan(accuracy) else 1 - accuracy


class Tally:
    """Adds tiles up. What it holds grows with the blocks of the area, by some numbers each.

    Args:
        classes: Their definitions, in the order of their index.
        block: Side in tiles of the blocks that are drawn.
        background: The first class is the background.
    """

    def __init__(self, classes: Sequence[ClassDef], block: int, *, background: bool = True) -> None:
        self.classes, self.background = tuple(classes), background
        self.ignored = ignored_classes(classes)
        size = len(classes)
        self.counts, self.boundary = np.zeros((size, size), np.int64), np.zeros((size, 2), np.int64)
        self.tiles = self.unknown = 0
        self.levels: Levels | None = None
        self.distances: set[int] = set()
        self.histogram = [0] * BINS
        self.without = 0
        self._blocks = Gathering(block)
        self._worst: list[tuple[float, tuple[int, ...], Row]] = []

    def add(self, tile: Tile, found: Found, calibration: tuple[float, float] | None = None) -> Row:
        """Count a tile and return its measures.

        Args:
            tile: Which.
            found: What is known of it.
            calibration: Its ECE and Brier score, where `found` has no levels.
        """
        self.tiles += 1
        self.counts += found.counts
        self.boundary += found.boundary
        self.unknown += found.ignored
        self.distances.add(found.distance)
        self._blocks.add(tile, np.concatenate([found.counts.ravel(), found.boundary.ravel()]))
        values = found.values
        if found.levels is not None:
            self.add_levels(found.levels)
        if calibration is not None:
            values = values | dict(zip(("ece", "brier"), calibration, strict=True))
        row = Row(tile, int(found.counts.sum()), found.ignored, values, found.ious)
        if math.isnan(values["iou"]):
            self.without += 1
        else:
            self.histogram[min(BINS - 1, int(values["iou"] * BINS))] += 1
        # The worst are wanted; of equals the first by column and row, whatever order they come in.
        entry = row.wrong, tuple(-part for part in tile), row
        if row.wrong and len(self._worst) < WORST:
            heapq.heappush(self._worst, entry)
        elif row.wrong and entry > self._worst[0]:
            heapq.heapreplace(self._worst, entry)
        return row

    def _overall(self, counts: Counts, boundary: Counts) -> dict[str, float]:
        return overall(counts, boundary, self.ignored, background=self.background)

    def add_levels(self, levels: Levels) -> None:
        """Count the probabilities of pixels; see `levels_of`."""
        self.levels = levels if self.levels is None else self.levels + levels

    def worst(self) -> list[Row]:
        """Return the tiles of which the largest share is wrong, the worst first."""
        return [row for _, _, row in sorted(self._worst, reverse=True)]

    def summary(self, seed: int) -> Summary:
        """Return what all tiles add up to."""
        measures = self._overall(self.counts, self.boundary)
        classes = by_class(self.counts, self.boundary)
        if self.levels is not None:
            measures |= {"ece": ece(self.levels[-1]), "brier": brier(self.levels)}
            for values, levels in zip(classes, self.levels[:-1], strict=True):
                values |= {"ece": ece(levels), "brier": brier_of_class(levels)}
        blocks = self._blocks.blocks().counts
        intervals, of_classes = self._intervals(blocks, seed)
        return Summary(measures, classes, len(blocks), intervals, of_classes)

    def _intervals(self, blocks: Counts, seed: int) -> tuple[dict[str, list[float]], list[dict[str, list[float]]]]:
        """Return the interval of each measure, and of the IoU of each class; none of few blocks."""
        if len(blocks) < LEAST_BLOCKS:
            return {}, [{} for _ in self.classes]
        size = len(self.classes)
        drawn: list[list[float]] = []
        names: list[str] = []
        for (total,) in draws(blocks, seed=seed):
            counts, boundary = total[: size * size].reshape(size, size), total[size * size :].reshape(size, 2)
            values = self._overall(counts, boundary)
            names = list(values)
            drawn.append([*values.values(), *iou_per_class(counts)])
        low_high = [_interval(column) for column in np.array(drawn).T]
        measures = dict(zip(names, low_high, strict=False))
        return measures, [{"iou": each} for each in low_high[len(names) :]]


@dataclass(frozen=True)
class Summary:
    """The measures of all tiles.

    Attributes:
        measures: By name.
        classes: Of each class, by name.
        blocks: How many blocks the tiles make.
        intervals: Between which values 95 % of the draws lie, by name; empty where there are few blocks.
        class_intervals: Likewise, of each class.
    """

    measures: dict[str, float]
    classes: list[dict[str, float]]
    blocks: int
    intervals: dict[str, list[float]] = field(default_factory=dict)
    class_intervals: list[dict[str, list[float]]] = field(default_factory=list)


def _interval(values: Any) -> list[float]:
    """Return the interval that holds most of the draws; NaN where none of them has a value."""
    known = values[~np.isnan(values)]
    if not known.size:
        return [math.nan, math.nan]
    low, high = np.quantile(known, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return [float(low), float(high)]
