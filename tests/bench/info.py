"""What a file is, and the mean of its channels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rsp.shared.images import encode
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_writer
from tests.bench.data import write_config, write_tilesets
from tests.bench.harness import Growth, rsp


def make_archive(path: Path, count: int) -> Path:
    """Write an archive of one picture, with 20 to 60 random bytes behind it in each tile."""
    picture = encode(np.zeros((64, 64, 3), np.uint8), "png")
    rng = np.random.default_rng(5)
    data, sizes = rng.bytes(1 << 20), rng.integers(20, 60, count).tolist()
    with open_writer(path, "png") as writer:
        for number, size in enumerate(sizes):
            tile = Tile(4000 + number % 1000, 5000 + number // 1000, 14)
            writer.write(tile, picture + data[number : number + size])
    return path


def rows(folder: Path) -> Iterator[Growth]:
    """Yield the rows of `rsp info`."""
    archives = [make_archive(folder / f"{count}.pmtiles", count) for count in (30_000, 300_000)]
    yield Growth(
        "info: an archive of 300,000 tiles",
        *(rsp("info", archive) for archive in archives),
        tiles=270_000,
        # The small one does not fill the cache of directories, of 16 MiB. To find holes, columns and rows are
        # sorted: 40 bytes a tile for a moment, 11 MB here, where 16 would be better.
        slack=32 << 20,
    )
    config = write_config(folder)
    sides = []
    for name, down in (("few", 8), ("many", 80)):
        images, labels, _ = write_tilesets(folder / name, 40, down, size=256)
        sides.append(rsp("info", "--config", config, "--channels", images, "--labels", labels, "--workers", 1))
    yield Growth("info: channels and classes of 3,200 tiles of 256 px", *sides, tiles=2880)
