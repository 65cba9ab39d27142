"""How a Cloud Optimized GeoTIFF is laid out: directories first, then the overviews, from the smallest up.

Blocks are made in any order, and wait in parts, files of their own: sizes are known only when all are made, and
directories, which say where each block is, come first. So memory does not grow with pixels, only by some bytes a
block. Numbers and tags are those of TIFF 6.0, BigTIFF and GeoTIFF 1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from rsp.shared.images import Rgb
from rsp.shared.mercator import AROUND, HALF

# How blocks are compressed, as TIFF numbers it.
COMPRESSIONS = {"deflate": 8, "jpg": 7, "webp": 50001}
# A file that may pass this takes offsets of 64 bits.
SMALL = 0xFFFF0000

_ASCII, _SHORT, _LONG, _RATIONAL, _DOUBLE, _LONG8 = 2, 3, 4, 5, 12, 16
_CODES = {_ASCII: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", _DOUBLE: "d"}

_Values = Sequence[int] | Sequence[float] | npt.NDArray[np.uint64] | npt.NDArray[np.uint32]
# Number, type, values; a rational is two values.
_Tag = tuple[int, int, _Values]

# Of a record: its level, column and row, and the bytes of the block and of its mask.
RECORD = np.dtype([("level", "i1"), ("x", "i4"), ("y", "i4"), ("size", "i4"), ("mask", "i4")])
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Layout:
    """What is the same in all levels of a raster.

    Attributes:
        zoom: Zoom of the tiles.
        x, y: The first tile.
        columns, rows: How many tiles there are.
        side: Side of a tile, and of a block, in pixels.
        bands: How many bands there are.
        dtype: Their type.
        compression: One of `COMPRESSIONS`.
        predictor: 2 where blocks hold differences of neighbours, 1 where they hold values.
        sampling: How many pixels share their colour in a JPEG, across and down.
        palette: Colours of the values, where they are indices.
        owners: Whose the raster is, as TIFFTAG_COPYRIGHT.
    """

    zoom: int
    x: int
    y: int
    columns: int
    rows: int
    side: int
    bands: int
    dtype: str
    compression: str
    predictor: int = 1
    sampling: tuple[int, int] = (2, 2)
    palette: tuple[Rgb, ...] | None = None
    owners: str = ""

    @property
    def levels(self) -> int:
        """How many levels there are: the last one is one block."""
        return max(self.columns - 1, self.rows - 1).bit_length() + 1

    def blocks(self, level: int) -> tuple[int, int]:
        """Return how many rows and columns of blocks a level has."""
        return -(-self.rows >> level), -(-self.columns >> level)

    def size(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in pixels."""
        return -(-self.rows * self.side >> level), -(-self.columns * self.side >> level)


@dataclass
class Part:
    """Blocks that one worker has made: a file of them, each followed by its mask, and what they are."""

    path: Path
    records: Records


@dataclass
class _Directory:
    """One image of a TIFF: its tags, and where its blocks are."""

    tags: list[_Tag]
    offsets: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint32]
    kind: str
    level: int


def write_raster(out: IO[bytes], layout: Layout, parts: Sequence[Part]) -> None:
    """Write a raster of blocks; where some are missing it has a mask.

    Args:
        out: A new file.
        layout: The raster.
        parts: The blocks, each once. Blocks that are in none have no data.
    """
    tiles = sum(int((part.records["level"] == 0).sum()) for part in parts)
    masked = tiles < layout.rows * layout.columns
    kinds = ("image", "mask") if masked else ("image",)
    directories = [
        _Directory(_tags(layout, level, kind), *_places(layout.blocks(level)), kind, level)
        for level in range(layout.levels)
        for kind in kinds
    ]
    for part in parts:
        for entry in directories:
            some = part.records[part.records["level"] == entry.level]
            entry.sizes[some["y"], some["x"]] = some["size" if entry.kind == "image" else "mask"]
    data = sum(int(entry.sizes.sum(dtype="u8")) for entry in directories)
    big = data + sum(entry.sizes.size * 16 + 4096 for entry in directories) > SMALL
    position = _place(directories, big=big)
    for entry in reversed(directories):
        position = _order(entry, parts, position)
    out.write(_head(directories, big=big))
    for entry in reversed(directories):
        for part in parts:
            _copy(out, part, entry)


def _places(shape: tuple[int, int]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Return room for the offset and the size of each block: 0 for one that is missing."""
    return np.zeros(shape, np.uint64), np.zeros(shape, np.uint32)


def _spans(part: Part, entry: _Directory) -> Iterator[tuple[int, int]]:
    """Yield where in a part the bytes of the blocks of a directory begin, and how many they are."""
    sizes, masks = part.records["size"].astype("i8"), part.records["mask"].astype("i8")
    starts = np.cumsum(sizes + masks) - sizes - masks
    if entry.kind == "mask":
        starts, sizes = starts + sizes, masks
    own = part.records["level"] == entry.level
    yield from zip(starts[own].tolist(), sizes[own].tolist(), strict=True)


def _order(entry: _Directory, parts: Sequence[Part], position: int) -> int:
    """Note where the blocks of a directory will be, from a position on; return the position after them."""
    for part in parts:
        some = part.records[part.records["level"] == entry.level]
        sizes = some["size" if entry.kind == "image" else "mask"].astype("u8")
        entry.offsets[some["y"], some["x"]] = position + np.cumsum(sizes) - sizes
        position += int(sizes.sum())
    return position


def _copy(out: IO[bytes], part: Part, entry: _Directory) -> None:
    with part.path.open("rb") as file:
        for start, size in _spans(part, entry):
            file.seek(start)
            out.write(file.read(size))


def _tags(layout: Layout, level: int, kind: str) -> list[_Tag]:
    """Return the tags of an image, all but where its blocks are."""
    height, width = layout.size(level)
    mask = kind == "mask"
    bands = 1 if mask else layout.bands
    dtype = np.dtype(layout.dtype)
    bits = 1 if mask else 8 * dtype.itemsize
    # Mask, palette, YCbCr, RGB, black is zero.
    photometric = 4 if mask else 3 if layout.palette else 6 if _is_ycc(layout) else 2 if bands == 3 else 1
    tags: list[_Tag] = [
        (254, _LONG, [(1 if level else 0) | (4 if mask else 0)]),
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [bits] * bands),
        (259, _SHORT, [8 if mask else COMPRESSIONS[layout.compression]]),
        (262, _SHORT, [photometric]),
        (277, _SHORT, [bands]),
        (284, _SHORT, [1]),
        (322, _LONG, [layout.side]),
        (323, _LONG, [layout.side]),
    ]
    if mask:
        return tags
    if layout.predictor != 1:
        tags.append((317, _SHORT, [layout.predictor]))
    if layout.palette:
        colors = np.zeros((256, 3), int)
        colors[: len(layout.palette)] = layout.palette
        tags.append((320, _SHORT, (colors.T.ravel() * 257).tolist()))
    extra = bands - (3 if photometric in (2, 6) else 1)
    if extra:
        tags.append((338, _SHORT, [0] * extra))
    tags.append((339, _SHORT, [{"u": 1, "i": 2, "f": 3}[dtype.kind]] * bands))
    if _is_ycc(layout):
        tags.append((530, _SHORT, list(layout.sampling if level == 0 else (2, 2))))
        tags.append((532, _RATIONAL, [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1]))
    if level == 0:
        if layout.owners:
            tags.append((33432, _ASCII, [*layout.owners.encode(), 0]))
        pixel = AROUND / (1 << layout.zoom) / layout.side
        west, north = layout.x * pixel * layout.side - HALF, HALF - layout.y * pixel * layout.side
        tags.append((33550, _DOUBLE, [pixel, pixel, 0.0]))
        tags.append((33922, _DOUBLE, [0.0, 0.0, 0.0, west, north, 0.0]))
        # Projected, a pixel is an area, EPSG:3857, metres.
        keys = [(1024, 1), (1025, 1), (3072, 3857), (3076, 9001)]
        rows = [(1, 1, 0, len(keys)), *((key, 0, 1, value) for key, value in keys)]
        tags.append((34735, _SHORT, [number for row in rows for number in row]))
    return tags


def _is_ycc(layout: Layout) -> bool:
    return layout.compression == "jpg" and layout.bands == 3


def _place(directories: Sequence[_Directory], *, big: bool) -> int:
    """Return where the data begin: after the head, whose length does not depend on what it says."""
    return len(_head(directories, big=big))


def _head(directories: Sequence[_Directory], *, big: bool) -> bytes:
    """Return the header of the file and all directories."""
    kind, room, entry_size = (_LONG8, 8, 20) if big else (_LONG, 4, 12)
    out = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8))
    for number, entry in enumerate(directories):
        places: list[_Tag] = [(324, kind, entry.offsets.ravel()), (325, _LONG, entry.sizes.ravel())]
        tags = sorted([*entry.tags, *places], key=lambda found: found[0])
        start = len(out)
        after = start + (8 if big else 2) + len(tags) * entry_size + room
        out += struct.pack("<Q" if big else "<H", len(tags))
        beyond = bytearray()
        for tag, of, values in tags:
            data = _packed(of, values)
            count = len(values) // 2 if of == _RATIONAL else len(values)
            out += struct.pack("<HHQ" if big else "<HHI", tag, of, count)
            if len(data) <= room:
                out += data.ljust(room, b"\0")
            else:
                out += struct.pack("<Q" if big else "<I", after + len(beyond))
                beyond += data + b"\0" * (-len(data) % 8)
        beyond += b"\0" * (-(after + len(beyond)) % 8)
        following = 0 if number == len(directories) - 1 else after + len(beyond)
        out += struct.pack("<Q" if big else "<I", following) + beyond
    return bytes(out)


def _packed(of: int, values: _Values) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype({_LONG: "<u4", _LONG8: "<u8"}[of]).tobytes()
    return struct.pack(f"<{len(values)}{_CODES[of]}", *values)
