"""The blocks of a raster: tiles as they are where that can be, and their overviews."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin

from rsp.components.tile.geotiff import RECORD, Layout, Part
from rsp.shared.errors import RspError, TileError
from rsp.shared.images import Array, decode, decode_mask, encode, sniff
from rsp.shared.tiles import Tile
from rsp.shared.tileset import TileReader, open_reader

Valid = npt.NDArray[np.bool_]

# Of deflate: imagery does not get smaller by more (measured: 0.1 %, in twice the time), labels and masks do.
LEVEL, PLAIN_LEVEL = 1, 6
_NOTHING: tuple[Array | None, Valid | None] = (None, None)
# Levels that a worker makes by itself: of 8 by 8 tiles.
TOGETHER = 3


def samples(data: bytes, layout: Layout | None, *, palette: bool) -> Array:
    """Decode a tile; raise `TileError` where it is not like the others."""
    image = decode_mask(data)[:, :, np.newaxis] if palette else decode(data)
    if layout is not None and (image.shape, str(image.dtype)) != (
        (layout.side, layout.side, layout.bands),
        layout.dtype,
    ):
        raise TileError(
            f"it has {image.shape[1]}x{image.shape[0]} pixels of {image.shape[2]} bands of {image.dtype}, the "
            f"others {layout.side}x{layout.side} of {layout.bands} of {layout.dtype}"
        )
    return image


def sampling_of(data: bytes) -> tuple[int, int] | None:
    """Return how many pixels share their colour in a JPEG, across and down; None where it cannot be a block."""
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if image.mode == "L" and "adobe" not in image.info:
        return 1, 1
    if image.mode != "RGB" or image.info.get("adobe_transform", 1) != 1 or image.info.get("progressive"):
        return None
    return {0: (1, 1), 1: (2, 1), 2: (2, 2)}.get(JpegImagePlugin.get_sampling(image))


def block_of(image: Array, layout: Layout) -> bytes:
    """Encode a block."""
    if layout.compression != "deflate":
        return encode(image, layout.compression)
    level = PLAIN_LEVEL if layout.palette else LEVEL
    if layout.predictor == 2:
        differences = image.copy()
        differences[:, 1:] -= image[:, :-1]  # it wraps around, as it should
        image = differences
    return zlib.compress(np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes(), level)


def mask_block(valid: Valid) -> bytes:
    """Encode the mask of a block: a bit a pixel."""
    return zlib.compress(np.packbits(valid, axis=1).tobytes(), PLAIN_LEVEL)


def as_it_is(data: bytes, layout: Layout) -> bool:
    """Tell whether an encoded tile can be a block without being encoded once more."""
    if layout.compression == "jpg" and sniff(data) == "jpg":
        return sampling_of(data) == layout.sampling
    if layout.compression == "webp" and sniff(data) == "webp":
        return Image.open(io.BytesIO(data), formats=("WEBP",)).mode == "RGB"
    return False


def halved(image: Array, valid: Valid | None, *, nearest: bool) -> tuple[Array, Valid | None]:
    """Return a block at half of its resolution: of four pixels the mean of those with data, or one of them."""
    if nearest:
        return image[::2, ::2], None if valid is None else valid[::2, ::2]
    height, width, bands = image.shape
    quads = image.reshape(height // 2, 2, width // 2, 2, bands)
    wide: npt.DTypeLike = np.float64 if image.dtype.kind == "f" or image.dtype.itemsize > 2 else np.int32
    if valid is None:
        total, count = quads.sum(axis=(1, 3), dtype=wide), np.asarray(4)
        found = None
    else:
        there = valid.reshape(height // 2, 2, width // 2, 2)
        total = np.where(there[..., np.newaxis], quads, 0).sum(axis=(1, 3), dtype=wide)
        count = there.sum(axis=(1, 3))
        found = count > 0
        count = np.maximum(count, 1)[:, :, np.newaxis]
    if image.dtype.kind == "f":
        mean = total / count
    elif wide == np.float64:
        mean = np.rint(total / count)
    else:
        mean = (total + count // 2) // count
    return mean.astype(image.dtype), None if found is None or found.all() else found


class Pyramid:
    """Makes overviews of blocks as they come, square after square: along the curve of Hilbert.

    Args:
        layout: The raster.
        top: The last level to make.
        emit: Called with level, column, row, pixels and mask of each block that was made.
    """

    def __init__(
        self, layout: Layout, top: int, emit: Callable[[int, int, int, Array, Valid | None], None]
    ) -> None:
        self._layout, self._top, self._emit = layout, top, emit
        self._open: dict[int, tuple[int, int, Array, Valid]] = {}

    def push(self, level: int, x: int, y: int, image: Array, valid: Valid | None) -> None:
        """Take a block; what it completes above is made."""
        if level >= self._top:
            return
        above = level + 1
        place = (x >> 1, y >> 1)
        if above in self._open and self._open[above][:2] != place:
            self._close(above)
        if above not in self._open:
            shape = (self._layout.side, self._layout.side)
            self._open[above] = (
                *place,
                np.zeros((*shape, self._layout.bands), image.dtype),
                np.zeros(shape, bool),
            )
        canvas, there = self._open[above][2:]
        half = self._layout.side // 2
        rows, columns = slice(half * (y & 1), half * (y & 1) + half), slice(half * (x & 1), half * (x & 1) + half)
        small, found = halved(image, valid, nearest=self._layout.palette is not None)
        canvas[rows, columns] = small
        there[rows, columns] = True if found is None else found

    def _close(self, level: int) -> None:
        x, y, image, there = self._open.pop(level)
        valid = None if there.all() else there
        self._emit(level, x, y, image, valid)
        self.push(level, x, y, image, valid)

    def finish(self) -> None:
        """Make what is left."""
        while self._open:
            self._close(min(self._open))


class Blocks:
    """A file of blocks, as they are made."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._file = path.open("wb")
        self._rows: list[tuple[int, int, int, int, int]] = []

    def write(self, level: int, x: int, y: int, data: bytes, valid: Valid | None) -> None:
        """Add an encoded block and its mask."""
        height, width = self._layout.side, self._layout.side
        mask = mask_block(np.ones((height, width), bool) if valid is None else valid)
        self._file.write(data + mask)
        self._rows.append((level, x, y, len(data), len(mask)))

    def emit(self, level: int, x: int, y: int, image: Array, valid: Valid | None) -> None:
        """Encode a block and add it."""
        self.write(level, x, y, block_of(image, self._layout), valid)

    def close(self) -> Part:
        """Return what was written."""
        self._file.close()
        return Part(self._path, np.array(self._rows, RECORD))


@dataclass(frozen=True)
class Square:
    """Tiles that a worker makes blocks of: those of one block of the level where it stops."""

    number: int
    x: int
    y: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Made:
    """What became of a square.

    Attributes:
        part: The file of its blocks.
        image, valid: Its one block at the top; None where no tile could be read.
        failed: Why tiles are missing.
    """

    part: Part
    image: Array | None
    valid: Valid | None
    failed: dict[Tile, str]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know to make blocks.

    Attributes:
        tiles: The tile set.
        layout: The raster.
        folder: Where parts go.
    """

    tiles: str
    layout: Layout
    folder: Path

    def open(self) -> Worker:
        """Open the tile set."""
        return Worker(self)


class Worker:
    """A tile set, open in one process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader: TileReader = open_reader(job.tiles)

    def close(self) -> None:
        """Close the tile set."""
        self._reader.close()

    def __call__(self, square: Square) -> Made:
        """Make the blocks of a square."""
        layout = self._job.layout
        failed: dict[Tile, str] = {}
        top = min(TOGETHER, layout.levels - 1)
        last: dict[str, tuple[Array, Valid | None]] = {}
        blocks = Blocks(self._job.folder / f"{square.number}", layout)

        def emit(level: int, x: int, y: int, image: Array, valid: Valid | None) -> None:
            blocks.emit(level, x, y, image, valid)
            if level == top:
                last["top"] = image, valid

        pyramid = Pyramid(layout, top, emit)
        for tile, data in self._read(square):
            x, y = tile.x - layout.x, tile.y - layout.y
            try:
                if isinstance(data, RspError):
                    raise data
                image = samples(data, layout, palette=layout.palette is not None)
                blocks.write(0, x, y, data if as_it_is(data, layout) else block_of(image, layout), None)
            except RspError as error:
                failed[tile] = str(error)
                continue
            if top == 0:
                last["top"] = image, None
            pyramid.push(0, x, y, image, None)
        pyramid.finish()
        found, valid = last.get("top", _NOTHING)
        return Made(blocks.close(), found, valid, failed)

    def _read(self, square: Square) -> Iterator[tuple[Tile, bytes | RspError]]:
        """Yield the encoded tiles of a square, in order; in place of one that cannot be read, why."""
        try:
            found = self._reader.read_many(square.tiles)
        except TileError:
            found = {}  # one of them: which?
        for tile in square.tiles:
            try:
                yield tile, found[tile] if tile in found else self._reader.read(tile)
            except TileError as error:
                yield tile, error
