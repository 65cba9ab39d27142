"""rsp rasterize: what it burns, what it leaves out, and its component."""

from __future__ import annotations

import json
import math
from functools import partial

import mercantile
import numpy as np
import pytest
import rasterio.features
import shapely
from rasterio.transform import from_bounds
from rasterio.warp import transform_geom
from shapely.geometry import box, mapping

from rsp.components.rasterize.blocks import Blocks
from rsp.components.rasterize.component import rasterize as rasterize_component
from rsp.components.rasterize.tool import rasterize
from rsp.shared.config import parse_tables
from rsp.shared.covers import Cover
from rsp.shared.errors import ConfigError, CoverError, FeatureError, TileError, TileSetError, UsageError
from rsp.shared.images import complementary, decode_mask, encode_mask
from rsp.shared.tiles import Tile, bounds_mercator, read_cover, write_cover
from rsp.shared.tileset import SIDECAR, open_reader, read_info
from tests.tilesets import CONFIG, make_tileset, noise

TILE = Tile(17000, 11600, 15)
SIZE = 64
MULTI = CONFIG.replace("[model]", '[[classes]]\ntitle = "road"\ncolor = "orange"\n\n[model]')


def write_geojson(path, *geometries, **members):
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", **members, "features": features}))
    return str(path)


def pixels(tile, left, top, right, bottom, size=SIZE):
    """The polygon, in degrees, of a block of pixels of a tile."""
    west, south, east, north = bounds_mercator(tile)
    x = lambda column: west + (east - west) * column / size  # noqa: E731
    y = lambda row: north - (north - south) * row / size  # noqa: E731
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    ring = [mercantile.lnglat(x(column), y(row)) for column, row in corners]
    return {"type": "Polygon", "coordinates": [[list(point) for point in ring]]}


@pytest.fixture
def place(tmp_path):
    """A folder with a configuration of one class, and a cover of three tiles side by side."""
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "multi.toml").write_text(MULTI)
    write_cover(tmp_path / "cover", [Tile(TILE.x + dx, TILE.y, TILE.z) for dx in range(3)])
    return tmp_path


def burn(place, *geometries, out="labels", **options):
    members = options.pop("members", {})
    source = write_geojson(place / "f.json", *geometries, **members)
    options = {"config": place / "config.toml", "web_ui": False, "workers": 1, **options}
    return rasterize(place / "cover", place / out, geojson=source, **options)


def labels_of(path):
    with open_reader(path) as reader:
        return {tile: decode_mask(reader.read(tile)) for tile in reader.tiles()}


def test_pixels_of_a_block(place):
    result = burn(place, pixels(TILE, 3, 5, 20, 9))
    masks = labels_of(place / "labels")
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[5:9, 3:20] = 1
    assert np.array_equal(masks.pop(TILE), expected)
    assert len(masks) == 2 and not any(mask.any() for mask in masks.values())
    assert (result.features, result.tiles, result.left_out) == (1, 3, 0)
    assert result.foreground == 4 * 17 / (3 * SIZE * SIZE)


def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre(place):
    burn(place, pixels(TILE, 3.6, 5.4, 20.6, 9.4))
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[5:9, 4:21] = 1
    assert np.array_equal(labels_of(place / "labels")[TILE], expected)


def test_labels_wear_the_complementary_palette(place):
    """Reference, section 2: label tiles are paletted PNG, one colour a class, hues turned by 180 degrees."""
    from PIL import Image

    burn(place, pixels(TILE, 3, 5, 20, 9))
    with Image.open(place / "labels" / "15" / str(TILE.x) / f"{TILE.y}.png") as image:
        assert image.mode == "P"
        palette = image.getpalette()
    plain = [(255, 255, 255), (255, 20, 147)]
    assert palette[:6] == [value for color in complementary(plain) for value in color]
    assert complementary(plain)[1] == (20, 255, 128)


def test_bug_14_the_burn_is_bytes(place):
    """A default of int64 wrote the PNG from a buffer read as bytes: stripes."""
    for config in ("config.toml", "multi.toml"):
        burn(place, pixels(TILE, -5, -5, SIZE + 5, SIZE + 5), config=place / config, kind="building")
        mask = labels_of(place / "labels")[TILE]
        assert mask.shape == (SIZE, SIZE) and (mask == 1).all()


def test_bug_15_null_other_and_broken_geometry_is_counted(place, rsp):
    """`geometry: null` crashed, and so did whatever is no polygon."""
    good = pixels(TILE, 3, 5, 20, 9)
    point = {"type": "Point", "coordinates": [6.8, 46.1]}
    line = {"type": "LineString", "coordinates": [[6.8, 46.1], [6.9, 46.2]]}
    broken = {"type": "Polygon", "coordinates": [[[6.8, 46.1]]]}
    flat = {"type": "Polygon", "coordinates": [[[6.8, 46.1], [6.9, 46.2], [6.8, 46.1], [6.8, 46.1]]]}
    far = mapping(box(100, 10, 100.1, 10.1))
    empty = {"type": "Polygon", "coordinates": []}
    source = write_geojson(place / "f.json", None, point, good, line, line, broken, flat, far, empty)
    ran = rsp(
        "rasterize", "--geojson", source, "--config", place / "config.toml", place / "cover", place / "labels",
        "--report", place / "report.json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    report = json.loads((place / "report.json").read_text())
    assert report["skipped"] == {
        "LineString": 2, "Point": 1, "geometry that cannot be built": 1, "null geometry": 2,
        "outside the cover": 1, "polygon without an area": 1,
    }  # fmt: skip
    assert (report["features"], report["left_out"]) == (1, 8)
    assert "2 features: LineString" in ran.stderr and "feature 5" in ran.stderr
    assert labels_of(place / "labels")[TILE].sum() == 4 * 17


def test_bug_15_no_file_is_an_error(place, rsp):
    """An empty glob silently made labels that were all empty."""
    with pytest.raises(FeatureError, match="no file matches"):
        rasterize(place / "cover", place / "labels", geojson=str(place / "*.none"), config=place / "config.toml")
    assert not (place / "labels").exists()


def test_no_polygon_at_all_warns(place, rsp):
    source = write_geojson(place / "f.json", {"type": "Point", "coordinates": [6.8, 46.1]})
    ran = rsp(
        "rasterize", "--geojson", source, "--config", place / "config.toml", place / "cover", place / "labels"
    )
    assert ran.code == 0 and f"no polygon in {source}" in ran.stderr and "all labels are background" in ran.stderr
    assert len(labels_of(place / "labels")) == 3


@pytest.mark.parametrize(
    "name", ["urn:ogc:def:crs:EPSG::3857", "EPSG:900913", "http://www.opengis.net/def/crs/EPSG/0/3857"]
)
def test_bug_15_crs_member_is_honoured(place, name):
    crs = {"type": "name", "properties": {"name": name}}
    west, south, east, north = bounds_mercator(TILE)
    middle = mapping(box((west + east) / 2, south, east, north))
    burn(place, middle, members={"crs": crs})
    mask = labels_of(place / "labels")[TILE]
    assert mask[:, SIZE // 2 :].all() and not mask[:, : SIZE // 2].any()


def test_a_crs_that_is_said(place, rsp):
    west, south, east, north = bounds_mercator(TILE)
    source = write_geojson(place / "f.json", mapping(box((west + east) / 2, south, east, north)))
    words = ("rasterize", "--geojson", source, "--config", place / "config.toml", place / "cover", place / "out")
    assert rsp(*words, "--crs", "EPSG:3857").code == 0
    mask = labels_of(place / "out")[TILE]
    assert mask[:, SIZE // 2 :].all() and not mask[:, : SIZE // 2].any()
    assert rsp(*words[:-1], place / "no").code == 1


def test_a_projected_crs(place):
    block = pixels(TILE, 10, 10, 40, 50)
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    burn(place, transform_geom("EPSG:4326", "EPSG:32632", block), members={"crs": crs})
    assert labels_of(place / "labels")[TILE].sum() == 30 * 40


def test_unknown_crs(place):
    with pytest.raises(FeatureError, match="unknown CRS"):
        burn(
            place,
            pixels(TILE, 1, 1, 9, 9),
            members={"crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::999999"}}},
        )


def test_holes_heights_parts_and_collections(place):
    outer, inner = pixels(TILE, 4, 4, 24, 24), pixels(TILE, 8, 8, 12, 12)
    holed = {"type": "Polygon", "coordinates": [outer["coordinates"][0], inner["coordinates"][0]]}
    deep = {
        "type": "Polygon",
        "coordinates": [[[*point, 7, 8, 9] for point in pixels(TILE, 30, 30, 40, 40)["coordinates"][0]]],
    }
    mixed = {"type": "Polygon", "coordinates": [pixels(TILE, 50, 1, 60, 11)["coordinates"][0]]}
    mixed["coordinates"][0][1] = [*mixed["coordinates"][0][1], 5.0]
    several = {
        "type": "GeometryCollection",
        "geometries": [
            {"type": "Point", "coordinates": [0, 0]},
            {
                "type": "MultiPolygon",
                "coordinates": [
                    pixels(TILE, 50, 50, 55, 55)["coordinates"],
                    pixels(TILE, 57, 57, 60, 60)["coordinates"],
                ],
            },
        ],
    }
    assert burn(place, holed, deep, mixed, several).features == 4
    mask = labels_of(place / "labels")[TILE]
    assert mask.sum() == (400 - 16) + 100 + 100 + 25 + 9
    assert not mask[8:12, 8:12].any() and mask[30:40, 30:40].all()


def test_invalid_polygons_are_made_valid(place):
    """A bow-tie keeps both its triangles, and parts that overlap are one."""
    ring = pixels(TILE, 4, 4, 44, 24)["coordinates"][0]
    bow = {"type": "Polygon", "coordinates": [[ring[0], ring[2], ring[1], ring[3], ring[0]]]}
    first, second = pixels(TILE, 4, 40, 14, 50)["coordinates"], pixels(TILE, 9, 45, 19, 55)["coordinates"]
    burn(place, bow, {"type": "MultiPolygon", "coordinates": [first, second]})
    mask = labels_of(place / "labels")[TILE]
    assert mask[40:55].sum() == 100 + 100 - 25
    assert 380 <= mask[4:24].sum() <= 420 and mask[14, 5] == 1 and mask[14, 42] == 1 and not mask[5, 20:28].any()


def test_every_class_and_append(place):
    """Several classes: --type gives the index, --append merges, the higher class wins."""
    multi = place / "multi.toml"
    assert burn(place, pixels(TILE, 0, 0, 20, 10), config=multi, kind="road").tiles == 3
    burn(place, pixels(TILE, 10, 0, 30, 10), config=multi, kind="building", append=True)
    mask = labels_of(place / "labels")[TILE]
    assert (mask[:10, :20] == 2).all() and (mask[:10, 20:30] == 1).all() and mask.sum() == 200 * 2 + 100
    with pytest.raises(UsageError, match="building, road"):
        burn(place, pixels(TILE, 0, 0, 20, 10), config=multi)
    with pytest.raises(ConfigError, match="no class 'Roof'"):
        burn(place, pixels(TILE, 0, 0, 20, 10), config=multi, kind="Roof")
    with pytest.raises(UsageError, match="background"):
        burn(place, pixels(TILE, 0, 0, 20, 10), config=multi, kind="background")


@pytest.mark.parametrize("out", ["labels", "labels.pmtiles"])
def test_append_keeps_tiles_outside_the_cover_and_starts_from_nothing(place, out):
    burn(place, pixels(TILE, 0, 0, 20, 10), out=out, append=True)
    write_cover(place / "cover", [TILE])
    burn(place, pixels(TILE, 30, 0, 40, 10), out=out, append=True)
    masks = labels_of(place / out)
    assert len(masks) == 3 and masks[TILE].sum() == 200 + 100


@pytest.mark.parametrize(
    ("there", "reason"),
    [(encode_mask(np.zeros((32, 32), np.uint8), [(0, 0, 0)]), "32x32"), (b"\x89PNG and no more", "not an image")],
    ids=["another size", "damaged"],
)
def test_append_to_a_label_that_cannot_be_merged_fails_that_tile_only(place, rsp, there, reason):
    burn(place, pixels(TILE, 0, 0, 20, 10))
    other = place / "labels" / "15" / str(TILE.x + 1) / f"{TILE.y}.png"
    other.write_bytes(there)
    source = write_geojson(place / "f.json", pixels(TILE, 30, 0, 40, 10))
    ran = rsp(
        "rasterize", "--geojson", source, "--config", place / "config.toml", "--append", place / "cover",
        place / "labels",
    )  # fmt: skip
    assert ran.code == 3 and reason in ran.stderr
    assert read_cover(place / "labels.failed.csv") == [Tile(TILE.x + 1, TILE.y, TILE.z)]
    with open_reader(place / "labels") as reader:
        assert decode_mask(reader.read(TILE)).sum() == 300
        assert reader.read(Tile(TILE.x + 1, TILE.y, TILE.z)) == there
    with pytest.raises(TileSetError, match="of the tile size 64, and those to add are of 128"):
        burn(place, pixels(TILE, 30, 0, 40, 10), append=True, tile_size=128)
    (place / "labels/metadata.json").unlink()
    with pytest.raises(TileError, match="no label could be merged"):
        burn(place, pixels(TILE, 30, 0, 40, 10), append=True, tile_size=128)


def test_buffer_in_metres_on_the_ground(place):
    """At 46 degrees north a metre of the map is 0.7 of one."""
    latitude = mercantile.bounds(TILE).south
    west, _, east, _ = bounds_mercator(TILE)
    pixel = (east - west) / SIZE * math.cos(math.radians(latitude))
    burn(place, pixels(TILE, 20, 20, 30, 30), buffer=-2 * pixel)
    assert labels_of(place / "labels")[TILE].sum() == 36
    burn(place, pixels(TILE, 20, 20, 30, 30), buffer=2 * pixel)
    assert 180 <= labels_of(place / "labels")[TILE].sum() <= 196
    result = burn(place, pixels(TILE, 20, 20, 30, 30), buffer=-6 * pixel)
    assert result.skipped == {"nothing left of it after --buffer": 1} and result.foreground == 0


@pytest.mark.parametrize("metres", [2, -2])
def test_each_metre_of_a_buffer_counts(place, metres):
    """A pixel has a third of a metre here: so many pixels are burnt on each side."""
    tile = Tile(544000, 371200, 20)
    write_cover(place / "cover", [tile])
    west, _, east, _ = bounds_mercator(tile)
    bounds = mercantile.bounds(tile)
    pixel = (east - west) / 128 * math.cos(math.radians((bounds.south + bounds.north) / 2))
    burn(place, pixels(tile, 40, 50, 90, 80, 128), buffer=float(metres), tile_size=128)
    found = labels_of(place / "labels")[tile]
    wide = round(metres / pixel)
    assert abs(metres / pixel - wide) < 0.4 and abs(wide) > 5
    assert np.flatnonzero(found[65]).tolist() == list(range(40 - wide, 90 + wide))
    assert np.flatnonzero(found[:, 65]).tolist() == list(range(50 - wide, 80 + wide))


def test_buffer_reaches_into_the_cover(place):
    beside = pixels(TILE, -10, 10, -2, 20)
    assert burn(place, beside).skipped == {"outside the cover": 1}
    west, _, east, _ = bounds_mercator(TILE)
    assert burn(place, beside, buffer=5 * (east - west) / SIZE).features == 1
    assert labels_of(place / "labels")[TILE][10:20, :3].all()


def test_resume_keeps_what_is_there(place):
    burn(place, pixels(TILE, 0, 0, 20, 10))
    (place / "labels" / "15" / str(TILE.x + 1) / f"{TILE.y}.png").unlink()
    everything = mapping(box(*mercantile.bounds(TILE)).buffer(0.1))
    burn(place, everything, resume=True)
    sums = [mask.sum() for mask in labels_of(place / "labels").values()]
    assert sums == [200, SIZE * SIZE, 0]
    with pytest.raises(UsageError, match="choose one"):
        burn(place, everything, resume=True, append=True)


def test_a_polygon_over_the_antimeridian(place):
    """West of 180 and, written on beyond it, in the first column of the grid too."""
    write_cover(place / "cover", [Tile(0, 4, 3), Tile(7, 4, 3)])
    burn(place, mapping(box(170, -20, 190, -10)), mapping(box(-182, -30, -178, -25)))
    masks = labels_of(place / "labels")
    width = math.ceil(SIZE * 10 / 45)
    first, last = masks[Tile(0, 4, 3)], masks[Tile(7, 4, 3)]
    assert first[16:24, :14].all() and not first[:20, width + 1 :].any()
    assert last[16:24, -14:].all() and first[40, 0] and last[40, -1]


def test_large_polygons_are_cut_to_the_same_pixels(place):
    """Cutting a polygon of many points to a chunk of tiles must not change a pixel."""
    tiles = [Tile(TILE.x + dx, TILE.y + dy, 15) for dx in range(12) for dy in range(12)]
    rng = np.random.default_rng(3)
    west, _, _, north = bounds_mercator(TILE)
    side = bounds_mercator(TILE)[2] - west
    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    radius = side * (4 + 2 * np.sin(9 * angle) + 0.3 * rng.random(4000))
    star = shapely.Polygon(
        np.column_stack([west + 6 * side + radius * np.cos(angle), north - 6 * side + radius * np.sin(angle)])
    )
    assert star.is_valid
    blocks = Blocks(Cover.of(tiles), 15, SIZE)
    met = blocks.meet(np.array([star], dtype=object))
    assert len(blocks) == 4 and (shapely.get_num_coordinates(met.pieces) < 4001).all()
    assert set(met.tile) == {
        n for n, tile in enumerate(in_order(blocks)) if box(*bounds_mercator(tile)).intersects(star)
    }
    write_cover(place / "cover", tiles)
    crs = {"type": "name", "properties": {"name": "EPSG:3857"}}
    burn(place, mapping(star), members={"crs": crs})
    for tile, mask in labels_of(place / "labels").items():
        grid = from_bounds(*bounds_mercator(tile), SIZE, SIZE)
        expected = rasterio.features.rasterize([star], (SIZE, SIZE), transform=grid, dtype="uint8")
        np.testing.assert_array_equal(mask, expected)


def in_order(blocks):
    return [tile for number in range(len(blocks)) for tile in blocks.tiles(number)]


def test_the_same_bytes_with_processes(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    tiles = [Tile(TILE.x + dx, TILE.y + dy, 15) for dx in range(32) for dy in range(17)]
    write_cover(tmp_path / "cover", reversed(tiles))
    rng = np.random.default_rng(0)
    shapes = [pixels(TILE, *rng.uniform(0, 1000, 2), *rng.uniform(0, 1000, 2)) for _ in range(200)]
    source = write_geojson(tmp_path / "f.json", *shapes)
    archives = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.pmtiles"
        rasterize(
            tmp_path / "cover", out, geojson=source, config=tmp_path / "config.toml", workers=workers, web_ui=False
        )
        archives.append(out.read_bytes())
    assert archives[0] == archives[1]


def test_several_files_and_a_web_map(place, monkeypatch):
    for number in range(2):
        write_geojson(place / f"part{number}.json", pixels(TILE, 10 * number, 0, 10 * number + 5, 5))
    result = rasterize(
        place / "cover", place / "labels", geojson=str(place / "part*.json"), config=place / "config.toml"
    )
    assert result.features == 2 and labels_of(place / "labels")[TILE].sum() == 50
    assert (place / "labels" / "index.html").exists()


def test_the_seed_spelling(place, rsp, monkeypatch):
    monkeypatch.setenv("RSP_CONFIG", str(place / "config.toml"))
    source = write_geojson(place / "f.json", pixels(TILE, 0, 0, 20, 10, size=128))
    ran = rsp(
        "rasterize", "--geojson", source, place / "cover", place / "labels", "--tile_size", 128, "--no_web_ui"
    )
    assert ran.code == 0 and labels_of(place / "labels")[TILE].shape == (128, 128)
    assert not (place / "labels" / "index.html").exists()
    ran = rsp("rasterize", place / "cover", "--geojson", source, "--ts", "32,32", "--out", place / "small")
    assert ran.code == 0 and labels_of(place / "small")[TILE].shape == (32, 32)


@pytest.mark.parametrize("told", [True, False])
def test_labels_of_the_size_of_images(place, told):
    """A set says its size, as those of our tools; of others the first tile that can be decoded is looked at."""
    first = Tile(TILE.x - 1, TILE.y, TILE.z)
    images = make_tileset(place / "images", [first, TILE], draw=partial(noise, size=48))
    if not told:
        (images / SIDECAR).unlink()
        (images / f"{first.z}" / f"{first.x}" / f"{first.y}.png").write_bytes(b"damaged")
    assert (read_info(images).tile_size is not None) == told
    burn(place, pixels(TILE, 0, 0, 24, 12, 48), like=images)
    mask = labels_of(place / "labels")[TILE]
    assert mask.shape == (48, 48) and mask[:12, :24].all() and mask.sum() == 12 * 24


def test_images_that_have_no_side(place):
    make_tileset(place / "wide", [TILE], draw=lambda tile: noise(tile, 48)[:, :32])
    with pytest.raises(TileSetError, match=r"wide: tile .* has 32 x 48 pixels; tiles must be square"):
        burn(place, pixels(TILE, 0, 0, 10, 10), like=place / "wide")
    make_tileset(place / "bad", [TILE])
    (place / "bad" / SIDECAR).unlink()
    next((place / "bad").glob("*/*/*.png")).write_bytes(b"damaged")
    with pytest.raises(TileSetError, match="bad: no tile can be decoded"):
        burn(place, pixels(TILE, 0, 0, 10, 10), like=place / "bad")
    assert not (place / "labels").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cover", "out"], 2, "either with --geojson or with --postgis"),
        (["cover", "out", "--geojson", "f.json", "--postgis", "SELECT 1"], 2, "either"),
        (["cover", "--geojson", "f.json"], 2, "`out` is missing; give it"),
        (["cover", "out", "--geojson", "f.json", "--format", "webp"], 2, "webp"),
        (["cover", "out", "--geojson", "f.json", "--ts", "12,13"], 2, "12,13"),
        (["cover", "out", "--geojson", "f.json", "--ts", "0"], 2, "--tile_size"),
        (["cover", "out", "--geojson", "f.json", "--ts", "64", "--like", "images"], 2, "choose one"),
        (["cover", "out", "--geojson", "f.json", "--like", "images"], 1, "images"),
        (["none", "out", "--geojson", "f.json"], 1, "none"),
        (["zooms", "out", "--geojson", "f.json"], 1, "mixes the zooms 14, 15"),
        (["empty", "out", "--geojson", "f.json"], 1, "lists no tile"),
        (["cover", "out", "--geojson", "bad.json"], 1, "bad.json"),
        (["cover", "file", "--geojson", "f.json"], 1, "it is a file"),
    ],
)
def test_what_cannot_be(place, rsp, monkeypatch, arguments, code, message):
    monkeypatch.chdir(place)
    monkeypatch.setenv("RSP_CONFIG", "config.toml")
    write_geojson(place / "f.json", pixels(TILE, 0, 0, 20, 10))
    (place / "bad.json").write_text('{"type":"FeatureCollection","features":[{"type":"Feature","geometry":')
    (place / "file").write_text("")
    (place / "empty").write_text("\n")
    (place / "zooms").write_text("1,1,14\n1,1,15\n")
    ran = rsp("rasterize", *arguments)
    assert ran.code == code and message in ran.stderr
    assert "Traceback" not in ran.stderr and not (place / "out").exists()


def test_errors_have_their_type(place):
    write_cover(place / "two", [Tile(1, 1, 14), Tile(1, 1, 15)])
    source = write_geojson(place / "f.json", pixels(TILE, 0, 0, 20, 10))
    with pytest.raises(CoverError):
        rasterize(place / "two", place / "out", geojson=source, config=place / "config.toml")
    (place / "file").write_text("")
    with pytest.raises(TileSetError):
        rasterize(place / "cover", place / "file", geojson=source, config=place / "config.toml", append=True)


def test_component(place, run_component):
    source = write_geojson(place / "f.json", pixels(TILE, 0, 0, 20, 10))
    step = run_component(
        rasterize_component, {"cover": place / "cover"}, config=parse_tables(CONFIG), features_at=source
    )
    masks = labels_of(step.path("labels"))
    assert len(masks) == 3 and masks[TILE].sum() == 200
    metadata = step.artifacts["labels"]["metadata"]
    assert (metadata["rsp_kind"], metadata["tiles"], metadata["features"]) == ("labels", 3, 1)
    step = run_component(
        rasterize_component,
        {"cover": place / "cover"},
        config=parse_tables(MULTI),
        features_at=source,
        kind="road",
        tile_size=32,
    )
    mask = labels_of(step.path("labels"))[TILE]
    assert mask.shape == (32, 32) and mask.max() == 2
    make_tileset(place / "images", [TILE], draw=partial(noise, size=48))
    given = {"config": parse_tables(CONFIG), "features_at": source}
    step = run_component(rasterize_component, {"cover": place / "cover", "images": place / "images"}, **given)
    assert labels_of(step.path("labels"))[TILE].shape == (48, 48)
