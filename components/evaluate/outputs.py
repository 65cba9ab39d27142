"""What `evaluate` writes: a folder of everything, or one file that its suffix names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from rsp.components.evaluate.calibration import Bin
from rsp.components.evaluate.scores import MEASURES
from rsp.components.evaluate.tally import Row
from rsp.shared.atomic import atomic_text
from rsp.shared.claims import FAILED, Form, Output
from rsp.shared.config import ClassDef
from rsp.shared.locations import Location, location, remove

EVALUATION = Form("an evaluation", (".json", ".csv", ".html"), folder=True)
METRICS, TILES, CLASSES, CONFUSION = "metrics.json", "tiles.csv", "classes.csv", "confusion.csv"
RELIABILITY, PAGE = "reliability.csv", "index.html"
# What a file of a suffix holds of the folder.
BY_SUFFIX = {".json": METRICS, ".csv": TILES, ".html": PAGE}
CALIBRATION = ("ece", "brier")


def output(path: Location) -> Output:
    """Return one of the outputs, for `check_paths`."""
    return Output(path, EVALUATION, (FAILED,))


class Places:
    """Where each part of an evaluation goes.

    Args:
        outs: Folders, which get all parts, and files, which get the part that their suffix names.
    """

    def __init__(self, outs: Sequence[Location]) -> None:
        self._places: dict[str, list[Location]] = {}
        for out in map(location, outs):
            part = BY_SUFFIX.get(out.suffix.lower())
            if part is not None:
                self._places.setdefault(part, []).append(out)
                continue
            for name in (METRICS, TILES, CLASSES, CONFUSION, RELIABILITY, PAGE):
                self._places.setdefault(name, []).append(out / name)

    def of(self, part: str) -> list[Location]:
        """Return where a part goes: to no place or to several."""
        return self._places.get(part, [])

    def write(self, part: str, text: Callable[[], str]) -> None:
        """Write a part wherever it is wanted; where it is nowhere, its text is not made."""
        places = self.of(part)
        if places:
            made = text()
            for place in places:
                with atomic_text(place) as file:
                    file.write(made)

    def remove(self, part: str) -> None:
        """Remove a part that an earlier evaluation left, and this one has not."""
        for place in self.of(part):
            remove(place)


class TileRows:
    """Writes the measures of tiles, a line each."""

    def __init__(self, files: Sequence[IO[str]], classes: Sequence[ClassDef], *, calibrated: bool) -> None:
        self._names = [*MEASURES, *(CALIBRATION if calibrated else ())]
        self._writers = [csv.writer(file, lineterminator="\n") for file in files]
        self._write(["x", "y", "z", "pixels", "ignored", *self._names, *(f"iou_{c.title}" for c in classes)])

    def add(self, row: Row) -> None:
        """Write a line."""
        values = [row.values[name] for name in self._names]
        self._write([*row.tile, row.pixels, row.ignored, *map(_cell, [*values, *row.classes])])

    def _write(self, cells: Sequence[object]) -> None:
        for writer in self._writers:
            writer.writerow(cells)


@contextmanager
def tile_rows(places: Places, classes: Sequence[ClassDef], *, calibrated: bool) -> Iterator[TileRows]:
    """Open the lists of tiles; they appear when the block ends well."""
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_text(place)) for place in places.of(TILES)]
        yield TileRows(files, classes, calibrated=calibrated)


def _cell(value: float) -> str:
    """Return a number for a table; nothing where it is undefined."""
    return "" if value != value else f"{value:.6f}"


def classes_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the measures of each class as CSV."""
    names = list(rows[0])
    return _table(names, [[_text(row[name]) for name in names] for row in rows])


def _text(value: Any) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return _cell(value) if isinstance(value, float) else value


def confusion_csv(titles: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return the confusion matrix as CSV: rows are labels, columns what is predicted."""
    return _table(["label", *titles], [[title, *row] for title, row in zip(titles, counts, strict=True)])


def reliability_csv(classes: Mapping[str, Sequence[Bin]]) -> str:
    """Return the bins of each class, and of what is predicted, as CSV."""
    lines = [
        [title, *map(_cell, (each.low, each.high)), each.pixels, *map(_cell, (each.confidence, each.accuracy))]
        for title, bins in classes.items()
        for each in bins
    ]
    return _table(["class", "low", "high", "pixels", "confidence", "accuracy"], lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *lines])
    return text.getvalue()


def to_json(found: Mapping[str, Any]) -> str:
    """Return JSON, of what has types of JSON only."""
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
