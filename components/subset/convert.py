"""Tiles in another format: imagery encoded again, labels with every value and colour as they were."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rsp.shared.errors import TileError
from rsp.shared.images import (
    LOSSY_QUALITY,
    Rgb,
    decode,
    decode_mask,
    encode,
    encode_mask,
    encode_mask_tiff,
    open_picture,
    palette_of,
    sniff,
)
from rsp.shared.png import encode_values

# Formats that hold one band of class indices, and their colours.
OF_LABELS = ("png", "tif")
# Formats that hold how much of a pixel is to be seen.
_WITH_ALPHA = ("png", "webp")


class Conversion:
    """Tells a tile in another format. A tile that has it already stays as it is, to the byte.

    Args:
        tile_format: png, jpg, webp or tif.
        quality: Of JPEG and WebP, 1 to 100: every tile is encoded again. None keeps those that have the format.
        kind: `label` for class indices, `image` for all else; None lets each tile tell: labels have a palette.
        colors: Of the classes, for labels that say nothing of colours.
    """

    def __init__(
        self, tile_format: str, quality: int | None = None, kind: str | None = None, colors: Sequence[Rgb] = ()
    ) -> None:
        self.format, self._quality, self._kind, self._colors = tile_format, quality, kind, list(colors)

    def __call__(self, data: bytes) -> bytes:
        """Return an encoded tile in the format.

        Raises:
            TileError: it cannot be decoded, or the format cannot hold it.
        """
        came = sniff(data)
        if came == self.format and self._quality is None:
            return data
        colors = palette_of(data)
        if self._kind == "label" or (self._kind is None and colors):
            return self._label(data, self._colors or colors)
        if self.format in _WITH_ALPHA and came in _WITH_ALPHA:
            picture = open_picture(data)
            if picture.mode in ("LA", "La", "PA", "RGBA") or "transparency" in picture.info:
                return self._transparent(picture)
        return encode(decode(data), self.format, quality=self._quality)

    def _label(self, data: bytes, colors: Sequence[Rgb]) -> bytes:
        if self.format not in OF_LABELS:
            raise TileError(
                f"a label keeps its values and colours as png or tif, not as {self.format}; if these are pictures "
                "with a palette, say `--type image`"
            )
        mask = decode_mask(data)
        shown = list(colors[: max(len(self._colors), _used(colors), int(mask.max(initial=0)) + 1)])
        shown += [(0, 0, 0)] * (int(mask.max(initial=0)) + 1 - len(shown))
        return encode_mask(mask, shown) if self.format == "png" else encode_mask_tiff(mask, shown)

    def _transparent(self, picture: Image.Image) -> bytes:
        picture = picture.convert("RGBA")
        if self.format == "png":
            return encode_values(np.asarray(picture))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=self._quality or LOSSY_QUALITY)
        return buffer.getvalue()


def _used(colors: Sequence[Rgb]) -> int:
    """Return how many colours there are before those that are but filled up with black, as those of a TIFF are."""
    return max((place + 1 for place, color in enumerate(colors) if tuple(color) != (0, 0, 0)), default=0)
