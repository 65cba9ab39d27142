"""What `evaluate` does with each tile, in as many processes as there are."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.components.evaluate.boundary import Width, boundary_counts
from rsp.components.evaluate.calibration import Levels, brier, ece, levels_of
from rsp.components.evaluate.scores import overall
from rsp.shared.covers import ROWS, Cover
from rsp.shared.errors import RspError, TileError, untraced
from rsp.shared.images import Mask, decode, decode_mask
from rsp.shared.jobs import Failure, run_job
from rsp.shared.kept import Kept
from rsp.shared.locations import Location
from rsp.shared.metrics import IGNORE, Counts, confusion, iou_per_class, leave_out
from rsp.shared.tilekeys import columns, tiles_of
from rsp.shared.tiles import Tile, neighbours
from rsp.shared.tileset import TileReader, open_reader
from rsp.shared.tileset.squares import in_squares

# Tiles side by side that are worked through row by row, and rows of them that go to a process at a time: those
# around them are decoded once more.
STRIP, BATCH = 16, 128
# Decoded labels and masks that are kept: four rows of a strip, with its neighbours.
KEPT_TILES, KEPT_BYTES = 4 * (STRIP + 2), 128 << 20
# A process takes about as long to start as some hundreds of tiles to evaluate.
TILES_A_PROCESS = 512


@dataclass(frozen=True)
class Job:
    """What is evaluated.

    Attributes:
        labels: Tile set of the labels.
        masks: Tile set of the masks.
        probabilities: Tile set of the probabilities, where there is one.
        area: The tiles. Others are not looked at, even where they are there.
        classes: How many classes there are.
        ignored: The classes whose pixels of the labels are not looked at.
        width: How wide boundaries are.
        background: The first class is the background.
    """

    labels: Location
    masks: Location
    probabilities: Location | None
    area: Cover
    classes: int
    ignored: tuple[int, ...]
    width: Width
    background: bool = True

    def open(self) -> Evaluator:
        """Open the tile sets."""
        return Evaluator(self)


class Found(NamedTuple):
    """What is known of a tile.

    Attributes:
        counts: Its confusion matrix, shape (K, K).
        boundary: See `boundary_counts`, shape (K, 2).
        ignored: How many pixels are not counted.
        distance: How many pixels wide its boundaries are.
        values: Its measures by name, see `overall`; with probabilities `ece` and `brier`, too.
        ious: The IoU of each class.
        levels: See `levels_of`; None without probabilities.
    """

    counts: Counts
    boundary: Counts
    ignored: int
    distance: int
    values: dict[str, float]
    ious: list[float]
    levels: Levels | None = None


class Pair(NamedTuple):
    """Label and mask of a tile, of one shape; the label is `IGNORE` where it is not looked at."""

    label: Mask
    mask: Mask


class Evaluator:
    """Holds the tile sets of a job open and evaluates their tiles."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._open: list[TileReader] = []
        self._labels, self._masks = self._reader(job.labels), self._reader(job.masks)
        self._probabilities = self._reader(job.probabilities) if job.probabilities else None
        # An error is kept as well, since its neighbours ask for a tile too.
        self._kept: Kept[Pair | RspError] = Kept(
            lambda pair: 2 * pair.mask.nbytes if isinstance(pair, Pair) else 0, KEPT_BYTES, KEPT_TILES
        )

    def _reader(self, path: Location) -> TileReader:
        reader = open_reader(path)
        self._open.append(reader)
        return in_squares(reader, self.job.area)

    def close(self) -> None:
        """Close the tile sets."""
        for reader in self._open:
            reader.close()

    def __call__(self, tile: Tile) -> Found:
        """Compare label and mask of a tile, and what lies around it.

        Raises:
            TileError: one of them cannot be read, or they do not fit together.
        """
        label, mask = self._pair(tile)
        distance = self.job.width.pixels(tile, *label.shape)
        counts = confusion(label, mask, self.job.classes)
        boundary = boundary_counts(*self._around(tile, distance), self.job.classes, distance)
        values = overall(counts, boundary, self.job.ignored, background=self.job.background)
        levels = None
        if self._probabilities is not None:
            shares = read_probabilities(self._probabilities, tile, self.job.classes, mask)
            levels = levels_of(label, mask, shares)
            values |= {"ece": ece(levels[-1]), "brier": brier(levels)}
        ious = iou_per_class(counts).tolist()
        return Found(counts, boundary, int(label.size - counts.sum()), distance, values, ious, levels)

    def _pair(self, tile: Tile) -> Pair:
        found = self._kept.get(tile, lambda: self._read(tile))
        if isinstance(found, RspError):
            raise untraced(found)
        return found

    def _read(self, tile: Tile) -> Pair | RspError:
        try:
            label = read_label(self._labels, tile, self.job.classes, self.job.ignored)
            mask = _decoded(self._masks, tile)
            check_mask(mask, label, self.job.classes)
            return Pair(label, mask)
        except RspError as error:
            return untraced(error)

    def _around(self, tile: Tile, distance: int) -> Pair:
        """Return a tile with a margin of its neighbours; what lies outside of the area is unknown."""
        label, mask = self._pair(tile)
        (height, width), inside = label.shape, slice(distance, -distance)
        shape = height + 2 * distance, width + 2 * distance
        labels, masks = np.full(shape, IGNORE, np.uint8), np.zeros(shape, np.uint8)
        labels[inside, inside], masks[inside, inside] = label, mask
        # Of the whole: before, in and behind the tile; and where a neighbour has those pixels.
        places = {-1: slice(0, distance), 0: inside, 1: slice(-distance, None)}
        theirs = {-1: slice(-distance, None), 0: slice(None), 1: slice(0, distance)}
        for (dx, dy), neighbour in neighbours(tile).items():
            if neighbour not in self.job.area:
                continue
            try:
                pair = self._pair(neighbour)
            except RspError:
                continue  # it is told of where its own turn comes
            if pair.label.shape == label.shape:
                labels[places[dy], places[dx]] = pair.label[theirs[dy], theirs[dx]]
                masks[places[dy], places[dx]] = pair.mask[theirs[dy], theirs[dx]]
        return Pair(labels, masks)


def read_label(reader: TileReader, tile: Tile, classes: int, ignored: Sequence[int]) -> Mask:
    """Return a label, `IGNORE` where it is not looked at.

    Raises:
        TileError: it cannot be read, or holds a class that there is not.
    """
    label = _decoded(reader, tile)
    unknown = label == IGNORE
    highest = int(label.max(initial=0, where=~unknown))
    if highest >= classes:
        raise TileError(
            f"{reader.path}: the label holds class {highest}; there are {classes} classes (0 to {classes - 1})"
        )
    return leave_out(label, ignored)


def check_mask(mask: Mask, label: Mask, classes: int) -> None:
    """Raise `TileError` where a mask does not fit its label, or holds a class that there is not."""
    if mask.shape != label.shape:
        ours, theirs = (f"{each.shape[1]}x{each.shape[0]}" for each in (label, mask))
        raise TileError(
            f"the label has {ours} pixels, the mask {theirs}: make the labels as large as the masks, as by "
            f"`rsp rasterize --ts {mask.shape[0]}`"
        )
    if int(mask.max(initial=0)) >= classes:
        raise TileError(
            f"the mask holds class {int(mask.max())}; there are {classes} classes (0 to {classes - 1})"
        )


def read_probabilities(reader: TileReader, tile: Tile, classes: int, mask: Mask) -> npt.NDArray[np.uint8]:
    """Return the probabilities of a tile as bytes, shape (classes, height, width); raise `TileError` if unfit."""
    try:
        image = decode(reader.read(tile))
    except RspError as error:
        raise TileError(f"{reader.path}: {error}") from None
    if image.shape != (*mask.shape, classes) or image.dtype != np.uint8:
        height, width, bands = image.shape
        raise TileError(
            f"{reader.path}: expected probabilities of {mask.shape[1]}x{mask.shape[0]} pixels with {classes} "
            f"bands of uint8, one for each class, got {width}x{height} with {bands} of {image.dtype}"
        )
    return np.moveaxis(image, 2, 0)


def _decoded(reader: TileReader, tile: Tile) -> Mask:
    try:
        return decode_mask(reader.read(tile))
    except RspError as error:
        raise TileError(f"{reader.path}: {error}") from None


def in_order(area: Cover) -> Iterator[Tile]:
    """Yield tiles so that neighbours come close to each other: strips of columns, each row by row."""
    for zoom in area.zooms:
        keys = area.keys(zoom)
        x, y = columns(keys)
        keys = keys[np.lexsort((x, y, x // STRIP))]
        for start in range(0, len(keys), ROWS):
            yield from tiles_of(keys[start : start + ROWS], zoom)


def evaluate_tiles(job: Job, workers: int | None) -> Generator[tuple[Tile, Found | Failure], None, None]:
    """Yield what is known of each tile, in the order of `in_order`, whatever the number of processes."""
    return run_job(job, in_order(job.area), len(job.area), workers, worth=TILES_A_PROCESS, batch=BATCH)
