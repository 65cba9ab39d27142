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
from rsp.shared.png import depth_of


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
