"""What the tiles of a comparison add up to."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from rsp.components.compare.measures import measures_of
from rsp.components.compare.tool import CompareResult
from rsp.components.compare.work import Compared, Outcomes
from rsp.shared.classes import ignored_classes
from rsp.shared.config import ClassDef
from rsp.shared.errors import TileSetError
from rsp.shared.jobs import Failure
from rsp.shared.metrics import (
    f1_per_class,
    foreground_iou,
    iou_per_class,
    mcc,
    miou,
    nanmean,
    precision_per_class,
    recall_per_class,
)
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset.common import Together

# Tiles that a set lacks of which the names are given.
NAMED = 10


class Tally:
    """Counts what comes out tile by tile.

    Args:
        classes: Those of labels and masks; none where nothing is scored.
        together: The tiles, and which the tile sets lack; that is said at once.
    """

    def __init__(self, classes: Sequence[ClassDef], together: Together) -> None:
        self.classes = classes
        self.counts = np.zeros((len(classes), len(classes)), np.int64)
        self.failed: dict[Tile, str] = {}
        self.compared = self.passed = 0
        self.quality = 0.0
        self._together = together
        every = together.tiles
        for name, cover in together.lacking.items():
            every |= cover
            some = ", ".join(zxy(tile) for tile in islice(cover, NAMED))
            more = f" and {len(cover) - NAMED:,} more" if len(cover) > NAMED else ""
            print(f"not compared: {len(cover):,} tiles that {name} lacks: {some}{more}", file=sys.stderr)
        self.not_compared = len(every) - len(together.tiles)

    def over(self, results: Outcomes) -> Iterator[Compared]:
        """Yield the tiles that passed the filters."""
        for (tile, _), found in results:
            if isinstance(found, Failure):
                self.failed[tile] = found.reason
                continue
            self.compared += 1
            if found.counts is not None:
                self.counts += found.counts
                self.quality += found.qod
            if found.passed:
                self.passed += 1
                yield found

    def check(self) -> None:
        """Raise `TileSetError` where every tile failed."""
        if self.failed and not self.compared:
            tile, reason = min(self.failed.items())
            raise TileSetError(f"none of the {len(self.failed)} tiles can be compared; {zxy(tile)}: {reason}")

    def result(self) -> CompareResult:
        """Return the measures of all tiles."""
        result = CompareResult(tiles=self.compared, written=self.passed, failed=self.failed)
        result.not_compared = self.not_compared
        result.lacking = {
            name: {"tiles": len(cover), "first": [list(tile) for tile in islice(cover, NAMED)]}
            for name, cover in self._together.lacking.items()
        }
        if self.classes:
            self._measure(result)
        return result

    def _measure(self, result: CompareResult) -> None:
        counts, ignored = self.counts, ignored_classes(self.classes)
        titles = [each.title for each in self.classes]
        result.iou, result.miou = foreground_iou(counts, ignored), miou(counts, ignored)
        result.f1, result.precision, result.recall = (
            nanmean(np.delete(of(counts), [0, *ignored]))
            for of in (f1_per_class, precision_per_class, recall_per_class)
        )
        result.mcc, result.qod = mcc(counts), self.quality / self.compared
        result.classes = dict(zip(titles, map(float, iou_per_class(counts)), strict=True))
        result.classes |= {titles[index]: math.nan for index in ignored}
        result.by_class = measures_of(counts, self.classes)
        result.confusion = counts.tolist()
