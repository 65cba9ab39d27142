"""rsp vectorize: formats, several classes at once, and masks cleaned before they are traced."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio.features
import shapely
from shapely import affinity

from rsp.components.cover.tool import cover
from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.components.vectorize.parts import vectorize_block
from rsp.components.vectorize.tool import OUTLINES, SCHEMA, vectorize
from rsp.shared.config import parse_tables
from rsp.shared.errors import ConfigError, UsageError
from rsp.shared.images import encode_mask
from rsp.shared.locations import fetched, location
from rsp.shared.polygons import ground_area
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_writer
from tests.components.test_vectorize import X, Y, Z, read, write_masks
from tests.tilesets import COLORS, CONFIG

SIZE = 32
COLUMNS, ROWS = 4, 3


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.replace("[model]", '[[classes]]\ntitle="road"\ncolor="grey"\n[model]'))
    return path


def blobs(share: float = 0.5, cell: int = 3) -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = ROWS * SIZE, COLUMNS * SIZE
    coarse = rng.random((shape[0] // cell + 1, shape[1] // cell + 1)) < share
    found = np.kron(coarse, np.ones((cell, cell), bool))[: shape[0], : shape[1]]
    return found ^ (rng.random(shape) < 0.09 / cell**2)


def squares_within(found: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of all squares that are True throughout; what is beyond the edges is False."""
    if width < 2:
        return found
    kept = np.zeros_like(found)
    for row in range(found.shape[0] - width + 1):
        for column in range(found.shape[1] - width + 1):
            part = (slice(row, row + width), slice(column, column + width))
            if found[part].all():
                kept[part] = True
    return kept


def cleaned(found: np.ndarray, denoise: int, grow: int) -> np.ndarray:
    edge = 40  # what is beyond is background, however far
    wide = np.pad(squares_within(found, denoise), edge)
    return ~squares_within(~np.pad(wide, edge, constant_values=False), grow)[
        2 * edge : -2 * edge, 2 * edge : -2 * edge
    ]


def drawn(path) -> np.ndarray:
    """Return the pixels that features cover."""
    polygons = [
        shapely.transform(polygon, lambda points: np.round(points * SIZE / 256)) for polygon, _ in read(path)
    ]
    return rasterio.features.rasterize(
        [(polygon, 1) for polygon in polygons], (ROWS * SIZE, COLUMNS * SIZE), dtype="uint8"
    ).astype(bool)


@pytest.mark.parametrize(("denoise", "grow"), [(4, 0), (0, 5), (1, 2), (5, 4), (17, 16)])
def test_cleaned_over_the_edges_of_tiles_as_inside_them(tmp_path, config, denoise, grow):
    found = blobs(0.92, 24) if denoise > 9 else blobs()
    masks = write_masks(tmp_path / "masks", found.astype(np.uint8), size=SIZE)
    exact = {"kind": "building", "config": config, "min_area": 0, "simplify": 0, "workers": 1}
    vectorize(masks, tmp_path / "out.json", denoise=denoise, grow=grow, **exact)
    expected = cleaned(found, denoise, grow)
    assert (drawn(tmp_path / "out.json") == expected).all() and 0 < expected.sum() != found.sum()


def test_what_is_not_there_or_broken_is_background(tmp_path, config, rsp):
    found = np.ones((ROWS * SIZE, COLUMNS * SIZE), bool)
    masks = write_masks(tmp_path / "masks", found.astype(np.uint8), size=SIZE, skip={(1, 1)})
    (masks / str(Z) / str(X + 3) / f"{Y + 2}.png").write_bytes(b"no image")
    out = tmp_path / "out.json"
    flags = ("--type", "building", "--config", config, "--simplify", 0, "--min_area", 0, "--denoise", 33)
    ran = rsp("vectorize", *flags, masks, out)
    assert ran.code == 3 and "failed: 1\n" in ran.stderr
    found[SIZE : 2 * SIZE, SIZE : 2 * SIZE] = found[2 * SIZE :, 3 * SIZE :] = False
    assert (drawn(out) == squares_within(found, 33)).all()


def test_a_part_lists_the_masks_that_failed(tmp_path, config):
    masks = write_masks(tmp_path / "masks", blobs().astype(np.uint8), size=SIZE)
    (masks / str(Z) / str(X + 3) / f"{Y + 2}.png").write_bytes(b"no image")
    write_cover(
        tmp_path / "seen", [Tile(X + column, Y + row, Z) for column in range(COLUMNS) for row in range(ROWS)]
    )
    result = vectorize_block(
        masks, tmp_path / "seen", tmp_path / "part", kind="building", config=config, workers=1
    )
    assert result.tiles == COLUMNS * ROWS - 1 and list(result.failed) == [Tile(X + 3, Y + 2, Z)]
    assert read_cover(tmp_path / "part.failed.csv") == [Tile(X + 3, Y + 2, Z)]


def test_cleaning_needs_neighbours_of_one_size_that_are_large_enough(tmp_path, config, rsp):
    masks = write_masks(tmp_path / "masks", blobs().astype(np.uint8), size=SIZE)
    with pytest.raises(UsageError, match="look 33 pixels beyond a tile; its neighbours have 32"):
        vectorize(masks, tmp_path / "out", kind="building", config=config, denoise=18, grow=17)
    with open_writer(masks, "png") as writer:
        writer.write(Tile(X, Y, Z), encode_mask(np.ones((64, 64), np.uint8), COLORS))
    result = vectorize(masks, tmp_path / "out", kind="building", config=config, denoise=2)
    assert set(result.failed) >= {Tile(X + 1, Y, Z), Tile(X, Y + 1, Z)}
    assert f"it has another size than {Z}/{X}/{Y}" in result.failed[Tile(X + 1, Y, Z)]
    for flags in (("--denoise", "-1"), ("--grow", "257"), ("--grow", "1.5")):
        assert rsp("vectorize", "--type", "building", *flags, masks, tmp_path / "no").code == 2


def test_several_classes_in_one_pass_are_those_of_several_passes(tmp_path, config, rsp):
    rng = np.random.default_rng(3)
    array = np.kron(rng.integers(0, 3, (ROWS * 8, COLUMNS * 8)), np.ones((4, 4), int)).astype(np.uint8)
    masks = write_masks(tmp_path / "masks", array, SIZE)
    alone = {}
    for kind in ("building", "road"):
        vectorize(masks, tmp_path / f"{kind}.json", kind=kind, config=config)
        alone[kind] = json.loads((tmp_path / f"{kind}.json").read_text())["features"]
    flags = ("vectorize", "--config", config)
    assert rsp(*flags, "--type", "Road, building", masks, tmp_path / "both.json").code == 0
    assert rsp(*flags, "--type", "road", "--type", "building", masks, tmp_path / "again.json").code == 0
    assert (tmp_path / "both.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    both = json.loads((tmp_path / "both.json").read_text())["features"]
    for kind, expected in alone.items():
        assert [feature for feature in both if feature["properties"]["class"] == kind] == expected
    assert len(both) == sum(map(len, alone.values()))
    with pytest.raises(ConfigError, match="no class 'lake'"):
        vectorize(masks, tmp_path / "out", kind=["road", "lake"], config=config)
    write_cover(tmp_path / "seen", [Tile(X, Y, Z)])
    with pytest.raises(UsageError, match="a part has one class, not road, building"):
        vectorize_block(masks, tmp_path / "seen", tmp_path / "part", kind="road,building", config=config)


@pytest.mark.parametrize("suffix", [".geojsonl", ".fgb", ".gpkg", ".parquet"])
def test_other_formats_hold_the_same(tmp_path, config, suffix):
    masks = write_masks(tmp_path / "masks", blobs().astype(np.uint8), size=SIZE)
    out = tmp_path / f"out{suffix}"
    vectorize(masks, tmp_path / "out.json", kind="building", config=config)
    vectorize(masks, out, kind="building", config=config)
    features = json.loads((tmp_path / "out.json").read_text())["features"]
    if suffix == ".geojsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == features
        return
    schema = [*SCHEMA, *OUTLINES]
    if suffix == ".parquet":
        table = pyarrow.parquet.read_table(out)
        names, *columns = table.column_names, *(column.to_pylist() for column in table.columns)
        assert set(schema) < set(names)
        wkb = columns.pop(names.index("geometry"))
        names.remove("geometry")
        columns = [columns[names.index(name)] for name in schema]
    else:
        meta, _, wkb, arrays = pyogrio.raw.read(out)
        assert meta["crs"] == "EPSG:4326" and meta["fields"].tolist() == schema
        columns = [array.tolist() for array in arrays]
    outlines = [polygon.normalize().wkt for polygon in shapely.from_wkb(wkb)]
    expected = [shapely.geometry.shape(each["geometry"]).normalize().wkt for each in features]
    assert set(zip(outlines, *columns, strict=True)) == {
        (outline, *each["properties"].values()) for outline, each in zip(expected, features, strict=True)
    }


@pytest.mark.parametrize("suffix", [".fgb", ".gpkg", ".parquet"])
def test_binary_formats_go_to_s3_and_are_read_from_there(tmp_path, config, s3, suffix):
    masks = write_masks(tmp_path / "masks", blobs().astype(np.uint8), size=SIZE)
    local, stored = tmp_path / f"out{suffix}", location(f"s3://{s3.bucket()}/labels/out{suffix}")
    for out in (local, stored):
        vectorize(masks, out, kind="building", config=config)
    with fetched(stored).open("rb") as file:
        assert file.read() == local.read_bytes()
    covers = [tmp_path / "here.csv", tmp_path / "there.csv"]
    for source, out in zip((local, stored), covers, strict=True):
        cover(str(source), [out], zoom=Z + 3)
    assert len(read_cover(covers[0])) > 12 and covers[0].read_bytes() == covers[1].read_bytes()


# --- right angles, and holes ----------------------------------------------------------------------------------


def turned(number: int, row: float, column: float) -> shapely.Polygon:
    """A building of 26 by 15 pixels, turned by another angle for each number."""
    return affinity.rotate(shapely.box(column - 13, row - 7.5, column + 13, row + 7.5), 13 * number)


def right(polygon: shapely.Polygon) -> bool:
    """Tell whether all corners are right angles, by a degree."""
    points = shapely.get_coordinates(polygon)[:-1]
    sides = np.roll(points, -1, axis=0) - points
    angles = np.degrees(np.arctan2(sides[:, 1], sides[:, 0]))
    return bool((np.abs(np.diff(angles, append=angles[:1]) % 180 - 90) < 1).all())


def test_right_angles_of_the_classes_that_are_named(tmp_path, config, rsp):
    """Over the edges of tiles, too, and of no other class."""
    array = np.zeros((ROWS * SIZE, COLUMNS * SIZE), np.uint8)
    shapes = [turned(number, row, column) for number, (row, column) in enumerate(product((20, 70), (25, 64, 104)))]
    for number, building in enumerate(shapes):
        array[rasterio.features.rasterize([(building, 1)], array.shape) > 0] = 1 + number % 2
    masks = write_masks(tmp_path / "masks", array, SIZE)
    out = tmp_path / "out.json"
    ran = rsp("vectorize", "--type", "building,road", "--config", config, "--regularize", "BUILDING", masks, out)
    assert ran.code == 0, ran.stderr
    found = {properties["class"]: [] for _, properties in read(out)}
    for polygon, properties in read(out):
        found[properties["class"]].append(shapely.transform(polygon, lambda points: points * SIZE / 256))
    assert len(found["building"]) == len(found["road"]) == 3
    assert all(map(right, found["building"])) and not any(map(right, found["road"][1:]))
    for polygon in found["building"]:
        overlaps = [shapely.area(polygon & each) / shapely.area(polygon | each) for each in shapes]
        assert max(overlaps) > 0.9
    ran = rsp("vectorize", "--type", "building", "--config", config, "--regularize", "road", masks, out)
    assert ran.code == 2 and "--regularize road: no features of that class are asked for" in ran.stderr
    ran = rsp("vectorize", "--type", "building", "--regularize", "tree", "--config", config, masks, out)
    assert ran.code == 1 and "tree" in ran.stderr
    near = ("--regularize", "building", "--merge_distance", "3")
    ran = rsp("vectorize", "--type", "building", *near, "--config", config, masks, out)
    assert ran.code == 2 and "choose one" in ran.stderr


def test_right_angles_from_the_component(tmp_path, config, run_component):
    array = rasterio.features.rasterize([(turned(2, 50, 60), 1)], (ROWS * SIZE, COLUMNS * SIZE), dtype="uint8")
    masks = write_masks(tmp_path / "masks.pmtiles", array, SIZE)
    for regularize in ("", "building"):
        given = {"kind": "building", "config": parse_tables(config.read_text()), "regularize": regularize}
        step = run_component(vectorize_component, {"masks": masks}, **given)
        ((polygon, _),) = read(step.path("features"))
        assert right(polygon) == bool(regularize)


@pytest.mark.parametrize("distance", [0.0, 0.5])
def test_holes_that_are_too_small_are_filled(tmp_path, config, distance):
    """As features that are too small are dropped, by the same number; with what is joined, afterwards."""
    array = np.zeros((ROWS * SIZE, COLUMNS * SIZE), np.uint8)
    array[20:80, 20:100] = 1
    array[30:34, 30:34] = array[50:60, 62:72] = 0
    masks, out = write_masks(tmp_path / "masks", array, SIZE), tmp_path / "out.json"
    counts, areas = [], []
    for pixels in (0, 30, 200):
        least = pixels * areas[0] / (60 * 80 - 16 - 100) if areas else 0.0
        vectorize(masks, out, kind="building", config=config, min_area=least, merge_distance=distance)
        ((polygon, properties),) = read(out)
        geometry = shapely.from_geojson(json.dumps(json.loads(out.read_text())["features"][0]["geometry"]))
        assert properties["area_m2"] == pytest.approx(ground_area(geometry), abs=0.01)
        counts.append(len(polygon.interiors))
        areas.append(properties["area_m2"])
    assert counts == [2, 1, 0]
    assert areas[1:] == pytest.approx([areas[0] * (4800 - 100) / 4684, areas[0] * 4800 / 4684], rel=1e-4)
