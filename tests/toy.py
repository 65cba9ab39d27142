"""A data set that a network learns in seconds: dark squares on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rsp.shared.tiles import Tile
from tests.tilesets import CONFIG, make_tileset, noise, squares

TRAINING = [Tile(x, y, 15) for x in range(100, 106) for y in range(200, 203)]
VALIDATION = [Tile(x, y, 15) for x in range(106, 108) for y in range(200, 203)]


def photo(tile: Tile, size: int = 64) -> np.ndarray:
    """The image that belongs to the label `squares`."""
    image = noise(tile, size) // 4 + 60
    mask = squares(tile, size) == 1
    image[mask] = image[mask] // 2 + np.array([120, 40, 20], np.uint8)
    return image


def make_dataset(root: Path, archives: bool = True) -> Path:
    """Write `training` and `validation`, images and labels, as archives or as directories."""
    suffix = ".pmtiles" if archives else ""
    for part, tiles in (("training", TRAINING), ("validation", VALIDATION)):
        make_tileset(root / part / f"images{suffix}", tiles, "png", photo)
        make_tileset(root / part / f"labels{suffix}", tiles, "png", squares)
    return root


def make_config(path: Path, text: str = CONFIG, **changes: str) -> Path:
    """Write the configuration, with the lines of some keys replaced: `make_config(path, loss='"dice"')`."""
    lines = text.splitlines()
    for key, value in changes.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return path
