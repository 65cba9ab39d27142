"""rsp vectorize: what it traces, joins, simplifies and drops, and its component."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio.features
import shapely
from rasterio import Affine
from shapely.geometry import Polygon, box, shape

from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.components.vectorize.tool import vectorize
from rsp.shared.classes import class_index
from rsp.shared.config import ClassDef, parse_tables
from rsp.shared.errors import ConfigError, CoverError, TileSetError
from rsp.shared.images import encode_mask
from rsp.shared.polygons import Grid, ground_area
from rsp.shared.tiles import Tile, bounds_lonlat, read_cover
from rsp.shared.tileset import open_writer
from tests.tilesets import COLORS, CONFIG

Z, X, Y, SIZE = 18, 134600, 93000, 256


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def write_masks(path, array, size=SIZE, skip=(), zoom=Z, x=X, y=Y):
    """Cut an array into masks; tiles without a pixel are written too."""
    with open_writer(path, "png") as writer:
        for row in range(array.shape[0] // size):
            for column in range(array.shape[1] // size):
                if (column, row) not in skip:
                    part = array[row * size : (row + 1) * size, column * size : (column + 1) * size]
                    mask = encode_mask(part.astype(np.uint8), [*COLORS, (9, 9, 9)])
                    writer.write(Tile(x + column, y + row, zoom), mask)
    return path


def burn(shapes, columns=2, rows=2, size=SIZE):
    """Rasterize polygons in pixels of the whole array, whose corner is tile (X, Y)."""
    return rasterio.features.rasterize(
        [(geometry, 1) for geometry in shapes], (rows * size, columns * size), dtype="uint8"
    )


def read(path):
    """Return (polygon in pixels of the array, properties) of each feature; all are valid and wound as RFC 7946."""
    found = []
    for feature in json.loads(path.read_text())["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid and polygon.exterior.is_ccw and not any(ring.is_ccw for ring in polygon.interiors)
        found.append((to_pixels(polygon), feature["properties"]))
    return found


def to_pixels(geometry, zoom=Z, x=X, y=Y, size=SIZE):
    def project(points):
        side = size << zoom
        east = (points[:, 0] + 180) / 360 * side - x * size
        mercator = np.arctanh(np.sin(np.radians(points[:, 1]))) / np.pi
        return np.column_stack([east, (1 - mercator) / 2 * side - y * size])

    return shapely.transform(geometry, project)


def iou(one, other):
    return one.intersection(other).area / one.union(other).area


def turned(x, y, width, height, angle):
    return shapely.affinity.rotate(box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), angle)


BUILDINGS = [
    turned(100, 90, 60, 40, 0),
    turned(380, 120, 70, 50, 30),
    turned(256, 256, 80, 60, 17),  # over all four tiles
    turned(110, 390, 50, 90, 45).union(turned(150, 400, 80, 30, 45)),
    turned(400, 400, 110, 90, 5).difference(turned(400, 400, 50, 40, 5)),  # a courtyard
]


@pytest.fixture
def town(tmp_path):
    return write_masks(tmp_path / "masks", burn(BUILDINGS))


def test_round_trip_at_the_command_line(town, config, tmp_path, rsp):
    """Bugs 27, 28: the background came out too, every stair-step, and features were cut at tile edges."""
    ran = rsp("vectorize", "--type", "building", "--config", config, town, tmp_path / "out.json")
    assert ran.code == 0, ran.stderr
    found = read(tmp_path / "out.json")
    assert len(found) == len(BUILDINGS)
    for building in BUILDINGS:
        polygon, properties = max(found, key=lambda one: one[0].intersection(building).area)
        assert iou(polygon, building) > 0.95
        assert len(polygon.interiors) == len(building.interiors)
        assert properties["class"] == "building" and properties["z"] == Z
        west, north, _, _ = polygon.bounds
        assert (properties["x"], properties["y"]) == (X + int(west // SIZE), Y + int(north // SIZE))
    merged = [properties for _, properties in found if properties["tiles"] > 1]
    assert [(p["tiles"], p["x"], p["y"]) for p in merged] == [(4, X, Y)]


def test_simplified_by_nine_tenths(town, config, tmp_path):
    def vertices(path):
        return sum(len(shapely.get_coordinates(polygon)) for polygon, _ in read(path))

    vectorize(town, tmp_path / "simple", kind="building", config=config)
    vectorize(town, tmp_path / "steps", kind="building", config=config, simplify=0)
    assert vertices(tmp_path / "simple") < 0.1 * vertices(tmp_path / "steps")
    steps = shapely.union_all([polygon for polygon, _ in read(tmp_path / "steps")])
    assert abs(steps.area - burn(BUILDINGS).sum()) < 1  # every pixel, and no other


def test_exact_through_mercator_at_low_zoom(tmp_path, config):
    """Bug 27: degrees were interpolated inside a tile, which is wrong at low zooms."""
    array = np.zeros((64, 64), np.uint8)
    array[16:32, 0:64] = 1
    masks = write_masks(tmp_path / "masks", array, size=64, zoom=1, x=0, y=0)
    vectorize(masks, tmp_path / "out", kind="building", config=config)
    west, south, east, north = shape(json.loads((tmp_path / "out").read_text())["features"][0]["geometry"]).bounds
    quarter, half = bounds_lonlat(Tile(0, 1, 3)), bounds_lonlat(Tile(0, 1, 2))
    assert (west, east) == (-180, 0)
    assert north == pytest.approx(quarter[3], abs=1e-7) and south == pytest.approx(half[3], abs=1e-7)


@pytest.mark.parametrize("size", [64, 100, 512])
def test_the_size_is_the_image_s(tmp_path, config, size):
    """Bug 27: the size was the configuration's (64 here), so other masks lay elsewhere."""
    array = np.zeros((size, size), np.uint8)
    array[: size // 2] = 1
    masks = write_masks(tmp_path / "masks", array, size=size)
    vectorize(masks, tmp_path / "out", kind="building", config=config)
    ((polygon, _),) = read(tmp_path / "out")
    assert polygon.bounds == pytest.approx((0, 0, SIZE, SIZE / 2), abs=0.02)


def test_tiles_of_two_sizes_fit_together(tmp_path, config):
    array = np.zeros((64, 128), np.uint8)
    array[16:32, 32:96] = 1
    masks = write_masks(tmp_path / "masks", array, size=64)
    with open_writer(masks, "png") as writer:
        writer.write(Tile(X + 1, Y, Z), encode_mask(np.kron(array[:, 64:], np.ones((2, 2), np.uint8)), COLORS))
    vectorize(masks, tmp_path / "out", kind="building", config=config)
    ((polygon, properties),) = read(tmp_path / "out")
    assert polygon.bounds == pytest.approx((128, 64, 384, 128), abs=0.05) and properties["tiles"] == 2
    assert len(polygon.exterior.coords) == 5


def test_area_on_the_ellipsoid():
    from pyproj import Geod

    for latitude in (0, 45, -60, 70):
        polygon = Polygon([(7, latitude), (7.001, latitude), (7.0012, latitude + 0.001), (7, latitude + 0.0008)])
        expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(polygon)[0])
        assert ground_area(polygon) == pytest.approx(expected, rel=1e-5)  # its edges are geodesics


def test_areas_and_least_area(tmp_path, config):
    array = np.zeros((SIZE, SIZE), np.uint8)
    array[10:30, 10:40] = 1
    array[100, 100] = 1
    masks = write_masks(tmp_path / "masks", array)
    result = vectorize(masks, tmp_path / "out", kind="building", config=config)
    assert (result.features, result.dropped, result.tiles) == (1, 1, 1)
    ((_, properties),) = read(tmp_path / "out")
    corners = Grid(Z, SIZE).to_lonlat(np.array([[X * SIZE + 10, Y * SIZE + 10], [X * SIZE + 40, Y * SIZE + 30]]))
    (west, north), (east, south) = corners.tolist()
    # On the sphere, near enough: degrees of longitude shrink with the latitude.
    ground = (east - west) * (north - south) * 111320**2 * np.cos(np.radians(north))
    assert properties["area_m2"] == pytest.approx(ground, rel=0.01) == result.area_m2
    assert vectorize(masks, tmp_path / "out", kind="building", config=config, min_area=0).features == 2
    assert vectorize(masks, tmp_path / "out", kind="building", config=config, min_area=1e4).features == 0
    assert json.loads((tmp_path / "out").read_text()) == {"type": "FeatureCollection", "features": []}


def test_a_snake_over_many_tiles_is_one_feature_and_corners_do_not_join(tmp_path, config):
    size = 32
    array = np.zeros((size * 4, size * 4), np.uint8)
    array[0:128, 10:14] = 1  # down the first column of tiles
    array[120:124, 10:120] = 1  # along the last row
    array[5:124, 116:120] = 1  # and up again
    array[5:9, 50:120] = 1
    array[31, 63] = array[32, 64] = 1  # these touch in the corner where four tiles meet
    masks = write_masks(tmp_path / "masks", array, size=size)
    vectorize(masks, tmp_path / "out", kind="building", config=config, min_area=0, simplify=0)
    found = sorted(properties["tiles"] for _, properties in read(tmp_path / "out"))
    assert found == [1, 1, 12]
    vectorize(masks, tmp_path / "cut", kind="building", config=config, min_area=0, merge=False)
    assert len(read(tmp_path / "cut")) == 14 and all(p["tiles"] == 1 for _, p in read(tmp_path / "cut"))


def test_rings_that_touch_themselves_stay_valid(tmp_path, config):
    array = np.zeros((64, 64), np.uint8)
    array[10:20, 10:20] = 1
    array[14, 14] = array[15, 15] = 0  # holes that touch in a corner
    array[10, 10] = array[19, 19] = 0
    array[30:40, 30:40] = 1
    array[30, 31] = array[31, 30] = 0  # a pixel that hangs on by a corner
    masks = write_masks(tmp_path / "masks", array, size=64)
    for tolerance in (0, 1, 3):
        vectorize(masks, tmp_path / "out", kind="building", config=config, min_area=0, simplify=tolerance)
        assert len(read(tmp_path / "out")) == 3


def test_noise_in_any_number_of_processes(tmp_path, config):
    """The worst masks there are: valid, every pixel once, the same bytes from one process and from three."""
    rng = np.random.default_rng(0)
    array = (rng.random((16 * 9, 16 * 9)) < 0.45).astype(np.uint8)
    masks = write_masks(tmp_path / "masks.pmtiles", array, size=16, skip={(3, 3), (4, 3), (8, 8)})
    for workers in (1, 3):
        result = vectorize(
            masks, tmp_path / f"{workers}", kind="building", config=config, min_area=0, workers=workers, simplify=0
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()
    for column, row in ((3, 3), (4, 3), (8, 8)):
        array[row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16] = 0
    found = [
        shapely.transform(to_pixels(shape(f["geometry"]), size=16), np.round)
        for f in json.loads((tmp_path / "1").read_text())["features"]
    ]
    assert result.features == len(found) and all(polygon.is_valid for polygon in found)
    again = rasterio.features.rasterize([(polygon, 1) for polygon in found], array.shape, dtype="uint8")
    assert (again == array).all()
    regions = rasterio.features.shapes(array, mask=array == 1, connectivity=4, transform=Affine.identity())
    assert len(found) == sum(1 for _ in regions)
    vectorize(masks, tmp_path / "simple", kind="building", config=config, min_area=0, simplify=2)
    read(tmp_path / "simple")


def test_only_the_class_that_was_asked_for(tmp_path, config):
    config.write_text(CONFIG.replace("[model]", '[[classes]]\ntitle="road"\ncolor="grey"\n[model]'))
    array = np.zeros((64, 64), np.uint8)
    array[0:20, 0:20], array[0:20, 20:30], array[40:60] = 1, 2, 2
    with open_writer(tmp_path / "masks", "png") as writer:
        writer.write(Tile(X, Y, Z), encode_mask(array, [*COLORS, (1, 1, 1)]))
    assert vectorize(tmp_path / "masks", tmp_path / "out", kind="building", config=config).features == 1
    result = vectorize(tmp_path / "masks", tmp_path / "out", kind="road", config=config)
    assert result.features == 2 and {p["class"] for _, p in read(tmp_path / "out")} == {"road"}


def test_a_corrupt_mask_fails_alone(town, config, tmp_path, rsp):
    (town / str(Z) / str(X) / f"{Y + 1}.png").write_bytes(b"no image")
    report = tmp_path / "report.json"
    flags = ("vectorize", "--type", "building", "--config", config, "--report", report)
    ran = rsp(*flags, town, tmp_path / "out.json")
    assert ran.code == 3 and "not an image" in ran.stderr
    assert read_cover(tmp_path / "out.json.failed.csv") == [Tile(X, Y + 1, Z)]
    assert json.loads(report.read_text())["tiles"] == 3
    assert sorted(p["tiles"] for _, p in read(tmp_path / "out.json")) == [1, 1, 1, 3]
    for path in town.rglob("*.png"):
        path.write_bytes(b"no image")
    before = (tmp_path / "out.json").read_bytes()
    ran = rsp(*flags, town, tmp_path / "out.json")
    assert ran.code == 1 and "none of the 4 masks" in ran.stderr
    assert (tmp_path / "out.json").read_bytes() == before


def test_what_cannot_be_meant(town, config, tmp_path, rsp):
    assert rsp("vectorize", town, tmp_path / "out").code == 2
    assert rsp("vectorize", "--type", "building", town).code == 2
    assert rsp("vectorize", "--type", "building", "--min_area", "-1", town, tmp_path / "out").code == 2
    with pytest.raises(ConfigError, match="no class 'lake'; the classes are background, building"):
        vectorize(town, tmp_path / "out", kind="lake", config=config)
    with pytest.raises(TileSetError, match="no tile set"):
        vectorize(tmp_path / "nowhere", tmp_path / "out", kind="building", config=config)
    with open_writer(town, "png") as writer:
        writer.write(Tile(0, 0, 1), encode_mask(np.zeros((4, 4), np.uint8), COLORS))
    with pytest.raises(CoverError, match="mixes the zooms 1, 18"):
        vectorize(town, tmp_path / "out", kind="building", config=config)
    assert not (tmp_path / "out").exists()


def test_a13_titles_in_any_case(town, config, tmp_path, rsp):
    """`rsp extract` took `--type Building`, and `rsp vectorize` refused it."""
    for kind, name in (("building", "a.json"), ("Building", "b.json")):
        assert rsp("vectorize", "--type", kind, "--config", config, town, tmp_path / name).code == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()  # the title as configured
    classes = [ClassDef(title, (255, 255, 255)) for title in ("background", "Roof", "roof")]
    assert class_index(classes, "roof") == 2 and class_index(classes, "BACKGROUND") == 0
    with pytest.raises(ConfigError, match="'ROOF' may be any of Roof, roof"):
        class_index(classes, "ROOF")


def test_component(run_component, tmp_path):
    masks = write_masks(
        tmp_path / "masks.pmtiles", burn(BUILDINGS, columns=10, rows=8)
    )  # enough for two processes
    step = run_component(vectorize_component, {"masks": masks}, kind="building", config=parse_tables(CONFIG))
    assert len(read(step.path("features"))) == len(BUILDINGS)
    metadata = step.artifacts["features"]["metadata"]
    assert metadata["rsp_kind"] == "features" and metadata["features"] == 5 and metadata["merged"] == 1
    assert step.path("features").suffix == ".geojson"
