"""rsp vectorize on random masks of several classes, cut into tiles: what is drawn again, joined, and shared."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity

from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.components.vectorize.tool import vectorize
from rsp.shared.borders import simplified_together
from rsp.shared.config import parse_tables
from rsp.shared.errors import UsageError
from tests.components.test_vectorize import X, Y, Z, read, write_masks
from tests.tilesets import CONFIG

SIZE, COLUMNS, ROWS = 16, 3, 2
SHAPE = ROWS * SIZE, COLUMNS * SIZE
TITLES = ("building", "road")
TABLES = CONFIG.replace("[model]", '[[classes]]\ntitle="road"\ncolor="grey"\n[model]')
TOLERANCES = st.sampled_from([0.5, 1.0, 1.5, 3.0])
# In square pixels: coordinates have 7 decimals, a thousandth of a pixel here.
ROUNDING = 0.05


def drawn(seed: int, least: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Return squares of any size, of all classes from the least one, with lone pixels in half of the masks."""
    rng = np.random.default_rng(seed)
    cell = int(rng.integers(1, 8))
    coarse = rng.integers(least, 3, (shape[0] // cell + 1, shape[1] // cell + 1))
    found = np.kron(coarse, np.ones((cell, cell), int))[: shape[0], : shape[1]]
    lone = rng.random(shape) < rng.choice([0, 0.03])
    return np.where(lone, rng.integers(least, 3, shape), found).astype(np.uint8)


SEEDS = st.integers(0, 2**32 - 1)


def features(array: np.ndarray, size: int = SIZE, zoom: int = Z, **options) -> dict[str, list[shapely.Polygon]]:
    """Return the features of each class of an array, in its pixels."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.toml").write_text(TABLES)
        masks = write_masks(path / "masks.pmtiles", array, size, zoom=zoom, x=X >> Z - zoom, y=Y >> Z - zoom)
        vectorize(
            masks, path / "out.geojson", config=path / "config.toml", workers=1,
            **({"kind": TITLES, "min_area": 0} | options),
        )  # fmt: skip
        found = placed(path / "out.geojson")
    return {title: [polygon for polygon, name in found if name == title] for title in TITLES}


def placed(path: Path) -> list[tuple[shapely.Polygon, str]]:
    """Return features in pixels of the array, with their classes."""
    part = SIZE / 256
    return [(affinity.scale(each, part, part, origin=(0, 0)), named["class"]) for each, named in read(path)]


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_features_are_the_mask(seed):
    """Drawn again they give each pixel its class, holes and all; and tiles give what one large tile gives."""
    array = drawn(seed)
    found = features(array, simplify=0)
    again = np.zeros_like(array)
    for value, title in enumerate(TITLES, 1):
        whole = [shapely.transform(each, np.rint) for each in found[title]]
        assert all(map(shapely.equals_exact, whole, found[title], [0.01] * len(whole)))
        assert sum(each.area for each in whole) == (array == value).sum()
        if whole:
            again += rasterio.features.rasterize([(each, value) for each in whole], SHAPE, dtype="uint8")
    assert (again == array).all()


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_tiles_are_as_the_mosaic(seed):
    square = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    square[1:-1, 1:-1] = drawn(seed, shape=(2 * SIZE - 2, 2 * SIZE - 2))
    for simplify in (0.0, 1.0):
        four, one = features(square, simplify=simplify), features(square, 2 * SIZE, zoom=Z - 1, simplify=simplify)
        for title in TITLES:
            tiles, mosaic = ({each.normalize().wkb for each in some[title]} for some in (four, one))
            assert tiles == mosaic


@settings(max_examples=12, deadline=None)
@given(SEEDS, TOLERANCES)
def test_shared_borders_stay_shared_over_the_edges_of_tiles(seed, tolerance):
    """No gap and no overlap, in a mask where all is of a class."""
    found = features(drawn(seed, least=1), simplify=tolerance, shared_borders=True)
    every = [each for title in TITLES for each in found[title]]
    assert sum(each.area for each in every) == pytest.approx(SHAPE[0] * SHAPE[1], abs=ROUNDING)
    assert shapely.union_all(every).area == pytest.approx(SHAPE[0] * SHAPE[1], abs=ROUNDING)
    assert sum((one & other).area for one, other in combinations(every, 2)) < ROUNDING


@settings(max_examples=40, deadline=None)
@given(SEEDS, TOLERANCES)
def test_regions_of_a_mask_cover_it(seed, tolerance):
    mask = drawn(seed, shape=(14, 19))
    found = simplified_together(mask, tolerance)
    every = np.concatenate(list(found.values()))
    assert shapely.is_valid(every).all() and shapely.coverage_is_valid(every)
    assert shapely.area(every).sum() == mask.size
    plain = simplified_together(mask, 0.0)
    assert (
        shapely.get_num_coordinates(every).sum()
        <= shapely.get_num_coordinates(np.concatenate(list(plain.values()))).sum()
    )
    for value, polygons in found.items():
        assert shapely.area(plain[value]).sum() == (mask == value).sum() and len(polygons) == len(plain[value])
        assert max(map(shapely.hausdorff_distance, polygons, plain[value])) <= 2 * tolerance


def staircase() -> np.ndarray:
    """A building on a road that runs aslant, whose common border is one of many stair-steps."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    along = columns * 3 + rows * 7
    return np.where(along < 150, 1, np.where(along < 230, 2, 0)).astype(np.uint8)


def test_shared_borders_are_about_as_simple():
    apart, together = (features(staircase(), shared_borders=shared) for shared in (False, True))
    (building,), (road,) = together["building"], together["road"]
    assert (building & road).area < ROUNDING and building.distance(road) < ROUNDING
    corners = [len(shapely.get_coordinates(some["building"])) for some in (apart, together)]
    assert corners[1] <= corners[0] + 2 * COLUMNS
    (stairs,) = features(staircase(), simplify=0)["building"]
    assert building.hausdorff_distance(stairs) < 1.5 and len(shapely.get_coordinates(stairs)) > corners[1] + 5


def test_a_gap_along_the_edge_of_a_tile_is_not_closed():
    """It is as narrow as borders may move; closed, both buildings would touch."""
    array = np.zeros(SHAPE, np.uint8)
    array[4:12, 8:16] = array[7:9, 16:23] = 1
    array[6:10, 15] = 0
    found = features(array, shared_borders=True)["building"]
    assert sorted(round(each.area) for each in found) == [14, 60]


@pytest.mark.parametrize("seed", range(4))
def test_borders_do_not_follow_from_which_classes_are_asked_for(seed):
    array = drawn(seed)
    both = features(array, shared_borders=True)
    for title in TITLES:
        assert features(array, shared_borders=True, kind=title)[title] == both[title] != []


def test_a_ring_that_meets_no_other_is_an_arc_once():
    """Two that are the same could not be simplified without crossing each other."""
    rows, columns = np.mgrid[:40, :40]
    disc = ((rows - 20) ** 2 + (columns - 20) ** 2 < 200).astype(np.uint8)
    every, alone = (simplified_together(disc, 1.0, values)[1] for values in (None, [1]))
    assert every.tolist() == alone.tolist() and shapely.get_num_coordinates(alone)[0] < 20


@pytest.mark.parametrize(
    "other", [{"regularize": "building"}, {"denoise": 2}, {"grow": 2}, {"merge_distance": 2.0}]
)
def test_what_moves_outlines_class_by_class_is_refused(other):
    with pytest.raises(UsageError, match="--shared_borders"):
        features(staircase(), shared_borders=True, **other)


def test_shared_borders_from_the_component(tmp_path, run_component):
    masks = write_masks(tmp_path / "masks.pmtiles", staircase(), SIZE)
    expected = features(staircase(), shared_borders=True, min_area=1)
    given = {"kind": "building,road", "config": parse_tables(TABLES), "shared_borders": True}
    step = run_component(vectorize_component, {"masks": masks}, **given)
    assert [polygon for polygon, _ in placed(step.path("features"))] == [
        *expected["building"],
        *expected["road"],
    ]


def test_shared_borders_at_the_command_line(tmp_path, rsp):
    masks, out = write_masks(tmp_path / "masks.pmtiles", staircase(), SIZE), tmp_path / "out.json"
    (tmp_path / "config.toml").write_text(TABLES)
    given = ("--type", "building,road", "--config", tmp_path / "config.toml", "--shared_borders", masks, out)
    assert rsp("vectorize", *given).code == 0
    expected = features(staircase(), shared_borders=True, min_area=1)
    assert expected != features(staircase(), min_area=1)
    assert [polygon for polygon, _ in placed(out)] == [*expected["building"], *expected["road"]]
