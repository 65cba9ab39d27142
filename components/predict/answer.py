"""How tiles are answered: by a model in this process or by an endpoint; many at once, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, Self

import numpy as np

from rsp.shared.errors import ServingError, TileError, UsageError
from rsp.shared.images import decode, decode_mask, encode_mask
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.local import Answered, Local, ReadWindow
from rsp.shared.learning.resize import resize_mask
from rsp.shared.learning.windows import TileImages, Windows, in_strips
from rsp.shared.parallel import parallel_map
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, TileWriter

# A tile, and its mask as PNG or why there is none.
Answer = tuple[Tile, bytes | TileError]


class Answerer(Protocol):
    """What `run` needs of a model, wherever it is."""

    card: ModelCard
    raw: bool  # whether it picks the bands of a single channel itself

    @property
    def precision(self) -> str:
        """What it computes in: float32 or bfloat16."""
        ...

    def answers(self, tiles: Iterable[Tile], read: ReadWindow, overlap: int) -> Iterator[Answer]:
        """Yield the answer for each tile, in order."""
        ...


class Model(Local):
    """A checkpoint or an exported model in this process; see `Local`."""

    raw = False

    def answers(self, tiles: Iterable[Tile], read: ReadWindow, overlap: int) -> Iterator[Answer]:
        return self.each(tiles, read, overlap, self._encoded)

    def _encoded(self, tile: Tile, found: Answered) -> bytes:
        return encode_mask(found.mask, self.card.colors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Remote:
    """A model behind TorchServe.

    Args:
        endpoint: URL, as `rsp.serving.client.TileClient` takes it.
        workers: Requests under way at once.
    """

    raw = True

    def __init__(self, endpoint: str, workers: int) -> None:
        from rsp.serving.client import TileClient

        self.client = TileClient(endpoint)
        self.card = self.client.pin()
        self.workers = workers

    @property
    def precision(self) -> str:
        """What the server said that it computes in; one that does not say so has only ever had float32."""
        return self.client.precision or "float32"

    def check_overlap(self, overlap: int) -> None:
        """Raise where the model does not take borders of this width, rather than failing on every tile."""
        if overlap > self.card.overlap:
            raise UsageError(f"--tile_overlap is {overlap}, the served model takes up to {self.card.overlap}")

    def answers(self, tiles: Iterable[Tile], read: ReadWindow, overlap: int) -> Iterator[Answer]:
        return parallel_map(
            lambda tile: (tile, self._answer(tile, read, overlap)), tiles, self.workers, threads=True
        )

    def _answer(self, tile: Tile, read: ReadWindow, overlap: int) -> bytes | TileError:
        try:
            window = read(tile)
            return self._checked(self.client.predict(self.client.encode(window), overlap=overlap), tile, read)
        except TileError as error:
            return error

    def _checked(self, data: bytes, tile: Tile, read: ReadWindow) -> bytes:
        """Return an answer as a mask of the size of the tile; raise `TileError` where it is no mask of it."""
        mask = decode_mask(data)
        if mask.shape != (self.card.tile_size,) * 2 or mask.max() >= len(self.card.classes):
            raise TileError("the endpoint did not answer with a mask of this tile")
        shape = read.shape(tile)
        return data if mask.shape == shape else encode_mask(resize_mask(mask, *shape), self.card.colors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


class Live(Remote):
    """A model behind a live front that has the imagery itself: tiles are named, not sent.

    Args:
        endpoint: URL of the front, as `rsp.serving.client.TileClient` takes it.
        source: Name of its source.
        workers: Requests under way at once.
    """

    # Tiles whose pixels are compared before any mask is asked for.
    SAMPLE = 6

    def __init__(self, endpoint: str, source: str, workers: int) -> None:
        super().__init__(endpoint, workers)
        self.source = source

    def check_pixels(self, tiles: Sequence[Tile], read: ReadWindow, overlap: int) -> None:
        """Raise `ServingError` where some tiles, borders included, are not what the front's source has."""
        step = max(1, -(-len(tiles) // self.SAMPLE))
        for tile in dict.fromkeys([*tiles[::step], *tiles[-1:]]):
            try:
                here = read(tile)
            except TileError:
                continue  # it fails here as there, and is listed
            try:
                there = decode(self.client.live(self.source, tile, "tif", overlap=overlap))
                same = there.dtype == here.dtype and np.array_equal(there, here)
                reason = "has other pixels there"
            except TileError as error:
                same, reason = False, f"does not give them: {error}"
            if not same:
                raise ServingError(
                    f"the source {self.source!r} of {self.client.endpoint} is not this tile set: of {zxy(tile)} "
                    f"and its border it {reason}; leave out --source, so that the pixels are sent"
                )

    def _answer(self, tile: Tile, read: ReadWindow, overlap: int) -> bytes | TileError:
        try:
            return self._checked(self.client.live(self.source, tile, overlap=overlap), tile, read)
        except TileError as error:
            return error


def run(
    answerer: Answerer,
    readers: Mapping[str, TileReader],
    tiles: Sequence[Tile],
    writer: TileWriter,
    overlap: int,
) -> tuple[list[Tile], dict[Tile, str]]:
    """Predict tiles and write their masks.

    Returns:
        The tiles that the output has now, and those that failed, with the reason.

    Raises:
        TileError: all failed, so the fault is not with a tile.
        ServingError: the source of the front has other pixels than the tile set.
    """
    card = answerer.card
    read = Windows(TileImages(readers, card.channels, card.tile_size, raw=answerer.raw), overlap)
    todo = [tile for tile in in_strips(tiles) if tile not in writer.done]
    if isinstance(answerer, Live):
        answerer.check_pixels(todo, read, overlap)
    failed: dict[Tile, str] = {}
    answers = answerer.answers(todo, read, overlap)
    for tile, answer in progress(answers, "predict", total=len(todo)):
        if isinstance(answer, TileError):
            failed[tile] = str(answer)
        else:
            writer.write(tile, answer)
    if todo and len(failed) == len(todo) and not writer.done:
        tile, reason = min(failed.items())
        raise TileError(f"none of {len(todo)} tiles could be predicted; {zxy(tile)}: {reason}")
    return sorted({*writer.done, *todo} - failed.keys()), failed
