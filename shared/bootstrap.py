"""Draws of square blocks of tiles, to say what of a measure may be chance.

Neighbouring tiles are alike, so a tile is no independent sample. What is drawn are square blocks of tiles, as many
as there are, with replacement; where two models are compared, the same ones for both (a paired bootstrap).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from rsp.shared.metrics import Counts
from rsp.shared.tiles import Tile

DRAWS = 2000
# Below so many blocks the draws say little about the area.
LEAST_BLOCKS = 8
# Draws that are added up at once: memory stays at some megabytes.
_CHUNK = 64


class Blocks(NamedTuple):
    """Counts of pixels, block by block.

    Attributes:
        tiles: The tile of each block that comes first, to say where it is.
        counts: Those of each, shape (blocks, ...): a confusion matrix, say.
    """

    tiles: list[Tile]
    counts: Counts


class Gathering:
    """Adds the counts of tiles up, block by block; their order says nothing."""

    def __init__(self, side: int) -> None:
        """Begin with no tile; `side` is that of the blocks, in tiles."""
        self.side = side
        self._first: dict[tuple[int, int], Tile] = {}
        self._sums: dict[tuple[int, int], Counts] = {}

    def add(self, tile: Tile, counts: Counts) -> None:
        """Add the counts of a tile, an array of the same shape for every tile."""
        key = tile.x // self.side, tile.y // self.side
        self._first[key] = min(self._first.get(key, tile), tile)
        self._sums[key] = self._sums[key] + counts if key in self._sums else counts

    def blocks(self) -> Blocks:
        """Return the blocks of all tiles, of which there is at least one, by column and row."""
        keys = sorted(self._sums)
        return Blocks([self._first[key] for key in keys], np.stack([self._sums[key] for key in keys]))


def blocks_of(counts: Iterable[tuple[Tile, Counts]], side: int) -> Blocks:
    """Add up the counts of the tiles of each square block of `side` tiles."""
    found = Gathering(side)
    for tile, some in counts:
        found.add(tile, some)
    return found.blocks()


def draws(*counts: Counts, seed: int, number: int = DRAWS) -> Iterator[tuple[Counts, ...]]:
    """Yield what the blocks of each draw add up to.

    Args:
        counts: Of one model or several, on the same blocks: each of shape (blocks, ...).
        seed: The same seed gives the same draws.
        number: How many draws there are.

    Yields:
        For each of `counts` its sum over the blocks of the draw, the same ones for all.
    """
    rng, blocks = np.random.default_rng(seed), len(counts[0])
    for start in range(0, number, _CHUNK):
        size = min(_CHUNK, number - start)
        chosen = rng.integers(0, blocks, (size, blocks))
        times = np.zeros((size, blocks), np.int64)
        np.add.at(times, (np.arange(size)[:, None], chosen), 1)
        yield from zip(*(np.tensordot(times, some, 1) for some in counts), strict=True)
