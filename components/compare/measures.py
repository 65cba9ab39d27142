"""Tables of the measures of each class: tile by tile, and over all tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from rsp.components.compare.bounds import RANGES
from rsp.components.compare.records import Batch
from rsp.shared.claims import Form
from rsp.shared.config import ClassDef
from rsp.shared.locations import Location
from rsp.shared.metrics import ClassCounts, Counts, Floats
from rsp.shared.places import Places
from rsp.shared.rows import RowWriter, row_writer
from rsp.shared.texttables import json_text

MEASURES = Form("measures", (".csv", ".parquet", ".json"), folder=True)
TILES, TILES_PARQUET, CLASSES, CLASSES_PARQUET = "tiles.csv", "tiles.parquet", "classes.csv", "classes.parquet"
ALL = "metrics.json"
PARTS = (TILES, TILES_PARQUET, CLASSES, CLASSES_PARQUET, ALL)
BY_SUFFIX = {".csv": TILES, ".parquet": TILES_PARQUET, ".json": ALL}

_PIXELS = ("pixels", "labelled", "predicted", "agreed")
_OF_CLASSES = [name for name in RANGES if name not in ("fg", "qod")]
# The columns of the tables, with their types.
TILE_COLUMNS = (
    dict.fromkeys("xyz", int) | {"class": str} | dict.fromkeys(_PIXELS, int) | dict.fromkeys(RANGES, float)
    | {"tile_fg": float, "tile_qod": float}
)  # fmt: skip
CLASS_COLUMNS = {"class": str} | dict.fromkeys(_PIXELS, int) | dict.fromkeys(_OF_CLASSES, float)


def measures_of(counts: Counts, classes: Sequence[ClassDef]) -> dict[str, dict[str, float]]:
    """Return pixels and measures of each class over all tiles, by title, without the classes to ignore."""
    listed = _listed(classes)
    table = {name: each.tolist() for name, each in _columns(ClassCounts.of(counts), listed).items()}
    return {
        classes[index].title: {name: table[name][place] for name in CLASS_COLUMNS if name != "class"}
        for place, index in enumerate(listed)
    }


def _listed(classes: Sequence[ClassDef]) -> list[int]:
    return [index for index, each in enumerate(classes) if not each.ignore]


def _columns(counts: ClassCounts, listed: Sequence[int]) -> dict[str, Floats]:
    """Return pixels and measures of some classes, arrays of counts.shape but for the last axis."""
    some = ClassCounts(*(each[..., listed] for each in counts))
    pixels = dict(zip(_PIXELS, (some.total, some.labelled, some.masked, some.hits), strict=True))
    return pixels | some.measures()


class Tables:
    """Writes the measures wherever they are wanted."""

    def __init__(self, places: Places, classes: Sequence[ClassDef], writers: Sequence[RowWriter]) -> None:
        self._places, self._classes, self._writers = places, classes, writers
        self._listed = _listed(classes)

    def add(self, batch: Batch) -> None:
        """Write the measures of some tiles: of each a row for each class."""
        if not self._writers:
            return
        size = len(self._listed)
        found: dict[str, Any] = {name: np.repeat(batch.tiles[:, axis], size) for axis, name in enumerate("xyz")}
        found["class"] = [self._classes[index].title for index in self._listed] * len(batch.tiles)
        found |= {name: each.ravel() for name, each in _columns(batch.counts, self._listed).items()}
        found |= {"tile_fg": np.repeat(batch.fg, size), "tile_qod": np.repeat(batch.qod, size)}
        columns = {name: each if name == "class" else each.tolist() for name, each in found.items()}
        for writer in self._writers:
            writer.write(columns)

    def finish(self, counts: Counts, result: dict[str, Any]) -> None:
        """Write what is known of all tiles."""
        rows = [{"class": title, **values} for title, values in measures_of(counts, self._classes).items()]
        columns = {name: [row[name] for row in rows] for name in CLASS_COLUMNS}
        for part in (CLASSES, CLASSES_PARQUET):
            for place in self._places.of(part):
                with row_writer(place, CLASS_COLUMNS) as writer:
                    writer.write(columns)
        self._places.write(ALL, lambda: json_text(result))


@contextmanager
def tables(outs: Sequence[Location], classes: Sequence[ClassDef]) -> Iterator[Tables]:
    """Open the tables of tiles, which appear when the block ends well.

    Args:
        outs: Folders, for all parts, and files, of the part that the suffix names: see `MEASURES`.
        classes: The classes of labels and masks.
    """
    places = Places(outs, PARTS, BY_SUFFIX)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(row_writer(place, TILE_COLUMNS))
            for part in (TILES, TILES_PARQUET)
            for place in places.of(part)
        ]
        yield Tables(places, classes, writers)
