"""rsp extract: what it takes out of OpenStreetMap, how wide roads are, and its component."""

from __future__ import annotations

import json
import math
import shutil

import osmium
import pytest
import shapely
from pyproj import Geod
from shapely.geometry import shape

from rsp.components.extract.component import extract as extract_component
from rsp.components.extract.osm import Building, Road, Width, metres_of
from rsp.components.extract.tool import extract
from rsp.shared.errors import FeatureError, PluginError

GEOD = Geod(ellps="WGS84")


class Scene:
    """Writes an .osm.pbf: nodes where asked for, ways and relations with ids counted from 1."""

    def __init__(self, path):
        self.path = path
        self.nodes, self.ways, self.relations = [], [], []

    def node(self, lon, lat):
        self.nodes.append((lon, lat))
        return len(self.nodes)

    def way(self, points, missing=(), **tags):
        """A way through points, equal ones being one node; at the positions `missing` the node is not there."""
        numbers = {}
        for point in points:
            if point not in numbers:
                numbers[point] = self.node(*point)
        refs = [numbers[point] for point in points]
        for position in missing:
            refs[position] = 999_999
        self.ways.append((refs, tags))
        return len(self.ways)

    def relation(self, members, **tags):
        self.relations.append(([("w", way, role) for way, role in members], {"type": "multipolygon", **tags}))
        return len(self.relations)

    def write(self):
        self.path.unlink(missing_ok=True)
        with osmium.SimpleWriter(str(self.path)) as writer:
            for number, place in enumerate(self.nodes, 1):
                writer.add_node(osmium.osm.mutable.Node(id=number, location=place))
            for number, (refs, tags) in enumerate(self.ways, 1):
                writer.add_way(osmium.osm.mutable.Way(id=number, nodes=refs, tags=tags))
            for number, (members, tags) in enumerate(self.relations, 1):
                writer.add_relation(osmium.osm.mutable.Relation(id=number, members=members, tags=tags))
        return self.path


def square(west, south, side=0.001):
    east, north = west + side, south + side
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "scene.osm.pbf")


def features_of(path):
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    return {
        (feature["properties"]["osm_type"], feature["properties"]["osm_id"]): (
            shape(feature["geometry"]),
            feature["properties"],
        )
        for feature in collection["features"]
    }


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
    assert extract(scene.path, tmp_path / "r.geojson", kind="road").skipped == {"missing nodes or members": 1}


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
    assert list(found) == [("way", 1)] and found["way", 1][0].is_valid
    assert found["way", 1][0].area == pytest.approx(5e-7, rel=1e-3)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["repaired"] == 1
    assert report["skipped"] == {"invalid geometry": 4, "not closed": 1}
    assert "https://www.openstreetmap.org/relation/1: invalid geometry" in ran.stderr
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


def test_location_of_buildings():
    assert Building().accept({"building": "yes", "location": "roof"})
    assert not Building().accept({"building": "yes", "location": "underground"})
    assert not Building().accept({"building": "yes", "location": "underwater"})


@pytest.mark.parametrize(
    ("tags", "metres"),
    [
        ({"highway": "residential"}, 7.75),
        ({"highway": "residential", "oneway": "yes"}, 4.25),
        ({"highway": "residential", "oneway": "no"}, 7.75),
        ({"highway": "motorway", "oneway": "yes"}, 18.75),
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


@pytest.mark.parametrize("content", [b"", b"hello, this is no map", b"\x00\x00\x00\x0e\x0a\x09OSMHeader\x18"])
def test_not_a_pbf(tmp_path, rsp, content):
    (tmp_path / "x.osm.pbf").write_bytes(content)
    ran = rsp("extract", "--type", "building", tmp_path / "x.osm.pbf", tmp_path / "b.json")
    assert ran.code == 1 and "x.osm.pbf" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "b.json").exists()


def test_no_file_or_a_folder(tmp_path):
    for path in (tmp_path / "none.pbf", tmp_path):
        with pytest.raises(FeatureError, match="cannot read"):
            extract(path, tmp_path / "b.json", kind="building")


def test_a_file_without_suffix_and_xml(scene, tmp_path):
    """Artifacts of Kubeflow have no suffix; what the file is stands in it."""
    scene.way(square(9.5, 47.1), building="yes")
    shutil.copy(scene.write(), tmp_path / "artifact")
    assert extract(tmp_path / "artifact", tmp_path / "b.json", kind="building").features == 1
    (tmp_path / "empty.osm").write_text('<osm version="0.6"></osm>')
    assert extract(tmp_path / "empty.osm", tmp_path / "e.json", kind="building").features == 0
    assert features_of(tmp_path / "e.json") == {}


def test_nothing_found_is_said(scene, tmp_path, rsp):
    scene.way(square(9.5, 47.1), building="yes")
    ran = rsp("extract", "--type", "road", scene.write(), tmp_path / "r.json")
    assert ran.code == 0 and "no road in" in ran.stderr


def test_plug_in(scene, tmp_path, rsp, monkeypatch):
    (tmp_path / "my_osm.py").write_text(
        "class Parking:\n"
        "    geometry = 'polygon'\n    keys = ('amenity',)\n    tags = ('amenity',)\n"
        "    def accept(self, tags): return tags['amenity'] == 'parking'\n"
        "    def width(self, tags): raise NotImplementedError\n"
        "parking = Parking()\nnothing = 7\ndef broken(): raise ValueError('no key')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scene.way(square(9.5, 47.1), amenity="parking", building="yes")
    scene.way(square(9.6, 47.1), amenity="school")
    for name in ("my_osm:Parking", "my_osm:parking"):
        assert rsp("extract", "--type", name, scene.write(), tmp_path / "p.json").code == 0
        assert list(features_of(tmp_path / "p.json")) == [("way", 1)]
    with pytest.raises(PluginError, match="no extractor"):
        extract(scene.path, tmp_path / "p.json", kind="my_osm:nothing")
    with pytest.raises(PluginError, match="cannot be made: no key"):
        extract(scene.path, tmp_path / "p.json", kind="my_osm:broken")
    ran = rsp("extract", "--type", "forest", scene.path, tmp_path / "p.json")
    assert ran.code == 1 and "building, road" in ran.stderr


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
    with pytest.raises(FeatureError, match="is the download whole"):
        extract(tmp_path / "half.osm.pbf", tmp_path / "b.json", kind="building")
    assert [path.name for path in tmp_path.iterdir()] == ["half.osm.pbf"]


def test_component(scene, tmp_path, run_component):
    scene.way(square(9.5, 47.1), building="yes")
    step = run_component(extract_component, pbf=str(scene.write()), kind="building")
    assert list(features_of(step.path("features"))) == [("way", 1)]
    metadata = step.artifacts["features"]["metadata"]
    assert (metadata["rsp_kind"], metadata["features"]) == ("features", 1)
