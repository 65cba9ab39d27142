"""rsp extract: the formats of OpenStreetMap files, those that are not sorted, and those that are damaged."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
import threading

import osmium
import pytest

from rsp.components.extract import source as source_module
from rsp.components.extract.tool import extract
from rsp.shared.errors import FeatureError
from tests.osm import Scene, features_of, square

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<osm version="0.6" generator="Overpass API">\n'
HEAD += '<note>The data is from OpenStreetMap.</note><meta osm_base="2026-01-01T00:00:00Z"/>\n'
HEAD += '<bounds minlat="47.0" minlon="9.0" maxlat="48.0" maxlon="10.0"/>\n'


def nodes(points, first=1, step=1):
    return [
        f'<node id="{first + step * number}" version="1" lat="{lat:.4f}" lon="{lon:.4f}"/>'
        for number, (lon, lat) in enumerate(points)
    ]


def way(number, refs, attributes='version="1"', **tags):
    inside = "".join(f'<nd ref="{ref}"/>' for ref in refs)
    inside += "".join(f'<tag k="{key}" v="{value}"/>' for key, value in tags.items())
    return f'<way id="{number}" {attributes}>{inside}</way>'


def xml(*elements):
    return HEAD + "\n".join(elements) + "\n</osm>\n"


RING = [1, 2, 3, 4, 1]
CORNERS = square(9.5, 47.1)[:4]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "scene.osm.pbf")


@pytest.fixture
def write(tmp_path):
    def write(text, name="map.osm"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def buildings(path, tmp_path, **options):
    extract(path, tmp_path / "out.json", kind="building", **options)
    return features_of(tmp_path / "out.json")


def left_behind(tmp_path):
    """Temporary files of sorting."""
    return list(tmp_path.glob(".rsp-extract.*"))


@pytest.fixture(autouse=True)
def no_temporary_file_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert not left_behind(tmp_path)


UNSORTED = {
    "ways first": [way(8, RING, building="yes"), *nodes(CORNERS)],
    "ways first, none of them sorted": [
        way(9, [5, 6, 7, 8, 5], building="yes"), way(8, RING, building="yes"),
        *nodes(square(9.6, 47.1)[3::-1], 8, -1), *nodes(CORNERS[::-1], 4, -1),
    ],
    "nodes between the ways": [
        *nodes(CORNERS), way(8, RING, building="yes"), *nodes(square(9.6, 47.1)[:4], 5),
        way(9, [5, 6, 7, 8, 5], building="yes"), way(10, [5, 6, 20, 5], building="yes"),
        *nodes([(9.7, 47.2)], 20),
    ],
    "ids of ways going down": [
        *nodes(CORNERS), way(9, RING, building="yes"), way(8, RING, building="yes"),
    ],
    "a relation first": [
        '<relation id="1"><member type="way" ref="8" role="outer"/><tag k="type" v="multipolygon"/>'
        '<tag k="building" v="yes"/></relation>', way(8, RING), *nodes(CORNERS),
    ],
    "a relation whose nodes come last": [
        *nodes([(9.9, 47.9)], 99), way(8, RING), '<relation id="1"><member type="way" ref="8" role="outer"/>'
        '<tag k="type" v="multipolygon"/><tag k="building" v="yes"/></relation>', *nodes(CORNERS),
    ],
    "negative ids": [*nodes(CORNERS, -1, -1), way(-8, [-1, -2, -3, -4, -1], "", building="yes")],
    "negative ids, ways first": [way(-8, [-1, -2, -3, -4, -1], "", building="yes"), *nodes(CORNERS, -1, -1)],
    "everything twice": [
        *nodes(CORNERS), *nodes(CORNERS), way(8, RING, building="yes"), way(8, RING, building="yes"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", UNSORTED)
def test_a7_unsorted_files_are_sorted(what, write, tmp_path, rsp):
    """They gave 0 features, exit code 0, and the reason `invalid geometry`."""
    path = write(xml(*UNSORTED[what]))
    before = path.read_bytes()
    ran = rsp("extract", "--type", "building", path, tmp_path / "b.json")
    assert ran.code == 0, ran.stderr
    found = features_of(tmp_path / "b.json")
    text = path.read_text()
    wanted = {
        ("way", int(line.split('"')[1])) for line in text.split("\n") if "<way" in line and "building" in line
    }
    assert set(found) == (wanted or {("relation", 1)})
    for (_, number), (polygon, _) in found.items():
        if number != 10:
            assert polygon.area == pytest.approx(1e-6, rel=1e-6)
    assert path.read_bytes() == before


def test_the_sorted_file_is_read_as_osmium_sorts_it(shared_data, tmp_path):
    """A country, its objects back to front, is the country."""
    path = shared_data / "liechtenstein.osm.pbf"
    with osmium.SimpleWriter(str(tmp_path / "mixed.osm.pbf")) as writer:
        for entities in (osmium.osm.WAY, osmium.osm.RELATION, osmium.osm.NODE):
            with osmium.io.Reader(str(path), entities) as reader:
                osmium.apply(reader, writer)
    plain = extract(path, tmp_path / "plain.json", kind="road")
    assert extract(tmp_path / "mixed.osm.pbf", tmp_path / "mixed.json", kind="road") == plain
    assert (tmp_path / "mixed.json").read_bytes() == (tmp_path / "plain.json").read_bytes()


def test_a_large_unsorted_file_names_osmium_sort(write, tmp_path, rsp, monkeypatch):
    text = xml(*UNSORTED["ways first"])
    monkeypatch.setitem(source_module.SORTABLE, "osm", len(text) - 1)
    for path in (write(text), write(gzip.compress(text.encode(), mtime=0), "map.osm.gz")):
        ran = rsp("extract", "--type", "building", path, tmp_path / "b.json")
        assert ran.code == 1 and f"osmium sort {path}" in ran.stderr and "ways stand before" in ran.stderr
        assert not (tmp_path / "b.json").exists()
    monkeypatch.setitem(source_module.SORTABLE, "osm", len(text))
    assert len(buildings(tmp_path / "map.osm.gz", tmp_path)) == 1


def test_an_unsorted_file_into_a_pipe(write, tmp_path):
    """What was written before the disorder was found cannot be taken back."""
    path = write(xml(*UNSORTED["nodes between the ways"]))
    os.mkfifo(tmp_path / "pipe")
    reading = threading.Thread(target=(tmp_path / "pipe").read_bytes)
    reading.start()
    with pytest.raises(FeatureError, match="osmium sort"):
        extract(path, tmp_path / "pipe", kind="building")
    reading.join()


def test_standard_output(write, tmp_path, rsp_process):
    """As into a pipe; what is said goes to stderr."""
    path = write(xml(*nodes(CORNERS), way(8, RING, building="yes")))
    ran = rsp_process("extract", "--type", "building", path, "-")
    extract(path, tmp_path / "out.json", kind="building")
    assert ran.code == 0 and ran.stdout == (tmp_path / "out.json").read_text()
    ran = rsp_process("extract", "--type", "building", write(xml(*UNSORTED["nodes between the ways"])), "-")
    assert ran.code == 1 and "osmium sort" in ran.stderr
    assert not (tmp_path / "-").exists()


def test_a_sorted_file_with_missing_nodes_is_not_sorted_again(scene, tmp_path, rsp):
    scene.way(square(9.5, 47.1), building="yes")
    scene.way(square(9.6, 47.1), missing=[1], building="yes")
    ran = rsp("extract", "--type", "building", scene.write(), tmp_path / "b.json")
    assert ran.code == 0 and "sort" not in ran.stderr and "left out https" in ran.stderr


def test_the_newest_version_counts(write, tmp_path):
    """Files made of several downloads hold objects twice; a deleted object is not there."""
    path = write(xml(
        *nodes(CORNERS), *nodes([(9.5, 47.102)], 4), way(8, RING, 'version="1"', building="yes"),
        way(8, RING, 'version="2"', building="school"), way(9, RING, 'version="1"', building="yes"),
        way(9, [], 'version="2" visible="false"'),
    ))  # fmt: skip
    assert [properties["building"] for _, properties in buildings(path, tmp_path).values()] == ["school"]
    path = write(xml(*nodes(CORNERS), way(8, RING, 'version="1"', highway="service"),
                     way(8, RING, 'version="2"', highway="primary")))  # fmt: skip
    extract(path, tmp_path / "r.json", kind="road")
    assert [one["highway"] for _, one in features_of(tmp_path / "r.json").values()] == ["primary"]


def test_overpass_out_geom(write, tmp_path):
    """The ways themselves say where their nodes are, and there are no nodes."""
    inside = "".join(f'<nd ref="{ref}" lat="{lat}" lon="{lon}"/>' for ref, (lon, lat) in
                     zip(RING, square(9.5, 47.1), strict=True))  # fmt: skip
    ways = [f'<way id="{number}">{inside}<tag k="building" v="yes"/></way>' for number in (8, 9)]
    assert list(buildings(write(xml(*ways)), tmp_path)) == [("way", 8), ("way", 9)]
    assert list(buildings(write(xml(*ways[::-1])), tmp_path)) == [("way", 8), ("way", 9)]


def test_overpass_out_geom_within_a_bbox(write, tmp_path):
    """Nodes outside of the bounding box are there without their places."""
    places = ['lat="47.1" lon="9.5"', "", 'lat="47.1" lon="9.6"', 'lat="47.2" lon="9.6"']
    inside = "".join(f'<nd ref="{ref}" {place}/>' for ref, place in enumerate(places, 1))
    path = write(xml(f'<way id="8">{inside}<tag k="highway" v="service"/></way>'))
    assert extract(path, tmp_path / "r.json", kind="road").clipped == 1


def test_a_relation_twice_and_changesets(write, tmp_path):
    relation = (
        '<relation id="1" version="1"><member type="way" ref="8" role="outer"/><tag k="type" v="multipolygon"/>'
        '<tag k="building" v="yes"/></relation>'
    )
    path = write(xml('<changeset id="1"/>', *nodes(CORNERS), way(8, RING), relation, relation))
    assert list(buildings(path, tmp_path)) == [("relation", 1)]


def test_objects_that_are_not_uploaded_have_no_address(write, tmp_path, rsp):
    path = write(xml(*nodes(CORNERS), way(-8, [1, 2, 1], building="yes"), way(8, RING, building="yes")))
    ran = rsp("extract", "--type", "building", path, tmp_path / "b.json")
    assert ran.code == 0 and "left out way -8: invalid geometry" in ran.stderr


def test_ways_without_any_nodes(write, tmp_path, rsp):
    """An Overpass query without `>;`."""
    ran = rsp("extract", "--type", "building", write(xml(way(8, RING, building="yes"))), tmp_path / "b.json")
    assert ran.code == 1 and "(missing nodes or members: 1)" in ran.stderr and "(._;>;); out body;" in ran.stderr
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("elements", "cause"),
    [
        ([way(8, [1, 2, 3], building="yes")], "(not closed: 1), for example https://www.openstreetmap.org/way/8"),
        ([way(8, [1, 2, 1], building="yes")], "(invalid geometry: 1)"),
        ([way(8, [1, 2, 1], building="yes"), way(9, [1, 2, 3], building="yes"), way(10, [1, 2, 1], building="yes"),
          way(11, RING, building="yes", location="underground")],
         "(invalid geometry: 2, not closed: 1; 1 more are hidden, see --with_hidden)"),
    ],
)  # fmt: skip
def test_a7_everything_left_out_is_an_error(write, tmp_path, rsp, elements, cause):
    (tmp_path / "b.json").write_text("old")
    ran = rsp("extract", "--type", "building", write(xml(*nodes(CORNERS), *elements)), tmp_path / "b.json")
    assert ran.code == 1 and "had to be left out" in ran.stderr and cause in ran.stderr
    assert (tmp_path / "b.json").read_text() == "old"


@pytest.mark.parametrize("name", ["map.osm", "map.osm.pbf", "artifact", "map.json"])
@pytest.mark.parametrize("form", ["osm", "osm.gz", "osm.bz2", "opl", "opl.gz", "opl.bz2", "pbf"])
def test_the_content_tells_the_format(write, tmp_path, form, name):
    """Artifacts of Kubeflow have no suffix, and some downloads a wrong one."""
    data = xml(*nodes(CORNERS), way(8, RING, building="yes")).encode()
    plain, suffix = form.partition(".")[::2]
    if plain != "osm":
        with osmium.SimpleWriter(osmium.io.File(str(tmp_path / "other"), plain)) as writer:
            for item in osmium.FileProcessor(str(write(data, "first.osm"))):
                writer.add(item)
        data = (tmp_path / "other").read_bytes()
    data = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress}[suffix](data)
    assert list(buildings(write(data, name), tmp_path)) == [("way", 8)]


def test_o5m(write, tmp_path):
    """A file of one node and one way, written by hand as the format wants it."""
    assert buildings(write(b"\xff\xe0\x04o5m2\xfe", "map.o5m"), tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (gzip.compress(b"", mtime=0), "it is empty"),
        (b"hello, this is no map", "no format known here"),
        (b"\x00\x00\x00\x0e\x0a\x09OSMHeader\x18", "is the download complete?"),
        (b"<!DOCTYPE html><html><body>429 Too Many Requests", "it is a web page"),
        (b"<?xml version='1.0'?>\n<html>busy</html>", "it is a web page"),
        (b'{"version": 0.6, "elements": []}', "[out:xml]"),
        (b'<osmChange version="0.6"></osmChange>', "it holds changes, not a map"),
        (b'<gpx version="1.1"></gpx>', "another kind (<gpx>)"),
        (b"PK\x03\x04rest", "unzip"),
        (b"\xfd7zXZ\x00", "xz -d"),
        (gzip.compress(b"\x00\x00\x00\x0e\x0a\x09OSMHeader\x18", mtime=0), "unpack it first"),
        (xml(*nodes(CORNERS), way(8, RING, building="yes")).encode()[:-60], "is the download complete?"),
        (gzip.compress(xml(*nodes(CORNERS * 200)).encode())[:-20], "is the download complete?"),
        (gzip.compress(xml(way(8, RING)).encode())[:-20], "cannot"),
        (xml('<node id="99999999999999999999" lat="1" lon="1"/>').encode(), "illegal id"),
        (xml('<way id="1"><center lat="47" lon="9"/></way>').encode(), "end the Overpass query with `out body;`"),
        (xml('<node id="1" lat="north" lon="1"/>').encode(), "coordinate"),
        (b'<!DOCTYPE o [<!ENTITY a "aa">]><osm version="0.6"><node id="1" lat="1" lon="&a;"/></osm>', "entities"),
        (xml(*nodes(CORNERS), "<remark> runtime error: Query timed out in \"query\" </remark>").encode(),
         "the Overpass server ended its answer with 'runtime error: Query timed out"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(write, tmp_path, rsp, content, reason):
    ran = rsp("extract", "--type", "building", write(content, "x.osm.pbf"), tmp_path / "b.json")
    assert ran.code == 1 and "x.osm.pbf" in ran.stderr and "Traceback" not in ran.stderr
    assert reason in ran.stderr
    assert not (tmp_path / "b.json").exists()


def test_a_history_file(tmp_path, write, rsp):
    path = tmp_path / "history.osh.pbf"
    header = osmium.io.Header()
    header.has_multiple_object_versions = True
    with osmium.SimpleWriter(str(path), header=header) as writer:
        writer.add_node(osmium.osm.mutable.Node(id=1, version=1, location=(9.5, 47.1)))
    ran = rsp("extract", "--type", "building", path, tmp_path / "b.json")
    assert ran.code == 1 and "osmium time-filter" in ran.stderr


def test_no_file_or_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none.pbf", tmp_path / "folder", tmp_path / "pipe"):
        with pytest.raises(FeatureError, match="cannot read"):
            extract(path, tmp_path / "b.json", kind="building")


def test_an_empty_map_is_not_an_error(write, tmp_path):
    result = extract(write('<osm version="0.6"></osm>'), tmp_path / "e.json", kind="building")
    assert result.features == 0 and json.loads((tmp_path / "e.json").read_text())["features"] == []


def test_a_full_temporary_folder(write, tmp_path, rsp, monkeypatch):
    path = write(xml(*UNSORTED["ways first"]))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(gone))
    shutil.rmtree(gone)
    ran = rsp("extract", "--type", "building", path, tmp_path / "b.json")
    assert ran.code == 1 and "cannot sort" in ran.stderr and "Traceback" not in ran.stderr
