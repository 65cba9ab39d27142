"""rsp tile TILES out.tif: a tile set becomes a Cloud Optimized GeoTIFF on the very grid of its tiles."""

from __future__ import annotations

from pathlib import Path

import mercantile
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from rsp.components.tile.blocks import halved
from rsp.components.tile.tool import tile
from rsp.shared.config import parse_config, parse_tables
from rsp.shared.errors import CoverError, TileSetError, UsageError
from rsp.shared.images import decode, encode, encode_mask
from rsp.shared.locations import location
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import classes_metadata, open_reader, open_writer
from tests.tilesets import COLORS, CONFIG

ZOOM, SIDE = 17, 64
X, Y = 67280, 46776


def picture(x: int, y: int, bands: int = 3, dtype: str = "uint8", side: int = SIDE) -> np.ndarray:
    """A tile of smooth waves that go on in the next one."""
    rows, columns = np.mgrid[y * side : (y + 1) * side, x * side : (x + 1) * side]
    layers = [(np.sin(columns / 37 + band) + np.cos(rows / 29 - band) + 2) / 4 for band in range(bands)]
    return (np.stack(layers, axis=2) * 240 + 8).astype(dtype)


def tile_set(path: Path, places, tile_format: str = "png", **options) -> Path:
    with open_writer(path, tile_format) as writer:
        for x, y in places:
            writer.write(Tile(X + x, Y + y, ZOOM), encode(picture(x, y, **options), tile_format))
    return path


def together(source: Path, out: Path, **options):
    return tile([str(source)], out, workers=1, **options)


SQUARE = [(x, y) for x in range(5) for y in range(3)]


def check_layout(path: Path) -> None:
    """What GDAL's validate_cloud_optimized_geotiff asks for: directories first, then the smallest overview."""
    with rasterio.open(path) as raster:
        count = len(raster.overviews(1))
        assert raster.block_shapes[0] == (SIDE, SIDE)
        places = [
            int(raster.tags(ns="TIFF", bidx=1).get("IFD_OFFSET") or raster.get_tag_item("IFD_OFFSET", "TIFF", 1))
        ]
        first = [raster.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1)]
        for level in range(count):
            places.append(int(raster.get_tag_item("IFD_OFFSET", "TIFF", 1, ovr=level)))
            first.append(raster.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1, ovr=level))
    assert places[0] in (8, 16) and places == sorted(places)
    there = [int(offset) for offset in first if offset]
    assert there == sorted(there, reverse=True) and (not there or min(there) > max(places))


@pytest.mark.parametrize("places", [SQUARE, [(0, 0)], [(0, 0), (40, 9)], [(x, 2 * x % 11) for x in range(11)]])
@pytest.mark.parametrize("form", ["set", "set.pmtiles"])
def test_every_pixel_is_that_of_its_tile(tmp_path, places, form):
    source = tile_set(tmp_path / form, places)
    out = tmp_path / "out.tif"
    result = together(source, out)
    assert result.tiles == len(places) and result.tile_format == "deflate"
    check_layout(out)
    columns, rows = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    left, top = min(x for x, _ in places), min(y for _, y in places)
    with rasterio.open(out) as raster, open_reader(source) as reader:
        assert raster.crs.to_epsg() == 3857 and raster.count == 3 and raster.dtypes[0] == "uint8"
        assert raster.shape == ((rows - top) * SIDE, (columns - left) * SIDE)
        west, _, _, north = mercantile.xy_bounds(X + left, Y + top, ZOOM)
        _, south, east, _ = mercantile.xy_bounds(X + columns - 1, Y + rows - 1, ZOOM)
        assert np.allclose(raster.bounds, (west, south, east, north), rtol=0, atol=1e-6)
        seen = np.zeros(raster.shape, bool)
        for x, y in places:
            window = Window((x - left) * SIDE, (y - top) * SIDE, SIDE, SIDE)
            expected = reader.image(Tile(X + x, Y + y, ZOOM))
            assert np.array_equal(np.moveaxis(raster.read(window=window), 0, 2), expected)
            seen[window.toslices()] = True
        assert np.array_equal(raster.dataset_mask() > 0, seen)
        assert (MaskFlags.per_dataset in raster.mask_flag_enums[0]) == (not seen.all())
        assert not raster.read(1)[~seen].any()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".rsp-")] == []


def test_another_reader_agrees(tmp_path):
    """Pillow, which has a reader of TIFF of its own."""
    out = tmp_path / "out.tif"
    together(tile_set(tmp_path / "set", SQUARE), out)
    with Image.open(out) as image:
        pixels = np.asarray(image)
    assert np.array_equal(pixels, np.block([[[picture(x, y)] for x in range(5)] for y in range(3)]))


def test_overviews_are_means_of_what_there_is(tmp_path):
    places = [place for place in SQUARE if place != (1, 1)]
    out = tmp_path / "out.tif"
    together(tile_set(tmp_path / "set", places), out)
    with rasterio.open(out) as raster:
        assert raster.overviews(1) == [2, 4, 8]
        full, mask = raster.read().astype(float), raster.dataset_mask() > 0
    with rasterio.open(out, overview_level=0) as raster:
        small, seen = raster.read(), raster.dataset_mask() > 0
    quads = (full * mask).reshape(3, 96, 2, 160, 2).sum(axis=(2, 4)) / mask.reshape(96, 2, 160, 2).sum(
        axis=(1, 3)
    ).clip(1)
    assert np.abs(small - quads).max() <= 0.5 and np.array_equal(
        seen, mask.reshape(96, 2, 160, 2).any(axis=(1, 3))
    )
    with rasterio.open(out, overview_level=2) as raster:
        assert raster.shape == (24, 40)
        assert np.abs(raster.read(1)[raster.dataset_mask() > 0].mean() - full[0][mask].mean()) < 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_halves_weigh_pixels_with_data_alone(dtype):
    image = (np.arange(16).reshape(4, 4, 1) * 100 % 251).astype(dtype)
    valid = np.ones((4, 4), bool)
    valid[0, :2] = valid[2:, 2:] = False
    small, found = halved(image, valid, nearest=False)
    assert found.tolist() == [[True, True], [True, False]] and small.dtype == dtype
    assert small[0, 0, 0] == pytest.approx((float(image[1, 0, 0]) + float(image[1, 1, 0])) / 2, abs=0.5)
    assert small[1, 1, 0] == 0 and halved(image, None, nearest=False)[1] is None


@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, "uint8"), (4, "uint16"), (5, "float32"), (2, "int16"), (1, "float64")]
)
def test_any_bands_and_values(tmp_path, bands, dtype):
    source = tile_set(tmp_path / "set", SQUARE, "tif", bands=bands, dtype=dtype)
    together(source, tmp_path / "out.tif")
    check_layout(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as raster:
        assert raster.count == bands and raster.dtypes[0] == dtype and ColorInterp.alpha not in raster.colorinterp
        for x, y in SQUARE:
            window = Window(x * SIDE, y * SIDE, SIDE, SIDE)
            assert np.array_equal(np.moveaxis(raster.read(window=window), 0, 2), picture(x, y, bands, dtype))


@pytest.mark.parametrize("tile_format", ["jpg", "webp"])
def test_jpeg_and_webp_are_not_encoded_once_more(tmp_path, tile_format):
    source, out = tile_set(tmp_path / "set", SQUARE[:-1], tile_format), tmp_path / "out.tif"
    assert together(source, out).tile_format == tile_format
    check_layout(out)
    with open_reader(source) as reader, rasterio.open(out) as raster:
        written = out.read_bytes()
        for x, y in SQUARE[:-1]:
            data = reader.read(Tile(X + x, Y + y, ZOOM))
            assert written.count(data) == 1
            pixels = np.moveaxis(raster.read(window=Window(x * SIDE, y * SIDE, SIDE, SIDE)), 0, 2)
            assert np.abs(pixels.astype(int) - decode(data)).max() <= 6  # decoders round colours differently
        assert not raster.dataset_mask()[2 * SIDE :, 4 * SIDE :].any()
    assert together(source, tmp_path / "lossless.tif", tile_format="png").tile_format == "deflate"


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_of_any_sampling_are_blocks_as_they_are(tmp_path, subsampling):
    source = tile_set(tmp_path / "set", SQUARE, "jpg")
    for x, y in SQUARE:
        path = source / f"{ZOOM}/{X + x}/{Y + y}.jpg"
        Image.fromarray(picture(x, y)).save(path, quality=60, subsampling=subsampling)
    together(source, tmp_path / "out.tif")
    written = (tmp_path / "out.tif").read_bytes()
    for path in source.glob("*/*/*.jpg"):
        data = path.read_bytes()
        assert data[data.index(b"\xff\xda") :] in written  # from the start of the scan on


def test_a_jpeg_unlike_the_others_is_encoded_once_more(tmp_path):
    source = tile_set(tmp_path / "set", SQUARE, "jpg")
    odd = source / f"{ZOOM}/{X}/{Y + 1}.jpg"
    Image.fromarray(picture(0, 1)).save(odd, quality=95, subsampling=0)
    together(source, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as raster:
        pixels = np.moveaxis(raster.read(window=Window(0, SIDE, SIDE, SIDE)), 0, 2)
    assert np.abs(pixels.astype(int) - picture(0, 1)).mean() < 3


def test_labels_keep_their_palette_and_are_never_mixed(tmp_path):
    masks = {}
    with open_writer(tmp_path / "set", "png") as writer:
        writer.describe({"classes": classes_metadata(parse_config(parse_tables(CONFIG)).classes)})
        for x, y in SQUARE[:-2]:
            masks[x, y] = (picture(x, y)[:, :, 0] > 120).astype("uint8")
            writer.write(Tile(X + x, Y + y, ZOOM), encode_mask(masks[x, y], COLORS))
    together(tmp_path / "set", tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as raster:
        assert raster.colorinterp == (ColorInterp.palette,)
        assert [raster.colormap(1)[index][:3] for index in (0, 1)] == [tuple(color) for color in COLORS]
        for (x, y), mask in masks.items():
            assert np.array_equal(raster.read(1, window=Window(x * SIDE, y * SIDE, SIDE, SIDE)), mask)
        full = raster.read(1)
    with rasterio.open(tmp_path / "out.tif", overview_level=0) as raster:
        assert np.array_equal(raster.read(1), full[::2, ::2])
    # And back: the same labels.
    again = tile(
        [str(tmp_path / "out.tif")], tmp_path / "again", zoom=ZOOM, tile_size=SIDE, kind="label",
        config=config_of(tmp_path), web_ui=False,
    )  # fmt: skip
    assert again.tiles == len(masks)
    with open_reader(tmp_path / "again") as ours, open_reader(tmp_path / "set") as theirs:
        assert all(ours.read(found) == theirs.read(found) for found in theirs.tiles())


def config_of(folder: Path) -> Path:
    (folder / "config.toml").write_text(CONFIG)
    return folder / "config.toml"


def test_tiles_there_and_back_are_the_same(tmp_path):
    source = tile_set(tmp_path / "set", [place for place in SQUARE if place != (4, 2)])
    together(source, tmp_path / "out.tif")
    tile(
        [str(tmp_path / "out.tif")], tmp_path / "again", zoom=ZOOM, tile_size=SIDE, tile_format="png", web_ui=False
    )
    with open_reader(tmp_path / "again") as ours, open_reader(source) as theirs:
        assert ours.tiles() == theirs.tiles()
        assert all(np.array_equal(ours.image(found), theirs.image(found)) for found in theirs.tiles())


def test_tiles_that_cannot_be_read_are_missing_and_listed(tmp_path, rsp):
    source = tile_set(tmp_path / "set", SQUARE)
    (source / f"{ZOOM}/{X + 1}/{Y + 1}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (source / f"{ZOOM}/{X + 2}/{Y + 1}.png").write_bytes(encode(picture(0, 0, side=32), "png"))
    ran = rsp("tile", source, tmp_path / "out.tif", "--workers", 1)
    assert ran.code == 3 and "it has 32x32 pixels of 3 bands of uint8, the others 64x64" in ran.stderr
    assert read_cover(tmp_path / "out.tif.failed.csv") == [Tile(X + 1, Y + 1, ZOOM), Tile(X + 2, Y + 1, ZOOM)]
    with rasterio.open(tmp_path / "out.tif") as raster:
        assert (raster.dataset_mask() == 0).sum() == 2 * SIDE * SIDE
    for path in source.glob("*/*/*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(TileSetError, match=r"no tile of .* can be read"):
        together(source, tmp_path / "none.tif")
    assert not (tmp_path / "none.tif").exists()


def test_what_cannot_be_put_together(tmp_path, rsp):
    source = tile_set(tmp_path / "set", SQUARE)
    for flags in (["--bands", "1"], ["--no_data", "0"], ["--resume"]):
        assert rsp("tile", source, tmp_path / "o.tif", *flags).code == 2
    assert rsp("tile", source, source, tmp_path / "o.tif").code == 2
    assert rsp("tile", source, source / "o.tif").code == 2
    far = tile_set(tmp_path / "far", [(0, 0), (50_000, 50_000)])
    with pytest.raises(UsageError, match="lie far apart"):
        together(far, tmp_path / "o.tif")
    with pytest.raises(UsageError, match="a multiple of 16"):
        together(tile_set(tmp_path / "odd", [(0, 0)], side=50), tmp_path / "o.tif")
    with pytest.raises(TileSetError, match="no tile set at"):
        together(tmp_path / "nothing", tmp_path / "o.tif")
    with pytest.raises(CoverError, match="has no tile of zoom 3"):
        together(source, tmp_path / "o.tif", zoom=3)
    assert not (tmp_path / "o.tif").exists()


def test_only_the_tiles_of_a_cover(tmp_path):
    source = tile_set(tmp_path / "set", SQUARE)
    write_cover(tmp_path / "cover", [Tile(X + 1, Y + 1, ZOOM), Tile(X + 2, Y + 1, ZOOM), Tile(1, 1, ZOOM)])
    assert together(source, tmp_path / "out.tif", cover=tmp_path / "cover").tiles == 2
    with rasterio.open(tmp_path / "out.tif") as raster:
        assert raster.shape == (SIDE, 2 * SIDE)


def test_the_same_bytes_by_any_number_of_workers(tmp_path):
    source = tile_set(tmp_path / "set.pmtiles", [(x, y) for x in range(17) for y in range(9) if (x * y) % 5 != 3])
    for workers in (1, 2):
        tile([str(source)], tmp_path / f"{workers}.tif", workers=workers)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "2.tif").read_bytes()
    check_layout(tmp_path / "1.tif")


def test_large_files_have_offsets_of_64_bits(tmp_path, monkeypatch):
    source = tile_set(tmp_path / "set", SQUARE)
    together(source, tmp_path / "small.tif")
    monkeypatch.setattr("rsp.components.tile.geotiff.SMALL", 100)
    together(source, tmp_path / "big.tif")
    check_layout(tmp_path / "big.tif")
    assert (tmp_path / "big.tif").read_bytes()[2] == 43 and (tmp_path / "small.tif").read_bytes()[2] == 42
    with rasterio.open(tmp_path / "big.tif") as big, rasterio.open(tmp_path / "small.tif") as small:
        assert np.array_equal(big.read(), small.read()) and big.transform == small.transform


def test_from_and_to_s3(s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_storage(f"s3://{s3.bucket()}/data")
    source = tile_set(tmp_path / "set.pmtiles", SQUARE)
    store.upload("set.pmtiles", source)
    together(source, tmp_path / "here.tif")
    tile([f"{store.address}/set.pmtiles"], location(f"{store.address}/out.tif"), workers=1)
    assert store.read("out.tif")[0] == (tmp_path / "here.tif").read_bytes()
