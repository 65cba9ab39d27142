"""Features of blocks, joined: byte for byte those of all masks at once, however the area is cut."""

from __future__ import annotations

import json
import zipfile
from itertools import product

import numpy as np
import pytest
import rasterio.features
import shapely
from shapely import affinity
from shapely.geometry import box

from rsp.components.cover.blocks import OWN, SEEN, blocks
from rsp.components.vectorize.join import join, staggered
from rsp.components.vectorize.parts import Finished, Part, vectorize_block
from rsp.components.vectorize.tool import vectorize
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.images import encode_mask
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_writer
from tests.tilesets import COLORS, CONFIG

# A corner of four large quadkeys, so that blocks of any size end within the area.
Z, X, Y = 18, 131072 - 3, 65536 - 2
OPTIONS = {"kind": "building", "simplify": 1.0, "min_area": 0.0, "workers": 1}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def cut_masks(array, size, skip=()):
    """Return the tiles of an array and their masks."""
    rows, columns = (side // size for side in array.shape)
    return {
        Tile(X + column, Y + row, Z): array[row * size :, column * size :][:size, :size]
        for row in range(rows)
        for column in range(columns)
        if (column, row) not in skip
    }


def write(path, masks):
    with open_writer(path, "png") as writer:
        for tile, mask in masks.items():
            writer.write(tile, encode_mask(mask.astype(np.uint8), COLORS))
    return path


def whole(tmp_path, masks, config, **options):
    write(tmp_path / "all.pmtiles", masks)
    result = vectorize(tmp_path / "all.pmtiles", tmp_path / "all.json", config=config, **(OPTIONS | options))
    return (tmp_path / "all.json").read_bytes(), result


def in_blocks(tmp_path, masks, config, size, *, cover=(), **options):
    """Vectorize block by block and join; the cover may have tiles that have no mask."""
    write_cover(tmp_path / "cover.csv", [*masks, *cover])
    found = blocks(tmp_path / "cover.csv", tmp_path / "blocks", size=size)
    parts, pieces = [], 0
    for number, name in enumerate(found.written):
        own = [tile for tile in read_cover(name + OWN) if tile in masks]
        if own:
            write(tmp_path / f"{number}.pmtiles", {tile: masks[tile] for tile in own})
            parts.append(tmp_path / f"{number}.part")
            pieces += vectorize_block(
                tmp_path / f"{number}.pmtiles", name + SEEN, parts[-1], config=config, **(OPTIONS | options)
            ).pieces
    result = join([Part(part) for part in parts[::-1]], tmp_path / "joined.json")
    return (tmp_path / "joined.json").read_bytes(), result, pieces


def winding(side):
    """A spiral of one pixel in width, which passes through each block many times, and comes back."""
    array = np.zeros((side, side), np.uint8)
    low, high = 0, side - 1
    while high - low > 3:
        array[low, low:high] = array[low:high, high] = array[high, low : high + 1] = array[low + 2 : high, low] = 1
        array[low + 2, low : low + 2] = 1
        low, high = low + 2, high - 2
    return array


def speckled(rng, shape, share, blur):
    """Random regions, the larger the more neighbours each pixel agrees with."""
    field = rng.random(shape)
    for _ in range(blur):
        field = sum(np.roll(field, shift, axis) for axis in (0, 1) for shift in (-1, 0, 1))
    return (field <= np.quantile(field, share)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_any_size_end_as_the_whole(tmp_path, config, seed):
    rng = np.random.default_rng(seed)
    size, rows, columns = 16, int(rng.integers(3, 7)), int(rng.integers(3, 7))
    array = speckled(rng, (rows * size, columns * size), rng.uniform(0.3, 0.9), seed % 4)
    skip = {(int(rng.integers(columns)), int(rng.integers(rows))) for _ in range(seed % 3 * 2)}
    masks = cut_masks(array, size, skip)
    options = {"simplify": [0.0, 1.0, 2.5][seed % 3], "min_area": [0.0, 3.0][seed % 2]}
    expected, result = whole(tmp_path, masks, config, **options)
    missing = [Tile(X + column, Y + row, Z) for column, row in skip]
    for most in {int(rng.integers(1, 9)), int(rng.integers(9, 51))}:
        found, joined, _ = in_blocks(tmp_path, masks, config, most, cover=missing, **options)
        assert found == expected, f"blocks of {most}"
        assert joined == result


def test_blocks_have_the_right_angles_of_the_whole(tmp_path, config):
    array = np.zeros((64, 96), np.uint8)
    for number, (row, column) in enumerate(product((20, 46), (14, 40, 70))):
        building = affinity.rotate(shapely.box(column - 11, row - 7, column + 11, row + 7), 17 * number)
        array |= rasterio.features.rasterize([(building, 1)], array.shape, dtype="uint8")
    masks = cut_masks(array, 16)
    expected, result = whole(tmp_path, masks, config, regularize="building")
    for most in (1, 7):
        found, joined, _ = in_blocks(tmp_path, masks, config, most, regularize=True)
        assert found == expected and joined == result
    assert whole(tmp_path, masks, config)[0] != expected


def test_blocks_have_the_shared_borders_of_the_whole(tmp_path, config):
    masks = cut_masks(speckled(np.random.default_rng(3), (64, 96), 0.6, 2), 16, {(1, 1)})
    expected, result = whole(tmp_path, masks, config, shared_borders=True)
    found, joined, pieces = in_blocks(tmp_path, masks, config, 5, shared_borders=True)
    assert found == expected and joined == result and pieces
    assert whole(tmp_path, masks, config)[0] != expected


def test_the_union_of_all_pixels_is_what_is_joined(tmp_path, config):
    size = 16
    array = speckled(np.random.default_rng(5), (5 * size, 6 * size), 0.5, 1)
    masks = cut_masks(array, size, {(2, 1)})
    joined, result, pieces = in_blocks(tmp_path, masks, config, 4, simplify=0)
    assert pieces > 100
    squares = [
        box(column, row, column + 1, row + 1)
        for tile, mask in masks.items()
        for row, column in np.argwhere(mask) + np.array([(tile.y - Y) * size, (tile.x - X) * size])
    ]
    union = shapely.get_parts(shapely.unary_union(squares))
    assert len(union) == result.features
    # In whole pixels again, each feature is one of these.
    scale = (1 << Z) * size

    def to_pixels(points):
        sine = np.sin(np.radians(points[:, 1]))
        turns = np.column_stack([(points[:, 0] + 180) / 360, 0.5 - np.arctanh(sine) / (2 * np.pi)])
        return (turns * scale - [X * size, Y * size]).round()

    found = [
        shapely.transform(shapely.from_geojson(json.dumps(feature["geometry"])), to_pixels)
        for feature in json.loads(joined)["features"]
    ]
    order = {one.normalize().simplify(0).normalize().wkt for one in union}
    assert {one.normalize().simplify(0).normalize().wkt for one in found} == order


@pytest.mark.parametrize("most", [1, 3, 7])
def test_what_winds_through_many_blocks_is_one(tmp_path, config, most):
    masks = cut_masks(winding(6 * 16), 16)
    expected, result = whole(tmp_path, masks, config)
    found, joined, pieces = in_blocks(tmp_path, masks, config, most)
    assert found == expected and joined == result and pieces > 50


def test_a_ring_around_blocks_keeps_its_hole(tmp_path, config):
    array = np.zeros((96, 96), np.uint8)
    array[5:91, 5:91] = 1
    array[20:76, 20:76] = 0
    array[40:50, 40:50] = 1
    masks = cut_masks(array, 16)
    expected, _ = whole(tmp_path, masks, config)
    found, joined, _ = in_blocks(tmp_path, masks, config, 2)
    assert found == expected and joined.features == 2
    assert sorted(len(feature["geometry"]["coordinates"]) for feature in json.loads(found)["features"]) == [1, 2]


def test_what_touches_in_a_corner_of_blocks_stays_two(tmp_path, config):
    """Where four blocks meet, two pixels that have only this point in common."""
    array = np.zeros((64, 96), np.uint8)
    array[2 * 16 - 2 : 2 * 16, 3 * 16 - 2 : 3 * 16] = array[2 * 16 : 2 * 16 + 2, 3 * 16 : 3 * 16 + 2] = 1
    masks = cut_masks(array, 16)
    expected, _ = whole(tmp_path, masks, config)
    found, joined, pieces = in_blocks(tmp_path, masks, config, 1)
    assert found == expected and joined.features == pieces == 2


def test_a_feature_waits_for_a_row_of_another_block_that_has_none(tmp_path, config):
    """The order follows from the rows after which features are whole, and in rows without a piece some are."""
    array = np.zeros((96, 96), np.uint8)
    array[10:32, 50:54] = 1  # ends on the edge of the second row, with an empty tile below
    array[34:40, 4:8] = 1  # whole in the third row
    array[30:34, 70:74] = 1
    masks = cut_masks(array, 16)
    expected, _ = whole(tmp_path, masks, config)
    for most in (1, 2, 5, 12):
        assert in_blocks(tmp_path, masks, config, most)[0] == expected


def test_a_mask_that_another_block_has_not_ends_features(tmp_path, config):
    """The neighbour stands in the cover, so the feature may go on there; its mask could not be had."""
    masks = cut_masks(np.ones((48, 64), np.uint8), 16, {(3, 1)})
    expected, result = whole(tmp_path, masks, config)
    found, joined, pieces = in_blocks(tmp_path, masks, config, 1, cover=[Tile(X + 3, Y + 1, Z)])
    assert found == expected and joined == result and pieces == 11


def test_a_part_is_the_same_bytes_for_any_number_of_processes(tmp_path, config):
    masks = cut_masks(speckled(np.random.default_rng(1), (128, 160), 0.5, 2), 16)
    write(tmp_path / "masks.pmtiles", masks)
    write_cover(tmp_path / "seen.csv", [*masks, *(Tile(X + 10, Y + row, Z) for row in range(8))])
    for workers in (1, 2):
        options = OPTIONS | {"workers": workers, "config": config}
        vectorize_block(tmp_path / "masks.pmtiles", tmp_path / "seen.csv", tmp_path / f"{workers}.part", **options)
    assert (tmp_path / "1.part").read_bytes() == (tmp_path / "2.part").read_bytes()


@pytest.fixture
def two(tmp_path, config):
    masks = cut_masks(np.ones((16, 32), np.uint8), 16)
    in_blocks(tmp_path, masks, config, 1)
    return tmp_path / "0.part", tmp_path / "1.part"


def test_a_block_is_not_joined_twice(tmp_path, two):
    with pytest.raises(UsageError, match=r"are of the same block; give each once"):
        join([Part(part) for part in (*two, two[0])], tmp_path / "out.json")
    with pytest.raises(UsageError, match="no part to join"):
        join([], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("zoom", 17, "zoom 18"), ("title", "road", "class building"), ("tolerance", 0.5, "simplification 1.0"),
     ("min_area", 7, "least area 0.0"), ("regularize", True, "right angles False"),
     ("size", 32, "differ in size: 16 pixels")],
)  # fmt: skip
def test_parts_of_other_runs_are_refused(tmp_path, two, field, value, reason):
    change(two[0], **{field: value})
    with pytest.raises(UsageError, match=rf"{reason}.*join one run's parts"):
        join([Part(part) for part in two], tmp_path / "out.json")


def change(path, **fields):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["header.json"] = json.dumps(json.loads(members["header.json"]) | fields).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_damaged_part_is_named(tmp_path, two):
    change(two[0], format=1)
    with pytest.raises(FeatureError, match=r"0\.part is a part of version 1, and this is for 8; make it again"):
        Part(two[0])
    data = two[1].read_bytes()
    two[1].write_bytes(data[: len(data) // 2])
    with pytest.raises(FeatureError, match=r"1\.part is no part of features, or is damaged"):
        Part(two[1])


def test_files_are_opened_when_their_rows_come(tmp_path):
    opened, closed = [], []

    def stream(name, *rows):
        def start():
            opened.append(name)
            for row in rows:
                yield Finished(row, (row, 0), 0.0, name)
            closed.append(name)

        return (rows[0] if rows else None), start

    merged = staggered([stream("c", 9, 10), stream("a", 1, 5), stream("b", 5, 6), stream("none")])
    assert [(one.row, one.text) for one in (next(merged), next(merged))] == [(1, "a"), (5, "a")]
    assert opened == ["a", "b"]
    assert [one.text for one in merged] == ["b", "b", "c", "c"] and closed == ["a", "b", "c"]
    with pytest.raises(FeatureError, match="its row 2 comes after row 3"):
        list(staggered([stream("x", 3, 2)]))


@pytest.mark.parametrize("suffix", [".geojsonl", ".fgb", ".gpkg", ".parquet"])
def test_joins_into_each_format_that_vectorize_writes(tmp_path, config, suffix):
    masks = cut_masks(winding(64), 32)
    everything = write(tmp_path / "all.pmtiles", masks)
    vectorize(everything, (tmp_path / "all").with_suffix(suffix), config=config, **OPTIONS)
    in_blocks(tmp_path, masks, config, 2)
    parts = [Part(path) for path in sorted(tmp_path.glob("*.part"))]
    assert len(parts) > 1
    # A layer has the name of its file.
    (tmp_path / "joined").mkdir()
    out = (tmp_path / "joined" / "all").with_suffix(suffix)
    assert join(parts, out).features and out.read_bytes() == (tmp_path / "all").with_suffix(suffix).read_bytes()
    with pytest.raises(UsageError, match=r"\.shp"):
        join(parts, tmp_path / "all.shp")
