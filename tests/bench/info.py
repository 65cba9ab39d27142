"""What a file is, and the mean of its channels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rsp.shared.images import encode
from rsp.shared.tileset import open_writer
from tests.bench.data import write_config, write_tilesets
from tests.bench.harness import Growth, rsp
from tests.bench.tilesets import some


def make_archive(path: Path, count: int) -> Path:
    """Write an archive of one picture, with bytes behind it that are different in each tile."""
    picture = encode(np.zeros((64, 64, 3), np.uint8), "png")
    with open_writer(path, "png") as writer:
        for tile, data in some(count, 40):
            writer.write(tile, picture + data)
    return path


def rows(folder: Path) -> Iterator[Growth]:
    """Yield the rows of `rsp info`."""
    archives = [make_archive(folder / f"{count}.pmtiles", count) for count in (30_000, 300_000)]
    yield Growth(
        "info: an archive of 300,000 tiles", *(rsp("info", archive) for archive in archives), tiles=270_000
    )
    config = write_config(folder)
    sides = []
    for name, down in (("few", 8), ("many", 80)):
        images, labels, _ = write_tilesets(folder / name, 40, down, size=256)
        sides.append(rsp("info", "--config", config, "--channels", images, "--labels", labels, "--workers", 1))
    yield Growth("info: channels and classes of 3,200 tiles of 256 px", *sides, tiles=2880)
