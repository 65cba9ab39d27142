"""Tile sets: archives opened, read in place and over HTTP, written, and parts of them copied."""

from __future__ import annotations

import filecmp
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pmtiles.reader import MmapSource, Reader

from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer
from tests.bench.harness import Growth, Line, Row, cost, rival, rsp
from tests.ranges import RangeServer

COUNT = 300_000
# A hundred neighbours, as a screen of a map with its borders asks for them.
CHOSEN = [Tile(4300 + x, 5100 + y, 14) for x in range(10) for y in range(10)]


# What one tile takes to be found, in milliseconds, an archive of so many opened for it.
OPENED = 5.0

# Tiles of a copy, and their mean size in bytes: those of aerial imagery, if small.
TILES, SIZE = 100_000, 6000


def make_archive(path: Path, count: int = COUNT) -> Path:
    """Write an archive of tiles of 20 to 60 bytes: of one size, they would need no leaf directories."""
    rng = np.random.default_rng(3)
    data, sizes = rng.bytes(1 << 20), rng.integers(20, 60, count).tolist()
    with open_writer(path, "png") as writer:
        for number, size in enumerate(sizes):
            writer.write(Tile(4000 + number % 1000, 5000 + number // 1000, 14), data[number : number + size])
    return path


def some(count: int, size: int) -> Iterator[tuple[Tile, bytes]]:
    """Yield tiles of a square, all different, in rows."""
    data, side = np.random.default_rng(3).bytes(1 << 24), int(count**0.5)
    for number in range(count):
        start = number * 7919 % (len(data) - 2 * size)
        tile = Tile(4000 + number // side, 5000 + number % side, 14)
        yield tile, data[start : start + size // 2 + number % size]


def make_copied(path: Path, count: int, size: int) -> tuple[Path, Path]:
    """Write an archive, and a cover of its tiles beside it."""
    cover = path.with_suffix(".csv")
    with open_writer(path, "png") as writer, cover.open("w") as lines:
        for tile, data in some(count, size):
            writer.write(tile, data)
            lines.write(f"{tile.x},{tile.y},{tile.z}\n")
    return path, cover


def rows(folder: Path) -> Iterator[Row | Line | Growth]:
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
        f"tile set: open an archive of {COUNT:,}, read {len(CHOSEN)}",
        opened,
        mapped,
        "pmtiles.Reader.get",
        1,
        same,
        runs=1,
    )
    yield over_http(folder, path)
    yield first_tile(path)
    path.unlink()
    yield written(folder)
    yield from copied(folder)


def first_tile(path: Path) -> Line:
    """Measure what a process waits for before it has a tile of an archive."""
    taken = []
    for tile in CHOSEN:
        start = time.process_time()
        with open_reader(path) as reader:
            reader.read(tile)
        taken.append((time.process_time() - start) * 1e3)
    middle = statistics.median(taken)
    fault = f"it takes {middle:.1f} ms" if middle > OPENED else ""
    return Line(
        f"tile set: open an archive of {COUNT:,}, read one (in process)",
        f"{middle:.2f} ms", bar=f"<= {OPENED:g} ms", fault=fault,
    )  # fmt: skip


def written(folder: Path) -> Row:
    """Return the row of tiles that come in rows, as the tools write them; ours are safe from a kill meanwhile."""
    ours, theirs = folder / "ours.pmtiles", folder / "theirs.pmtiles"

    def same() -> None:
        with open_reader(ours) as one, open_reader(theirs) as other:
            assert one.cover() == other.cover(), "other tiles"
            assert all(one.read(tile) == other.read(tile) for tile in list(one.cover())[::97]), "other bytes"

    return Row(
        f"tile set: write {TILES:,} tiles of 600 bytes", rival("write_pmtiles", TILES, 600, ours, "ours"),
        rival("write_pmtiles", TILES, 600, theirs), "pmtiles.Writer", None, same, fresh=(ours, theirs), runs=2,
    )  # fmt: skip


def copied(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp subset` from archive to archive."""
    ours, theirs = folder / "ours.pmtiles", folder / "theirs.pmtiles"
    small, large = (make_copied(folder / f"{count}.pmtiles", count, SIZE) for count in (TILES // 10, TILES))

    def subset(source: Path, cover: Path) -> list[object]:
        return rsp("subset", "--dir", source, "--filter", cover, "--out", ours, "--no_web_ui")

    def same() -> None:
        assert filecmp.cmp(ours, theirs, shallow=False), "other bytes"

    megabytes = large[0].stat().st_size / 1e6
    yield Row(
        f"subset: {TILES:,} tiles, {megabytes:.0f} MB, PMTiles to PMTiles",
        subset(*large),
        rival("copy_pmtiles", *large, theirs),
        "pmtiles.Writer",
        1,
        same,
        fresh=(ours, theirs),
        runs=2,
    )
    yield Growth(
        f"subset: {TILES:,} tiles", subset(*small), subset(*large), tiles=TILES * 9 // 10, fresh=(ours,), runs=2
    )
    tiny = make_copied(folder / "tiny.pmtiles", TILES // 100, SIZE)
    joined = [[*subset(*tiny), "--union", small[0]], [*subset(*small), "--union", large[0]]]
    for command in joined:  # the whole of both
        del command[command.index("--filter") : command.index("--out")]
    yield Growth(f"subset: {TILES:,} tiles joined with others", *joined, tiles=TILES * 9 // 10, fresh=(ours,))


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
        f"tile set over HTTP: open an archive of {COUNT:,}, read {len(CHOSEN)}",
        f"{mine:.3g} s, {requests} requests, {sent:,} bytes",
        "pmtiles.Reader over ranges",
        f"{theirs:.3g} s, {more} requests, {more_sent:,} bytes",
        f"{mine / theirs:.2f}",
        fault="" if same else "the two readers disagree",
    )
