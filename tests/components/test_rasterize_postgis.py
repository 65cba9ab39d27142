"""rsp rasterize --postgis, against a real PostgreSQL (see tests/postgis.py)."""

from __future__ import annotations

import json

import pytest

from rsp.components.rasterize.tool import rasterize
from rsp.shared.errors import ConfigError, FeatureError
from rsp.shared.images import decode_mask
from rsp.shared.tiles import Tile, bounds_lonlat, write_cover
from rsp.shared.tileset import open_reader
from tests.postgis import postgis
from tests.tilesets import CONFIG

TILE = Tile(17000, 11600, 15)
WEST, SOUTH, EAST, NORTH = bounds_lonlat(TILE)
MIDDLE = (WEST + EAST) / 2


@pytest.fixture(scope="module")
def dsn():
    with postgis() as found:
        import psycopg

        with psycopg.connect(found) as connection:
            half = f"ST_MakeEnvelope({MIDDLE}, {SOUTH}, {EAST}, {NORTH}, 4326)"
            whole = f"ST_MakeEnvelope({WEST}, {SOUTH}, {EAST}, {NORTH}, 4326)"
            connection.execute("CREATE TABLE roofs (id int, geom geometry, name text)")
            connection.execute(
                f"INSERT INTO roofs VALUES (1, {half}, '100%'), (2, NULL, 'b'), "
                f"(3, ST_SetSRID(ST_MakePoint({MIDDLE}, {NORTH}), 4326), 'c'), "
                "(4, ST_MakeEnvelope(100, 10, 101, 11, 4326), 'd')"
            )
            connection.execute(f"CREATE TABLE lambert AS SELECT ST_Transform({half}, 2154) AS geom")
            connection.execute("CREATE TABLE typed (geom geometry(Polygon, 4326))")
            connection.execute(f"INSERT INTO typed VALUES ({half}), (ST_MakeEnvelope(100, 10, 101, 11, 4326))")
            connection.execute("CREATE TABLE bare AS SELECT ST_MakeEnvelope(1, 2, 3, 4) AS geom")
            connection.execute(
                f"CREATE TABLE ways AS SELECT 'road' AS kind, {whole} AS geom UNION ALL SELECT 'Building', {half} "
                f"UNION ALL SELECT 'tree', {whole} UNION ALL SELECT NULL, {whole}"
            )
            connection.execute("CREATE TABLE nothing AS SELECT NULL::geometry AS geom")
            connection.execute("CREATE TABLE mixed AS SELECT geom FROM roofs UNION ALL SELECT geom FROM lambert")
        yield found


@pytest.fixture
def place(tmp_path, dsn):
    (tmp_path / "config.toml").write_text(f'[auth]\npg = "{dsn}"\n{CONFIG}')
    write_cover(tmp_path / "cover", [TILE, Tile(TILE.x + 1, TILE.y, TILE.z)])
    return tmp_path


def half_of(path):
    """Whether the right half of the tile, and no other pixel, is of class 1."""
    with open_reader(path) as reader:
        mask, beside = (decode_mask(reader.read(tile)) for tile in reader.tiles())
    return mask[:, 32:].all() and not mask[:, :32].any() and not beside.any()


def test_the_seeds_spelling(place, rsp):
    ran = rsp(
        "rasterize", "--postgis", "SELECT geom FROM roofs", "--config", place / "config.toml", place / "cover",
        place / "labels", "--report", place / "report.json", "--no_web_ui",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert half_of(place / "labels")
    report = json.loads((place / "report.json").read_text())
    assert report["features"] == 1 and report["skipped"] == {"Point": 1, "null geometry": 1}


@pytest.mark.parametrize(
    "select",
    [
        "SELECT geom FROM lambert",
        "SELECT geom FROM typed",
        "SELECT id, geom FROM roofs WHERE id = 1 ;",
        "SELECT geom FROM roofs WHERE name LIKE '100%' -- the first",
        "WITH few AS (SELECT * FROM roofs WHERE id < 2) SELECT ST_Transform(geom, 3857) AS geom FROM few",
    ],
)
def test_queries_and_projections(place, select):
    result = rasterize(
        place / "cover", place / "labels", postgis=select, config=place / "config.toml", web_ui=False
    )
    assert result.features == 1 and half_of(place / "labels")


def test_no_geometry_at_all(place):
    select = "SELECT geom FROM nothing"
    result = rasterize(
        place / "cover", place / "labels", postgis=select, config=place / "config.toml", web_ui=False
    )
    assert (result.features, result.foreground) == (0, 0.0)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("SELECT id FROM roofs", "column asked.geom does not exist.*must be a SELECT with a column `geom`"),
        ("SELECT geom FROM none", 'relation "none" does not exist'),
        ("SELEC", "syntax error"),
        ("SELECT geom FROM bare", "no SRID"),
        ("SELECT geom FROM mixed", "mixes the SRIDs 4326 and 2154"),
        ("DELETE FROM roofs RETURNING geom", "syntax error"),
        ("WITH gone AS (DELETE FROM roofs RETURNING geom) SELECT geom FROM gone", "refuses"),
    ],
)
def test_what_is_no_query(place, select, message):
    with pytest.raises(FeatureError, match=message):
        rasterize(place / "cover", place / "labels", postgis=select, config=place / "config.toml", web_ui=False)
    assert not (place / "labels").exists()


SEVERAL = CONFIG.replace("[model]", '[[classes]]\ntitle = "road"\ncolor = "orange"\n\n[model]')


@pytest.mark.parametrize(
    ("postgis", "options"),
    [
        (["building=SELECT geom FROM roofs", "road=SELECT geom FROM ways WHERE kind = 'road'"], {}),
        (["SELECT geom FROM lambert", "road = SELECT geom FROM ways WHERE kind='road'"], {"kind": "building"}),
        ("SELECT * FROM ways", {"type_field": "kind"}),
    ],
)
def test_several_classes(place, dsn, postgis, options):
    """A query says its class, or each row does, as it is with files."""
    (place / "config.toml").write_text(f'[auth]\npg = "{dsn}"\n{SEVERAL}')
    result = rasterize(
        place / "cover", place / "labels", postgis=postgis, config=place / "config.toml", web_ui=False,
        order="road,building", counts=True, **options,
    )  # fmt: skip
    assert result.features == 2 and {title: told["tiles"] for title, told in result.instances.items()} == {
        "building": 1, "road": 1
    }  # fmt: skip
    with open_reader(place / "labels") as reader:
        mask = decode_mask(reader.read(TILE))
    assert (mask[:, :32] == 2).all() and (mask[:, 32:] == 1).all()
    if "type_field" in options:
        assert result.skipped == {"no class of this name": 2}


def test_no_such_column(place, dsn):
    (place / "config.toml").write_text(f'[auth]\npg = "{dsn}"\n{SEVERAL}')
    with pytest.raises(FeatureError, match=r"column asked\.type does not exist"):
        rasterize(
            place / "cover", place / "labels", postgis="SELECT * FROM ways", config=place / "config.toml",
            type_field="type",
        )  # fmt: skip


def test_no_connection(place):
    (place / "config.toml").write_text(f'[auth]\npg = "host={place} dbname=x user=y"\n{CONFIG}')
    with pytest.raises(FeatureError, match="cannot read from PostGIS"):
        rasterize(place / "cover", place / "labels", postgis="SELECT 1", config=place / "config.toml")


def test_no_dsn(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    write_cover(tmp_path / "cover", [TILE])
    with pytest.raises(ConfigError, match=r"set `pg` under \[auth\]"):
        rasterize(tmp_path / "cover", tmp_path / "out", postgis="SELECT 1", config=tmp_path / "config.toml")
