"""Tile sets: archives opened, read in place, read over HTTP."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pmtiles.reader import MmapSource, Reader

from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer
from tests.bench.harness import Line, Row, cost
from tests.ranges import RangeServer

COUNT = 300_000
# A hundred neighbours, as a screen of a map with its borders asks for them.
CHOSEN = [Tile(4300 + x, 5100 + y, 14) for x in range(10) for y in range(10)]


def make_archive(path: Path, count: int = COUNT) -> Path:
    """Write an archive of tiles of 40 bytes."""
    data = np.random.default_rng(3).bytes(1 << 20)
    with open_writer(path, "png") as writer:
        for number in range(count):
            writer.write(Tile(4000 + number % 1000, 5000 + number // 1000, 14), data[number : number + 40])
    return path


def rows(folder: Path) -> Iterator[Row | Line]:
    """Yield the rows of tile sets."""
    path = make_archive(folder / "large.pmtiles")
    found: dict[str, list[bytes]] = {}

    def opened() -> None:
        with open_reader(path) as reader:
            found["ours"] = [reader.read(tile) for tile in CHOSEN]

    def mapped() -> None:
        with path.open("rb") as file:
            reader = Reader(MmapSource(file))
            found["theirs"] = [reader.get(tile.z, tile.x, tile.y) for tile in CHOSEN]

    def same() -> None:
        assert found["ours"] == found["theirs"], "other bytes"

    yield Row(
        f"tile set: open an archive of {COUNT:,}, read 100", opened, mapped, "pmtiles.Reader.get", 1, same, runs=2
    )
    yield over_http(folder, path)


def over_http(folder: Path, path: Path) -> Line:
    """Measure an archive behind an HTTP server: what counts there are requests and bytes."""
    results: dict[str, list[bytes]] = {}
    with RangeServer(folder) as server:

        def read_ours() -> None:
            with open_reader(f"{server.url}/{path.name}") as reader:
                tiles = reader.read_many(CHOSEN)
                results["ours"] = [tiles[tile] for tile in CHOSEN]

        def get(offset: int, length: int) -> bytes:
            headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
            request = urllib.request.Request(f"{server.url}/{path.name}", headers=headers)
            with urllib.request.urlopen(request) as answer:
                data: bytes = answer.read()
                return data

        def read_theirs() -> None:
            reader = Reader(get)
            results["theirs"] = [reader.get(tile.z, tile.x, tile.y) for tile in CHOSEN]

        def traffic(read: Callable[[], None]) -> tuple[float, int, int]:
            server.asked.clear()
            server.sent = 0
            return cost(read).seconds, len(server.asked), server.sent

        (mine, requests, sent), (theirs, more, more_sent) = traffic(read_ours), traffic(read_theirs)
    same = results["ours"] == results["theirs"]
    return Line(
        f"tile set over HTTP: open an archive of {COUNT:,}, read 100",
        f"{mine:.3g} s, {requests} requests, {sent:,} bytes",
        "pmtiles.Reader over ranges",
        f"{theirs:.3g} s, {more} requests, {more_sent:,} bytes",
        f"{mine / theirs:.2f}",
        fault="" if same else "the two readers disagree",
    )
