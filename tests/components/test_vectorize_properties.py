"""rsp vectorize: which model made features, and how likely they are, however they are cut and joined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rsp.components.cover.blocks import OWN, SEEN, blocks
from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.components.vectorize.join import join
from rsp.components.vectorize.parts import Part, vectorize_block
from rsp.components.vectorize.tool import vectorize
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.images import encode, encode_mask
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_reader, open_writer
from tests.components.test_vectorize import X, Y, Z, to_pixels
from tests.components.test_vectorize_borders import drawn

SIZE, COLUMNS, ROWS = 16, 3, 2
TITLES = ("building", "road")
CLASSES = [{"title": "background", "color": "white"}, *({"title": title, "color": "gray"} for title in TITLES)]
COLORS = [(255, 255, 255), (9, 9, 9), (99, 99, 99)]
MODEL = "0b5c3f0e-5f5e-5a0e-9a3b-3f1d6f1f4a11"
OPTIONS = {"kind": list(TITLES), "min_area": 0.0, "workers": 1}


def tiles_of(array, size=SIZE):
    """Yield tiles and their parts of an array of any number of bands."""
    for row in range(array.shape[0] // size):
        for column in range(array.shape[1] // size):
            yield (
                Tile(X + column, Y + row, Z),
                array[row * size : (row + 1) * size, column * size : (column + 1) * size],
            )


def write_masks(path, array, model=MODEL, only=None, size=SIZE):
    with open_writer(path, "png", empty=True) as writer:
        writer.describe({"classes": CLASSES} | ({"model": model} if model else {}))
        for tile, part in tiles_of(array, size):
            if only is None or tile in only:
                writer.write(tile, encode_mask(np.ascontiguousarray(part), COLORS))
    return path


def write_probabilities(path, planes, model=MODEL, only=None, size=SIZE):
    with open_writer(path, "tif", empty=True) as writer:
        writer.describe({"model": model} if model else {})
        for tile, part in tiles_of(planes, size):
            if only is None or tile in only:
                writer.write(tile, encode(np.ascontiguousarray(part), "tif"))
    return path


def planes_of(seed, array):
    """Return probabilities that differ from pixel to pixel and from class to class."""
    return np.random.default_rng(seed).integers(0, 256, (*array.shape, 3)).astype(np.uint8)


def mean_of(values):
    """Return the mean of probabilities of 0 to 255 as it is written."""
    return round(int(values.sum()) / (255 * values.size), 3)


def read(path):
    """Return (polygon in pixels of the array, properties) of each feature."""
    features = json.loads(Path(path).read_text())["features"]
    return [
        (to_pixels(shapely.from_geojson(json.dumps(each["geometry"])), size=SIZE), each["properties"])
        for each in features
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


def run(folder, array, planes, **options):
    masks = write_masks(folder / "masks.pmtiles", array)
    shares = write_probabilities(folder / "probabilities.pmtiles", planes)
    vectorize(masks, folder / "out.json", probabilities=shares, **(OPTIONS | options))
    return read(folder / "out.json")


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_probability_is_the_mean_over_the_pixels_of_the_class(folder, seed):
    """Over the edges of tiles, for each class, and whatever becomes of the outline."""
    array = drawn(seed)
    planes = planes_of(seed, array)
    for merge in (True, False):
        exact = run(folder, array, planes, simplify=0, merge=merge)
        for polygon, properties in exact:
            inside = rasterio.features.rasterize([(shapely.transform(polygon, np.rint), 1)], array.shape) == 1
            value = 1 + TITLES.index(properties["class"])
            assert (array[inside] == value).all()
            assert properties["probability"] == mean_of(planes[inside, value])
            assert properties["model"] == MODEL
        told = sorted((each["class"], each["probability"]) for _, each in exact)
        for other in ({"simplify": 2}, {"regularize": "building"}, {"shared_borders": True}):
            found = run(folder, array, planes, merge=merge, **other)
            assert sorted((each["class"], each["probability"]) for _, each in found) == told


def test_what_is_removed_and_filled_counts_as_it_is_after_that(folder):
    """A hair goes with its pixels, and a gap comes with its own."""
    array = np.zeros((ROWS * SIZE, COLUMNS * SIZE), np.uint8)
    array[4:24, 6:30] = 1
    array[10, 6:44] = 1
    array[15, 20] = 0
    planes = planes_of(1, array)
    ((_, properties),) = run(folder, array, planes, kind="building", denoise=2, grow=3)
    assert properties["probability"] == mean_of(planes[4:24, 6:30, 1])


def test_what_is_joined_weighs_by_its_pixels(folder):
    array = np.zeros((ROWS * SIZE, COLUMNS * SIZE), np.uint8)
    array[2:10, 2:12] = array[2:4, 14:18] = 1
    planes = planes_of(2, array)
    ((_, properties),) = run(folder, array, planes, kind="building", merge_distance=30.0)
    assert properties["probability"] == mean_of(planes[array == 1, 1])
    assert properties["model"] == MODEL


@pytest.mark.parametrize("options", [{}, {"regularize": True}, {"shared_borders": True}])
def test_blocks_have_the_properties_of_the_whole(tmp_path, options):
    array = drawn(7, shape=(4 * SIZE, 5 * SIZE))
    planes = planes_of(7, array)
    whole = {**options} | ({"regularize": "building"} if "regularize" in options else {})
    run(tmp_path, array, planes, kind="building", **whole)
    write_cover(tmp_path / "cover.csv", [tile for tile, _ in tiles_of(array)])
    parts, pieces = [], 0
    for number, name in enumerate(blocks(tmp_path / "cover.csv", tmp_path / "blocks", size=3).written):
        own = read_cover(name + OWN)
        masks = write_masks(tmp_path / f"{number}.pmtiles", array, only=own)
        shares = write_probabilities(tmp_path / f"{number}.p.pmtiles", planes, only=own)
        parts.append(tmp_path / f"{number}.part")
        pieces += vectorize_block(
            masks, name + SEEN, parts[-1], probabilities=shares, kind="building", min_area=0, workers=1, **options
        ).pieces
    for suffix in (".json", ".parquet"):
        vectorize(
            tmp_path / "masks.pmtiles", tmp_path / f"all{suffix}", kind="building", min_area=0, workers=1,
            probabilities=tmp_path / "probabilities.pmtiles", **whole,
        )  # fmt: skip
        join([Part(part) for part in parts], tmp_path / f"joined{suffix}")
        assert (tmp_path / f"joined{suffix}").read_bytes() == (tmp_path / f"all{suffix}").read_bytes()
    assert pieces > 10 and len({each["probability"] for _, each in read(tmp_path / "joined.json")}) > 10


def test_parts_of_other_models_are_refused(tmp_path):
    array = np.ones((SIZE, 2 * SIZE), np.uint8)
    write_cover(tmp_path / "seen.csv", [tile for tile, _ in tiles_of(array)])
    parts = []
    for number, (tile, _) in enumerate(tiles_of(array)):
        masks = write_masks(tmp_path / f"{number}.pmtiles", array, model=f"model-{number}", only=[tile])
        vectorize_block(masks, tmp_path / "seen.csv", tmp_path / f"{number}.part", kind="building")
        parts.append(Part(tmp_path / f"{number}.part"))
    with pytest.raises(UsageError, match=r"several models: model-0 in .*0\.part, model-1 in .*; join one run's"):
        join(parts, tmp_path / "out.json")
    # A block without a mask has none of any model.
    empty = write_masks(tmp_path / "empty.pmtiles", array, model="another", only=[])
    vectorize_block(empty, tmp_path / "seen.csv", tmp_path / "empty.part", kind="building")
    join([parts[0], Part(tmp_path / "empty.part")], tmp_path / "out.json")
    assert [each["model"] for _, each in read(tmp_path / "out.json")] == ["model-0"]
    shares = write_probabilities(tmp_path / "p.pmtiles", planes_of(0, array), model=None)
    vectorize_block(
        tmp_path / "1.pmtiles", tmp_path / "seen.csv", tmp_path / "1.part", kind="building", probabilities=shares
    )
    with pytest.raises(UsageError, match=r"has the probabilities True, .* False; join one run's parts"):
        join([parts[0], Part(tmp_path / "1.part")], tmp_path / "out.json")


def test_columns_are_there_where_they_are_told(tmp_path):
    array = np.zeros((SIZE, SIZE), np.uint8)
    masks, named = (write_masks(tmp_path / f"{model}.pmtiles", array, model=model) for model in (None, MODEL))
    plain = ["class", "x", "y", "z", "tiles", "area_m2"]
    vectorize(masks, tmp_path / "plain.gpkg", **OPTIONS)
    assert pyogrio.read_info(tmp_path / "plain.gpkg")["fields"].tolist() == plain
    shares = write_probabilities(tmp_path / "p.pmtiles", planes_of(0, array))
    vectorize(named, tmp_path / "told.gpkg", probabilities=shares, **OPTIONS)
    info = pyogrio.read_info(tmp_path / "told.gpkg")
    assert info["fields"].tolist() == [*plain, "probability", "model"]
    assert info["dtypes"].tolist()[-2:] == ["float64", "object"]
    array[4:9, 4:9] = 1
    vectorize(write_masks(tmp_path / "one.pmtiles", array, model=None), tmp_path / "plain.json", **OPTIONS)
    ((_, properties),) = read(tmp_path / "plain.json")
    assert list(properties) == plain


def test_probabilities_have_to_be_those_of_the_masks(tmp_path, rsp):
    array = np.ones((SIZE, 2 * SIZE), np.uint8)
    masks = write_masks(tmp_path / "masks.pmtiles", array)
    planes = planes_of(0, array)
    out = tmp_path / "out.json"
    other = write_probabilities(tmp_path / "other.pmtiles", planes, model="another")
    with pytest.raises(UsageError, match=rf"probabilities of the model another, and the masks are of {MODEL}"):
        vectorize(masks, out, probabilities=other, **OPTIONS)
    part = write_probabilities(tmp_path / "part.pmtiles", planes, only=[Tile(X, Y, Z)])
    with pytest.raises(
        TileSetError, match=rf"part\.pmtiles lacks 1 of the 2 tiles .* first is {Z}/{X + 1}/{Y}; make both"
    ):
        vectorize(masks, out, probabilities=part, **OPTIONS)
    assert not out.exists()
    two = write_probabilities(tmp_path / "two", planes[..., :2])
    line = ("vectorize", "--type", "building", "--probabilities", two, masks, out)
    ran = rsp(*line)
    assert ran.code == 3 and "with 3 bands of uint8" in ran.stderr
    # One tile is of another size than its mask: the rest is done.
    two = write_probabilities(tmp_path / "sizes", planes)
    with open_writer(two, "tif", resume=True) as writer:
        writer.write(Tile(X + 1, Y, Z), encode(np.zeros((8, 8, 3), np.uint8), "tif"))
    ran = rsp(*line[:4], two, *line[5:])
    assert ran.code == 3 and "the tile has 8 x 8 pixels, its mask 16 x 16" in ran.stderr
    assert read_cover(f"{out}.failed.csv") == [Tile(X + 1, Y, Z)]
    assert [each["probability"] for _, each in read(out)] == [mean_of(planes[:, :SIZE, 1])]


def test_probabilities_at_the_command_line(tmp_path, rsp):
    array = drawn(3)
    planes = planes_of(3, array)
    expected = run(tmp_path, array, planes, min_area=1)
    ran = rsp(
        *("vectorize", "--type", "building,road", "--probabilities", tmp_path / "probabilities.pmtiles"),
        *(tmp_path / "masks.pmtiles", tmp_path / "again.json"),
    )
    assert ran.code == 0, ran.stderr
    assert read(tmp_path / "again.json") == expected and {"probability", "model"} <= expected[0][1].keys()


def test_component(tmp_path, run_component):
    array = drawn(4)
    expected = run(tmp_path, array, planes_of(4, array), kind="building", min_area=1)
    given = {"masks": tmp_path / "masks.pmtiles", "probabilities": tmp_path / "probabilities.pmtiles"}
    step = run_component(vectorize_component, given)
    assert read(step.path("features")) == expected


def test_tiles_of_several_models_are_of_all_of_them(tmp_path):
    """Where tile sets are put together they say so, and a set that starts over forgets."""
    array = np.ones((SIZE, 2 * SIZE), np.uint8)
    out = tmp_path / "masks"
    first, second = (tile for tile, _ in tiles_of(array))
    write_masks(out, array, model="b", only=[first])
    with open_writer(out, "png", resume=True) as writer:
        writer.describe({"model": "a"})
        writer.write(second, encode_mask(np.ones((SIZE, SIZE), np.uint8), COLORS))
    vectorize(out, tmp_path / "out.json", **OPTIONS)
    assert [each["model"] for _, each in read(tmp_path / "out.json")] == ["a,b"]
    write_masks(out, array, model=None)
    with open_reader(out) as reader:
        assert reader.info.model is None
