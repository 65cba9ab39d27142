"""rsp tile: rasters of every sort to tiles, checked against an independent projection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mercantile
import numpy as np
import pytest
import rasterio
import rasterio.rpc
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import reproject, transform

from rsp.components.tile.component import tile as tile_component
from rsp.components.tile.tool import tile
from rsp.shared.config import parse_tables
from rsp.shared.errors import ChangedError, ConfigError, CoverError, RasterError, UsageError
from rsp.shared.footprints import LEAST_CACHE, MOST_CACHE, footprint
from rsp.shared.images import decode, decode_mask, encode, sniff
from rsp.shared.locations import location, pinned
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_reader
from tests.s3 import moto
from tests.tilesets import COLORS, CONFIG

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

UTM = "EPSG:32631"
ZOOM = 17  # at 45 degrees 256 px tiles of it have 0.84 m on the ground
SIDE = 64  # pixels of a tile in these tests
EAST, NORTH, PIXEL = 640000.0, 5065000.0, 2.0


def waves(bands: int = 3, width: int = 400, height: int = 300, high: float = 250.0, dtype="uint8") -> np.ndarray:
    """A smooth picture of values from 5 up, (bands, height, width)."""
    y, x = np.mgrid[0:height, 0:width]
    layers = [(np.sin(x / 37 + band) + np.cos(y / 29 - band) + 2) / 4 for band in range(bands)]
    return (np.stack(layers) * (high - 5) + 5).astype(dtype)


def blocks(width: int = 400, height: int = 300) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return (((x // 23) + (y // 17)) % 2).astype("uint8")[np.newaxis]


def write(
    path: Path, pixels: np.ndarray, *, crs: str | None = UTM, left: float = EAST, mask=None, **options
) -> Path:
    options = {"transform": from_origin(left, NORTH, PIXEL, PIXEL), **options}
    colors = options.pop("colorinterp", None)
    with rasterio.open(
        path, "w", driver="GTiff", width=pixels.shape[2], height=pixels.shape[1], count=len(pixels),
        dtype=pixels.dtype, crs=crs, **options,
    ) as raster:  # fmt: skip
        raster.write(pixels)
        if colors:
            raster.colorinterp = colors
        if mask is not None:
            raster.write_mask(mask)
    return path


def content(path: Path) -> dict[Tile, bytes]:
    with open_reader(path) as reader:
        return {found: reader.read(found) for found in reader.tiles()}


def projected(
    found: Tile, pixels: np.ndarray, side: int, resampling=Resampling.bilinear, left: float = EAST, **more
):
    """The same tile by another way: one warp of the whole raster to this tile, without a virtual raster."""
    target = np.zeros((len(pixels), side, side), pixels.dtype)
    reproject(
        pixels, target, src_crs=UTM, src_transform=from_origin(left, NORTH, PIXEL, PIXEL), dst_crs="EPSG:3857",
        dst_transform=from_bounds(*mercantile.xy_bounds(found), side, side), resampling=resampling, **more,
    )  # fmt: skip
    return np.moveaxis(target, 0, 2)


def run(raster: Path, out: Path, **options):
    return tile([str(raster)], out, **{"zoom": ZOOM, "tile_size": SIDE, "workers": 1, "web_ui": False, **options})


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "config.toml"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 3, 6])
def test_pixels_agree_with_an_independent_projection(tmp_path, bands, dtype):
    pixels = waves(bands, dtype=dtype)
    run(write(tmp_path / "r.tif", pixels), tmp_path / "out", tile_format="tif")
    tiles = content(tmp_path / "out")
    assert len(tiles) > 10
    far = total = 0
    for found, data in tiles.items():
        image, expected = decode(data), projected(found, pixels, SIDE)
        assert image.dtype == dtype and image.shape == (SIDE, SIDE, bands)
        inside = (expected != 0) & (image != 0)
        assert ((expected != 0) ^ (image != 0)).mean() < 0.002  # the outline
        far += (np.abs(image.astype(float) - expected)[inside] > 1).sum()
        total += inside.sum()
    assert total > 40_000 * bands and far / total < 0.001


def test_the_tiles_are_those_of_the_grid(tmp_path):
    """Each pixel of a raster lies where its coordinates say, whatever the tile."""
    pixels = np.zeros((1, 300, 400), "uint8") + 50
    pixels[0, 120:124, 200:204] = 255
    run(write(tmp_path / "r.tif", pixels), tmp_path / "out", tile_format="png")
    (x,), (y,) = transform(UTM, "EPSG:4326", [EAST + 202 * PIXEL], [NORTH - 122 * PIXEL])
    spot = mercantile.tile(x, y, ZOOM)
    west, south, east, north = mercantile.bounds(spot)
    column, row = (x - west) / (east - west) * SIDE, (north - y) / (north - south) * SIDE
    image = decode(content(tmp_path / "out")[spot])[:, :, 0]
    assert image[int(row), int(column)] > 200
    lit = {found for found, data in content(tmp_path / "out").items() if decode(data).max() > 200}
    assert spot in lit and len(lit) <= 2


def test_neighbouring_tiles_meet(tmp_path):
    pixels = waves(1, dtype="float32")
    run(write(tmp_path / "r.tif", pixels), tmp_path / "out")
    tiles = {found: decode(data)[:, :, 0] for found, data in content(tmp_path / "out").items()}
    pairs = [(found, found._replace(x=found.x + 1)) for found in tiles if found._replace(x=found.x + 1) in tiles]
    steps = [np.abs(tiles[a][8:-8, -1] - tiles[b][8:-8, 0]) for a, b in pairs if tiles[a].all() and tiles[b].all()]
    assert len(steps) >= 3 and max(step.max() for step in steps) < 10


@pytest.mark.parametrize("source", [100.0, 30.0])
def test_labels_are_never_interpolated(tmp_path, config, source):
    """Bug 18: bilinear labels invented classes."""
    pixels = blocks()
    run(write(tmp_path / "r.tif", pixels), tmp_path / "out", kind="label", config=config)
    wrong = total = 0
    for found, data in content(tmp_path / "out").items():
        mask = decode_mask(data)
        assert set(np.unique(mask)) <= {0, 1}
        wrong += (mask != projected(found, pixels, SIDE, Resampling.nearest)[:, :, 0]).sum()
        total += mask.size
        image = Image.open(tmp_path / "out" / f"{found.z}/{found.x}/{found.y}.png")
        assert image.mode == "P" and image.getpalette()[:6] == [*COLORS[0], *COLORS[1]]  # the plain palette
    assert wrong / total < 0.005


def test_no_class_is_invented_between_two_others(tmp_path, config):
    """The mean of the classes 0 and 2 would be a third one."""
    config.write_text(
        config.read_text().replace("[model]", '[[classes]]\ntitle = "road"\ncolor = "grey"\n[model]')
    )
    run(write(tmp_path / "r.tif", blocks() * 2), tmp_path / "out", kind="label", config=config)
    found = [np.unique(decode_mask(data)).tolist() for data in content(tmp_path / "out").values()]
    assert [0, 2] in found and {value for values in found for value in values} == {0, 2}


def test_classes_beyond_the_configuration_are_named(tmp_path, config, rsp):
    pixels = blocks()
    pixels[0, 150, 200] = 7
    raster = write(tmp_path / "r.tif", pixels)
    ran = rsp(
        "tile", "--zoom", ZOOM, "--ts", 64, "--label", "--config", config, raster, tmp_path / "out", "--workers", 1
    )
    assert ran.code == 3 and "it holds class 7, the configuration has 2 (0 to 1)" in ran.stderr
    assert len(read_cover(tmp_path / "out.failed.csv")) == 1
    pixels[:] = 9
    with pytest.raises(RasterError, match=r"no tile could be made; .* it holds class 9"):
        run(write(tmp_path / "r.tif", pixels), tmp_path / "out2", kind="label", config=config)
    assert not (tmp_path / "out2").exists()


def test_labels_must_be_one_band_of_whole_numbers(tmp_path, config):
    three = write(tmp_path / "3.tif", waves(3))
    with pytest.raises(RasterError, match=r"labels are one band of class indices, .*3.tif has 3"):
        run(three, tmp_path / "out", kind="label", config=config)
    with pytest.raises(RasterError, match=r"labels are whole numbers, .* holds float32"):
        run(write(tmp_path / "f.tif", waves(1, dtype="float32")), tmp_path / "out", kind="label", config=config)
    with pytest.raises(UsageError, match="without --format and --range"):
        run(three, tmp_path / "out", kind="label", config=config, tile_format="webp")
    with pytest.raises(ConfigError):
        run(three, tmp_path / "out", kind="label", config=tmp_path / "none")
    stack = np.concatenate([waves(2), blocks()])
    assert (
        run(write(tmp_path / "s.tif", stack), tmp_path / "out", kind="label", config=config, bands=[3]).tiles > 10
    )


def test_no_data_in_labels_is_the_background(tmp_path, config):
    pixels = blocks()
    pixels[0, :, :150] = 255
    run(write(tmp_path / "r.tif", pixels, nodata=255), tmp_path / "out", kind="label", config=config)
    assert {value for data in content(tmp_path / "out").values() for value in np.unique(decode_mask(data))} == {
        0,
        1,
    }


def test_the_command_line_of_the_seed(tmp_path, rsp):
    """Bug 18: `rsp tile` crashed on any input."""
    raster = write(tmp_path / "r.tif", waves())
    ran = rsp("tile", raster, tmp_path / "out", "--zoom", 16, "--tile_size", 128, "--type", "image")
    assert ran.code == 0 and "tile_format: webp" in ran.stderr
    assert {decode(data).shape for data in content(tmp_path / "out").values()} == {(128, 128, 3)}
    assert (tmp_path / "out/index.html").exists()
    ran = rsp("tile", raster, "--out", tmp_path / "out.pmtiles", "--zoom", 16, "--ts", 128, "--no_web_ui")
    assert ran.code == 0 and content(tmp_path / "out.pmtiles") == content(tmp_path / "out")
    assert rsp("tile", raster, "--zoom", 16).code == 2
    assert rsp("tile", raster, tmp_path / "o").code == 2


@pytest.mark.parametrize(
    ("bands", "dtype", "tile_format"),
    [(1, "uint8", "png"), (3, "uint8", "webp"), (5, "uint8", "tif"), (2, "uint16", "tif"), (3, "uint16", "webp"),
     (3, "float32", "tif"), (1, "int16", "tif")],
)  # fmt: skip
def test_formats_by_default(tmp_path, bands, dtype, tile_format):
    assert run(write(tmp_path / "r.tif", waves(bands, dtype=dtype)), tmp_path / "out").tile_format == tile_format


@pytest.mark.parametrize("tile_format", ["png", "jpg", "webp"])
def test_formats_hold_the_same_pixels(tmp_path, tile_format):
    raster = write(tmp_path / "r.tif", waves())
    run(raster, tmp_path / "tif", tile_format="tif")
    assert run(raster, tmp_path / "out", tile_format=tile_format).tile_format == tile_format
    expected = {found: encode(decode(data), tile_format) for found, data in content(tmp_path / "tif").items()}
    assert content(tmp_path / "out") == expected and set(map(sniff, expected.values())) == {tile_format}


def test_formats_that_cannot_hold_a_raster(tmp_path):
    with pytest.raises(
        UsageError, match="webp cannot hold 5 bands; take --format tif, or choose one or three with --bands"
    ):
        run(write(tmp_path / "r.tif", waves(5)), tmp_path / "out", tile_format="webp")


def test_bands_are_picked_in_order(tmp_path):
    pixels = waves(5)
    raster = write(tmp_path / "r.tif", pixels)
    run(raster, tmp_path / "out", bands=[5, 1, 3], tile_format="png")
    for found, data in content(tmp_path / "out").items():
        difference = decode(data).astype(int) - projected(found, pixels[[4, 0, 2]], SIDE)
        assert (np.abs(difference) > 1).mean() < 0.005
    with pytest.raises(RasterError, match="has no band 6; it has 1 to 5"):
        run(raster, tmp_path / "out", bands=[6])


def test_a_fourth_band_that_is_called_alpha(tmp_path):
    """GDAL calls it so in any GeoTIFF of four bytes a pixel: left out, unless it is asked for as data."""
    pixels = waves(4)
    pixels[3, :, :200] = 0
    raster = write(tmp_path / "r.tif", pixels)
    with rasterio.open(raster) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    run(raster, tmp_path / "all", tile_format="tif", bands=[1, 2, 3, 4])
    for found, data in content(tmp_path / "all").items():
        difference = decode(data).astype(int) - projected(found, pixels, SIDE)
        assert (np.abs(difference) > 1).mean() < 0.005
    assert run(raster, tmp_path / "rgb").tile_format == "webp"
    assert 0 < len(content(tmp_path / "rgb")) < len(content(tmp_path / "all"))


@pytest.mark.parametrize(("high", "depth"), [(200, 8), (900, 10), (3900, 12), (60000, 16)])
def test_16_bits_are_scaled_by_the_depth_of_the_sensor(tmp_path, high, depth):
    """Bug 18: a division by 256 left pictures of 12-bit sensors dark."""
    pixels = waves(3, high=high, dtype="uint16")
    result = run(write(tmp_path / "r.tif", pixels), tmp_path / "out", tile_format="png")
    assert result.value_range == [0.0, 2.0**depth - 1]
    expected = np.rint(pixels * (255 / (2**depth - 1))).astype("uint8")
    for found, data in content(tmp_path / "out").items():
        assert (np.abs(decode(data).astype(int) - projected(found, expected, SIDE)) > 2).mean() < 0.01


def test_a_stated_range(tmp_path, rsp):
    pixels = waves(1, high=1.0, dtype="float32") * 0 + np.float32(0.25)
    pixels[0, :100] = -3
    pixels[0, 200:] = 9
    raster = write(tmp_path / "r.tif", pixels)
    ran = rsp("tile", raster, tmp_path / "out", "--zoom", 17, "--ts", 64, "--range", "0,1", "--format", "png")
    assert ran.code == 0
    values = np.concatenate([decode(data).ravel() for data in content(tmp_path / "out").values()])
    counts = np.bincount(values, minlength=256)
    assert counts[64] > 1000 and counts[0] > 1000 and counts[255] > 1000
    for wrong in ("1,0", "1", "a,b", "1,1"):
        assert rsp("tile", raster, tmp_path / "o", "--zoom", 17, "--range", wrong).code == 2


def test_border_tiles_are_kept_unless_no_data_is_given(tmp_path, rsp):
    """Issue 75 of the seed's successor: tiles at the border were dropped in silence."""
    raster = write(tmp_path / "r.tif", waves())
    everything = run(raster, tmp_path / "all")
    ran = rsp("tile", raster, tmp_path / "inner", "--zoom", ZOOM, "--ts", SIDE, "--no_data", 0, "--no_web_ui")
    inner, outer = content(tmp_path / "inner"), content(tmp_path / "all")
    assert ran.code == 0 and f"border: {len(outer) - len(inner)}," in ran.stderr
    assert 0 < len(inner) < len(outer) == everything.tiles and everything.border == 0
    for found in outer:
        image = projected(found, waves(), SIDE)
        edge = any((line == 0).all() for line in (image[0], image[-1], image[:, 0], image[:, -1]))
        assert (found in inner) != edge
    with pytest.raises(RasterError, match=r"the rasters give no tile: .* a border of the value of --no_data"):
        run(write(tmp_path / "7.tif", waves() * 0 + 7), tmp_path / "none", no_data=7)
    assert rsp("tile", raster, tmp_path / "o", "--zoom", ZOOM, "--no_data", 256).code == 2


def test_tiles_without_any_pixel_are_dropped_and_counted(tmp_path):
    pixels = waves()
    pixels[:, :, :200] = 0
    result = run(write(tmp_path / "r.tif", pixels, nodata=0), tmp_path / "out")
    whole = run(write(tmp_path / "w.tif", waves()), tmp_path / "whole")
    assert result.empty - whole.empty == whole.tiles - result.tiles > 3
    with pytest.raises(RasterError, match="the rasters give no tile: 20 would be without data"):
        run(write(tmp_path / "e.tif", waves() * 0, nodata=0), tmp_path / "empty")


def test_black_is_a_colour(tmp_path):
    """Bug 18: value 0 was taken for empty, and black pixels were lost."""
    black = waves() * 0
    assert run(write(tmp_path / "r.tif", black), tmp_path / "out").tiles > 10
    one = waves()
    one[0] = 0  # no red anywhere, and 0 is no data: still colours, since green and blue say so
    run(write(tmp_path / "n.tif", one, nodata=0), tmp_path / "n", tile_format="png")
    values = np.concatenate([decode(data).reshape(-1, 3) for data in content(tmp_path / "n").values()])
    assert values[:, 0].max() == 0 and (values[:, 1] > 0).mean() > 0.5


MASKS = ["alpha", "mask", "nodata", "nan"]


@pytest.mark.parametrize("how", MASKS)
def test_overlapping_rasters_are_composed_by_what_they_have(tmp_path, how):
    """The first on top, the second where the first has nothing; black stays black."""
    height, width = 300, 400
    hole = np.zeros((height, width), bool)
    hole[100:200, 100:300] = True
    if how == "nan":
        top = np.full((1, height, width), 0.0, "float32")
        top[0, hole] = np.nan
        below = np.full((1, height, width), 100.0, "float32")
        options = {}
    else:
        top, below = np.zeros((3, height, width), "uint8"), np.full((3, height, width), 100, "uint8")
        options = {}
        if how == "alpha":
            top = np.concatenate([top, np.where(hole, 0, 255).astype("uint8")[np.newaxis]])
            options["colorinterp"] = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        elif how == "mask":
            options["mask"] = ~hole
        else:
            top[:, hole] = 255
            options["nodata"] = 255
    rasters = [str(write(tmp_path / "1.tif", top, **options)), str(write(tmp_path / "2.tif", below))]
    result = tile(rasters, tmp_path / "out", zoom=ZOOM, tile_size=SIDE, tile_format="tif", workers=1, web_ui=False)
    where = np.where(hole, 100, 0).astype("uint8")[np.newaxis]
    wrong = total = 0
    for found, data in content(tmp_path / "out").items():
        image = decode(data)
        assert image.shape[2] == len(below) and set(np.unique(image)) <= {0, 100}
        wrong += (image[:, :, 0] != projected(found, where, SIDE, Resampling.nearest)[:, :, 0]).sum()
        total += SIDE * SIDE
    assert wrong / total < 0.02 and result.failed == {}
    swapped = tile(
        rasters[::-1], tmp_path / "o2", zoom=ZOOM, tile_size=SIDE, tile_format="tif", workers=1, web_ui=False
    )
    assert swapped.tiles == result.tiles
    inner = max(content(tmp_path / "o2"), key=lambda found: decode(content(tmp_path / "o2")[found]).sum())
    assert (decode(content(tmp_path / "o2")[inner]) == 100).all()


def test_a_mosaic_of_neighbours(tmp_path):
    pixels = waves(3)
    left, right = pixels[:, :, :250], pixels[:, :, 200:]
    write(tmp_path / "a.tif", left)
    write(tmp_path / "b.tif", right, left=EAST + 200 * PIXEL)
    result = tile(
        [str(tmp_path / "*.tif")], tmp_path / "out", zoom=ZOOM, tile_size=SIDE, tile_format="png", web_ui=False
    )
    assert result.tiles == run(write(tmp_path / "w.tiff", pixels), tmp_path / "whole", tile_format="png").tiles
    for found, data in content(tmp_path / "out").items():
        assert (np.abs(decode(data).astype(int) - decode(content(tmp_path / "whole")[found])) > 2).mean() < 0.01


def test_rasters_that_differ_are_named(tmp_path):
    one = write(tmp_path / "1.tif", waves(3))
    for name, other in (("b.tif", waves(5)), ("t.tif", waves(3, dtype="uint16"))):
        with pytest.raises(
            RasterError, match=rf"must be alike: .*1.tif has the bands 1, 2, 3 of uint8, .*{name} has"
        ):
            tile([str(one), str(write(tmp_path / name, other))], tmp_path / "out", zoom=ZOOM)


def test_a_raster_without_georeference_says_what_to_do(tmp_path, rsp):
    raster = write(tmp_path / "r.tif", waves(), crs=None, transform=Affine.identity())
    ran = rsp("tile", raster, tmp_path / "out", "--zoom", 17)
    assert (
        ran.code == 1 and f"{raster} has no georeference" in ran.stderr and "gdal_translate -a_srs" in ran.stderr
    )
    raster = write(tmp_path / "c.tif", waves(), crs=None)
    ran = rsp("tile", raster, tmp_path / "out", "--zoom", 17)
    assert ran.code == 1 and "has corners and no CRS" in ran.stderr and "gdal_translate -a_srs" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_rasters_that_cannot_be_read(tmp_path, rsp):
    (tmp_path / "r.tif").write_text("no raster")
    for name in ("r.tif", "none.tif", "*.jp2"):
        ran = rsp("tile", tmp_path / name, tmp_path / "out", "--zoom", 17)
        assert ran.code == 1 and "cannot read the raster" in ran.stderr and name in ran.stderr


def test_a_damaged_part_fails_its_tiles_and_no_other(tmp_path, rsp):
    pixels = waves(3, 1600, 1200)
    raster = write(tmp_path / "r.tif", pixels, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    whole = content_of(raster, tmp_path / "whole")
    with rasterio.open(raster) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_3_2", "TIFF", bidx=1))
    data = bytearray(raster.read_bytes())
    data[offset : offset + 40] = bytes(40)
    raster.write_bytes(data)
    ran = rsp("tile", raster, tmp_path / "out", "--zoom", ZOOM, "--ts", SIDE, "--format", "png", "--workers", 1)
    failed = read_cover(tmp_path / "out.failed.csv")
    assert ran.code == 3 and len(failed) < 40
    assert f"cannot read {raster} here: " in ran.stderr and "previous exception" not in ran.stderr
    assert content(tmp_path / "out") == {found: data for found, data in whole.items() if found not in failed}


def content_of(raster: Path, out: Path) -> dict[Tile, bytes]:
    run(raster, out, tile_format="png")
    return content(out)


def test_a_turned_raster(tmp_path):
    turned = Affine.translation(EAST, NORTH) * Affine.rotation(-30) * Affine.scale(PIXEL, -PIXEL)
    result = run(
        write(tmp_path / "r.tif", waves(1) * 0 + 200, transform=turned), tmp_path / "out", tile_format="png"
    )
    lit = sum(int((decode(data) > 150).sum()) for data in content(tmp_path / "out").values())
    (x0, x1), _ = transform(UTM, "EPSG:3857", [EAST, EAST + 100], [NORTH, NORTH])
    pixel = 40075016.7 / 2**ZOOM / SIDE
    area = 400 * 300 * PIXEL**2 * ((x1 - x0) / 100) ** 2 / pixel**2
    assert lit == pytest.approx(area, rel=0.03) and result.empty > 0


def test_the_whole_earth(tmp_path):
    """Beyond the latitudes of the grid there is nothing to show, and nothing to fail on."""
    pixels = np.full((1, 180, 360), 77, "uint8")
    raster = write(tmp_path / "r.tif", pixels, crs="EPSG:4326", transform=from_origin(-180, 90, 1, 1))
    result = run(raster, tmp_path / "out", zoom=2)
    assert result.tiles == 16 and all((decode(data) == 77).all() for data in content(tmp_path / "out").values())
    polar = write(tmp_path / "p.tif", pixels[:, :4], crs="EPSG:4326", transform=from_origin(-180, 90, 1, 1))
    with pytest.raises(RasterError, match="beyond the latitudes"):
        run(polar, tmp_path / "none", zoom=2)


def test_overviews_are_used_for_pictures_and_not_for_labels(tmp_path, config):
    """An overview that says something else shows which one was read."""
    pixels = np.zeros((1, 1024, 1024), "uint8")
    raster = write(tmp_path / "r.tif", pixels, tiled=True)
    with rasterio.open(raster, "r+") as file:
        file.build_overviews([2, 4, 8], Resampling.nearest)
    with rasterio.open(raster, "r+", overview_level=0) as file:
        assert file.shape == (512, 512)
        file.write(np.full((1, 512, 512), 1, "uint8"))
    zoom = ZOOM - 1  # 3.3 times the pixel of the raster
    shown = run(raster, tmp_path / "out", zoom=zoom)
    values = {value for data in content(tmp_path / "out").values() for value in np.unique(decode(data))}
    run(raster, tmp_path / "labels", zoom=zoom, kind="label", config=config)
    labels = {value for data in content(tmp_path / "labels").values() for value in np.unique(decode_mask(data))}
    assert shown.tiles > 1 and values == {0, 1} and labels == {0}


def test_only_the_tiles_of_a_cover(tmp_path, rsp):
    raster = write(tmp_path / "r.tif", waves())
    whole = content_of(raster, tmp_path / "whole")
    some = sorted(whole)[3:6]
    write_cover(tmp_path / "cover", [*some, Tile(1, 1, ZOOM)])
    result = run(raster, tmp_path / "out", tile_format="png", cover=tmp_path / "cover")
    assert content(tmp_path / "out") == {found: whole[found] for found in some} and result.tiles == 3
    for tiles, message in (
        ([Tile(1, 1, 5)], "has the zoom 5, and 17"),
        ([Tile(1, 1, ZOOM)], "none of the tiles of"),
    ):
        write_cover(tmp_path / "cover", tiles)
        with pytest.raises(CoverError, match=message):
            run(raster, tmp_path / "none", cover=tmp_path / "cover")


def test_no_more_tiles_than_are_allowed(tmp_path, rsp):
    raster = write(tmp_path / "r.tif", waves())
    (west, south, east, north) = rasterio.warp.transform_bounds(
        UTM, "EPSG:4326", EAST, NORTH - 300 * PIXEL, EAST + 400 * PIXEL, NORTH
    )
    count = len(list(mercantile.tiles(west, south, east, north, ZOOM)))  # of the block, empty ones too
    words = ("tile", raster, tmp_path / "out", "--zoom", ZOOM, "--ts", SIDE, "--workers", 1, "--no_web_ui")
    ran = rsp(*words, "--max_tiles", count - 1)
    assert ran.code == 2 and f"{count - 1}" in ran.stderr and not (tmp_path / "out").exists()
    assert rsp(*words, "--max_tiles", count).code == 0


def test_the_same_bytes_by_any_number_of_workers(tmp_path):
    raster = write(tmp_path / "r.tif", waves())
    for workers in (1, 2):
        run(raster, tmp_path / f"{workers}.pmtiles", workers=workers)
    assert (tmp_path / "1.pmtiles").read_bytes() == (tmp_path / "2.pmtiles").read_bytes()


def test_resume_makes_what_is_missing(tmp_path):
    raster = write(tmp_path / "r.tif", waves())
    whole = content_of(raster, tmp_path / "out")
    for number, found in enumerate(whole):
        path = tmp_path / "out" / f"{found.z}/{found.x}/{found.y}.png"
        path.unlink() if number % 2 else path.write_bytes(b"kept")
    result = run(raster, tmp_path / "out", tile_format="png", resume=True)
    after = content(tmp_path / "out")
    assert result.skipped == sum(data == b"kept" for data in after.values()) == -(-len(whole) // 2)
    assert all(data in (b"kept", whole[found]) for found, data in after.items()) and len(after) == len(whole)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"zoom": 31}, UsageError), ({"zoom": -1}, UsageError), ({"tile_size": 0}, UsageError),
     ({"tile_size": 5000}, UsageError), ({"no_data": 256}, UsageError), ({"value_range": [1.0, 1.0]}, UsageError),
     ({"tile_format": "gif"}, UsageError), ({"kind": "mask"}, UsageError)],
)  # fmt: skip
def test_arguments_that_make_no_sense(tmp_path, options, error):
    with pytest.raises(error):
        run(write(tmp_path / "r.tif", waves()), tmp_path / "out", **options)
    with pytest.raises(UsageError, match="at least one raster"):
        tile([], tmp_path / "out", zoom=3)
    assert not (tmp_path / "out").exists()


def test_component(run_component, tmp_path):
    raster = write(tmp_path / "r.tif", waves())
    step = run_component(tile_component, raster=str(raster), zoom=16)
    assert {decode(data).shape for data in content(step.path("tiles")).values()} == {(512, 512, 3)}
    metadata = step.artifacts["tiles"]["metadata"]
    assert metadata["rsp_kind"] == "tiles" and metadata["tiles"] == len(content(step.path("tiles")))
    label = write(tmp_path / "l.tif", blocks())
    step = run_component(
        tile_component, raster=str(label), zoom=16, kind="label", config=parse_tables(CONFIG), tile_size=64
    )
    assert {decode_mask(data).shape for data in content(step.path("tiles")).values()} == {(64, 64)}


def test_component_takes_the_size_of_the_configuration(run_component, tmp_path):
    raster = write(tmp_path / "r.tif", waves())
    step = run_component(tile_component, raster=str(raster), zoom=16, config=parse_tables(CONFIG))
    assert {decode(data).shape for data in content(step.path("tiles")).values()} == {(64, 64, 3)}


def test_component_reads_the_raster_that_was_resolved(s3, tmp_path):
    where = location(f"s3://{s3.bucket()}/r.tif")
    storage, key = where.open()
    storage.upload(key, write(tmp_path / "r.tif", waves()))
    resolved = str(pinned(where))
    storage.upload(key, write(tmp_path / "other.tif", blocks()))
    tiles = SimpleNamespace(path=str(tmp_path / "tiles"), metadata={})
    with pytest.raises(ChangedError, match=r"r\.tif was replaced"):
        tile_component.python_func(tiles=tiles, tiles_at=str(tmp_path / "at"), raster=resolved, zoom=16)


def shares(tiles: dict[Tile, bytes], found: Tile) -> np.ndarray:
    return decode(tiles[found]).astype(int)


def test_a_mosaic_of_three_rasters_in_two_crs(tmp_path):
    """One scene in three files, of which one is in degrees and has a hole that another one fills."""
    whole = waves(3)
    left, right = whole[:, :, :250], whole[:, :, 200:]
    hole = np.ones((300, 250), bool)
    hole[100:200, 60:160] = False
    a = write(tmp_path / "a.tif", left, mask=hole)
    b = write(tmp_path / "b.tif", right, left=EAST + 200 * PIXEL)
    # The same ground once more in degrees, finer than it was.
    corner = (EAST, NORTH - 300 * PIXEL, EAST + 400 * PIXEL, NORTH)
    west, south, east, north = rasterio.warp.transform_bounds(UTM, "EPSG:4326", *corner)
    degrees = np.zeros((3, 700, 900), "uint8")
    grid = from_bounds(west, south, east, north, 900, 700)
    reproject(
        whole, degrees, src_crs=UTM, src_transform=from_origin(EAST, NORTH, PIXEL, PIXEL), dst_crs="EPSG:4326",
        dst_transform=grid, resampling=Resampling.bilinear,
    )  # fmt: skip
    filled = degrees.any(axis=0)
    c = write(tmp_path / "c.tif", degrees, crs="EPSG:4326", transform=grid, mask=filled)
    options = {"zoom": ZOOM, "tile_size": SIDE, "tile_format": "png", "workers": 1, "web_ui": False}
    result = tile([str(a), str(b), str(c)], tmp_path / "out", **options)
    one = run(write(tmp_path / "w.tiff", whole), tmp_path / "whole", tile_format="png")
    assert result.tiles == one.tiles and not result.failed
    for found, data in content(tmp_path / "out").items():
        expected = shares(content(tmp_path / "whole"), found)
        assert (np.abs(decode(data).astype(int) - expected) > 4).mean() < 0.01


def test_many_rasters_are_open_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr("rsp.shared.warp.OPEN", 2)
    pixels = waves(1)
    for number in range(8):
        part = pixels[:, :, number * 50 : number * 50 + 50]
        write(tmp_path / f"{number}.tif", part, left=EAST + number * 50 * PIXEL)
    tile([str(tmp_path / "*.tif")], tmp_path / "out", zoom=ZOOM, tile_size=SIDE, workers=1, web_ui=False)
    run(write(tmp_path / "w.tiff", pixels), tmp_path / "whole")
    for found, data in content(tmp_path / "out").items():
        assert (np.abs(decode(data).astype(int) - shares(content(tmp_path / "whole"), found)) > 3).mean() < 0.04


def test_another_planet(tmp_path, rsp):
    moon = "+proj=longlat +R=1737400 +no_defs"
    grid = from_origin(4, 46, 0.001, 0.001)
    raster = write(tmp_path / "r.tif", waves(), crs=moon, transform=grid)
    ran = rsp("tile", raster, tmp_path / "out", "--zoom", ZOOM)
    assert ran.code == 1 and "a CRS that cannot be projected to EPSG:3857" in ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "out").exists()


def test_a_virtual_raster(tmp_path, monkeypatch):
    """A .vrt whose sources are named relative to it."""
    write(tmp_path / "r.tif", waves())
    monkeypatch.chdir(tmp_path)
    rasterio.shutil.copy("r.tif", "r.vrt", driver="VRT")
    assert 'relativeToVRT="1"' in (tmp_path / "r.vrt").read_text()
    monkeypatch.chdir("/")
    run(tmp_path / "r.vrt", tmp_path / "out", tile_format="png")
    assert content(tmp_path / "out") == content_of(tmp_path / "r.tif", tmp_path / "whole")


def paletted(path: Path, **options) -> tuple[Path, np.ndarray]:
    """A raster of indices 0, 1 and 7, and the colours that they mean."""
    pixels = blocks() + 0
    pixels[0, 150:, :] *= 7
    table = {0: (10, 20, 30, 255), 1: (250, 120, 0, 255), 7: (0, 200, 90, 255)}
    with rasterio.open(write(path, pixels, photometric="palette", **options), "r+") as raster:
        raster.write_colormap(1, table)
    colors = np.array([table.get(index, (0, 0, 0, 255))[:3] for index in range(8)], "uint8")
    return path, np.moveaxis(colors[pixels[0]], 2, 0)


def test_a_colour_table_becomes_colours(tmp_path, config):
    """Indices mean nothing in between: the colours are interpolated, not they."""
    raster, colors = paletted(tmp_path / "p.tif")
    result = run(raster, tmp_path / "out", tile_format="png")
    run(write(tmp_path / "c.tif", colors), tmp_path / "colors", tile_format="png")
    assert result.empty <= 1 and content(tmp_path / "out") == content(tmp_path / "colors")
    assert run(raster, tmp_path / "webp").tile_format == "webp"
    both = [str(raster), str(write(tmp_path / "e.tif", colors, left=EAST + 400 * PIXEL))]
    assert tile(both, tmp_path / "both", zoom=ZOOM, tile_size=SIDE, web_ui=False).tiles > result.tiles
    # For labels they stay what they are.
    config.write_text(
        config.read_text().replace(
            "[model]",
            "".join(f'[[classes]]\ntitle = "{n}"\ncolor = "#00000{n}"\n' for n in range(2, 8)) + "[model]",
        )
    )
    run(raster, tmp_path / "labels", kind="label", config=config)
    assert {v for data in content(tmp_path / "labels").values() for v in np.unique(decode_mask(data))} == {0, 1, 7}


def test_an_index_without_data_is_transparent(tmp_path):
    raster, _ = paletted(tmp_path / "p.tif", nodata=0)
    below = write(tmp_path / "b.tif", np.full((3, 300, 400), 111, "uint8"))
    options = {"zoom": ZOOM, "tile_size": SIDE, "tile_format": "png", "workers": 1, "web_ui": False}
    tile([str(raster), str(below)], tmp_path / "out", **options)
    pixels = np.concatenate([decode(data).reshape(-1, 3) for data in content(tmp_path / "out").values()])
    found = {tuple(color) for color in pixels.tolist()}
    assert (111, 111, 111) in found and (250, 120, 0) in found and (10, 20, 30) not in found


CORNERS = [(0, 0, 4.80, 45.70), (0, 400, 4.85, 45.70), (300, 400, 4.85, 45.67), (300, 0, 4.80, 45.67)]


def located(path: Path, how: str, pixels: np.ndarray, **options) -> Path:
    """A raster whose place is told by control points, or by the model of a sensor."""
    with rasterio.open(
        path, "w", driver="GTiff", width=400, height=300, count=len(pixels), dtype=pixels.dtype, **options
    ) as file:
        file.write(pixels)
        if how == "points":
            file.gcps = (
                [rasterio.control.GroundControlPoint(*each) for each in CORNERS],
                rasterio.CRS.from_epsg(4326),
            )
        else:
            one = [1.0] + [0.0] * 19
            file.rpcs = rasterio.rpc.RPC(
                height_off=0, height_scale=500, lat_off=45.685, lat_scale=0.015, long_off=4.825, long_scale=0.025,
                line_off=150, line_scale=150, samp_off=200, samp_scale=200, line_den_coeff=one, samp_den_coeff=one,
                line_num_coeff=[0, 0, -1] + [0] * 17, samp_num_coeff=[0, 1] + [0] * 18, err_bias=None,
                err_rand=None,
            )  # fmt: skip
    return path


@pytest.mark.parametrize("how", ["points", "model"])
def test_rasters_located_by_control_points_or_a_sensor_model(tmp_path, how, config):
    pixels = waves(3)
    result = run(located(tmp_path / "r.tif", how, pixels), tmp_path / "out", zoom=13, tile_format="png")
    grid = from_bounds(4.80, 45.67, 4.85, 45.70, 400, 300)
    same = run(
        write(tmp_path / "g.tif", pixels, crs="EPSG:4326", transform=grid),
        tmp_path / "grid",
        zoom=13,
        tile_format="png",
    )
    assert result.tiles == same.tiles > 3
    far = [
        (np.abs(decode(data).astype(int) - shares(content(tmp_path / "grid"), found)) > 6).mean()
        for found, data in content(tmp_path / "out").items()
    ]
    assert np.mean(far) < 0.02  # the outline, half a pixel aside
    # Where it has nothing it has nothing: by a value here.
    holed = located(tmp_path / "h.tif", how, waves(1) // 255 * 0 + blocks(), nodata=0)
    run(holed, tmp_path / "labels", zoom=13, kind="label", config=config)
    assert {v for data in content(tmp_path / "labels").values() for v in np.unique(decode_mask(data))} == {0, 1}


def test_control_points_need_a_crs(tmp_path, rsp):
    path = tmp_path / "g.tif"
    with rasterio.open(path, "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8") as file:
        file.gcps = ([rasterio.control.GroundControlPoint(0, 0, 4.0, 45.0)] * 3, rasterio.CRS())
    ran = rsp("tile", path, tmp_path / "out", "--zoom", 17)
    assert ran.code == 1 and "-a_srs" in ran.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [("uint16", 0, 3900, [0, 4095]), ("int16", 0, 900, [0, 1023]), ("uint32", 0, 200_000, [0, 2**18 - 1]),
     ("int32", -50, 900, None), ("float32", 0, 1, [0, 1]), ("float32", 0, 200, [0, 255]),
     ("float64", -3.5, 9000, None)],
)  # fmt: skip
def test_the_scaling_is_chosen_and_shown(tmp_path, rsp, dtype, low, high, expected):
    pixels = (waves(3, dtype="float64") - 5) / 245 * (high - low) + low
    raster = write(tmp_path / "r.tif", pixels.astype(dtype))
    command = ("tile", raster, tmp_path / "out", "--zoom", ZOOM, "--ts", SIDE, "--no_web_ui", "--format", "png")
    ran = rsp(*command, "--report", tmp_path / "report.json")
    assert ran.code == 0, ran.stderr
    chosen = json.loads((tmp_path / "report.json").read_text())["value_range"]
    written = pixels.astype(dtype)
    assert chosen == (expected or [written.min(), written.max()])
    assert f"from {chosen[0]:.6g} to {chosen[1]:.6g} become 0 to 255" in ran.stderr
    scaled = (
        np.rint((written.astype(float) - chosen[0]) * (255 / (chosen[1] - chosen[0]))).clip(0, 255).astype("uint8")
    )
    for found, data in content(tmp_path / "out").items():
        assert (np.abs(decode(data).astype(int) - projected(found, scaled, SIDE)) > 2).mean() < 0.02


def test_a_range_for_each_band_and_percentiles(tmp_path, rsp):
    pixels = np.stack([waves(1, high=1000.0, dtype="uint16")[0] * (band + 1) for band in range(3)])
    pixels[:, 0, 0] = 60000  # one pixel of glare
    raster = write(tmp_path / "r.tif", pixels)
    run(raster, tmp_path / "out", tile_format="png", value_range=[0, 1000, 0, 2000, 0, 3000])
    for data in content(tmp_path / "out").values():
        image = decode(data).astype(int)
        assert np.abs(image - image[:, :, :1]).max() <= 1
    result = run(raster, tmp_path / "p", tile_format="png", percentiles=[2, 98])
    assert result.value_range == pytest.approx(
        np.percentile(pixels.reshape(3, -1), [2, 98], axis=1).T.ravel(), rel=0.01
    )
    with pytest.raises(UsageError, match="--range has 4 numbers, there are 3 bands: give two, or 6"):
        run(raster, tmp_path / "x", tile_format="png", value_range=[0, 1, 0, 1])
    for wrong in (["--percentiles", "98,2"], ["--percentiles", "2"], ["--percentiles", "2,98", "--range", "0,1"]):
        assert rsp("tile", raster, tmp_path / "x", "--zoom", ZOOM, *wrong).code == 2


def test_a_sample_leaves_out_what_is_no_data(tmp_path):
    pixels = waves(1, high=900.0, dtype="uint16")
    pixels[0, :, :100] = 65535
    assert run(
        write(tmp_path / "r.tif", pixels, nodata=65535), tmp_path / "out", tile_format="png"
    ).value_range == [0, 1023]


def test_tiles_with_too_little_data_are_dropped(tmp_path, rsp):
    pixels = waves()
    pixels[:, :, 130:] = 0
    raster = write(tmp_path / "r.tif", pixels)
    whole = content_of(raster, tmp_path / "whole")
    empty = {found: 100 * (decode(data) == 0).all(axis=2).mean() for found, data in whole.items()}
    for threshold in (100, 60, 30):
        out = tmp_path / f"{threshold}"
        ran = rsp(
            "tile", raster, out, "--zoom", ZOOM, "--ts", SIDE, "--format", "png", "--no_web_ui", "--nodata", 0,
            "--keep_borders", "--nodata_threshold", threshold,
        )  # fmt: skip
        kept = {found for found, share in empty.items() if share < threshold}
        assert ran.code == 0 and set(content(out)) == kept != set(whole)
        assert f"sparse: {len(whole) - len(kept)}" in ran.stderr
    # Without a value it is the rasters that say where there is no data.
    result = run(raster, tmp_path / "mask", tile_format="png", nodata_threshold=30)
    assert 0 < result.sparse < len(whole) and result.border == 0
    assert rsp("tile", raster, tmp_path / "x", "--zoom", ZOOM, "--nodata_threshold", 101).code == 2
    with pytest.raises(UsageError, match="percentage"):
        run(raster, tmp_path / "x", nodata_threshold=0)


def test_a_tile_is_known_to_be_full_only_where_it_is(tmp_path, monkeypatch):
    """Whether it is looked for in the mask or told from the corners, a tile is the same."""
    raster = write(tmp_path / "r.tif", waves(3, 1200, 900), tiled=True)
    told = content_of(raster, tmp_path / "told")
    monkeypatch.setattr("rsp.shared.projected.Projected._inside", lambda *_: None)
    looked = content_of(raster, tmp_path / "looked")
    assert told.keys() == looked.keys()
    assert max(np.abs(shares(told, found) - shares(looked, found)).max() for found in told) <= 1  # rounding


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", from_origin(179, 1, 0.05, 0.05)),
        ("EPSG:4326", from_origin(-181, 1, 0.05, 0.05)),
        ("EPSG:32660", from_origin(720000, 110000, 5000, 5000)),
        ("EPSG:3857", from_origin(20037508 - 100000, 110000, 5000, 5000)),
        ("EPSG:3857", from_origin(-20037508 - 100000, 110000, 5000, 5000)),
    ],
)
def test_beyond_the_antimeridian_only_columns_of_both_edges_are_tried(tmp_path, crs, transform):
    pixels = np.full((1, 40, 40), 200, "uint8")
    raster = write(tmp_path / "r.tif", pixels, crs=crs, transform=transform)
    result = run(raster, tmp_path / "out", zoom=6, tile_format="png")
    assert {(found.x, found.y) for found in content(tmp_path / "out")} == {(0, 31), (0, 32), (63, 31), (63, 32)}
    assert result.empty == 0


def test_as_much_stays_decoded_as_a_row_of_tiles_needs(tmp_path):
    pixel = 0.6  # of EPSG:3857: a tile has 305.75 m at zoom 17, that are 509.6 of them

    def cache(width: int, zoom: int = ZOOM, overviews: int = 0, turn: float = 0, **options) -> int:
        raster = tmp_path / "r.tif"
        with rasterio.open(
            raster, "w", driver="GTiff", width=width, height=8192, count=3, dtype="uint16", crs="EPSG:3857",
            transform=Affine.translation(0, 0) * Affine.rotation(turn) * Affine.scale(pixel, -pixel),
            sparse_ok=True, **options,
        ) as file:  # fmt: skip
            if overviews:
                file.build_overviews([2 << level for level in range(overviews)])
        return footprint(str(raster), zoom, 256).cache

    assert cache(400) == LEAST_CACHE
    assert cache(10_000) == pytest.approx(10_000 * 6 * (2 * 509.6 + 1), rel=0.01)
    assert cache(10_000, tiled=True) == pytest.approx(10_000 * 6 * (2 * 509.6 + 256), rel=0.01)
    assert cache(400, turn=10) == MOST_CACHE
    assert cache(10_000, zoom=14) == MOST_CACHE
    # What is read has twice the resolution of the tiles at most.
    assert cache(10_000, zoom=14, overviews=4) == LEAST_CACHE


def test_overviews_of_a_raster_in_s3_are_read_in_place_of_all(tmp_path):
    """`rsp` is another process: GDAL holds the interpreter while it opens an overview, and the server is here."""
    path, sent = tmp_path / "cog.tif", []
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(1, 255, (3, 30, 30)), np.ones((1, 64, 64), int)).astype(np.uint8)
    profile = {
        "driver": "GTiff", "width": 1920, "height": 1920, "count": 3, "dtype": "uint8", "crs": "EPSG:32631",
        "transform": rasterio.Affine(0.3, 0, 668221, 0, -0.3, 5193260), "tiled": True,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
        file.build_overviews([2, 4, 8, 16], Resampling.average)

    def watch(environ, size):
        if size is not None and environ["REQUEST_METHOD"] == "GET":
            sent.append(size)

    with moto(watch) as server:
        bucket = server.bucket()
        server.client().fput_object(bucket, "cog.tif", str(path))
        command = [sys.executable, "-m", "rsp.shared.cli", "tile", "--zoom", "14", f"s3://{bucket}/cog.tif", "out"]
        subprocess.run(command, cwd=tmp_path, env=os.environ | server.environ, check=True, timeout=60)
    assert 0 < sum(sent) < path.stat().st_size / 10
