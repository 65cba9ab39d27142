"""Features out, in each format; ogr2ogr, where there is one, reads what GDAL's own bindings wrote."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import orjson
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from shapely.geometry import box, shape

from rsp.shared import tables
from rsp.shared.errors import StorageError, UsageError
from rsp.shared.features import OPENSTREETMAP, feature_text, feature_writer

SUFFIXES = ["json", "geojsonl", "fgb", "gpkg", "parquet"]

HOLE = shapely.Polygon([(0, 0), (0, 1), (1, 1), (1, 0)], [[(0.2, 0.2), (0.6, 0.2), (0.6, 0.6)]])
SHAPES = np.array([HOLE, box(2, 2, 3, 3), shapely.MultiPolygon([box(4, 4, 5, 5), box(6, 4, 7, 5)])], dtype=object)
PROPERTIES = [
    {"class": "building", "osm_id": 1 << 40, "levels": 2, "height": 7.5, "flat": True, "name": "Zürich", "fid": 9},
    {
        "class": "building",
        "osm_id": 2,
        "levels": 2.5,
        "height": float("nan"),
        "flat": None,
        "name": None,
        "fid": 9,
    },
    {"class": "road", "osm_id": 3, "tags": {"a": [1]}, "flat": False, "name": "x", "fid": 9},
]


def write(path, shapes=SHAPES, properties=PROPERTIES, **options):
    with feature_writer(path, **options) as writer:
        writer.write_batch(shapes, properties)
    assert writer.count == len(shapes)
    return path


def read(path):
    """Read what was written by something else than what wrote it; features by their number."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        pairs = [(shapely.from_wkb(row.pop("geometry")), row) for row in rows]
    elif path.suffix in (".fgb", ".gpkg") and shutil.which("ogr2ogr"):
        command = ["ogr2ogr", "-f", "GeoJSONSeq", "/vsistdout/", str(path)]
        lines = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
        pairs = [(shape(each["geometry"]), each["properties"]) for each in map(json.loads, lines)]
    else:
        _, table = pyogrio.read_arrow(path)
        rows = table.to_pylist()
        name = "geometry" if "geometry" in rows[0] else "wkb_geometry"
        pairs = [(shapely.from_wkb(row.pop(name)), row) for row in rows]
    return sorted(pairs, key=lambda pair: pair[1]["osm_id"] % (1 << 40))


@pytest.mark.parametrize("suffix", ["fgb", "gpkg", "parquet"])
def test_every_table_has_geometries_and_types(tmp_path, suffix):
    found = read(write(tmp_path / f"f.{suffix}"))
    assert [pair[1]["osm_id"] for pair in found] == [1 << 40, 2, 3]
    for (geometry, properties), wanted, given in zip(found, SHAPES, PROPERTIES, strict=True):
        assert geometry.equals(wanted) and geometry.geom_type == wanted.geom_type
        assert properties["class"] == given["class"] and properties.get("name") == given["name"]
        assert properties.get("flat") == given.get("flat") and properties["fid"] == 9
        assert properties.get("levels") == given.get("levels")
    assert [pair[1].get("height") for pair in found] == [7.5, None, None]
    tags = found[2][1]["tags"]
    assert (json.loads(tags) if isinstance(tags, str) else tags) == {"a": [1]}
    polygon = found[0][0]
    assert polygon.exterior.is_ccw and not polygon.interiors[0].is_ccw


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_features_make_the_same_bytes(tmp_path, suffix, monkeypatch):
    """However they came in, and whenever."""
    first = write(tmp_path / "a" / f"f.{suffix}", attribution=OPENSTREETMAP)
    with feature_writer(tmp_path / "b" / f"f.{suffix}", attribution=OPENSTREETMAP) as writer:
        for geometry, properties in zip(SHAPES, PROPERTIES, strict=True):
            writer.write(geometry, properties)
    with feature_writer(tmp_path / "c" / f"f.{suffix}", attribution=OPENSTREETMAP) as writer:
        for geometry, properties in zip(SHAPES, PROPERTIES, strict=True):
            writer.write_text(feature_text(geometry, properties))
    data = first.read_bytes()
    assert (tmp_path / "b" / f"f.{suffix}").read_bytes() == data == (tmp_path / "c" / f"f.{suffix}").read_bytes()
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    if suffix == "gpkg":
        assert b"1970-01-01T00:00:00.000Z" in data
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
        assert b"1970-01-02T00:00:00.000Z" in write(first, attribution=OPENSTREETMAP).read_bytes()


@pytest.mark.parametrize("suffix", ["json", "fgb", "gpkg", "parquet"])
def test_whose_the_data_are_stands_in_the_file(tmp_path, suffix):
    path = write(tmp_path / f"f.{suffix}", attribution=OPENSTREETMAP)
    assert "ODbL" in OPENSTREETMAP and OPENSTREETMAP.encode() in path.read_bytes()
    if suffix == "json":
        assert json.loads(path.read_text("utf-8"))["attribution"] == OPENSTREETMAP
    elif suffix == "parquet":
        assert pq.read_schema(path).metadata[b"attribution"].decode() == OPENSTREETMAP
    else:
        info = pyogrio.read_info(path, force_total_bounds=True)
        told = [*(info["dataset_metadata"] or {}).values(), *(info["layer_metadata"] or {}).values()]
        assert OPENSTREETMAP in told


@pytest.mark.parametrize("suffix", ["fgb", "gpkg"])
def test_gdal_knows_crs_layer_and_type(tmp_path, suffix):
    info = pyogrio.read_info(write(tmp_path / f"roads.{suffix}", SHAPES[:2], PROPERTIES[:2], crs=2154))
    assert info["crs"] == "EPSG:2154" and info["layer_name"] == "roads" and info["geometry_type"] == "Polygon"


def test_geoparquet_is_of_its_specification(tmp_path):
    path = write(tmp_path / "f.parquet")
    geo = json.loads(pq.read_schema(path).metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0" and column["encoding"] == "WKB" and column["bbox"] == [0, 0, 7, 5]
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"] and column["orientation"] == "counterclockwise"
    assert column["crs"]["id"] == {"authority": "OGC", "code": "CRS84"}
    projected = json.loads(pq.read_schema(write(tmp_path / "p.parquet", crs=25832)).metadata[b"geo"])
    assert projected["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 25832}


def test_geojson_of_another_crs_says_so(tmp_path):
    path = write(tmp_path / "f.json", crs=2154)
    assert json.loads(path.read_text("utf-8"))["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::2154"


def test_a_sequence_is_a_feature_a_line(tmp_path):
    lines = write(tmp_path / "f.geojsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["properties"]["osm_id"] for line in lines] == [1 << 40, 2, 3]
    assert write(tmp_path / "none.geojsonl", SHAPES[:0], []).read_bytes() == b""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_and_nowhere_can_be_written(tmp_path, suffix):
    write(tmp_path / f"none.{suffix}", SHAPES[:0], [], schema={"class": str})
    if suffix != "geojsonl":
        info = {} if suffix == "parquet" else pyogrio.read_info(tmp_path / f"none.{suffix}")
        fields = (
            pq.read_schema(tmp_path / "none.parquet").names if suffix == "parquet" else info["fields"].tolist()
        )
        assert suffix == "json" or fields[:1] == ["class"]
    shapes = np.array([None, shapely.Polygon(), box(0, 0, 1, 1)], dtype=object)
    path = write(tmp_path / f"null.{suffix}", shapes, PROPERTIES)
    if suffix == "parquet":
        assert [each is None for each in pq.read_table(path)["geometry"].to_pylist()] == [True, False, False]
    else:
        assert pyogrio.read_info(path, force_feature_count=True)["features"] == 3


@pytest.mark.parametrize("suffix", ["fgb", "gpkg", "parquet"])
def test_a_schema_gives_order_and_types(tmp_path, suffix):
    schema = {"z": float, "a": str, "n": int}
    path = write(tmp_path / f"f.{suffix}", SHAPES[:1], [{"n": None, "z": 1, "new": True}], schema=schema)
    if suffix == "parquet":
        found = pq.read_schema(path)
        assert found.names[:4] == ["z", "a", "n", "new"] and [str(each) for each in found.types[:4]] == [
            "double", "string", "int64", "bool",
        ]  # fmt: skip
    else:
        info = pyogrio.read_info(path)
        assert info["fields"].tolist() == ["z", "a", "n", "new"]
        assert info["dtypes"].tolist() == ["float64", "object", "int64", "bool"]
    with pytest.raises(UsageError, match="'n' is 'many', and its column is int"):
        write(tmp_path / f"f.{suffix}", SHAPES[:1], [{"n": "many"}], schema=schema)


@pytest.mark.parametrize("suffix", ["fgb", "gpkg", "parquet"])
def test_many_batches_and_a_failure_leave_nothing_behind(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 2)
    path = write(tmp_path / f"f.{suffix}")
    assert len(read(path)) == 3
    before = path.read_bytes()
    with pytest.raises(KeyError), feature_writer(path) as writer:
        writer.write(HOLE, {})
        raise KeyError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_gdal_refuses_is_said(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*f\.gpkg"):
        write(tmp_path / "f.gpkg", SHAPES[:1], [{"a": 1, "A": 2}])


@pytest.mark.parametrize("suffix", ["fgb", "gpkg", "parquet"])
def test_a_table_cannot_go_into_a_pipe(tmp_path, suffix):
    (tmp_path / f"pipe.{suffix}").symlink_to("/dev/null")
    with (
        pytest.raises(UsageError, match="only GeoJSON can be streamed"),
        feature_writer(tmp_path / f"pipe.{suffix}"),
    ):
        pass
