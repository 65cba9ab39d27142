"""PNG of few colours: what labels and masks are, encoded in a third of the time that a general encoder takes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3  # the colour type: an index into a palette
_UP = 2  # the filter of a row: what differs from the row above

# Runs of zeros are what rows that differ little from the one above are made of: looking for nothing but runs takes
# less time than level 1 does, and finds more.
_LEVEL, _MEMORY = 1, 9


def depth_of(colors: int) -> int:
    """Return how many bits an index into a palette of so many colours takes: 1, 2, 4 or 8."""
    return next(bits for bits in (1, 2, 4, 8) if colors <= 1 << bits)


def pack(mask: Bytes, depth: int) -> Bytes:
    """Return the rows of a picture of indices with so many bits a pixel, the first pixel in the highest.

    Args:
        mask: Shape (height, width), each value below 2 to the power of `depth`.
        depth: 1, 2, 4 or 8.

    Returns:
        Shape (height, bytes of a row).
    """
    if depth == 8:
        return mask
    if depth == 1:
        return np.packbits(mask, axis=1)
    each = 8 // depth
    missing = -mask.shape[1] % each
    if missing:
        mask = np.pad(mask, ((0, 0), (0, missing)))
    packed: Bytes = np.left_shift(mask[:, ::each], 8 - depth, dtype=np.uint8)
    for place in range(1, each):
        packed |= np.left_shift(mask[:, place::each], 8 - depth * (place + 1), dtype=np.uint8)
    return packed


def encode_rows(rows: Bytes, width: int, depth: int, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode a picture of indices into a palette, whose rows are packed as `pack` does it."""
    height = len(rows)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[:1, 1:] = rows[:1]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, _MEMORY, zlib.Z_RLE)
    data = packer.compress(filtered.data) + packer.flush()
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, _PALETTE, 0, 0, 0)),
            _chunk(b"PLTE", bytes(value for color in colors for value in color)),
            _chunk(b"IDAT", data),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
