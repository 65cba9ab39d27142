"""rsp rasterize --weights: the weight of each pixel by the formula, and no seam between tiles or blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon, box, mapping

from rsp.components.rasterize import shelf
from rsp.components.rasterize.tool import rasterize
from rsp.components.rasterize.weights import REACH, weight
from rsp.shared.errors import UsageError
from rsp.shared.ground import scale
from rsp.shared.images import decode
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader
from tests.tilesets import CONFIG

ZOOM, SIZE = 17, 64
# The tile of zoom 15 that the tiles lie in, and a pixel of these in metres of EPSG:3857.
COARSE = Tile(16820, 11696, 15)
PIXEL = AROUND / (SIZE << ZOOM)
FINE = [Tile(4 * COARSE.x + x, 4 * COARSE.y + y, ZOOM) for x in range(4) for y in range(4)]
ROADS = CONFIG.replace("[model]", '[[classes]]\ntitle="road"\ncolor="grey"\n[model]')


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(ROADS)
    return path


def placed(shapes, column=COARSE.x * 4 * SIZE, row=COARSE.y * 4 * SIZE):
    """Polygons in pixels from a corner, y down, as metres of EPSG:3857."""
    corner = np.array([column * PIXEL - HALF, HALF - row * PIXEL])
    return [shapely.transform(each, lambda points: points * (PIXEL, -PIXEL) + corner) for each in shapes]


def write(path, shapes):
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(each)} for each in shapes]
    crs = {"type": "name", "properties": {"name": "EPSG:3857"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


def run(place, config, sources, tiles, size=SIZE, **options):
    place.mkdir(exist_ok=True)
    write_cover(place / "cover", tiles)
    options = {"workers": 1, "weight_sigma": 4.0, **options}
    result = rasterize(
        place / "cover", place / "labels", geojson=sources, config=config, tile_size=size,
        weights=place / "weights", web_ui=False, **options,
    )  # fmt: skip
    return result, read(place / "weights")


def read(path):
    with open_reader(path) as reader:
        return {tile: decode(reader.read(tile))[..., 0] for tile in reader.tiles()}


def mosaic(tiles):
    """The array of the tiles of zoom 17."""
    found = np.zeros((4 * SIZE, 4 * SIZE), np.uint8)
    for tile, array in tiles.items():
        row, column = (tile.y - 4 * COARSE.y) * SIZE, (tile.x - 4 * COARSE.x) * SIZE
        found[row : row + SIZE, column : column + SIZE] = array
    return found


def brute(polygons, sigma):
    """The weights of each third pixel of each third row by the distances of its centre from all polygons."""
    middle = np.arange(0, 4 * SIZE, 3) + 0.5
    x, y = np.meshgrid(middle, middle)
    points = shapely.points(np.stack([x.ravel(), y.ravel()], axis=1))
    points = np.array(placed(points.tolist()))
    distance = np.sort([shapely.distance(points, each) for each in polygons], axis=0)
    north = HALF - (COARSE.y * 4 * SIZE + y.ravel()) * PIXEL
    metres = (distance[0] + distance[1]) / np.sqrt(scale(north).prod(axis=1))
    return np.rint(255 * np.exp(-(metres**2) / (2 * sigma**2))).reshape(x.shape).astype(np.uint8)


def town(count=60, seed=2):
    rng = np.random.default_rng(seed)
    found = []
    for x, y in rng.uniform(0, 4 * SIZE - 20, (count, 2)):
        wide, high = rng.uniform(4, 20, 2)
        house = shapely.affinity.rotate(box(x, y, x + wide, y + high), rng.uniform(0, 90))
        if not any(house.intersects(other) for other in found):
            found.append(house)
    return found


def test_what_distances_weigh():
    assert weight(np.array([0.0, 1.5, 3.0, 4.5, REACH * 1.5 - 1e-3, REACH * 1.5 + 1e-3]), 1.5).tolist() == [
        255, 155, 35, 3, 1, 0
    ]  # fmt: skip


def test_each_pixel_has_the_weight_of_its_distances(tmp_path, config):
    yard = box(100, 100, 160, 160).difference(box(115, 115, 145, 145))
    shapes = placed([*town(), yard.buffer(0), box(120, 120, 140, 140)])
    shapes = [
        each for number, each in enumerate(shapes) if number >= len(shapes) - 2 or not each.intersects(shapes[-2])
    ]
    source = f"building={write(tmp_path / 'f.json', shapes)}"
    result, found = run(tmp_path / "a", config, source, FINE, weight_sigma=8.0)
    expected = brute(shapes, 8.0)
    got = mosaic(found)[::3, ::3]
    assert result.weighted == sum(array.any() for array in found.values())
    # Distances are kept as 32 bits, so a half may be rounded the other way.
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got != expected).mean() < 1e-3
    assert (expected > 100).sum() > 20


def test_no_seam_between_tiles(tmp_path, config, monkeypatch):
    """Tiles of 64 pixels have the values of one of 256 pixels, with outlines of many points and across blocks."""
    angle = np.linspace(0, 2 * np.pi, 1500)
    radius = 50 + 6 * np.sin(9 * angle)
    blob = Polygon(np.column_stack([128 + radius * np.cos(angle), 128 + radius * np.sin(angle)]))
    ring = blob.buffer(16).difference(blob.buffer(2))
    outside = box(-20, 30, -3, 200)
    shapes = placed([blob, ring, outside, *(each for each in town() if not each.intersects(ring.envelope))])
    source = f"building={write(tmp_path / 'f.json', shapes)}"
    _, whole = run(tmp_path / "whole", config, source, [COARSE], size=4 * SIZE)
    _, parts = run(tmp_path / "parts", config, source, FINE)
    assert whole[COARSE].any()
    assert np.array_equal(mosaic(parts), whole[COARSE])
    monkeypatch.setattr("rsp.components.rasterize.blocks.LEVELS", 1)  # blocks of four tiles
    _, small = run(tmp_path / "small", config, source, FINE)
    assert np.array_equal(mosaic(small), whole[COARSE])
    # Some tiles of the cover alone.
    alone = [tile for tile in FINE if (tile.x + tile.y) % 3 == 0]
    _, some = run(tmp_path / "some", config, source, alone)
    assert all(np.array_equal(some[tile], parts[tile]) for tile in alone)


def test_what_lies_outside_of_the_cover_counts(tmp_path, config):
    """Of a house beyond the edge, and of one that has many points, as far as they are near."""
    many = shapely.segmentize(box(-20, 120, -2, 150), 0.1)
    shapes = [box(-20, 30, -2, 60), box(1, 30, 20, 60), many, box(1, 120, 20, 150)]
    _, found = run(tmp_path / "a", config, f"building={write(tmp_path / 'f.json', placed(shapes))}", FINE)
    got = mosaic(found)
    for row in (45, 135):
        north = HALF - (COARSE.y * 4 * SIZE + row + 0.5) * PIXEL
        metres = 3 * PIXEL / float(np.sqrt(scale(np.array([north])).prod()))
        assert got[row, 0] == weight(np.array(metres), 4.0) > 0


def test_only_instances_of_one_class(tmp_path, config):
    houses = write(tmp_path / "houses.json", placed([box(10, 10, 20, 20), box(100, 10, 110, 20)]))
    roads = write(tmp_path / "roads.json", placed([box(23, 0, 28, 200), box(31, 0, 36, 200)]))
    _, alone = run(tmp_path / "alone", config, f"road={roads}", FINE)
    result, both = run(tmp_path / "both", config, [f"road={roads}", f"building={houses}"], FINE)
    assert np.array_equal(mosaic(both), mosaic(alone))
    rows, columns = np.nonzero(mosaic(both))
    # Far from both roads there is nothing, and the tiles are there nevertheless.
    assert columns.max() < 60 and rows.max() < 230
    assert result.weighted == 4 and len(both) == 16


def test_touching_houses_and_a_house_of_two_parts(tmp_path, config):
    two = shapely.MultiPolygon([box(10, 10, 20, 20), box(22, 10, 30, 20)])
    touching = [box(100, 100, 120, 120), box(120, 100, 140, 120)]
    source = f"building={write(tmp_path / 'f.json', placed([two, *touching]))}"
    _, found = run(tmp_path / "a", config, source, FINE)
    got = mosaic(found)
    assert not got[:60, :60].any()
    # Within one house the distance is that to the other: half a pixel at the wall.
    half = PIXEL / 2 / float(np.sqrt(scale(np.array([HALF - (COARSE.y * 4 * SIZE + 110.5) * PIXEL])).prod()))
    assert got[110, 119] == got[110, 120] == weight(np.array(half), 4.0)
    assert got[110, 119] > got[110, 118] > got[110, 117]


def test_on_both_sides_of_the_antimeridian(tmp_path, config):
    """What lies on both sides of it weighs what it weighs elsewhere."""
    shapes = [box(-12, 10, -1, 30), box(1, 10, 14, 30)]
    columns = SIZE << ZOOM
    row = 46784 * SIZE
    near, far = placed(shapes, columns // 2, row), placed([shapes[0]], columns, row) + placed([shapes[1]], 0, row)
    middle = 1 << ZOOM - 1
    _, expected = run(
        tmp_path / "near", config, f"building={write(tmp_path / 'near.json', near)}",
        [Tile(middle - 1, 46784, ZOOM), Tile(middle, 46784, ZOOM)],
    )  # fmt: skip
    _, found = run(
        tmp_path / "far", config, f"building={write(tmp_path / 'far.json', far)}",
        [Tile(0, 46784, ZOOM), Tile(2 * middle - 1, 46784, ZOOM)],
    )  # fmt: skip
    west, east = found[Tile(2 * middle - 1, 46784, ZOOM)], found[Tile(0, 46784, ZOOM)]
    assert west.any() and east.any()
    # Coordinates there have fewer digits behind the point.
    assert np.abs(west.astype(int) - expected[Tile(middle - 1, 46784, ZOOM)]).max() <= 1
    assert np.abs(east.astype(int) - expected[Tile(middle, 46784, ZOOM)]).max() <= 1


def test_the_same_from_the_disk_with_processes_and_resumed(tmp_path, config, monkeypatch):
    source = f"building={write(tmp_path / 'f.json', placed(town()))}"
    _, expected = run(tmp_path / "a", config, source, FINE)
    labels = read(tmp_path / "a" / "labels")
    _, again = run(tmp_path / "a", config, source, FINE, resume=True)
    (tmp_path / "a" / "weights" / str(ZOOM) / str(FINE[3].x) / f"{FINE[3].y}.png").unlink()
    _, mended = run(tmp_path / "a", config, source, FINE, resume=True)
    monkeypatch.setattr(shelf, "POINTS", 40)
    monkeypatch.setattr("rsp.components.rasterize.tool.WORTH", 8)
    _, found = run(tmp_path / "b", config, source, FINE, workers=2)
    for other in (again, mended, found):
        assert other.keys() == expected.keys()
        assert all(np.array_equal(other[tile], expected[tile]) for tile in expected)
    # The labels are those without weights.
    rasterize(
        tmp_path / "a" / "cover", tmp_path / "plain", geojson=source, config=config, tile_size=SIZE, web_ui=False
    )
    plain = read(tmp_path / "plain")
    assert all(np.array_equal(plain[tile], labels[tile]) for tile in plain)


def test_buffer_comes_first(tmp_path, config):
    """Shrunk by a pixel each, houses that touch are two pixels apart."""
    pixel = PIXEL / float(np.sqrt(scale(np.array([HALF - (COARSE.y * 4 * SIZE + 110.5) * PIXEL])).prod()))
    source = f"building={write(tmp_path / 'f.json', placed([box(100, 100, 120, 120), box(120, 100, 140, 120)]))}"
    _, found = run(tmp_path / "a", config, source, FINE, buffer=-pixel)
    assert abs(int(mosaic(found)[110, 119]) - int(weight(np.array(2 * pixel), 4.0))) <= 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"append": True}, "choose one"),
        ({"weight_sigma": 0.0}, "more than 0 and up to 100"),
        ({"weight_sigma": 90.0}, r"--weight_sigma 90 reaches 317\.8 m, and a tile of zoom 17 has only 211\.\d m"),
    ],
)
def test_wrong_use(tmp_path, config, options, reason):
    source = f"building={write(tmp_path / 'f.json', placed([box(1, 1, 9, 9)]))}"
    with pytest.raises(UsageError, match=reason):
        run(tmp_path / "a", config, source, FINE, **options)
    assert not (tmp_path / "a" / "weights").exists()


def test_weights_are_no_labels(tmp_path, config):
    write_cover(tmp_path / "cover", FINE)
    source = f"building={write(tmp_path / 'f.json', placed([box(1, 1, 9, 9)]))}"
    with pytest.raises(UsageError, match="would be written twice"):
        rasterize(tmp_path / "cover", tmp_path / "out", geojson=source, config=config, weights=tmp_path / "out")
