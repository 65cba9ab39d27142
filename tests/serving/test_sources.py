"""Sources of live imagery: the same windows as `rsp predict` cuts, from every kind of place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from rsp.components.tile.tool import tile as tile_tool
from rsp.serving import sources
from rsp.serving.sources import NoTileError, UnfitError, open_source, parse_source
from rsp.shared.config import Channel, parse_config
from rsp.shared.errors import RasterError, SourceError, TileSetError, UsageError
from rsp.shared.images import decode, encode
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.windows import TileImages, read_window
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader
from tests.ranges import RangeServer
from tests.tileserver import Reply, TileServer
from tests.tilesets import BLOCK, CONFIG, make_tileset, noise

CONFIGURED = parse_config(tomllib.loads(CONFIG))
CHANNELS = CONFIGURED.channels


def card(**fields) -> ModelCard:
    known = {"channels": CHANNELS, "classes": CONFIGURED.classes, "tile_size": 64, "overlap": 16}
    return ModelCard(nn="unet", encoder="tiny", num_filters=32, **{**known, **fields})


def windows(path: Path, tiles: list[Tile], channels=CHANNELS, overlap: int = 16) -> list[np.ndarray]:
    """What `rsp predict --endpoint` sends of a tile set."""
    with open_reader(path) as reader:
        images = TileImages({channel.name: reader for channel in channels}, channels, raw=True)
        return [read_window(images, each, overlap) for each in tiles]


def check_equal(source: sources.Source, path: Path, tiles: list[Tile] = BLOCK) -> None:
    for each, wanted in zip(tiles, windows(path, tiles), strict=True):
        found, etag = source.window(each, CHANNELS, 16, 64)
        assert np.array_equal(found, wanted), each
        assert etag == source.etag(each, 16)


@pytest.fixture
def opened():
    """Open sources that are closed at the end."""
    found: list[sources.Source] = []

    def open_(text: str) -> sources.Source:
        found.append(open_source(text))
        return found[-1]

    yield open_
    for each in found:
        each.close()


def test_a_source_is_a_name_and_a_location_with_options():
    spec = parse_source("a=https://x/{z}/{x}/{y}.png?key=1&b=2#zooms=3-5&attribution=City+of+%C3%89x")
    assert (spec.name, spec.location) == ("a", "https://x/{z}/{x}/{y}.png?key=1&b=2")
    assert spec.zooms() == (3, 5) and spec.options["attribution"] == "City of Éx"
    assert parse_source("a=/data/no #1.pmtiles").location == "/data/no #1.pmtiles"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("roofs", "NAME=LOCATION"),
        ("=x", "a name has letters"),
        ("a/b=x", "a name has letters"),
        ("static=x", "not one of"),
        ("a=x#zoom=3", "unknown option 'zoom'"),
        ("a=http://h/{z}/{x}/{y}#zooms=5-3", "the lower first"),
        ("a=http://h/{z}/{x}/{y}#zooms=x", "lowest and highest zoom"),
        ("a=http://h/{z}/{x}/{y}#bounds=1,2,3", "west,south,east,north"),
        ("a=http://h/{z}/{x}", "lacks {y}"),
        ("a=http://h/{z}/{x}/{y}#rate=0", "above 0"),
        ("a=http://h/{z}/{x}/{y}#range=0,1", "values that become"),
        ("a=x.tif#range=5,1", "lesser first"),
    ],
)
def test_what_is_no_source_is_refused(text, says):
    with pytest.raises(UsageError) as error:
        open_source(text)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["tiles", "tiles.pmtiles"])
def test_tile_sets_give_the_windows_of_predict(tmp_path, opened, name):
    path = make_tileset(tmp_path / name, [tile for tile in BLOCK if tile != Tile(101, 201, 15)])
    source = opened(f"a={path}#attribution=me")
    assert source.attribution == "me" and source.about() == (3, "uint8")
    assert (source.extent.low, source.extent.high) == (15, 15) and source.first.tile_size == 64
    check_equal(source, path, [tile for tile in BLOCK if tile != Tile(101, 201, 15)])
    with pytest.raises(NoTileError, match="no tile 15/101/201"):
        source.check(Tile(101, 201, 15))
    with pytest.raises(NoTileError, match="it has zooms 15 to 15 within"):
        source.check(Tile(0, 0, 3))
    assert source.picture(BLOCK[0], "png") == encode(noise(BLOCK[0]), "png")
    assert np.asarray(decode(source.picture(BLOCK[0], "webp"))).shape == (64, 64, 3)


def test_a_changed_tile_of_a_folder_is_seen_at_once_in_its_neighbours_too(tmp_path, opened):
    path = make_tileset(tmp_path / "tiles")
    source = opened(f"a={path}")
    check_equal(source, path)
    before = source.etag(Tile(100, 200, 15), 16), source.etag(Tile(103, 202, 15), 16)
    (path / "15/101/201.png").write_bytes(encode(255 - noise(Tile(101, 201, 15)), "png"))
    check_equal(source, path)
    assert source.etag(Tile(100, 200, 15), 16) != before[0] and source.etag(Tile(103, 202, 15), 16) == before[1]
    (path / "15/101/201.png").unlink()
    check_equal(source, path, [tile for tile in BLOCK if tile != Tile(101, 201, 15)])


def test_a_replaced_archive_is_opened_again(tmp_path, opened):
    path = make_tileset(tmp_path / "a.pmtiles")
    source = opened(f"a={path}")
    before = source.etag(BLOCK[0])
    check_equal(source, path)
    make_tileset(tmp_path / "b.pmtiles", draw=lambda tile: 255 - noise(tile))
    (tmp_path / "b.pmtiles").replace(path)
    source.refresh()
    assert source.etag(BLOCK[0]) != before
    check_equal(source, path)
    path.unlink()
    source._looked = float("-inf")
    with pytest.raises(SourceError, match="No such file"):
        source.refresh()
    source.window(BLOCK[0], CHANNELS, 16, 64)  # what was open stays


def test_a_folder_of_channels_is_one_source(tmp_path, opened):
    make_tileset(tmp_path / "images")
    make_tileset(tmp_path / "height.pmtiles", draw=lambda tile: noise(tile, bands=1))
    source = opened(f"a={tmp_path}")
    assert list(source.layers) == ["images", "height"]
    both = (CHANNELS[0], Channel("height", (1,), (0.5,), (0.5,)))
    window, _ = source.window(BLOCK[5], both, 16, 64)
    assert window.shape == (96, 96, 4)
    source.check_fit(card(channels=both))
    with pytest.raises(UnfitError, match="lacks slope"):
        source.check_fit(card(channels=(*both, Channel("slope", (1,), (0.5,), (0.5,)))))


def test_what_a_model_cannot_take_is_told_beforehand(tmp_path, opened):
    source = opened(f"a={make_tileset(tmp_path / 'tiles')}")
    source.check_fit(card())
    with pytest.raises(UnfitError, match="64 pixels a side, the model takes 128"):
        source.check_fit(card(tile_size=128))
    wide = Channel("images", (1, 2, 3), (0.5,) * 3, (0.5,) * 3, "uint16", 65535.0)
    with pytest.raises(UnfitError, match="holds uint8 values, the model takes uint16"):
        source.check_fit(card(channels=(wide,)))
    with pytest.raises(UnfitError, match="has 3 bands, the model takes band 4"):
        source.check_fit(card(channels=(Channel("images", (4,), (0.5,), (0.5,)),)))


def test_there_must_be_something(tmp_path, opened):
    with pytest.raises(TileSetError, match="no tile set at"):
        opened(f"a={tmp_path / 'none.pmtiles'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TileSetError, match="no tile in"):
        opened(f"a={tmp_path / 'empty'}")
    with pytest.raises((RasterError, SourceError), match="cannot read"):
        opened(f"a={tmp_path / 'none.tif'}")


def serve_tiles(path: Path, trouble: dict[str, Reply]) -> TileServer:
    """The tiles of a directory over HTTP; what is not there is a 404, and `trouble` stands for some."""

    def answer(asked: str, before: int) -> Reply:
        if asked in trouble:
            return trouble[asked]
        file = path / asked.lstrip("/")
        return (
            Reply(file.read_bytes(), headers={"Content-Type": "image/png"}) if file.exists() else Reply(status=404)
        )

    return TileServer(answer)


def test_a_tile_server_gives_the_windows_of_predict_and_its_faults_are_no_missing_tiles(tmp_path, opened):
    path = make_tileset(tmp_path / "tiles", [tile for tile in BLOCK if tile != Tile(101, 201, 15)])
    trouble: dict[str, Reply] = {}
    with serve_tiles(path, trouble) as server:
        source = opened(f"a={server.url}/{{z}}/{{x}}/{{y}}.png#zooms=10-15&rate=10000")
        trouble["/15/100/200.png"] = Reply(status=500)
        with pytest.raises(SourceError, match="does not give 15/100/200: HTTP 500"):
            source.window(Tile(100, 201, 15), CHANNELS, 16, 64)
        trouble["/15/100/200.png"] = Reply(b"<html>Log in</html>", headers={"Content-Type": "text/html"})
        with pytest.raises(SourceError, match="not an image: Log in"):
            source.window(Tile(100, 201, 15), CHANNELS, 16, 64)
        trouble.clear()
        check_equal(source, path, [tile for tile in BLOCK if tile != Tile(101, 201, 15)])
        with pytest.raises(NoTileError):
            source.window(Tile(101, 201, 15), CHANNELS, 16, 64)
        with pytest.raises(NoTileError):
            source.check(Tile(0, 0, 16))
        assert server.asked["/15/102/201.png"] == 1  # of all windows that it is in


def test_an_archive_over_http_or_in_a_store_is_read_by_ranges_and_followed(tmp_path, opened, s3):
    path = make_tileset(tmp_path / "a.pmtiles")
    make_tileset(tmp_path / "b.pmtiles", draw=lambda tile: 255 - noise(tile))
    store = open_storage(f"s3://{s3.bucket()}/imagery")
    store.upload("town.pmtiles", path)
    with RangeServer(tmp_path / "www") as server:
        (tmp_path / "www").mkdir()
        shutil.copy(path, tmp_path / "www" / "town.pmtiles")
        for address, replace in (
            (f"{server.url}/town.pmtiles", lambda new: shutil.copy(new, tmp_path / "www" / "town.pmtiles")),
            (f"{store.address}/town.pmtiles", lambda new: store.upload("town.pmtiles", new)),
        ):
            source = opened(f"a={address}")
            check_equal(source, path)
            with pytest.raises(NoTileError):
                source.window(Tile(1, 1, 15), CHANNELS, 16, 64)
            before = source.etag(BLOCK[0])
            replace(tmp_path / "b.pmtiles")
            source._images.clear()  # as if the tiles had not been read yet: reading finds the change by itself
            check_equal(source, tmp_path / "b.pmtiles")
            assert source.etag(BLOCK[0]) != before
            replace(path)
            source._looked = float("-inf")
            source.refresh()
            check_equal(source, path)


def test_a_raster_is_read_over_http_and_from_a_store(tmp_path, opened, s3):
    pixels = np.random.default_rng(1).integers(1, 255, (3, 300, 300), np.uint8)
    path = tmp_path / "ortho.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=300, height=300, count=3, dtype="uint8", crs="EPSG:32631",
        transform=from_origin(640000, 5065000, 2, 2), tiled=True, blockxsize=128, blockysize=128,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    local = opened(f"a={path}")
    sample = local.first.sample()
    store = open_storage(f"s3://{s3.bucket()}/rasters")
    store.upload("ortho.tif", path)
    with RangeServer(tmp_path) as server:
        for address in (f"{server.url}/ortho.tif", f"{store.address}/ortho.tif"):
            source = opened(f"b={address}")
            assert source.extent == local.extent
            assert np.array_equal(
                source.window(sample, CHANNELS, 16, 64)[0], local.window(sample, CHANNELS, 16, 64)[0]
            )


def test_a_raster_is_cut_as_rsp_tile_cuts_it(tmp_path, opened):
    pixels = np.random.default_rng(1).integers(1, 4000, (4, 300, 300), np.uint16)
    path = tmp_path / "ortho.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=300, height=300, count=4, dtype="uint16", crs="EPSG:32631",
        transform=from_origin(640000, 5065000, 2, 2),
    ) as raster:  # fmt: skip
        raster.write(pixels)
    tile_tool([str(path)], tmp_path / "tiles", zoom=16, tile_size=64, bands=[3, 2, 1], value_range=[0, 4095],
              tile_format="png", workers=1, web_ui=False)  # fmt: skip
    source = opened(f"a={path}#bands=3,2,1&range=0,4095")
    assert source.about() == (3, "uint8") and source.extent.low <= 16 <= source.extent.high
    with open_reader(tmp_path / "tiles") as reader:
        tiles = reader.tiles()
    assert len(tiles) >= 4
    check_equal(source, tmp_path / "tiles", tiles)
    west, north = min(tile.x for tile in tiles), min(tile.y for tile in tiles)
    with pytest.raises(NoTileError):
        source.window(Tile(west - 3, north - 3, 16), CHANNELS, 16, 64)
    source.check_fit(card())
    source.check_fit(card(tile_size=512))  # it makes tiles of any size
    raw = opened(f"b={path}")
    with pytest.raises(UnfitError, match=r"uint16 values, the model takes uint8 \(a raster is scaled by #range"):
        raw.check_fit(card(channels=(Channel("images", (1, 2, 3), (0.5,) * 3, (0.5,) * 3, "uint8", 255.0),)))
    assert decode(raw.picture(tiles[0], "png")).dtype == np.uint8
    shutil.copy(path, tmp_path / "new.tif")
    before = source.etag(tiles[0])
    (tmp_path / "new.tif").replace(path)
    source._looked = float("-inf")
    source.refresh()
    assert source.etag(tiles[0]) != before
    check_equal(source, tmp_path / "tiles", tiles)


def test_the_front_needs_no_torch():
    code = (
        "import sys, rsp.serving.sources, rsp.serving.sources.rasters, rsp.serving.sources.servers; "
        "import rsp.serving.sources.remote; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
