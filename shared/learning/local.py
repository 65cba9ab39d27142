"""Models in this process that answer tile by tile, with as many threads as help them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from queue import SimpleQueue
from typing import Protocol, TypeVar

from rsp.shared.errors import TileError, UsageError
from rsp.shared.images import Array
from rsp.shared.learning.devices import devices_of
from rsp.shared.learning.ensemble import Answered, Ensemble, Turns, join_cards, make_thresholds
from rsp.shared.learning.inference import GPU_BATCH, Precision, load_predictor
from rsp.shared.learning.resize import resize_mask, resize_planes
from rsp.shared.locations import Location, listed
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

    def check_overlap(self, overlap: int) -> None:
        """Raise where windows with this overlap do not fit the model, rather than failing on every tile."""
        side = self.card.tile_size + 2 * overlap
        small = self.ensembles[0].too_small(side, side)
        if small is not None and overlap > small.card.overlap:
            model = "this model" if len(self.ensembles[0].predictors) == 1 else f"the model {small.card.uuid}"
            raise UsageError(
                f"--tile_overlap is {overlap}, {model} was exported for up to {small.card.overlap}; use the "
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
        if len(self.ensembles) == 1 and self.ensembles[0].device.type == "cpu":

            def work(tile: Tile) -> tuple[Tile, Done | TileError]:
                window = self._window(tile, read)
                if isinstance(window, TileError):
                    return tile, window
                (answered,) = self.ensembles[0].answers([window], overlap, probabilities=probabilities)
                return _used(tile, answered, read, use)

            return parallel_map(work, tiles, self.workers, threads=True)
        return self._batched(tiles, read, overlap, use, probabilities)

    def _window(self, tile: Tile, read: ReadWindow) -> Array | TileError:
        try:
            return read(tile)
        except TileError as error:
            return error

    def _batched(
        self, tiles: Iterable[Tile], read: ReadWindow, overlap: int, use: Use[Done], probabilities: bool
    ) -> Iterator[tuple[Tile, Done | TileError]]:
        """Keep GPUs busy: threads read ahead and use what is answered while they work on batches."""
        windows = parallel_map(lambda tile: (tile, self._window(tile, read)), tiles, self.workers, threads=True)
        answers = self._of_batches(windows, overlap, probabilities)
        return parallel_map(lambda item: _used(*item, read, use), answers, self.workers, threads=True)

    def _of_batches(
        self, windows: Iterable[tuple[Tile, Array | TileError]], overlap: int, probabilities: bool
    ) -> Iterator[tuple[Tile, Answered | TileError]]:
        """Yield answers, of a batch at a time. Whichever device is free takes the next."""
        free: SimpleQueue[Ensemble] = SimpleQueue()
        for ensemble in self.ensembles:
            free.put(ensemble)

        def answer(batch: list[tuple[Tile, Array | TileError]]) -> list[tuple[Tile, Answered | TileError]]:
            whole = [window for _, window in batch if not isinstance(window, TileError)]
            ensemble = free.get()
            try:
                answers = iter(ensemble.answers(whole, overlap, probabilities=probabilities))
            finally:
                free.put(ensemble)
            return [(tile, window if isinstance(window, TileError) else next(answers)) for tile, window in batch]

        windows = iter(windows)
        batches = iter(lambda: list(islice(windows, self.ensembles[0].batch_size)), [])
        for answers in parallel_map(answer, batches, len(self.ensembles), threads=True):
            yield from answers


def _used(
    tile: Tile, answered: Answered | TileError, read: ReadWindow, use: Use[Done]
) -> tuple[Tile, Done | TileError]:
    if isinstance(answered, TileError):
        return tile, answered
    try:
        height, width = read.shape(tile)
        mask, scores = resize_mask(answered.mask, height, width), answered.probabilities
        if scores is not None:
            scores = resize_planes(scores, height, width)
        return tile, use(tile, Answered(mask, scores))
    except TileError as error:
        return tile, error
