"""rsp rasterize of several classes: which is which, which is seen, what lies between, and how many there are."""

from __future__ import annotations

import json
from pathlib import Path

import mercantile
import numpy as np
import pytest
import rasterio.features
import shapely
from rasterio.transform import from_bounds
from rasterio.warp import transform_geom
from shapely.geometry import box, mapping

from rsp.components.rasterize.component import rasterize as rasterize_component
from rsp.components.rasterize.tool import rasterize
from rsp.shared.config import parse_tables
from rsp.shared.errors import ConfigError, UsageError
from rsp.shared.features import feature_writer, to_mercator
from rsp.shared.ground import scale
from rsp.shared.tiles import Tile, bounds_mercator, read_cover, write_cover
from rsp.shared.tileset import read_info
from tests.components.test_rasterize import SIZE, TILE, labels_of, pixels, write_geojson
from tests.shared.test_vectors import arrow as vectors
from tests.tilesets import CONFIG

THREE = CONFIG.replace(
    "[model]",
    "".join(f'[[classes]]\ntitle = "{title}"\ncolor = "orange"\n\n' for title in ("road", "border")) + "[model]",
)
BUILDING, ROAD, BORDER = 1, 2, 3
BESIDE = Tile(TILE.x + 1, TILE.y, TILE.z)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "config.toml").write_text(THREE)
    write_cover(tmp_path / "cover", [TILE, BESIDE])
    write_geojson(tmp_path / "roofs.json", pixels(TILE, 0, 0, 20, 10), pixels(TILE, 60, 30, 68, 40))
    write_geojson(tmp_path / "roads.json", pixels(TILE, 10, 0, 30, 10))
    return tmp_path


def burn(place, *geojson, out="labels", **options):
    options = {"config": place / "config.toml", "web_ui": False, "workers": 1, **options}
    return rasterize(place / "cover", place / out, geojson=geojson, **options)


def mixed(place, *kinds, name="mixed.json"):
    """A file of blocks of pixels, each with its class as the property `kind`."""
    features = [
        {"type": "Feature", "properties": {"kind": kind}, "geometry": pixels(TILE, 8 * n, 0, 8 * n + 8, 8)}
        for n, kind in enumerate(kinds)
    ]
    (place / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(place / name)


@pytest.mark.parametrize(
    ("order", "seen"),
    [(None, ROAD), ("building,road", ROAD), ("road,building", BUILDING), ("building", BUILDING), ("ROAD", ROAD)],
)
def test_the_order_of_classes_says_which_is_seen(place, order, seen):
    """The same in one pass, in whichever order the inputs stand, and with --append."""
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[:10, :10], expected[:10, 20:30], expected[:10, 10:20] = BUILDING, ROAD, seen
    expected[30:40, 60:] = BUILDING
    roofs, roads = f"building={place / 'roofs.json'}", f"road={place / 'roads.json'}"
    result = burn(place, roofs, roads, order=order)
    np.testing.assert_array_equal(labels_of(place / "labels")[TILE], expected)
    burn(place, roads, roofs, order=order, out="turned.pmtiles")
    burn(place, roads, order=order, out="appended")
    burn(place, roofs, order=order, out="appended", append=True)
    for out in ("turned.pmtiles", "appended"):
        masks = labels_of(place / out)
        np.testing.assert_array_equal(masks[TILE], expected)
        assert masks[BESIDE].sum() == 40
    assert result.instances == {
        "building": {"features": 2, "tiles": 2, "most": 2}, "road": {"features": 1, "tiles": 1, "most": 1}
    }  # fmt: skip
    total = 2 * SIZE * SIZE
    assert result.shares["building"] == ((expected == BUILDING).sum() + 40) / total
    assert result.foreground == ((expected > 0).sum() + 40) / total == sum(result.shares.values())


def test_a_property_says_the_class(place, capsys):
    source = mixed(place, "road", "building", "Road", "tree", None, 7, "background", "border")
    result = burn(place, source, type_field="kind")
    mask = labels_of(place / "labels")[TILE]
    assert mask[0, ::8].tolist() == [ROAD, BUILDING, ROAD, 0, 0, 0, 0, BORDER]
    assert result.skipped == {"no class of this name": 4} and result.features == 4
    assert "mixed.json: kind is 'tree'; expected one of building, road, border" in capsys.readouterr().err
    # An input that says its class is asked for no property.
    burn(place, f"border={source}", str(place / "roads.json"), type_field="kind", out="other")
    assert (labels_of(place / "other")[TILE][:8, :64] == BORDER).all()


def test_titles_paths_and_patterns(place):
    """An `=` in a path is no title; a pattern has a title before it as a path has."""
    (place / "year=2026").mkdir()
    write_geojson(place / "year=2026" / "a.json", pixels(TILE, 0, 0, 5, 5))
    burn(place, f"road={place}/year=2026/*.json", str(place / "year=2026" / "a.json"), kind="building")
    assert (labels_of(place / "labels")[TILE][:5, :5] == ROAD).all()


def test_a_file_here_with_a_sign_in_its_name(place, monkeypatch):
    monkeypatch.chdir(place)
    write_geojson(place / "year=2026.json", pixels(TILE, 0, 0, 5, 5))
    write_geojson(place / "a=b.json", pixels(TILE, 0, 0, 5, 5))
    burn(place, "year=2026.json", "a=b.json", kind="building")
    assert labels_of(place / "labels")[TILE].sum() == 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"geojson": ["roofs.json"]}, "which class are the polygons of roofs.json"),
        ({"geojson": ["bulding=roofs.json"]}, "no class 'bulding'"),
        ({"geojson": ["background=roofs.json"]}, "background=roofs.json: background is the background"),
        ({"geojson": ["roofs.json"], "kind": "background"}, "--type: background is the background"),
        ({"geojson": ["roofs.json"], "kind": "road", "type_field": "kind"}, "--type says that all"),
        ({"geojson": ["road=roofs.json"], "order": "road,road"}, "--order road,road: expected each class once"),
        ({"geojson": ["road=roofs.json"], "order": "road,background"}, "not the background"),
        ({"geojson": ["road=roofs.json"], "order": "rod"}, "no class 'rod'"),
        ({"geojson": ["road=roofs.json"], "borders": "wide"}, "--borders wide: expected metres above 0"),
        ({"geojson": ["road=roofs.json"], "borders": "-1"}, "expected metres above 0"),
        ({"geojson": ["road=roofs.json"], "borders": "nan"}, "expected metres above 0"),
        ({"geojson": ["road=roofs.json"], "borders": "road=1,road=2"}, "expected each class once"),
        ({"geojson": ["road=roofs.json"], "borders": "border=1"}, "neither the background nor the border"),
        ({"geojson": ["road=roofs.json"], "borders": "1", "border_type": "wall"}, "no class 'wall'"),
        ({"geojson": ["road=roofs.json"], "borders": "1", "border_type": "background"}, "is the background"),
    ],
)
def test_what_cannot_be_meant(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    with pytest.raises((UsageError, ConfigError), match=message):
        rasterize(place / "cover", place / "labels", config=place / "config.toml", **arguments)
    assert not (place / "labels").exists()


def test_an_input_with_a_title_is_not_overwritten(place, rsp):
    source = (place / "roads.json").rename(place / "roads")
    ran = rsp(
        "rasterize", "--geojson", f"road={source}", "--config", place / "config.toml", place / "cover", source
    )
    assert ran.code == 2 and "is the input" in ran.stderr


@pytest.mark.parametrize("out", ["labels", "labels.pmtiles"])
def test_counts_by_tile(place, rsp, out):
    """The list is a cover, with the number as a further column."""
    # A polygon that only touches the second tile is not in it.
    write_geojson(place / "more.json", pixels(TILE, 40, 40, SIZE, 50), pixels(TILE, 3, 40, 9, 50))
    command = (
        "rasterize", "--geojson", f"building={place}/roofs.json", "--geojson", f"road={place}/roads.json",
        "--geojson", f"building={place}/more.json", "--config", place / "config.toml", "--counts", "--no_web_ui",
        place / "cover", place / out, "--report", place / "report.json",
    )  # fmt: skip
    assert rsp(*command).code == 0
    path = place / "labels" / "{}_cover.csv" if out == "labels" else place / "labels.pmtiles.{}_cover.csv"
    building, road = (path.with_name(path.name.format(title)) for title in ("building", "road"))
    assert building.read_text() == f"{TILE.x},{TILE.y},15,4\n{BESIDE.x},{BESIDE.y},15,1\n"
    assert road.read_text() == f"{TILE.x},{TILE.y},15,1\n"
    assert read_cover(building) == [TILE, BESIDE]
    report = json.loads((place / "report.json").read_text())
    assert report["instances"]["building"] == {"features": 4, "tiles": 2, "most": 4}
    # A run that finds everything there counts the same.
    building.unlink()
    assert rsp(*command, "--resume").code == 0
    assert building.read_text() == f"{TILE.x},{TILE.y},15,4\n{BESIDE.x},{BESIDE.y},15,1\n"


def test_a_list_of_counts_does_not_replace_an_input(place, rsp):
    cover = place / "labels.pmtiles.road_cover.csv"
    (place / "cover").rename(cover)
    ran = rsp(
        "rasterize", "--geojson", f"road={place / 'roads.json'}", "--config", place / "config.toml", "--counts",
        cover, place / "labels.pmtiles",
    )  # fmt: skip
    assert ran.code == 2 and "is the input" in ran.stderr and cover.exists()


def local(polygon):
    """A polygon of the map in metres on the ground around the tile."""
    west, south, _, north = bounds_mercator(TILE)
    return shapely.transform(
        polygon, lambda points: (points - [west, south]) / scale(np.array([(south + north) / 2]))
    )


@pytest.mark.parametrize(("order", "over"), [(None, True), ("border,building", False)])
def test_borders_are_what_is_near_two(place, order, over):
    """Pixel by pixel as measured: no farther from the second nearest feature than so many metres on the ground."""
    metres = 41.0
    blocks = [
        (5, 5, 20, 20),
        (23, 8, 40, 22),
        (42.5, 12, 60, 30),
        (10, 40, 30, 50),
        (30, 40, 45, 52),
        (2, 55, 8, 60),
    ]
    source = write_geojson(place / "f.json", *(pixels(TILE, *block) for block in blocks))
    burn(place, f"building={source}", borders=f"building={metres}", order=order)
    mask = labels_of(place / "labels")[TILE]
    west, _, east, north = bounds_mercator(TILE)
    step = (east - west) / SIZE
    x, y = np.meshgrid(west + (np.arange(SIZE) + 0.5) * step, north - (np.arange(SIZE) + 0.5) * step)
    centres = local(shapely.points(x.ravel(), y.ravel()))
    roofs = [
        local(box(west + left * step, north - bottom * step, west + right * step, north - top * step))
        for left, top, right, bottom in blocks
    ]
    distance = np.sort([shapely.distance(centres, roof) for roof in roofs], axis=0).reshape(-1, SIZE, SIZE)
    inside, second = distance[0] == 0, distance[1]
    sure = np.abs(second - metres) > 0.01 * metres
    expected = np.where(second <= metres, BORDER, 0)
    expected = np.where(inside & ~((second <= metres) & over), BUILDING, expected)
    np.testing.assert_array_equal(mask[sure], expected[sure])
    assert (mask == BORDER).sum() > 100 and sure.mean() > 0.95


def test_borders_are_of_the_class_that_is_named(place):
    roofs = f"building={place / 'roofs.json'}"
    write_geojson(place / "roofs.json", pixels(TILE, 10, 10, 20, 20), pixels(TILE, 24, 10, 34, 20))
    burn(place, roofs, borders="building=60")
    expected = labels_of(place / "labels")
    (place / "config.toml").write_text(THREE.replace('"border"', '"gap"'))
    burn(place, roofs, borders="building=60", border_type="gap", out="gaps")
    assert (expected[TILE] == BORDER).any() and (labels_of(place / "gaps")[TILE] == expected[TILE]).all()


def test_borders_are_within_a_class(place):
    """Between a road and a roof there is none, unless both have one near them of their own; all tiles agree."""
    step = 19.1 * 0.69  # metres a pixel on the ground, about
    write_geojson(place / "near.json", pixels(TILE, 66, 30, 70, 34))
    both = [f"building={place / 'roofs.json'}", f"road={place / 'near.json'}"]
    assert (burn(place, *both, borders=str(4 * step)).shares).keys() == {"building", "road"}
    source = write_geojson(place / "seam.json", pixels(TILE, 50, 10, 61, 20), pixels(TILE, 67, 10, 75, 20))
    result = burn(place, f"building={source}", borders=str(4 * step), order="border,building")
    left, right = (labels_of(place / "labels")[tile] for tile in (TILE, BESIDE))
    # The gap is six pixels wide, over the seam; no more than four pixels from both are the two in its middle.
    assert (left[12:18, 63] == BORDER).all() and (right[12:18, 0] == BORDER).all()
    assert result.instances["building"] == {"features": 2, "tiles": 2, "most": 1}


def test_all_touched(place, rsp):
    """Every pixel of which a polygon has a part."""
    source = write_geojson(place / "f.json", pixels(TILE, 3.6, 5.4, 20.2, 9.4), pixels(TILE, 40.2, 40.2, 40.4, 50))
    ran = rsp(
        "rasterize", "--geojson", f"road={source}", "--config", place / "config.toml", "--all_touched",
        "--no_web_ui", place / "cover", place / "labels",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[5:10, 3:21], expected[40:50, 40] = ROAD, ROAD
    np.testing.assert_array_equal(labels_of(place / "labels")[TILE], expected)


def test_layers_of_a_geopackage(place, rsp):
    """Each layer is of a class, in a CRS of its own; a shapefile beside them."""
    polygons = {
        name: np.array([shapely.geometry.shape(pixels(TILE, *block)) for block in blocks], dtype=object)
        for name, blocks in {
            "roofs": [(0, 0, 20, 10)],
            "ways": [(10, 0, 30, 10)],
            "walls": [(0, 20, 9, 30)],
        }.items()
    }
    table = place / "all.gpkg"
    vectors(table, polygons["roofs"], "EPSG:4326", layer="roofs")
    vectors(table, to_mercator(polygons["ways"], 4326), "EPSG:3857", layer="ways", append=True)
    vectors(place / "walls.shp", polygons["walls"], "EPSG:4326")
    command = [
        "rasterize", "--geojson", f"building={table}|layername=roofs", "--geojson", f"road={table}",
        "--layer", "ways", "--config", place / "config.toml", "--no_web_ui", place / "cover",
    ]  # fmt: skip
    ran = rsp(*command, place / "labels")
    assert ran.code == 0, ran.stderr
    ran = rsp(
        *command[:3], *command[7:], "--append", "--geojson", f"border={place / 'walls.shp'}", place / "labels"
    )
    assert ran.code == 0, ran.stderr
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[:10, :20], expected[:10, 10:30], expected[20:30, :9] = BUILDING, ROAD, BORDER
    np.testing.assert_array_equal(labels_of(place / "labels")[TILE], expected)
    ran = rsp(*command[:5], *command[7:], place / "other")
    assert ran.code == 1 and "choose one with --layer: roofs, ways" in ran.stderr
    ran = rsp("rasterize", "--postgis", "road=SELECT 1", *command[5:], place / "other")
    assert ran.code == 2 and "--layer goes with --geojson" in ran.stderr


@pytest.mark.parametrize("suffix", ["fgb", "gpkg", "parquet", "shp"])
def test_classes_in_a_column(place, suffix):
    polygons = np.array(
        [shapely.geometry.shape(pixels(TILE, 8 * n, 0, 8 * n + 8, 8)) for n in range(3)], dtype=object
    )
    source = place / f"mixed.{suffix}"
    kinds = ["road", "Building", "tree"]
    if suffix == "parquet":
        with feature_writer(source) as writer:
            writer.write_batch(polygons, [{"kind": kind} for kind in kinds])
    else:
        vectors(source, polygons, "EPSG:4326", kind=kinds)
    result = burn(place, str(source), type_field="kind")
    assert labels_of(place / "labels")[TILE][0, [0, 8, 16]].tolist() == [ROAD, BUILDING, 0]
    assert result.skipped == {"no class of this name": 1}


@pytest.mark.parametrize("size", [37, 100, 1])
def test_tiles_of_any_size(place, size):
    source = write_geojson(place / "f.json", pixels(TILE, 3.6, 5.4, 20.2, 9.4), pixels(TILE, 30, 30, 70, 60))
    for config in (place / "config.toml", place / "one.toml"):
        (place / "one.toml").write_text(CONFIG)
        burn(place, f"building={source}", config=config, tile_size=size, out=config.stem)
    grid = from_bounds(*bounds_mercator(TILE), size, size)
    polygons = transform_geom(
        "EPSG:4326", "EPSG:3857", [each["geometry"] for each in json.loads(Path(source).read_text())["features"]]
    )
    expected = rasterio.features.rasterize(polygons, (size, size), transform=grid, dtype="uint8")
    for out in ("config", "one"):
        np.testing.assert_array_equal(labels_of(place / out)[TILE], expected)


def test_as_many_classes_as_a_label_holds(place):
    """A border of each of them, too: more layers than a byte can tell apart."""
    titles = [f"c{number}" for number in range(252)] + ["border", "last"]
    rows = "".join(f'[[classes]]\ntitle = "{title}"\ncolor = "orange"\n\n' for title in titles)
    head, mark, tail = CONFIG.partition('[[classes]]\ntitle = "building"')
    (place / "config.toml").write_text(head + rows + tail[tail.index("[model]") :])
    assert mark
    result = burn(place, f"last={place / 'roads.json'}", f"c0={place / 'roofs.json'}", borders="1")
    assert set(result.shares) == {"last", "c0"}
    assert labels_of(place / "labels")[TILE][5, [5, 25]].tolist() == [1, 254]


def test_the_titles_stand_in_the_labels(place):
    burn(place, f"road={place / 'roads.json'}")
    assert [entry.title for entry in read_info(place / "labels").classes] == [
        "background",
        "building",
        "road",
        "border",
    ]


def test_component(place, run_component):
    step = run_component(
        rasterize_component,
        {"cover": place / "cover"},
        config=parse_tables(THREE),
        layers={"building": str(place / "roofs.json"), "road": str(place / "roads.json")},
        order="road,building",
        borders="building=1.5",
    )
    assert (labels_of(step.path("labels"))[TILE][:10, :20] == BUILDING).all()
    step = run_component(
        rasterize_component,
        {"cover": place / "cover", "features": mixed(place, "road", "building")},
        config=parse_tables(THREE),
        type_field="kind",
        all_touched=True,
    )
    assert labels_of(step.path("labels"))[TILE][0, [0, 8]].tolist() == [ROAD, BUILDING]


def test_the_world_is_one_class(place):
    """A polygon that holds the whole cover is cut to no pixel of background."""
    bounds = mercantile.bounds(TILE)
    source = write_geojson(place / "f.json", mapping(box(bounds.west - 9, bounds.south - 9, bounds.east + 9, 60)))
    burn(place, f"road={source}")
    assert all((mask == ROAD).all() for mask in labels_of(place / "labels").values())
