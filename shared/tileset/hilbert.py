"""Tile ids of PMTiles, many at once: all tiles of zoom 0, of zoom 1, ..., each zoom along a Hilbert curve."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rsp.shared.tiles import MAX_ZOOM, Tile

Ids = NDArray[np.uint64]

# The first id of each zoom, and of the one after the last.
BASES = np.array([(4**zoom - 1) // 3 for zoom in range(MAX_ZOOM + 2)], np.uint64)
END = int(BASES[-1])

_ONE = np.uint64(1)


def in_grid(tile: tuple[int, int, int]) -> bool:
    """Tell whether the grid has such a tile, a `Tile` or a plain (x, y, z)."""
    x, y, z = tile
    return 0 <= z <= MAX_ZOOM and 0 <= x < 1 << z and 0 <= y < 1 << z


def tile_of(value: object) -> Tile | None:
    """Return the tile that a `Tile`, or a plain (x, y, z), names; None where it is neither, or not in the grid."""
    if not (isinstance(value, tuple) and len(value) == 3 and all(isinstance(part, int) for part in value)):
        return None
    return Tile(*value) if in_grid(value) else None


_FIRST = tuple(BASES.tolist())


def id_of(tile: Tile) -> int:
    """Return the id of a tile of the grid."""
    # The curve is walked down four zooms at a time. Zooms above the first that make it a multiple of four turn it.
    steps, above = _steps(), -tile.z % 4
    turned, along = above & 1, 0
    for shift in range(tile.z + above - 4, -1, -4):
        step = steps[turned << 8 | (tile.x >> shift & 15) << 4 | tile.y >> shift & 15]
        along, turned = along << 8 | step >> 2, step & 3
    return _FIRST[tile.z] + along


@cache
def _steps() -> tuple[int, ...]:
    """Return where four bits of x and y lie along the curve, and how it is turned there, for each way to come in.

    A curve is turned by swapping the axes (1), reversing both (2), or both: what is done twice is undone.
    """
    found = []
    for number in range(1024):
        turned, along = number >> 8, 0
        for bit in (3, 2, 1, 0):
            right, lower = (number >> 4 + bit & 1) ^ turned >> 1, (number >> bit & 1) ^ turned >> 1
            if turned & 1:
                right, lower = lower, right
            along = along << 2 | 3 * right ^ lower
            if not lower:
                turned ^= 3 if right else 1
        found.append(along << 2 | turned)
    return tuple(found)


def ids_of(tiles: Iterable[Tile]) -> Ids:
    """Return the ids of tiles, in their order."""
    columns = np.array([(tile.x, tile.y, tile.z) for tile in tiles], np.int64).reshape(-1, 3).astype(np.uint64)
    x, y, zooms = columns.T
    ids = np.empty(len(columns), np.uint64)
    for zoom in np.unique(zooms):
        where = zooms == zoom
        ids[where] = _along(int(zoom), x[where], y[where])
    return ids


def _along(zoom: int, x: Ids, y: Ids) -> Ids:
    found = np.full(len(x), BASES[zoom], np.uint64)
    for bit in reversed(range(zoom)):
        shift = np.uint64(bit)
        right, lower = (x >> shift) & _ONE, (y >> shift) & _ONE
        found += ((np.uint64(3) * right) ^ lower) << np.uint64(2 * bit)
        x, y = _turned(np.uint64(1 << bit), x, y, right, lower)
    return found


def columns_of(ids: Ids) -> tuple[Ids, Ids, NDArray[np.int64]]:
    """Return x, y and zoom of ids below `END`, in their order."""
    zooms = np.searchsorted(BASES, ids, "right") - 1
    x, y = np.zeros_like(ids), np.zeros_like(ids)
    for zoom in np.unique(zooms):
        where = zooms == zoom
        x[where], y[where] = _place(int(zoom), ids[where] - BASES[zoom])
    return x, y, zooms


def tiles_of(ids: Ids) -> list[Tile]:
    """Return the tiles of ids below `END`, sorted."""
    x, y, zooms = columns_of(ids)
    order = np.lexsort((zooms, y, x))
    columns = (column[order].tolist() for column in (x, y, zooms))
    return list(map(Tile._make, zip(*columns, strict=True)))


def _place(zoom: int, along: Ids) -> tuple[Ids, Ids]:
    x, y = np.zeros_like(along), np.zeros_like(along)
    for bit in range(zoom):
        right = (along >> _ONE) & _ONE
        lower = (along ^ right) & _ONE
        x, y = _turned(np.uint64(1 << bit), x, y, right, lower)
        x += right << np.uint64(bit)
        y += lower << np.uint64(bit)
        along = along >> np.uint64(2)
    return x, y


def _turned(side: np.uint64, x: Ids, y: Ids, right: Ids, lower: Ids) -> tuple[Ids, Ids]:
    """Turn the upper quarters of a square, as the curve does. Differences may wrap: only low bits count."""
    mirrored = (right == 1) & (lower == 0)
    x, y = np.where(mirrored, side - _ONE - x, x), np.where(mirrored, side - _ONE - y, y)
    upper = lower == 0
    return np.where(upper, y, x), np.where(upper, x, y)
