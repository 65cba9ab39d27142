"""rsp extract: parking areas, filters of tags, several types in one pass, and widths; osmium-tool beside it."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import shapely

from rsp.components.extract.filters import Condition, Filter, parse_filter
from rsp.components.extract.layers import find_layers
from rsp.components.extract.osm import Parking
from rsp.components.extract.tool import extract, widths_of
from rsp.shared.errors import UsageError
from tests.osm import Scene, features_of, square

needs_osmium = pytest.mark.skipif(shutil.which("osmium") is None, reason="osmium-tool is not installed")

RAIL = """
class Rail:
    geometry = "line"
    keys = ("railway",)
    tags = ("gauge",)
    def accept(self, tags):
        return isinstance(tags, dict) and "railway" in tags
    def width(self, tags):
        return 3.0, ()
"""


@pytest.fixture
def scene(tmp_path):
    """Buildings, roads, parking areas, forests as ways and as a relation, and a railway."""
    scene = Scene(tmp_path / "scene.osm.pbf")
    scene.way(square(9.50, 47.1), building="yes", name="Post")
    scene.way(square(9.51, 47.1), amenity="parking", capacity="20")
    scene.way(square(9.52, 47.1), landuse="forest", leaf_type="broadleaved")
    scene.way(square(9.53, 47.1), landuse="meadow")
    scene.way(square(9.54, 47.1), natural="wood", landuse="forest")
    scene.way([(9.5, 47.2), (9.51, 47.2)], highway="residential", oneway="yes")
    scene.way([(9.5, 47.3), (9.51, 47.3)], railway="rail", gauge="1435")
    scene.way([(9.5, 47.4), (9.51, 47.4)], railway="tram", tunnel="yes")
    scene.way(square(9.55, 47.1), building="hangar", amenity="parking", parking="surface")
    outer, inner = scene.way(square(9.56, 47.1)), scene.way(square(9.5603, 47.1003, 0.0002))
    scene.relation([(outer, "outer"), (inner, "inner")], natural="wood", **{"roof:shape": "flat"})
    scene.write()
    return scene


def of_classes(path):
    """Class, type and id of each feature, in the order of the file."""
    found = json.loads(path.read_text())["features"]
    keys = ("class", "osm_type", "osm_id")
    return [tuple(each["properties"].get(key) for key in keys) for each in found]


def run(rsp, scene, tmp_path, *words):
    ran = rsp("extract", scene.path, tmp_path / "x.json", *words)
    assert ran.code == 0, ran.stderr
    return of_classes(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("tags", "taken", "hidden"),
    [
        ({}, True, False),
        ({"parking": "surface"}, True, False),
        ({"parking": "street_side", "building": "no"}, True, False),
        ({"parking": "underground"}, True, True),
        ({"location": "underground"}, True, True),
        ({"covered": "yes"}, True, True),
        *(
            ({"parking": value}, False, False)
            for value in ("multi-storey", "rooftop", "carports", "sheds", "garage_boxes", "garage")
        ),
        ({"building": "parking"}, False, False),
        ({"amenity": "bicycle_parking"}, False, False),
    ],
)
def test_parking(tags, taken, hidden):
    tags = {"amenity": "parking", **tags}
    assert (Parking().accept(tags), Parking().hidden(tags)) == (taken, hidden)


def test_one_type_has_no_class(scene, tmp_path, rsp):
    assert run(rsp, scene, tmp_path, "--type", "parking") == [(None, "way", 2)]
    ((polygon, properties),) = features_of(tmp_path / "x.json").values()
    assert properties == {"osm_type": "way", "osm_id": 2, "amenity": "parking", "capacity": "20"}
    assert polygon.equals(shapely.Polygon(square(9.51, 47.1)))


TAGS = [
    (["landuse=forest"], [(None, "way", 3), (None, "way", 5)]),
    (["landuse=forest,meadow"], [(None, "way", 3), (None, "way", 4), (None, "way", 5)]),
    (["landuse"], [(None, "way", 3), (None, "way", 4), (None, "way", 5)]),
    (["landuse=*"], [(None, "way", 3), (None, "way", 4), (None, "way", 5)]),
    (["landuse!=forest"], [(None, "way", 4)]),
    (["landuse=forest & leaf_type!=needleleaved"], [(None, "way", 3)]),
    ([":roof:shape=flat"], [(None, "relation", 1)]),
    (["forest:landuse=forest"], [("forest", "way", 3), ("forest", "way", 5)]),
    (
        ["wood:landuse=forest", "wood:natural=wood"],
        [("wood", "way", 3), ("wood", "way", 5), ("wood", "relation", 1)],
    ),
    (
        ["landuse=forest", "wood:natural=wood"],
        [
            ("landuse=forest", "way", 3), ("landuse=forest", "way", 5), ("wood", "way", 5),
            ("wood", "relation", 1),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("filters", "expected"), TAGS, ids=[" ".join(filters) for filters, _ in TAGS])
def test_filters_of_tags(scene, tmp_path, rsp, filters, expected):
    assert run(rsp, scene, tmp_path, "--tags", *filters) == expected


def test_the_tags_of_a_filter_are_kept(scene, tmp_path):
    extract(scene.path, tmp_path / "x.json", tags="forest:landuse=forest&leaf_type")
    assert [properties for _, properties in features_of(tmp_path / "x.json").values()] == [
        {"osm_type": "way", "osm_id": 3, "class": "forest", "landuse": "forest", "leaf_type": "broadleaved"}
    ]


def test_several_types_in_one_pass(scene, tmp_path, rsp, monkeypatch):
    """An object of two types comes for each; a plug-in stands beside the types of the tool."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rails_of_test.py").write_text(RAIL)
    words = ["--type", "building,road", "parking", "rails_of_test:Rail", "--tags", "wood:natural=wood"]
    found = run(rsp, scene, tmp_path, *words)
    rail = "rails_of_test:Rail"
    assert found == [
        ("building", "way", 1), ("parking", "way", 2), ("wood", "way", 5), ("road", "way", 6), (rail, "way", 7),
        (rail, "way", 8), ("building", "way", 9), ("wood", "relation", 1),
    ]  # fmt: skip
    assert "building: 2" in (ran := rsp("extract", scene.path, tmp_path / "x.json", *words)).stderr, ran.stderr
    kinds = ["building", "road", "parking", rail]
    alone = {}
    for kind in kinds:
        extract(scene.path, tmp_path / "one.json", kind=kind)
        alone |= {(kind, *key): value for key, value in features_of(tmp_path / "one.json").items()}
    together = json.loads((tmp_path / "x.json").read_text())["features"]
    for feature in together:
        properties = feature["properties"]
        kind = properties.pop("class")
        if kind != "wood":
            polygon, expected = alone.pop((kind, properties["osm_type"], properties["osm_id"]))
            assert properties == expected and polygon.equals_exact(shapely.geometry.shape(feature["geometry"]), 0)
    assert not alone


def test_the_order_of_the_types_is_that_of_an_object(scene, tmp_path):
    layers = ["natural=wood", "landuse=forest"]
    extract(scene.path, tmp_path / "x.json", tags=layers)
    assert of_classes(tmp_path / "x.json")[1:3] == [("natural=wood", "way", 5), ("landuse=forest", "way", 5)]


def test_lines_with_a_width(scene, tmp_path, rsp):
    assert run(rsp, scene, tmp_path, "--tags", "railway=rail,tram", "--width", "4") == [(None, "way", 7)]
    ((polygon, properties),) = features_of(tmp_path / "x.json").values()
    assert properties["width"] == 4 and polygon.geom_type == "Polygon"
    south, north = polygon.bounds[1::2]
    assert (north - south) * 111_170 == pytest.approx(4, rel=0.01)
    words = ["--tags", "rail:railway=rail", "tram:railway=tram", "wood:natural=wood"]
    words += ["--width", "rail=2", "tram=6", "--with_hidden"]
    found = run(rsp, scene, tmp_path, *words)
    assert found == [("wood", "way", 5), ("rail", "way", 7), ("tram", "way", 8), ("wood", "relation", 1)]
    widths = {key: properties.get("width") for key, (_, properties) in features_of(tmp_path / "x.json").items()}
    assert widths == {("way", 5): None, ("way", 7): 2, ("way", 8): 6, ("relation", 1): None}


def test_what_the_filter_asks_for_is_not_hidden(scene, tmp_path):
    result = extract(scene.path, tmp_path / "x.json", tags="railway&tunnel=yes", width=3)
    assert (result.features, result.hidden) == (1, 0)
    assert extract(scene.path, tmp_path / "x.json", tags="railway", width=3).hidden == 1


def test_where_the_positionals_stand(scene, tmp_path, rsp):
    """A flag with several values takes what follows; the file and the output are its last two."""
    out = tmp_path / "x.json"
    for words in (
        ["--type", "building", "parking", scene.path, out],
        [scene.path, "--type", "building", "parking", out],
        [scene.path, out, "--type", "building", "parking"],
        ["--type", "building", "--type", "parking", "--out", out, scene.path],
        ["--type", "building,parking", "--out", out, scene.path],
        ["--type", "building", "parking", "--with_hidden", scene.path, out],
    ):
        out.unlink(missing_ok=True)
        ran = rsp("extract", *words)
        assert ran.code == 0, ran.stderr
        assert of_classes(out) == [("building", "way", 1), ("parking", "way", 2), ("building", "way", 9)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in.pbf", "out.json"], "nothing to extract"),
        (["in.pbf", "--type", "building"], "`out` is missing"),
        (["in.pbf", "out.json", "--tags", "=forest"], "--tags '=forest' is not understood"),
        (["in.pbf", "out.json", "--tags", "forest:"], "is not understood"),
        (["in.pbf", "out.json", "--tags", "landuse=forest,"], "has an empty value"),
        (["in.pbf", "out.json", "--tags", "landuse!"], "is not understood"),
        (["in.pbf", "out.json", "--tags", "a=b&"], "is not understood"),
        (["in.pbf", "out.json", "--tags", "a", "a"], "--tags a is given twice"),
        (["in.pbf", "out.json", "--type", "road", "Road"], "--type road is given twice"),
        (["in.pbf", "out.json", "--type", "road", "--width", "4"], "widths are for --tags"),
        (["in.pbf", "out.json", "--tags", "rail:railway", "--width", "tram=4"], "tram: widths are for --tags"),
        (["in.pbf", "out.json", "--tags", "railway", "--width", "wide"], "--width is metres up to 1000"),
        (["in.pbf", "out.json", "--tags", "railway", "--width", "0"], "got '0'"),
        (["in.pbf", "out.json", "--tags", "railway", "--width", "nan"], "got 'nan'"),
        (["in.pbf", "out.json", "--tags", "railway", "--width", "4", "5"], "got '5'"),
        (["in.pbf", "out.json", "--tags", "railway", "--width", "4", "a=5"], "has a class each"),
        (["in.pbf", "out.json", "--type", "building", "--clip"], "give --bbox or --poly"),
    ],
)
def test_wrong_usage(rsp, words, said):
    ran = rsp("extract", *words)
    assert ran.code == 2 and said in ran.stderr, ran.stderr


def test_a_key_with_a_colon(scene, tmp_path, rsp):
    ran = rsp("extract", "--tags", "roof:shape=flat", scene.path, tmp_path / "x.json")
    assert ran.code == 0 and "the key 'shape' was looked for" in ran.stderr
    assert "for the key 'roof:shape=flat' write :roof:shape=flat" in ran.stderr


def test_the_grammar():
    assert parse_filter("a") == Filter("", (Condition("a"),))
    assert parse_filter("c:a!=b, d") == Filter("c", (Condition("a", frozenset({"b", "d"}), True),))
    assert parse_filter("url=http://x") == Filter("", (Condition("url", frozenset({"http://x"})),))
    assert parse_filter("a & b:c = d") == Filter("", (Condition("a"), Condition("b:c", frozenset({"d"}))))
    assert widths_of(["4"]) == 4 and widths_of(["a=4", "b=5.5"]) == {"a": 4, "b": 5.5}
    with pytest.raises(UsageError, match="nothing"):
        find_layers()


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".fgb", ".gpkg", ".parquet"])
def test_every_format(scene, tmp_path, suffix):
    """The same features in each, with their types; and the file says whose they are."""
    pyogrio = pytest.importorskip("pyogrio")
    out = tmp_path / f"x{suffix}"
    extract(scene.path, out, kind="building,road")
    plain = tmp_path / "plain.json"
    extract(scene.path, plain, kind="building,road")
    expected = json.loads(plain.read_text())["features"]
    if suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out).to_pylist()
        wkb = [row.pop("geometry") for row in table]
    else:
        meta, _, wkb, columns = pyogrio.raw.read(out)
        table = [dict(zip(meta["fields"], row, strict=True)) for row in zip(*columns, strict=True)]
    rows = {
        (row["osm_type"], row["osm_id"]): (row, shapely.from_wkb(data))
        for row, data in zip(table, wkb, strict=True)
    }
    assert len(rows) == len(expected) == 3
    for feature in expected:
        properties = feature["properties"]
        row, shape = rows[properties["osm_type"], properties["osm_id"]]
        assert {key: value for key, value in row.items() if key in properties} == properties
        assert shapely.equals_exact(shape, shapely.geometry.shape(feature["geometry"]), 1e-9)
    if suffix != ".geojsonl":
        assert b"OpenStreetMap contributors, ODbL 1.0" in out.read_bytes()


@needs_osmium
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("landuse=forest", ["wr/landuse=forest"]),
        ("landuse=forest,meadow", ["wr/landuse=forest,meadow"]),
        ("leisure", ["wr/leisure"]),
        ("landuse!=residential", ["wr/landuse!=residential"]),
    ],
)
def test_liechtenstein_as_osmium_filters_it(shared_data, tmp_path, ours, theirs):
    """`osmium tags-filter` and `osmium export` find the same areas, but for those that osmium does not repair."""
    pbf = shared_data / "liechtenstein.osm.pbf"
    subprocess.run(["osmium", "tags-filter", pbf, *theirs, "-o", tmp_path / "some.osm.pbf"], check=True)
    command = [
        "osmium",
        "export",
        tmp_path / "some.osm.pbf",
        "--geometry-types=polygon",
        "--add-unique-id=type_id",
    ]
    exported = subprocess.run([*command, "-f", "geojsonseq"], check=True, capture_output=True, text=True).stdout
    key, negated, values = ours.partition("!=") if "!=" in ours else ours.partition("=")
    wanted = set(values.split(",")) - {""}
    expected = {}
    for line in exported.replace("\x1e", "").strip().split("\n"):
        item = json.loads(line)
        number = int(item["id"][1:])
        value = item["properties"].get(key)  # of members, too, it exports what has any tag
        if value is not None and (not wanted or (value in wanted) != (negated == "!=")):
            name = ("relation", number // 2) if number % 2 else ("way", number // 2)
            expected[name] = shapely.geometry.shape(item["geometry"])
    result = extract(pbf, tmp_path / "x.json", tags=ours, with_hidden=True)
    found = {key: polygon for key, (polygon, _) in features_of(tmp_path / "x.json").items()}
    assert len(expected) > 100 and set(expected) <= set(found)
    assert len(found) - len(expected) <= result.repaired
    for name, area in expected.items():
        assert found[name].symmetric_difference(area).area < 1e-12, name
