"""Opens and closes masks by squares, as if all tiles were one image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from rsp.shared.contours import Flags
from rsp.shared.errors import RspError, TileError
from rsp.shared.images import Mask
from rsp.shared.tiles import Tile, zxy

# Three rows of three tiles, and three that come next.
KEPT = 12


def margin(denoise: int, grow: int) -> int:
    """Return how many pixels around a tile count for it."""
    return max(denoise - 1, 0) + max(grow - 1, 0)


def opened(pixels: Flags, width: int) -> Flags:
    """Return which pixels lie in a square of True ones with sides of `width`, all but `width` - 1 at each edge."""
    if width <= 1:
        return pixels
    for axis in (0, 1):
        pixels = _reduced(np.logical_and, pixels, width, axis)
    for axis in (0, 1):
        pixels = _reduced(np.logical_or, pixels, width, axis)
    return pixels


def cleaned(pixels: Flags, denoise: int, grow: int) -> Flags:
    """Remove what is narrower than `denoise` pixels, then fill what is narrower than `grow`.

    Args:
        pixels: A tile with its `margin` on each side.
        denoise: The side of the squares that what stays is made of.
        grow: The side of the squares that gaps and holes which stay are made of.
    """
    return ~opened(~opened(pixels, denoise), grow)


def _reduced(function: np.ufunc, pixels: Flags, width: int, axis: int) -> Flags:
    """Reduce each run of `width` pixels along an axis, in as many steps as `width` has binary digits."""
    done = 1
    while done < width:
        step = min(done, width - done)
        turned = pixels.swapaxes(0, axis)
        pixels = function(turned[:-step], turned[step:]).swapaxes(0, axis)
        done += step
    return pixels


class Around:
    """Masks with the pixels around them, as their neighbours have them.

    Args:
        read: Decodes a mask.
        has: Whether there is a tile. What is not there, or cannot be read, is background.
    """

    def __init__(self, read: Callable[[Tile], Mask], has: Callable[[tuple[int, int, int]], bool]) -> None:
        self._read, self._has = read, has
        self._kept: OrderedDict[Tile, Mask | None] = OrderedDict()

    def window(self, tile: Tile, mask: Mask, margin: int) -> Mask:
        """Return a mask with a margin, of at most its own size, on each side.

        Raises:
            TileError: a neighbour has another size.
        """
        self._keep(tile, mask)
        height, width = mask.shape
        window = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
        window[margin : margin + height, margin : margin + width] = mask
        # Where each of three neighbours in a row lies in the window, and which of its own pixels these are.
        places = [
            [(slice(margin), slice(size - margin, size)), (slice(margin, margin + size), slice(size)),
             (slice(margin + size, None), slice(margin))]
            for size in (height, width)
        ]  # fmt: skip
        for down, (rows, theirs) in enumerate(places[0], -1):
            for right, (columns, others) in enumerate(places[1], -1):
                near = (tile.x + right, tile.y + down, tile.z)
                if (down or right) and self._has(near):
                    other = self._mask(Tile(*near))
                    if other is None:
                        continue
                    if other.shape != mask.shape:
                        raise TileError(
                            f"it has another size than {zxy(Tile(*near))}; --denoise, --grow and --lines need one"
                        )
                    window[rows, columns] = other[theirs, others]
        return window

    def _mask(self, tile: Tile) -> Mask | None:
        if tile in self._kept:
            return self._kept[tile]
        mask: Mask | None
        try:
            mask = self._read(tile)
        except RspError:
            mask = None  # it is reported where it is a tile by itself
        self._keep(tile, mask)
        return mask

    def _keep(self, tile: Tile, mask: Mask | None) -> None:
        self._kept[tile] = mask
        self._kept.move_to_end(tile)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
