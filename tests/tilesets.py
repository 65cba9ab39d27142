"""Small tile sets made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rsp.shared.images import encode, encode_mask
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer

BLOCK = [Tile(x, y, 15) for x in range(100, 104) for y in range(200, 203)]
COLORS = [(255, 255, 255), (255, 20, 147)]

CONFIG = """
[[channels]]
name = "images"
bands = [1, 2, 3]
kind = "image"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[classes]]
title = "background"
color = "white"

[[classes]]
title = "building"
color = "deeppink"

[model]
nn = "unet"
encoder = "tiny"
pretrained = false
loss = "lovasz"
ts = 64
bs = 4
lr = 0.001
da = "flip"
dap = 0.75
ms = 16
"""


def noise(tile: Tile, size: int = 64, bands: int = 3) -> np.ndarray:
    """An image that differs from tile to tile and is the same at every call."""
    rng = np.random.default_rng([tile.x, tile.y, tile.z])
    return rng.integers(0, 256, (size, size, bands), dtype=np.uint8)


def squares(tile: Tile, size: int = 64) -> np.ndarray:
    """A mask with one square of class 1 whose place follows from the tile."""
    mask = np.zeros((size, size), np.uint8)
    left, top = (tile.x * 7) % (size // 2), (tile.y * 11) % (size // 2)
    mask[top : top + size // 3, left : left + size // 3] = 1
    return mask


def make_tileset(
    path: Path, tiles: list[Tile] = BLOCK, fmt: str = "png", draw: Callable[[Tile], np.ndarray] = noise
) -> Path:
    """Write a tile set (a directory, or an archive where the path ends in .pmtiles); 2-D drawings become masks."""
    with open_writer(path, fmt) as writer:
        for tile in tiles:
            image = draw(tile)
            writer.write(tile, encode_mask(image, COLORS) if image.ndim == 2 else encode(image, fmt))
    return path


def content(path: Path) -> dict[Tile, bytes]:
    """Return all tiles of a tile set, as bytes."""
    with open_reader(path) as reader:
        return {tile: reader.read(tile) for tile in reader.tiles()}
