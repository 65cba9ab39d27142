"""rsp cover and rasterize: coordinates, their CRS, and how many tiles there may be."""

from __future__ import annotations

import json

import mercantile
import numpy as np
import pytest
import shapely
from shapely.geometry import LineString, Polygon, box, mapping

from rsp.components.cover.tool import cover
from rsp.shared.errors import UsageError
from rsp.shared.features import read_crs
from rsp.shared.geometry import MANY_POINTS, is_tangled
from rsp.shared.tiles import Tile, read_cover, zxy

LAMBERT = box(842000, 6519000, 842400, 6519400)


def write(path, *geometries, before="", after=""):
    features = [{"type": "Feature", "properties": {"crs": "no"}, "geometry": mapping(one)} for one in geometries]
    path.write_text(f'{{"type":"FeatureCollection",{before}"features":{json.dumps(features)}{after}}}')
    return path


def test_crs_says_what_the_file_does_not(tmp_path, rsp):
    path = write(tmp_path / "f.json", LAMBERT)
    member = '"crs":{"type":"name","properties":{"name":"urn:ogc:def:crs:EPSG::2154"}}'
    known = write(tmp_path / "known.json", LAMBERT, before=member + ",")
    assert rsp("cover", "--zoom", 17, known, tmp_path / "a").code == 0
    assert rsp("cover", "--zoom", 17, "--crs", "EPSG:2154", path, tmp_path / "b").code == 0
    late = write(tmp_path / "late.json", LAMBERT, after="," + member)
    assert read_crs(late) == 2154 and rsp("cover", "--zoom", 17, late, tmp_path / "c").code == 0
    bounds = ",".join(map(str, LAMBERT.bounds))
    assert rsp("cover", "--bbox", bounds, "--zoom", 17, "--crs", 2154, tmp_path / "d").code == 0
    tiles = read_cover(tmp_path / "a")
    assert len(tiles) > 2 and tiles == read_cover(tmp_path / "b") == read_cover(tmp_path / "c")
    assert set(tiles) <= set(read_cover(tmp_path / "d"))


def test_crs_overrides_what_the_file_says(tmp_path):
    member = '"crs":{"type":"name","properties":{"name":"EPSG:2154"}},'
    path = write(tmp_path / "f.json", box(4.8, 45.7, 4.81, 45.71), before=member)
    cover(str(path), [tmp_path / "a"], zoom=14, crs="EPSG:4326")
    assert Tile(*mercantile.tile(4.805, 45.705, 14)) in read_cover(tmp_path / "a")


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("--bbox 5,45,6,46 --zoom 30", 4_243_133_862_066_000),
        ("--bbox 0,0,1,1 --zoom 10 --max_tiles 8", 9),
        ("--bbox 179,0,-179,1 --zoom 10 --max_tiles 17", 18),
    ],
)
def test_a_bbox_of_too_many_tiles(tmp_path, rsp, line, count):
    ran = rsp("cover", *line.split(), tmp_path / "out")
    assert ran.code == 2 and "raise --max_tiles" in ran.stderr and not (tmp_path / "out").exists()
    number = int(ran.stderr.split(" would be ")[1].split(" tiles")[0].replace(",", ""))
    assert number == count or count > 10**12


def test_the_number_of_tiles_of_a_bbox_is_exact(tmp_path):
    exact = len(set(mercantile.tiles(4.7, 45.6, 5.1, 45.9, 13)))
    cover("4.7,45.6,5.1,45.9", [tmp_path / "out"], kind="bbox", zoom=13, max_tiles=exact)
    assert set(read_cover(tmp_path / "out")) == set(mercantile.tiles(4.7, 45.6, 5.1, 45.9, 13))
    with pytest.raises(UsageError, match=f"would be {exact} tiles"):
        cover("4.7,45.6,5.1,45.9", [tmp_path / "out"], kind="bbox", zoom=13, max_tiles=exact - 1)


def test_a_line_is_not_counted_by_its_bounds(tmp_path):
    """A diagonal has some hundred tiles in bounds of ten thousand."""
    path = write(tmp_path / "f.json", LineString([(0, 0), (9, 9)]))
    cover(str(path), [tmp_path / "out"], zoom=12, max_tiles=400)
    assert 100 < len(read_cover(tmp_path / "out")) <= 400
    with pytest.raises(UsageError, match="would be at least"):
        cover(str(path), [tmp_path / "out"], zoom=20, max_tiles=400)


def test_a_ring_is_not_counted_by_its_hole(tmp_path):
    ring = Polygon(box(0, 0, 9, 9).exterior, [box(0.01, 0.01, 8.99, 8.99).exterior])
    path = write(tmp_path / "f.json", ring)
    cover(str(path), [tmp_path / "out"], zoom=12, max_tiles=600)
    with pytest.raises(UsageError, match="would be"):
        cover(str(write(tmp_path / "full.json", box(0, 0, 9, 9))), [tmp_path / "out"], zoom=12, max_tiles=600)


def test_many_features_on_the_same_tiles_count_once(tmp_path):
    path = write(tmp_path / "f.json", *[box(0.1, 0.1, 0.9, 0.9)] * 20)
    cover(str(path), [tmp_path / "out"], zoom=12, max_tiles=150)
    with pytest.raises(UsageError, match="tiles, and the limit is 90"):
        cover(str(path), [tmp_path / "out"], zoom=12, max_tiles=90)


def test_beyond_the_pole_there_are_no_tiles(tmp_path):
    path = write(tmp_path / "f.json", box(-180, -90, 180, -80))
    cover(str(path), [tmp_path / "out"], zoom=5)
    assert {tile.y for tile in read_cover(tmp_path / "out")} == set(range(mercantile.tile(0, -80.0, 5).y, 32))


def test_a_polygon_of_many_points_is_repaired_unless_it_is_tangled():
    angles = np.linspace(0, 2 * np.pi, 3 * MANY_POINTS, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    bow = Polygon(np.concatenate([circle[:-1], [circle[3]]]))
    noise = Polygon(np.random.default_rng(1).uniform(0, 1, (3 * MANY_POINTS, 2)))
    assert not is_tangled(Polygon(circle)) and not is_tangled(bow) and is_tangled(noise)
    assert not is_tangled(shapely.MultiPolygon([box(0, 0, 1, 1)]))


def test_mixed_zooms_of_a_tile_set_are_said(tmp_path, rsp):
    for tile in (Tile(4, 3, 3), Tile(2, 1, 2)):
        path = tmp_path / "tiles" / f"{zxy(tile)}.png"
        path.parent.mkdir(parents=True)
        path.touch()
    ran = rsp("cover", "--type", "dir", tmp_path / "tiles", tmp_path / "all")
    assert ran.code == 0 and "zooms 2, 3" in ran.stderr and len(read_cover(tmp_path / "all")) == 2
    ran = rsp("cover", "--type", "dir", "--zoom", 3, tmp_path / "tiles", tmp_path / "one")
    assert ran.code == 0 and "warning" not in ran.stderr and read_cover(tmp_path / "one") == [Tile(4, 3, 3)]


def test_a_cover_with_a_byte_order_mark(tmp_path):
    (tmp_path / "cover").write_bytes(b"\xef\xbb\xbf1,2,3\r\n")
    assert read_cover(tmp_path / "cover") == [Tile(1, 2, 3)]
