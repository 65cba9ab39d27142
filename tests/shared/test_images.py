"""Tile images: what is decoded, encoded, and refused."""

from __future__ import annotations

import io
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from PIL import Image

from rsp.shared.errors import ConfigError, TileError
from rsp.shared.images import (
    complementary,
    decode,
    decode_mask,
    encode,
    encode_lossless,
    encode_mask,
    encode_mask_webp,
    encode_padded,
    padded,
    parse_color,
    sniff,
)
from tests.serving.bad_inputs import png

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

PINK, WHITE = (255, 20, 147), (255, 255, 255)


def picture(bands: int = 3, dtype=np.uint8, side: int = 32) -> np.ndarray:
    rng = np.random.default_rng(7)
    high = 2 if np.dtype(dtype).kind == "f" else int(np.iinfo(dtype).max) + 1
    return (rng.random((side, side, bands)) * high).astype(dtype)


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("tile_format", ["png", "tif"])
@pytest.mark.parametrize("bands", [1, 3])
def test_lossless_formats_keep_every_value(tile_format, bands):
    image = picture(bands)
    data = encode(image, tile_format)
    assert sniff(data) == tile_format
    np.testing.assert_array_equal(decode(data), image)
    assert encode(image, tile_format) == data


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_tiff_keeps_any_bands_of_any_type(dtype):
    image = picture(6, dtype)
    back = decode(encode(image, "tif"))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image)


def test_16_bits_in_png():
    image = picture(1, np.uint16)
    back = decode(encode(image, "png"))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("tile_format", ["jpg", "webp"])
@pytest.mark.parametrize("bands", [1, 3])
def test_lossy_formats_keep_the_colours(tile_format, bands):
    """Bugs 1 and 26: no channel is lost or exchanged."""
    colors = [(10, 100, 200), (200, 10, 100), (128, 128, 128)]
    for color in colors:
        image = np.full((64, 64, bands), color[:bands], np.uint8)
        data = encode(image, tile_format)
        back = decode(data)
        assert sniff(data) == tile_format and back.shape[:2] == (64, 64)
        assert np.abs(back[..., :bands].astype(int) - image).max() <= 6


@pytest.mark.parametrize(
    ("image", "tile_format"),
    [
        (picture(4), "png"), (picture(2), "webp"), (picture(3, np.uint16), "png"), (picture(1, np.uint16), "jpg"),
        (picture(3, np.float32), "webp"), (picture(3), "jpeg"), (picture(3), "gif"),
        (picture(3).astype(bool), "png"), (picture(1).astype(np.complex64).astype(object), "tif"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(image, tile_format):
    with pytest.raises(TileError):
        encode(image, tile_format)


def test_modes_of_png():
    rgba = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    np.testing.assert_array_equal(decode(saved(rgba))[0, 0], (10, 20, 30))
    la = Image.new("LA", (4, 4), (77, 0))
    np.testing.assert_array_equal(decode(saved(la)), np.full((4, 4, 1), 77, np.uint8))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*WHITE, *PINK])
    np.testing.assert_array_equal(decode(saved(palette))[0, 0], PINK)
    np.testing.assert_array_equal(decode(saved(palette, transparency=1))[0, 0], PINK)
    one = Image.new("1", (4, 4), 1)
    np.testing.assert_array_equal(decode(saved(one)), np.full((4, 4, 1), 255, np.uint8))
    cmyk = saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert decode(cmyk).shape == (8, 8, 3)
    gray_webp = saved(Image.new("L", (8, 8), 200), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(gray_webp)[0, 0], (200, 200, 200))


def test_masks_hold_indices():
    mask = np.random.default_rng(0).integers(0, 3, (16, 16), dtype=np.uint8)
    data = encode_mask(mask, [WHITE, PINK, (0, 0, 0)])
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P" and image.getpalette()[:9] == [*WHITE, *PINK, 0, 0, 0]
    assert data[25] == 3  # paletted
    with rasterio.MemoryFile(data) as memory, memory.open() as raster:
        np.testing.assert_array_equal(raster.read(1), mask)
    palette = data.index(b"PLTE")
    assert int.from_bytes(data[palette - 4 : palette]) == 9  # as many colours as there are classes
    np.testing.assert_array_equal(decode_mask(data), mask)
    np.testing.assert_array_equal(decode(data)[mask == 1][0], PINK)


def test_masks_of_others():
    gray = np.array([[0, 1], [2, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(gray))), gray)
    bilevel = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_mask(saved(bilevel)), [[0, 1]])
    np.testing.assert_array_equal(decode_mask(encode(gray[:, :, np.newaxis].astype(np.int16), "tif")), gray)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(picture(3), "png"), "single-band"),
        (encode(picture(3), "tif"), "a mask has one band, this image has 3"),
        (encode(np.full((4, 4, 1), 256, np.uint16), "tif"), "0 to 255"),
        (encode(np.full((4, 4, 1), -1, np.int16), "tif"), "0 to 255"),
        (encode(np.full((4, 4, 1), 0.5, np.float32), "tif"), "whole numbers"),
        (encode(picture(1, np.uint16), "png"), "single-band"),
        (b"", "empty"),
    ],
)
def test_what_is_no_mask_is_refused(data, message):
    with pytest.raises(TileError, match=message):
        decode_mask(data)


def test_a_mask_must_fit_its_palette():
    with pytest.raises(TileError, match="class 2, the palette has 2"):
        encode_mask(np.full((4, 4), 2, np.uint8), [WHITE, PINK])
    with pytest.raises(TypeError, match="3-D int64"):  # bug 14: another type would be read as bytes
        encode_mask(np.zeros((4, 4, 1), np.int64), [WHITE])


SAMPLES = {
    "png": encode(picture(3), "png"),
    "jpg": encode(picture(3), "jpg"),
    "webp": encode(picture(3), "webp"),
    "tif": encode(picture(5, np.uint16), "tif"),
    "mask": encode_mask(picture(1)[:, :, 0] % 2, [WHITE, PINK]),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_truncated_images_are_refused(kind):
    """At any length: refused, or (where only a trailer is gone) the whole picture."""
    data = SAMPLES[kind]
    whole = decode(data)
    refused = 0
    for length in {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 20, len(data))}:
        try:
            part = decode(data[:length])
        except TileError:
            refused += 1
        else:
            assert part.shape == whole.shape
            if kind != "jpg":
                np.testing.assert_array_equal(part, whole)
    assert refused >= 55


@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_images_raise_nothing_but_tile_errors(kind):
    rng = random.Random(kind)
    for _ in range(150):
        data = bytearray(SAMPLES[kind])
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        for read in (decode, decode_mask):
            try:
                read(bytes(data))
            except TileError as error:
                assert str(error)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<html>", bytes(1000), b"II*\x00", b"MM\x00*" + bytes(50), b"RIFF"]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(TileError):
        decode(data)
    assert sniff(data) in (None, "tif")


def test_images_that_would_fill_the_memory_are_refused():
    bomb = saved(Image.new("L", (5000, 5000)))
    assert len(bomb) < 50_000
    with pytest.raises(TileError, match="5000x5000 pixels, the limit is 16777216"):
        decode(bomb)
    with pytest.raises(TileError, match="limit"):
        decode(encode(picture(1), "png"), max_pixels=1000)
    with rasterio.MemoryFile() as memory:
        options = {"driver": "GTiff", "width": 64, "height": 64, "count": 300, "dtype": "uint8"}
        with memory.open(**options, compress="deflate") as raster:
            raster.write(np.zeros((300, 64, 64), np.uint8))
        deep = bytes(memory.read())
    with pytest.raises(TileError, match="300 bands"):
        decode(deep, max_pixels=64 * 64)
    assert decode(deep).shape == (64, 64, 300)


def test_no_error_names_our_insides():
    with pytest.raises(TileError) as caught:
        decode(SAMPLES["tif"][:300])
    assert "/vsimem" not in str(caught.value)


def test_colors():
    assert parse_color("deeppink") == PINK and parse_color("#FF1493") == PINK
    for wrong in ("pinkish", "#12", ""):
        with pytest.raises(ConfigError, match="not a colour"):
            parse_color(wrong)


def test_complementary_colors():
    """Stacked, label and mask give grey where they agree."""
    assert complementary([WHITE, PINK, (0, 0, 0)]) == [WHITE, (20, 255, 128), (0, 0, 0)]
    mean = [(a + b) / 2 for a, b in zip(PINK, complementary([PINK])[0], strict=True)]
    assert max(mean) - min(mean) <= 1


def test_a_mask_in_webp_is_grey_and_comes_back():
    mask = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    data = encode_mask_webp(mask)
    assert sniff(data) == "webp" and np.array_equal(decode_mask(data), mask)
    assert np.array_equal(decode(data), np.repeat(mask[:, :, np.newaxis], 3, axis=2))
    with pytest.raises(TileError, match="a mask is a single-band image of class indices, this one is RGB"):
        decode_mask(encode(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8), "webp"))


def test_a_png_that_claims_to_be_huge_is_not_called_corrupt():
    with pytest.raises(TileError, match="far more pixels than the limit of 16777216"):
        decode(png(100_000, 100_000, b""))


def test_threads_do_not_warn_of_tiles_without_a_georeference():
    def work(number: int) -> bool:
        tile = picture(side=8)
        return np.array_equal(decode(encode_lossless(tile, near=number % 2 == 0)), tile)

    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(8) as pool:
        warnings.resetwarnings()  # what pytest ignores
        warnings.simplefilter("always")
        assert all(pool.map(work, range(400)))
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.parametrize("tile_format", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("bands", [1, 3])
def test_padded_images_are_read_and_written_as_the_others(tile_format, bands):
    rng = np.random.default_rng(bands)
    data = encode(
        np.kron(rng.integers(0, 256, (4, 5, bands)), np.ones((8, 8, 1), int)).astype(np.uint8), tile_format
    )
    image = padded(data, lambda array: array if bands == 3 else np.repeat(array, 3, axis=2))
    assert image.shape == (32, 40, 4) and (image[:, :, :3] == decode(data)).all()
    assert encode_padded(image, tile_format) == encode(np.ascontiguousarray(image[:, :, :3]), tile_format)
