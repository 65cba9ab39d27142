"""Weights of pixels while training: a tile set beside the labels, as `rsp rasterize --weights` writes it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from rsp.shared.errors import RspError, TileError, TileSetError
from rsp.shared.filecache import nearby
from rsp.shared.images import Mask, decode
from rsp.shared.learning.resize import resize_mask
from rsp.shared.locations import Location
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, find_tileset, open_reader


class PixelWeights:
    """Reads them; can be pickled.

    Args:
        folder: `dataset/training`.
        name: The tile set in it.
        tiles: Those that are trained on.
        side: Of the tiles of the network, in pixels.

    Raises:
        TileSetError: there is no such tile set, or it lacks some of the tiles.
    """

    def __init__(self, folder: Location, name: str, tiles: Sequence[Tile], side: int) -> None:
        self.path = find_tileset(folder, name)
        self._near, self._side = nearby(self.path), side
        self._reader: tuple[int, TileReader] | None = None  # by which process it was opened
        there = self._open().cover()
        missing = [tile for tile in tiles if tile not in there]
        if missing:
            raise TileSetError(
                f"{self.path} lacks {len(missing)} of {len(tiles)} training tiles, the first is "
                f"{zxy(missing[0])}: make the weights for the cover of the labels"
            )

    def __getstate__(self) -> dict[str, object]:
        # An open memory map cannot travel to another process, nor be shared with it after a fork.
        return {**self.__dict__, "_reader": None}

    def _open(self) -> TileReader:
        if self._reader is None or self._reader[0] != os.getpid():
            self._reader = os.getpid(), open_reader(self._near)
        return self._reader[1]

    def read(self, tile: Tile) -> Mask:
        """Return the weights of a tile, (side, side) uint8; raise `TileError`."""
        try:
            image = decode(self._open().read(tile))
        except RspError as error:
            raise TileError(f"{self.path}, tile {zxy(tile)}: {error}") from error
        if image.shape[2] != 1 or image.dtype != np.uint8:
            raise TileError(
                f"{self.path}, tile {zxy(tile)}: expected one band of 8 bits, as `rsp rasterize --weights` writes "
                f"it, got {image.shape[2]} of {image.dtype}"
            )
        return resize_mask(image[:, :, 0], self._side, self._side)
