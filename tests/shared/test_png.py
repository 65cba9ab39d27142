"""PNG of few colours, read back by Pillow and GDAL."""

from __future__ import annotations

import io

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsp.shared.images import decode_mask, encode_mask
from rsp.shared.png import depth_of, encode_values


@pytest.mark.parametrize(
    ("colors", "depth"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8), (255, 8), (256, 8)]
)
def test_as_few_bits_as_the_palette_needs(colors, depth):
    assert depth_of(colors) == depth
    data = encode_mask(np.zeros((3, 5), np.uint8), [(0, 0, 0)] * colors)
    assert data[24] == depth


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 256),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 8, 40]),
)
def test_indices_and_palette_come_back(colors, height, width, seed, scale):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, colors, (-(-height // scale), -(-width // scale)))
    mask = np.kron(coarse, np.ones((scale, scale), int))[:height, :width].astype(np.uint8)
    palette = [tuple(map(int, row)) for row in random.integers(0, 256, (colors, 3))]
    data = encode_mask(mask, palette)
    np.testing.assert_array_equal(decode_mask(data), mask)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    assert image.getpalette()[: 3 * colors] == [value for color in palette for value in color]
    with rasterio.MemoryFile(data) as memory, memory.open() as raster:
        np.testing.assert_array_equal(raster.read(1), mask)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1, np.uint8), (3, np.uint8), (4, np.uint8), (1, np.uint16), (3, np.uint16), (4, np.uint16)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_values_come_back(kind, height, width, seed, planes):
    bands, dtype = kind
    shape = (bands, height, width) if planes else (height, width, bands)
    image = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    if planes:  # as GDAL has them
        image = np.moveaxis(image, 0, 2)
    data = encode_values(image)
    if dtype == np.uint8:
        picture = Image.open(io.BytesIO(data))
        assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[bands]
        np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)
    with rasterio.MemoryFile(data) as memory, memory.open() as raster:
        np.testing.assert_array_equal(np.moveaxis(raster.read(), 0, 2), image)


def test_files_are_no_larger_than_those_of_a_general_encoder():
    """A twentieth at most, for imagery as for what is drawn; the general encoder tries every filter."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), int)
    image = (smooth + rng.integers(-3, 4, (256, 256, 3))).clip(0, 255).astype(np.uint8)
    drawn = np.asarray(coarse.resize((256, 256), Image.Resampling.NEAREST))
    stripes = image.copy()
    stripes[:, ::2] = 0
    for each in (image, image[:, :, :1], drawn, stripes):
        buffer = io.BytesIO()
        Image.fromarray(each.squeeze()).save(buffer, "PNG", compress_level=1)
        assert len(encode_values(each)) < 1.05 * len(buffer.getvalue())
