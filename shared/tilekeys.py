"""Tiles of one zoom as whole numbers, `x << 32 | y`, in sorted arrays: a million of them take eight megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from mercantile import Tile

Keys = npt.NDArray[np.int64]

# Tiles that are looked up at once: what is in between takes memory.
BLOCK = 1 << 16


def key_of(x: int, y: int) -> int:
    """Return the number of a tile."""
    return x << 32 | y


def columns(keys: Keys) -> tuple[Keys, Keys]:
    """Return x and y of tiles."""
    return keys >> 32, keys & 0xFFFFFFFF


def keys_of(tiles: Iterable[tuple[int, int, int]]) -> Keys:
    """Return the numbers of tiles (x, y, z), sorted, each once."""
    return np.unique(np.fromiter((key_of(x, y) for x, y, _ in tiles), np.int64))


def tiles_of(keys: Keys, zoom: int) -> list[Tile]:
    """Return the tiles that numbers stand for, in their order."""
    x, y = columns(keys)
    return [Tile(column, row, zoom) for column, row in zip(x.tolist(), y.tolist(), strict=True)]


def among(keys: Keys, others: Keys) -> npt.NDArray[np.bool_]:
    """Tell of each of some tiles whether it is among others, which are sorted."""
    found = np.zeros(len(keys), bool)
    if len(others):
        for start in range(0, len(keys), BLOCK):
            some = keys[start : start + BLOCK]
            places = np.minimum(np.searchsorted(others, some), len(others) - 1)
            found[start : start + BLOCK] = others[places] == some
    return found


def around(own: Keys, zoom: int) -> Keys:
    """Return the tiles that touch some tiles, in a corner too, and are not among them, sorted.

    The world is round: the first column of tiles is beside the last.

    Args:
        own: The tiles, sorted.
        zoom: Their zoom.
    """
    side = 1 << zoom
    x, y = columns(own)
    found = []
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            if dx or dy:
                on = (y + dy >= 0) & (y + dy < side)
                found.append((x[on] + dx) % side << 32 | y[on] + dy)
    return np.setdiff1d(np.concatenate(found), own)


def cover_lines(keys: Keys, zoom: int) -> Iterator[str]:
    """Yield the lines of a cover."""
    for tile in tiles_of(keys, zoom):
        yield f"{tile.x},{tile.y},{tile.z}\n"
