"""Crops: against pieces of one picture that Pillow and numpy cut by themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from rsp.components.train.crops import Crops, Place, Sheets
from rsp.shared.errors import TileError
from rsp.shared.tiles import Tile

SIDE, CROP = 64, 32
BLOCK = {(x, y) for x in range(5) for y in range(4)}
RNG = np.random.default_rng(5)
# Smooth enough that resampling keeps some of it.
PICTURE = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8)).resize((5 * SIDE, 4 * SIDE), 2)
)
LABEL = (PICTURE[:, :, 0] > 127).astype(np.uint8)
WEIGHTS = PICTURE[:, :, 1]


def crops(tiles=BLOCK, crop=CROP, picture=PICTURE, keep=1 << 20):
    """Of tiles of the picture; whoever asks for another tile fails."""
    cover = {Tile(x + 7, y + 9, 5) for x, y in tiles}

    def read(tile):
        assert tile in cover, f"{tile} is none to learn from"
        at = np.s_[(tile.y - 9) * SIDE : (tile.y - 8) * SIDE, (tile.x - 7) * SIDE : (tile.x - 6) * SIDE]
        return Sheets(picture[at], LABEL[at], WEIGHTS[at])

    return Crops(cover, SIDE, crop, read, keep)


def place(x, y, scale=1.0, angle=0.0):
    """Of a centre in the picture."""
    tile = Tile(int(x // SIDE) + 7, int(y // SIDE) + 9, 5)
    return Place(tile, x % SIDE, y % SIDE, scale, angle)


def test_pixels_of_a_crop_across_tiles_are_those_of_the_picture():
    cutter = crops()
    for x, y in RNG.uniform(CROP / 2, 4 * SIDE - CROP / 2, (40, 2)):
        image, label, weights = cutter.cut(place(x, y))
        left, top = math.floor(x - CROP / 2), math.floor(y - CROP / 2)
        at = np.s_[top : top + CROP, left : left + CROP]
        assert np.array_equal(image, PICTURE[at]) and image.dtype == np.uint8
        assert np.array_equal(label, LABEL[at]) and np.array_equal(weights, WEIGHTS[at])


@pytest.mark.parametrize("scale", [0.4, 0.75, 0.9, 1.1, 1.33, 3.0])
def test_a_scaled_crop_is_what_pillow_cuts_from_the_picture(scale):
    cutter, half = crops(), CROP / scale / 2
    picture, labels = Image.fromarray(PICTURE), Image.fromarray(LABEL)
    for x, y in RNG.uniform(half, 4 * SIDE - half, (12, 2)):
        image, label, _ = cutter.cut(place(x, y, scale))
        box = (x - half, y - half, x + half, y + half)
        expected = np.asarray(picture.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))
        assert np.abs(image.astype(int) - expected).max() <= 1
        nearest = np.asarray(labels.resize((CROP, CROP), Image.Resampling.NEAREST, box=box))
        assert np.mean(label != nearest) < 0.002  # where a centre lies upon an edge, and rounding decides


def test_quarter_turns_are_exact_and_counterclockwise():
    cutter = crops()
    straight = cutter.cut(place(100, 90))
    for turns in (1, 2, 3, -1):
        turned = cutter.cut(place(100, 90, angle=turns * math.pi / 2))
        assert np.array_equal(np.rot90(straight.label, turns), turned.label)
        assert np.array_equal(np.rot90(straight.weights, turns), turned.weights)
        # Pillow cuts fractions off.
        assert np.abs(np.rot90(straight.image, turns).astype(int) - turned.image).max() <= 1


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.3])
def test_image_label_and_weights_stay_together_when_turned(scale):
    picture = np.repeat(LABEL[:, :, None] * 200, 3, axis=2)
    cutter = crops(picture=picture)
    for angle in RNG.uniform(-math.pi, math.pi, 12):
        image, label, weights = cutter.cut(place(150, 130, scale, angle))
        assert {0, 1} == set(np.unique(label)) and weights.shape == label.shape
        # Mixed pixels are at the borders; all others are as the label says.
        clear = (image[:, :, 0] < 20) | (image[:, :, 0] > 180)
        if scale > 0.5:
            assert np.array_equal(image[:, :, 0][clear] > 100, label[clear] == 1) and clear.mean() > 0.3
        else:
            assert np.corrcoef(image[:, :, 0].ravel(), label.ravel())[0, 1] > 0.5
        # The same as of the pixels of the picture, one by one.
        y, x = np.mgrid[:CROP, :CROP] + 0.5 - CROP / 2
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        rows, columns = (
            np.floor(130 + sin * x + cos * y).astype(int),
            np.floor(150 + cos * x - sin * y).astype(int),
        )
        assert np.mean(label != LABEL[rows, columns]) < 0.01
        assert np.mean(weights != WEIGHTS[rows, columns]) < 0.02


def test_a_crop_that_would_leave_the_tiles_is_moved_as_little_as_it_must_be():
    """Any set of tiles, with holes: no other one is read; and no place nearer would do."""
    for number in range(25):
        rng = np.random.default_rng(number)
        tiles = {tile for tile in BLOCK if rng.random() < 0.6} or {(0, 0)}
        cutter = crops(tiles)
        free = np.zeros((4 * SIDE, 5 * SIDE), bool)
        for x, y in tiles:
            free[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE] = True
        # By the upper left corner of a crop: whether all of it lies on the tiles.
        sums = np.pad(free, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        wide = sums[:, CROP:] - sums[:, :-CROP]
        inside = wide[CROP:] - wide[:-CROP] == CROP**2
        tops, lefts = np.nonzero(inside)
        for _ in range(8):
            column, row = sorted(tiles)[rng.integers(len(tiles))]
            x, y = column * SIDE + int(rng.integers(SIDE)), row * SIDE + int(rng.integers(SIDE))
            at = place(x, y)
            _, to_x, to_y = cutter.settle(at, CROP)
            far = np.hypot(lefts + CROP / 2 - x, tops + CROP / 2 - y)
            assert math.hypot(to_x - at.x, to_y - at.y) == pytest.approx(far.min())
            left, top = column * SIDE + int(to_x) - CROP // 2, row * SIDE + int(to_y) - CROP // 2
            assert inside[top, left]
            assert np.array_equal(cutter.cut(at).image, PICTURE[top : top + CROP, left : left + CROP])
            for scale, angle in ((0.7, 0.0), (1.2, 0.6), (0.9, 2.0)):
                cutter.cut(place(x, y, scale, angle))  # reads no other tile


def test_only_where_tiles_are_smaller_than_a_crop_is_it_mirrored():
    cutter = crops({(2, 1)}, crop=96)
    image, label, weights = cutter.cut(place(2 * SIDE + 32, SIDE + 32))
    at = np.s_[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE]
    assert np.array_equal(image, np.pad(PICTURE[at], ((16, 16), (16, 16), (0, 0)), mode="reflect"))
    assert np.array_equal(label, np.pad(LABEL[at], 16, mode="reflect"))
    assert np.array_equal(weights, np.pad(WEIGHTS[at], 16, mode="reflect"))
    # All of the tile is seen, wherever the crop is drawn, in every form.
    image, *_ = cutter.cut(place(2 * SIDE, SIDE))
    assert np.array_equal(image[32:, 32:], PICTURE[at]) or np.array_equal(image[:64, :64], PICTURE[at])
    for scale, angle in ((0.5, 0.0), (0.6, 0.4), (2.0, 0.0)):
        image, label, _ = cutter.cut(place(2 * SIDE + 5, SIDE + 60, scale, angle))
        assert image.shape == (96, 96, 3) and label.shape == (96, 96)
    # With room for it on one axis, it is mirrored on the other one alone.
    image, *_ = crops({(1, 1), (2, 1)}, crop=96).cut(place(2 * SIDE - 3, SIDE + 32))
    row = PICTURE[SIDE : 2 * SIDE, SIDE : 3 * SIDE]
    assert np.array_equal(image, np.pad(row, ((16, 16), (0, 0), (0, 0)), mode="reflect")[:, 13:109])


def test_an_angle_in_a_corner_sees_no_fill():
    """A turned square needs more room than a straight one: it is moved by that."""
    white = np.full_like(PICTURE, 250)
    cutter = crops({(0, 0), (1, 0), (0, 1)}, picture=white)
    for x, y in ((0, 0), (127, 0), (0, 127), (63, 63)):
        for angle in (0.3, math.pi / 4, 2.2):
            for scale in (0.75, 1.0, 2.0):
                image, *_ = cutter.cut(place(x, y, scale, angle))
                assert image.min() == 250


@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_bands_of_any_type_and_planes_of_classes(angle):
    """Classes are not mixed, and lie where the label does; 12 bits in 16 and floats are resampled as bytes are."""
    at = place(120, 100, 0.8, angle)
    expected = crops().cut(at).image[:, :, 0].astype(float)
    for kind, factor, tolerance in ((np.uint16, 16, 1.01), (np.float32, 0.01, 1.01), (np.float64, 1.0, 1.01)):
        picture = np.stack([PICTURE[:, :, 0] * kind(factor), LABEL.astype(kind)], axis=2)
        assert picture.dtype == kind
        image, label, _ = crops(picture=picture).cut(at, classes=[1])
        assert image.dtype == kind
        assert np.abs(image[:, :, 0] / factor - expected).max() < tolerance
        assert np.array_equal(image[:, :, 1], label)
        # Whole numbers are rounded, not cut off.
        exact = crops(picture=picture.astype(np.float32)).cut(at, classes=[1]).image
        assert np.abs(image.astype(float) - exact).max() <= 0.5
    holes = np.stack([PICTURE[:, :, 0].astype(np.float32)] * 2, axis=2)
    holes[100, 120, 0] = np.nan
    image, *_ = crops(picture=holes).cut(at)
    assert 1 <= np.isnan(image[:, :, 0]).sum() <= 16 and not np.isnan(image[:, :, 1]).any()


def test_tiles_that_cannot_be_joined_or_read():
    cutter = crops()
    kept = cutter._read
    cutter._read = lambda tile: kept(tile)._replace(
        image=np.zeros((SIDE, SIDE, 3), [np.uint8, np.uint16][tile.x % 2])
    )
    with pytest.raises(TileError, match="the tiles around 5/7/9 hold values of the types uint16 and uint8"):
        cutter.cut(place(62, 30))

    def broken(tile):
        raise TileError(f"{tile} is damaged")

    cutter._read = broken
    with pytest.raises(TileError, match="is damaged"):
        cutter.cut(place(200, 200))


def test_memory_is_bounded_and_tiles_are_read_once():
    cutter = crops(keep=SIDE * SIDE * 5 * 4)
    seen = []
    read = cutter._read
    cutter._read = lambda tile: (seen.append(tile), read(tile))[1]
    for _ in range(5):
        cutter.cut(place(64, 64))
    assert len(seen) == 4
    for x in range(20, 300, 40):
        cutter.cut(place(x, 200))
    assert len(cutter._kept) <= 4
