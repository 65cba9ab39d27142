"""What `evaluate` writes: a folder of everything, or one file that its suffix names."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from rsp.components.evaluate.calibration import Bin
from rsp.components.evaluate.scores import MEASURES
from rsp.components.evaluate.tally import Row
from rsp.shared.atomic import atomic_text
from rsp.shared.claims import FAILED, Form, Output
from rsp.shared.config import ClassDef
from rsp.shared.locations import Location
from rsp.shared.places import Places
from rsp.shared.texttables import cell, csv_text

EVALUATION = Form("an evaluation", (".json", ".csv", ".html"), folder=True)
METRICS, TILES, CLASSES, CONFUSION = "metrics.json", "tiles.csv", "classes.csv", "confusion.csv"
RELIABILITY, PAGE = "reliability.csv", "index.html"
# What a file of a suffix holds of the folder.
BY_SUFFIX = {".json": METRICS, ".csv": TILES, ".html": PAGE}
CALIBRATION = ("ece", "brier")


def output(path: Location) -> Output:
    """Return one of the outputs, for `check_paths`."""
    return Output(path, EVALUATION, (FAILED,))


def places_of(outs: Sequence[Location]) -> Places:
    """Return where each part of an evaluation goes."""
    return Places(outs, (METRICS, TILES, CLASSES, CONFUSION, RELIABILITY, PAGE), BY_SUFFIX)


class TileRows:
    """Writes the measures of tiles, a line each."""

    def __init__(self, files: Sequence[IO[str]], classes: Sequence[ClassDef], *, calibrated: bool) -> None:
        self._names = [*MEASURES, *(CALIBRATION if calibrated else ())]
        self._writers = [csv.writer(file, lineterminator="\n") for file in files]
        self._write(["x", "y", "z", "pixels", "ignored", *self._names, *(f"iou_{c.title}" for c in classes)])

    def add(self, row: Row) -> None:
        """Write a line."""
        values = [row.values[name] for name in self._names]
        self._write([*row.tile, row.pixels, row.ignored, *map(cell, [*values, *row.classes])])

    def _write(self, cells: Sequence[object]) -> None:
        for writer in self._writers:
            writer.writerow(cells)


@contextmanager
def tile_rows(places: Places, classes: Sequence[ClassDef], *, calibrated: bool) -> Iterator[TileRows]:
    """Open the lists of tiles; they appear when the block ends well."""
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_text(place)) for place in places.of(TILES)]
        yield TileRows(files, classes, calibrated=calibrated)


def classes_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the measures of each class as CSV."""
    names = list(rows[0])
    return csv_text(names, [[_text(row[name]) for name in names] for row in rows])


def _text(value: Any) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return cell(value) if isinstance(value, float) else value


def confusion_csv(titles: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return the confusion matrix as CSV: rows are labels, columns what is predicted."""
    return csv_text(["label", *titles], [[title, *row] for title, row in zip(titles, counts, strict=True)])


def reliability_csv(classes: Mapping[str, Sequence[Bin]]) -> str:
    """Return the bins of each class, and of what is predicted, as CSV."""
    lines = [
        [title, *map(cell, (each.low, each.high)), each.pixels, *map(cell, (each.confidence, each.accuracy))]
        for title, bins in classes.items()
        for each in bins
    ]
    return csv_text(["class", "low", "high", "pixels", "confidence", "accuracy"], lines)
