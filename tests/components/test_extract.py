"""rsp extract: what it takes out of OpenStreetMap, how wide roads are, and its component."""

from __future__ import annotations

import json
import math

import osmium
import pytest
import shapely
from pyproj import Geod

from rsp.components.extract.component import extract as extract_component
from rsp.components.extract.osm import Building, Road, Width, metres_of
from rsp.components.extract.tool import extract
from rsp.shared.errors import FeatureError
from tests.osm import Scene, features_of, square

GEOD = Geod(ellps="WGS84")


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "scene.osm.pbf")


def metres_across(polygon, lon, lat, *, north_south):
    """The length on the ellipsoid of the cut through a polygon along a meridian or a parallel."""
    reach = 0.01
    line = [(lon, lat - reach), (lon, lat + reach)] if north_south else [(lon - reach, lat), (lon + reach, lat)]
    return GEOD.geometry_length(shapely.LineString(line).intersection(polygon))


def test_closed_ways_become_buildings(scene, tmp_path, rsp):
    scene.way(square(9.5, 47.1), building="yes", name="Rathaus")
    ran = rsp("extract", "--type", "building", scene.write(), tmp_path / "b.json")
    assert ran.code == 0
    (((kind, number), (polygon, properties)),) = features_of(tmp_path / "b.json").items()
    assert (kind, number, properties) == (
        "way",
        1,
        {"osm_type": "way", "osm_id": 1, "building": "yes", "name": "Rathaus"},
    )
    assert polygon.equals(shapely.Polygon(square(9.5, 47.1))) and polygon.exterior.is_ccw


def test_bug_13_courtyards_are_holes(scene, tmp_path):
    """Multipolygon relations were ignored."""
    outer, inner = scene.way(square(9.5, 47.1)), scene.way(square(9.5003, 47.1003, 0.0002))
    scene.relation([(outer, "outer"), (inner, "inner")], building="yes")
    one, two = scene.way(square(9.6, 47.1)), scene.way(square(9.61, 47.1))
    scene.relation([(one, "outer"), (two, "outer")], building="school")
    result = extract(scene.write(), tmp_path / "b.json", kind="building")
    found = features_of(tmp_path / "b.json")
    assert list(found) == [("relation", 1), ("relation", 2)] and result.features == 2
    assert found["relation", 1][0].area == pytest.approx(1e-6 - 4e-8, rel=1e-6)
    assert len(found["relation", 1][0].interiors) == 1
    assert found["relation", 2][0].geom_type == "MultiPolygon"


def test_bug_13_the_type_in_any_case(scene, tmp_path, rsp):
    scene.way(square(9.5, 47.1), building="yes")
    assert rsp("extract", "--type", "Building", scene.write(), "--out", tmp_path / "b.json").code == 0
    assert len(features_of(tmp_path / "b.json")) == 1


def test_bug_11_missing_nodes_and_members_are_counted(scene, tmp_path, rsp):
    """One way with a node outside the extract killed the whole run."""
    scene.way(square(9.5, 47.1), missing=[2], building="yes")
    good = scene.way(square(9.51, 47.1), building="yes")
    clipped = scene.way(square(9.52, 47.1), missing=[1])
    scene.relation([(clipped, "outer")], building="yes")
    scene.relation([(good, "outer"), (777, "inner")], building="yes")
    scene.way([(9.5, 47.2), (9.6, 47.2)], missing=[1], highway="residential")
    ran = rsp("extract", "--type", "building", scene.write(), tmp_path / "b.json", "--report", tmp_path / "r.json")
    assert ran.code == 0
    assert list(features_of(tmp_path / "b.json")) == [("way", 2)]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["skipped"] == {"missing nodes or members": 3} and report["left_out"] == 3
    for address in ("way/1", "relation/1", "relation/2"):
        assert f"https://www.openstreetmap.org/{address}: missing" in ran.stderr
    with pytest.raises(FeatureError, match=r"every road in .* had to be left out \(missing nodes or members: 1\)"):
        extract(scene.path, tmp_path / "r.geojson", kind="road")
    assert not (tmp_path / "r.geojson").exists()


def test_invalid_geometry_is_repaired_or_named(scene, tmp_path, rsp):
    a, b, c, d, _ = square(9.5, 47.1)
    scene.way([a, c, b, d, a], building="yes")  # a bow-tie: two triangles
    scene.way([a, b, a], building="yes")  # no area
    scene.way([a, b, c], building="yes")  # not closed
    scene.way([a, b, (9.5005, 47.1), a], building="yes")  # flat
    bow = scene.way([a, c, b, d, a])
    scene.relation([(bow, "outer")], building="yes")
    scene.relation([(scene.way([a, b]), "outer")], building="yes")
    ran = rsp("extract", "--type", "building", scene.write(), tmp_path / "b.json", "--report", tmp_path / "r.json")
    found = features_of(tmp_path / "b.json")
    assert list(found) == [("way", 1), ("relation", 1)]
    for polygon, _ in found.values():
        assert polygon.is_valid and polygon.area == pytest.approx(5e-7, rel=1e-3)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["repaired"] == 2
    assert report["skipped"] == {"invalid geometry": 2, "not closed": 2}
    assert "https://www.openstreetmap.org/relation/2: not closed" in ran.stderr
    assert "https://www.openstreetmap.org/way/3: not closed" in ran.stderr


@pytest.mark.parametrize(
    "value",
    [
        "construction",
        "houseboat",
        "static_caravan",
        "stadium",
        "conservatory",
        "digester",
        "greenhouse",
        "ruins",
        "no",
    ],
)
def test_what_is_no_roof(value):
    assert not Building().accept({"building": value})


def hidden_things(scene):
    """A road and a building that can be seen, then roads and buildings that cannot."""
    scene.way([(9.5, 47.1), (9.51, 47.1)], highway="residential", layer="-1")
    scene.way(square(9.5, 47.2), building="yes", location="roof")
    for tags in ({"tunnel": "yes"}, {"tunnel": "building_passage"}, {"covered": "arcade"}, {"indoor": "yes"}):
        scene.way([(9.5, 47.1), (9.51, 47.1)], highway="residential", **tags)
    scene.way([(9.5, 47.1), (9.51, 47.1)], highway="residential", location="underground")
    scene.way([(9.5, 47.1), (9.51, 47.1)], highway="footway", tunnel="yes")
    scene.way(square(9.6, 47.2), building="yes", location="underground")
    outer = scene.way(square(9.7, 47.2))
    scene.relation([(outer, "outer")], building="yes", location="underwater")
    return scene.write()


@pytest.mark.parametrize(
    ("kind", "seen", "hidden"),
    [
        ("road", [("way", 1)], [("way", number) for number in range(3, 8)]),
        ("building", [("way", 2)], [("way", 9), ("relation", 1)]),
    ],
)
def test_a7_hidden_things_only_on_demand(scene, tmp_path, rsp, kind, seen, hidden):
    """Tunnels were burnt as roads: 14 % of the length in two cities."""
    ran = rsp(
        "extract", "--type", kind, hidden_things(scene), tmp_path / "x.json", "--report", tmp_path / "r.json"
    )
    assert ran.code == 0 and list(features_of(tmp_path / "x.json")) == seen
    assert f"hidden: {len(hidden)} (" in ran.stderr and "--with_hidden" in ran.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["hidden"], report["left_out"]) == (len(hidden), 0)
    ran = rsp("extract", "--type", kind, scene.path, tmp_path / "x.json", "--with_hidden")
    assert list(features_of(tmp_path / "x.json")) == seen + hidden and "hidden: 0" in ran.stderr


@pytest.mark.parametrize("tags", [{"tunnel": "no"}, {"covered": "no"}, {"layer": "-1"}, {"bridge": "yes"}, {}])
def test_what_is_not_hidden(tags):
    assert not Road().hidden({"highway": "primary", **tags})


def test_only_hidden_things_are_not_an_error(scene, tmp_path, rsp):
    scene.way([(9.5, 47.1), (9.51, 47.1)], highway="residential", tunnel="yes")
    ran = rsp("extract", "--type", "road", scene.write(), tmp_path / "r.json")
    assert ran.code == 0 and features_of(tmp_path / "r.json") == {} and "--with_hidden" in ran.stderr


@pytest.mark.parametrize(
    ("missing", "kept"),
    [([0], [(1, 5)]), ([5], [(0, 4)]), ([2], [(0, 1), (3, 5)]), ([0, 1, 4], [(2, 3)]), ([1, 4], [(2, 3)])],
)
def test_a7_clipped_roads_keep_their_known_stretches(scene, tmp_path, rsp, missing, kept):
    """With the first node missing a road was cut silently, with another one it was dropped."""
    points = [(9.5 + 0.001 * number, 47.1) for number in range(6)]
    scene.way(points, missing=missing, highway="service", name="Am Rand")
    for number, (start, end) in enumerate(kept, 2):
        assert scene.way(points[start : end + 1], highway="service") == number
    ran = rsp(
        "extract", "--type", "road", scene.write(), tmp_path / "r.json", "--report", tmp_path / "report.json"
    )
    found = features_of(tmp_path / "r.json")
    whole = shapely.union_all([found["way", number][0] for number in range(2, len(kept) + 2)])
    assert found["way", 1][0].symmetric_difference(whole).area < 1e-12
    assert found["way", 1][1]["name"] == "Am Rand"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["features"], report["clipped"], report["left_out"]) == (len(kept) + 1, 1, 0)
    assert ran.code == 0 and "clipped: 1 (" in ran.stderr


def test_clipped_surfaces_are_left_out(scene, tmp_path):
    """Nobody knows where their outline went."""
    scene.way(square(9.5, 47.1), missing=[2], highway="service", area="yes")
    scene.way(square(9.6, 47.1), missing=[2], highway="service")
    result = extract(scene.write(), tmp_path / "r.json", kind="road")
    assert list(features_of(tmp_path / "r.json")) == [("way", 2)]
    assert (result.clipped, result.skipped) == (1, {"missing nodes or members": 1})


@pytest.mark.parametrize(
    ("tags", "metres"),
    [
        ({"highway": "residential"}, 7.75),
        ({"highway": "residential", "oneway": "yes"}, 4.25),
        ({"highway": "residential", "oneway": "no"}, 7.75),
        ({"highway": "motorway", "oneway": "yes"}, 18.75),
        ({"highway": "motorway"}, 18.75),
        ({"highway": "motorway", "oneway": "no"}, 33.75),
        ({"highway": "motorway_link"}, 11.25),
        ({"highway": "residential", "junction": "roundabout"}, 4.25),
        ({"highway": "residential", "junction": "circular"}, 4.25),
        ({"highway": "residential", "junction": "roundabout", "oneway": "no"}, 7.75),
        ({"highway": "residential", "junction": "yes"}, 7.75),
        ({"highway": "trunk", "oneway": "yes"}, 15.0),
        ({"highway": "primary"}, 17.0),
        ({"highway": "secondary"}, 7.75),
        ({"highway": "tertiary"}, 7.75),
        ({"highway": "unclassified"}, 7.0),
        ({"highway": "service"}, 6.0),
        ({"highway": "motorway_link", "oneway": "yes"}, 11.25),
        ({"highway": "residential", "lanes": "3"}, 11.25),
        ({"highway": "residential", "lanes": "0.5"}, 4.25),
        ({"highway": "residential", "width": "5"}, 5.0),
        ({"highway": "residential", "width": "5,5 m", "lanes": "3"}, 5.5),
        ({"highway": "residential", "width": "0.2"}, 1.0),
        ({"highway": "residential", "width": "20'"}, 6.096),
    ],
)
def test_widths(tags, metres):
    assert Road().width(tags) == Width(pytest.approx(metres))


def test_unreadable_widths_are_counted(scene, tmp_path, rsp):
    assert Road().width({"highway": "service", "lanes": "two", "width": "wide"}) == (
        6.0,
        ("lanes=two", "width=wide"),
    )
    assert metres_of("9999") is None
    scene.way([(9.5, 47.1), (9.51, 47.1)], highway="residential", width="3-4", lanes="1;2")
    ran = rsp(
        "extract", "--type", "road", scene.write(), tmp_path / "r.json", "--report", tmp_path / "report.json"
    )
    assert ran.code == 0 and "way/1 lanes=1;2" in ran.stderr
    assert json.loads((tmp_path / "report.json").read_text())["unreadable_tags"] == 2
    assert features_of(tmp_path / "r.json")["way", 1][1]["width"] == 7.75


@pytest.mark.parametrize("latitude", [-70.0, -33.0, 0.0, 47.0, 60.0, 78.0])
def test_bug_12_roads_have_their_width_at_every_latitude(scene, tmp_path, latitude):
    """A buffer in degrees made the residential road 3.9 m wide at 60 degrees north, in one direction."""
    scene.way([(10.0, latitude), (10.004, latitude)], highway="residential")
    scene.way([(10.002, latitude - 0.002), (10.002, latitude + 0.002)], highway="residential")
    extract(scene.write(), tmp_path / "r.json", kind="road")
    found = features_of(tmp_path / "r.json")
    across = metres_across(found["way", 1][0], 10.001, latitude, north_south=True)
    along = metres_across(found["way", 2][0], 10.002, latitude + 0.001, north_south=False)
    assert across == pytest.approx(7.75, abs=0.03) and along == pytest.approx(7.75, abs=0.03)


def test_roads_have_round_ends(scene, tmp_path):
    """So the ways of a road meet without a notch."""
    scene.way([(10.0, 60.0), (10.01, 60.0)], highway="residential")
    extract(scene.write(), tmp_path / "r.json", kind="road")
    polygon = features_of(tmp_path / "r.json")["way", 1][0]
    length = GEOD.geometry_length(shapely.LineString([(10.0, 60.0), (10.01, 60.0)]))
    area = abs(GEOD.geometry_area_perimeter(polygon)[0])
    assert area == pytest.approx(length * 7.75 + math.pi * 3.875**2, rel=0.003)


def test_only_the_classes_of_roads(scene, tmp_path):
    scene.way([(10.0, 60.0), (10.01, 60.0)], highway="footway")
    scene.way([(10.0, 60.1), (10.01, 60.1)], highway="tertiary_link", name="Rampe")
    scene.way(square(10.0, 60.2), highway="service", area="yes")
    scene.way(square(10.1, 60.2), highway="service")
    extract(scene.write(), tmp_path / "r.json", kind="road")
    found = features_of(tmp_path / "r.json")
    assert list(found) == [("way", 2), ("way", 3), ("way", 4)]
    assert found["way", 2][1] == {
        "osm_type": "way", "osm_id": 2, "highway": "tertiary_link", "name": "Rampe", "width": 7.0
    }  # fmt: skip
    assert not found["way", 3][0].interiors and len(found["way", 4][0].interiors) == 1


def test_nothing_found_is_said(scene, tmp_path, rsp):
    scene.way(square(9.5, 47.1), building="yes")
    ran = rsp("extract", "--type", "road", scene.write(), tmp_path / "r.json")
    assert ran.code == 0 and "no road in" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [["x.pbf", "out"], ["--type", "building", "x.pbf"], ["--type", "building", "x", "y", "--index", "z"]],
)
def test_wrong_usage(rsp, arguments):
    assert rsp("extract", *arguments).code == 2


def test_liechtenstein(shared_data, tmp_path):
    """As many buildings as osmium itself assembles, less those that are left out by value."""
    pbf = shared_data / "liechtenstein.osm.pbf"
    keys = osmium.filter.KeyFilter("building")
    areas = [
        dict(item.tags)
        for item in osmium.FileProcessor(str(pbf)).with_areas(keys).with_filter(keys)
        if item.is_area() and item.num_rings()[0]
    ]
    assert len(areas) == 17_638
    kept = sum(
        tags["building"] not in {*Building.REFUSED} and tags.get("location") not in ("underground", "underwater")
        for tags in areas
    )
    result = extract(pbf, tmp_path / "b.json", kind="building")
    assert result.features == kept == 17_620
    found = features_of(tmp_path / "b.json")
    assert all(polygon.is_valid for polygon, _ in found.values())
    assert sum(kind == "relation" for kind, _ in found) == 21
    extract(pbf, tmp_path / "again.json", kind="building", index="sparse_file_array")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_liechtenstein_cut_off(shared_data, tmp_path):
    """A download that broke off is an error, and leaves nothing behind."""
    whole = (shared_data / "liechtenstein.osm.pbf").read_bytes()
    (tmp_path / "half.osm.pbf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FeatureError, match="is the download complete"):
        extract(tmp_path / "half.osm.pbf", tmp_path / "b.json", kind="building")
    assert [path.name for path in tmp_path.iterdir()] == ["half.osm.pbf"]


def test_component(scene, tmp_path, run_component):
    scene.way(square(9.5, 47.1), building="yes")
    step = run_component(extract_component, pbf=str(scene.write()), kind="building")
    assert list(features_of(step.path("features"))) == [("way", 1)]
    metadata = step.artifacts["features"]["metadata"]
    assert (metadata["rsp_kind"], metadata["features"]) == ("features", 1)
