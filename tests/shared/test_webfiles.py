"""Feature files at http:// addresses: from a server that sends them, and from one that errs."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely

from rsp.components.cover.tool import cover
from rsp.components.rasterize.tool import rasterize
from rsp.shared import tileserver, webfiles
from rsp.shared.errors import CoverError, FeatureError, UsageError
from rsp.shared.features import expand, feature_writer, read_batches, read_crs
from rsp.shared.tiles import Tile, bounds_lonlat, write_cover
from rsp.shared.tileset import open_reader
from tests.tileserver import Reply, TileServer
from tests.tilesets import CONFIG

TILE = Tile(8410, 5848, 14)
HTML = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Who are you?</body></html>"
EXCEPTION = (
    b'<?xml version="1.0"?>\n<ows:ExceptionReport xmlns:ows="http://www.opengis.net/ows"><ows:Exception '
    b'exceptionCode="InvalidParameterValue"><ows:ExceptionText>no layer roofs</ows:ExceptionText></ows:Exception>'
    b"</ows:ExceptionReport>"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(tileserver, "BACKOFF", 0.01)
    for name in ("RSP_HTTP_HEADERS", "RSP_HTTP_KEY", "RSP_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def roofs(tmp_path) -> dict[str, bytes]:
    """The middle of a tile in each format, by what follows the host in its address."""
    west, south, east, north = bounds_lonlat(TILE)
    wide, high = (east - west) / 4, (north - south) / 4
    square = shapely.box(west + wide, south + high, east - wide, north - high)
    found = {}
    for suffix in (".json", ".geojsonl", ".gpkg", ".fgb", ".parquet"):
        with feature_writer(tmp_path / f"roofs{suffix}") as writer:
            writer.write_batch(np.array([square]), [{}])
        found[f"/roofs{suffix}"] = (tmp_path / f"roofs{suffix}").read_bytes()
    table = pa.table({"a": [1], "geometry": pa.array([shapely.to_wkb(square)], pa.binary())})
    pyogrio.write_arrow(
        table, str(tmp_path / "roofs.shp"), geometry_name="geometry", geometry_type="Polygon", crs="EPSG:4326"
    )
    with zipfile.ZipFile(tmp_path / "roofs.zip", "w") as archive:
        for each in sorted(tmp_path.glob("roofs.[sdp][hbr]*")):
            archive.write(each, each.name)
    # What a service answers to a query has no suffix.
    found["/wfs?REQUEST=GetFeature&outputFormat=SHAPE-ZIP"] = (tmp_path / "roofs.zip").read_bytes()
    found["/wfs?REQUEST=GetFeature&outputFormat=gpkg"] = found["/roofs.gpkg"]
    return found


def serves(files: dict[str, bytes], **headers: str) -> TileServer:
    return TileServer(
        lambda path, _: Reply(files[path], headers=headers) if path in files else Reply(b"no", status=404)
    )


def first_of(url: str):
    (path,) = expand(url)
    (batch,) = read_batches(path)
    return batch.geometries[0]


def test_every_format(roofs, tmp_path, recwarn):
    write_cover(tmp_path / "cover", [TILE])
    (tmp_path / "config.toml").write_text(CONFIG)
    rasterize(
        tmp_path / "cover", tmp_path / "here", geojson=str(tmp_path / "roofs.json"),
        config=tmp_path / "config.toml", web_ui=False,
    )  # fmt: skip
    with open_reader(tmp_path / "here") as reader:
        label = reader.read(TILE)
    with serves(roofs) as server:
        for number, path in enumerate(roofs):
            url = f"{server.url}{path}"
            result = rasterize(
                tmp_path / "cover", tmp_path / f"there{number}", geojson=f"building={url}",
                config=tmp_path / "config.toml", web_ui=False,
            )  # fmt: skip
            assert result.features == 1
            with open_reader(tmp_path / f"there{number}") as reader:
                assert reader.read(TILE) == label, path
            cover(url, [tmp_path / f"cover{number}"], zoom=14)
            assert (tmp_path / f"cover{number}").read_text() == "8410,5848,14\n"
        # Whatever is read of a file, and by however many tools, it comes once.
        assert server.asked == dict.fromkeys(roofs, 1)
    assert not recwarn.list


def test_several_inputs_layers_and_spaces(roofs, tmp_path):
    files = {**roofs, "/wfs?outputFormat=application/json;%20subtype=geojson": roofs["/roofs.json"]}
    with serves(files) as server:
        url = f"{server.url}/wfs?outputFormat=application/json; subtype=geojson"
        cover([url, f"{server.url}/roofs.fgb"], [tmp_path / "cover"], zoom=14)
        assert (tmp_path / "cover").read_text() == "8410,5848,14\n"
        cover(f"{server.url}/roofs.gpkg", [tmp_path / "layer"], zoom=14, layer="roofs")
        assert (tmp_path / "layer").read_text() == "8410,5848,14\n"
        with pytest.raises(FeatureError, match=r"^http://[\d.:]+/roofs\.gpkg has no layer 'paths'"):
            cover(f"{server.url}/roofs.gpkg", [tmp_path / "none"], zoom=14, layer="paths")


def test_an_answer_that_is_compressed(roofs):
    files = {"/roofs.json": gzip.compress(roofs["/roofs.json"])}
    with serves(files, **{"Content-Encoding": "gzip"}) as server:
        assert first_of(f"{server.url}/roofs.json").area > 0


def test_a_server_that_is_overloaded_and_one_that_breaks_off(roofs):
    whole = roofs["/roofs.fgb"]
    replies = [Reply(status=503), Reply(whole, cut=100), Reply(whole, cut=len(whole)), Reply(whole)]
    with TileServer(lambda _, before: replies[before]) as server:
        assert first_of(f"{server.url}/roofs.fgb").area > 0
        assert server.asked["/roofs.fgb"] == 4


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"", status=404), r"cannot read http://\S+/roofs\.json: HTTP 404 Not Found$"),
        (Reply(b"", status=500), "HTTP 500 Internal Server Error"),
        (Reply(b"{" * 100, cut=50), "the answer was cut off"),
        (Reply(HTML), r"roofs\.json holds no features: the server answered with text, not features: Log in Who"),
        (
            Reply(EXCEPTION, headers={"Content-Type": "application/xml"}),
            "holds no features: the server answered with an exception, not features: InvalidParameterValue: no",
        ),
        (Reply(b"", status=302, headers={"Location": "file:///etc/passwd"}), "No connection adapters"),
        (Reply(b'{"type": "FeatureColl'), r"http://\S+/roofs\.json is not valid JSON, or is cut off"),
        (Reply(b"GARBAGE " * 10), r"cannot read|is not valid JSON"),
        (Reply(b"<kml><Document><Placemark"), r"cannot read (http://\S+/roofs\.kml): ERROR parsing kml \1 "),
    ],
    ids=["absent", "broken", "cut", "html", "wfs", "redirect", "half", "garbage", "kml"],
)
def test_an_erring_server(reply, reason, tmp_path):
    with TileServer(lambda *_: reply) as server, pytest.raises(FeatureError, match=reason) as failed:
        cover(f"{server.url}/roofs.{'kml' if b'kml' in reply.body else 'json'}", [tmp_path / "cover"], zoom=14)
    # The file that was read is none that the user knows.
    assert "rsp-" not in str(failed.value)
    assert not (tmp_path / "cover").exists()


def test_an_answer_without_end(monkeypatch, tmp_path):
    monkeypatch.setenv("RSP_CACHE_SIZE", "1000")
    with TileServer(lambda *_: Reply(b"[" * 1001)) as server:
        with pytest.raises(FeatureError, match=r"more than 1000 bytes; RSP_CACHE_SIZE raises that$"):
            cover(f"{server.url}/a.json", [tmp_path / "cover"], zoom=14)
        assert server.asked["/a.json"] == 1
        monkeypatch.setenv("RSP_CACHE_SIZE", "1001")
        with pytest.raises(FeatureError, match=r"not valid JSON|nests brackets"):
            cover(f"{server.url}/a.json", [tmp_path / "cover"], zoom=14)


def test_an_answer_that_trickles(monkeypatch, tmp_path):
    monkeypatch.setattr(webfiles, "TIMEOUT", 0.05)
    monkeypatch.setattr(tileserver, "ATTEMPTS", 2)
    with (
        TileServer(lambda *_: Reply(b"[" * 1000, drip=0.02)) as server,
        pytest.raises(FeatureError, match=r"no answer within 0\.05 s"),
    ):
        cover(f"{server.url}/a.json", [tmp_path / "cover"], zoom=14)
    # As long as enough comes a file may take as long as it likes.
    monkeypatch.setattr(webfiles, "SLOWEST", 3)
    with TileServer(lambda *_: Reply(b'{"type": "Point", "coordinates": [1, 1]}', drip=0.02)) as server:
        cover(f"{server.url}/b.json", [tmp_path / "cover"], zoom=1)
    assert (tmp_path / "cover").read_text() == "1,0,1\n"


def test_credentials_are_sent_and_not_said(monkeypatch, roofs, tmp_path, capsys):
    monkeypatch.setenv("RSP_HTTP_KEY", "s3cret")
    monkeypatch.setenv("RSP_HTTP_HEADERS", "X-Token: hidden")
    with serves({"/roofs.json?k=s3cret": roofs["/roofs.json"]}) as other:
        with TileServer(
            lambda path, _: Reply(status=302, headers={"Location": f"{other.url}/roofs.json?k=s3cret"})
        ) as server:
            cover(f"{server.url}/x?k={{key}}", [tmp_path / "cover"], zoom=14)
            assert server.headers["/x?k=s3cret"]["X-Token"] == "hidden"
        # A redirect leads to another port, which is another's.
        assert "X-Token" not in other.headers["/roofs.json?k=s3cret"]
        with pytest.raises(FeatureError) as failed:
            cover(f"{other.url}/none?apikey=s3cret", [tmp_path / "none"], zoom=14)
        assert "apikey=***: HTTP 404" in str(failed.value)
    with (
        TileServer(lambda *_: Reply(b'{"type": "FeatureCollection", "features": []}')) as server,
        pytest.raises(CoverError, match=r"apikey=\*\*\* covers no tile"),
    ):
        cover(f"{server.url}/empty?apikey=s3cret", [tmp_path / "none"], zoom=14)
    monkeypatch.delenv("RSP_HTTP_KEY")
    with pytest.raises(UsageError, match="RSP_HTTP_KEY"):
        cover("http://127.0.0.1:9/{key}", [tmp_path / "none"], zoom=14)
    told = capsys.readouterr()
    assert "s3cret" not in told.out + told.err


def test_temporary_files_go_with_the_process(roofs, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serves(roofs) as server:
        command = [
            sys.executable, "-m", "rsp.shared.cli", "cover", "--features", f"{server.url}/roofs.fgb", "--zoom",
            "14", "--out", str(tmp_path / "cover"),
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(temporary)})
    assert (tmp_path / "cover").read_text() == "8410,5848,14\n"
    assert not list(temporary.iterdir())


def test_a_shapefile_without_its_other_files(roofs, tmp_path):
    with (
        serves({"/a.shp": (tmp_path / "roofs.shp").read_bytes()}) as server,
        pytest.raises(FeatureError, match=r"a\.shp: a shapefile is several files; to be fetched it"),
    ):
        read_crs(expand(f"{server.url}/a.shp")[0])


def test_a_suffix_says_what_content_does_not():
    text = b'WKT,name\n"POINT (4.8 45.7)",a\n'
    with serves({"/a.csv?b=c.txt": text}) as server:
        (path,) = expand(f"{server.url}/a.csv?b=c.txt")
        (batch,) = read_batches(path, properties=True)
    assert batch.properties[0]["name"] == "a"
