"""rsp cover: what it covers, how it splits, and its component."""

from __future__ import annotations

import json

import mercantile
import pytest
import shapely
from shapely.geometry import box, mapping

from rsp.components.cover.component import cover as cover_component
from rsp.components.cover.component import split as split_component
from rsp.components.cover.tool import cover
from rsp.shared.covers import Cover
from rsp.shared.errors import CoverError, FeatureError, UsageError
from rsp.shared.splits import split_cover
from rsp.shared.tiles import Tile, read_cover


def write_geojson(path, *geometries, **members):
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", **members, "features": features}))
    return path


def test_bbox_as_the_readme_writes_it(tmp_path, rsp):
    ran = rsp("cover", "--type", "bbox", "4.8,45.7,4.83,45.73", "--zoom", "18", tmp_path / "cover")
    assert ran.code == 0
    assert set(read_cover(tmp_path / "cover")) == set(mercantile.tiles(4.8, 45.7, 4.83, 45.73, 18))


@pytest.mark.parametrize("zoom", [0, 3, 10])
def test_zoom_0_is_a_zoom(tmp_path, zoom):
    assert cover("-10,-10,10,10", [tmp_path / "c"], kind="bbox", zoom=zoom).tiles >= 1


def test_negative_bbox_is_no_flag(tmp_path, rsp):
    ran = rsp("cover", "--type", "bbox", "-4.8,45.7,-4.79,45.71", "--zoom", "14", tmp_path / "c")
    assert ran.code == 0 and set(read_cover(tmp_path / "c")) == set(mercantile.tiles(-4.8, 45.7, -4.79, 45.71, 14))


def test_bbox_across_the_antimeridian(tmp_path):
    cover("179.9,10,-179.9,10.1", [tmp_path / "c"], kind="bbox", zoom=8)
    assert {tile.x for tile in read_cover(tmp_path / "c")} == {0, 255}


def test_bbox_in_another_crs(tmp_path):
    west, south, east, north = mercantile.xy_bounds(33, 22, 6)
    cover(f"{west + 1},{south + 1},{east - 1},{north - 1},EPSG:3857", [tmp_path / "c"], kind="bbox", zoom=6)
    assert read_cover(tmp_path / "c") == [Tile(33, 22, 6)]


@pytest.mark.parametrize("bad", ["1,2,3", "a,b,c,d", "0,50,1,40", "0,0,1,1,WGS84", "0,0,999,1"])
def test_bad_bbox(tmp_path, rsp, bad):
    ran = rsp("cover", "--type", "bbox", bad, "--zoom", "10", tmp_path / "c")
    assert ran.code == 2 and "bbox" in ran.stderr


GEOMETRIES = [
    shapely.Point(10.3, 46.2).buffer(0.3),
    shapely.Point(10.3, 46.2).buffer(0.3).difference(shapely.Point(10.3, 46.2).buffer(0.2)),
    shapely.MultiPolygon([box(1, 1, 1.2, 1.3), box(2, 2, 2.01, 2.01)]),
    shapely.LineString([(5, 45), (5.4, 45.9), (6.3, 45.1)]),
    shapely.GeometryCollection([box(7, 7, 7.1, 7.2), shapely.MultiLineString([[(8, 8), (8.3, 8.2)]])]),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.geom_type)
def test_features_against_exact_intersection(tmp_path, geometry):
    zoom = 11
    source = write_geojson(tmp_path / "f.json", mapping(geometry))
    cover(str(source), [tmp_path / "c"], zoom=zoom)
    expected = {
        tile for tile in mercantile.tiles(*geometry.bounds, zoom)
        if shapely.intersects(geometry, box(*mercantile.bounds(tile)))
    }  # fmt: skip
    assert set(read_cover(tmp_path / "c")) == expected


def test_a_tile_covers_itself_and_no_neighbour(tmp_path):
    tile = Tile(529, 359, 10)
    source = write_geojson(tmp_path / "f.json", mapping(box(*mercantile.bounds(tile))))
    cover(str(source), [tmp_path / "c"], zoom=10)
    assert read_cover(tmp_path / "c") == [tile]


def test_points_and_multipoints(tmp_path):
    source = write_geojson(tmp_path / "f.json", {"type": "MultiPoint", "coordinates": [[0.1, 0.1], [-0.1, -0.1]]})
    cover(str(source), [tmp_path / "c"], zoom=1)
    assert read_cover(tmp_path / "c") == [Tile(0, 1, 1), Tile(1, 0, 1)]


def test_null_geometry_is_passed_over(tmp_path):
    source = write_geojson(tmp_path / "f.json", None, {"type": "Point", "coordinates": [0.1, 0.1]})
    assert cover(str(source), [tmp_path / "c"], zoom=5).tiles == 1


def test_crs_member(tmp_path):
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    ring = mapping(box(*mercantile.xy_bounds(33, 22, 6)))
    cover(str(write_geojson(tmp_path / "f.json", ring, crs=crs)), [tmp_path / "c"], zoom=6)
    assert read_cover(tmp_path / "c") == [Tile(33, 22, 6)]


def test_glob_of_geojson_and_no_match(tmp_path):
    for number in range(2):
        point = {"type": "Point", "coordinates": [number * 90.0 + 1, 1.0]}
        write_geojson(tmp_path / f"{number}.json", point)
    assert cover(str(tmp_path / "*.json"), [tmp_path / "c"], zoom=4).tiles == 2
    with pytest.raises(FeatureError, match="no file matches"):
        cover(str(tmp_path / "*.geojson"), [tmp_path / "c"], zoom=4)


def test_splits_lose_no_tile_and_are_seeded(tmp_path, rsp):
    bbox = ("cover", "--bbox", "4.8,45.7,4.83,45.73", "--zoom", "18", "--splits", "70/30", "--out")
    assert rsp(*bbox, tmp_path / "a", tmp_path / "b").code == 0
    assert rsp(*bbox, tmp_path / "c", tmp_path / "d").code == 0
    training, validation = read_cover(tmp_path / "a"), read_cover(tmp_path / "b")
    assert (len(training), len(validation)) == (515, 221)  # 70 % of 736 is 515.2
    assert not set(training) & set(validation)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    assert rsp(*bbox, tmp_path / "e", tmp_path / "f", "--seed", 1).code == 0
    assert (tmp_path / "a").read_bytes() != (tmp_path / "e").read_bytes()


def test_blocks_stay_together(tmp_path):
    outs = [tmp_path / "a", tmp_path / "b"]
    cover("4.8,45.7,4.83,45.73", outs, kind="bbox", zoom=18, splits=[70, 30], block=4)
    blocks = [{(tile.x // 4, tile.y // 4) for tile in read_cover(out)} for out in outs]
    assert not blocks[0] & blocks[1]


def test_a_split_is_that_of_its_seed_and_its_blocks(tmp_path):
    tiles = Cover.of(mercantile.tiles(4.8, 45.7, 4.83, 45.73, 17))
    outs = [tmp_path / "a", tmp_path / "b"]
    for options in ({}, {"seed": 4}, {"block": 3}, {"seed": 5, "block": 2, "stable": True}):
        cover("4.8,45.7,4.83,45.73", outs, kind="bbox", zoom=17, splits=[70, 30], **options)
        assert [read_cover(out) for out in outs] == list(map(list, split_cover(tiles, [70, 30], **options)))


def test_a_stable_split_moves_no_tile_when_the_area_grows(tmp_path, rsp):
    parts = []
    for east in ("4.81", "4.83"):
        outs = [tmp_path / f"{name}-{east}" for name in ("a", "b")]
        bbox = ("cover", "--bbox", f"4.8,45.7,{east},45.73", "--zoom", "18", "--splits", "70,30", "--block", "3")
        assert rsp(*bbox, "--stable", "--out", *outs).code == 0
        parts.append([set(read_cover(out)) for out in outs])
    assert parts[0][0] < parts[1][0] and parts[0][1] < parts[1][1]
    with pytest.raises(CoverError, match=r"would be empty; try another --seed, smaller blocks"):
        cover("4.8,45.7,4.83,45.73", outs, kind="bbox", zoom=18, splits=[70, 30], block=1000, stable=True)
    with pytest.raises(UsageError, match=r"give --splits, too"):
        cover("4.8,45.7,4.83,45.73", outs[:1], kind="bbox", zoom=18, stable=True)


def test_the_cover_of_a_directory(tmp_path, rsp):
    for tile in ((1, 2), (3, 1)):
        file = tmp_path / "tiles" / "2" / str(tile[0]) / f"{tile[1]}.png"
        file.parent.mkdir(parents=True)
        file.touch()
    assert rsp("cover", "--type", "dir", tmp_path / "tiles", tmp_path / "sub" / "cover").code == 0
    assert (tmp_path / "sub" / "cover").read_text() == "1,2,2\n3,1,2\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"splits": [70, 30]}, UsageError),
        ({"out": ["a", "b"]}, UsageError),
        ({"out": ["a", "b"], "splits": [70, 20]}, UsageError),
        ({"zoom": None}, UsageError),
        ({"zoom": 99}, UsageError),
        ({"out": ["a", "b"], "splits": [99, 1], "zoom": 1}, CoverError),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, arguments, error):
    arguments = {"out": ["a"], "zoom": 5, **arguments}
    arguments["out"] = [tmp_path / name for name in arguments["out"]]
    with pytest.raises(error):
        cover("0.1,0.1,1,1", kind="bbox", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_geojson_says_where(tmp_path, rsp):
    (tmp_path / "f.json").write_text('{"type":"FeatureCollection","features":[{"type":"Feature","geometry":')
    ran = rsp("cover", tmp_path / "f.json", "--zoom", 5, tmp_path / "c")
    assert ran.code == 1 and "f.json" in ran.stderr and "JSON" in ran.stderr


def test_component(run_component, tmp_path):
    step = run_component(cover_component, source="4.8,45.7,4.83,45.73", zoom=16)
    tiles = read_cover(step.path("cover"))
    assert step.artifacts["cover"]["metadata"]["tiles"] == len(tiles) > 40
    for tile in tiles:
        file = tmp_path / "tiles" / f"{tile.z}" / f"{tile.x}" / f"{tile.y}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    step = run_component(split_component, {"tiles": tmp_path / "tiles"}, share=70)
    parts = [read_cover(step.path(name)) for name in ("training", "validation")]
    assert sorted(parts[0] + parts[1]) == sorted(tiles)
    step = run_component(split_component, {"tiles": tmp_path / "tiles"}, share=70, block=2, stable=True)
    expected = [list(part) for part in split_cover(Cover.of(tiles), [70, 30], block=2, stable=True)]
    assert [read_cover(step.path(name)) for name in ("training", "validation")] == expected


def test_help_is_quick_because_it_imports_little():
    import subprocess
    import sys

    code = (
        "import sys; from rsp.shared.cli import main\n"
        "try: main(['cover', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'kfp', 'rasterio', 'numpy', 'shapely'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
