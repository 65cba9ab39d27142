"""Reads the PNGs that labels and masks are in two thirds of the time that Pillow takes.

An image of class indices has a palette, and a bit or a few for each pixel. Pillow turns it into a byte a pixel by
way of a file and of a loop over the pixels. Here its decoder is given the rows as if each of their bytes were a
grey pixel, and numpy unpacks them. Whatever else a PNG may be, damaged for example, is left to Pillow as a whole.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3  # the colour type


class Indexed(NamedTuple):
    """An image with a palette.

    Attributes:
        indices: Shape (height, width), uint8.
        palette: Three bytes a colour.
    """

    indices: Bytes
    palette: bytes

    @property
    def colors(self) -> Bytes:
        """The palette, shape (colours, 3)."""
        return np.frombuffer(self.palette, np.uint8).reshape(-1, 3)

    @property
    def colored(self) -> bool:
        """Whether every pixel has a colour."""
        return 3 * int(self.indices.max()) < len(self.palette)


def read_indexed(data: bytes, max_pixels: int) -> Indexed | None:
    """Decode a PNG with a palette.

    Args:
        data: The file.
        max_pixels: Images of more pixels than this are not read.

    Returns:
        The image as Pillow would read it; None where it is any other image, has chunks that may change what it
        shows, or is not entirely sound. Pillow knows what to do with it, and what to complain of.
    """
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    header, palette, name, at = b"", b"", b"", len(_SIGNATURE)
    packed: list[bytes] = []
    while name != b"IEND":
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4 or zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(checksum, "big"):
            return None
        if name == b"IHDR" and not header:
            header = body
        elif name == b"PLTE" and not palette and not packed:
            palette = body
        elif name == b"IDAT":
            packed.append(body)
        elif name != b"IEND":
            return None
        at += 12 + length
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] if len(header) == 13 else 0
    plain = header[9:] == bytes([_PALETTE, 0, 0, 0]) and bits in (1, 2, 4, 8)
    if not plain or not palette or len(palette) % 3 or not 0 < width * height <= max_pixels:
        return None
    try:
        # The filters of PNG work on bytes, whether a byte is one grey pixel or eight of a palette.
        rows = Image.frombytes("L", ((width * bits + 7) // 8, height), b"".join(packed), "zip", "L")
    except (ValueError, OSError):
        return None
    return Indexed(_unpack(np.asarray(rows), bits, width), palette)


def _unpack(packed: Bytes, bits: int, width: int) -> Bytes:
    """Return the values of rows of 1, 2, 4 or 8 bits a pixel."""
    if bits == 8:
        return packed
    if bits == 1:
        return np.unpackbits(packed, axis=1, count=width)
    # The first pixel is in the highest bits.
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    values = (packed[:, :, np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(values.reshape(len(packed), -1)[:, :width])
