"""The quick reader of PNGs with a palette: it reads what Pillow reads, or leaves it to Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rsp.shared.errors import TileError
from rsp.shared.images import decode, decode_mask
from rsp.shared.indexed import read_indexed

PIXELS = 1 << 20


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def filtered(rows: np.ndarray, kinds: np.ndarray) -> bytes:
    """Apply filters of PNG to rows of bytes, from their definition."""
    out = b""
    above = np.zeros(rows.shape[1], int)
    for row, kind in zip(rows.astype(int), kinds.tolist(), strict=True):
        left, corner = np.append(0, row[:-1]), np.append(0, above[:-1])
        estimate = left + above - corner
        away = np.abs(np.stack([left, above, corner]) - estimate)
        paeth = np.choose(away.argmin(axis=0), [left, above, corner])  # argmin takes the first, as PNG wants
        guess = [np.zeros_like(row), left, above, (left + above) // 2, paeth][kind]
        out += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def packed(indices: np.ndarray, bits: int) -> np.ndarray:
    each = np.unpackbits(indices.reshape(*indices.shape, 1), axis=2)[:, :, 8 - bits :]
    return np.packbits(each.reshape(len(indices), -1), axis=1)


def png(
    indices: np.ndarray, bits: int, kinds: np.ndarray, *, before: bytes = b"", method: bytes = bytes(3)
) -> bytes:
    height, width = indices.shape
    palette = np.random.default_rng(9).integers(0, 256, 3 << bits, dtype=np.uint8).tobytes()
    data = zlib.compress(filtered(packed(indices, bits), kinds), 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBB", width, height, bits, 3) + method)
        + chunk(b"PLTE", palette)
        + before
        + chunk(b"IDAT", data[:40])
        + chunk(b"IDAT", data[40:])
        + chunk(b"IEND", b"")
    )


def by_pillow(data: bytes, mode: str | None = None) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    return np.asarray(image if mode is None else image.convert(mode))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [(1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (20, 10, 60, 4, 6), (0, 0, 0, 1, 1)])
def test_what_it_reads_is_what_pillow_reads(bits, share):
    rng = np.random.default_rng(bits)
    for width in (1, 7, 8, 61):
        for height in (1, 2, 90):
            indices = rng.integers(0, 1 << bits, (height, width), dtype=np.uint8)
            kinds = rng.choice(5, height, p=np.array(share) / sum(share))
            data = png(indices, bits, kinds)
            found = read_indexed(data, PIXELS)
            assert found is not None and (found.indices == indices).all()
            assert (decode_mask(data) == indices).all() and (by_pillow(data) == indices).all()
            assert (decode(data) == by_pillow(data, "RGB")).all()


def test_what_pillow_writes():
    rng = np.random.default_rng(0)
    for colors in (2, 3, 16, 17, 256):
        indices = np.kron(rng.integers(0, colors, (9, 11)), np.ones((7, 5), int)).astype(np.uint8)
        image, buffer = Image.fromarray(indices), io.BytesIO()
        image.putpalette(rng.integers(0, 256, 3 * colors, dtype=np.uint8).tobytes())
        image.save(buffer, "PNG", compress_level=1)
        found = read_indexed(buffer.getvalue(), PIXELS)
        assert found is not None and (found.indices == indices).all() and len(found.palette) == 3 * colors
        assert read_indexed(buffer.getvalue(), indices.size - 1) is None


def test_what_may_mean_something_else_is_left_to_pillow():
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
    kinds = np.zeros(8, int)
    assert read_indexed(png(indices, 1, kinds), PIXELS) is not None
    seen_through = png(indices, 1, kinds, before=chunk(b"tRNS", b"\0"))
    assert read_indexed(seen_through, PIXELS) is None
    assert (decode(seen_through) == by_pillow(seen_through, "RGB")).all()
    for method in (b"\1\0\0", b"\0\1\0", b"\0\0\1"):  # the last is interlaced
        assert read_indexed(png(indices, 1, kinds, method=method), PIXELS) is None
    buffer = io.BytesIO()
    Image.fromarray(indices).save(buffer, "PNG")  # grey
    assert read_indexed(buffer.getvalue(), PIXELS) is None
    # An index without a colour is a class, and a colour only Pillow knows of.
    few = png(indices + 2, 2, kinds).replace(b"PLTE", b"PLTE", 1)
    palette = chunk(b"PLTE", bytes(range(6)))
    at = few.index(b"PLTE") - 4
    few = few[:at] + palette + few[at + 12 + 12 :]
    assert (decode_mask(few) == indices + 2).all() and (decode(few) == by_pillow(few, "RGB")).all()


def test_damage_is_left_to_pillow():
    """Whichever byte changes: the answer is Pillow's, or Pillow's complaint."""
    rng = np.random.default_rng(1)
    indices = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)
    whole = png(indices, 1, rng.integers(0, 3, 32))
    for at in range(len(whole)):
        assert read_indexed(whole[:at], PIXELS) is None
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        assert read_indexed(bytes(data), PIXELS) is None, at
    good = whole.index(b"IDAT")
    # There is no filter 7.
    wrong = zlib.compress(b"\7" + filtered(packed(indices, 1), np.zeros(32, int))[1:])
    short = zlib.compress(filtered(packed(indices, 1), np.zeros(32, int))[:-1])
    for bad in (wrong, short, short[:-8], b"x", b""):
        data = whole[: good - 4] + chunk(b"IDAT", bad) + chunk(b"IEND", b"")
        assert read_indexed(data, PIXELS) is None
    with pytest.raises(TileError):
        decode_mask(whole[: good - 4] + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))
