"""rsp vectorize --lines: centre lines of roads that are drawn, over the edges of tiles, in each format."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString, MultiLineString, Point, box

from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.components.vectorize.tool import vectorize
from rsp.shared.config import parse_tables
from rsp.shared.errors import UsageError
from rsp.shared.ground import scale
from rsp.shared.images import encode
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_writer
from tests.components.test_vectorize import X, Y, Z, to_pixels, write_masks
from tests.tilesets import CONFIG

SIZE = 64
TABLES = CONFIG.replace("[model]", '[[classes]]\ntitle="road"\ncolor="grey"\n[model]')
ROAD = 2


def draw(lines, width, side=4 * SIZE):
    """Return roads with flat ends, in an image of so many pixels."""
    shapes = [(line.buffer(width / 2, cap_style="flat"), ROAD) for line in lines]
    return rasterio.features.rasterize(shapes, (side, side), dtype="uint8")


def run(folder, array, out="out.json", size=SIZE, zoom=Z, skip=(), **options):
    (folder / "config.toml").write_text(TABLES)
    masks = write_masks(folder / f"{size}", array, size, skip, zoom, X >> Z - zoom, Y >> Z - zoom)
    given = {"kind": "road", "lines": "road", "config": folder / "config.toml", "workers": 1} | options
    return vectorize(masks, folder / out, **given)


def read(path, size=SIZE):
    """Return (geometry in pixels of the array, properties) of each feature."""
    features = json.loads(Path(path).read_text())["features"]
    return [
        (to_pixels(shapely.from_geojson(json.dumps(each["geometry"])), size=size), each["properties"])
        for each in features
    ]


def lines_of(array, **options):
    with TemporaryDirectory() as folder:
        run(Path(folder), array, **options)
        return read(Path(folder) / "out.json")


def metre(y=2 * SIZE):
    """Return how many metres on the ground a pixel is in a row of the array."""
    side = AROUND / (SIZE << Z)
    return side / scale(np.array([HALF - (Y * SIZE + y) * side]))[0].mean()


NETWORKS = {
    "cross": ([LineString([(10, 125), (240, 131)]), LineString([(128, 15), (120, 245)])], 4),
    "T": ([LineString([(10, 50), (240, 50)]), LineString([(100, 50), (115, 240)])], 3),
    "curve": ([LineString([(30 + 180 * t, 128 + 75 * np.sin(4 * t)) for t in np.linspace(0, 1, 60)])], 1),
    "ring": ([LineString(Point(128, 128).buffer(85).exterior.coords)], 1),
    "diagonal": ([LineString([(20, 30), (235, 200)])], 1),
}


@pytest.mark.parametrize("width", [4, 7, 12])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_drawn(name, width):
    """One line between junctions however many tiles it lies in, as long and as wide as it is, and in its place."""
    drawn, count = NETWORKS[name]
    found = lines_of(draw(drawn, width))
    together, truth = MultiLineString([line for line, _ in found]), shapely.union_all(drawn)
    assert len(found) == count and max(properties["tiles"] for _, properties in found) > 1
    assert together.length == pytest.approx(truth.length, rel=0.03)
    assert shapely.hausdorff_distance(shapely.segmentize(together, 1), shapely.segmentize(truth, 1)) < 2.5
    for line, properties in found:
        assert properties["length_m"] == pytest.approx(line.length * metre(), rel=0.005)
        assert properties["width_m"] == pytest.approx(width * metre(), abs=metre())
        assert properties["class"] == "road" and "area_m2" not in properties
        assert len(line.coords) < 40
        assert line.is_closed == (name == "ring")


def test_lines_meet_in_one_junction():
    """Four roads, of which no two are opposite: what thinning makes two junctions of is one."""
    roads = [
        LineString([(128, 128), (128 + 100 * x, 128 + 100 * y)])
        for x, y in ((1, 0.2), (-1, 0.3), (0.3, 1), (0.1, -1))
    ]
    found = lines_of(draw(roads, 10))
    ends = {tuple(np.round(point, 2)) for line, _ in found for point in (line.coords[0], line.coords[-1])}
    middle = [end for end in ends if Point(end).distance(Point(128, 128)) < 10]
    assert len(found) == 4 and len(middle) == 1


def ragged(seed, side=4 * SIZE):
    """Return roads of a model: crossing as they like, with edges that are not straight, lone pixels and holes."""
    rng = np.random.default_rng(seed)
    roads = [LineString(rng.uniform(0, side, (rng.integers(2, 4), 2))) for _ in range(rng.integers(1, 6))]
    shapes = [(road.buffer(rng.uniform(1, 5)), 1) for road in roads]
    drawn = rasterio.features.rasterize(shapes, (side, side), dtype="uint8") == 1
    return (drawn ^ (rng.random(drawn.shape) < rng.choice([0, 0.01, 0.03]))).astype(np.uint8) * ROAD


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0.0, 1.0]))
def test_tiles_have_the_lines_of_the_mosaic(seed, min_area, simplify):
    array = ragged(seed)
    options = {"min_area": min_area, "simplify": simplify}
    tiles, mosaic = lines_of(array, **options), lines_of(array, size=2 * SIZE, zoom=Z - 1, **options)
    told = [
        sorted((line.wkb, each["length_m"], each["width_m"]) for line, each in found)
        for found in (
            [(to_pixels(line), each) for line, each in tiles],
            [(to_pixels(line), each) for line, each in mosaic],
        )
    ]
    assert told[0] == told[1] and told[0]


def test_a_road_with_ragged_edges_is_one_line():
    """Its bumps are no branches, and where it ends it does not bend to a corner."""
    rng = np.random.default_rng(0)
    array = np.zeros((4 * SIZE, 4 * SIZE), np.uint8)
    for column in range(20, 236):
        array[120 - rng.integers(0, 3) : 130 + rng.integers(0, 3), column] = ROAD
    array[115:120, 100:104] = ROAD  # half as far out as the road is wide
    ((line, _),) = lines_of(array)
    assert line.hausdorff_distance(LineString([(20, 125), (236, 125)])) < 3
    array[100:120, 100:104] = ROAD  # twice as far as it is wide
    assert len(lines_of(array)) == 3


def test_small_regions_and_holes_do_not_count():
    array = draw([LineString([(20, 100), (235, 100)])], 9)
    array[100, 90:93] = 0
    array[30:33, 126:132] = ROAD  # over the edge of two tiles
    least = 20 * metre() ** 2
    with TemporaryDirectory() as folder:
        result = run(Path(folder), array, min_area=least)
        ((line, _),) = read(Path(folder) / "out.json")
    assert (
        result.features == 1 and result.dropped == 1 and result.length_m == pytest.approx(215 * metre(), rel=0.01)
    )
    assert line.hausdorff_distance(LineString([(20, 100), (235, 100)])) < 1.5
    # A hole and a region that are large enough: the road goes around on both sides, and there is another one.
    assert len(lines_of(array, min_area=2 * metre() ** 2)) == 5
    assert len(lines_of(array, min_area=0)) == 5


def test_a_mask_that_is_missing_ends_lines(tmp_path):
    array = draw([LineString([(10, 100), (240, 110)])], 6)
    result = run(tmp_path, array, skip={(1, 1)})
    (west, _), (east, _) = read(tmp_path / "out.json")
    assert result.merged == 1 and result.features == 2
    assert west.bounds[2] == pytest.approx(SIZE, abs=1.2) and east.bounds[0] == pytest.approx(2 * SIZE, abs=1.2)


def test_not_merged_they_end_on_the_edges_of_tiles(tmp_path):
    array = draw([LineString([(10, 100), (240, 110)])], 6)
    assert run(tmp_path, array, merge=False).features == 4
    found = read(tmp_path / "out.json")
    assert [each["tiles"] for _, each in found] == [1] * 4
    for line, each in found:
        assert (
            line & box(*(SIZE * (each["x"] - X), SIZE * (each["y"] - Y)), SIZE * (each["x"] - X + 1), 256)
        ).equals(line)
    assert sum(line.length for line, _ in found) == pytest.approx(230, abs=5)


def test_cleaned_first():
    """What `denoise` removes has no line, and what `grow` fills has one."""
    array = draw([LineString([(10, 100), (240, 100)])], 8)
    array[40:100, 118:120] = ROAD
    array[:, 60:62] = 0
    assert len(lines_of(array)) == 4
    ((line, _),) = lines_of(array, denoise=3, grow=4)
    assert line.length == pytest.approx(230, abs=3)


def test_simplified_by_so_much():
    drawn, _ = NETWORKS["curve"]
    counts = [
        len(line.coords) for simplify in (0, 1, 4) for line, _ in lines_of(draw(drawn, 7), simplify=simplify)
    ]
    assert counts[0] > 150 > 40 > counts[1] > counts[2]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_types_of_geometry_in_tables(tmp_path, suffix):
    """Lines alone are of the type of lines; with outlines of other classes there is no one type."""
    array = draw(NETWORKS["T"][0], 6)
    array[200:220, 20:50] = 1
    own, both = (tmp_path / f"{name}{suffix}" for name in ("own", "both"))
    run(tmp_path, array, own.name)
    result = run(tmp_path, array, both.name, kind="building,road")
    assert (result.features, result.merged) == (4, 3) and result.area_m2 == pytest.approx(
        600 * metre(210) ** 2, rel=0.01
    )
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        geo = [json.loads(pq.read_metadata(path).metadata[b"geo"]) for path in (own, both)]
        kinds = [each["columns"]["geometry"]["geometry_types"] for each in geo]
        assert kinds == [["LineString"], ["LineString", "Polygon"]]
        fields = [pq.read_schema(path).names[:-1] for path in (own, both)]
        rows = pq.read_table(both).to_pylist()
    else:
        info = [pyogrio.read_info(path) for path in (own, both)]
        assert [each["geometry_type"] for each in info] == ["LineString", "Unknown"]
        fields = [each["fields"].tolist() for each in info]
        rows = pyogrio.read_arrow(both)[1].to_pylist()
    plain = ["class", "x", "y", "z", "tiles"]
    assert fields == [[*plain, "length_m", "width_m"], [*plain, "area_m2", "length_m", "width_m"]]
    for row in rows:
        assert (row["area_m2"] is None) == (row["length_m"] is not None) == (row["class"] == "road")


def test_the_probability_is_the_mean_along_the_line(tmp_path):
    array = draw([LineString([(0, 100), (256, 100)])], 7)
    planes = np.zeros((*array.shape, 3), np.uint8)
    planes[..., ROAD] = np.arange(256)
    with open_writer(tmp_path / "probabilities", "tif") as writer:
        for row in range(4):
            for column in range(4):
                part = planes[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
                writer.write(Tile(X + column, Y + row, Z), encode(np.ascontiguousarray(part), "tif"))
    run(tmp_path, array, probabilities=tmp_path / "probabilities")
    ((_, properties),) = read(tmp_path / "out.json")
    assert properties["probability"] == pytest.approx(0.5, abs=0.005) and properties["tiles"] == 4


def test_the_same_bytes_for_any_number_of_processes(tmp_path):
    for workers in (1, 2):  # a layer has the name of its file
        (tmp_path / f"{workers}").mkdir()
        run(tmp_path / f"{workers}", ragged(5, 8 * 16), "out.fgb", size=16, workers=workers)
    assert (tmp_path / "1/out.fgb").read_bytes() == (tmp_path / "2/out.fgb").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"regularize": "road"}, "--lines road: lines have no outlines"),
        ({"shared_borders": True}, "--shared_borders"),
        ({"merge_distance": 2.0}, "--merge_distance joins outlines, and --lines"),
        ({"kind": "building"}, r"--lines road: no features of that class are asked for; add it to --type"),
    ],
)
def test_what_does_not_go_together(tmp_path, options, reason):
    with pytest.raises(UsageError, match=reason):
        run(tmp_path, draw(NETWORKS["T"][0], 6), **options)
    assert not (tmp_path / "out.json").exists()


def test_lines_at_the_command_line(tmp_path, rsp, run_component):
    array = draw(NETWORKS["cross"][0], 6)
    array[10:40, 10:40] = 1
    run(tmp_path, array, kind=["building", "road"])
    expected = (tmp_path / "out.json").read_bytes()
    given = ("--type", "building,road", "--lines", "road", "--config", tmp_path / "config.toml")
    assert rsp("vectorize", *given, tmp_path / f"{SIZE}", tmp_path / "again.json").code == 0
    assert (tmp_path / "again.json").read_bytes() == expected
    assert {each["geometry"]["type"] for each in json.loads(expected)["features"]} == {"LineString", "Polygon"}
    step = run_component(
        vectorize_component, {"masks": tmp_path / f"{SIZE}"},
        kind="building,road", lines="road", config=parse_tables(TABLES),
    )  # fmt: skip
    assert step.path("features").read_bytes() == expected
