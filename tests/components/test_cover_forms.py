"""rsp cover: every form of input and output, each with what exactly comes of it."""

from __future__ import annotations

import io
import json
import sys

import mercantile
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_bounds
from rasterio.warp import transform_bounds, transform_geom
from shapely.geometry import box, mapping, shape

from rsp.components.cover.outputs import extent_text, united, write_out
from rsp.components.cover.tool import cover
from rsp.shared.covers import Cover, cover_text, read_tiles, write_cover
from rsp.shared.errors import CoverError, RasterError, UsageError
from rsp.shared.tiles import Tile, bounds_lonlat
from tests.postgis import postgis
from tests.tilesets import CONFIG

BOX = "4.8,45.7,4.83,45.73"
TILES = Cover.of(mercantile.tiles(4.8, 45.7, 4.83, 45.73, 14))


@pytest.fixture
def typed(monkeypatch):
    """Have a text at standard input."""

    def type_in(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return type_in


def lines(cover: Cover) -> str:
    return b"".join(cover_text(cover)).decode()


def write_features(path, *geometries):
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(each)} for each in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


# --- boxes


@pytest.mark.parametrize(
    "words",
    [
        ["--bbox", BOX],
        ["--bbox", "4.8 45.7 4.83 45.73"],
        ["--bbox", "4.8, 45.7, 4.83, 45.73"],
        ["--bbox", "[4.8, 45.7, 4.83, 45.73]"],
        ["--bbox", "[4.8,45.7,-10,4.83,45.73,300]"],
        ["--bbox", "4.8", "45.7", "4.83", "45.73"],
        ["--bbox", "[4.8,", "45.7,", "4.83,", "45.73]"],
        ["--bbox", f"{BOX},EPSG:4326"],
        ["--bbox", f"{BOX},epsg:4326"],
        ["--bbox", "4.8", "45.7", "4.83", "45.73", "EPSG:4326"],
        ["--bbox", BOX, "--crs", "4326"],
        ["--bbox", BOX, BOX],
        ["--bbox", BOX, "--bbox", BOX],
        ["--bbox", '<bounds minlat="45.7000000" minlon="4.8000000" maxlat="45.7300000" maxlon="4.8300000"/>'],
        ["--bbox", "minlon=4.8 minlat=45.7 maxlon=4.83 maxlat=45.73"],
        ["--bbox", "https://api.openstreetmap.org/api/0.6/map?bbox=4.8%2C45.7%2C4.83%2C45.73"],
        ["--bbox", "bbox=4.8,45.7,4.83,45.73"],
        ["--type", "bbox", BOX],
        ["--type", "bbox", "--bbox", BOX],
    ],
    ids=" ".join,
)
def test_every_form_of_a_box(tmp_path, rsp, words):
    ran = rsp("cover", *words, "--zoom", 14, "--out", tmp_path / "c")
    assert ran.code == 0, ran.stderr
    assert read_tiles(tmp_path / "c") == TILES
    # The output as the last word, too.
    assert rsp("cover", *words, tmp_path / "d", "--zoom", 14).code == 0
    assert read_tiles(tmp_path / "d") == TILES


def test_a_box_over_the_antimeridian_in_every_form(rsp):
    expected = lines(Cover.of(mercantile.tiles(179.9, -17.1, -179.9, -17, 10)))
    assert expected.count("\n") == 2
    for words in (
        ["179.9,-17.1,-179.9,-17"], ["179.9", "-17.1", "-179.9", "-17"], ["[179.9, -17.1, -179.9, -17]"],
        ['minlat="-17.1" minlon="179.9" maxlat="-17" maxlon="-179.9"'],
    ):  # fmt: skip
        ran = rsp("cover", "--bbox", *words, "-", "--zoom", 10)
        assert (ran.code, ran.stdout) == (0, expected), words


def test_a_box_of_four_words_without_a_flag(rsp):
    ran = rsp("cover", "--type", "bbox", "4.8", "45.7", "4.83", "45.73", "-", "--zoom", 14)
    assert (ran.code, ran.stdout) == (0, lines(TILES))
    ran = rsp("cover", "--type", "bbox", "-4.8", "-45.71", "-4.79", "-45.7", "EPSG:4326", "-", "--zoom", 14)
    assert (ran.code, ran.stdout) == (0, lines(Cover.of(mercantile.tiles(-4.8, -45.71, -4.79, -45.7, 14))))


@pytest.mark.parametrize(
    "words",
    [
        ["--bbox", "-4.8,-45.71,-4.79,-45.7"],
        ["--bbox", "-4.8 -45.71 -4.79 -45.7"],
        ["--bbox", "-4.8", "-45.71", "-4.79", "-45.7"],
        ["--bbox", "-48e-1,-.4571e2,-4.79,-45.7"],
        ["--bbox=-4.8,-45.71,-4.79,-45.7"],
        ["--type", "bbox", "-4.8,-45.71,-4.79,-45.7"],
    ],
    ids=" ".join,
)
def test_a_box_in_the_southwest_is_no_flag(rsp, words):
    ran = rsp("cover", *words, "-", "--zoom", 14)
    assert ran.code == 0, ran.stderr
    assert ran.stdout == lines(Cover.of(mercantile.tiles(-4.8, -45.71, -4.79, -45.7, 14)))


@pytest.mark.parametrize(
    "bad", ["4.8,45.7,4.83", "1,2,3,4,5", "[1,2,3", "[1,2,3,4,5]", "1,2,3,x", "", "[]", "1;2;3;4"]
)
def test_what_is_no_box(tmp_path, rsp, bad):
    ran = rsp("cover", "--type", "bbox", bad, "--zoom", 14, tmp_path / "c")
    assert ran.code == 2 and ("a bbox is west,south,east,north[,EPSG:code], got" in ran.stderr or not bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["4.8,45.7,4.8,45.7", "4.8,45.7,4.83,45.7", "4.8,45.7,4.8,45.73"])
def test_a_box_may_be_a_point_or_a_line(tmp_path, text):
    west, south, east, north = map(float, text.split(","))
    cover(text, [tmp_path / "c"], kind="bbox", zoom=14)
    first, last = mercantile.tile(west, north, 14), mercantile.tile(east, south, 14)
    columns, rows = range(first.x, last.x + 1), range(first.y, last.y + 1)
    assert read_tiles(tmp_path / "c") == Cover.of(Tile(x, y, 14) for x in columns for y in rows)


def test_several_boxes_are_one_cover(tmp_path):
    cover([BOX, "-1,-1,1,1"], [tmp_path / "c"], kind="bbox", zoom=10)
    expected = [*mercantile.tiles(4.8, 45.7, 4.83, 45.73, 10), *mercantile.tiles(-1, -1, 1, 1, 10)]
    assert read_tiles(tmp_path / "c") == Cover.of(expected)


def bent_box(epsg, bounds, zoom):
    """Return the tiles that a box meets, asked one by one, its edges projected at many points."""
    polygon = shapely.segmentize(box(*bounds), (bounds[2] - bounds[0]) / 3000)
    there = shape(transform_geom(f"EPSG:{epsg}", "EPSG:3857", mapping(polygon)))
    found = mercantile.tiles(*transform_bounds(f"EPSG:{epsg}", "EPSG:4326", *bounds), zoom)
    return Cover.of(tile for tile in found if there.intersects(box(*mercantile.xy_bounds(tile))))


def test_edges_of_a_projected_box_bend(tmp_path):
    """Across France, the parallels of Lambert 93 bend by many tiles: the bounds in degrees hold more."""
    bounds = (150_000, 6_200_000, 1_200_000, 6_300_000)
    cover(f"{','.join(map(str, bounds))},EPSG:2154", [tmp_path / "c"], kind="bbox", zoom=12)
    found = read_tiles(tmp_path / "c")
    assert found == bent_box(2154, bounds, 12)
    around = mercantile.tiles(*transform_bounds("EPSG:2154", "EPSG:4326", *bounds), 12)
    assert len(found) < 0.85 * len(list(around))
    # The higher the zoom, the more points it takes: as many as it needs.
    path = write_features(tmp_path / "dense.json", shapely.segmentize(box(*bounds), 100))
    cover(str(path), [tmp_path / "d"], zoom=15, crs="2154")
    cover(f"{','.join(map(str, bounds))},EPSG:2154", [tmp_path / "c"], kind="bbox", zoom=15)
    assert read_tiles(tmp_path / "c") == read_tiles(tmp_path / "d")


def test_projected_boxes_over_the_antimeridian_and_around_a_pole(tmp_path):
    # Fiji: EPSG:3460 has its meridian at 178.75.
    cover("1990000,3900000,2200000,4000000,EPSG:3460", [tmp_path / "c"], kind="bbox", zoom=8)
    found = read_tiles(tmp_path / "c")
    assert {tile.x for tile in found} == {255, 0} and len({tile.y for tile in found}) <= 3
    # A square around the south pole reaches around the world; and one around the north pole.
    for epsg, rows in ((3031, {5, 6, 7}), (3995, {0, 1, 2})):
        cover(f"-3e6,-3e6,3e6,3e6,EPSG:{epsg}", [tmp_path / "c"], kind="bbox", zoom=3)
        found = read_tiles(tmp_path / "c")
        assert {tile.x for tile in found} == set(range(8)) and {tile.y for tile in found} == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-3e5,-3e5,3e5,3e5,EPSG:3031", "lies beyond 85.05 degrees, where web mercator ends"),
        ("0,21000000,1000,22000000,EPSG:3857", "lies beyond 85.05 degrees"),
        ("90000000,0,99000000,1000,EPSG:3857", "is not on Earth"),
        ("1e300,0,1e301,1,EPSG:2154", "in EPSG:2154, lies"),
        ("0,0,1,1,EPSG:2154", None),
    ],
)
def test_projected_boxes_that_are_nowhere(tmp_path, rsp, text, message):
    ran = rsp("cover", "--bbox", text, "--zoom", 3, tmp_path / "c")
    assert (ran.code, message is None or message in ran.stderr) == (0 if message is None else 2, True), ran.stderr


# --- features, tile sets and other covers


def test_several_files_of_features(tmp_path, rsp):
    names = [
        write_features(tmp_path / f"{number}.geojson", shapely.Point(number + 0.5, 0.5)) for number in range(3)
    ]
    expected = lines(Cover.of(mercantile.tile(number + 0.5, 0.5, 8) for number in range(3)))
    for words in (
        ["--geojson", *names, "--zoom", 8, "--out", tmp_path / "c"],
        ["--geojson", *names, tmp_path / "c", "--zoom", 8],
        ["--geojson", tmp_path / "*.geojson", "--zoom", 8, tmp_path / "c"],
        ["--geojson", names[0], "--geojson", *names[1:], "--zoom", 8, tmp_path / "c"],
        [tmp_path / "c", "--geojson", *names, "--zoom", 8],
        [tmp_path / "?.geojson", tmp_path / "c", "--zoom", 8],
    ):
        (tmp_path / "c").unlink(missing_ok=True)
        assert rsp("cover", *words).code == 0
        assert (tmp_path / "c").read_text() == expected
    ran = rsp("cover", "--geojson", *names, tmp_path / "none.geojson", "--zoom", 8, "--out", tmp_path / "c")
    assert ran.code == 1 and "none.geojson" in ran.stderr


def test_another_cover_at_its_zoom_and_at_others(tmp_path, rsp):
    write_cover(tmp_path / "in.csv", [Tile(5, 3, 3), Tile(1, 1, 2)])
    for zoom, expected in (
        ([], [Tile(1, 1, 2), Tile(5, 3, 3)]),
        (["--zoom", 2], [Tile(1, 1, 2), Tile(2, 1, 2)]),
        (["--zoom", 0], [Tile(0, 0, 0)]),
        (["--zoom", 3], [Tile(2, 2, 3), Tile(2, 3, 3), Tile(3, 2, 3), Tile(3, 3, 3), Tile(5, 3, 3)]),
    ):
        assert rsp("cover", "--cover", tmp_path / "in.csv", *zoom, tmp_path / "out.csv").code == 0
        assert (tmp_path / "out.csv").read_text() == lines(Cover.of(expected))
    assert rsp("cover", "--type", "cover", tmp_path / "in.csv", "--zoom", 0, tmp_path / "d").code == 0
    write_cover(tmp_path / "more", [Tile(0, 0, 2)])
    ran = rsp("cover", "--cover", tmp_path / "in.csv", "--cover", tmp_path / "more", "--zoom", 2, "-")
    assert ran.stdout == "0,0,2\n1,1,2\n2,1,2\n"


some_tiles = st.sets(
    st.integers(0, 5).flatmap(
        lambda zoom: st.builds(
            Tile, st.integers(0, (1 << zoom) - 1), st.integers(0, (1 << zoom) - 1), st.just(zoom)
        )
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@given(some_tiles, st.integers(0, 6))
def test_other_zooms_against_mercantile(tiles, zoom):
    from rsp.components.cover.sources import rezoomed

    expected = set()
    for tile in tiles:
        expected |= {mercantile.parent(tile, zoom=zoom)} if tile.z > zoom else set(
            [tile] if tile.z == zoom else mercantile.children(tile, zoom=zoom)
        )  # fmt: skip
    assert set(rezoomed(Cover.of(tiles), zoom, 10_000, "it")) == expected


def test_a_cover_of_too_many_tiles_is_not_divided(tmp_path, rsp):
    write_cover(tmp_path / "in.csv", [Tile(0, 0, 0)])
    ran = rsp("cover", "--cover", tmp_path / "in.csv", "--zoom", 30, tmp_path / "c")
    assert ran.code == 2 and "would be at least 1,152,921,504,606,846,976 tiles" in ran.stderr
    ran = rsp("cover", "--cover", tmp_path / "none.csv", tmp_path / "c")
    assert ran.code == 1 and "cannot read the cover" in ran.stderr
    ran = rsp("cover", "--cover", tmp_path / "in.csv", "--crs", "2154", tmp_path / "c")
    assert ran.code == 2 and "tiles have one CRS" in ran.stderr


def test_tile_sets_with_and_without_the_zoom(tmp_path, rsp):
    for tile in ((2, 1, 2), (3, 1, 7), (3, 0, 7)):
        file = tmp_path / "tiles" / "/".join(map(str, tile))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".png").touch()
    ran = rsp("cover", "--dir", tmp_path / "tiles", "-")
    assert ran.stdout == "1,2,2\n0,7,3\n1,7,3\n" and "tiles of the zooms 2, 3" in ran.stderr
    # These tiles only, where there are some; else what they lie in.
    assert rsp("cover", "--dir", tmp_path / "tiles", "--zoom", 3, "-").stdout == "0,7,3\n1,7,3\n"
    assert rsp("cover", "--dir", tmp_path / "tiles", "--zoom", 1, "-").stdout == "0,1,1\n"


# --- rasters


def write_raster(path, transform, crs, shape=(40, 60), **options):
    with rasterio.open(
        path, "w", driver="GTiff", width=shape[1], height=shape[0], count=1, dtype="uint8", crs=crs,
        transform=transform, **options,
    ) as raster:  # fmt: skip
        raster.write(np.ones((1, *shape), np.uint8))
    return path


def asked(polygon, crs, zoom):
    """Return the tiles that a polygon in some CRS meets, asked one by one."""
    dense = shapely.segmentize(polygon, polygon.length / 4000)
    there = shape(transform_geom(crs, "EPSG:3857", mapping(dense)))
    around = mercantile.tiles(*transform_bounds("EPSG:3857", "EPSG:4326", *there.bounds), zoom)
    return Cover.of(tile for tile in around if there.intersects(box(*mercantile.xy_bounds(tile)).buffer(-1e-4)))


def test_a_turned_raster_covers_what_it_shows(tmp_path, rsp):
    transform = Affine.translation(500_000, 5_000_000) * Affine.rotation(30) * Affine.scale(100, -100)
    path = write_raster(tmp_path / "r.tif", transform, "EPSG:32631")
    corners = [transform * corner for corner in ((0, 0), (60, 0), (60, 40), (0, 40))]
    expected = asked(shapely.Polygon(corners), "EPSG:32631", 15)
    assert rsp("cover", "--raster", path, "--zoom", 15, tmp_path / "c").code == 0
    assert read_tiles(tmp_path / "c") == expected
    # Its bounds hold far more.
    around = mercantile.tiles(*transform_bounds("EPSG:32631", "EPSG:4326", *shapely.Polygon(corners).bounds), 15)
    assert len(expected) < 0.8 * len(list(around))


def test_a_projected_raster_and_several(tmp_path, rsp):
    bounds = (300_000, 4_000_000, 700_000, 4_050_000)
    wide = write_raster(tmp_path / "wide.tif", from_bounds(*bounds, 60, 40), "EPSG:32631")
    tile = Tile(1000, 700, 11)
    exact = write_raster(tmp_path / "exact.tif", from_bounds(*mercantile.xy_bounds(tile), 60, 40), "EPSG:3857")
    degrees = write_raster(tmp_path / "degrees.tif", from_bounds(*bounds_lonlat(tile), 60, 40), "EPSG:4326")
    assert rsp("cover", "--raster", wide, "--zoom", 11, "--out", tmp_path / "c").code == 0
    expected = asked(box(*bounds), "EPSG:32631", 11)
    assert read_tiles(tmp_path / "c") == expected
    for path in (exact, degrees):
        assert rsp("cover", "--type", "raster", path, "--zoom", 11, "-").stdout == "1000,700,11\n"
    assert rsp("cover", "--raster", wide, exact, tmp_path / "d", "--zoom", 11).code == 0
    assert read_tiles(tmp_path / "d") == expected | Cover.of([tile])
    assert rsp("cover", "--raster", tmp_path / "*.tif", "--zoom", 11, tmp_path / "e").code == 0
    assert read_tiles(tmp_path / "e") == expected | Cover.of([tile])


def test_rasters_over_the_antimeridian_and_beyond_the_pole(tmp_path):
    path = write_raster(tmp_path / "r.tif", from_bounds(179.5, 10, 180.5, 11, 60, 40), "EPSG:4326")
    cover(str(path), [tmp_path / "c"], kind="raster", zoom=8)
    assert {tile.x for tile in read_tiles(tmp_path / "c")} == {0, 255}
    polar = write_raster(tmp_path / "p.tif", from_bounds(-3e5, -3e5, 3e5, 3e5, 60, 40), "EPSG:3031")
    with pytest.raises(RasterError, match=r"p.tif lies beyond 85.05 degrees"):
        cover(str(polar), [tmp_path / "c"], kind="raster", zoom=8)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_rasters_placed_by_control_points_or_a_sensor_model(tmp_path):
    tile = Tile(1000, 700, 11)
    west, south, east, north = bounds_lonlat(tile)
    corners = [(0, 0, west, north), (0, 60, east, north), (40, 60, east, south), (40, 0, west, south)]
    points = [GroundControlPoint(row, col, x, y) for row, col, x, y in corners]
    path = tmp_path / "g.tif"
    write_raster(path, None, None)
    with rasterio.open(path, "r+") as raster:
        raster.gcps = (points, "EPSG:4326")
    cover(str(path), [tmp_path / "c"], kind="raster", zoom=11)
    assert Tile(1000, 700, 11) in read_tiles(tmp_path / "c") and len(read_tiles(tmp_path / "c")) <= 9
    zeros = [0.0] * 17
    model = RPC(
        height_off=0, height_scale=1, lat_off=(south + north) / 2, lat_scale=(north - south) / 4,
        long_off=(west + east) / 2, long_scale=(east - west) / 4, line_off=20, line_scale=20, samp_off=30,
        samp_scale=30, line_num_coeff=[0.0, 0, -1, *zeros], line_den_coeff=[1.0, 0, 0, *zeros],
        samp_num_coeff=[0.0, 1, 0, *zeros], samp_den_coeff=[1.0, 0, 0, *zeros], err_bias=0, err_rand=0,
    )  # fmt: skip
    path = write_raster(tmp_path / "s.tif", None, None)
    with rasterio.open(path, "r+") as raster:
        raster.rpcs = model
    cover(str(path), [tmp_path / "c"], kind="raster", zoom=11)
    assert list(read_tiles(tmp_path / "c")) == [tile]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_rasters_that_say_not_where_they_are(tmp_path, rsp):
    for name, transform, message in (
        ("none.tif", None, "has no georeference"),
        ("half.tif", from_bounds(0, 0, 1, 1, 60, 40), "corners and no CRS"),
    ):  # fmt: skip
        ran = rsp("cover", "--raster", write_raster(tmp_path / name, transform, None), "--zoom", 3, tmp_path / "c")
        assert ran.code == 1 and f"{name} " in ran.stderr and message in ran.stderr
    ran = rsp("cover", "--raster", tmp_path / "half.tif", "--crs", 2154, "--zoom", 3, tmp_path / "c")
    assert ran.code == 2 and "a raster says its own" in ran.stderr


# --- PostGIS


@pytest.fixture(scope="module")
def dsn():
    with postgis() as found:
        import psycopg

        with psycopg.connect(found) as connection:
            connection.execute("CREATE TABLE places (geom geometry)")
            connection.execute("CREATE SEQUENCE counter")
            connection.execute(
                "INSERT INTO places VALUES (ST_MakeEnvelope(4.8, 45.7, 4.83, 45.73, 4326)), (NULL), "
                "(ST_SetSRID(ST_MakePoint(10, 10), 4326)), (ST_GeomFromText('POLYGON EMPTY', 4326)), "
                "(ST_GeomFromText('TIN(((0 0 0, 0 0 1, 0 1 0, 0 0 0)))', 4326))"
            )
        yield found


def test_a_query(tmp_path, rsp, dsn, monkeypatch):
    expected = TILES | Cover.of([mercantile.tile(10, 10, 14)])
    words = ["cover", "--sql", "SELECT geom FROM places", "--zoom", 14]
    assert rsp(*words, "--pg", dsn, tmp_path / "c").code == 0
    assert read_tiles(tmp_path / "c") == expected
    # As the environment says, or the configuration.
    (tmp_path / "config.toml").write_text(f'[auth]\npg = "{dsn}"\n{CONFIG}')
    monkeypatch.setenv("RSP_CONFIG", str(tmp_path / "config.toml"))
    assert rsp(*words, "--out", tmp_path / "d").code == 0
    assert read_tiles(tmp_path / "d") == expected
    monkeypatch.delenv("RSP_CONFIG")
    for name, value in (part.split("=") for part in dsn.split()):
        monkeypatch.setenv({"host": "PGHOST", "user": "PGUSER", "dbname": "PGDATABASE"}[name], value)
    projected = "SELECT ST_Transform(geom, 2154) AS geom FROM places WHERE ST_GeometryType(geom) = 'ST_Polygon'"
    assert rsp("cover", "--sql", projected, "--zoom", 14, tmp_path / "e").code == 0
    assert read_tiles(tmp_path / "e") == TILES
    ran = rsp("cover", "--sql", "SELECT geom FROM places WHERE geom IS NULL", "--zoom", 14, tmp_path / "f")
    assert ran.code == 1 and "covers no tile" in ran.stderr
    ran = rsp("cover", "--sql", "SELECT geom, nextval('counter') FROM places", "--zoom", 14, tmp_path / "f")
    assert ran.code == 1 and "read-only transaction" in ran.stderr
    ran = rsp("cover", "--sql", "DELETE FROM places", "--zoom", 14, tmp_path / "f")
    assert ran.code == 1 and "PostGIS refuses the query" in ran.stderr


def test_rows_of_a_query(dsn, monkeypatch):
    from rsp.shared import postgis as module

    monkeypatch.setattr(module, "ROWS", 2)
    select = 'SELECT geom, ST_GeometryType(geom) AS "The Kind" FROM places; '
    rows = list(module.Query(select, dsn, "--sql").batches(column="The Kind"))
    # A surface of triangles is nothing that can be built, NULL is None.
    assert sum(each.broken for each in rows) == 1 and {each.epsg for each in rows} == {4326}
    assert [value for each in rows for value in each.values] == ["ST_Polygon", None, "ST_Point", "ST_Polygon"]
    assert [shape is None for each in rows for shape in each.geometries] == [False, True, False, False]
    near = module.Query(select, dsn, "--sql").batches((0, 0, 1, 1))
    assert [shape for each in near for shape in each.geometries] == [None]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--pg", "host=x password=secret"], 2, "--pg holds a password"),
        (["--pg", "postgresql://me:secret@x/gis"], 2, "--pg holds a password"),
        ([], 1, "--sql needs a connection: give --pg, or set PGHOST"),
        (["--crs", "2154"], 2, "a sql says its own"),
    ],
)
def test_a_query_without_a_connection(tmp_path, rsp, monkeypatch, words, code, message):
    for name in ("PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE", "RSP_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = rsp("cover", "--sql", "SELECT geom FROM x", *words, "--zoom", 4, tmp_path / "c")
    assert ran.code == code and message in ran.stderr and "secret" not in ran.stderr


# --- standard input and output


def test_a_filter(rsp, typed):
    feature = {"type": "Feature", "properties": {}, "geometry": mapping(box(4.8, 45.7, 4.83, 45.73))}
    for text in (
        json.dumps(feature) + "\n", json.dumps({"type": "FeatureCollection", "features": [feature]}),
        f"\x1e{json.dumps(feature)}\n\x1e{json.dumps(feature)}\n", f"{BOX}\n", "[4.8, 45.7, 4.83, 45.73]\n",
        "".join(f"[{x}, {y}, {z}]\n" for x, y, z in TILES), lines(TILES),
    ):  # fmt: skip
        typed(text)
        ran = rsp("cover", "-", "--zoom", 14, "-")
        assert (ran.code, ran.stdout) == (0, lines(TILES)), text
    typed("[-4.8, 45.7, -4.79, 45.71]\n\n[-4.8,45.7,-4.79,45.71]\n")
    west = Cover.of(mercantile.tiles(-4.8, 45.7, -4.79, 45.71, 14))
    assert rsp("cover", "--type", "bbox", "-", "--zoom", 14, "-").stdout == lines(west)
    typed("1,1,2\n")
    assert rsp("cover", "--cover", "-", "--zoom", 1, "-").stdout == "0,0,1\n"
    typed("1,1\n")
    ran = rsp("cover", "--cover", "-", "-")
    assert ran.code == 1 and "standard input, line 1: expected `x,y,z`" in ran.stderr
    typed("")
    assert rsp("cover", "-", "--zoom", 1, "-").code == 1


def test_what_comes_out_goes_in_again(rsp, typed):
    """Tiles become outlines, and these the same tiles."""
    for more in ([], ["--union"]):
        typed(lines(TILES))
        ran = rsp("cover", "-", "--format", "geojson", *more, "-")
        assert len(ran.stdout.splitlines()) == (1 if more else len(TILES))
        typed(ran.stdout)
        assert rsp("cover", "-", "--zoom", 14, "-").stdout == lines(TILES)


@given(
    st.integers(0, 24).flatmap(
        lambda zoom: st.tuples(
            st.just(zoom), st.sets(st.tuples(*[st.integers(0, (1 << zoom) - 1)] * 2), min_size=1, max_size=9)
        )
    ),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_outlines_cover_the_tiles_that_they_came_from(tmp_path, some, union):
    zoom, places = some
    tiles = Cover.of(Tile(x, y, zoom) for x, y in places)
    write_out(tmp_path / "f.geojson", tiles, "geojson", union=union)
    cover(str(tmp_path / "f.geojson"), [tmp_path / "c"], zoom=zoom)
    assert read_tiles(tmp_path / "c") == tiles


def test_a_pipe_of_processes(rsp_process):
    ran = rsp_process("cover", "-", "--zoom", "8", "-", input="[263, 182, 9]\n[264, 182, 9]\n")
    assert (ran.code, ran.stdout) == (0, "131,91,8\n132,91,8\n")


# --- extents and outlines


def test_the_extent_is_for_the_shell(tmp_path, rsp):
    expected = "4.79003907,45.69083284,4.83398437,45.73685954\n"
    for words in (
        ["--extent"], ["--format", "extent"], ["--type", "extent"], ["--extent", "--out", "-"],
    ):  # fmt: skip
        assert rsp("cover", "--bbox", BOX, "--zoom", 14, *words).stdout == expected
    write_cover(tmp_path / "in", TILES)
    assert rsp("cover", "--cover", tmp_path / "in", "--extent").stdout == expected
    assert rsp("cover", "--cover", tmp_path / "in", "--extent", "--out", tmp_path / "e.txt").stdout == ""
    assert (tmp_path / "e.txt").read_text() == expected
    # The tiles that it meets are those that it came from.
    assert rsp("cover", "--bbox", expected, "--zoom", 14, "-").stdout == lines(TILES)


@given(
    st.integers(0, 22).flatmap(
        lambda zoom: st.tuples(
            st.just(zoom), *[st.integers(0, (1 << zoom) - 1)] * 2, *[st.integers(0, min(3, (1 << zoom) - 1))] * 2
        )
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_extent_meets_the_block_that_it_came_from(tmp_path, corner):
    """Also over the antimeridian."""
    zoom, x, y, wide, high = corner
    side = 1 << zoom
    rows = range(y, min(y + high, side - 1) + 1)
    block = Cover.of(Tile((x + dx) % side, row, zoom) for dx in range(wide + 1) for row in rows)
    cover(extent_text(block), [tmp_path / "c"], kind="bbox", zoom=zoom)
    assert read_tiles(tmp_path / "c") == block


def test_an_extent_over_the_antimeridian_and_of_several_zooms():
    assert (
        extent_text(Cover.of([Tile(0, 1, 2), Tile(3, 1, 2)])) == "90.00000000,0.00000000,-90.00000000,66.51326044"
    )
    assert (
        extent_text(Cover.of([Tile(0, 0, 2), Tile(1, 1, 1)])) == "0.00000000,-85.05112877,-90.00000000,85.05112877"
    )
    assert (
        extent_text(Cover.of([Tile(0, 0, 3), Tile(3, 3, 3)])) == "-180.00000000,0.00000000,0.00000000,85.05112877"
    )
    assert (
        extent_text(Cover.of([Tile(1, 0, 1), Tile(1, 1, 2)])) == "-90.00000000,0.00000000,180.00000000,85.05112877"
    )
    assert extent_text(Cover.of([Tile(0, 0, 0)])) == "-180.00000000,-85.05112877,180.00000000,85.05112877"


def test_outlines_of_tiles(tmp_path, rsp):
    tile = Tile(8410, 5846, 14)
    write_cover(tmp_path / "in", [tile])
    for name, words in (
        ("a.json", ["--format", "geojson"]),
        ("b.geojson", ["--type", "geojson"]),
        ("c.geojsonl", ["--type", "geojson"]),
    ):  # fmt: skip
        assert rsp("cover", "--cover", tmp_path / "in", *words, "--out", tmp_path / name).code == 0
    collection = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.geojson").read_bytes()
    (feature,) = collection["features"]
    assert (
        collection["type"] == "FeatureCollection" and json.loads((tmp_path / "c.geojsonl").read_text()) == feature
    )
    assert feature["properties"] == {"x": 8410, "y": 5846, "z": 14}
    ring = shape(feature["geometry"])
    assert ring.equals_exact(box(*bounds_lonlat(tile)), 1e-12) and ring.exterior.is_ccw
    ran = rsp("cover", "--cover", tmp_path / "in", "--format", "geojson", "--out", tmp_path / "d.csv")
    assert ran.code == 2 and "the output is GeoJSON" in ran.stderr


@given(some_tiles)
def test_united_outlines_hold_the_tiles_and_nothing_else(tiles):
    polygons = [shapely.from_geojson(text) for _, texts in united(Cover.of(tiles)) for text in texts]
    expected = shapely.union_all([box(*bounds_lonlat(tile)) for tile in tiles])
    found = shapely.union_all(polygons)
    assert found.symmetric_difference(expected).area < 1e-9
    assert all(polygon.is_valid and polygon.exterior.is_ccw for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(expected.area)


def test_a_union_has_no_needless_points(tmp_path, rsp):
    block = [Tile(x, y, 14) for x in range(100, 104) for y in range(50, 55)]
    write_cover(tmp_path / "in", [*block, Tile(300, 50, 14), Tile(301, 51, 14)])
    out = tmp_path / "u.geojson"
    assert rsp("cover", "--cover", tmp_path / "in", "--format", "geojson", "--union", "--out", out).code == 0
    found = [shape(each["geometry"]) for each in json.loads(out.read_text())["features"]]
    assert sorted(len(each.exterior.coords) for each in found) == [5, 5, 5]
    assert found[0].bounds == pytest.approx(
        (*bounds_lonlat(Tile(100, 54, 14))[:2], *bounds_lonlat(Tile(103, 50, 14))[2:])
    )


# --- what does not fit together


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bbox", BOX, "--geojson", "x.json"], "one kind of input, got --geojson and --bbox"),
        (["--bbox", BOX, "--type", "raster"], "--type raster cannot be meant beside it"),
        (["--bbox", BOX, "--union"], "--union joins outlines; give --format geojson, too"),
        (["--bbox", BOX, "--pg", "host=x"], "--pg says where --sql asks"),
        (["--bbox", BOX, "--splits", "50,50", "--out", "-", "-"], "standard output can take one part only"),
        (["--raster", "x.tif", "--out", "x.tif"], "the output is a cover"),
        (["--cover", "c", "--out", "c"], "the output c is the input c"),
        (["--zoom", "3"], "the input is missing"),
    ],
)
def test_usage(rsp, words, message):
    ran = rsp(
        "cover",
        *(["--zoom", 14] if "--zoom" not in words else []),
        *words,
        *([] if "--out" in words else ["--out", "c"]),
    )
    assert ran.code == 2 and message in ran.stderr, ran.stderr


def test_an_output_is_needed_unless_an_extent_is_asked_for(rsp):
    ran = rsp("cover", "--bbox", BOX, "--zoom", 14)
    assert ran.code == 2 and "`out` is missing" in ran.stderr


@pytest.mark.parametrize("kind", ["sql", "raster", "bbox", "geojson"])
def test_a_zoom_is_needed(tmp_path, kind):
    with pytest.raises(UsageError, match=f"--zoom is needed to cover a {kind}"):
        cover("x", [tmp_path / "c"], kind=kind)


def test_nothing_to_cover(tmp_path):
    with pytest.raises(UsageError, match="no input is named"):
        cover([], [tmp_path / "c"], zoom=3)
    write_features(tmp_path / "f.json")
    with pytest.raises(CoverError, match=r"f.json covers no tile"):
        cover(str(tmp_path / "f.json"), [tmp_path / "c"], zoom=3)
    for name, value in (("kind", "text"), ("out_format", "text")):
        with pytest.raises(UsageError, match="got 'text'"):
            cover("x", [tmp_path / "c"], zoom=3, **{name: value})
