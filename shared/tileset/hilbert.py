"""Tile ids of PMTiles, many at once: all tiles of zoom 0, of zoom 1, ..., each zoom along a Hilbert curve."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rsp.shared.tiles import MAX_ZOOM, Tile

Ids = NDArray[np.uint64]

# The first id of each zoom, and of the one after the last.
BASES = np.array([(4**zoom - 1) // 3 for zoom in range(MAX_ZOOM + 2)], np.uint64)
END = int(BASES[-1])

_ONE = np.uint64(1)


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


def tiles_of(ids: Ids) -> list[Tile]:
    """Return the tiles of ids below `END`, sorted."""
    zooms = np.searchsorted(BASES, ids, "right") - 1
    x, y = np.zeros_like(ids), np.zeros_like(ids)
    for zoom in np.unique(zooms):
        where = zooms == zoom
        x[where], y[where] = _place(int(zoom), ids[where] - BASES[zoom])
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
