"""Features in, in each format, and files that are not what they seem."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from rsp.components.info.found import describe
from rsp.shared import vectors
from rsp.shared.errors import FeatureError
from rsp.shared.features import feature_writer, read_batches, read_crs, read_features, to_mercator
from rsp.shared.wkb import arcs, geometries_of

TABLES = ["fgb", "gpkg", "parquet"]
SUFFIXES = ["geojson", "geojsonl", *TABLES]

# A projection that no register has.
ODD = (
    'PROJCS["of our own",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Azimuthal_Equal_Area"],'
    'PARAMETER["latitude_of_center",47],PARAMETER["longitude_of_center",9],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
)


def write(path, shapes, properties=None, **options):
    with feature_writer(path, **options) as writer:
        writer.write_batch(np.array(shapes, dtype=object), properties or [{"n": n} for n in range(len(shapes))])
    return path


def arrow(path, shapes, crs, layer=None, append=False, **columns):
    """Write as other programs do."""
    data = shapely.to_wkb(np.array(shapes, dtype=object)) if not isinstance(shapes[0], bytes) else shapes
    table = pa.table({"n": list(range(len(shapes))), **columns, "geometry": pa.array(list(data), pa.binary())})
    pyogrio.write_arrow(
        table, str(path), layer=layer or path.stem, geometry_name="geometry", geometry_type="Unknown", crs=crs,
        append=append,
    )  # fmt: skip
    return path


COORDINATES = st.integers(-89 * 10**7, 89 * 10**7).map(lambda number: number / 10**7)
POINTS = st.tuples(COORDINATES, COORDINATES)
SHAPES = st.one_of(
    POINTS.map(shapely.Point),
    st.lists(POINTS, min_size=2, max_size=4).map(shapely.LineString),
    st.tuples(POINTS, st.integers(1, 99)).map(lambda each: box(*each[0], each[0][0] + each[1], each[0][1] + 1)),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True).map(
        lambda columns: shapely.MultiPolygon([box(2 * x, 0, 2 * x + 1, 1) for x in columns])
    ),
).map(lambda geometry: shapely.transform(geometry, lambda points: points.round(7)))
VALUES = {
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=9),
    "whole": st.integers(-(1 << 53), 1 << 53),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "yes": st.booleans(),
}
ROWS = st.fixed_dictionaries({key: st.none() | values for key, values in VALUES.items()})


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=20, deadline=None)
@given(features=st.lists(st.tuples(st.none() | SHAPES, ROWS), min_size=1, max_size=6))
def test_what_is_written_is_read(tmp_path_factory, suffix, features):
    path = tmp_path_factory.mktemp("trip") / f"f.{suffix}"
    rows = [{**row, "number": number} for number, (_, row) in enumerate(features)]
    schema = {"text": str, "whole": int, "real": float, "yes": bool, "number": int}
    write(path, [geometry for geometry, _ in features], rows, schema=schema)
    found = sorted(read_features(path), key=lambda feature: feature.properties["number"])
    assert read_crs(path) == 4326 and [feature.properties for feature in found] == rows
    for feature, (geometry, _) in zip(found, features, strict=True):
        assert feature.geometry is geometry is None or feature.geometry.equals(geometry)


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "fgb"])
def test_what_another_program_wrote_is_read(tmp_path, suffix):
    """With heights, in a projection, some without geometry; in batches that are smaller than the file."""
    shapes = [box(842000 + n, 6519000, 842001 + n, 6519001) for n in range(10)]
    tall = shapely.force_3d(np.array(shapes), 7.0)
    if suffix == "gpkg":
        tall[3] = None
    path = arrow(tmp_path / f"f.{suffix}", tall, "EPSG:2154", day=pa.array([18000] * 10, pa.date32()))
    batches = list(read_batches(path, properties=True, size=4))
    assert read_crs(path) == 2154 and [len(batch.numbers) for batch in batches] == [4, 4, 2]
    geometries = np.concatenate([batch.geometries for batch in batches])
    rows = [row for batch in batches for row in batch.properties]
    assert not shapely.has_z(geometries).any()
    assert sorted(row["n"] for row in rows) == list(range(10)) and rows[0]["day"].startswith("2019-04-14")
    for geometry, row in zip(geometries, rows, strict=True):
        assert geometry is None if tall[row["n"]] is None else geometry.equals(shapes[row["n"]])
    assert [batch.properties for batch in read_batches(path, size=4)] == [[], [], []]


@pytest.mark.skipif(not shutil.which("ogr2ogr"), reason="no ogr2ogr")
@pytest.mark.parametrize(
    ("suffix", "driver"), [("gpkg", "GPKG"), ("shp", "ESRI Shapefile"), ("fgb", "FlatGeobuf")]
)
def test_what_ogr2ogr_wrote_is_read(tmp_path, suffix, driver):
    source = write(tmp_path / "in.geojson", [box(n, 0, n + 0.5, 1) for n in range(5)])
    path = tmp_path / f"out.{suffix}"
    subprocess.run(["ogr2ogr", "-f", driver, "-t_srs", "EPSG:3857", path, source], check=True)
    assert read_crs(path) == 3857
    found = {feature.properties["n"]: feature.geometry for feature in read_features(path)}
    for feature in read_features(source):
        assert found[feature.properties["n"]].equals_exact(
            to_mercator(feature.geometry, 4326), 1e-6, normalize=True
        )


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "fgb"])
def test_a_crs_without_a_code_is_projected_by_its_wkt(tmp_path, suffix):
    path = arrow(tmp_path / f"f.{suffix}", [box(0, 0, 100, 100)], ODD)
    crs = read_crs(path)
    assert isinstance(crs, str) and "of our own" in crs.replace("_", " ")
    (feature,) = read_features(path)
    west, south, east, _ = to_mercator(feature.geometry, crs).bounds
    corner = shapely.get_coordinates(to_mercator(shapely.Point(9, 47), 4326))[0]
    assert np.allclose((west, south), corner, atol=0.01)
    assert math.isclose(east - west, 100 / math.cos(math.radians(47)), rel_tol=0.01)
    with pytest.raises(FeatureError, match=r"the CRS 'of.our.own'"):
        to_mercator(shapely.Point(1e9, 1e9), crs)


def test_the_crs_of_parquet(tmp_path):
    assert read_crs(write(tmp_path / "a.parquet", [box(0, 0, 1, 1)], crs=25832)) == 25832
    path = write(tmp_path / "b.parquet", [box(0, 0, 1, 1)])

    def with_crs(change):
        table = pq.read_table(path)
        geo = json.loads(table.schema.metadata[b"geo"])
        change(geo["columns"]["geometry"])
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "c.parquet")
        return tmp_path / "c.parquet"

    assert read_crs(with_crs(lambda column: column.pop("crs"))) == 4326
    with pytest.raises(FeatureError, match="does not say in which CRS it is: give --crs"):
        read_crs(with_crs(lambda column: column.update(crs=None)))
    odd = read_crs(with_crs(lambda column: (column["crs"].pop("id"), column["crs"].update(name="of our own"))))
    assert odd == 4326 or "of our own" in odd
    with pytest.raises(FeatureError, match="unknown CRS"):
        read_crs(with_crs(lambda column: column.update(crs={"type": "Dog"})))
    with pytest.raises(FeatureError, match="encoded as 'polygon'"):
        list(read_batches(with_crs(lambda column: column.update(encoding="polygon"))))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "d.parquet")
    with pytest.raises(FeatureError, match="not GeoParquet"):
        read_crs(tmp_path / "d.parquet")
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"geo": "[]"}), tmp_path / "d.parquet")
    with pytest.raises(FeatureError, match="metadata `geo`"):
        read_crs(tmp_path / "d.parquet")


def test_a_file_that_does_not_say_its_crs(tmp_path):
    path = arrow(tmp_path / "f.shp", [box(0, 0, 1, 1)], "EPSG:4326")
    path.with_suffix(".prj").unlink()
    with pytest.raises(FeatureError, match=r"f\.shp does not say in which CRS it is: give --crs"):
        read_crs(path)
    assert len(list(read_features(path))) == 1


def test_one_layer_of_several(tmp_path):
    path = arrow(tmp_path / "f.gpkg", [box(0, 0, 1, 1)], "EPSG:4326", layer="roofs")
    arrow(path, [box(1, 1, 2, 2)] * 2, "EPSG:2154", layer="roads", append=True)
    for read in (lambda: read_crs(path), lambda: list(read_batches(path))):
        with pytest.raises(FeatureError, match="has 2 layers: choose one with --layer: roofs, roads"):
            read()
    assert read_crs(path, "roads") == 2154 and len(next(read_batches(path, layer="roads")).numbers) == 2
    assert read_crs(path, "roofs") == 4326 and len(next(read_batches(path, layer="roofs")).numbers) == 1
    with pytest.raises(FeatureError, match="has no layer 'rivers' with geometries, but roofs, roads"):
        read_crs(path, "rivers")
    for other in (write(tmp_path / "f.json", [box(0, 0, 1, 1)]), write(tmp_path / "f.parquet", [box(0, 0, 1, 1)])):
        with pytest.raises(FeatureError, match="has no layers: leave out --layer a"):
            read_crs(other, "a")
        with pytest.raises(FeatureError, match="has no layers: leave out --layer a"):
            list(read_batches(other, layer="a"))


def shapefile(folder, stem, *shapes):
    folder.mkdir(parents=True, exist_ok=True)
    path = arrow(folder / f"{stem}.shp", list(shapes), "EPSG:4326")
    return sorted(folder.glob(f"{path.stem}.*"))


def test_zipped_shapefiles(tmp_path):
    files = shapefile(tmp_path / "in", "roofs", box(0, 0, 1, 1))
    more = shapefile(tmp_path / "in", "roads", box(1, 1, 2, 2), box(2, 2, 3, 3))
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for each in files:
            archive.write(each, f"deep/inside/{each.name}")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for each in [*files, *more]:
            archive.write(each, each.name)
    assert read_crs(tmp_path / "one.zip") == 4326
    for layer in (None, "roofs"):
        assert len(next(read_batches(tmp_path / "one.zip", layer=layer)).numbers) == 1
    assert len(next(read_batches(tmp_path / "two.zip", layer="roads")).numbers) == 2
    with pytest.raises(FeatureError, match=r"has 2 layers: choose one with --layer: roads, roofs|roofs, roads"):
        read_crs(tmp_path / "two.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(FeatureError, match=r"a zip archive without \.shp"):
        read_crs(tmp_path / "none.zip")


def curve(kind, *parts):
    return struct.pack("<BII", 1, kind, len(parts)) + b"".join(parts)


def arc(*points, kind=8):
    return curve(kind, *(struct.pack("<dd", *point) for point in points))


def test_curves_become_lines(tmp_path):
    circle = curve(10, arc((-1, 0), (0, 1), (1, 0), (0, -1), (-1, 0)), arc((-0.5, 0), (0.5, 0), (-0.5, 0)))
    compound = curve(10, curve(9, arc((-1, 0), (0, 1), (1, 0)), arc((1, 0), (-1, 0), kind=2)))
    straight = curve(10, arc((0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 1), (0, 0)))
    path = arrow(tmp_path / "f.gpkg", [circle, curve(12, circle, compound), compound, straight], "EPSG:3857")
    found = [feature.geometry for feature in read_features(path)]
    assert math.isclose(found[0].area, math.pi * 0.75, rel_tol=0.002) and found[0].is_valid
    assert len(found[0].exterior.coords) == 91
    assert np.allclose(np.hypot(*shapely.get_coordinates(found[0].exterior).T), 1)
    assert math.isclose(found[2].area, math.pi / 2, rel_tol=0.002) and found[2].bounds[1] == 0
    assert math.isclose(found[1].area, math.pi * 1.25, rel_tol=0.002)
    assert found[3].equals(shapely.Polygon([(0, 0), (2, 0), (2, 2)]))


@pytest.mark.parametrize("turn", [1, -1])
def test_an_arc_goes_through_its_middle(turn):
    points = [(math.cos(turn * angle), math.sin(turn * angle)) for angle in (0.3, 2.0, 5.5)]
    found = np.array(arcs(points))
    assert np.allclose(np.hypot(*found.T), 1) and np.allclose(found[[0, -1]], [points[0], points[2]])
    angles = np.unwrap(np.arctan2(found[:, 1], found[:, 0])) * turn
    assert (np.diff(angles) > 0).all() and math.isclose(angles[-1] - angles[0], 5.2)
    assert np.degrees(np.diff(angles)).max() <= 4.0001


def test_surfaces_and_triangles_and_what_is_no_wkb():
    triangle = struct.pack("<BII", 1, 1017, 1) + struct.pack("<I12d", 4, 0, 0, 9, 1, 0, 9, 0, 1, 9, 0, 0, 9)
    tin = struct.pack("<BII", 1, 1016, 1) + triangle
    bad = [
        b"\1",
        tin[:-9],
        b"\1" + b"\xff" * 20,
        curve(8),
        arc((0, 0), (1, 1)),
        curve(10, curve(10)),
        curve(99),
    ]
    bad += [b"\1\x09\0\0\0\xff\xff\xff\x7f", curve(7, *[curve(7, curve(8))] * 3)]
    deep = b"".join([struct.pack("<BII", 1, 12, 1)] * 40)
    data = [triangle, tin, b"", box(0, 0, 1, 1).wkb, *bad, deep]
    found, broken = geometries_of(np.array(data, dtype=object))
    assert found[0].equals(shapely.Polygon([(0, 0), (1, 0), (0, 1)])) and found[1].area == 0.5
    assert found[2] is None and not broken[2] and found[3].equals(box(0, 0, 1, 1))
    (inside,) = geometries_of(np.array([curve(7, arc((0, 0), (1, 1), (2, 0)))], dtype=object))[0]
    assert shapely.get_parts(inside)[0].geom_type == "LineString"
    assert broken.tolist() == [False] * 4 + [True] * (len(data) - 4)


def test_geometries_that_cannot_be_built_are_told(tmp_path):
    path = write(tmp_path / "f.parquet", [box(n, 0, n + 1, 1) for n in range(3)])
    table = pq.read_table(path)
    data = table["geometry"].to_pylist()
    data[1] = data[1][:20]
    pq.write_table(table.set_column(1, "geometry", pa.array(data, pa.binary())), path)
    with pytest.raises(FeatureError, match="the geometry of feature 1 cannot be built"):
        list(read_features(path))
    reasons = []
    assert [each.number for each in read_features(path, broken=reasons.append)] == [0, 2] and len(reasons) == 1


@pytest.mark.parametrize("name", ["f.gpkg", "f.fgb", "f.parquet", "f.shp", "f.zip"])
@pytest.mark.parametrize("cut", [0.02, 0.3, 0.6, 0.97])
def test_files_that_are_cut_off(tmp_path, name, cut):
    """An error, never fewer features in silence."""
    path = tmp_path / name
    shapes = [shapely.Point(n / 10, 0).buffer(0.1) for n in range(300)]
    if name == "f.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for each in shapefile(tmp_path / "in", "f", *shapes):
                archive.write(each, each.name)
    elif name == "f.shp":
        arrow(path, shapes, "EPSG:4326")
    else:
        write(path, shapes)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(FeatureError, match=f"f.{path.suffix[1:]}"):
        assert sum(len(batch.numbers) for batch in read_batches(path)) < 300


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SMALL", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f.shp", bytes(1 << 24))
    with pytest.raises(FeatureError, match="would grow to 16 MiB, more than 100 times its size"):
        list(read_batches(tmp_path / "bomb.zip"))
    monkeypatch.setattr(vectors, "MAX_MEMBERS", 10)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(11):
            archive.writestr(f"{number}.shp", b"")
    with pytest.raises(FeatureError, match="holds 11 files"):
        list(read_batches(tmp_path / "many.zip"))


LIMITED = """
import resource, sys
from pathlib import Path
from rsp.shared.features import read_batches
from rsp.shared.errors import FeatureError
import pyarrow, pyogrio, shapely
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        print(name, sum(len(batch.numbers) for batch in read_batches(Path(name))))
    except FeatureError as error:
        print(name, "refused:", error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < 300, (name, grown)
"""


def test_hostile_files_are_refused_in_bounded_memory(tmp_path):
    """Counts beyond reason, pages that hold nothing, a table that is none."""
    good = write(tmp_path / "good.fgb", [box(0, 0, 1, 1)] * 3).read_bytes()
    (size,) = struct.unpack_from("<I", good, 8)
    paths = []
    for number, count in enumerate((1 << 63, 1 << 40, 1 << 20)):
        # The count of features is the only number 3 of 8 bytes in the header.
        at = good.index(struct.pack("<Q", 3), 12, 12 + size)
        paths.append(tmp_path / f"count{number}.fgb")
        paths[-1].write_bytes(good[:at] + struct.pack("<Q", count) + good[at + 8 :])
    paths.append(tmp_path / "header.fgb")
    paths[-1].write_bytes(good[:8] + struct.pack("<I", 0xFFFFFFFF) + good[12:])
    gpkg = write(tmp_path / "good.gpkg", [box(0, 0, 1, 1)] * 3)
    for number, change in enumerate(
        [
            "UPDATE gpkg_ogr_contents SET feature_count = 4611686018427387904",
            "UPDATE good SET geometry = zeroblob(1000000)",
            "UPDATE gpkg_geometry_columns SET table_name = 'absent'",
            "UPDATE gpkg_contents SET srs_id = 999999; UPDATE gpkg_geometry_columns SET srs_id = 999999",
        ]
    ):
        paths.append(tmp_path / f"changed{number}.gpkg")
        shutil.copy(gpkg, paths[-1])
        with sqlite3.connect(paths[-1]) as connection:
            connection.create_function("ST_IsEmpty", 1, lambda _: 0)
            for name in ("ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
                connection.create_function(name, 1, lambda _: 0.0)
            connection.executescript(change)
        connection.close()
    # A million rows without a geometry are a few bytes in a file, and one row group.
    paths.append(tmp_path / "group.parquet")
    schema = pa.schema([("geometry", pa.binary())])
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    schema = schema.with_metadata({"geo": json.dumps(geo)})
    empty = pa.table([pa.nulls(1_000_000, pa.binary())], schema=schema)
    pq.write_table(empty, paths[-1], row_group_size=1_000_000)
    # A geometry of a megabyte that a row group holds once, and names five hundred times.
    paths.append(tmp_path / "same.parquet")
    large = shapely.LineString(np.zeros((1 << 16, 2))).wkb
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(500, np.int32)), pa.array([large], pa.binary()))
    table = pa.table({"geometry": same})
    with pq.ParquetWriter(paths[-1], table.schema, store_schema=False) as file:
        file.add_key_value_metadata({"geo": json.dumps(geo)})
        file.write_table(table)
    command = [sys.executable, "-c", LIMITED, *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = dict(line.split(" ", 1) for line in ran.stdout.splitlines() if line.startswith("/"))
    assert len(said) == len(paths), ran.stdout
    assert said[str(tmp_path / "group.parquet")] == "1000000"
    for path in paths:
        if path.suffix == ".fgb":
            assert "refused" in said[str(path)], said[str(path)]


def test_what_is_no_format_names_those_that_are(tmp_path):
    (tmp_path / "f.bin").write_bytes(b"\0\1\2\3" * 99)
    for read in (read_crs, lambda path: list(read_batches(path))):
        with pytest.raises(
            FeatureError, match=r"in no format that can be read: GeoJSON, .*GeoPackage.*GeoParquet"
        ):
            read(tmp_path / "f.bin")
    (tmp_path / "f.json.gz").write_bytes(b"\x1f\x8b\x08\0")
    with pytest.raises(FeatureError, match="unpack it first, with gunzip"):
        read_crs(tmp_path / "f.json.gz")
    (tmp_path / "f.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FeatureError, match="no layer with geometries"):
        read_crs(tmp_path / "f.csv")


def test_warnings_of_gdal_are_said_once_in_a_line(tmp_path, capsys):
    path = tmp_path / "f.gpkg"
    path.write_bytes(b"SQLite format 3\0" + b"x" * 500)
    for _ in range(2):
        with pytest.raises(
            FeatureError, match=r"f\.gpkg, which looks like a GeoPackage or another SQLite database"
        ):
            read_crs(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: GPKG: bad application_id")


@pytest.mark.parametrize(
    "read",
    [read_crs, lambda path: list(read_batches(path)), describe, pyogrio.raw.read],
    ids=["crs", "features", "info", "pyogrio"],
)
def test_nothing_is_written_beside_what_is_read(tmp_path, read):
    path = write(tmp_path / "roofs.gpkg", [box(0, 0, 1, 1)], attribution="those who drew it")
    pyogrio.set_gdal_config_options({"GDAL_PAM_ENABLED": None})
    read(path)
    # GDAL by itself does, or this would test nothing.
    beside = {"roofs.gpkg.aux.xml"} if read is pyogrio.raw.read else set()
    assert {each.name for each in tmp_path.iterdir()} == {"roofs.gpkg"} | beside
