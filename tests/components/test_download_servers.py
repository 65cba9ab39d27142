"""rsp download: how each kind of server is asked, keys that nobody sees, and formats as the server sends them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random
from urllib.parse import parse_qsl, urlsplit

import mercantile
import pytest

from rsp.components.download.tool import download
from rsp.shared.errors import DownloadError, TileSetError, UsageError
from rsp.shared.images import decode, encode
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_reader
from rsp.shared.tileurl import TileTemplate, check_url, subdomains_of
from rsp.shared.wmts import choose_layer
from tests.tileserver import Reply, TileServer
from tests.tilesets import BLOCK, content, noise

pytestmark = pytest.mark.usefixtures("quick_downloads")


def run(url: str, cover: Path, out: Path, **options):
    return download(url, cover, out, **{"rate": 1000.0, "web_ui": False, **options})


def query(path: str) -> dict[str, str]:
    return {name.upper(): value for name, value in parse_qsl(urlsplit(path).query)}


def sends(kind: str = "png", **odd: str):
    """Answers tiles of noise, in another format where the path ends in a key of `odd`."""

    def answer(path: str, before: int) -> Reply:
        z, x, y = map(int, re.match(r"/(\d+)/(\d+)/(\d+)", path).groups())
        return Reply(encode(noise(Tile(x, y, z)), odd.get(f"y{y}", kind)))

    return answer


# --- placeholders -------------------------------------------------------------------------------------------


def test_quadkeys_and_subdomains(tmp_path, cover, rsp):
    with TileServer(lambda *_: Reply(encode(noise(BLOCK[0]), "png"))) as server:
        url = server.url + "/{s}/{q}.png"
        assert rsp("download", url, cover, tmp_path / "out", "--rate", 900, "--subdomains", "t0,t1").code == 0
        assert set(server.asked) == {f"/t{(tile.x + tile.y) % 2}/{mercantile.quadkey(tile)}.png" for tile in BLOCK}
    assert len(content(tmp_path / "out")) == 12
    tile = Tile(5, 2, 3)
    assert TileTemplate("http://{s}/{q}/{-y}", "XYZ", ("x", "y")).url_of(tile) == "http://y/121/5"
    assert TileTemplate("http://{s}/{q}", "TMS").url_of(tile) == "http://b/121", "a quadkey counts from the north"
    assert subdomains_of("abc") == ("a", "b", "c") and subdomains_of("t0, t1") == ("t0", "t1")
    for wrong in ("", "a,,b", "a/b,c", "a.b"):
        with pytest.raises(UsageError, match="--subdomains"):
            subdomains_of(wrong)


WMS = "http://h/?SERVICE=WMS&REQUEST=GetMap&WIDTH=256&HEIGHT=256&BBOX={bbox}&"
# The tile 1/0/0 is the north-west of the world.
METRES, LONLAT, LATLON = (
    "-20037508.342789244,0.0,0.0,20037508.342789244", "-180.0,0.0,0.0,85.0511287798066",
    "0.0,-180.0,85.0511287798066,0.0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "box"),
    [
        ("VERSION=1.1.1&SRS=EPSG:3857", METRES),
        ("VERSION=1.3.0&CRS=EPSG:3857", METRES),
        ("VERSION=1.3.0&CRS=epsg%3A900913", METRES),
        ("", METRES),
        ("VERSION=1.1.1&SRS=EPSG:4326", LONLAT),
        ("SRS=EPSG:4326", LONLAT),
        ("version=1.3.0&crs=CRS:84", LONLAT),
        ("VERSION=1.3.0&CRS=EPSG:4326", LATLON),
        ("CRS=EPSG:4326", LATLON),
    ],
)
def test_the_box_of_a_wms_has_the_axes_of_its_version(parameters, box):
    url = TileTemplate(WMS + parameters, "WMS").url_of(Tile(0, 0, 1))
    assert query(url)["BBOX"] == box


def test_single_sides_of_a_box_are_in_the_unit_of_the_crs():
    url = "http://h/?VERSION=1.3.0&CRS=EPSG:4326&BBOX={ymin},{xmin},{ymax},{xmax}"
    assert query(TileTemplate(url, "WMS").url_of(Tile(0, 0, 1)))["BBOX"] == LATLON


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("VERSION=1.3.0&SRS=EPSG:3857", "WMS 1.3.0 calls the coordinate system CRS=, the URL has SRS="),
        ("VERSION=1.1.1&CRS=EPSG:3857", "WMS 1.1.1 calls the coordinate system SRS=, the URL has CRS="),
        ("VERSION=2.0&CRS=EPSG:3857", "VERSION=2.0 is not known"),
        ("VERSION=1.3.0&CRS=EPSG:2154", "tiles are squares of EPSG:3857, the URL asks for CRS=EPSG:2154"),
    ],
)
def test_a_wms_that_cannot_be_meant(parameters, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_url(WMS + parameters, "WMS")


def test_a_wms_of_degrees(tmp_path, rsp):
    with pytest.raises(UsageError, match="wants the latitude first in EPSG:4326"):
        check_url("http://h/?VERSION=1.3.0&CRS=EPSG:4326&BBOX={xmin},{ymin},{xmax},{ymax}", "WMS")
    write_cover(tmp_path / "cover", [Tile(3, 3, 9)])
    ran = rsp("download", "--type", "WMS", WMS + "CRS=CRS:84", tmp_path / "cover", tmp_path / "out")
    assert ran.code == 2 and "tiles of zoom 9 would come bent" in ran.stderr
    TileTemplate(WMS + "CRS=CRS:84", "WMS").check_zooms([10])
    TileTemplate(WMS + "CRS=EPSG:3857", "WMS").check_zooms([0])


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out", "out.pmtiles"])
def test_a_key_of_the_environment_is_seen_by_the_server_alone(tmp_path, cover, rsp, monkeypatch, out):
    monkeypatch.setenv("RSP_HTTP_KEY", "zq9/xj+1")
    bad = BLOCK[4]

    def answer(path: str, before: int) -> Reply:
        assert path.startswith("/zq9%2Fxj%2B1/") and path.endswith("?k=zq9%2Fxj%2B1")
        if f"/{bad.x}/{bad.y}" in path:
            return Reply(b"<p>the key zq9/xj+1 (zq9%2Fxj%2B1) may not</p>", headers={"ETag": '"1"'})
        return Reply(encode(noise(BLOCK[0]), "png"), headers={"ETag": '"1"'})

    with TileServer(answer) as server:
        url = server.url + "/{key}/{z}/{x}/{y}?k={key}"
        ran = rsp("download", url, cover, tmp_path / out, "--rate", 900, "--report", tmp_path / "report.json")
    assert ran.code == 3 and f"failed: 15/{bad.x}/{bad.y}: the server answered with text" in ran.stderr
    said = ran.stdout + ran.stderr + (tmp_path / "report.json").read_text()
    assert "the key *** (***) may not" in said
    for file in (each for each in tmp_path.rglob("*") if each.is_file()):
        assert b"zq9" not in file.read_bytes(), file
    assert "zq9" not in said


def test_a_key_that_is_not_there(tmp_path, cover, rsp):
    ran = rsp("download", "http://h/{z}/{x}/{y}?k={key}", cover, tmp_path / "out")
    assert ran.code == 2 and "put the key into the environment variable RSP_HTTP_KEY" in ran.stderr


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("out", ["out", "out.pmtiles"])
def test_tiles_stay_as_the_server_sends_them(tmp_path, cover, rsp, kind, out):
    with TileServer(sends(kind)) as server:
        command = ["download", server.url + "/{z}/{x}/{y}", cover, tmp_path / out, "--rate", 900]
        assert rsp(*command).code == 0
        assert content(tmp_path / out) == {tile: encode(noise(tile), kind) for tile in BLOCK}
        with open_reader(tmp_path / out) as reader:
            assert reader.format == reader.metadata["format"] == kind
        page = tmp_path / ("out/index.html" if out == "out" else f"{out}.html")
        assert page.exists()
        # What is there decides for those that are added.
        write_cover(cover, [*BLOCK, Tile(1, 2, 15)])
    with TileServer(sends("webp" if kind == "png" else "png")) as server:
        command[1] = server.url + "/{z}/{x}/{y}"
        ran = rsp(*command)
    other = "webp" if kind == "png" else "png"
    assert ran.code == 0 and f"warning: 1 tiles came as {other} and were converted to {kind}" in ran.stderr
    with open_reader(tmp_path / out) as reader:
        assert reader.formats == {kind} and decode(reader.read(Tile(1, 2, 15))).shape == (64, 64, 3)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_server_that_mixes_formats(tmp_path, cover, capsys, workers):
    """As those do that send a PNG where a tile is not filled."""
    with TileServer(sends("jpg", y201="png")) as server:
        result = run(server.url + "/{z}/{x}/{y}", cover, tmp_path / "out", workers=workers)
        assert result.as_dict() == {"tiles": 12, "downloaded": 12, "skipped": 0, "failed": []}
        assert {headers["User-Agent"][:3] for headers in server.headers.values()} == {"rsp"}
    first = "png" if BLOCK[0].y == 201 else "jpg"
    assert first == "jpg" and "warning: 4 tiles came as png and were converted to jpg" in capsys.readouterr().err
    assert content(tmp_path / "out") == {
        tile: encode(noise(tile), "jpg") if tile.y != 201 else encode(decode(encode(noise(tile), "png")), "jpg")
        for tile in BLOCK
    }


def test_an_interrupted_run_decides_for_the_next(tmp_path, cover):
    write_cover(tmp_path / "many", [Tile(x, y, 15) for x in range(20) for y in range(20)])
    count = [0]

    def answer(path: str, before: int) -> Reply:
        count[0] += 1
        return sends("jpg")(path, before) if count[0] < 100 else Reply(status=401)

    with TileServer(answer) as server, pytest.raises(DownloadError, match="failed 50 times running"):
        run(server.url + "/{z}/{x}/{y}", tmp_path / "many", tmp_path / "out.pmtiles")
    assert not (tmp_path / "out.pmtiles").exists()
    with TileServer(sends("png")) as server:
        run(server.url + "/{z}/{x}/{y}", tmp_path / "many", tmp_path / "out.pmtiles")
    with open_reader(tmp_path / "out.pmtiles") as reader:
        assert reader.format == "jpg" and len(reader) == 400


def test_an_empty_archive_decides_nothing(tmp_path, cover):
    with TileServer(lambda *_: Reply(status=404)) as server:
        out = tmp_path / "out.pmtiles"
        assert run(server.url + "/{z}/{x}/{y}", cover, out, allow_empty=True).tiles == 0
    with TileServer(sends("jpg")) as server:
        run(server.url + "/{z}/{x}/{y}", cover, out, allow_empty=True, overwrite=True)
        with open_reader(out) as reader:
            assert reader.format == "jpg" and len(reader) == 12
        with pytest.raises(TileSetError, match="holds jpg tiles and png was asked for"):
            run(server.url + "/{z}/{x}/{y}", cover, out, tile_format="png")


def test_a_rate_may_be_a_fraction(tmp_path, cover, rsp):
    write_cover(tmp_path / "one", BLOCK[:1])
    with TileServer(sends()) as server:
        url = server.url + "/{z}/{x}/{y}"
        assert rsp("download", url, tmp_path / "one", tmp_path / "out", "--rate", "0.01", "--workers", 3).code == 0
    for wrong in ("0", "-1", "nan", "inf"):
        ran = rsp("download", "http://h/{z}/{x}/{y}", cover, tmp_path / "o", f"--rate={wrong}")
        assert ran.code == 2 and "--rate" in ran.stderr


# --- WMTS ---------------------------------------------------------------------------------------------------

SCALE = 559082264.0287178


CORNER = "-20037508.3428 20037508.3428"


def matrices(zooms: range, *, side: int = 256, name: str = "{}", corner: str = CORNER) -> str:
    return "".join(
        f"<TileMatrix><ows:Identifier>{name.format(z)}</ows:Identifier>"
        f"<ScaleDenominator>{SCALE / 2**z * 256 / side}</ScaleDenominator><TopLeftCorner>{corner}</TopLeftCorner>"
        f"<TileWidth>{side}</TileWidth><TileHeight>{side}</TileHeight>"
        f"<MatrixWidth>{2**z}</MatrixWidth><MatrixHeight>{2**z}</MatrixHeight></TileMatrix>"
        for z in zooms
    )


def matrix_set(name: str, inside: str, crs: str = "urn:ogc:def:crs:EPSG::3857") -> str:
    return (
        f"<TileMatrixSet><ows:Identifier>{name}</ows:Identifier><ows:SupportedCRS>{crs}</ows:SupportedCRS>"
        f"{inside}</TileMatrixSet>"
    )


def wmts_layer(name: str, sets: str, more: str = "", formats: str = "<Format>image/png</Format>") -> str:
    links = "".join(
        f"<TileMatrixSetLink><TileMatrixSet>{each}</TileMatrixSet></TileMatrixSetLink>" for each in sets.split()
    )
    return (
        f"<Layer><ows:Identifier>{name}</ows:Identifier>"
        '<Style><ows:Identifier>grey</ows:Identifier></Style><Style isDefault="true">'
        f"<ows:Identifier>plain</ows:Identifier></Style>{formats}{links}{more}</Layer>"
    )


LAMBERT = matrix_set("LAMB93", matrices(range(3)), "urn:ogc:def:crs:EPSG::2154")
PM = matrix_set("PM", matrices(range(10, 17), name="EPSG:3857:{}"))
KVP = (
    '<ows:OperationsMetadata><ows:Operation name="GetTile"><ows:DCP><ows:HTTP>'
    '<ows:Get xlink:href="{}/rest"><ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>RESTful'
    "</ows:Value></ows:AllowedValues></ows:Constraint></ows:Get>"
    '<ows:Get xlink:href="{}/kvp?map=1"><ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>KVP'
    "</ows:Value></ows:AllowedValues></ows:Constraint></ows:Get>"
    "</ows:HTTP></ows:DCP></ows:Operation></ows:OperationsMetadata>"
)


def document(contents: str, operations: str = "") -> bytes:
    return (
        '<?xml version="1.0"?><Capabilities xmlns="http://www.opengis.net/wmts/1.0" version="1.0.0" '
        'xmlns:ows="http://www.opengis.net/ows/1.1" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f"{operations}<Contents>{contents}</Contents></Capabilities>"
    ).encode()


def wmts(make, answer=None):
    """A WMTS whose capabilities are made of its URL, and whose tiles are those of BLOCK in order of asking."""
    box = []

    def reply(path: str, before: int) -> Reply:
        if "apabilities" in path:
            return Reply(make(box[0].url))
        return answer(path, before) if answer else Reply(encode(noise(BLOCK[0]), "png"))

    server = TileServer(reply)
    box.append(server)
    return server


def tiles_asked(server: TileServer) -> list[str]:
    return sorted(path for path in server.asked if "apabilities" not in path)


def test_wmts_by_its_resource_url(tmp_path, cover, rsp):
    more = (
        "<Dimension><ows:Identifier>Time</ows:Identifier><Default>2020 b</Default><Value>1</Value></Dimension>"
        '<ResourceURL format="image/jpeg" resourceType="tile" template="http://127.0.0.1:9/no"/>'
        '<ResourceURL format="image/png" resourceType="FeatureInfo" template="http://127.0.0.1:9/no"/>'
        '<ResourceURL format="image/png" resourceType="tile" '
        'template="/t/{style}/{Time}/{TileMatrixSet}/{TileMatrix}/{TileRow}/{TileCol}.png"/>'
    )
    layer = wmts_layer("ortho", "LAMB93 PM", more, "<Format>image/gif</Format><Format>image/png</Format>")
    with wmts(lambda url: document(layer + LAMBERT + PM)) as server:
        where = server.url + "/1.0.0/WMTSCapabilities.xml"
        ran = rsp("download", "--type", "WMTS", where, cover, tmp_path / "out", "--rate", 900)
        assert ran.code == 0 and server.asked["/1.0.0/WMTSCapabilities.xml"] == 1
        assert tiles_asked(server) == sorted(
            f"/t/plain/2020%20b/PM/EPSG:3857:15/{tile.y}/{tile.x}.png" for tile in BLOCK
        )
        rsp("download", "--type", "WMTS", where, cover, tmp_path / "o", "--rate", 900, "--style", "grey")
        assert f"/t/grey/2020%20b/PM/EPSG:3857:15/{BLOCK[0].y}/{BLOCK[0].x}.png" in server.asked


DIMENSIONS = (
    "<Dimension><ows:Identifier>Time</ows:Identifier><Default>2020</Default><Current>true</Current>"
    "<Value>2019</Value><Value>2020</Value></Dimension>"
    "<Dimension><ows:Identifier>elevation</ows:Identifier><Default>0</Default><Value>0/100/10</Value></Dimension>"
)


@pytest.mark.parametrize(
    ("query_of_url", "words", "time", "elevation"),
    [
        ("", [], "2020", "0"),
        ("", ["--dimension", "TIME=2019"], "2019", "0"),
        ("", ["--dimension", "time = current", "--dimension", "ELEVATION=50"], "current", "50"),
        ("?Time=2019", [], "2019", "0"),
        ("?TIME=2019", ["--dimension", "Time=2020"], "2020", "0"),
    ],
)
@pytest.mark.parametrize("resource", [False, True], ids=["parameters", "template"])
def test_dimensions_of_a_wmts(tmp_path, cover, rsp, query_of_url, words, time, elevation, resource):
    template = (
        '<ResourceURL format="image/png" resourceType="tile" '
        'template="/t/{Time}/{Elevation}/{TileMatrix}/{TileRow}/{TileCol}.png"/>'
    )
    layer = wmts_layer("ortho", "PM", DIMENSIONS + (template if resource else ""))
    with wmts(lambda url: document(layer + PM, KVP.format(url, url))) as server:
        where = f"{server.url}/wmts{query_of_url}"
        ran = rsp("download", "--type", "WMTS", where, cover, tmp_path / "out", "--rate", 900, *words)
        assert ran.code == 0, ran.stderr
        asked = tiles_asked(server)
    assert len(asked) == 12
    for path in asked:
        if resource:
            assert path.startswith(f"/t/{time}/{elevation}/EPSG:3857:15/")
        else:
            assert (query(path)["TIME"], query(path)["ELEVATION"]) == (time, elevation)
            assert path.upper().count("TIME=") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": ["TIME=2018"]}, "there is no Time 2018; the server has 2019, 2020"),
        ({"dimension": ["DATE=2019"]}, "layer ortho has no dimension DATE; it has Time, elevation"),
        ({"dimension": ["TIME"]}, "--dimension is NAME=VALUE"),
        ({"dimension": ["TIME="]}, "--dimension is NAME=VALUE"),
        ({"dimension": ["TIME=2019", "time=2020"]}, "each name once"),
        ({"dimension": ["TIME=2019"], "kind": "WMS"}, r"--dimension is for --type WMTS; a WMS has TIME=\.\.\. in"),
    ],
)
def test_dimensions_that_a_wmts_has_not(tmp_path, cover, options, message):
    layer = wmts_layer("ortho", "PM", DIMENSIONS)
    with (
        wmts(lambda url: document(layer + PM, KVP.format(url, url))) as server,
        pytest.raises(UsageError, match=message),
    ):
        run(f"{server.url}/wmts", cover, tmp_path / "out", **{"kind": "WMTS", **options})


def test_the_time_of_a_wms_stands_in_its_url(tmp_path, cover):
    with TileServer(lambda *_: Reply(encode(noise(BLOCK[0]), "png"))) as server:
        url = f"{server.url}/?SERVICE=WMS&REQUEST=GetMap&VERSION=1.3.0&CRS=EPSG:3857&TIME=2020-06-01&BBOX={{bbox}}"
        run(url, cover, tmp_path / "out", kind="WMS")
        assert {query(path)["TIME"] for path in server.asked} == {"2020-06-01"} and len(server.asked) == 12


def test_wmts_by_parameters(tmp_path, cover, monkeypatch):
    """The endpoint is the one for parameters, on the user's host with what else his URL holds: here a key."""
    monkeypatch.setenv("RSP_HTTP_KEY", "hidden")
    monkeypatch.setenv("RSP_HTTP_HEADERS", "X-Token: mine")
    formats = "<Format>image/png</Format><Format>image/jpeg</Format>"
    layers = wmts_layer("ortho", "PM", formats=formats) + wmts_layer("other", "PM")
    with wmts(lambda url: document(layers + PM, KVP.format(url, url))) as server:
        url = server.url + "/wmts?apikey={key}&LAYER=ortho"
        run(url, cover, tmp_path / "out", kind="WMTS", tile_format="jpg")
        assert server.asked["/wmts?apikey=hidden&SERVICE=WMTS&REQUEST=GetCapabilities&VERSION=1.0.0"] == 1
        assert [query(path) for path in tiles_asked(server)] == [
            {
                "MAP": "1", "APIKEY": "hidden", "SERVICE": "WMTS", "REQUEST": "GetTile", "VERSION": "1.0.0",
                "LAYER": "ortho", "STYLE": "plain", "FORMAT": "image/jpeg", "TILEMATRIXSET": "PM",
                "TILEMATRIX": "EPSG:3857:15", "TILEROW": str(tile.y), "TILECOL": str(tile.x),
            }
            for tile in sorted(BLOCK, key=lambda tile: (tile.y, tile.x))
        ]  # fmt: skip
        assert {headers["X-Token"] for headers in server.headers.values()} == {"mine"}


def test_headers_go_to_the_host_that_the_user_named(tmp_path, cover, monkeypatch):
    monkeypatch.setenv("RSP_HTTP_HEADERS", "X-Token: mine")
    with TileServer(lambda *_: Reply(encode(noise(BLOCK[0]), "png"))) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        more = (
            '<ResourceURL format="image/png" resourceType="tile" '
            f'template="{there}/{{TileMatrix}}/{{TileRow}}/{{TileCol}}"/>'
        )
        with wmts(lambda url: document(wmts_layer("ortho", "PM", more) + PM)) as server:
            run(server.url + "/wmts?apikey=hidden", cover, tmp_path / "out", kind="WMTS")
            (told,) = server.headers.values()
        assert told["X-Token"] == "mine" and other.asked.total() == 12
        assert not any("X-Token" in headers or "hidden" in path for path, headers in other.headers.items())


def test_limits_of_a_layer_are_not_asked_beyond(tmp_path, cover, rsp):
    limits = (
        "<TileMatrixSetLink><TileMatrixSet>PM</TileMatrixSet><TileMatrixSetLimits><TileMatrixLimits>"
        "<TileMatrix>EPSG:3857:15</TileMatrix><MinTileRow>201</MinTileRow><MaxTileRow>999</MaxTileRow>"
        "<MinTileCol>0</MinTileCol><MaxTileCol>102</MaxTileCol></TileMatrixLimits></TileMatrixSetLimits>"
        "</TileMatrixSetLink>"
    )
    layer = wmts_layer("ortho", "", limits)
    with wmts(lambda url: document(layer + PM, KVP.format(url, url))) as server:
        command = ["download", "--type", "WMTS", server.url, cover, tmp_path / "out", "--rate", 900]
        assert rsp(*command).code == 0
        inside = [tile for tile in BLOCK if tile.y >= 201 and tile.x <= 102]
        assert len(tiles_asked(server)) == len(inside) == 6 and sorted(content(tmp_path / "out")) == sorted(inside)
        assert sorted(read_cover(tmp_path / "out.absent.csv")) == sorted(set(BLOCK) - set(inside))
        write_cover(cover, [Tile(5, 5, 14)])
        ran = rsp(*command)
        assert ran.code == 2
        assert "PM (urn:ogc:def:crs:EPSG::3857) has no matrix for zoom 14; it has 15" in ran.stderr
        write_cover(cover, [Tile(5, 5, 15)])
        ran = rsp(*command[:-3], tmp_path / "other")
        assert ran.code == 1 and "none of the 1 tiles exists there, as the limits of the layer say" in ran.stderr


def test_matrices_are_those_of_the_grid_by_their_place_not_by_their_names(tmp_path, cover):
    # 512 pixels; begins at column 64 and row 128 of zoom 15; named from the other end; rounded to metres.
    step = 20037508.342789244 * 2 / 2**15
    corner = f"{-20037508.342789244 + 64 * step:.0f} {20037508.342789244 - 128 * step:.0f}"
    odd = matrix_set("odd", matrices(range(15, 16), side=512, name="z7", corner=corner), "EPSG:900913")
    with wmts(lambda url: document(wmts_layer("ortho", "odd") + odd, KVP.format(url, url))) as server:
        run(server.url, cover, tmp_path / "out", kind="WMTS")
        asked = {(query(path)["TILEMATRIX"], query(path)["TILECOL"], query(path)["TILEROW"])
                 for path in tiles_asked(server)}  # fmt: skip
    assert asked == {("z7", str(tile.x - 64), str(tile.y - 128)) for tile in BLOCK}


CROOKED = (
    matrix_set("shifted", matrices(range(12, 17), corner="-20037000 20037508.3428"))
    + matrix_set("scaled", matrices(range(12, 17)).replace("<ScaleDenominator>1", "<ScaleDenominator>1.1"))
    + matrix_set("oblong", matrices(range(12, 17)).replace("<TileHeight>256", "<TileHeight>128"))
)


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        (
            wmts_layer("ortho", "LAMB93 shifted oblong") + LAMBERT + CROOKED, {},
            "layer ortho has no matrix set whose tiles are those of EPSG:3857, the grid of XYZ; there are LAMB93 "
            "(urn:ogc:def:crs:EPSG::2154), shifted (urn:ogc:def:crs:EPSG::3857), oblong",
        ),
        (wmts_layer("a", "PM") + wmts_layer("b", "PM") + PM, {}, "name a layer; the server has a, b"),
        (wmts_layer("a", "PM") + PM, {"layer": "c"}, "there is no layer c; the server has a"),
        (wmts_layer("a", "PM") + PM, {"style": "x"}, "there is no style x; the server has grey, plain"),
        (wmts_layer("a", "PM") + PM + LAMBERT, {"matrix_set": "LAMB93"},
         "there is no matrix set LAMB93; the server has PM"),
        (wmts_layer("a", "PM LAMB93") + PM + LAMBERT, {"matrix_set": "LAMB93"}, "layer a has no matrix set whose"),
        (wmts_layer("a", "PM", formats="<Format>image/gif</Format>") + PM, {}, "layer a comes as image/gif; exp"),
    ],
)  # fmt: skip
def test_a_wmts_that_has_not_what_is_asked_for(tmp_path, cover, contents, options, message):
    with (
        wmts(lambda url: document(contents, KVP.format(url, url))) as server,
        pytest.raises(UsageError, match=re.escape(message)),
    ):
        run(server.url, cover, tmp_path / "out", kind="WMTS", **options)


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b"<Capabilities>&b;</Capabilities>"
)
FILE = b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><Capabilities>&a;</Capabilities>'


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(BOMB), "has a document type"),
        (Reply(FILE), "has a document type"),
        (Reply(b"<a>" * 100), "is nested more than 64 deep"),
        (Reply(b"<html><body>hello</body></html>"), "is no WMTS capabilities document: it has no Contents"),
        (Reply(b"no xml"), "is no XML document"),
        (Reply(b"<ExceptionReport><Exception><ExceptionText>no such  service</ExceptionText></Exception>"
               b"</ExceptionReport>"), "answers: no such service"),
        (Reply(status=404), "cannot read the capabilities of http://127.0.0.1"),
        (Reply(document(wmts_layer("a", "PM") + PM)), "names no address for its tiles"),
        (Reply(document(wmts_layer("a", "PM", '<ResourceURL format="image/png" resourceType="tile" '
         'template="http://h/{key}"/>') + PM)), "the template of tiles has {key}"),
        (Reply(document(wmts_layer("a", "PM") + PM.replace("<MatrixWidth>1024", "<MatrixWidth>nan"))),
         "have MatrixWidth 'nan', which is no number"),
    ],
)  # fmt: skip
def test_capabilities_that_cannot_be_read(tmp_path, cover, monkeypatch, reply, message):
    monkeypatch.setenv("RSP_HTTP_KEY", "hidden")
    with TileServer(lambda *_: reply) as server, pytest.raises(DownloadError, match=re.escape(message)):
        run(server.url + "/?a=1", cover, tmp_path / "out", kind="WMTS")
    assert not list(tmp_path.glob("out*"))


def test_capabilities_that_are_spoilt_are_errors_and_no_faults():
    more = (
        "<Dimension><ows:Identifier>Time</ows:Identifier><Default>now</Default></Dimension>"
        '<ResourceURL format="image/png" resourceType="tile" template="http://h/{Time}/{TileRow}/{TileCol}"/>'
    )
    whole = document(wmts_layer("a", "PM LAMB93", more) + PM + LAMBERT, KVP.format("http://h", "http://h"))
    rng = Random(7)
    pieces = [
        b"http://[",
        b"http://h:x",
        b"{",
        b"}",
        b"nan",
        b"1e999",
        b"-1",
        b"",
        b"\xff",
        b"<a/>",
        b"&amp;",
        b"&#0;",
        b"//",
        b"0",
    ]
    outcomes = Counter()
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 12)] = rng.choice(pieces)
        try:
            found = choose_layer(bytes(data), "https://h/wmts?key=1", zooms=[15])
            found.check_zooms([15])
            found.url_of(BLOCK[0])
            outcomes["works"] += 1
        except (DownloadError, UsageError) as error:
            outcomes[type(error).__name__] += 1
    assert len(outcomes) == 3


@pytest.mark.parametrize("template", ["http://[{TileRow}", "//[/{TileCol}", "file:///etc/passwd"])
def test_templates_that_are_no_addresses(template):
    more = f'<ResourceURL format="image/png" resourceType="tile" template="{template}"/>'
    with pytest.raises(DownloadError, match="for tiles, which is no address"):
        choose_layer(document(wmts_layer("a", "PM", more) + PM), "http://h/", zooms=[15])


def test_capabilities_without_end(tmp_path, cover, monkeypatch):
    monkeypatch.setattr("rsp.shared.wmts.MAX_BYTES", 1000)
    with TileServer(lambda *_: Reply(document(PM * 3))) as server, pytest.raises(DownloadError, match="more than"):
        run(server.url, cover, tmp_path / "out", kind="WMTS")


def test_a_template_is_no_address_of_a_wmts(tmp_path, cover):
    with pytest.raises(UsageError, match="a template of tiles is --type XYZ"):
        run("http://h/{TileMatrix}/{TileRow}/{TileCol}", cover, tmp_path / "out", kind="WMTS")
    with pytest.raises(UsageError, match="--layer is for --type WMTS"):
        run("http://h/{z}/{x}/{y}", cover, tmp_path / "out", layer="a")
