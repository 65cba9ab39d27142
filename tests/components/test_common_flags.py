"""Flags that several tools have, in each of them: the page beside tiles, and how many work on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely.geometry import MultiPolygon, box, mapping

from rsp.shared.images import encode
from rsp.shared.tiles import Tile, bounds_lonlat, bounds_mercator, write_cover
from tests.tileserver import Reply, TileServer
from tests.tilesets import BLOCK, CONFIG, make_tileset, noise, squares

TILES = BLOCK[:2]
WRITERS = {
    "tile": "tile {0}/ortho.tif --zoom 15 --ts 64 --format png",
    "subset": "subset --dir {0}/images",
    "rasterize": "rasterize --geojson {0}/houses.json --config {0}/config.toml {0}/cover.csv",
    "compare": "compare --images {0}/images --format png",
    "download": "download --rate 1000 {1}/{{z}}/{{x}}/{{y}}.png {0}/cover.csv",
}
WORKERS = {name: words for name, words in WRITERS.items() if name != "download"} | {
    "subset": "subset --dir {0}/images --format webp",
    "compare list": "compare --mode list --labels {0}/labels --masks {0}/labels --config {0}/config.toml",
    "together": "tile {0}/images",
    "vectorize": "vectorize --type building --config {0}/config.toml {0}/labels",
    "changes": "changes --mapped {0}/houses.json --config {0}/config.toml --predicted {0}/labels",
    "evaluate": "evaluate --labels {0}/labels --masks {0}/labels --config {0}/config.toml",
    "info": "info --channels {0}/images --labels {0}/labels",
}


@pytest.fixture(scope="module")
def server():
    with TileServer(lambda path, before: Reply(encode(noise(Tile(1, 1, 1)), "png"))) as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What tools read, of two tiles."""
    root = tmp_path_factory.mktemp("in")
    make_tileset(root / "images", TILES)
    make_tileset(root / "labels", TILES, draw=squares)
    write_cover(root / "cover.csv", TILES)
    (root / "config.toml").write_text(CONFIG)
    (root / "own.html").write_text("{{base_url}} {{ext}} {{zoom}} {{tiles}}")
    houses = mapping(MultiPolygon([box(*bounds_lonlat(tile)) for tile in TILES]))
    (root / "houses.json").write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": houses}))
    west, _, east, north = bounds_mercator(TILES[0])
    grid = from_origin(west, north, (east - west) / 64, (east - west) / 64)
    options = {"width": 64, "height": 128, "count": 3, "dtype": "uint8", "crs": "EPSG:3857", "transform": grid}
    with rasterio.open(root / "ortho.tif", "w", driver="GTiff", **options) as file:
        file.write(np.full((3, 128, 64), 9, np.uint8))
    return root


@pytest.mark.parametrize("name", WRITERS)
def test_the_page_of_a_tile_set(rsp, made, server, tmp_path, name):
    words = WRITERS[name].format(made, server.url).split()
    own = ["--web_ui_template", made / "own.html"]
    assert rsp(*words, *own, "--out", tmp_path / "a").code == 0
    assert (tmp_path / "a/index.html").read_text() == "./ png 15 tiles.json"
    assert len(json.loads((tmp_path / "a/tiles.json").read_text())["features"]) == len(TILES)
    assert rsp(*words, *own, "--web_ui_base_url", "https://t.example/a", "--out", tmp_path / "b.pmtiles").code == 0
    assert (tmp_path / "b.pmtiles.html").read_text().startswith("https://t.example/a/ png 15 ")
    assert rsp(*words, *own, "--no_web_ui", "--out", tmp_path / "c").code == 0
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"15", "metadata.json"}


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "download"])
def test_what_is_there_stays_if_that_is_asked_for(rsp, made, tmp_path, name):
    words = [*WRITERS[name].format(made, "").split(), "--out", tmp_path / "out", "--no_web_ui"]
    assert rsp(*words).code == 0
    first, second = sorted((tmp_path / "out").rglob("*.png"))
    before = first.read_bytes(), second.read_bytes()
    kept = encode(noise(Tile(3, 3, 3)), "png")
    first.write_bytes(kept)
    second.unlink()
    assert rsp(*words, "--resume").code == 0
    assert (first.read_bytes(), second.read_bytes()) == (kept, before[1])
    assert rsp(*words).code == 0
    assert (first.read_bytes(), second.read_bytes()) == before


@pytest.mark.parametrize("name", WORKERS)
def test_who_says_how_many_work_is_heard(rsp, made, tmp_path, monkeypatch, name):
    """Nobody counts processors then."""
    words = WORKERS[name].format(made).split()
    out = (
        [] if name == "info" else ["--out", tmp_path / ("out.json" if name in ("vectorize", "changes") else "out")]
    )
    if name == "together":
        out = ["--out", tmp_path / "out.tif"]
    asked = []

    def count() -> int:
        asked.append(name)
        return 1

    for module in ("jobs", "parallel"):
        monkeypatch.setattr(f"rsp.shared.{module}.cpu_count", count)
    for module in ("subset.work", "info.channels", "tile.together"):
        monkeypatch.setattr(f"rsp.components.{module}.cpu_count", count, raising=False)
    assert rsp(*words, *out, "--workers", 1).code == 0
    assert asked == []
    assert rsp(*words, *out).code == 0
    assert asked != []
