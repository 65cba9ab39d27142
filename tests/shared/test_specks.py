"""Small regions and holes: the quick way to find them, against looking at all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsp.shared import specks
from rsp.shared.mercator import AROUND
from rsp.shared.polygons import Grid
from rsp.shared.specks import without_small

# At the equator a pixel is as large on the ground as on the map.
GRID = Grid(17, 64)
CORNER = (2**16 * 64, 2**16 * 64)
PIXEL = (AROUND / (64 << 17)) ** 2


def small(pixels, least, margin=8):
    return without_small(pixels, least * PIXEL, margin, CORNER, GRID)


def whole(pixels, least, margin=8):
    """Return the same where all regions and holes are traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specks, "_doubtful", lambda pixels, least: None)
        return small(pixels, least, margin)


def traced(pixels, least, margin=8):
    """Return the pixels of each image that is traced on the way."""
    counts = []
    with pytest.MonkeyPatch.context() as patch:
        trace = specks.trace
        patch.setattr(specks, "trace", lambda some: counts.append(int(some.sum())) or trace(some))
        small(pixels, least, margin)
    return counts


def blocks(rng, shape, cell, share):
    found = rng.random((shape[0] // cell + 1, shape[1] // cell + 1)) < share
    return np.kron(found, np.ones((cell, cell), bool))[: shape[0], : shape[1]]


def scene(seed):
    """Return roads, blocks or rings in rings, some with pixels turned around: corners that touch are frequent."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(20, 90, 2))
    rows, columns = np.indices(shape)
    kind = rng.integers(3)
    found = blocks(rng, shape, int(rng.integers(2, 13)), rng.uniform(0.2, 0.9) if kind else 0)
    for _ in range(rng.integers(1, 9)):
        row, column, angle = rng.integers(shape[0]), rng.integers(shape[1]), rng.uniform(0, np.pi)
        if kind == 0:
            away = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)
            found |= abs(away) < rng.uniform(1.5, 6)
        elif kind == 1:
            outer = int(rng.integers(2, 9))
            away = np.maximum(abs(rows - row), abs(columns - column))
            found = np.where(away < outer, (away == outer - 1) | (away == 0), found)
    return found ^ (rng.random(shape) < rng.choice([0, 0.003, 0.03])), int(rng.integers(min(shape) // 2))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.6, 2.5, 4.0, 8.5, 20.0, 300.0, 5000.0]))
def test_the_quick_look_finds_what_is_small(seed, least):
    pixels, margin = scene(seed)
    before = pixels.copy()
    quick, all_of_it = small(pixels, least, margin), whole(pixels, least, margin)
    assert quick[1] == all_of_it[1] and (quick[0] == all_of_it[0]).all() and (pixels == before).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.5, 8.5, 20.0, 300.0]))
def test_nothing_small_is_left(seed, least):
    pixels, margin = scene(seed)
    found, _ = small(pixels, least, margin)
    again, dropped = whole(found, least, margin)
    assert dropped == 0 and (again == found).all()


def test_a_ring_that_is_small_goes_with_its_hole():
    pixels = np.zeros((30, 30), bool)
    pixels[12:15, 12:15] = True
    pixels[13, 13] = False
    found, dropped = small(pixels, 20)
    assert dropped == 1 and not found.any()


def test_a_hole_is_filled_with_what_is_in_it():
    pixels = np.zeros((40, 40), bool)
    pixels[10:30, 10:30] = True
    pixels[15:20, 15:20] = False
    pixels[17, 17] = True
    found, dropped = small(pixels, 30)
    assert dropped == 1 and found[10:30, 10:30].all() and found.sum() == 400


def test_holes_where_roads_part_are_found_beside_them():
    """They touch what is outside by a corner, and each other."""
    pixels = np.ones((40, 60), bool)
    pixels[10:20, 10:50] = pixels[9, 9] = pixels[20, 50] = pixels[21, 51] = False
    found, dropped = small(pixels, 8.5)
    expected = np.ones_like(pixels)
    expected[10:20, 10:50] = False
    assert (found == expected).all() and not dropped
    assert traced(pixels, 8.5) == [7 + 11]  # what is around one, and around the other two


@pytest.mark.parametrize("joined", [False, True])
def test_a_hole_between_two_parts(joined):
    """It is closed where they are one region: what is around the hole does not tell, so all of it is traced."""
    pixels = np.zeros((50, 50), bool)
    pixels[10:21, 10:21] = pixels[20:31, 20:31] = True
    pixels[20, 20] = False
    if joined:
        pixels[21:40, 10:13] = pixels[37:40, 10:31] = pixels[31:40, 28:31] = True
    found, dropped = small(pixels, 8.5)
    assert found[20, 20] == joined and found.sum() == pixels.sum() + joined and not dropped
    assert traced(pixels, 8.5) == [6, pixels.sum()]
