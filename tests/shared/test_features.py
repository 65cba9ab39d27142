"""GeoJSON in and out, and the way to web mercator."""

from __future__ import annotations

import json
import math

import mercantile
import numpy as np
import pytest
import shapely
from shapely.geometry import box, mapping, shape

from rsp.shared.errors import FeatureError
from rsp.shared.features import expand, feature_writer, polygonal, read_crs, read_features, to_mercator

POINT = {"type": "Point", "coordinates": [9.5, 47.1]}


def feature(geometry, **properties):
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def write(path, value, encoding="utf-8"):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding)
    return path


@pytest.mark.parametrize(
    "value",
    [
        {"type": "FeatureCollection", "features": [feature(POINT), feature(POINT)]},
        {"features": [feature(POINT), feature(POINT)], "type": "FeatureCollection"},
        {
            "bbox": [1, 2, 3, 4],
            "name": {"type": "x"},
            "type": "FeatureCollection",
            "features": [POINT, feature(POINT)],
        },
        "\n".join([json.dumps(feature(POINT))] * 2),
        "\n".join([json.dumps(POINT)] * 2),
    ],
    ids=["collection", "members in another order", "further members", "features a line", "geometries a line"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_form(tmp_path, value, encoding):
    path = write(tmp_path / "f.json", value, encoding)
    assert [found.geometry.wkt for found in read_features(path)] == ["POINT (9.5 47.1)"] * 2
    assert read_crs(path) == 4326


def test_one_feature_and_one_geometry(tmp_path):
    (found,) = read_features(write(tmp_path / "f.json", feature(POINT, name="a")))
    assert found.properties == {"name": "a"}
    (found,) = read_features(write(tmp_path / "f.json", POINT))
    assert found.properties == {}


def test_null_geometry_and_null_properties(tmp_path):
    value = {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": None, "geometry": None}]}
    assert list(read_features(write(tmp_path / "f.json", value))) == [(None, {}, 0)]


def test_an_empty_collection_has_no_features(tmp_path):
    assert list(read_features(write(tmp_path / "f.json", {"type": "FeatureCollection", "features": []}))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no GeoJSON object|cut off"),
        ("[]", "no GeoJSON object"),
        ("{}", "feature 0 is not a GeoJSON object"),
        ("<html>", "not valid JSON"),
        ('{"type":"FeatureCollection","features":[{"type":"Feature"', "cut off"),
        ('{"type":"FeatureCollection","features":[1]}', "feature 0 is not a GeoJSON object"),
        ('{"type":"FeatureCollection","features":[{"type":"Dog"}]}', "feature 0 cannot be built"),
        ('{"type":"Polygon","coordinates":[[[1,2]]]}', "feature 0 cannot be built"),
        ('{"type":"Polygon","coordinates":"abc"}', "feature 0 cannot be built"),
        ('{"type":"Polygon"}', "feature 0 cannot be built"),
        ('{"type":"Point","coordinates":["a","b"]}', "feature 0 cannot be built"),
    ],
)
def test_what_is_no_geojson(tmp_path, text, message):
    with pytest.raises(FeatureError, match=message) as caught:
        list(read_features(write(tmp_path / "f.json", text)))
    assert "f.json" in str(caught.value)


def test_no_file_and_no_text(tmp_path):
    (tmp_path / "f.json").write_bytes(b"\xff\xfe\x00\x01" * 100)
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "f.json"):
        for read in (read_crs, lambda path: list(read_features(path))):
            with pytest.raises(FeatureError):
                read(path)


def test_broken_features_can_be_passed_over(tmp_path):
    value = {
        "type": "FeatureCollection",
        "features": [feature({"type": "Polygon", "coordinates": [[[1, 2]]]}), POINT],
    }
    reasons = []
    assert len(list(read_features(write(tmp_path / "f.json", value), broken=reasons.append))) == 1
    assert len(reasons) == 1 and "feature 0" in reasons[0]


def test_more_dimensions_than_three(tmp_path):
    line = {"type": "LineString", "coordinates": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    uneven = {"type": "LineString", "coordinates": [[1, 2, 3], [5, 6]]}
    value = {"type": "FeatureCollection", "features": [line, uneven]}
    for found in read_features(write(tmp_path / "f.json", value)):
        assert to_mercator(found.geometry, 3857).wkt == "LINESTRING (1 2, 5 6)"


@pytest.mark.parametrize(
    ("crs", "epsg"),
    [
        ({"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}, 4326),
        ({"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC::CRS84"}}, 4326),
        ({"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}, 2154),
        ({"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG:6.9:2154"}}, 2154),
        ({"type": "name", "properties": {"name": "EPSG:3857"}}, 3857),
        ({"type": "name", "properties": {"name": "epsg:900913"}}, 3857),
        ({"type": "name", "properties": {"name": "http://www.opengis.net/def/crs/EPSG/0/25832"}}, 25832),
        ({"type": "EPSG", "properties": {"code": 4326}}, 4326),
        (None, 4326),
    ],
)
def test_crs(tmp_path, crs, epsg):
    path = write(tmp_path / "f.json", {"type": "FeatureCollection", "crs": crs, "features": [POINT]})
    assert read_crs(path) == epsg


@pytest.mark.parametrize(
    "properties",
    [{"name": "Lambert"}, {"name": "EPSG:999999"}, {"name": "ESRI:102"}, {"href": "http://x", "type": "proj4"}],
)
def test_unknown_crs(tmp_path, properties):
    path = write(tmp_path / "f.json", {"crs": {"type": "name", "properties": properties}, "features": [POINT]})
    with pytest.raises(FeatureError, match="CRS"):
        read_crs(path)


def test_expand(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.json", "a.json", "[1].json"):
        (tmp_path / name).touch()
    assert expand("~/?.json") == [tmp_path / "a.json", tmp_path / "b.json"]
    assert expand(tmp_path / "[1].json") == [tmp_path / "[1].json"]
    with pytest.raises(FeatureError, match="no file matches"):
        expand("~/*.geojson")


def test_mercator_is_that_of_mercantile_and_of_gdal():
    points = shapely.MultiPoint([(-180, -85), (0, 0), (12.3, 47.1), (180, 85)])
    own = shapely.get_coordinates(to_mercator(points, 4326))
    assert np.allclose(own, [mercantile.xy(*point) for point in shapely.get_coordinates(points)], atol=1e-6)
    from rasterio.warp import transform

    there = transform("EPSG:3857", "EPSG:25832", [1369000.0], [5962000.0])
    back = shapely.get_coordinates(to_mercator(shapely.Point(there[0][0], there[1][0]), 25832))
    assert np.allclose(back, [[1369000.0, 5962000.0]], atol=1e-3)


def test_mercator_ends_with_its_square():
    edge = mercantile.xy(0, 85.0511287798066)[1]
    ends = shapely.get_coordinates(to_mercator(shapely.LineString([(0, -90), (0, 90)]), 4326))
    assert np.allclose(ends[:, 1], [-edge, edge])


def test_coordinates_that_are_none():
    with pytest.raises(FeatureError, match="4326"):
        to_mercator(shapely.Point(math.inf, 1), 4326)
    with pytest.raises(FeatureError, match="unknown CRS EPSG:999999"):
        to_mercator(shapely.Point(1, 1), 999999)


def test_polygonal():
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert polygonal(bow).is_valid and polygonal(bow).area == 2
    overlapping = shapely.MultiPolygon([box(0, 0, 2, 2), box(1, 1, 3, 3)])
    assert polygonal(overlapping).area == 7
    mixed = shapely.GeometryCollection(
        [shapely.Point(0, 0), box(0, 0, 1, 1), shapely.GeometryCollection([box(2, 0, 3, 1)])]
    )
    assert polygonal(mixed).equals(shapely.MultiPolygon([box(0, 0, 1, 1), box(2, 0, 3, 1)]))
    assert polygonal(shapely.Point(0, 0)) is None
    assert polygonal(shapely.Polygon([(0, 0), (1, 1), (2, 2)])) is None
    assert polygonal(box(0, 0, 1, 1)) == box(0, 0, 1, 1)


def test_writer(tmp_path):
    clockwise = shapely.Polygon([(0, 0), (0, 1), (1, 1), (1, 0)], [[(0.2, 0.2), (0.6, 0.2), (0.6, 0.6)]])
    with feature_writer(tmp_path / "deep" / "f.json") as writer:
        writer.write(clockwise, {"name": "Zürich", "share": float("nan"), "count": 1})
        writer.write(shapely.Point(1 / 3, 2 / 3), {})
        assert not (tmp_path / "deep" / "f.json").exists()
    text = (tmp_path / "deep" / "f.json").read_text("utf-8")
    first, second = json.loads(text, parse_constant=pytest.fail)["features"]
    polygon = shape(first["geometry"])
    assert polygon.exterior.is_ccw and not polygon.interiors[0].is_ccw
    assert first["properties"] == {"name": "Zürich", "share": None, "count": 1}
    assert second["geometry"]["coordinates"] == [0.3333333, 0.6666667]
    assert writer.count == 2 and "Zürich" in text
    assert [found.geometry for found in read_features(tmp_path / "deep" / "f.json")] == [
        polygon,
        shape(second["geometry"]),
    ]


def test_writer_of_nothing_and_of_a_failure(tmp_path):
    with feature_writer(tmp_path / "f.json"):
        pass
    assert json.loads((tmp_path / "f.json").read_text()) == {"type": "FeatureCollection", "features": []}
    before = (tmp_path / "f.json").read_bytes()
    with pytest.raises(KeyError), feature_writer(tmp_path / "f.json") as writer:
        writer.write(box(0, 0, 1, 1), {})
        raise KeyError
    assert (tmp_path / "f.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_was_written_is_read_the_same(tmp_path):
    shapes = [box(0, 0, 1, 1), shapely.MultiPolygon([box(2, 2, 3, 3), box(4, 4, 5, 5)])]
    with feature_writer(tmp_path / "f.json") as writer:
        for geometry in shapes:
            writer.write(geometry, {})
    read = [found.geometry for found in read_features(tmp_path / "f.json")]
    assert all(a.equals(b) for a, b in zip(read, shapes, strict=True))
    assert mapping(read[0])["type"] == "Polygon"
