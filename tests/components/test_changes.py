"""rsp changes: what became of each object, what speaks for it, and which come first."""

from __future__ import annotations

import json
import math
import random
import re

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate, scale, translate
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box, mapping

from rsp.components.changes.component import changes as changes_component
from rsp.components.changes.judging import STATUSES
from rsp.components.changes.outputs import SCHEMA
from rsp.components.changes.tool import changes
from rsp.components.vectorize.tool import vectorize
from rsp.shared.config import parse_tables
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.images import encode, encode_mask
from rsp.shared.mercator import RADIUS
from rsp.shared.overlap import overlap
from rsp.shared.polygons import ground_area
from rsp.shared.tiles import Tile, read_cover
from rsp.shared.tileset import open_writer
from tests.ground import EAST, NORTH, X, Y, compare, read, square, to_degrees, to_map, write
from tests.guides import commands, page
from tests.tilesets import COLORS, CONFIG


@pytest.fixture
def compared(tmp_path):
    """Compare polygons in metres on the ground, and return the result and the properties of what is written."""

    def run(mapped, predicted, **options):
        result, found = compare(tmp_path, mapped, predicted, **options)
        return result, [properties for _, properties in found]

    return run


def test_what_became_of_each_at_the_command_line(tmp_path, rsp):
    mapped = [
        square(0), square(100), square(200), square(300, 0, 6), square(400), square(500, 0, 20, 10),
        square(600, 0, 9.5, 10), square(610, 0, 9.5, 10), square(700),
    ]  # fmt: skip
    predicted = [
        square(1), square(105), square(208, 5), square(300, 8, 6), square(400, 0, 10, 4), square(500, 0, 9, 10),
        square(511, 0, 9, 10), square(600, 0, 20, 10), square(800),
    ]  # fmt: skip
    write(tmp_path / "mapped.geojson", mapped)
    write(tmp_path / "predicted.geojson", predicted)
    ran = rsp(
        "changes", "--mapped", tmp_path / "mapped.geojson", "--predicted", tmp_path / "predicted.geojson",
        tmp_path / "out.geojson",
    )  # fmt: skip
    assert ran.code == 0 and "warning" not in ran.stderr and "skipped" not in ran.stderr
    found = {
        (each["mapped"], each["predicted"]): (
            each["status"], each["iou"], each["offset_m"], each["support"], each["evidence"],
        )
        for _, each in read(tmp_path / "out.geojson")
    }  # fmt: skip
    expected = {
        ("0", "0"): ("matched", 90 / 110, 1, 0.9, 0.64),
        ("1", "1"): ("moved", 50 / 150, 5, 0.5, 0.64),
        ("2", "2"): ("moved", 10 / 190, math.hypot(8, 5), 0.1, 0.64),  # hardly an overlap
        ("3", "3"): ("moved", 0, 8, 0, 16 / 36),  # none at all
        ("4", "4"): ("reshaped", 0.4, 3, 0.4, 8 * 2 / 40),
        ("5", "5,6"): ("split", 0.9, 0, 0.9, 7 * 8 / 90),
        ("6,7", "7"): ("merged", 0.95, 0.25, 1, 18 * 8 / 200),
        ("8", ""): ("gone", None, None, 0, None),
        ("", "8"): ("missing_on_map", None, None, None, 0.64),
    }
    assert set(found) == set(expected)
    for key, (status, *values) in expected.items():
        assert found[key][0] == status, key
        for ours, theirs in zip(found[key][1:], values, strict=True):
            assert ours == (None if theirs is None else pytest.approx(theirs, abs=0.011)), key


def test_areas_and_shapes_are_those_of_the_ground(compared, tmp_path):
    """At 47 degrees a square metre of EPSG:3857 is less than half of one."""
    result, found = compared([square(0, 0, 20)], [square(0, 0, 20), square(90, 0, 10, 30)])
    assert sorted(each["area_m2"] for each in found) == pytest.approx(
        [300, 400], rel=2e-3
    )  # files round to a centimetre
    for geometry, properties in read(tmp_path / "out.geojson"):
        assert properties["area_m2"] == pytest.approx(ground_area(geometry), rel=1e-4)
    assert (result.mapped, result.predicted, result.objects, result.matched, result.missing_on_map) == (
        1,
        2,
        2,
        1,
        1,
    )


FATES = ("same", "shifted", "far", "gone", "new", "split", "merged", "grown", "nothing")
CELL = 60.0


def planted(fates, rng):
    """Return mapped and predicted polygons of a grid of cells, and the status of what is in each cell."""
    mapped, predicted, statuses = [], [], []
    for number, fate in enumerate(fates):
        x, y = number % 5 * CELL, number // 5 * CELL
        house = square(x, y, rng.uniform(8, 16), rng.uniform(8, 16))
        width, height = house.bounds[2] - x, house.bounds[3] - y
        pieces = [square(x, y, width * 0.48, height), square(x + width * 0.52, y, width * 0.48, height)]
        angle = rng.uniform(0, 2 * math.pi)
        before, after, status = {
            "same": ([house], [scale(house, 0.95, 0.95)], "matched"),
            "shifted": ([house], [translate(house, width * rng.uniform(0.5, 0.6))], "moved"),
            "far": ([house], [translate(house, 9.5 * math.cos(angle), 9.5 * math.sin(angle))], "moved"),
            "gone": ([house], [], "gone"),
            "new": ([], [house], "missing_on_map"),
            "split": ([house], pieces, "split"),
            "merged": (pieces, [house], "merged"),
            "grown": ([house], [scale(house, 1.6, 1.6)], "reshaped"),
            "nothing": ([], [], None),
        }[fate]
        if fate == "far" and before[0].intersection(after[0]).area * 3 >= before[0].union(after[0]).area:
            status = None  # large houses still overlap: which it is follows from their size
            before, after = [], []
        mapped += before
        predicted += after
        statuses += [status] if status else []
    return mapped, predicted, statuses


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(FATES), min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_statuses_are_those_that_were_planted(tmp_path_factory, fates, rng):
    tmp_path = tmp_path_factory.mktemp("planted")
    mapped, predicted, statuses = planted(fates, rng)
    if not mapped and not predicted:
        return
    outs = []
    for name in ("a", "b"):
        write(tmp_path / f"m{name}.json", mapped)
        write(tmp_path / f"p{name}.json", predicted)
        changes(tmp_path / f"{name}.json", mapped=tmp_path / f"m{name}.json", predicted=tmp_path / f"p{name}.json")
        outs.append(read(tmp_path / f"{name}.json"))
        rng.shuffle(mapped)
        rng.shuffle(predicted)
    assert sorted(each["status"] for _, each in outs[0]) == sorted(statuses)
    scores = [each["score"] for _, each in outs[0]]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    # In another order they have other numbers, and nothing else is another.
    one, other = (
        [
            (shape, {key: value for key, value in each.items() if key not in ("mapped", "predicted")})
            for shape, each in out
        ]
        for out in outs
    )
    assert one == other


def test_what_has_the_same_bounds_is_told_apart_by_its_shape(tmp_path):
    """Shuffled, too: two triangles in a box, and two objects that are the same."""
    one, other = Polygon([(0, 0), (10, 0), (10, 10)]), Polygon([(0, 0), (10, 10), (0, 10)])
    for mapped, predicted in (([one, other, one], [other, one]), ([one, other], [square(500), square(500)])):
        texts = set()
        for turned in (False, True):
            write(tmp_path / "m.json", mapped[:: -1 if turned else 1])
            write(tmp_path / "p.json", predicted[:: -1 if turned else 1])
            changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=tmp_path / "p.json")
            found = read(tmp_path / "out.json")
            texts.add(
                str([(geometry.wkt, each["status"], each["iou"], each["score"]) for geometry, each in found])
            )
        assert len(texts) == 1


@pytest.mark.parametrize("shift", [2.0, 3.0, 4.5])
def test_a_street_of_row_houses_is_no_single_object(compared, shift):
    """Each overlaps with two, at 3 m with both alike; the ends have one."""
    row = [square(6 * number, 0, 6, 10) for number in range(40)]
    result, found = compared(row, [translate(house, shift) for house in row])
    assert result.objects >= 35
    assert max(len(each["mapped"].split(",")) + len(each["predicted"].split(",")) for each in found) <= 3
    assert result.matched + result.moved + result.merged + result.split + result.reshaped >= 35


def test_a_fragment_is_no_pair_and_a_corner_is_no_part(compared):
    result, (found,) = compared([square(0, 0, 20, 10)], [square(18, 0, 2, 10), square(0, 0, 18, 10)])
    assert (found["status"], result.precision, result.recall) == ("split", 0.5, 1)
    result, _ = compared([square()], [square(9, 0, 30, 10)])
    assert (result.gone, result.missing_on_map, result.objects) == (1, 1, 2)


def test_a_blob_over_a_street_is_merged(compared):
    row = [square(6 * number, 0, 5.5, 10) for number in range(9)]
    result, (found,) = compared(row, [square(0, 0, 53.5, 10)])
    assert (found["status"], found["mapped"]) == ("merged", "0,1,2,3,4,5,6,7,8")
    assert found["iou"] == pytest.approx(5.5 * 9 / 53.5, abs=0.001)
    assert found["offset_m"] < 0.1  # of the whole street
    assert (result.precision, result.recall) == (0.0, 0.0)  # no pair of one and one is alike


def test_a_rule_of_how_alike_is_heard(compared):
    houses = [square()], [square(2)]  # 80 of 120
    assert compared(*houses)[0].matched == 1
    assert compared(*houses, iou=0.7)[0].moved == 1
    assert compared(*houses, iou=0.7, max_offset=1.5)[0].reshaped == 1


def test_how_far_something_may_have_moved(compared):
    houses = [square(), square(100), square(200)], [square(0, 14), square(100, 25), square(214, 0, 10, 40)]
    result, _ = compared(*houses)
    assert (result.moved, result.gone, result.missing_on_map) == (0, 3, 3)
    result, found = compared(*houses, max_offset=15)
    assert (result.moved, result.gone, result.missing_on_map) == (1, 2, 2)  # not the long one
    assert compared([square()], [square(14, 0, 10, 40)], max_offset=30, iou=0.2)[0].moved == 0
    moved = next(each for each in found if each["status"] == "moved")
    assert moved["offset_m"] == pytest.approx(14, abs=0.01)


def test_of_several_that_may_have_moved_the_most_alike_and_nearest_has(compared):
    mapped = [square(0, 0, 6)]
    result, found = compared(mapped, [square(0, 9, 6), square(0, -8, 6), square(9, 0, 5)])
    assert result.moved == 1
    assert next(each for each in found if each["status"] == "moved")["predicted"] == "1"


def test_metrics_of_objects(compared, tmp_path):
    mapped = [square(100 * number) for number in range(8)]
    # One that is moved, two that are not found, and three of nothing.
    shares = [10 * (1 - iou) / (1 + iou) for iou in (1, 0.91, 0.81, 0.71, 0.61)]
    predicted = [translate(mapped[number], shift) for number, shift in enumerate(shares)]
    predicted += [translate(mapped[5], 5), square(1000), square(1100), square(1200)]
    result, _ = compared(mapped, predicted, metrics=tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    objects = found["objects"]
    assert (objects["mapped"], objects["predicted"], objects["outside"]) == (8, 9, 0)
    assert [row["true"] for row in objects["thresholds"]] == [5, 5, 5, 4, 4, 3, 3, 2, 2, 1]
    assert (objects["precision"], objects["recall"]) == (5 / 9, 5 / 8)
    assert objects["f1"] == 10 / 17 == result.f1
    assert objects["f1_mean"] == pytest.approx(sum(row["f1"] for row in objects["thresholds"]) / 10)
    assert found["statuses"]["missing_on_map"] == {"count": 3, "area_m2": pytest.approx(300, rel=1e-3)}
    assert objects["area_m2"]["mapped"] == pytest.approx(800, rel=1e-3)

    def ring(x):
        return square(x).difference(square(x + 1, 1, 8))

    expected = [ring(0).intersection(ring(s)).area / ring(0).union(ring(s)).area for s in shares]
    assert result.boundary_iou == pytest.approx(np.mean(expected), abs=1e-3)
    assert objects["boundary_iou"] == result.boundary_iou


def test_suspects_are_a_cover_with_reasons(compared, tmp_path):
    mapped = [square(300 * number) for number in range(20)]
    predicted = [translate(house, 0.2) for house in mapped[1:]] + [square(0, 300), square(0, 315)]
    result, found = compared(mapped, predicted, suspects=tmp_path / "suspects.csv", zoom=19, worst=14)
    lines = (tmp_path / "suspects.csv").read_text().splitlines()
    assert [each["status"] for each in found[:3]] == ["gone", "missing_on_map", "missing_on_map"]
    assert result.suspects == math.ceil(0.14 * 22) - 1  # the fourth has a score of 0
    rows = [line.split(",") for line in lines]
    assert [row[3] for row in rows] == ["gone", "missing_on_map"]  # two of them lie in one tile
    assert [float(row[4]) for row in rows] == [found[0]["score"], found[1]["score"]]
    point = shapely.get_coordinates(shapely.centroid(to_map(mapped[0])))[0]
    side = 2 * math.pi * RADIUS / 2**19
    there = Tile(int((point[0] / side) + 2**18), int(2**18 - point[1] / side), 19)
    assert read_cover(tmp_path / "suspects.csv")[0] == there
    assert compared(mapped, predicted, suspects=tmp_path / "suspects.csv", zoom=19, worst=9)[0].suspects == 2


def test_slivers_come_after_houses_and_pairs_after_both(compared):
    mapped = [square(100 * number) for number in range(40)]
    predicted = [translate(house, 0.3, 0.1) for house in mapped[1:]]
    predicted += [square(0, 200, 12, 1.2), square(100, 200, 12, 8)]
    _, found = compared(mapped, predicted)
    assert [each["status"] for each in found[:3]] == ["gone", "missing_on_map", "matched"]
    assert found[0]["score"] > 0.8 and found[1]["score"] > 0.7
    sliver = next(each for each in found if each["area_m2"] < 20)
    assert sliver["evidence"] == 0 and sliver["score"] == 0


def test_what_is_normal_for_its_size_is_no_suspect(compared):
    """Sheds are hardly ever found, and houses are: one that is not found is worse than a shed."""
    sheds = [square(30 * number, 100, 3) for number in range(300)]
    houses = [square(30 * number, 0, 12) for number in range(300)]
    found_sheds = [translate(shed, 0.8) for shed in sheds[::5]]
    found_houses = [translate(house, 0.8) for house in houses[1:]]
    _, found = compared(sheds + houses, found_sheds + found_houses)
    assert (found[0]["status"], found[0]["area_m2"] > 100) == ("gone", True)
    sheds = [each["score"] for each in found if each["status"] == "gone" and each["area_m2"] < 100]
    assert len(sheds) == 240 and max(sheds) < 0.35


def test_an_object_that_moved_is_more_suspicious_where_others_fit_better(compared):
    mapped = [square(50 * number) for number in range(100)]
    close = [translate(house, 0.1) for house in mapped[1:]] + [translate(mapped[0], 3)]
    loose = [translate(house, 2.5 + 0.01 * number) for number, house in enumerate(mapped[1:])] + close[-1:]
    (first, *_), (other, *_) = compared(mapped, close)[1], compared(mapped, loose)[1]
    assert first["mapped"] == "0" and first["score"] > 0.5
    assert other["score"] < 0.5


def test_only_classes_that_are_the_same_belong_together(tmp_path):
    roofs = [square(), square(100), square(200)]
    titles = ["house", "barn", "house"]
    write(tmp_path / "m.json", roofs, [{"class": title} for title in titles])
    write(tmp_path / "p.json", roofs, [{"class": title} for title in ("house", "house", "barn")])
    places = {"mapped": tmp_path / "m.json", "predicted": tmp_path / "p.json"}
    result = changes(tmp_path / "out.json", **places)
    assert (result.matched, result.gone, result.missing_on_map) == (1, 2, 2)
    assert {each["class"] for _, each in read(tmp_path / "out.json")} == {"house", "barn"}
    result = changes(tmp_path / "out.json", kind="House", **places)
    assert (result.mapped, result.predicted, result.matched) == (2, 2, 1)
    assert result.skipped == {"another class": 2}
    # A map that calls its classes otherwise is compared as a whole.
    write(tmp_path / "m.json", roofs, [{"class": "residential"}] * 3)
    assert changes(tmp_path / "out.json", **places).matched == 3


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".fgb", ".gpkg", ".parquet"])
def test_formats_have_crs_and_types(tmp_path, suffix):
    import pyogrio

    write(tmp_path / f"m{suffix}", [square(), square(100)])
    write(tmp_path / f"p{suffix}", [square(1), square(200, 0, 20)])
    out = tmp_path / f"out{suffix}"
    result = changes(out, mapped=tmp_path / f"m{suffix}", predicted=tmp_path / f"p{suffix}")
    assert (result.matched, result.gone, result.missing_on_map) == (1, 1, 1)
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(out)
        names, kinds = table.schema.names, dict(zip(table.schema.names, map(str, table.schema.types), strict=True))
        assert kinds["score"] == "double" and kinds["cut"] == "bool" and "string" in kinds["status"]
        scores, statuses = (table[name].to_pylist() for name in ("score", "status"))
    else:
        meta, _, geometries, columns = pyogrio.raw.read(out)
        names = list(meta["fields"])
        assert meta["crs"] == "EPSG:4326" and meta["geometry_type"] == "Polygon" and len(geometries) == 3
        scores, statuses = (list(columns[names.index(name)]) for name in ("score", "status"))
        kinds = dict(zip(names, meta["dtypes"], strict=True))
        assert kinds["score"] == "float64" and kinds["status"] == "object" and kinds["cut"] in ("bool", "int8")
    assert {*names} >= {"status", "score", "class", "iou", "offset_m", "area_m2", "support", "evidence", "mapped"}
    assert sorted(statuses) == ["gone", "matched", "missing_on_map"]
    if suffix != ".fgb":  # its spatial index has an order of its own
        assert statuses[-1] == "matched" and scores == sorted(scores, reverse=True)


# --- hostile inputs -----------------------------------------------------------------------------------------


def features(path, geometries, crs=None):
    listed = [
        {"type": "Feature", "properties": None, "geometry": mapping(each) if each else None} for each in geometries
    ]
    text = {"type": "FeatureCollection", "features": listed}
    if crs:
        text["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(text))
    return path


def test_what_is_no_polygon_is_counted_and_what_is_invalid_is_repaired(tmp_path, rsp):
    roof = to_degrees(square())
    bow = to_degrees(Polygon([(100, 0), (110, 10), (110, 0), (100, 10)]))
    features(
        tmp_path / "m.json", [LineString([(0, 0), (1, 1)]), None, roof, Point(0, 0), bow, MultiPolygon([roof])]
    )
    features(tmp_path / "p.json", [roof])
    out = tmp_path / "out.json"
    ran = rsp("changes", "--mapped", tmp_path / "m.json", "--predicted", tmp_path / "p.json", out)
    assert ran.code == 0
    assert "1 features of --mapped" in ran.stderr and "LineString" in ran.stderr and "null geometry" in ran.stderr
    found = [each for _, each in read(out)]
    assert sorted(number for each in found for number in each["mapped"].split(",")) == ["2", "4", "5"]
    assert next(each for each in found if each["mapped"] == "4")["area_m2"] == pytest.approx(50, rel=1e-3)


def test_a_side_without_objects(compared, tmp_path, rsp, capsys):
    result, _ = compared([], [square()])
    assert (result.missing_on_map, result.precision, result.recall, result.f1) == (1, 0.0, None, 0.0)
    assert "no polygon in --mapped" in capsys.readouterr().err
    assert compared([square()], [])[0].gone == 1
    with pytest.raises(FeatureError, match="no polygon, neither in"):
        compared([], [])
    (tmp_path / "nothing.json").write_text("")
    ran = rsp(
        "changes", "--mapped", tmp_path / "nothing.json", "--predicted", tmp_path / "nothing.json", tmp_path / "o"
    )
    assert ran.code == 1 and "nothing.json" in ran.stderr


def test_other_crs(tmp_path):
    roofs = [square(), square(100)]
    features(tmp_path / "m.json", [to_map(each) for each in roofs], "urn:ogc:def:crs:EPSG::3857")
    features(tmp_path / "plain.json", [to_map(each) for each in roofs])
    write(tmp_path / "p.json", roofs)
    out = tmp_path / "out.json"
    result = changes(out, mapped=tmp_path / "m.json", predicted=tmp_path / "p.json")
    assert (result.matched, result.objects) == (2, 2)
    with pytest.raises(FeatureError, match=r"plain\.json.*it looks like metres: give --crs"):
        changes(out, mapped=tmp_path / "plain.json", predicted=tmp_path / "p.json")
    assert (
        changes(out, mapped=tmp_path / "plain.json", predicted=tmp_path / "p.json", crs="EPSG:3857").matched == 2
    )


def test_both_sides_of_the_antimeridian_meet(tmp_path):
    one, other = box(179.9998, 10, 180.0001, 10.0002), box(-180.0002, 10, -179.9999, 10.0002)
    features(tmp_path / "m.json", [one])
    features(tmp_path / "p.json", [other])
    assert changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=tmp_path / "p.json").matched == 1


def test_two_places_are_said(compared, capsys):
    compared([square()], [square(5000)])
    assert "are both of the same place?" in capsys.readouterr().err


def test_what_makes_no_sense_is_refused(tmp_path, compared):
    with pytest.raises(UsageError, match="--suspects needs --zoom"):
        compared([square()], [square()], suspects=tmp_path / "s.csv")
    for name, value in (("iou", 0.0), ("max_offset", -1), ("worst", 101), ("zoom", 31)):
        with pytest.raises(UsageError, match=f"--{name} is from"):
            compared([square()], [square()], **{name: value})
    for name in "ab":
        write(tmp_path / f"{name}.json", [square()])
    with pytest.raises(FeatureError, match="names 2 files"):
        changes(tmp_path / "o.geojson", mapped=str(tmp_path / "?.json"), predicted=tmp_path / "a.json")


# --- what polygons share ------------------------------------------------------------------------------------

CORNERS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=9)


def areal(corners, hole):
    """Return a valid polygon, or several, on a grid: corners and edges of two of them are often the same."""
    found = shapely.make_valid(Polygon(corners), method="structure", keep_collapsed=False)
    return found.difference(box(2, 2, 3, 3)) if hole else found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CORNERS, CORNERS, st.booleans(), st.integers(-2, 2)), min_size=1, max_size=8))
def test_areas_that_are_shared_are_those_of_overlays(drawn):
    pairs = [
        [translate(each, X, Y) for each in (areal(one, hole), translate(areal(other, False), by))]
        for one, other, hole, by in drawn
    ]
    some = [pair for pair in pairs if all(each.area and each.geom_type.endswith("Polygon") for each in pair)]
    one, other = (
        (np.array([*column, None], object)[:-1] for column in zip(*some, strict=True)) if some else ([], [])
    )
    if some:
        expected = shapely.area(shapely.intersection(one, other))
        assert overlap(one, other) == pytest.approx(expected, abs=1e-6)


def test_polygons_of_many_edges_are_overlaid(monkeypatch):
    round_ones = np.array([Point(X, Y).buffer(10, 64), Point(X, Y).buffer(10, 4)])
    others = shapely.transform(round_ones, lambda points: points + np.array([7, 0]))
    expected = shapely.area(shapely.intersection(round_ones, others))
    assert overlap(round_ones, others) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("rsp.shared.overlap._summed", lambda one, other: np.zeros(len(one)))
    assert overlap(round_ones, others) == pytest.approx([expected[0], 0])


# --- planted errors -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def houses():
    """The footprints of a generated town, in metres on the ground."""
    from examples.town.plan import plan_town

    found = [building.footprint for building in plan_town((600.0, 600.0), 3).buildings]
    return [each for each in found if each.geom_type == "Polygon" and each.area > 4]


def seen(house, rng):
    """Return a house as a model sees it: its outline off by tens of centimetres, all around and point by point."""
    grown = house.buffer(rng.normal(0, 0.25), join_style="mitre").segmentize(2.0)
    if grown.geom_type != "Polygon" or grown.is_empty:
        return Polygon()
    points = np.array(grown.exterior.coords)[:-1]
    found = Polygon(points + rng.normal(0, 0.25, points.shape)).buffer(0)
    return found if found.geom_type == "Polygon" else max(found.geoms, key=lambda part: part.area)


def damaged(houses, rng):
    """Return a map with 40 errors of four kinds, which of its objects are wrong, and the houses that it lacks."""
    large = [number for number, house in enumerate(houses) if house.area > 25]
    wrong = dict(
        zip(rng.permutation(large)[:40].tolist(), ["missing", "moved", "extra", "misshapen"] * 10, strict=True)
    )
    found, marked, missing = [], [], []
    for number, house in enumerate(houses):
        kind = wrong.get(number)
        west, south, east, north = house.bounds
        if kind == "missing":
            missing.append(house)
            continue
        if kind == "moved":
            angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(3, 8)
            house = translate(house, far * math.cos(angle), far * math.sin(angle))
        if kind == "misshapen":
            house = house.intersection(box(west, south, west + 0.55 * (east - west), north))
        if kind == "extra":
            found.append(house)
            place = rng.uniform(-290, 290, (200, 2))
            sizes = rng.uniform(6, 14, (200, 2))
            trials = [rotate(box(x, y, x + w, y + h), 30) for (x, y), (w, h) in zip(place, sizes, strict=True)]
            house = next(trial for trial in trials if not shapely.intersects(trial, houses).any())
        if kind:
            marked.append(len(found))
        found.append(house)
    return found, marked, missing


def test_planted_errors_are_among_the_worst(houses, compared, tmp_path):
    """Of a town that was seen with the faults of a model: houses that are missed, halved, or not there at all."""
    rng = np.random.default_rng(5)
    predicted = [found for house in houses if rng.random() > 0.02 and (found := seen(house, rng)).area > 1]
    for _ in range(len(houses) // 12):
        x, y = rng.uniform(-290, 290, 2)
        predicted.append(rotate(box(x, y, x + rng.uniform(2, 8), y + rng.uniform(0.8, 2.2)), rng.uniform(0, 180)))
    mapped, marked, missing = damaged(houses, rng)
    _, found = compared(mapped, predicted)
    worst = found[: math.ceil(0.15 * len(found))]
    numbers = {int(number) for each in worst for number in each["mapped"].split(",") if number}
    extra = [
        predicted[int(number)] for each in worst if not each["mapped"] for number in each["predicted"].split(",")
    ]
    hits = len(numbers & set(marked)) + sum(shapely.intersects(extra, house).any() for house in missing)
    assert len(marked) + len(missing) == 40
    assert hits >= 36
    random.Random(1).shuffle(found)
    assert hits > 2 * len(worst) * 40 / len(found)  # chance


# --- masks, probabilities, and their borders ----------------------------------------------------------------

Z, SIZE = 18, 256
# The tile of the corner, and how many metres on the ground its pixels have.
SIDE = 2 * math.pi * RADIUS / 2**Z
CORNER = Tile(int((X + math.pi * RADIUS) / SIDE), int((math.pi * RADIUS - Y) / SIDE), Z)
WEST, SOUTH = CORNER.x * SIDE - math.pi * RADIUS, math.pi * RADIUS - (CORNER.y + 1) * SIDE


def pixels(west, south, east, north):
    """Return a box of whole pixels of the tiles from CORNER on, to the east and to the north, in our metres."""
    metres = box(*(np.array([west, south, east, north]) * SIDE / SIZE + [WEST, SOUTH, WEST, SOUTH]))
    return shapely.transform(metres, lambda points: (points - [X, Y]) / [EAST, NORTH])


def rastered(path, boxes, columns=2, rows=1, bands=None, skip=(), told=False):
    """Write masks, or with `bands` probabilities, of boxes of pixels with their values."""
    shape_ = (rows * SIZE, columns * SIZE) if bands is None else (rows * SIZE, columns * SIZE, bands)
    whole = np.zeros(shape_, np.uint8)
    for (west, south, east, north), value in boxes:
        whole[rows * SIZE - north : rows * SIZE - south, west:east] = value
    form = "tif" if bands == 2 else "png"
    with open_writer(path, form) as writer:
        if told:
            classes = [{"title": "background", "color": "#ffffff"}, {"title": "building", "color": "#ff1493"}]
            writer.describe({"classes": classes})
        for column in range(columns):
            for row in range(rows):
                if (column, row) not in skip:
                    top = (rows - 1 - row) * SIZE
                    part = whole[top : top + SIZE, column * SIZE : (column + 1) * SIZE]
                    data = encode_mask(part, [*COLORS, (99, 99, 99)]) if bands is None else encode(part, form)
                    writer.write(Tile(CORNER.x + column, CORNER.y - row, Z), data)
    return path


HOUSES = [(20, 20, 60, 60), (100, 100, 140, 150), (230, 60, 280, 90)]  # the last one in both tiles


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_masks_are_the_features_that_vectorize_makes(tmp_path, config):
    masks = rastered(tmp_path / "masks", [(each, 1) for each in HOUSES])
    write(tmp_path / "m.json", [*(pixels(*each) for each in HOUSES[1:]), pixels(700, 20, 740, 60)])
    vectorize(masks, tmp_path / "p.json", kind="building", config=config)
    result = changes(tmp_path / "a.json", mapped=tmp_path / "m.json", predicted=masks, config=config)
    changes(tmp_path / "b.json", mapped=tmp_path / "m.json", predicted=tmp_path / "p.json", masks=masks)
    assert (result.tiles, result.matched, result.missing_on_map, result.outside) == (2, 2, 1, 1)
    ours, theirs = read(tmp_path / "a.json"), read(tmp_path / "b.json")
    assert [each["predicted"] for _, each in ours] == [each["predicted"] for _, each in theirs]
    for (one, first), (other, second) in zip(ours, theirs, strict=True):
        assert one.equals_exact(other, 1e-9) and first == second
    assert [each["iou"] for _, each in ours[1:]] == pytest.approx([1, 1], abs=0.002)


def test_outside_of_the_masks_nothing_is_said(tmp_path, config):
    """A house beyond them is left out; of one on their border the part that is inside counts, and that less."""
    masks = rastered(tmp_path / "masks", [((20, 20, 60, 60), 1), ((100, 0, 140, 50), 1)], columns=1)
    write(
        tmp_path / "m.json",
        [pixels(400, 20, 440, 60), pixels(20, 20, 60, 60), pixels(100, -50, 140, 50), pixels(226, 100, 266, 140)],
    )
    out, suspects = tmp_path / "out.json", tmp_path / "s.csv"
    result = changes(out, mapped=tmp_path / "m.json", predicted=masks, config=config, suspects=suspects, worst=100)
    found = {each["mapped"]: (geometry, each) for geometry, each in read(out)}
    assert (result.tiles, result.outside, result.mapped, set(found)) == (1, 1, 3, {"1", "2", "3"})
    assert {number: each["cut"] for number, (_, each) in found.items()} == {"1": False, "2": True, "3": True}
    assert found["2"][1]["status"] == "matched" and found["2"][1]["iou"] > 0.98
    gone, each = found["3"]
    assert each["status"] == "gone" and each["area_m2"] == pytest.approx(ground_area(gone), rel=1e-3)
    assert gone.area / to_degrees(pixels(226, 100, 256, 140)).area == pytest.approx(1, abs=0.001)
    # Three quarters of it are known: half of that, of one that would be as good as certain.
    assert each["score"] == pytest.approx(0.5 * 0.75 * 0.9, abs=0.03)
    # The zoom is that of the masks.
    assert {tile.z for tile in read_cover(suspects)} == {Z}


def test_a_house_that_ends_at_the_border_is_cut_by_it(tmp_path, config):
    masks = rastered(tmp_path / "masks", [((236, 20, 256, 60), 1), ((200, 100, 250, 150), 1)], columns=1)
    write(tmp_path / "m.json", [pixels(20, 20, 60, 60)])
    changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=masks, config=config)
    assert [each["cut"] for _, each in read(tmp_path / "out.json") if each["predicted"]] == [False, True]


def test_of_a_row_the_border_cuts_only_what_it_meets(tmp_path, config):
    """Of five houses, the last of which ends at it, the third and the last are not mapped."""
    masks = rastered(tmp_path / "masks", [((56, 20, 256, 60), 1)], columns=1)
    houses = [pixels(west, 20, west + 40, 60) for west in (56, 96, 176)]
    write(tmp_path / "m.json", houses)
    changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=masks, config=config)
    found = {each["mapped"]: [] for _, each in read(tmp_path / "out.json")}
    for geometry, each in read(tmp_path / "out.json"):
        found[each["mapped"]].append((round(float(shapely.bounds(geometry)[0]), 5), each["cut"]))
    inner, edge = (round(to_degrees(pixels(west, 20, west + 40, 60)).bounds[0], 5) for west in (136, 216))
    assert sorted(found[""]) == [(inner, False), (edge, True)]
    assert [cut for _, cut in found["0,1,2"]] == [True]


def test_support_and_evidence_are_probabilities_where_there_are(tmp_path, config):
    """Means over the pixels whose centres are inside: over two tiles, around a courtyard, and without a tile."""
    masks = rastered(tmp_path / "masks", [(HOUSES[0], 1)])
    values = [
        *([(0, 0, 512, 256), (245, 10)], [HOUSES[0], (51, 204)]),
        *([(230, 60, 256, 90), (155, 100)], [(256, 60, 280, 90), (205, 50)]),
        *([(100, 100, 140, 150), (0, 255)], [(110, 110, 130, 140), (255, 0)]),
    ]
    probabilities = rastered(tmp_path / "probabilities", values, bands=2)
    ring = pixels(*HOUSES[1]).difference(pixels(110, 110, 130, 140))
    write(tmp_path / "m.json", [pixels(*HOUSES[2]), ring, pixels(10, 200, 50, 240)])
    out = tmp_path / "out.json"
    places = {"mapped": tmp_path / "m.json", "predicted": masks, "config": config}
    changes(out, probabilities=probabilities, **places)
    found = {(each["mapped"], each["predicted"]): each for _, each in read(out)}
    expected = (26 * 100 + 24 * 50) / 50 / 255
    assert found["0", ""]["support"] == pytest.approx(expected, abs=1e-3)
    assert found["1", ""]["support"] == 1 and found["2", ""]["support"] == pytest.approx(10 / 255, abs=1e-4)
    side = 40 * SIDE / SIZE / EAST
    assert found["", "0"]["evidence"] == pytest.approx((side - 2) ** 2 / side**2 * 204 / 255, abs=0.003)
    # What has no pixels is measured by the masks alone.
    part = rastered(tmp_path / "part", values, bands=2, skip=[(0, 0)])
    changes(out, probabilities=part, **places)
    found = {(each["mapped"], each["predicted"]): each for _, each in read(out)}
    assert found["1", ""]["support"] == 0
    assert found["0", ""]["support"] == 0  # less than half of it has pixels
    assert found["", "0"]["evidence"] == pytest.approx((side - 2) ** 2 / side**2, abs=0.003)


def test_probabilities_of_another_kind_fail_tile_by_tile(tmp_path, config, rsp):
    masks = rastered(tmp_path / "masks", [(HOUSES[0], 1)])
    probabilities = rastered(tmp_path / "three", [], bands=3)
    write(tmp_path / "m.json", [pixels(*HOUSES[0])])
    ran = rsp(
        *("changes", "--mapped", tmp_path / "m.json", "--predicted", masks, "--probabilities", probabilities),
        *("--config", config, tmp_path / "out.json"),
    )
    assert ran.code == 3 and "with 2 bands of uint8" in ran.stderr
    assert read_cover(tmp_path / "out.json.failed.csv") == [CORNER]
    assert [each["status"] for _, each in read(tmp_path / "out.json")] == ["matched"]


def test_a_mask_that_cannot_be_read_says_nothing_of_its_tile(tmp_path, config, rsp):
    masks = rastered(tmp_path / "masks", [(HOUSES[0], 1), ((400, 20, 440, 60), 1)])
    next((masks / f"{Z}/{CORNER.x + 1}").iterdir()).write_bytes(b"nothing")
    write(tmp_path / "m.json", [pixels(*HOUSES[0]), pixels(400, 20, 440, 60)])
    out = tmp_path / "out.json"
    ran = rsp("changes", "--mapped", tmp_path / "m.json", "--predicted", masks, "--config", config, out)
    assert ran.code == 3 and read_cover(tmp_path / "out.json.failed.csv") == [Tile(CORNER.x + 1, CORNER.y, Z)]
    assert [(each["mapped"], each["status"]) for _, each in read(out)] == [("0", "matched")]


def test_swapped_axes_are_found_by_where_the_masks_are(tmp_path, config, capsys):
    masks = rastered(tmp_path / "masks", [(HOUSES[0], 1)])
    house = to_degrees(pixels(*HOUSES[0]))
    features(tmp_path / "m.json", [shapely.transform(house, lambda points: points[:, ::-1])])
    with pytest.raises(FeatureError, match="with latitude and longitude swapped they would"):
        changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=masks, config=config)
    write(tmp_path / "m.json", [square(9000, 9000)])
    result = changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=masks, config=config)
    assert (result.outside, result.mapped, result.missing_on_map) == (1, 0, 1)
    assert "lies in the 2 tiles of the masks" in capsys.readouterr().err


def test_of_several_classes_one_is_named(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.replace("[model]", '[[classes]]\ntitle = "road"\ncolor = "gray"\n\n[model]'))
    masks = rastered(tmp_path / "masks", [(HOUSES[0], 1), (HOUSES[1], 2)])
    write(tmp_path / "m.json", [pixels(*each) for each in HOUSES[:2]])
    places = {"mapped": tmp_path / "m.json", "predicted": masks, "config": config}
    with pytest.raises(UsageError, match="holds the classes building, road: say with --type"):
        changes(tmp_path / "out.json", **places)
    assert changes(tmp_path / "out.json", kind="road", **places).matched == 1
    assert changes(tmp_path / "out.json", kind="building,road", **places).matched == 2
    assert {each["class"] for _, each in read(tmp_path / "out.json")} == {"building", "road"}
    with pytest.raises(UsageError, match=r"takes features, and .* is a tile set: run `rsp vectorize` first"):
        changes(tmp_path / "out.json", mapped=masks, predicted=masks, config=config)


def test_a_polygon_as_wide_as_the_world(tmp_path, config):
    """It is cut to the tiles that there are, not looked up in each tile that it has."""
    masks = rastered(tmp_path / "masks", [(HOUSES[0], 1)])
    features(tmp_path / "m.json", [box(-180, -85, 180, 85)])
    changes(tmp_path / "out.json", mapped=tmp_path / "m.json", predicted=masks, config=config)
    (each,) = (each for _, each in read(tmp_path / "out.json") if each["mapped"])
    assert each["area_m2"] < 20_000_000 and each["cut"]


def test_component(tmp_path, run_component):
    masks = tmp_path / "masks.pmtiles"
    rastered(masks, [(each, 1) for each in HOUSES])
    write(tmp_path / "m.geojson", [pixels(*each) for each in HOUSES[1:]])
    config = parse_tables(CONFIG, "the test")
    done = run_component(changes_component, {"mapped": tmp_path / "m.geojson", "predicted": masks}, config=config)
    found = [each for _, each in read(done.path("changes"))]
    assert [each["status"] for each in found] == ["missing_on_map", "matched", "matched"]
    assert read_cover(done.path("suspects")) == [CORNER]
    assert done.artifacts["changes"]["metadata"]["missing_on_map"] == 1
    assert done.artifacts["metrics"]["metadata"]["recall"] == 1
    assert json.loads(done.path("evaluation").read_text())["objects"]["f1"] == 0.8


def test_the_commands_of_the_page_run(tmp_path, follow):
    text = page("changes")
    rastered(tmp_path / "images", [], bands=3)
    rastered(tmp_path / "masks.pmtiles", [(HOUSES[0], 1)], told=True)
    rastered(tmp_path / "probabilities.pmtiles", [(HOUSES[0], (0, 255))], bands=2, told=True)
    for name in ("buildings", "buildings_2020", "buildings_2025"):
        write(
            tmp_path / f"{name}.geojson",
            [pixels(*each) for each in HOUSES[: 2 if name == "buildings_2020" else 3]],
        )
    follow(commands(text))
    assert [each["status"] for _, each in read(tmp_path / "changes.geojson")] == ["gone", "gone", "matched"]
    # What the page says of the statuses and the properties is what there is.
    said = re.findall(r"^\| (`.*?) \|", text, re.M)
    names = {name for cell in said for name in re.findall(r"`(\w+)`", cell)}
    assert names == set(STATUSES) | set(SCHEMA) - {"status", "class"}
