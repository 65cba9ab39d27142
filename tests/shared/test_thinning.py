"""Thinning and distances, against what they mean pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString

from rsp.shared.bits import Bits
from rsp.shared.thinning import AROUND, Distances, _half, measured, thinned


def regions(seed, shape=(40, 56)):
    """Return squares of any size, some of them touching, with lone pixels and holes in half of the images."""
    rng = np.random.default_rng(seed)
    cell = int(rng.integers(1, 9))
    coarse = rng.random((shape[0] // cell + 1, shape[1] // cell + 1)) < rng.uniform(0.2, 0.7)
    found = np.kron(coarse, np.ones((cell, cell), bool))[: shape[0], : shape[1]]
    return found ^ (rng.random(shape) < rng.choice([0, 0.03]))


def parts(pixels):
    """Return which pixels are connected, by edges and corners, as sets of their places."""
    shapes = rasterio.features.shapes(pixels.astype(np.uint8), mask=pixels, connectivity=8)
    found = [rasterio.features.rasterize([(shape, 1)], pixels.shape, dtype="uint8") == 1 for shape, _ in shapes]
    return [frozenset(np.flatnonzero(one & pixels).tolist()) for one in found]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_each_region_keeps_a_line_that_is_connected(seed):
    pixels = regions(seed)
    lines = thinned(pixels)
    assert not (lines & ~pixels).any()
    left = parts(lines)
    for region in parts(pixels):
        assert len([line for line in left if line & region]) == 1
    assert (thinned(lines) == lines).all()


def goes(around, half):
    """Tell whether a pixel goes in a half of a round, as the paper has it; `around` clockwise from the north."""
    north, north_east, east, south_east, south, south_west, west, north_west = around
    pairs = [around[at] or around[(at + 1) % 8] for at in range(8)]
    parts = sum(not around[at] and pairs[at + 1] for at in (0, 2, 4, 6))
    least = min(sum(pairs[::2]), sum(pairs[1::2]))
    kept = (north or north_east or not south_east) and east if half else (
        (south or south_west or not north_west) and west
    )  # fmt: skip
    return parts == 1 and 2 <= least <= 3 and not kept


def test_a_round_is_that_of_the_paper():
    """Whatever is around a pixel."""
    patterns = (np.arange(256)[:, np.newaxis] >> np.arange(8)) & 1 == 1
    image = np.zeros((3 * 256, 3), bool)
    image[1::3, 1] = True
    for at, (down, right) in enumerate(AROUND):
        image[1 + down :: 3, 1 + right] = patterns[:, at]
    for half in (0, 1):
        bits = Bits.of(image)
        expected = [not goes(around, half) for around in patterns.tolist()]
        _half(bits, half)
        assert bits.flags()[1::3, 1].tolist() == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_line_follows_from_what_is_near(seed):
    """What is cut out with twice as many pixels around it as there are rounds is thinned as it is in the whole."""
    pixels = regions(seed, (96, 96)) & (np.indices((96, 96)) % 12 < 9).all(axis=0)  # no wider than nine
    around = 2 * 9
    inner = slice(30, 60)
    cut = pixels[30 - around : 60 + around, 30 - around : 60 + around]
    assert (thinned(cut)[around:-around, around:-around] == thinned(pixels)[inner, inner]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_distances_are_those_of_the_nearest_pixel(seed):
    pixels = regions(seed, (17, 23))
    rows, columns = np.nonzero(pixels)
    outside = np.argwhere(~np.pad(pixels, 1)) - 1
    squared, down, right = Distances(pixels)(rows, columns)
    for row, column, *found in zip(rows, columns, squared, down, right, strict=True):
        assert found[0] == ((outside - (row, column)) ** 2).sum(axis=1).min() == found[1] ** 2 + found[2] ** 2
        assert [row + found[1], column + found[2]] in outside.tolist()


@pytest.mark.parametrize("wide", range(1, 14))
@pytest.mark.parametrize("turned", [False, True])
def test_widths_are_exact_along_the_axes(wide, turned):
    pixels = np.zeros((30, 90), bool)
    pixels[8 : 8 + wide] = True
    pixels = pixels.T if turned else pixels
    lines = thinned(pixels)
    rows, columns = np.nonzero(lines)
    inside = (rows if turned else columns) // 30 == 1
    found = measured(Distances(pixels), rows[inside], columns[inside])
    assert inside.sum() == 30 and (found.width == wide).all()
    across = (columns if turned else rows)[inside] + 0.5 + found.shift[:, 0 if turned else 1]
    assert np.allclose(across, 8 + wide / 2)


@pytest.mark.parametrize("angle", [7, 20, 33, 45, 62])
@pytest.mark.parametrize("wide", [4, 7, 12])
def test_widths_aslant(angle, wide):
    along = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * 90
    road = LineString([100 - along, 100 + along]).buffer(wide / 2)
    pixels = rasterio.features.rasterize([(road, 1)], (200, 200), dtype="uint8") == 1
    rows, columns = np.nonzero(thinned(pixels))
    assert np.mean(measured(Distances(pixels), rows, columns).width) == pytest.approx(wide, abs=0.8)
