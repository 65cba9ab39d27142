"""Splits of a cover into parts by percentage, seeded, losing no tile; in arrays, for any number of tiles."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from rsp.shared.covers import Cover
from rsp.shared.errors import UsageError
from rsp.shared.tilekeys import Keys, columns

# Blocks whose places are numbers of Python at once.
AT_ONCE = 1 << 16


def split_cover(
    cover: Cover, shares: Sequence[int], *, seed: int = 0, block: int = 1, stable: bool = False
) -> list[Cover]:
    """Split tiles into parts by percentage, seeded, losing none.

    Args:
        cover: The tiles to split.
        shares: One percentage a part; they sum to 100.
        seed: The same seed gives the same parts.
        block: Side, in tiles, of the squares that stay together. 1 shuffles single tiles; larger blocks keep
            neighbours, which look alike, on one side of the split. Of several zooms they are tiles of the lowest:
            what lies on the ground of one of them goes with it, so that no part sees the ground of another.
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
    blocks = _blocks(cover, block)
    bounds = np.array(list(accumulate(shares)))
    if stable:
        shares_at = np.fromiter((_percent_of(seed, place) for place in blocks.places()), float, len(blocks.sizes))
        part = np.searchsorted(bounds, shares_at, side="right").astype(np.int16)
    else:
        shuffled = array("q", range(len(blocks.sizes)))
        random.Random(seed).shuffle(shuffled)  # noqa: S311 (a reproducible split, not a secret)
        order = np.frombuffer(shuffled, np.int64) if shuffled else np.empty(0, np.int64)
        sizes = blocks.sizes[order]
        # A block goes to the part in whose share its middle falls, so rounding errs to neither side.
        middles = 2 * sizes.cumsum() - sizes
        part = np.empty(len(sizes), np.int16)
        part[order] = np.searchsorted(bounds * len(cover), middles * 50)
    part_of, parts, start = part[blocks.block_of], [dict[int, Keys]() for _ in shares], 0
    for zoom in cover.zooms:
        keys = cover.keys(zoom)
        here = part_of[start : start + len(keys)]
        start += len(keys)
        for number, found in enumerate(parts):
            found[zoom] = keys[here == number]
    return list(map(Cover, parts))


class _Blocks(NamedTuple):
    """Square blocks of tiles of the lowest zoom, in the order of the first tile (x, y, z) that lies in each.

    Attributes:
        zoom, column, row: Where each block is; the zoom is the lowest of the cover.
        sizes: How many tiles each has.
        block_of: For each tile of the cover, by zoom, x and y, the number of its block.
    """

    zoom: Keys
    column: Keys
    row: Keys
    sizes: Keys
    block_of: Keys

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Yield zoom, column and row of each block."""
        for start in range(0, len(self.sizes), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            yield from zip(*(part[some].tolist() for part in self[:3]), strict=True)


def _blocks(cover: Cover, side: int) -> _Blocks:
    """Sort tiles into blocks of `side` x `side` tiles of the lowest zoom."""
    zooms = np.repeat(np.array(cover.zooms, np.int64), [len(cover.keys(zoom)) for zoom in cover.zooms])
    x, y = columns(np.concatenate([np.empty(0, np.int64), *map(cover.keys, cover.zooms)]))
    if side == 1 and len(cover.zooms) == 1:  # in order already
        return _Blocks(zooms, x, y, np.ones_like(x), np.arange(len(x)))
    low = np.int64(min(cover.zooms, default=0))
    column, row = (x >> zooms - low) // side, (y >> zooms - low) // side
    code = column << low | row
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
    return _Blocks(np.full(len(some), low), column[some], row[some], sizes[order], rank[found])


def _percent_of(seed: int, place: tuple[int, int, int]) -> float:
    """Return where in [0, 100) the hash of a block (z, column, row) lies; it is the same on every machine."""
    digest = hashlib.sha256(f"split {seed} {'/'.join(map(str, place))}".encode()).digest()
    # 53 bits: what a float holds, so that 100 is never reached.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53) * 100
