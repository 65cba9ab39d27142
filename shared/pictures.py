"""Pictures of tiles: side by side, or one upon the other."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from rsp.shared.errors import TileError
from rsp.shared.images import Array
from rsp.shared.indexed import Indexed

# The grey of the line between two pictures.
LINE = 128
# The strip above a picture, and the text in it.
STRIP, TEXT = (36, 40, 48), (236, 238, 242)


def to_rgb(image: Array) -> Array:
    """Return an image of any bands and type as it can be looked at: shape (height, width, 3), uint8.

    One band is grey; of more than three the first three are taken. What is not 8-bit is stretched between the
    2nd and the 98th percentile of the tile.
    """
    image = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if image.dtype == np.uint8:
        return image
    values = np.nan_to_num(image.astype(np.float64))
    low, high = np.percentile(values, (2, 98))
    if high <= low:
        return np.zeros(image.shape, np.uint8)
    stretched = np.clip((values - low) / (high - low), 0, 1) * 255
    return np.asarray(np.rint(stretched), np.uint8)


def line_width(image: Array) -> int:
    """Return how many pixels the line between a picture and the next one takes in `side`."""
    return max(2, int(min(image.shape[:2])) // 128)


def side(images: Sequence[Array], *, vertical: bool = False, captions: Sequence[str] = ()) -> Array:
    """Return pictures of one size side by side, or below each other, with a grey line between them.

    Args:
        images: The pictures, of three bands.
        vertical: Below each other.
        captions: What stands in a strip above each of them; none without.
    """
    _check(images)
    width = line_width(images[0])
    if captions:
        strips = map(_strip, captions, images)
        images = [np.concatenate(pair) for pair in zip(strips, images, strict=True)]
    axis = 0 if vertical else 1
    shape = list(images[0].shape)
    shape[axis] = width
    # Without it a white label would run into a white mask.
    line = np.full(shape, LINE, np.uint8)
    parts = [images[0]]
    for image in images[1:]:
        parts += [line, image]
    return np.concatenate(parts, axis=axis)


def strip_height(image: Array) -> int:
    """Return how many pixels high the strip with the caption of a picture is."""
    return max(15, int(min(image.shape[:2])) // 22)


def _strip(text: str, image: Array) -> Array:
    return _caption(text, int(image.shape[1]), strip_height(image))


@lru_cache(maxsize=64)
def _caption(text: str, width: int, height: int) -> Array:
    """Return a strip with a text, cut where there is no room for all of it."""
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(round(height * 0.72))
    shown = text
    while shown and font.getlength(shown) > width - height // 2:
        text, shown = text[:-1], f"{text[:-1]}..." if text[:-1] else ""
    strip = Image.new("RGB", (width, height), STRIP)
    ImageDraw.Draw(strip).text((height // 4, height / 2), shown, TEXT, font, "lm")
    return np.asarray(strip)


def stack(images: Sequence[Array | Indexed]) -> Array:
    """Return the arithmetic mean of pictures of one size, rounded half up.

    Those with a palette need not be turned into colours: the sum of their colours is looked up. Where there is no
    other, the mean has a fourth band of no meaning, as `padded` has.
    """
    pictures = [image for image in images if not isinstance(image, Indexed)]
    paletted = [image for image in images if isinstance(image, Indexed)]
    _check([*pictures, *(image.indices for image in paletted)])
    count = len(images)
    # 256 pictures of 255 are the last whose sum fits into 16 bits.
    kind = np.uint16 if count <= 256 else np.uint32
    bands = pictures[0].shape[2] if pictures else 4
    total: Array = _sum(paletted, bands, kind) if paletted else pictures.pop().astype(kind)
    for image in pictures:
        np.add(total, image, out=total)
    np.add(total, count // 2, out=total)
    np.floor_divide(total, count, out=total)
    return total.astype(np.uint8)


def _sum(images: Sequence[Indexed], bands: int, kind: type[np.unsignedinteger[Any]]) -> Array:
    """Return the sum of the colours of images with a palette, shape (height, width, bands)."""
    palettes = [np.zeros((len(image.colors), bands), kind) for image in images]
    for palette, image in zip(palettes, images, strict=True):
        palette[:, :3] = image.colors
    combined, colors, total = images[0].indices, palettes[0], None
    for palette, image in zip(palettes[1:], images[1:], strict=True):
        if len(colors) * len(palette) > 256:  # more than an index can tell apart
            found = _look_up(colors, combined)
            total = found if total is None else total + found
            combined, colors = image.indices, palette
        else:
            combined = combined * np.uint8(len(palette)) + image.indices
            colors = (colors[:, np.newaxis] + palette).reshape(-1, bands)
    found = _look_up(colors, combined)
    return found if total is None else total + found


def _look_up(colors: Array, indices: Array) -> Array:
    if colors.itemsize * colors.shape[1] == 8:  # as one number: three times as quick
        return np.take(colors.view(np.uint64)[:, 0], indices).view(colors.dtype).reshape(*indices.shape, -1)
    return np.take(colors, indices, axis=0)


def _check(images: Sequence[Array]) -> None:
    sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in images]
    if len(set(sizes)) > 1:
        raise TileError(f"the images differ in size: {', '.join(sizes)} pixels")


def shrink(image: Array, most: int) -> Array:
    """Return a picture whose sides are at most `most` pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((most, most), Image.Resampling.BOX)
    return np.asarray(picture)


def framed(image: Array, shown: int) -> Array:
    """Return a picture with a thin grey frame, so that white labels do not run into the page.

    Args:
        image: The picture, of three bands.
        shown: How many pixels of the page its width is going to have.
    """
    found = image.copy()
    width = max(1, image.shape[1] // shown)
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        found[edge] = LINE
    return found


def webp(image: Array) -> bytes:
    """Return a picture as a small WebP, to look at."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=75, method=4)
    return buffer.getvalue()


def data_uri(image: Array) -> str:
    """Return a picture as an address that holds it, for a page of one file."""
    return f"data:image/webp;base64,{b64encode(webp(image)).decode()}"
