"""Where tiles lie: bounds, holes, and a small map, from arrays alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsp.shared.covers import Cover
from rsp.shared.disjoint import DisjointSets
from rsp.shared.tilekeys import Keys, columns, tiles_of
from rsp.shared.tiles import Tile, bounds_lonlat, zxy

# The map as text: so many characters wide at most, and so many high.
WIDTH, HEIGHT = 64, 20
# From no tile in a field of the map to all of them; the last is for those where none is missing.
SHADES = " ░▒▓█"
# Holes that are named.
NAMED = 10


def bounds_of(cover: Cover) -> list[float]:
    """Return west, south, east, north of tiles in degrees, to 7 decimals (a centimetre)."""
    boxes = []
    for zoom in cover.zooms:
        x, y = columns(cover.keys(zoom))
        west, _, _, north = bounds_lonlat(Tile(int(x.min()), int(y.min()), zoom))
        _, south, east, _ = bounds_lonlat(Tile(int(x.max()), int(y.max()), zoom))
        boxes.append((west, south, east, north))
    sides = np.array(boxes)
    return [round(float(value), 7) for value in (*sides[:, :2].min(axis=0), *sides[:, 2:].max(axis=0))]


def holes_of(keys: Keys) -> tuple[int, Keys]:
    """Find what is missing within an area: places that tiles of one zoom enclose on all four sides.

    Returns:
        How many holes there are, and the tiles that are missing in them, sorted. Memory and time grow with the
        number of tiles, not with the size of the area.
    """
    x, y = columns(keys)
    order = np.lexsort((x, y))
    x, y = x[order], y[order]
    # Gaps between two tiles of a row: from `left` to `right`, both missing.
    gap = np.flatnonzero((y[1:] == y[:-1]) & (x[1:] > x[:-1] + 1))
    left, right, row = x[gap] + 1, x[gap + 1] - 1, y[gap]
    if not len(gap):
        return 0, np.empty(0, np.int64)
    rows, first = np.unique(y, return_index=True)
    low, high = x[first], x[np.append(first[1:], len(x)) - 1]  # where each row begins and ends
    open_ = np.zeros(len(gap), bool)
    groups = DisjointSets()
    starts = np.searchsorted(row, [rows, rows + 1])
    for step in (-1, 1):
        near = np.searchsorted(rows, row + step)
        there = (near < len(rows)) & (rows[np.minimum(near, len(rows) - 1)] == row + step)
        near = np.minimum(near, len(rows) - 1)
        # A gap that reaches beyond the ends of the next row, or has no next row, is open.
        open_ |= ~there | (left < low[near]) | (right > high[near])
    for number in range(len(gap)):
        above = int(np.searchsorted(rows, row[number] + 1))
        if above < len(rows) and rows[above] == row[number] + 1:
            begin, end = int(starts[0][above]), int(starts[1][above])
            # Gaps of a row come in order: those that overlap stand together.
            begin += int(np.searchsorted(right[begin:end], left[number]))
            while begin < end and left[begin] <= right[number]:
                groups.join(number, begin)
                begin += 1
    roots = np.fromiter((groups.root(number) for number in range(len(gap))), np.int64, len(gap))
    leaking = np.unique(roots[open_])
    closed = ~np.isin(roots, leaking)
    missing = [
        np.arange(a, b + 1, dtype=np.int64) << 32 | r
        for a, b, r in zip(left[closed], right[closed], row[closed], strict=True)
    ]
    return len(np.unique(roots[closed])), np.sort(np.concatenate(missing)) if missing else np.empty(0, np.int64)


def describe_area(cover: Cover) -> dict[str, Any]:
    """Return what there is to say of where tiles lie."""
    found: dict[str, Any] = {"bounds": bounds_of(cover)}
    count, missing = 0, 0
    named: list[str] = []
    for zoom in cover.zooms:
        holes, tiles = holes_of(cover.keys(zoom))
        count, missing = count + holes, missing + len(tiles)
        named += [zxy(tile) for tile in tiles_of(tiles[: NAMED - len(named)], zoom)]
    found["holes"] = {"count": count, "tiles": missing, "first": named}
    found["map"] = map_of(cover)
    return found


def map_of(cover: Cover) -> list[str]:
    """Return a map of the tiles of the zoom that has most of them, as lines of text, north up."""
    zoom = max(cover.zooms, key=lambda each: (len(cover.keys(each)), each))
    shares = shares_of(cover.keys(zoom))
    last = len(SHADES) - 1
    steps = np.where(shares == 1, last, np.ceil(shares * (last - 1)))
    return ["".join(SHADES[int(step)] for step in row).rstrip() for row in steps]


def shares_of(keys: Keys) -> NDArray[np.float64]:
    """Return which share of each field of a map tiles fill; a field has a power of two of tiles on each side.

    A line of text is twice as high as a letter is wide, so a field of the map is two columns for each row.
    """
    x, y = columns(keys)
    x, y = x - x.min(), y - y.min()
    wide, high = int(x.max()) + 1, int(y.max()) + 1
    side = 0
    while -(-wide >> side) * 2 > WIDTH or -(-high >> side) > HEIGHT:
        side += 1
    fields = np.zeros((((high - 1) >> side) + 1, ((wide - 1) >> side) + 1))
    np.add.at(fields, (y >> side, x >> side), 1)
    # Fields at the edges reach beyond the area.
    columns_in = np.minimum(1 << side, wide - (np.arange(fields.shape[1]) << side))
    rows_in = np.minimum(1 << side, high - (np.arange(fields.shape[0]) << side))
    return np.repeat(fields / (rows_in[:, None] * columns_in[None, :]), 2, axis=1)
