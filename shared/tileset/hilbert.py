"""Tile ids of PMTiles, many at once: all tiles of zoom 0, of zoom 1, ..., each zoom along a Hilbert curve."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rsp.shared.covers import Cover, unique
from rsp.shared.tilekeys import Keys, columns
from rsp.shared.tiles import MAX_ZOOM, Tile

Ids = NDArray[np.uint64]
Box = tuple[int, int, int, int]  # the least x and y, and the largest

# The first id of each zoom, and of the one after the last.
BASES = np.array([(4**zoom - 1) // 3 for zoom in range(MAX_ZOOM + 2)], np.uint64)
END = int(BASES[-1])


def in_grid(tile: tuple[int, int, int]) -> bool:
    """Tell whether the grid has such a tile, a `Tile` or a plain (x, y, z)."""
    x, y, z = tile
    return 0 <= z <= MAX_ZOOM and 0 <= x < 1 << z and 0 <= y < 1 << z


def tile_of(value: object) -> Tile | None:
    """Return the tile that a `Tile`, or a plain (x, y, z), names; None where it is neither, or not in the grid."""
    if not (isinstance(value, tuple) and len(value) == 3 and all(isinstance(part, int) for part in value)):
        return None
    return Tile(*value) if in_grid(value) else None


# Tiles that are worked on at once: what is in between takes fifty bytes of each.
BLOCK = 1 << 16

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


@cache
def _tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `_steps` as an array, and its inverse: eight bits along the curve give four of x and of y."""
    forth = np.array(_steps(), np.int64)
    back = np.empty_like(forth)
    numbers = np.arange(len(forth))
    back[numbers >> 8 << 8 | forth >> 2] = (numbers & 255) << 2 | forth & 3
    return forth, back


def ids_of(tiles: Iterable[Tile]) -> Ids:
    """Return the ids of tiles, in their order."""
    rows = np.array([(tile.x, tile.y, tile.z) for tile in tiles], np.int64).reshape(-1, 3)
    x, y, zooms = rows.T
    ids = np.empty(len(rows), np.uint64)
    for zoom in np.unique(zooms).tolist():
        where = zooms == zoom
        ids[where] = _along(zoom, x[where], y[where])
    return ids


def ids_of_cover(cover: Cover) -> Ids:
    """Return the ids of the tiles of a cover, sorted."""
    ids, end = np.empty(len(cover), np.uint64), 0
    for zoom in cover.zooms:  # ids of a higher zoom are higher
        keys, start = cover.keys(zoom), end
        for first in range(0, len(keys), BLOCK):
            some = keys[first : first + BLOCK]
            ids[end : end + len(some)] = _along(zoom, *columns(some))
            end += len(some)
        ids[start:end].sort()
    return ids


def cover_of(ids: Ids) -> Cover:
    """Return the tiles of ids below `END`, in any order."""
    return cover_of_blocks(ids[first : first + BLOCK] for first in range(0, len(ids), BLOCK))


def cover_of_blocks(blocks: Iterable[Ids]) -> Cover:
    """Return the tiles of ids below `END`, in any order, which come in arrays."""
    found: dict[int, list[Keys]] = {}
    for ids in blocks:
        if not (ids[1:] > ids[:-1]).all():
            ids = np.sort(ids)
        ends = np.searchsorted(ids, BASES)
        for zoom in np.flatnonzero(np.diff(ends)).tolist():
            x, y = _place(zoom, ids[ends[zoom] : ends[zoom + 1]])
            found.setdefault(zoom, []).append(x << 32 | y)
    covers = {}
    for zoom in sorted(found):
        keys = np.concatenate(found.pop(zoom))
        keys.sort()
        covers[zoom] = unique(keys)
    return Cover(covers)


def boxes_of(ids: Ids) -> dict[int, Box]:
    """Return the least and the largest x and y of sorted ids below `END`, for each of their zooms, ascending."""
    found: dict[int, Box] = {}
    ends = np.searchsorted(ids, BASES)
    for zoom in np.flatnonzero(np.diff(ends)).tolist():
        start, end = ends[zoom : zoom + 2].tolist()
        for first in range(start, end, BLOCK):
            x, y = _place(zoom, ids[first : min(first + BLOCK, end)])
            box = int(x.min()), int(y.min()), int(x.max()), int(y.max())
            left, top, right, bottom = found.get(zoom, box)
            found[zoom] = min(left, box[0]), min(top, box[1]), max(right, box[2]), max(bottom, box[3])
    return found


def ids_at(zoom: int, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how far along the curve of their zoom tiles lie: their ids less the first of the zoom."""
    return (_along(zoom, x, y) - BASES[zoom]).astype(np.int64)


def columns_at(zoom: int, along: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return x and y of tiles so far along the curve of their zoom."""
    return _place(zoom, along.astype(np.uint64) + BASES[zoom])


def _along(zoom: int, x: NDArray[np.int64], y: NDArray[np.int64]) -> Ids:
    step, above = _tables()[0], -zoom % 4
    turned, found = np.full(len(x), above & 1), np.zeros(len(x), np.int64)
    for shift in range(zoom + above - 4, -1, -4):
        steps = step[turned << 8 | (x >> shift & 15) << 4 | y >> shift & 15]
        found, turned = found << 8 | steps >> 2, steps & 3
    return found.astype(np.uint64) + BASES[zoom]


def _place(zoom: int, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return x and y of ids of a zoom."""
    step, above = _tables()[1], -zoom % 4
    along = (ids - BASES[zoom]).astype(np.int64)
    x, y, turned = np.zeros_like(along), np.zeros_like(along), np.full(len(along), above & 1)
    for shift in range(zoom + above - 4, -1, -4):
        steps = step[turned << 8 | along >> 2 * shift & 255]
        x, y, turned = x << 4 | steps >> 6, y << 4 | steps >> 2 & 15, steps & 3
    return x, y


def zoom_of_id(tile_id: int) -> int:
    """Return the zoom of an id below `END`."""
    return bisect_right(_FIRST, tile_id) - 1


def in_order(cover: Cover, size: int) -> Iterator[list[Tile]]:
    """Yield the tiles of a cover as archives store them, so that neighbours come together, in lists of a size."""
    ids = ids_of_cover(cover)
    for start in range(0, len(ids), size):
        yield tiles_in(ids[start : start + size])


def tiles_in(ids: Ids) -> list[Tile]:
    """Return the tiles of sorted ids below `END`, in their order."""
    found: list[Tile] = []
    ends = np.searchsorted(ids, BASES)
    for zoom in np.flatnonzero(np.diff(ends)).tolist():
        x, y = _place(zoom, ids[ends[zoom] : ends[zoom + 1]])
        found += [Tile(*place, zoom) for place in zip(x.tolist(), y.tolist(), strict=True)]
    return found
