"""rsp extract: within a boundary, and with changes applied first; osmium-tool beside it."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess

import osmium
import pytest
import shapely

from rsp.components.extract import source as source_module
from rsp.components.extract.boundary import box_of, read_boundary
from rsp.components.extract.source import Source
from rsp.components.extract.tool import extract
from rsp.shared.errors import FeatureError
from tests.osm import Scene, features_of, square

needs_osmium = pytest.mark.skipif(shutil.which("osmium") is None, reason="osmium-tool is not installed")

# A square with a square hole, both 0.001 degrees around 9.5, 47.1.
POLY = """scene
outside
   9.5   4.71E+01
   9.51  47.1
   9.51  47.11
   9.5   47.11
END
!inside
   9.504 47.104
   9.506 47.104
   9.506 47.106
   9.504 47.106
   9.504 47.104
END
END
"""


@pytest.fixture
def scene(tmp_path):
    """Buildings within, across and outside of POLY, within its hole, and on its border; a road across it."""
    scene = Scene(tmp_path / "scene.osm.pbf")
    for west, south in ((9.501, 47.101), (9.5095, 47.101), (9.52, 47.101), (9.5045, 47.1045), (9.51, 47.105)):
        scene.way(square(west, south), building="yes")
    scene.way([(9.49, 47.102), (9.52, 47.102)], highway="residential")
    scene.write()
    return scene


@pytest.fixture
def poly(tmp_path):
    (tmp_path / "area.poly").write_text(POLY)
    return tmp_path / "area.poly"


def test_what_meets_the_boundary_stays_whole(scene, poly, tmp_path, rsp):
    words = ["--type", "building", "road", "--poly", poly, "--report", tmp_path / "r.json"]
    ran = rsp("extract", *words, scene.path, tmp_path / "x.json")
    assert ran.code == 0
    found = features_of(tmp_path / "x.json")
    assert list(found) == [("way", number) for number in (1, 2, 5, 6)]
    assert found["way", 2][0].bounds == (9.5095, 47.101, 9.5105, 47.102)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["outside"], report["cut"], report["classes"]) == (2, 0, {"building": 3, "road": 1})


def test_clipped_at_the_boundary(scene, poly, tmp_path, rsp):
    words = ["--type", "building", "road", "--poly", poly, "--clip", "--report", tmp_path / "r.json"]
    assert rsp("extract", *words, scene.path, tmp_path / "x.json").code == 0
    found = features_of(tmp_path / "x.json")
    assert list(found) == [("way", number) for number in (1, 2, 6)]  # 5 only touches the border
    assert found["way", 2][0].bounds == (9.5095, 47.101, 9.51, 47.102)
    west, _, east, _ = found["way", 6][0].bounds
    assert (west, east) == (9.5, 9.51)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["outside"], report["cut"]) == (3, 2)


def test_a_box(scene, tmp_path, rsp):
    ran = rsp("extract", "--type", "building", "--bbox", "9.5,47.1,9.51,47.103", scene.path, tmp_path / "x.json")
    assert ran.code == 0 and list(features_of(tmp_path / "x.json")) == [("way", 1), ("way", 2)]
    assert "do not meet the boundary: 3" in ran.stderr
    ran = rsp("extract", "--type", "building", "--bbox", "1,1,2,2", scene.path, tmp_path / "x.json")
    assert ran.code == 0 and features_of(tmp_path / "x.json") == {}


def test_a_box_and_an_area_are_both_met(scene, poly, tmp_path):
    extract(scene.path, tmp_path / "x.json", kind="building", poly=poly, bbox="9.509,47,9.52,47.103")
    assert list(features_of(tmp_path / "x.json")) == [("way", 2)]


def test_across_the_antimeridian(tmp_path):
    scene = Scene(tmp_path / "fiji.osm.pbf")
    for west in (179.9, -179.9, 0.0):
        scene.way(square(west, -17.0), building="yes")
    extract(scene.write(), tmp_path / "x.json", kind="building", bbox="179,-18,-179,-16")
    assert list(features_of(tmp_path / "x.json")) == [("way", 1), ("way", 2)]


def test_an_area_of_features(scene, tmp_path, poly):
    region = read_boundary(poly)
    features = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(part)}
        for part in (
            region.intersection(box_of("9.5,47.1,9.505,47.2")),
            region.intersection(box_of("9.505,47.1,9.6,48")),
        )
    ]
    (tmp_path / "area.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert read_boundary(tmp_path / "area.json").equals(region)
    assert region.area == pytest.approx(1e-4 - 4e-6)


def replaced(old, new, count=1):
    assert old in POLY
    return POLY.replace(old, new, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its last END is missing"),
        (replaced("END\nEND\n", "END\n"), "its last END is missing"),
        (POLY + "x\n", "line 16: something follows the last END"),
        (replaced("   9.51  47.1\n", "   9.51\n"), "line 4: expected a longitude and a latitude, got '9.51'"),
        (replaced("   9.51  47.1\n", "   9.51 north\n"), "line 4: expected a longitude"),
        (replaced("   9.51  47.1\n", "   9.51 inf\n"), "line 4: expected a longitude"),
        ("a\n1\n 1 1\n 2 2\nEND\nEND\n", "line 5: the section that ends here encloses no area"),
        (replaced("outside", "!outside"), "has no area"),
        (replaced("9.51  47.1\n", "951  47.1\n"), "is not in degrees"),
    ],
)
def test_a_wrong_poly(scene, tmp_path, rsp, text, said):
    (tmp_path / "a.poly").write_text(text)
    ran = rsp("extract", "--type", "building", "--poly", tmp_path / "a.poly", scene.path, tmp_path / "x.json")
    assert ran.code == 1 and said in ran.stderr and "a.poly" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1,50,2,40", "200,1,201,2", "1,1,1,2", "nan,1,2,2"])
def test_a_wrong_box(scene, tmp_path, rsp, box):
    ran = rsp("extract", "--type", "building", f"--bbox={box}", scene.path, tmp_path / "x.json")
    assert ran.code == 2 and box in ran.stderr


def test_a_boundary_in_metres(scene, tmp_path):
    (tmp_path / "area.json").write_text(
        '{"type":"Polygon","crs":{"type":"name","properties":{"name":"EPSG:3857"}},"coordinates":[]}'
    )
    with pytest.raises(FeatureError, match="EPSG:3857; a boundary has to be in degrees"):
        extract(scene.path, tmp_path / "x.json", kind="building", poly=tmp_path / "area.json")


@needs_osmium
def test_liechtenstein_as_osmium_cuts_it(shared_data, tmp_path):
    """`osmium extract` takes what has a node in the box; we also take what only crosses it."""
    pbf, box = shared_data / "liechtenstein.osm.pbf", "9.515,47.135,9.535,47.15"
    command = ["osmium", "extract", "-b", box, "-s", "smart", pbf, "-o", tmp_path / "cut.osm.pbf"]
    subprocess.run(command, check=True, capture_output=True)
    extract(pbf, tmp_path / "ours.json", kind="building", bbox=box)
    extract(tmp_path / "cut.osm.pbf", tmp_path / "theirs.json", kind="building")
    ours, theirs = features_of(tmp_path / "ours.json"), features_of(tmp_path / "theirs.json")
    region = box_of(box)
    theirs = {key: value for key, value in theirs.items() if value[0].intersects(region)}  # parts of relations
    assert len(ours) > 800 and theirs.items() <= ours.items()
    for key in set(ours) - set(theirs):
        assert not shapely.MultiPoint(shapely.get_coordinates(ours[key][0])).intersects(region)


CHANGES = """<osmChange version="0.6">
<create><node id="101" version="1" lat="47.2" lon="9.5"/><node id="102" version="1" lat="47.2" lon="9.501"/>
<node id="103" version="1" lat="47.201" lon="9.501"/>
<way id="7" version="1"><nd ref="101"/><nd ref="102"/><nd ref="103"/><nd ref="101"/>
<tag k="building" v="new"/></way>
</create>
<modify><node id="1" version="2" lat="47.1005" lon="9.5005"/>
<way id="2" version="2"><nd ref="5"/><nd ref="6"/><nd ref="7"/><nd ref="8"/><nd ref="5"/>
<tag k="building" v="barn"/></way>
</modify>
<delete><way id="3" version="2"/></delete></osmChange>
"""

LATER = """<osmChange version="0.6">
<modify><way id="2" version="3"><nd ref="5"/><nd ref="6"/><nd ref="7"/><nd ref="5"/>
<tag k="building" v="shed"/></way>
</modify><delete><way id="7" version="2"/></delete></osmChange>
"""


@pytest.fixture
def changes(tmp_path):
    (tmp_path / "1.osc").write_text(CHANGES)
    (tmp_path / "2.bin").write_bytes(gzip.compress(LATER.encode(), mtime=0))  # the content tells the format
    return [tmp_path / "1.osc", tmp_path / "2.bin"]


def kinds_of(path):
    return {number: properties["building"] for (_, number), (_, properties) in features_of(path).items()}


def test_changes(scene, changes, tmp_path, rsp, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, both = tmp_path / "first.json", tmp_path / "both.json"
    assert rsp("extract", "--type", "building", "--changes", changes[0], scene.path, first).code == 0
    assert kinds_of(first) == {1: "yes", 2: "barn", 4: "yes", 5: "yes", 7: "new"}
    assert (9.5005, 47.1005) in features_of(first)["way", 1][0].exterior.coords
    for order in (changes, changes[::-1]):
        assert rsp("extract", "--type", "building", "--changes", *order, scene.path, both).code == 0
        assert kinds_of(both) == {1: "yes", 2: "shed", 4: "yes", 5: "yes"}
    assert not list(tmp_path.glob(".rsp-extract.*"))


@needs_osmium
def test_liechtenstein_as_osmium_changes_it(shared_data, tmp_path):
    """As of what `osmium apply-changes` writes, where every seventh node has moved and every tenth way is gone."""
    pbf = shared_data / "liechtenstein.osm.pbf"
    with osmium.SimpleWriter(str(tmp_path / "to.osm.pbf")) as writer:
        for item in osmium.FileProcessor(str(pbf)):
            if item.is_way() and item.id % 10 == 0:
                continue
            if item.is_node() and item.id % 7 == 0:
                item = item.replace(location=(item.lon + 0.00001, item.lat), version=item.version + 1)
            writer.add(item)
    change = tmp_path / "change.osc.gz"
    command = ["osmium", "derive-changes", "--increment-version", pbf, tmp_path / "to.osm.pbf", "-o", change]
    subprocess.run(command, check=True, capture_output=True)
    command = ["osmium", "apply-changes", pbf, change, "-o", tmp_path / "applied.osm.pbf"]
    subprocess.run(command, check=True, capture_output=True)
    expected = extract(tmp_path / "applied.osm.pbf", tmp_path / "theirs.json", kind="building,road")
    assert extract(pbf, tmp_path / "ours.json", kind="building,road", changes=[change]) == expected
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
    assert expected.features < 20_000


def test_changes_to_an_unsorted_map(changes, tmp_path, rsp):
    """Merging walks both in the order of the ids: a way that came too late would stay as it was."""
    nodes = "".join(
        f'<node id="{number}" version="1" lat="{lat}" lon="{lon}"/>'
        for number, (lon, lat) in enumerate(square(9.5, 47.1)[:4], 5)
    )
    refs = "".join(f'<nd ref="{ref}"/>' for ref in (5, 6, 7, 8, 5))
    ways = "".join(
        f'<way id="{number}" version="1">{refs}<tag k="building" v="yes"/></way>' for number in (9, 3, 2)
    )
    (tmp_path / "map.osm").write_text(f'<osm version="0.6">{nodes}{ways}</osm>')
    words = ["--type", "building", "--changes", changes[0], tmp_path / "map.osm", tmp_path / "x.json"]
    ran = rsp("extract", *words)
    assert ran.code == 0, ran.stderr
    assert kinds_of(tmp_path / "x.json") == {2: "barn", 7: "new", 9: "yes"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<osm version='0.6'></osm>", "holds no changes"),
        (b"", "holds no changes"),
        (CHANGES[:-40].encode(), "is the download complete?"),
        (gzip.compress(CHANGES.encode())[:-20], "cannot read"),
    ],
)
def test_wrong_changes(scene, tmp_path, rsp, content, said):
    (tmp_path / "c.osc").write_bytes(content)
    ran = rsp("extract", "--type", "building", "--changes", tmp_path / "c.osc", scene.path, tmp_path / "x.json")
    assert ran.code == 1 and "c.osc" in ran.stderr and said in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "x.json").exists()


def test_changes_need_nodes(tmp_path, changes):
    ways = '<way id="8"><nd ref="1" lat="47" lon="9"/><nd ref="2" lat="47.1" lon="9"/></way>'
    (tmp_path / "geom.osm").write_text(f'<osm version="0.6">{ways}</osm>')
    with pytest.raises(FeatureError, match="changes cannot be applied"):
        extract(tmp_path / "geom.osm", tmp_path / "x.json", kind="building", changes=changes)


def test_an_input_is_not_written_over(scene, changes, poly, rsp):
    for words in (["--changes", changes[0]], ["--poly", poly]):
        ran = rsp("extract", "--type", "building", *words, "--out", words[1], scene.path)
        assert ran.code == 2, ran.stderr


def test_the_index_of_a_large_file_is_a_file(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Source(scene.path) as source:
        assert source.index(None) == "flex_mem"
        monkeypatch.setattr(source_module, "IN_MEMORY", 0)
        kind, path = source.index(None).split(",")
        assert kind == "sparse_file_array" and path.startswith(str(tmp_path))
        assert source.index("flex_mem") == "flex_mem"
        monkeypatch.setattr(source_module, "PLACE", 1 << 60)
        with pytest.raises(FeatureError, match="set TMPDIR to another folder, or give --index flex_mem"):
            source.index(None)
        assert source.index("dense_file_array").startswith("dense_file_array,")


def test_the_index_is_the_one_that_is_asked_for(scene, tmp_path, rsp, monkeypatch):
    monkeypatch.setattr(source_module, "IN_MEMORY", 0)
    monkeypatch.setattr(source_module, "PLACE", 1 << 60)
    words = ("extract", "--type", "building", scene.path, tmp_path / "out.json")
    ran = rsp(*words)
    assert ran.code == 1 and "give --index flex_mem" in ran.stderr
    assert rsp(*words, "--index", "flex_mem").code == 0


@pytest.mark.parametrize("index", [None, "sparse_file_array", "dense_file_array"])
def test_every_index_gives_the_same(scene, tmp_path, monkeypatch, index):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    extract(scene.path, tmp_path / "memory.json", kind="building")
    monkeypatch.setattr(source_module, "IN_MEMORY", 0)
    extract(scene.path, tmp_path / "file.json", kind="building", index=index)
    assert (tmp_path / "file.json").read_bytes() == (tmp_path / "memory.json").read_bytes()
    assert not list(tmp_path.glob(".rsp-extract.*"))
