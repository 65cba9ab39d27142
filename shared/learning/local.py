"""A model in this process that answers tile by tile, with as many threads as help it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import TileError, UsageError
from rsp.shared.images import Array, Mask
from rsp.shared.learning.encoded import probability_bytes
from rsp.shared.learning.inference import GPU_BATCH, Precision, load_predictor
from rsp.shared.learning.resize import resize_mask
from rsp.shared.locations import Location
from rsp.shared.parallel import parallel_map
from rsp.shared.tiles import Tile

Done = TypeVar("Done")


class ReadWindow(Protocol):
    """What gives the windows of tiles, as `rsp.shared.learning.windows.Windows` does."""

    def __call__(self, tile: Tile) -> Array:
        """Return the pixels of a tile with its border, at the side of the model; raise `TileError`."""
        ...

    def shape(self, tile: Tile) -> tuple[int, int]:
        """Return (height, width) of a tile as it lies, which its mask is to have, too."""
        ...


class Answered(NamedTuple):
    """What a model says of a tile, at the size of the tile.

    Attributes:
        mask: The class of each pixel, shape (height, width).
        probabilities: The probability of each class as `probability_bytes`, shape (classes, height, width); None
            where they were not asked for.
    """

    mask: Mask
    probabilities: npt.NDArray[np.uint8] | None = None


Use = Callable[[Tile, Answered], Done]


class Local:
    """A checkpoint or an exported model in this process.

    Args:
        path: The model.
        device: Where to run it; see `load_predictor`.
        batch_size: Windows that a GPU takes at once; None for the default.
        workers: Threads. On a CPU each takes a tile from reading to the end; for a GPU they read, and use what it
            answers.
        precision: What it computes with; see `Predictor`.
        trust_model: Load an exported program even where it could run any code.
    """

    def __init__(
        self,
        path: Location,
        *,
        device: str | None,
        batch_size: int | None,
        workers: int,
        precision: Precision = "float32",
        trust_model: bool = False,
    ) -> None:
        self.predictor = load_predictor(
            path,
            device=device,
            batch_size=batch_size or GPU_BATCH,
            precision=precision,
            trust_model=trust_model,
        )
        self.card, self.precision = self.predictor.card, str(precision)
        self.workers = workers

    def check_overlap(self, overlap: int) -> None:
        """Raise where windows with this overlap do not fit the model, rather than failing on every tile."""
        side = self.card.tile_size + 2 * overlap
        if overlap > self.card.overlap and not self.predictor.fits(side, side):
            raise UsageError(
                f"--tile_overlap is {overlap}, this model was exported for up to {self.card.overlap}; use the "
                "checkpoint"
            )

    def each(
        self,
        tiles: Iterable[Tile],
        read: ReadWindow,
        overlap: int,
        use: Use[Done],
        *,
        probabilities: bool = False,
    ) -> Iterator[tuple[Tile, Done | TileError]]:
        """Answer tiles, use each answer in the thread that has it, and yield what comes of it, in order.

        Args:
            tiles: The tiles.
            read: Returns the window of a tile, with its borders; may raise `TileError`.
            overlap: Width of these borders.
            use: Makes of an answer what is wanted; may raise `TileError`.
            probabilities: Answer with the probabilities, too.
        """
        if self.predictor.device.type == "cpu":

            def work(tile: Tile) -> tuple[Tile, Done | TileError]:
                window = self._window(tile, read)
                if isinstance(window, TileError):
                    return tile, window
                return _used(tile, self._answers([window], overlap, probabilities)[0], read, use)

            return parallel_map(work, tiles, self.workers, threads=True)
        return self._batched(tiles, read, overlap, use, probabilities)

    def _answers(self, windows: list[Array], overlap: int, probabilities: bool) -> list[Answered]:
        if not probabilities:
            return [Answered(mask) for mask in self.predictor.masks(windows, overlap)]
        found = self.predictor.masks_and_probabilities(windows, overlap)
        return [Answered(mask, probability_bytes(scores)) for mask, scores in found]

    def _window(self, tile: Tile, read: ReadWindow) -> Array | TileError:
        try:
            window = read(tile)
        except TileError as error:
            return error
        height, width = window.shape[:2]
        if not self.predictor.fits(height, width):
            return TileError(
                f"with its borders it has {width}x{height} pixels, the exported model takes "
                f"{self.predictor.window}x{self.predictor.window} at most (tiles of {self.card.tile_size}); the "
                "checkpoint takes tiles of any size"
            )
        return window

    def _batched(
        self, tiles: Iterable[Tile], read: ReadWindow, overlap: int, use: Use[Done], probabilities: bool
    ) -> Iterator[tuple[Tile, Done | TileError]]:
        """Keep a GPU busy: threads read ahead and use what it answers behind it while it works on batches."""
        windows = parallel_map(lambda tile: (tile, self._window(tile, read)), tiles, self.workers, threads=True)
        answers = self._of_batches(windows, overlap, probabilities)
        return parallel_map(lambda item: _used(*item, read, use), answers, self.workers, threads=True)

    def _of_batches(
        self, windows: Iterable[tuple[Tile, Array | TileError]], overlap: int, probabilities: bool
    ) -> Iterator[tuple[Tile, Answered | TileError]]:
        """Yield answers, of a batch at a time."""
        windows = iter(windows)
        while batch := list(islice(windows, self.predictor.batch_size)):
            whole = [window for _, window in batch if not isinstance(window, TileError)]
            answers = iter(self._answers(whole, overlap, probabilities))
            for tile, window in batch:
                yield tile, window if isinstance(window, TileError) else next(answers)


def _used(
    tile: Tile, answered: Answered | TileError, read: ReadWindow, use: Use[Done]
) -> tuple[Tile, Done | TileError]:
    if isinstance(answered, TileError):
        return tile, answered
    try:
        height, width = read.shape(tile)
        mask, scores = resize_mask(answered.mask, height, width), answered.probabilities
        if scores is not None:
            scores = np.stack([resize_mask(plane, height, width) for plane in scores])
        return tile, use(tile, Answered(mask, scores))
    except TileError as error:
        return tile, error
