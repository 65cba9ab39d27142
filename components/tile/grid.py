"""Which tiles there are to cut: those of the rasters, of those that are wanted, as arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from rsp.shared.covers import read_tiles
from rsp.shared.errors import CoverError
from rsp.shared.locations import Location
from rsp.shared.tilekeys import Keys
from rsp.shared.tiles import Tile, check_budget

# Tiles that are made objects of at a time.
PART = 1 << 14


def wanted_tiles(cover: Location, zoom: int) -> Keys:
    """Return the tiles of a cover; raise `CoverError` where it has another zoom."""
    wanted = read_tiles(cover)
    if wanted.zoom(cover) != zoom:
        raise CoverError(f"{cover} has the zoom {wanted.zoom(cover)}, and {zoom} is asked for by --zoom")
    return wanted.keys(zoom)


def tile_grid(blocks: list[tuple[Tile, Tile]], wanted: Keys | None, max_tiles: int, zoom: int) -> Keys:
    """Return the tiles of all rasters, of those that are wanted; a raster is a block of tiles.

    They are numbers `y << 32 | x`, in order: row after row, since a row is cut out of the same blocks of a raster.
    """
    if wanted is not None:
        x, y = wanted >> 32, wanted & 0xFFFFFFFF
        inside = np.zeros(len(wanted), bool)
        for first, last in blocks:
            inside |= (first.x <= x) & (x <= last.x) & (first.y <= y) & (y <= last.y)
        return np.sort(y[inside] << 32 | x[inside])
    count = sum((last.x - first.x + 1) * (last.y - first.y + 1) for first, last in blocks)
    west, north = (min(getattr(first, axis) for first, _ in blocks) for axis in "xy")
    east, south = (max(getattr(last, axis) for _, last in blocks) for axis in "xy")
    check_budget(min(count, (east - west + 1) * (south - north + 1)), max_tiles, f"the rasters at zoom {zoom}")
    found: Keys = np.empty(0, np.int64)
    parts: list[Keys] = []
    for first, last in blocks:
        rows, columns = np.arange(first.y, last.y + 1), np.arange(first.x, last.x + 1)
        parts.append((rows[:, np.newaxis] << 32 | columns).ravel())
        if sum(map(len, parts)) > max_tiles:  # they overlap
            found, parts = np.unique(np.concatenate([found, *parts])), []
    return np.unique(np.concatenate([found, *parts]))


def grid_tiles(grid: Keys, zoom: int) -> Iterator[Tile]:
    """Yield the tiles of a grid."""
    for start in range(0, len(grid), PART):
        part = grid[start : start + PART]
        for x, y in zip((part & 0xFFFFFFFF).tolist(), (part >> 32).tolist(), strict=True):
            yield Tile(x, y, zoom)


def tile_keys(numbers: array[int]) -> Keys:
    """Return numbers that were gathered one by one as an array."""
    return np.frombuffer(numbers, np.int64) if numbers else np.empty(0, np.int64)
