"""Models in this process that answer tile by tile, with as many threads as help them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from queue import SimpleQueue
from typing import Protocol, TypeVar

import numpy as np

from rsp.shared.errors import TileError, UsageError, untraced
from rsp.shared.images import Array
from rsp.shared.learning.devices import devices_of
from rsp.shared.learning.ensemble import Answered, Ensemble, Turns, join_cards, make_thresholds
from rsp.shared.learning.inference import GPU_BATCH, Precision, load_predictor
from rsp.shared.learning.resize import resize_mask, resize_planes
from rsp.shared.learning.windows import Block
from rsp.shared.locations import Location, listed
from rsp.shared.parallel import parallel_map
from rsp.shared.tiles import Tile

Done = TypeVar("Done")


class ReadWindow(Protocol):
    """What gives the windows of tiles, as `rsp.shared.learning.windows.Windows` does."""

    def __call__(self, tile: Tile, span: int = 1) -> Array:
        """Return the pixels of a tile, or of a block, with their border, at the side of the model.

        Raises:
            TileError: a tile of it cannot be had.
        """
        ...

    def shape(self, tile: Tile) -> tuple[int, int]:
        """Return (height, width) of a tile as it lies, which its mask is to have, too."""
        ...


Use = Callable[[Tile, Answered], Done]


class Local:
    """Checkpoints or exported models in this process: one, or several that answer together.

    Args:
        path: The model, or the models; see `join_cards`.
        device: Where to run it; see `devices_of`.
        batch_size: Windows that a GPU takes at once; None for the default.
        workers: Threads. On a CPU each takes a tile from reading to the end; for GPUs they read, and use what is
            answered.
        precision: What it computes with; see `Predictor`.
        trust_model: Load an exported program even where it could run any code.
        tta: In which ways each model sees a window; see `Ensemble`.
        threshold: See `make_thresholds`.
    """

    def __init__(
        self,
        path: Location | Sequence[Location],
        *,
        device: str | None,
        batch_size: int | None,
        workers: int,
        precision: Precision = "float32",
        trust_model: bool = False,
        tta: Turns = "none",
        threshold: float | Mapping[str, float] | None = None,
    ) -> None:
        paths = listed(path)
        self.precision, self.workers = str(precision), workers
        self.ensembles: list[Ensemble] = []
        for where in devices_of(device):
            predictors = [
                load_predictor(
                    each,
                    device=where,
                    batch_size=batch_size or GPU_BATCH,
                    precision=precision,
                    trust_model=trust_model,
                )
                for each in paths
            ]
            if not self.ensembles:
                self.card = join_cards(list(zip(paths, [each.card for each in predictors], strict=True)))
                self.thresholds = make_thresholds(self.card, threshold)
            self.ensembles.append(Ensemble(predictors, tta, self.thresholds))

    def check_overlap(self, overlap: int, span: int = 1) -> None:
        """Raise where windows with this overlap do not fit the model, rather than failing on every tile.

        Args:
            overlap: Width of their borders.
            span: Tiles along a side of a window.
        """
        side = span * self.card.tile_size + 2 * overlap
        small = self.ensembles[0].too_small(side, side)
        if small is None:
            return
        model = "this model" if len(self.ensembles[0].predictors) == 1 else f"the model {small.card.uuid}"
        if span > 1:
            raise UsageError(
                f"--window is {span}, {model} was exported for windows of one tile; use the checkpoint"
            )
        if overlap > small.card.overlap:
            raise UsageError(
                f"--tile_overlap is {overlap}, {model} was exported for up to {small.card.overlap}; use the "
                "checkpoint"
            )

    def each(
        self,
        tiles: Iterable[Tile | Block],
        read: ReadWindow,
        overlap: int,
        use: Use[Done],
        *,
        probabilities: bool = False,
    ) -> Iterator[tuple[Tile, Done | TileError]]:
        """Answer tiles, use each answer in the thread that has it, and yield what comes of it, in order.

        Args:
            tiles: The tiles, and blocks of them. Where one of a block cannot be read, the others are answered one
                by one.
            read: Returns the window of a tile or block, with its border; may raise `TileError`.
            overlap: Width of these borders.
            use: Makes of the answer for a tile what is wanted; may raise `TileError`.
            probabilities: Answer with the probabilities, too.
        """
        if len(self.ensembles) == 1 and self.ensembles[0].device.type == "cpu":
            (ensemble,) = self.ensembles

            def work(item: Tile | Block) -> list[tuple[Tile, Done | TileError]]:
                done: list[tuple[Tile, Done | TileError]] = []
                for block, window in _windows(item, read):
                    answered: Answered | TileError
                    if isinstance(window, TileError):
                        answered = window
                    else:
                        (answered,) = ensemble.answers([window], overlap, probabilities=probabilities)
                    done += _used(block, answered, read, use)
                return done

            return chain.from_iterable(parallel_map(work, tiles, self.workers, threads=True))
        return self._batched(tiles, read, overlap, use, probabilities)

    def _batched(
        self, tiles: Iterable[Tile | Block], read: ReadWindow, overlap: int, use: Use[Done], probabilities: bool
    ) -> Iterator[tuple[Tile, Done | TileError]]:
        """Keep GPUs busy: threads read ahead and use what is answered while they work on batches."""
        windows = parallel_map(lambda item: _windows(item, read), tiles, self.workers, threads=True)
        answers = self._of_batches(chain.from_iterable(windows), overlap, probabilities)
        used = parallel_map(lambda found: _used(*found, read, use), answers, self.workers, threads=True)
        return chain.from_iterable(used)

    def _of_batches(
        self, windows: Iterable[tuple[Block, Array | TileError]], overlap: int, probabilities: bool
    ) -> Iterator[tuple[Block, Answered | TileError]]:
        """Yield answers, of a batch at a time. Whichever device is free takes the next."""
        free: SimpleQueue[Ensemble] = SimpleQueue()
        for ensemble in self.ensembles:
            free.put(ensemble)

        def answer(
            batch: list[tuple[Block, Array | TileError]],
        ) -> list[tuple[Block, Answered | TileError]]:
            whole = [window for _, window in batch if not isinstance(window, TileError)]
            ensemble = free.get()
            try:
                answers = iter(ensemble.answers(whole, overlap, probabilities=probabilities))
            finally:
                free.put(ensemble)
            return [(block, window if isinstance(window, TileError) else next(answers)) for block, window in batch]

        windows = iter(windows)
        batches = iter(lambda: list(islice(windows, self.ensembles[0].batch_size)), [])
        for answers in parallel_map(answer, batches, len(self.ensembles), threads=True):
            yield from answers


def _windows(item: Tile | Block, read: ReadWindow) -> list[tuple[Block, Array | TileError]]:
    """Return the window of a tile or block, or why there is none; of a block that has none those of its tiles."""
    block = item if isinstance(item, Block) else Block(item)
    try:
        return [(block, read(block.tile, block.span))]
    except TileError as error:
        if block.span == 1:
            return [(block, untraced(error))]
    return [found for tile in block.tiles() for found in _windows(tile, read)]


def _used(
    block: Block, answered: Answered | TileError, read: ReadWindow, use: Use[Done]
) -> list[tuple[Tile, Done | TileError]]:
    """Bring what was answered to the tiles of a block as they lie, and use it."""
    if isinstance(answered, TileError):
        return [(tile, answered) for tile in block.tiles()]
    height, width = (side // block.span for side in answered.mask.shape)
    done: list[tuple[Tile, Done | TileError]] = []
    for column, row, tile in block.places():
        part = np.s_[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
        try:
            shape = read.shape(tile)
            mask, scores = resize_mask(answered.mask[part], *shape), answered.probabilities
            if scores is not None:
                scores = resize_planes(scores[part], *shape)
            done.append((tile, use(tile, Answered(mask, scores))))
        except TileError as error:
            done.append((tile, untraced(error)))
    return done
