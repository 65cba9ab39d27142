"""What `compare` does with each tile, in as many processes as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from rsp.components.compare.bounds import Bound, passes
from rsp.components.compare.outline import outlined
from rsp.shared.config import ClassDef
from rsp.shared.errors import RspError
from rsp.shared.images import MAX_PIXELS, Array, Mask, decode, decode_mask, encode, encode_padded, padded
from rsp.shared.indexed import Indexed, read_indexed
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location
from rsp.shared.metrics import Counts, confusion, leave_out, qod_of
from rsp.shared.pictures import side, stack, to_rgb
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader

Mode = Literal["side", "stack", "outline", "list"]
Decoded = TypeVar("Decoded")

# A process takes about as long to start as some tens of tiles to compare.
TILES_A_PROCESS = 32


@dataclass(frozen=True)
class Job:
    """What is to be done with each tile.

    Attributes:
        images: The tile sets whose pictures are composed.
        labels: The labels, where they are to be scored.
        masks: The masks, likewise.
        classes: How many classes there are, where labels and masks are scored.
        ignored: Those whose pixels of the labels do not count.
        minimum: Lowest foreground share and quality of data that get a picture.
        maximum: Highest of both.
        bounds: What else a tile has to pass.
        definitions: The classes, for mode `outline`.
        captions: What stands above each picture, in mode `side`.
    """

    mode: Mode
    images: tuple[Location, ...]
    labels: Location | None
    masks: Location | None
    classes: int
    minimum: tuple[float, float] = (0.0, 0.0)
    maximum: tuple[float, float] = (100.0, 100.0)
    vertical: bool = False
    ignored: tuple[int, ...] = ()
    tile_format: str = "png"
    bounds: tuple[Bound, ...] = ()
    definitions: tuple[ClassDef, ...] = ()
    captions: tuple[str, ...] = ()

    def open(self) -> Comparer:
        """Open the tile sets."""
        return Comparer(self)

    @property
    def paths(self) -> list[Location]:
        """Every tile set that is read, each once."""
        return list(dict.fromkeys(path for path in (*self.images, self.labels, self.masks) if path is not None))


class Compared(NamedTuple):
    """What came out for a tile: its scores and counts, and its picture where one was made."""

    tile: Tile
    fg: float = 0.0
    qod: float = 0.0
    counts: Counts | None = None
    passed: bool = True
    picture: bytes | None = None


class Comparer:
    """Holds the tile sets of a job open and compares their tiles."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.readers = {path: open_reader(path) for path in job.paths}

    def close(self) -> None:
        """Close the tile sets."""
        for reader in self.readers.values():
            reader.close()

    def __call__(self, item: tuple[Tile, bool]) -> Compared:
        """Score a tile and, where that is asked for, compose its picture."""
        job, (tile, compose) = self.job, item
        done = Compared(tile)
        label = mask = None
        if job.labels and job.masks:
            label, mask = leave_out(self._mask(job.labels, tile), job.ignored), self._mask(job.masks, tile)
            counts = confusion(label, mask, job.classes)
            fg, quality = qod_of(counts)
            passed = job.minimum[0] <= fg <= job.maximum[0] and job.minimum[1] <= quality <= job.maximum[1]
            done = Compared(tile, fg, quality, counts, passed and passes(counts, job.bounds))
        if job.mode != "list" and compose and done.passed:
            done = done._replace(picture=self._compose(tile, label, mask))
        return done

    def _compose(self, tile: Tile, label: Mask | None, mask: Mask | None) -> bytes:
        """Return the picture of a tile, encoded."""
        job = self.job
        if job.mode == "stack":
            layers = [self._decoded(path, tile, _layer) for path in job.images]
            return encode_padded(stack(layers), job.tile_format)
        pictures = [self.picture(path, tile) for path in job.images]
        if job.mode == "outline":
            assert label is not None and mask is not None
            return encode(outlined(pictures[0], label, mask, job.definitions), job.tile_format)
        return encode(side(pictures, vertical=job.vertical, captions=job.captions), job.tile_format)

    def picture(self, path: Location, tile: Tile) -> Array:
        """Return a tile of one of the sets as a picture."""
        return self._decoded(path, tile, lambda data: to_rgb(decode(data)))

    def _mask(self, path: Location, tile: Tile) -> Mask:
        return self._decoded(path, tile, decode_mask)

    def _decoded(self, path: Location, tile: Tile, how: Callable[[bytes], Decoded]) -> Decoded:
        try:
            return how(self.readers[path].read(tile))
        except RspError as error:
            raise type(error)(f"{path}: {error}") from None


def _layer(data: bytes) -> Array | Indexed:
    """Return a tile as `stack` takes it: with its palette, or with a fourth band."""
    indexed = read_indexed(data, MAX_PIXELS)
    return indexed if indexed is not None and indexed.colored else padded(data, to_rgb)


Outcomes = Iterable[tuple[tuple[Tile, bool], Compared | Failure]]


def compare_tiles(job: Job, items: Iterable[tuple[Tile, bool]], count: int, workers: int | None) -> Outcomes:
    """Yield what came out for each tile, in their order, whatever the number of processes.

    Args:
        job: What to do.
        items: The tiles, and of each whether it needs a picture.
        count: How many there are.
        workers: How many processes; None for one a processor.
    """
    return run_job(job, items, count, workers, worth=TILES_A_PROCESS)
