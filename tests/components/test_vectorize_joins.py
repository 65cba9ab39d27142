"""rsp vectorize where tiles are missing or fail, features only touch, or outlines cannot be simplified."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio.features
import shapely
from shapely.geometry import Polygon, box, shape

from rsp.components.vectorize.tool import vectorize
from rsp.shared.contours import trace
from rsp.shared.featureset import Features, no_sums
from rsp.shared.polygons import Grid, Shaping, finish_whole, from_a_corner, ground_area
from rsp.shared.sweep import Span, contacts
from rsp.shared.tiles import Tile
from tests.components.test_vectorize import X, Y, Z, read, write_masks
from tests.tilesets import CONFIG

SIZE = 32


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def traced(tmp_path, config, array, *, skip=(), broken=()) -> list[tuple[int, int, int, int]]:
    """Return column and row where each feature starts, how many tiles it has, and its area in pixels."""
    masks = write_masks(tmp_path / "masks", array, size=SIZE, skip=skip)
    for column, row in broken:
        (masks / str(Z) / str(X + column) / f"{Y + row}.png").write_bytes(b"no image")
    options = {"kind": "building", "config": config, "min_area": 0, "simplify": 0, "workers": 1}
    result = vectorize(masks, tmp_path / "out", **options)
    assert set(result.failed) == {Tile(X + column, Y + row, Z) for column, row in broken}
    return sorted(
        (one["x"] - X, one["y"] - Y, one["tiles"], round(polygon.area * (SIZE / 256) ** 2))
        for polygon, one in read(tmp_path / "out")
    )


def test_a_tile_missing_from_a_row_parts_its_neighbours(tmp_path, config):
    array = np.ones((2 * SIZE, 3 * SIZE), np.uint8)
    found = traced(tmp_path, config, array, skip={(1, 0), (1, 1)})
    assert found == [(0, 0, 2, 2 * SIZE**2), (2, 0, 2, 2 * SIZE**2)]


def test_a_row_without_tiles_parts_those_above_and_below(tmp_path, config):
    array = np.ones((4 * SIZE, 2 * SIZE), np.uint8)
    found = traced(tmp_path, config, array, skip={(0, 2), (1, 2)})
    assert found == [(0, 0, 4, 4 * SIZE**2), (0, 3, 2, 2 * SIZE**2)]


def test_a_row_that_failed_parts_those_above_and_below(tmp_path, config):
    array = np.ones((3 * SIZE, 2 * SIZE), np.uint8)
    found = traced(tmp_path, config, array, broken=[(0, 1), (1, 1)])
    assert found == [(0, 0, 2, 2 * SIZE**2), (0, 2, 2, 2 * SIZE**2)]


def test_what_waits_for_a_last_row_that_failed_is_written(tmp_path, config):
    array = np.ones((2 * SIZE, 2 * SIZE), np.uint8)
    assert traced(tmp_path, config, array, broken=[(0, 1), (1, 1)]) == [(0, 0, 2, 2 * SIZE**2)]


def test_a_tile_that_failed_in_a_row_parts_its_neighbours(tmp_path, config):
    array = np.ones((2 * SIZE, 3 * SIZE), np.uint8)
    found = traced(tmp_path, config, array, broken=[(1, 0), (1, 1)])
    assert found == [(0, 0, 2, 2 * SIZE**2), (2, 0, 2, 2 * SIZE**2)]


@pytest.mark.parametrize("axis", [0, 1])
def test_features_that_touch_in_a_point_of_an_edge_stay_two(tmp_path, config, axis):
    array = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    array[SIZE - 2 : SIZE, 4:10] = 1  # ends at the edge, in column 10 ...
    array[SIZE : SIZE + 2, 10:20] = 1  # ... where this one begins
    array[SIZE - 2 : SIZE, 22:26] = array[SIZE : SIZE + 2, 25:30] = 1  # these have a pixel in common
    found = traced(tmp_path, config, np.ascontiguousarray(np.moveaxis(array, 0, axis)))
    assert [(tiles, area) for *_, tiles, area in found] == [(1, 12), (2, 18), (1, 20)]


def test_contacts_are_those_of_asking_every_pair():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sides = []
        for first in (0, 100):
            marks = np.sort(rng.choice(40, 2 * rng.integers(1, 8), replace=False)).reshape(-1, 2)
            sides.append([Span(float(low), float(high), first + n) for n, (low, high) in enumerate(marks)])
        one, other = sides
        expected = {(a.number, b.number) for a in one for b in other if max(a.low, b.low) < min(a.high, b.high)}
        assert set(contacts(one, other)) == expected
        assert set(contacts(one[::-1], other[::-1])) == expected


def noisy_regions(zoom: int) -> list[Polygon]:
    """Regions of random masks at the equator, in pixels of the grid: with holes, nearly touching themselves."""
    rng = np.random.default_rng(0)
    middle = 256 << (zoom - 1)
    regions = []
    for _ in range(60):
        array = (rng.random((12, 12)) < 0.6).astype(np.uint8)
        for geometry, _ in rasterio.features.shapes(array, mask=array == 1, connectivity=4):
            region = shapely.transform(shape(geometry), lambda points: points + middle)
            if region.is_valid and region.area >= 8:
                regions.append(region)
    return regions


@pytest.mark.parametrize("zoom", [18, 24])
def test_what_cannot_be_simplified_is_simplified_less_and_stays_valid(zoom):
    """At zoom 24 the last decimal is more than a pixel: many outlines cross themselves once they are rounded."""
    grid, tolerance = Grid(zoom, 256), 3.0
    moved = []
    for region in noisy_regions(zoom):
        features, dropped = finish_whole(
            np.array([region]), no_sums(1), Tile(0, 0, zoom), grid, Shaping(tolerance, 0)
        )
        assert len(features.polygons) and not dropped
        for polygon, area in zip(features.polygons, features.areas, strict=True):
            assert polygon.is_valid and polygon.exterior.is_ccw and area > 0
            assert area == pytest.approx(ground_area(polygon))
        simple = shapely.simplify(from_a_corner(np.array([region]))[0], tolerance, preserve_topology=True)
        if not shapely.transform(simple, lambda pixels: np.round(grid.to_lonlat(pixels), 7)).is_valid:
            found = shapely.MultiPolygon(list(features.polygons))
            exact = shapely.transform(region, grid.to_lonlat)
            moved.append(shapely.hausdorff_distance(found, exact) * (256 << zoom) / 360)
    if zoom == 18:
        assert not moved
    else:
        assert len(moved) > 20 and np.median(moved) < tolerance / 2


def test_what_is_alike_has_an_order():
    """Several of the same bounds, and even of the same outline, in any order."""
    zoom, tile = 18, Tile(5, 6, 18)
    shapes = [
        box(0, 0, 9, 9),
        Polygon([(0, 0), (9, 0), (9, 9)]),
        Polygon([(0, 0), (9, 9), (0, 9)]),
        box(0, 0, 9, 9),
    ]
    rng, found = np.random.default_rng(0), set()
    for _ in range(8):
        order = rng.permutation(len(shapes))
        polygons = np.array(shapes, object)[order]
        tiles = np.array([2, 1, 1, 1])[order]
        some = [
            Features(polygons[part], np.ones(2), np.tile([tile.x, tile.y], (2, 1)), tiles[part], no_sums(2), zoom)
            for part in (slice(2), slice(2, 4))
        ]
        features = Features.sorted(some, zoom)
        assert features.orders() == sorted(features.orders())
        found.add((tuple(polygon.wkt for polygon in features.polygons), tuple(features.tiles.tolist())))
    assert len(found) == 1


@pytest.mark.parametrize("simplify", [0, 1, 2.5])
def test_features_do_not_follow_from_how_they_are_cut(tmp_path, config, simplify):
    """Sixteen tiles, and the one tile above them of the same pixels: every vertex is the same."""
    rng = np.random.default_rng(4)
    array = np.kron(rng.random((32, 32)) < 0.55, np.ones((4, 4), bool)) ^ (rng.random((128, 128)) < 0.02)
    found = []
    for name, size, up in (("whole", 128, 4), ("cut", SIZE, 1)):
        zoom, x, y = (Z - 2, X // 4, Y // 4) if up == 4 else (Z, X, Y)
        masks = write_masks(tmp_path / name, array.astype(np.uint8), size=size, zoom=zoom, x=x, y=y)
        options = {"kind": "building", "config": config, "min_area": 0, "simplify": simplify}
        vectorize(masks, tmp_path / f"{name}.json", **options)
        features = json.loads((tmp_path / f"{name}.json").read_text())["features"]
        found.append(sorted(json.dumps(feature["geometry"]) for feature in features))
    assert found[0] == found[1] and len(found[0]) > 20


def test_rings_begin_at_the_corner_farthest_from_their_middle():
    """Simplification may keep the first vertex, so it is none of a bump of a pixel."""
    pixels = np.zeros((SIZE, SIZE), bool)
    pixels[5:30, 5:30] = pixels[4, 15:18] = True
    tile, grid = Tile(0, 0, 4), Grid(4, SIZE)
    features, _ = finish_whole(trace(pixels), no_sums(1), tile, grid, Shaping(1.0, 0))
    corners = np.round(grid.to_lonlat(np.array([[30.0, 30], [30, 5], [5, 5], [5, 30], [30, 30]])), 7)
    assert shapely.get_coordinates(features.polygons[0]).tolist() == corners.tolist()


def test_a_ring_begins_at_the_same_vertex_wherever_in_the_world_it_lies():
    """Of vertices that are as far from the middle one is taken: not by what rounding makes of large numbers."""
    away = np.array([137e6, 95e6])
    masks = np.random.default_rng(3).random((300, 12, 12)) < 0.6
    for region in (region for mask in masks for region in trace(mask | mask[::-1, ::-1])):  # alike, if turned
        near, far = from_a_corner(np.array([region, shapely.transform(region, lambda points: points + away)]))
        assert np.array_equal(shapely.get_coordinates(far) - away, shapely.get_coordinates(near))
