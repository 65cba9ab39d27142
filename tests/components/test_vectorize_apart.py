"""Features with right angles do not overlap, in one run or in blocks, within a class and between classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity

from rsp.components.vectorize.tool import vectorize
from rsp.shared.apart import Claims, Ground
from rsp.shared.polygons import Grid, Shaping, rounded
from tests.components.test_join import cut_masks, in_blocks, whole
from tests.components.test_vectorize import write_masks
from tests.tilesets import CONFIG

CONFIG = CONFIG.replace("[model]", '[[classes]]\ntitle="road"\ncolor="grey"\n[model]')
SIZE, SHAPE = 32, (96, 128)
GRID = Grid(18, 256)
MIDDLE = GRID.size << GRID.zoom - 1


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("apart") / "config.toml"
    path.write_text(CONFIG)
    return path


def close(seed: int, classes: int = 1) -> np.ndarray:
    """Return buildings with bites taken out of them, in turned rows, with no more than three pixels between."""
    rng = np.random.default_rng(seed)
    array, angle = np.zeros(SHAPE, np.uint8), rng.uniform(0, 90)
    low = -20.0
    while low < 150:
        left, depth = -20.0, rng.uniform(6, 24)
        while left < 150:
            width = rng.uniform(6, 30)
            building = shapely.box(left, low, left + width, low + depth * rng.uniform(0.7, 1))
            bite = shapely.box(0, 0, width / 3, depth / 4)
            corners = shapely.get_coordinates(building)[:4]
            x, y = corners[rng.integers(4)] - rng.uniform(0, 1, 2) * (width / 3, depth / 4)
            building = affinity.rotate(building - affinity.translate(bite, x, y), angle, origin=(64, 48))
            found = rasterio.features.rasterize([(building, 1)], SHAPE) > 0
            array[found & (array == 0)] = rng.integers(1, classes + 1)
            left += width + rng.uniform(0, 3)
        low += depth + rng.uniform(0, 3)
    return array


def read(path):
    """Return the polygons of a file and their classes."""
    features = json.loads(path.read_text())["features"]
    polygons = shapely.from_geojson([json.dumps(each["geometry"]) for each in features])
    return polygons, np.array([each["properties"]["class"] for each in features])


def overlaps(polygons) -> np.ndarray:
    """Return the pairs of polygons in degrees that have more in common than rounding makes."""
    one, other = shapely.STRtree(polygons).query(polygons, "intersects")
    one, other = one[one < other], other[one < other]
    common = shapely.intersection(polygons[one], polygons[other])
    # Coordinates have seven decimals.
    return np.column_stack([one, other])[~shapely.is_empty(shapely.buffer(common, -1e-7))]


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_close_buildings_do_not_overlap(tmp_path_factory, config, seed, merge):
    folder = tmp_path_factory.mktemp("close")
    masks = write_masks(folder / "masks", close(seed, 2), SIZE)
    options = {"kind": "building,road", "config": config, "min_area": 0.0, "merge": merge, "workers": 1}
    vectorize(masks, folder / "plain.json", **options)
    vectorize(masks, folder / "right.json", regularize="building,road", **options)
    found, kinds = read(folder / "right.json")
    assert shapely.is_valid(found).all() and not len(overlaps(found))
    assert len(found) == len(read(folder / "plain.json")[0])
    # What is not asked for stays as it is.
    vectorize(masks, folder / "one.json", regularize="building", **options)
    (plain, _), (found, kinds) = read(folder / "plain.json"), read(folder / "one.json")
    roads = {polygon.wkt for polygon in found[kinds == "road"]}
    assert roads <= {polygon.wkt for polygon in plain}
    for one, other in overlaps(found).tolist():
        if "building" in kinds[[one, other]]:  # one that is in the road as a whole is not lost
            building, road = (found[place] for place in sorted((one, other), key=lambda place: kinds[place]))
            assert kinds[one] != kinds[other] and not overlaps(np.array([building, building - road])).size


def test_buildings_inside_of_a_tile_do_not_overlap(tmp_path, config):
    """Far from its edges, where no other tile has a say."""
    array = np.zeros((128, 128), np.uint8)
    array[36:92, 36:92] = close(22)[20:76, 36:92]
    masks = write_masks(tmp_path / "masks", array, 128)
    vectorize(masks, tmp_path / "out.json", kind="building", config=config, regularize="building", workers=1)
    found, _ = read(tmp_path / "out.json")
    assert len(found) > 3 and not len(overlaps(found))


@pytest.mark.parametrize("seed", range(3))
def test_blocks_keep_apart_what_the_whole_does(tmp_path, config, seed):
    masks = cut_masks(close(seed), SIZE, {(1, 2)} if seed == 2 else ())
    expected, result = whole(tmp_path, masks, config, regularize="building", simplify=1 + seed / 2)
    for most in (1, 5):
        found, joined, pieces = in_blocks(tmp_path, masks, config, most, regularize=True, simplify=1 + seed / 2)
        assert found == expected and joined == result and pieces
    assert not len(overlaps(read(tmp_path / "all.json")[0]))


def claims(*several, kinds=None):
    """Return features, each of a form and an outline as boxes in pixels from the middle of the grid."""
    forms, outlines = (np.array([shapely.box(*each[place]) for each in several], object) for place in (0, 1))
    outlines, forms = (shapely.transform(some, lambda points: points + MIDDLE) for some in (outlines, forms))
    return Claims(rounded(forms, GRID), outlines, np.array(kinds or [0] * len(several)))


def bounds(polygon):
    """Return the bounds of a polygon in degrees in these pixels, as they are near the equator."""
    west, south, east, north = shapely.bounds(polygon) * MIDDLE / 180
    return pytest.approx((west, -north, east, -south), abs=0.05)


def test_the_smaller_one_takes_what_both_would():
    ground = Ground(GRID, [Shaping(regularize=True)])
    small, large = [(0, 0, 104, 50), (0, 0, 100, 50)], [(101, 0, 400, 50), (107, 0, 400, 50)]
    for order in ([small, large], [large, small]):
        found = sorted(ground.divided(claims(*order)), key=shapely.area)
        assert bounds(found[0]) == (0, 0, 104, 50) and bounds(found[1]) == (104, 0, 400, 50)
        assert not len(overlaps(np.array(found)))
    # Of another outline nothing is taken, even by the smaller one.
    found = ground.divided(claims([(0, 0, 109, 50), (0, 0, 100, 50)], large))
    assert bounds(found[0]) == (0, 0, 107, 50) and bounds(found[1]) == (107, 0, 400, 50)


def test_what_is_too_unlike_its_outline_is_the_outline():
    ground = Ground(GRID, [Shaping(regularize=True)])
    small, large = [(0, 0, 12, 10), (0, 0, 10, 10)], [(9, 0, 18, 10), (13, 0, 25, 10)]
    found = ground.divided(claims(small, large))
    assert bounds(found[0]) == (0, 0, 10, 10) and bounds(found[1]) == (13, 0, 25, 10)


def test_what_stays_as_it_is_is_taken_from_others_even_from_their_outlines():
    ground = Ground(GRID, [Shaping(regularize=True), Shaping()])
    fixed = [(10, 0, 30, 10), (12, 0, 30, 10)]
    found = ground.divided(claims([(0, 0, 12, 10), (0, 0, 12, 10)], fixed, kinds=[0, 1]))
    assert bounds(found[0]) == (0, 0, 10, 10) and bounds(found[1]) == (10, 0, 30, 10)
    found = ground.divided(claims([(10, 0, 12, 10), (10, 0, 12, 10)], fixed, kinds=[0, 1]))
    assert bounds(found[0]) == (10, 0, 12, 10)  # else it would be lost
