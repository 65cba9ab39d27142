"""GeoJSON by blocks: however a file is cut into them, it is what the json module reads."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box, mapping, shape

from rsp.shared import geojson, geojsonshapes
from rsp.shared.errors import FeatureError
from rsp.shared.features import FLAT, NULL, TANGLED, polygonal, polygons_of, read_batches, read_crs, read_features

TEXT = st.text(st.sampled_from('ab"\\{}[],:\n é\U0001f642'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.floats(-90, 90)
POSITIONS = st.tuples(NUMBERS, NUMBERS) | st.tuples(NUMBERS, NUMBERS, NUMBERS)
RINGS = st.lists(POSITIONS, min_size=4, max_size=6)


def _of(kind, coordinates):
    return st.fixed_dictionaries({"type": st.just(kind), "coordinates": coordinates})


GEOMETRIES = st.one_of(
    st.none(),
    _of("Point", POSITIONS),
    _of("LineString", st.lists(POSITIONS, min_size=2, max_size=4)),
    _of("Polygon", st.lists(RINGS, max_size=2)),
    _of("MultiPolygon", st.lists(st.lists(RINGS, min_size=1, max_size=2), max_size=3)),
    _of("MultiPoint", st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3)),
)
FEATURES = st.fixed_dictionaries(
    {"type": st.just("Feature"), "geometry": GEOMETRIES, "properties": st.none() | st.dictionaries(TEXT, VALUES)}
)


def wanted(feature):
    geometry = json.loads(json.dumps(feature["geometry"]))  # lists, not tuples
    if not geometry:
        return None
    try:
        return shapely.force_2d(shape(geometry))
    except ValueError:  # some points with a height and some without
        return shape(geojsonshapes._flattened(geometry))


def check(path, features):
    found = list(read_features(path))
    assert [each.properties for each in found] == [feature["properties"] or {} for feature in features]
    assert [each.number for each in found] == list(range(len(features)))
    for each, feature in zip(found, features, strict=True):
        assert shapely.equals_identical(each.geometry, wanted(feature)) or each.geometry is wanted(feature) is None


@settings(max_examples=150, deadline=None)
@given(
    features=st.lists(FEATURES, max_size=5),
    further=st.dictionaries(TEXT.filter(lambda key: key not in ("crs", "features")), VALUES, max_size=2),
    block=st.integers(1, 200),
    indent=st.none() | st.just(1),
    ascii_only=st.booleans(),
    order=st.permutations(["type", "features", "further"]),
)
def test_any_collection_in_any_blocks(tmp_path_factory, features, further, block, indent, ascii_only, order):
    members = {"type": {"type": "FeatureCollection"}, "features": {"features": features}, "further": further}
    value = {key: each for name in order for key, each in members[name].items()}
    path = tmp_path_factory.mktemp("any") / "f.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii_only), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson, "BLOCK", block)
        check(path, features)


@settings(max_examples=100, deadline=None)
@given(
    features=st.lists(FEATURES, min_size=1, max_size=5),
    block=st.integers(1, 200),
    between=st.sampled_from(["\n", "\r\n", "", "\n\x1e", " "]),
    indent=st.none() | st.just(1),
)
def test_any_sequence_in_any_blocks(tmp_path_factory, features, block, between, indent):
    path = tmp_path_factory.mktemp("any") / "f.geojsonl"
    path.write_bytes("".join(between + json.dumps(each, indent=indent) for each in features).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson, "BLOCK", block)
        check(path, features)


def collection(*geometries, **members):
    features = [
        {"type": "Feature", "properties": {"n": number}, "geometry": mapping(each)}
        for number, each in enumerate(geometries)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features, **members})


@pytest.fixture
def tiny_blocks(monkeypatch):
    monkeypatch.setattr(geojson, "BLOCK", 16)


def test_several_collections_and_features_in_one_file(tmp_path, tiny_blocks):
    path = tmp_path / "f.json"
    feature = {"type": "Feature", "properties": None, "geometry": mapping(box(2, 2, 3, 3))}
    path.write_text(
        "\n".join([collection(box(0, 0, 1, 1)), json.dumps(feature), collection(), collection(box(4, 4, 5, 5))])
    )
    assert [each.geometry.bounds[0] for each in read_features(path)] == [0, 2, 4]


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"FeatureCollection","features":[%s}',
        '{"type":"FeatureCollection","features":[%s]',
        '{"type":"FeatureCollection","features":[%s',
        '{"type":"FeatureCollection","features":[%s,]}',
        '{"type":"FeatureCollection","features":[,%s]}',
        '{"type":"FeatureCollection","features":[%s %s]}',
        '{"type":"FeatureCollection","features":[%s.5,%s]}',
        '{"type":"FeatureCollection","features":[%s],}',
        '{"type":"FeatureCollection" "features":[%s]}',
        '{"type":"FeatureCollection","features":[%s]}]',
        '{"type":"FeatureCollection","features":[%s]} nonsense',
        "%s,\n%s",
        '%s\n{"type":"Fea',
        '{"type":"FeatureCollection","features":[%s],"name":"',
    ],
)
@pytest.mark.parametrize("block", [8, 1 << 18])
def test_what_is_not_json_is_refused_wherever_it_is(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(geojson, "BLOCK", block)
    feature = '{"type":"Feature","properties":{},"geometry":null}'
    (tmp_path / "f.json").write_text(text.replace("%s", feature))
    with pytest.raises(FeatureError, match=r"f\.json is not valid JSON, or is cut off"):
        list(read_features(tmp_path / "f.json"))


def test_where_json_ends_is_said(tmp_path):
    start = '{"type":"FeatureCollection","features":[{"type":'
    (tmp_path / "f.json").write_text(start + "dog}]}")
    with pytest.raises(FeatureError, match=f"at byte {len(start)}$"):
        list(read_features(tmp_path / "f.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"features":[' + "1," * 999, "not a GeoJSON object"),
        ('{"features":[{"a":' + "[" * 999, "nests brackets more than 200 deep"),
        ('{"features":[' + "[" * 999, "not a GeoJSON object"),
        ('{"features":[{"a":"' + "b" * 999, "does not end within"),
        ('{"features":[' + " " * 999, "cut off"),
        (" " * 999, "holds no GeoJSON object"),
        ("[" + "1," * 999, "holds no GeoJSON object"),
    ],
)
def test_a_file_without_features_is_not_read_into_memory(tmp_path, tiny_blocks, monkeypatch, text, message):
    monkeypatch.setattr(geojson, "MAX_FEATURE", 500)
    sizes = []
    read = geojson._Structure.read
    monkeypatch.setattr(geojson._Structure, "read", lambda self: sizes.append(len(self.text)) or read(self))
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(FeatureError, match=message):
        list(read_features(tmp_path / "f.json"))
    assert max(sizes) <= 2 * 500 + 16


def test_batches_are_of_the_size_asked_for(tmp_path, tiny_blocks):
    (tmp_path / "f.json").write_text(collection(*[box(n, 0, n + 1, 1) for n in range(11)]))
    batches = list(read_batches(tmp_path / "f.json", size=4, properties=True))
    assert [len(batch.geometries) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.numbers for batch in batches]).tolist() == list(range(11))
    assert [each["n"] for batch in batches for each in batch.properties] == list(range(11))
    assert [batch.properties for batch in read_batches(tmp_path / "f.json", size=4)] == [[], [], []]


def test_broken_features_leave_their_numbers_out(tmp_path):
    text = collection(box(0, 0, 1, 1), box(1, 1, 2, 2), box(2, 2, 3, 3))
    (tmp_path / "f.json").write_text(text.replace("[1.0, 2.0]", '"here"'))
    reasons = []
    (batch,) = read_batches(tmp_path / "f.json", broken=reasons.append)
    assert batch.numbers.tolist() == [0, 2] and len(reasons) == 1 and "feature 1 cannot be built" in reasons[0]
    with pytest.raises(FeatureError, match="feature 1 cannot be built"):
        list(read_batches(tmp_path / "f.json"))


def test_half_a_character_is_replaced(tmp_path):
    """Text that was cut between the halves of a character is common; an escaped backslash begins none."""
    text = r'{"type":"Feature","geometry":null,"properties":{"a":"x\ud83d","b":"\\ud83d","c":"\ud83d\ude42"}}'
    (tmp_path / "f.json").write_text(text)
    (found,) = read_features(tmp_path / "f.json")
    assert found.properties == {"a": "x�", "b": r"\ud83d", "c": "\U0001f642"}


@pytest.mark.parametrize("position", ["before", "between", "after"])
def test_a_crs_is_found_wherever_it_is(tmp_path, tiny_blocks, position):
    crs = '"crs":{"type":"name","properties":{"name":"EPSG:2154"}}'
    decoy = '{"type":"Feature","properties":{"crs":{"properties":{"name":"EPSG:3857"}}},"geometry":null}'
    one = {"before": f'{crs},"type":"FeatureCollection","features":[{decoy}]'}
    one["between"] = f'"features":[{decoy}],{crs},"features":[]'
    one["after"] = f'"type":"FeatureCollection","features":[{decoy},{decoy}],{crs}'
    (tmp_path / "f.json").write_text("{" + one[position] + "}")
    assert read_crs(tmp_path / "f.json") == 2154
    (tmp_path / "f.json").write_text("{" + one[position].replace(crs, '"crs":null') + "}")
    assert read_crs(tmp_path / "f.json") == 4326


def test_polygons_of_a_batch_are_what_each_one_amounts_to():
    angles = np.random.default_rng(1).uniform(0, 1000, (2500, 2))
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    shapes = [
        box(0, 0, 1, 1),
        None,
        bow,
        shapely.Point(0, 0),
        shapely.Polygon(),
        shapely.Polygon([(0, 0), (1, 1), (2, 2), (0, 0)]),
        shapely.Polygon(angles),
        shapely.GeometryCollection([box(0, 0, 1, 1), shapely.Point(5, 5), box(1, 0, 2, 1)]),
        shapely.GeometryCollection([shapely.Point(5, 5)]),
        shapely.MultiPolygon([box(0, 0, 2, 2), box(1, 1, 3, 3)]),
    ]
    skipped = Counter()
    found = polygons_of(np.array(shapes, dtype=object), skipped)
    assert skipped == {NULL: 2, "Point": 1, FLAT: 1, TANGLED: 1, "GeometryCollection": 1}
    kept = [0, 2, 7, 9]
    assert [index for index, each in enumerate(found) if each is not None] == kept
    for index in kept:
        assert shapely.equals_identical(found[index], polygonal(shapes[index])) and found[index].is_valid


def test_coordinates_of_what_has_no_area_do_not_matter():
    shapes = np.array([shapely.Point(1e9, 1e9), box(0, 0, 1, 1)], dtype=object)
    assert polygons_of(shapes, Counter(), crs=4326)[1] is not None
    with pytest.raises(FeatureError, match=r"geometry 1: .* not a longitude"):
        polygons_of(np.array([None, box(0, 0, 1e9, 1)], dtype=object), Counter(), crs=4326)
