"""Splits of a cover into parts by percentage, seeded, losing no tile; in arrays, for any number of tiles."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from rsp.shared.covers import Cover
from rsp.shared.errors import UsageError
from rsp.shared.tilekeys import Keys, columns


def split_cover(
    cover: Cover, shares: Sequence[int], *, seed: int = 0, block: int = 1, stable: bool = False
) -> list[Cover]:
    """Split tiles into parts by percentage, seeded, losing none.

    Args:
        cover: The tiles to split.
        shares: One percentage a part; they sum to 100.
        seed: The same seed gives the same parts.
        block: Side, in tiles, of the squares that stay together. 1 shuffles single tiles; larger blocks keep
            neighbours, which look alike, on one side of the split.
        stable: Let each block go where a hash of its place says, whatever else there is: tiles that come later
            move none. The shares are then met only on average, and a part of few blocks may be empty.

    Returns:
        One cover a part. Unless `stable`, their sizes follow the shares within one block.

    Raises:
        UsageError: shares that do not sum to 100, or blocks without a side.
    """
    if not shares or any(share < 0 for share in shares) or sum(shares) != 100:
        raise UsageError(f"splits must be percentages that sum to 100, got {','.join(map(str, shares))}")
    if block < 1:
        raise UsageError(f"block must be at least 1, got {block}")
    zooms = np.repeat(np.array(cover.zooms, np.int64), [len(cover.keys(zoom)) for zoom in cover.zooms])
    keys = np.concatenate([np.empty(0, np.int64), *map(cover.keys, cover.zooms)])
    x, y = columns(keys)
    blocks, block_of, sizes = _blocks(x, y, zooms, block)
    bounds = np.array(list(accumulate(shares)))
    if stable:
        part = np.searchsorted(bounds, [_percent_of(seed, place) for place in blocks], side="right")
    else:
        order = list(range(len(sizes)))
        random.Random(seed).shuffle(order)  # noqa: S311 (a reproducible split, not a secret)
        shuffled = sizes[order]
        # A block goes to the part in whose share its middle falls, so rounding errs to neither side.
        middles = 2 * shuffled.cumsum() - shuffled
        part = np.empty(len(sizes), np.int64)
        part[order] = np.searchsorted(bounds * len(keys), middles * 50).clip(max=len(shares) - 1)
    part_of = part[block_of]
    return [
        Cover({zoom: keys[(part_of == number) & (zooms == zoom)] for zoom in cover.zooms})
        for number in range(len(shares))
    ]


def _blocks(x: Keys, y: Keys, zooms: Keys, side: int) -> tuple[list[tuple[int, int, int]], Keys, Keys]:
    """Sort tiles into square blocks.

    Returns:
        Zoom, column and row of each block, in the order of the first tile (x, y, z) of each; for each tile the
        number of its block; and how many tiles each block has.
    """
    column, row = x // side, y // side
    # One number for a place of any zoom: as many as there are tiles of the zooms below come before it.
    code = ((1 << 2 * zooms) - 1) // 3 + (column << zooms | row)
    _, first, found, sizes = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(x), np.int64)
    place[np.lexsort((zooms, y, x))] = np.arange(len(x))
    # The first tile of a block by x, y and z need not be the first by zoom.
    earliest = np.full(len(first), len(x))
    np.minimum.at(earliest, found, place)
    order = np.argsort(earliest)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    some = first[order]
    blocks = list(zip(zooms[some].tolist(), column[some].tolist(), row[some].tolist(), strict=True))
    return blocks, rank[found], sizes[order]


def _percent_of(seed: int, place: tuple[int, int, int]) -> float:
    """Return where in [0, 100) the hash of a block (z, column, row) lies; it is the same on every machine."""
    digest = hashlib.sha256(f"split {seed} {'/'.join(map(str, place))}".encode()).digest()
    # 53 bits: what a float holds, so that 100 is never reached.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53) * 100
