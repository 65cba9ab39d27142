"""rsp extract: multipolygon relations that osmium does not build are built from their rings."""

from __future__ import annotations

import random

import osmium
import pytest
import shapely
from osmium.filter import EntityFilter, KeyFilter

from rsp.components.extract.layers import find_layers
from rsp.components.extract.reader import OsmReader
from rsp.components.extract.relations import Relations
from rsp.components.extract.rings import Member, Point, assemble, rings
from rsp.components.extract.source import Source
from rsp.components.extract.tool import extract
from tests.osm import Scene, features_of, square


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "scene.osm.pbf")


def osmium_builds(path):
    """The relations that osmium itself makes areas of."""
    processor = osmium.FileProcessor(str(path)).with_areas()
    return [item.orig_id() for item in processor if item.is_area() and not item.from_way() and item.num_rings()[0]]


def member(role, coordinates, ids=None):
    """A way whose nodes are the same where their places are."""
    return Member(role, tuple(Point(hash(place) if ids is None else ids[place], *place) for place in coordinates))


# Rings that osmium refuses, and the area that they enclose in millionths of a square degree.
TOUCHING = {
    "a hole that touches the outline between its nodes": (
        [("outer", square(9.5, 47.1)),
         ("inner", [(9.5005, 47.1), (9.5007, 47.1004), (9.5003, 47.1004), (9.5005, 47.1)])], 0.92,
    ),
    "a hole with an edge on the outline": (
        [("outer", square(9.5, 47.1)), ("inner", square(9.5002, 47.1, 0.0002))], 0.96,
    ),
    "a hole that crosses the outline": (
        [("outer", square(9.5, 47.1)), ("inner", square(9.5009, 47.1004, 0.0002))], 0.98,
    ),
    "parts that overlap": ([("outer", square(9.5, 47.1)), ("outer", square(9.5005, 47.1005))], 1.75),
    "parts that overlap, without roles": ([("", square(9.5, 47.1)), ("", square(9.5005, 47.1005))], 1.75),
    "a bow-tie": ([("outer", [(9.5, 47.1), (9.501, 47.101), (9.501, 47.1), (9.5, 47.101), (9.5, 47.1)])], 0.5),
    "a bow-tie with a hole": (
        [("outer", [(9.5, 47.1), (9.501, 47.101), (9.501, 47.1), (9.5, 47.101), (9.5, 47.1)]),
         ("inner", square(9.5001, 47.1004, 0.0002))], 0.46,
    ),
    "a hole that touches the outline, without roles": (
        [("", square(9.5, 47.1)), ("", square(9.5002, 47.1, 0.0002)), ("", square(9.50025, 47.10005, 0.0001))],
        0.97,
    ),
    "only holes that cross": ([("inner", square(9.5, 47.1)), ("inner", square(9.5005, 47.1005))], 1.75),
}  # fmt: skip


@pytest.mark.parametrize("what", TOUCHING)
def test_a7_rings_that_touch_are_repaired(scene, tmp_path, what):
    """These relations were dropped."""
    members, area = TOUCHING[what]
    scene.relation([(scene.way(coordinates), role) for role, coordinates in members], building="yes", name="Halle")
    assert osmium_builds(scene.write()) == []
    result = extract(scene.path, tmp_path / "b.json", kind="building")
    ((polygon, properties),) = features_of(tmp_path / "b.json").values()
    assert polygon.is_valid and polygon.area * 1e6 == pytest.approx(area, rel=1e-4)
    assert properties == {"osm_type": "relation", "osm_id": 1, "building": "yes", "name": "Halle"}
    assert (result.features, result.repaired, result.left_out) == (1, 1, 0)


def test_open_rings_and_rings_without_area(scene, tmp_path):
    a, b, c, d, _ = square(9.5, 47.1)
    half = scene.way([a, b, c])
    scene.relation([(half, "outer"), (scene.way([c, d]), "outer")], building="yes")  # the nodes are others
    scene.relation([(scene.way([a, b, a]), "outer")], building="yes")
    scene.way(square(9.6, 47.1), building="yes")
    result = extract(scene.write(), tmp_path / "b.json", kind="building")
    assert result.skipped == {"not closed": 1, "invalid geometry": 1}


def test_repaired_relations_with_negative_ids(tmp_path):
    """As JOSM numbers what has not been uploaded."""
    ring = "".join(f'<nd ref="-{number}"/>' for number in (1, 2, 3, 4, 1))
    nodes = "".join(
        f'<node id="-{number}" lat="{lat}" lon="{lon}"/>'
        for number, (lon, lat) in enumerate([(9.5, 47.1), (9.501, 47.101), (9.501, 47.1), (9.5, 47.101)], 1)
    )
    (tmp_path / "josm.osm").write_text(
        f'<osm version="0.6" generator="JOSM">{nodes}<way id="-7">{ring}</way><relation id="-9">'
        '<member type="way" ref="-7" role="outer"/><tag k="type" v="multipolygon"/><tag k="building" v="yes"/>'
        "</relation></osm>"
    )
    assert extract(tmp_path / "josm.osm", tmp_path / "b.json", kind="building").repaired == 1
    ((key, (polygon, _)),) = features_of(tmp_path / "b.json").items()
    assert key == ("relation", -9) and polygon.area == pytest.approx(5e-7, rel=1e-4)


def pieces(ring, rng):
    """A closed ring of coordinates, cut into ways that run either way."""
    start = rng.randrange(len(ring) - 1)
    ring = [*ring[start:-1], *ring[: start + 1]]
    cuts = sorted(rng.sample(range(1, len(ring) - 1), rng.randrange(0, min(4, len(ring) - 2) + 1)))
    parts = [ring[a : b + 1] for a, b in zip([0, *cuts], [*cuts, len(ring) - 1], strict=True)]
    return [part[::-1] if rng.random() < 0.5 else part for part in parts]


@pytest.mark.parametrize("seed", range(20))
def test_rings_are_joined_from_ways_in_any_order(seed):
    """Cells of a grid are joined to areas; their outlines meet in corners, where a ring can go on two ways."""
    rng = random.Random(seed)
    cells = [shapely.box(x, y, x + 1, y + 1) for x in range(5) for y in range(5) if rng.random() < 0.6]
    area = shapely.union_all(cells)
    members = []
    for polygon in getattr(area, "geoms", [area]):
        for role, ring in [("outer", polygon.exterior), *(("inner", hole) for hole in polygon.interiors)]:
            members += [member(role, part) for part in pieces(list(ring.coords), rng)]
    rng.shuffle(members)
    assert assemble(members).equals(area)
    assert assemble([Member("", one.points) for one in members]).equals(area)


def test_a_ring_that_does_not_close():
    with pytest.raises(ValueError, match="no way continues"):
        rings([member("outer", [(0, 0), (1, 0), (1, 1)]).points])
    assert rings([]) == rings([()]) == []


def test_liechtenstein_as_osmium_builds_it(shared_data):
    """Every multipolygon of a country, also those that are not buildings: the same area from the rings."""
    path = shared_data / "liechtenstein.osm.pbf"
    factory = osmium.geom.WKBFactory()
    areas = EntityFilter(osmium.osm.AREA)
    expected = {
        item.orig_id(): shapely.from_wkb(factory.create_multipolygon(item))
        for item in osmium.FileProcessor(str(path)).with_areas(KeyFilter("type")).with_filter(areas)
        if not item.from_way() and item.num_rings()[0]
    }
    with Source(path) as source:
        reader = OsmReader(source, find_layers(["road"]))
        list(reader)
        members_of = Relations(source, reader._places, []).members(expected)
        found = {number: assemble(members) for number, _, members in members_of}
    assert len(found) == len(expected) > 200
    for number, area in expected.items():
        assert found[number].symmetric_difference(area).area < 1e-12, number
