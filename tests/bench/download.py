"""Tiles from a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from rsp.shared.images import encode
from tests.bench.harness import Growth, Line, rsp
from tests.bench.rasterize import write_cover
from tests.tileserver import Reply, TileServer


def rows(folder: Path) -> Iterator[Growth | Line]:
    """Yield the rows of `rsp download`. The server is in this process, whose time does not count."""
    noise = np.random.default_rng(4).integers(0, 256, (64, 256, 256, 3), dtype=np.uint8)
    pictures = [encode(each // 4, "jpg") for each in noise]
    out = folder / "images.pmtiles"
    with TileServer(lambda path, _: Reply(pictures[crc32(path.encode()) % len(pictures)])) as server:
        fetched = [
            rsp("download", "--rate", 100_000, "--no_web_ui", f"{server.url}/{{z}}/{{x}}/{{y}}.jpg",
                write_cover(folder / f"{columns}.csv", columns, 50), out)
            for columns in (10, 100)
        ]  # fmt: skip
        # A line of its own: measured while there is a server.
        yield Growth("download: 5,000 tiles of 256 px", *fetched, tiles=4500, fresh=(out,)).measure()
