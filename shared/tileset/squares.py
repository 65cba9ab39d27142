"""Tiles of remote archives read many at once, for who works through an area tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rsp.shared.covers import Cover
from rsp.shared.kept import Kept
from rsp.shared.tilekeys import Keys, among, around, key_of, keys_of, tiles_of
from rsp.shared.tiles import Tile
from rsp.shared.tileset.base import TileReader
from rsp.shared.tileset.hilbert import tile_of
from rsp.shared.tileset.ranged import RangedReader

# Bytes that are asked for at once, about, and bytes that are kept: the squares of a strip of tiles and around it.
AT_ONCE, KEPT = 2 << 20, 64 << 20
# The longest side of a square, in tiles.
SIDE = 16


def in_squares(reader: TileReader, tiles: Iterable[Tile]) -> TileReader:
    """Return a reader for who is going to read tiles and those around them, in strips or in rows.

    A remote archive is read in squares of tiles then, which lie together in the order of PMTiles: one request for
    many, where each would take one of its own. Other tile sets are read as before.

    Args:
        reader: The tile set.
        tiles: What is going to be read, of one zoom.
    """
    if not isinstance(reader, RangedReader):
        return reader
    wanted = list(tiles)
    if not wanted:
        return reader
    side = side_of(reader.mean_size)
    return reader if side == 1 else Squares(reader, wanted, side)


def side_of(size: float) -> int:
    """Return the side of squares of tiles that have so many bytes each: a power of two."""
    side = SIDE
    while side > 1 and side * side * size > AT_ONCE:
        side //= 2
    return side


class Squares(TileReader):
    """A remote archive whose tiles are read in squares. Safe to use from several threads.

    Args:
        reader: The archive.
        tiles: Those that are going to be read. They and those around them are fetched together, others one by one.
        side: Of a square, in tiles.
    """

    def __init__(self, reader: RangedReader, tiles: list[Tile], side: int) -> None:
        self._reader, self._side, self._zoom = reader, side, tiles[0].z
        own = keys_of(tiles)
        self._wanted: Keys = np.union1d(own, around(own, self._zoom))
        self._squares: Kept[Mapping[Tile, bytes]] = Kept(lambda square: sum(map(len, square.values())), KEPT)
        self.path, self.format, self.formats = reader.path, reader.format, reader.formats

    def _square(self, tile: Tile) -> Mapping[Tile, bytes] | None:
        """Return what is there of the square that a tile is in; None for a tile that nobody has said to read."""
        if tile.z != self._zoom or not among(np.array([key_of(tile.x, tile.y)]), self._wanted)[0]:
            return None
        x, y = tile.x // self._side, tile.y // self._side
        return self._squares.get((x, y), lambda: self._reader.read_many(self._within(x, y)))

    def _within(self, x: int, y: int) -> list[Tile]:
        """Return the tiles of a square that are going to be read."""
        side = np.arange(self._side, dtype=np.int64)
        keys = ((x * self._side + side)[:, np.newaxis] << 32 | (y * self._side + side)).ravel()
        return tiles_of(keys[among(keys, self._wanted)], self._zoom)

    def cover(self) -> Cover:
        return self._reader.cover()

    def zoom(self) -> int:
        return self._reader.zoom()

    def __contains__(self, tile: object) -> bool:
        found = tile_of(tile)
        if found is None:
            return False
        square = self._square(found)
        return found in self._reader if square is None else found in square

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, tile: Tile) -> bytes:
        square = self._square(tile)
        # The reader says what is wrong with a tile that is not there.
        return self._reader.read(tile) if square is None or tile not in square else square[tile]

    @property
    def metadata(self) -> dict[str, Any]:
        return self._reader.metadata

    def close(self) -> None:
        self._reader.close()
