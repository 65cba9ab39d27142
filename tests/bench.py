"""Measure against rivals: `make bench`.

Each row runs ours and the rival in turn, in this one process, on the same seeded input, and prints the median CPU
seconds of both (children included) and the median of the ratios, pair by pair: machines are shared and noisy, so
wall time and single runs say little. A rival that is not installed is named and left out.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mercantile
import numpy as np
import shapely

from rsp.shared.tiles import Tile, write_cover

RUNS = 5
ZOOM = 18
CONFIG = '[[channels]]\nname = "images"\nbands = [1, 2, 3]\n[[classes]]\ntitle = "building"\ncolor = "pink"\n'


def cpu() -> float:
    """CPU seconds of this process and its children."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(function: Callable[[], object]) -> float:
    start = cpu()
    function()
    return cpu() - start


def compare(
    what: str, ours: Callable[[], object], rival_name: str, rival: Callable[[], object], runs: int | None = None
) -> None:
    """Run both in turn, and print a row; after one warm-up each, unless the number of runs is given."""
    if runs is None:
        ours(), rival()
    pairs = [(measured(ours), measured(rival)) for _ in range(runs or RUNS)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    low, high = min(b / a for a, b in pairs), max(b / a for a, b in pairs)
    print(
        f"| {what} | {mine:.3f} | {rival_name} | {theirs:.3f} | {ratio:.1f} ({low:.1f}..{high:.1f}) |", flush=True
    )


def buildings(count: int, spread: float = 0.04) -> list[shapely.Polygon]:
    """Turned rectangles of 10 to 30 m, in degrees."""
    rng = np.random.default_rng(1)
    centres = rng.uniform((4.8, 45.7), (4.8 + spread, 45.7 + spread), (count, 2))
    sizes = rng.uniform(5, 15, (count, 2)) / (78000, 111000)
    return [
        shapely.affinity.rotate(shapely.box(x - w, y - h, x + w, y + h), angle)
        for (x, y), (w, h), angle in zip(centres, sizes, rng.uniform(0, 90, count), strict=True)
    ]


def write_geojson(path: Path, polygons: list[shapely.Polygon]) -> None:
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(p)} for p in polygons]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def bench_cover(folder: Path) -> None:
    from rsp.components.cover.tool import cover

    polygons = buildings(5000)
    write_geojson(folder / "features.json", polygons)

    def naive() -> None:
        read = [
            shapely.geometry.shape(f["geometry"])
            for f in json.loads((folder / "features.json").read_text())["features"]
        ]
        {
            tile
            for polygon in read
            for tile in mercantile.tiles(*polygon.bounds, ZOOM)
            if polygon.intersects(shapely.box(*mercantile.bounds(tile)))
        }

    compare(
        "cover: 5,000 buildings at zoom 18",
        lambda: cover(str(folder / "features.json"), [folder / "cover"], zoom=ZOOM),
        "mercantile.tiles and shapely",
        naive,
    )
    country = [shapely.Point(10, 47).buffer(2, quad_segs=500)]
    write_geojson(folder / "country.json", country)

    def covered() -> None:
        tiles = mercantile.tiles(*country[0].bounds, 12)
        {tile for tile in tiles if country[0].intersects(shapely.box(*mercantile.bounds(tile)))}

    compare(
        "cover: a country at zoom 12",
        lambda: cover(str(folder / "country.json"), [folder / "cover"], zoom=12),
        "mercantile.tiles and shapely",
        covered,
    )


def bench_archive(folder: Path) -> None:
    from pmtiles.reader import MmapSource, Reader

    from rsp.shared.tileset import open_reader, open_writer

    tiles = [Tile(x, y, 16) for x in range(150) for y in range(150)]
    rng = np.random.default_rng(2)
    with open_writer(folder / "tiles.pmtiles", "png") as writer:
        for tile in tiles:
            writer.write(tile, rng.bytes(200))
    chosen = [tiles[int(index)] for index in rng.integers(0, len(tiles), 300)]

    def ours() -> None:
        with open_reader(folder / "tiles.pmtiles") as reader:
            for tile in chosen:
                reader.read(tile)

    def theirs() -> None:
        with (folder / "tiles.pmtiles").open("rb") as file:
            reader = Reader(MmapSource(file))
            for tile in chosen:
                reader.get(tile.z, tile.x, tile.y)

    compare("tile set: open an archive of 22,500, read 300", ours, "pmtiles.Reader.get", theirs)


def bench_ranges(folder: Path, count: int = 300_000) -> None:
    """A large archive, on the disk and behind an HTTP server."""
    import urllib.request

    from pmtiles.reader import MmapSource, Reader

    from rsp.shared.tileset import open_reader, open_writer
    from tests.ranges import RangeServer

    rng, path = np.random.default_rng(3), folder / "million.pmtiles"
    data = rng.bytes(1 << 20)
    with open_writer(path, "png") as writer:
        for number in range(count):
            writer.write(Tile(4000 + number % 1000, 5000 + number // 1000, 14), data[number : number + 40])
    # A hundred neighbours, as a screen of a map with its borders asks for them.
    chosen = [Tile(4300 + x, 5100 + y, 14) for x in range(10) for y in range(10)]
    results: dict[str, tuple[list[bytes], int, int]] = {}
    with RangeServer(folder) as server:

        def noted(name: str, read: Callable[[], list[bytes]]) -> None:
            server.asked.clear()
            server.sent = 0
            results[name] = read(), len(server.asked), server.sent

        def ours() -> list[bytes]:
            with open_reader(f"{server.url}/{path.name}") as reader:
                found = reader.read_many(chosen)
                return [found[tile] for tile in chosen]

        def get(offset: int, length: int) -> bytes:
            headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
            request = urllib.request.Request(f"{server.url}/{path.name}", headers=headers)
            with urllib.request.urlopen(request) as answer:
                return answer.read()

        def theirs() -> list[bytes]:
            reader = Reader(get)
            return [reader.get(tile.z, tile.x, tile.y) for tile in chosen]

        compare(
            f"tile set over HTTP: open an archive of {count:,}, read 100 (server included)",
            lambda: noted("ours", ours),
            "pmtiles.Reader over ranges",
            lambda: noted("theirs", theirs),
            runs=1,
        )
    (mine, requests, sent), (other, more, bytes_more) = results["ours"], results["theirs"]
    if mine != other:
        raise AssertionError("the two readers disagree")
    print(f"|   the same bytes; requests {requests} / {more}, bytes {sent:,} / {bytes_more:,} |", flush=True)

    found: list[list[bytes]] = []

    def opened() -> None:
        with open_reader(path) as reader:
            found.append([reader.read(tile) for tile in chosen])

    def mapped() -> None:
        with path.open("rb") as file:
            reader = Reader(MmapSource(file))
            found.append([reader.get(tile.z, tile.x, tile.y) for tile in chosen])

    compare(f"tile set: open an archive of {count:,}, read 100", opened, "pmtiles.Reader.get", mapped, runs=1)
    if any(each != mine for each in found):
        raise AssertionError("the two readers disagree")


def bench_rasterize(folder: Path) -> None:
    from rasterio.features import rasterize as burn
    from rasterio.transform import from_bounds

    from rsp.components.rasterize.tool import rasterize
    from rsp.shared.features import to_mercator
    from rsp.shared.images import encode_mask

    polygons = buildings(3000, 0.02)
    tiles = list(mercantile.tiles(4.8, 45.7, 4.815, 45.715, ZOOM))
    write_geojson(folder / "labels.json", polygons)
    write_cover(folder / "labels.csv", tiles)
    (folder / "config.toml").write_text(CONFIG)

    def ours() -> None:
        shutil.rmtree(folder / "labels", ignore_errors=True)
        rasterize(
            folder / "labels.csv", folder / "labels", geojson=str(folder / "labels.json"),
            config=folder / "config.toml", tile_size=256, workers=1, web_ui=False,
        )  # fmt: skip

    def rescan() -> None:
        projected = [to_mercator(polygon, 4326) for polygon in polygons]
        shutil.rmtree(folder / "rescan", ignore_errors=True)
        for tile in tiles:
            grid = from_bounds(*mercantile.xy_bounds(tile), 256, 256)
            mask = burn(((polygon, 1) for polygon in projected), (256, 256), transform=grid, dtype="uint8")
            path = folder / "rescan" / f"{tile.z}" / f"{tile.x}" / f"{tile.y}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_mask(mask, [(0, 0, 0), (255, 0, 0)]))

    compare(f"rasterize: 3,000 buildings on {len(tiles)} tiles", ours, "rasterio, all polygons a tile", rescan)


def bench_extract(folder: Path, pbf: Path) -> None:
    from rsp.components.extract.tool import extract

    if not shutil.which("ogr2ogr"):
        print("| extract | | ogr2ogr is not installed | | |")
        return
    out = folder / "ogr.geojsonl"

    def ogr() -> None:
        out.unlink(missing_ok=True)
        command = ["ogr2ogr", "-f", "GeoJSONSeq", out, pbf, "multipolygons", "-where", "building is not null"]
        subprocess.run(command, check=True, capture_output=True)

    compare(
        f"extract: buildings of {pbf.name}",
        lambda: extract(pbf, folder / "buildings.json", kind="building"),
        "ogr2ogr to GeoJSONSeq",
        ogr,
    )


def main() -> None:
    """Run every row that can be run here; an .osm.pbf may be given as the argument."""
    from tests.bench_predict import bench_predict  # torch, which the other rows do without

    print("| what | ours, CPU s | rival | rival, CPU s | rival / ours (lowest..highest) |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_cover(folder)
        bench_archive(folder)
        bench_ranges(folder)
        bench_rasterize(folder)
        bench_predict(folder)
        if len(sys.argv) > 1:
            bench_extract(folder, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
