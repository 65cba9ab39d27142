"""How tiles are answered: by a model in this process or by an endpoint; many at once, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import ServingError, TileError, UsageError, untraced
from rsp.shared.images import decode, decode_mask, encode, encode_mask
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.ensemble import Answered
from rsp.shared.learning.local import Local, ReadWindow
from rsp.shared.learning.resize import resize_mask, resize_planes
from rsp.shared.learning.windows import Block, TileImages, Windows, in_blocks, tiles_of
from rsp.shared.parallel import parallel_map
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, TileWriter


class Encoded(NamedTuple):
    """What is written of a tile: its mask as PNG, and its probabilities as TIFF where they are asked for."""

    mask: bytes
    probabilities: bytes | None = None


# A tile, and what is written of it or why nothing is.
Answer = tuple[Tile, Encoded | TileError]


class Answerer(Protocol):
    """What `run` needs of a model, wherever it is."""

    card: ModelCard
    raw: bool  # whether it picks the bands of a single channel itself

    @property
    def precision(self) -> str:
        """What it computes in: float32 or bfloat16."""
        ...

    def answers(
        self, tiles: Iterable[Tile | Block], read: ReadWindow, overlap: int, *, probabilities: bool = False
    ) -> Iterator[Answer]:
        """Yield the answer for each tile, and for those of each block, in order."""
        ...


class Model(Local):
    """Models in this process; see `Local`."""

    raw = False

    def answers(
        self, tiles: Iterable[Tile | Block], read: ReadWindow, overlap: int, *, probabilities: bool = False
    ) -> Iterator[Answer]:
        return self.each(tiles, read, overlap, self._encoded, probabilities=probabilities)

    def _encoded(self, tile: Tile, found: Answered) -> Encoded:
        mask = encode_mask(found.mask, self.card.colors)
        return Encoded(mask, None if found.probabilities is None else encode_planes(found.probabilities))

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

    def check_overlap(self, overlap: int, span: int = 1) -> None:
        """Raise where the model does not take borders of this width, rather than failing on every tile."""
        assert span == 1  # the tool has refused others
        if overlap > self.card.overlap:
            raise UsageError(f"--tile_overlap is {overlap}, the served model takes up to {self.card.overlap}")

    def answers(
        self, tiles: Iterable[Tile | Block], read: ReadWindow, overlap: int, *, probabilities: bool = False
    ) -> Iterator[Answer]:
        return parallel_map(
            lambda tile: (tile, self._answer(tile, read, overlap, probabilities)),
            (tile for item in tiles for tile in tiles_of(item)),
            self.workers,
            threads=True,
        )

    def _answer(self, tile: Tile, read: ReadWindow, overlap: int, probabilities: bool) -> Encoded | TileError:
        try:
            return self._asked(tile, read, overlap, probabilities)
        except TileError as error:
            return untraced(error)

    def _asked(self, tile: Tile, read: ReadWindow, overlap: int, probabilities: bool) -> Encoded:
        image = self.client.encode(read(tile))
        mask = self._checked(self.client.predict(image, overlap=overlap), tile, read)
        if not probabilities:
            return Encoded(mask)
        # Asked for by themselves: bytes that are equal do not tell which of two classes the mask has.
        planes = self.client.probabilities(image, overlap=overlap)
        if planes.shape != (len(self.card.classes), *(self.card.tile_size,) * 2):
            raise TileError("the endpoint did not answer with the probabilities of this tile")
        return Encoded(mask, encode_planes(resize_planes(planes, *read.shape(tile))))

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

    def _asked(self, tile: Tile, read: ReadWindow, overlap: int, probabilities: bool) -> Encoded:
        assert not probabilities  # the tool has refused them
        return Encoded(self._checked(self.client.live(self.source, tile, overlap=overlap), tile, read))


def encode_planes(planes: npt.NDArray[np.uint8]) -> bytes:
    """Encode probabilities, shape (classes, height, width), as a TIFF of a band for each class."""
    return encode(np.moveaxis(planes, 0, 2), "tif")


def run(
    answerer: Answerer,
    readers: Mapping[str, TileReader],
    tiles: Sequence[Tile],
    writer: TileWriter,
    overlap: int,
    probabilities: TileWriter | None = None,
    span: int = 1,
) -> tuple[list[Tile], dict[Tile, str]]:
    """Predict tiles and write their masks.

    Args:
        answerer: What answers them.
        readers: The tile set of each channel, by name.
        tiles: The tiles.
        writer: Of the masks. Those that it has are kept.
        overlap: Pixels of the neighbours that a tile is predicted with.
        probabilities: Writer of the probabilities; None where they are not wanted.
        span: Tiles along a side of the blocks that are predicted at once. They follow from all of the tiles, so
            that what is resumed is what it would have been.

    Returns:
        The tiles that the output has now, and those that failed, with the reason.

    Raises:
        TileError: all failed, so the fault is not with a tile.
        ServingError: the source of the front has other pixels than the tile set.
    """
    card = answerer.card
    read = Windows(TileImages(readers, card.channels, card.tile_size, raw=answerer.raw, span=span), overlap)
    done = writer.done if probabilities is None else writer.done & probabilities.done
    items = [item for item in in_blocks(tiles, span) if any(tile not in done for tile in tiles_of(item))]
    todo = [tile for item in items for tile in tiles_of(item) if tile not in done]
    if isinstance(answerer, Live):
        answerer.check_pixels(todo, read, overlap)
    failed: dict[Tile, str] = {}
    answers = answerer.answers(items, read, overlap, probabilities=probabilities is not None)
    if span > 1:  # some tiles of a block may be there already
        answers = (answer for answer in answers if answer[0] not in done)
    for tile, answer in progress(answers, "predict", total=len(todo)):
        if isinstance(answer, TileError):
            failed[tile] = str(answer)
            continue
        if probabilities is not None and tile not in probabilities.done:
            assert answer.probabilities is not None
            probabilities.write(tile, answer.probabilities)
        if tile not in writer.done:
            writer.write(tile, answer.mask)
    if todo and len(failed) == len(todo) and not writer.done:
        tile, reason = min(failed.items())
        raise TileError(f"none of {len(todo)} tiles could be predicted; {zxy(tile)}: {reason}")
    return sorted({*writer.done, *todo} - failed.keys()), failed
