"""rsp download: what it asks of a server, what it takes for a tile, and how it gives up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Barrier, Lock
from urllib.parse import parse_qs, urlsplit

import mercantile
import numpy as np
import pytest

from rsp.components.download.component import download as download_component
from rsp.components.download.tool import download, samples_first
from rsp.shared import tileserver
from rsp.shared.credentials import masked
from rsp.shared.errors import DownloadError, StorageError, TileSetError, UsageError
from rsp.shared.images import encode
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileserver import TokenBucket
from rsp.shared.tileset import open_reader
from rsp.shared.tileurl import tile_url
from tests.tileserver import Reply, TileServer
from tests.tilesets import BLOCK, content, noise

pytestmark = pytest.mark.usefixtures("quick_downloads")

XYZ = re.compile(r"/(\d+)/(\d+)/(\d+)\.(\w+)")


def tile_of(path: str) -> Tile:
    match = XYZ.match(path)
    assert match, path
    return Tile(int(match[2]), int(match[3]), int(match[1]))


def good(path: str, before: int = 0) -> Reply:
    """A tile of noise in the format that the path names."""
    kind = XYZ.match(path)[4]
    return Reply(encode(noise(tile_of(path)), kind), headers={"Content-Type": f"image/{kind}"})


def run(server: TileServer, cover: Path, out: Path, suffix: str = "/{z}/{x}/{y}.png", **options):
    return download(server.url + suffix, cover, out, **{"rate": 1000, "web_ui": False, **options})


@pytest.mark.parametrize("out", ["out", "out.pmtiles"])
@pytest.mark.parametrize("tile_format", ["png", "webp", "jpg"])
def test_tiles_of_the_format_asked_for_stay_as_they_came(tmp_path, cover, out, tile_format):
    """Bug 10: every tile was encoded anew, with loss."""
    with TileServer(good) as server:
        result = run(server, cover, tmp_path / out, f"/{{z}}/{{x}}/{{y}}.{tile_format}", tile_format=tile_format)
        assert result.as_dict() == {"tiles": 12, "downloaded": 12, "skipped": 0, "failed": []}
        assert content(tmp_path / out) == {tile: encode(noise(tile), tile_format) for tile in BLOCK}
        assert set(server.asked.values()) == {1}
    with open_reader(tmp_path / out) as reader:
        assert reader.format == tile_format


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_whose_the_tiles_are(tmp_path, cover, suffix):
    """It stays where a later run says nothing, and stands on the page."""
    out = tmp_path / f"out{suffix}"
    with TileServer(good) as server:
        for said in ('<a href="https://x.example">© them</a>', ""):
            run(server, cover, out, attribution=said, web_ui=True)
            with open_reader(out) as reader:
                assert reader.metadata["attribution"] == '<a href="https://x.example">© them</a>'
    page = (tmp_path / f"{out.name}.html" if suffix else out / "index.html").read_text("utf-8")
    assert '\\u003ca href=\\"https://x.example\\" rel=\\"noopener\\">\\u00a9 them' in page


def test_other_formats_are_encoded_anew(tmp_path, cover):
    with TileServer(good) as server:
        run(server, cover, tmp_path / "out", tile_format="webp")
        run(server, cover, tmp_path / "tif", tile_format="tif")
    assert content(tmp_path / "out") == {tile: encode(noise(tile), "webp") for tile in BLOCK}
    assert content(tmp_path / "tif") == {tile: encode(noise(tile), "tif") for tile in BLOCK}


def test_as_many_at_once_as_one_says(tmp_path, cover):
    """Nobody is answered before three have asked; and no fourth asks meanwhile."""
    gate, lock, under_way = Barrier(3), Lock(), [0, 0]

    def answer(path: str, before: int) -> Reply:
        with lock:
            under_way[0] += 1
            under_way[1] = max(under_way)
        gate.wait(timeout=60)
        with lock:
            under_way[0] -= 1
        return good(path)

    with TileServer(answer) as server:
        assert run(server, cover, tmp_path / "out", workers=3).downloaded == 12
    assert under_way == [0, 3]


def test_the_client_is_as_one_says(tmp_path, cover, monkeypatch):
    told = []

    class Told(tileserver.Client):
        def __init__(self, rate, timeout, *rest, **options):
            told.append((rate, timeout))
            super().__init__(rate, timeout, *rest, **options)

    monkeypatch.setattr("rsp.components.download.tool.Client", Told)
    with TileServer(good) as server:
        run(server, cover, tmp_path / "out", rate=700.5, timeout=7)
    assert told == [(700.5, 7)]


def test_xyz_as_the_readme_writes_it(tmp_path, cover, rsp):
    with TileServer(good) as server:
        url = server.url + "/{z}/{x}/{y}.png"
        ran = rsp("download", "--rate", 100, "--format", "png", url, cover, tmp_path / "out")
    assert ran.code == 0 and "tiles: 12, downloaded: 12, skipped: 0" in ran.stderr
    assert (tmp_path / "out/index.html").exists() and (tmp_path / "out/tiles.json").exists()
    assert sorted(content(tmp_path / "out")) == sorted(BLOCK)


@pytest.mark.parametrize("y", ["y", "-y"])
def test_tms_counts_from_the_south(tmp_path, cover, rsp, y):
    """Bug 9: `--type TMS` raised AttributeError."""
    with TileServer(good) as server:
        ran = rsp("download", "--type", "TMS", server.url + f"/{{z}}/{{x}}/{{{y}}}.png", cover, "--out",
                  tmp_path / "out", "--format", "png")  # fmt: skip
        asked = {tile_of(path) for path in server.asked}
    assert ran.code == 0 and asked == {Tile(tile.x, 2**15 - 1 - tile.y, 15) for tile in BLOCK}
    north = BLOCK[0]
    flipped = Tile(north.x, 2**15 - 1 - north.y, 15)
    assert content(tmp_path / "out")[north] == encode(noise(flipped), "png")


@pytest.mark.parametrize("box", ["{xmin},{ymin},{xmax},{ymax}", "{bbox}"])
def test_wms_asks_for_the_square_of_the_tile(tmp_path, cover, rsp, box):
    def answer(path: str, before: int) -> Reply:
        assert [float(value) for value in parse_qs(urlsplit(path).query)["BBOX"][0].split(",")] in boxes
        return Reply(encode(noise(Tile(0, 0, 0)), "jpg"))

    boxes = [list(mercantile.xy_bounds(tile)) for tile in BLOCK]
    with TileServer(answer) as server:
        url = f"{server.url}/?SERVICE=WMS&REQUEST=GetMap&CRS=EPSG:3857&WIDTH=64&HEIGHT=64&BBOX={box}"
        assert rsp("download", "--type", "WMS", url, cover, tmp_path / "out").code == 0
        assert len(server.asked) == 12


def test_placeholders():
    tile = Tile(5, 2, 3)
    assert tile_url("http://h/{z}/{x}/{y}/{-y}/{s}", tile, "XYZ") == "http://h/3/5/2/5/b"
    assert tile_url("http://h/{z}/{x}/{y}/{-y}", tile, "TMS") == "http://h/3/5/5/5"
    west = mercantile.xy_bounds(tile).left
    _, _, found = tile_url("http://h/{z}/{x}/{y}?w={xmin}", tile, "XYZ").partition("w=")
    assert float(found) == pytest.approx(west)


@pytest.mark.parametrize(
    ("kind", "url", "message"),
    [
        ("XYZ", "http://h/tiles", "lacks {z}, {x}, {y}, which --type XYZ needs"),
        ("TMS", "http://h/{z}/{x}", "lacks {y}"),
        ("WMS", "http://h/{z}/{x}/{y}", "lacks {xmin}, {ymin}, {xmax}, {ymax}"),
        ("WMS", "http://h/?BBOX={xmin},{ymin},{xmax}", "lacks {ymax}"),
        ("XYZ", "http://h/{z}/{x}/{y}?key={apikey}", "has {apikey}, which is not a placeholder"),
        ("XYZ", "file:///etc/{z}/{x}/{y}", "must begin with http"),
        ("XYZ", "ftp://h/{z}/{x}/{y}", "must begin with http"),
        ("XYZ", "h/{z}/{x}/{y}", "must begin with http"),
    ],
)
def test_urls_that_cannot_be_meant(tmp_path, cover, rsp, kind, url, message):
    ran = rsp("download", "--type", kind, url, cover, tmp_path / "out")
    assert ran.code == 2 and message in ran.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--rate", "--timeout", "--workers"])
def test_numbers_that_make_no_sense(tmp_path, cover, rsp, flag):
    ran = rsp("download", "http://127.0.0.1:9/{z}/{x}/{y}", cover, tmp_path / "out", flag, 0)
    assert ran.code == 2 and flag in ran.stderr
    assert rsp("download", "http://127.0.0.1:9/{z}/{x}/{y}", cover).code == 2  # no output
    assert rsp("download", "http://h/{z}/{x}/{y}", cover, tmp_path / "o", "--format", "gif").code == 2


def test_the_same_command_goes_on_where_it_was_left(tmp_path, cover, rsp):
    with TileServer(good) as server:
        for out in ("out", "out.pmtiles"):
            server.asked.clear()
            write_cover(tmp_path / "first", BLOCK[:5])
            run(server, tmp_path / "first", tmp_path / out, tile_format="png")
            result = run(server, cover, tmp_path / out, tile_format="png")
            assert (result.tiles, result.downloaded, result.skipped) == (12, 7, 5)
            assert set(server.asked.values()) == {1} and len(content(tmp_path / out)) == 12
            assert run(server, cover, tmp_path / out, tile_format="png").downloaded == 0
            assert run(server, cover, tmp_path / out, tile_format="png", overwrite=True).downloaded == 12
            assert set(server.asked.values()) == {2}
        with pytest.raises(TileSetError, match="webp was asked for"):
            run(server, cover, tmp_path / "out", tile_format="webp")


REPLIES = {
    "403": (Reply(status=403), "HTTP 403 Forbidden"),
    "400": (Reply(b"<html>no</html>", status=400), "HTTP 400 Bad Request"),
    "exception": (
        Reply(
            b'<?xml version="1.0"?><ServiceExceptionReport><ServiceException code="LayerNotDefined">\n'
            b"  msWMSLoadGetMapParams(): no layer <![CDATA[ortho]]> </ServiceException></ServiceExceptionReport>",
            headers={"Content-Type": "application/vnd.ogc.se_xml"},
        ),
        "the server answered with a WMS exception, not an image: LayerNotDefined: msWMSLoadGetMapParams(): no "
        "layer ortho",
    ),
    "html": (
        Reply(b"<html><script>var a=1;</script><body>Please <b>log in</b> &amp; pay</body></html>"),
        "the server answered with text, not an image: Please log in & pay",
    ),
    "json": (
        Reply(b'{"message":"no such tileset"}', headers={"Content-Type": "application/json"}),
        'the server answered with text, not an image: {"message":"no such tileset"}',
    ),
    "empty": (Reply(b""), "the image is empty"),
    "gif": (Reply(b"GIF89a" + bytes(50)), "not an image (expected PNG, JPEG, WebP or GeoTIFF)"),
    "damaged": (Reply(encode(noise(BLOCK[0]), "png")[:300]), "the image is corrupt or truncated"),
    "oblong": (
        Reply(encode(np.zeros((64, 32, 3), np.uint8), "png")), "a tile is a square, this image has 32x64 pixels",
    ),
    "deep": (Reply(encode(np.zeros((64, 64, 5), np.uint8), "tif")), "png cannot hold 5 bands of uint8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPLIES)
def test_what_is_no_tile_is_said_and_the_others_are_done(tmp_path, cover, rsp, kind):
    """Bug 10: a WMS exception aborted the whole run; failures left exit code 0."""
    reply, reason = REPLIES[kind]
    bad = BLOCK[4]
    with TileServer(lambda path, before: reply if tile_of(path) == bad else good(path)) as server:
        ran = rsp("download", "--rate", 200, "--format", "png", server.url + "/{z}/{x}/{y}.png", cover,
                  tmp_path / "out")  # fmt: skip
        assert server.asked[f"/15/{bad.x}/{bad.y}.png"] == 1  # asking again would not help
    assert ran.code == 3
    assert f"failed: 15/{bad.x}/{bad.y}: {reason}" in ran.stderr
    assert set(content(tmp_path / "out")) == set(BLOCK) - {bad}
    assert read_cover(tmp_path / "out.failed.csv") == [bad]


PASSING = {
    "500": Reply(status=500),
    "502": Reply(status=502),
    "429": Reply(status=429, headers={"Retry-After": "0"}),
    "503 with a date": Reply(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "503 with nonsense": Reply(status=503, headers={"Retry-After": "soon"}),
    "cut off": Reply(encode(noise(BLOCK[0]), "png"), cut=100),
    "slow": Reply(encode(noise(BLOCK[0]), "png"), delay=3.0),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_asked_again(tmp_path, kind):
    write_cover(tmp_path / "cover", BLOCK[:2])
    with TileServer(lambda path, before: PASSING[kind] if before == 0 else good(path)) as server:
        result = run(server, tmp_path / "cover", tmp_path / "out", tile_format="png", timeout=1)
        assert not result.failed and set(server.asked.values()) == {2}
    assert content(tmp_path / "out") == {tile: encode(noise(tile), "png") for tile in BLOCK[:2]}


def test_what_does_not_pass_is_asked_a_bounded_number_of_times(tmp_path, cover):
    bad = BLOCK[4]
    with TileServer(lambda path, _: Reply(status=500) if tile_of(path) == bad else good(path)) as server:
        result = run(server, cover, tmp_path / "out")
        assert result.failed == {bad: "HTTP 500 Internal Server Error"}
        assert server.asked[f"/15/{bad.x}/{bad.y}.png"] == tileserver.ATTEMPTS


def test_retry_after_holds_for_all():
    now = [100.0]
    bucket = TokenBucket(10, clock=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    bucket.take()
    bucket.pause(7)
    bucket.take()
    assert now[0] == pytest.approx(107)


def test_no_second_sees_more_requests_than_the_rate():
    now = [0.0]
    times = []
    bucket = TokenBucket(20, clock=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    rng = np.random.default_rng(0)
    for _ in range(500):
        bucket.take()
        times.append(now[0])
        now[0] += rng.choice([0.0, 0.001, 0.3])  # what work comes between
    for start in times:
        assert sum(start <= moment < start + 1 - 1e-9 for moment in times) <= 20


def test_answers_without_end_are_cut_off(tmp_path, monkeypatch, cover):
    monkeypatch.setattr(tileserver, "MAX_BODY", 1 << 16)
    with TileServer(lambda path, _: Reply(bytes(1 << 20)) if tile_of(path) == BLOCK[0] else good(path)) as server:
        assert "more than 65536 bytes" in run(server, cover, tmp_path / "out").failed[BLOCK[0]]
    monkeypatch.setattr(tileserver, "PATIENCE", 0.05)
    write_cover(tmp_path / "one", BLOCK[:1])
    with (
        TileServer(lambda path, _: Reply(good(path).body, drip=0.02)) as server,
        pytest.raises(DownloadError, match="no answer within 1 s"),
    ):
        run(server, tmp_path / "one", tmp_path / "slow", timeout=1)


# --- giving up ----------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path) -> Path:
    write_cover(tmp_path / "large", [Tile(x, y, 15) for x in range(20) for y in range(20)])
    return tmp_path / "large"


@pytest.mark.parametrize(("status", "most"), [(401, 10 + 64), (403, 100 + 64), (404, 100 + 64)])
def test_a_server_that_gives_nothing_is_given_up(tmp_path, large, rsp, status, most):
    with TileServer(lambda *_: Reply(status=status)) as server:
        ran = rsp("download", server.url + "/{z}/{x}/{y}.png", large, tmp_path / "out", "--rate", 5000)
        assert server.asked.total() <= most
    assert ran.code == 1 and "gave up" in ran.stderr and f"HTTP {status}" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there_is_given_up(tmp_path, large, rsp):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran = rsp(
        "download", f"http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}.png", large, tmp_path / "o.pmtiles", "--rate", 900
    )
    assert ran.code == 1 and "10 tiles were tried and the server gave none: Connection refused" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_few_tiles_that_all_fail_are_an_error(tmp_path, cover, rsp):
    with TileServer(lambda *_: Reply(status=404)) as server:
        ran = rsp("download", server.url + "/{z}/{x}/{y}.png", cover, tmp_path / "out", "--rate", 900)
    assert ran.code == 1 and "none of the 12 tiles could be fetched; 12 times: HTTP 404 Not Found" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_server_that_goes_away_is_given_up_and_gone_on_with_later(tmp_path, large, monkeypatch):
    monkeypatch.setattr(tileserver, "ATTEMPTS", 1)
    count = [0]

    def answer(path: str, before: int) -> Reply:
        count[0] += 1
        return good(path) if count[0] <= 200 or count[0] > 400 else Reply(status=503)

    with TileServer(answer) as server:
        for out in ("out", "out.pmtiles"):
            count[0] = 0
            with pytest.raises(DownloadError, match=r"failed 50 times running: HTTP 503.*later to continue"):
                run(server, large, tmp_path / out, tile_format="png")
            count[0] = 1000
            result = run(server, large, tmp_path / out, tile_format="png")
            assert result.tiles == 400 and 150 <= result.skipped <= 200


def test_sparse_tiles_are_not_given_up(tmp_path, large):
    """A cover begins at a corner where a server may have nothing."""
    with TileServer(lambda path, _: good(path) if tile_of(path).x >= 17 else Reply(status=404)) as server:
        result = run(server, large, tmp_path / "out", rate=10000, tile_format="png")
    assert result.tiles == 60 and len(result.absent) == 340 and not result.failed
    tiles = read_cover(large)
    ordered = samples_first(tiles, 100)
    assert sorted(ordered) == sorted(tiles) and len({tile.x for tile in ordered[:100]}) == 20
    assert samples_first(tiles[:3], 100) == tiles[:3] and samples_first([], 100) == []


@pytest.mark.parametrize("status", [204, 404, 410])
@pytest.mark.parametrize("out", ["out", "out.pmtiles"])
def test_tiles_that_do_not_exist_are_no_failure(tmp_path, cover, rsp, status, out):
    gone = sorted(BLOCK)[3:5]
    with TileServer(lambda path, _: Reply(status=status) if tile_of(path) in gone else good(path)) as server:
        command = ["download", server.url + "/{z}/{x}/{y}.png", cover, tmp_path / out, "--rate", 900]
        ran = rsp(*command, "--report", tmp_path / "report.json")
        assert (
            ran.code == 0 and f"2 tiles do not exist there; {tmp_path / out}.absent.csv lists them" in ran.stderr
        )
        assert sorted(read_cover(tmp_path / f"{out}.absent.csv")) == gone
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["tiles"], report["absent"], report["failed"]) == (10, [[*tile] for tile in gone], [])
        assert not (tmp_path / f"{out}.failed.csv").exists()
        assert server.asked.total() == 12, "none is asked for twice"
        assert rsp(*command).code == 0 and server.asked.total() == 12, "nor by the next run"
        assert rsp(*command, "--overwrite").code == 0 and server.asked.total() == 24
    with TileServer(lambda path, _: good(path)) as server:
        command[1] = server.url + "/{z}/{x}/{y}.png"
        assert rsp(*command, "--overwrite").code == 0
    assert not (tmp_path / f"{out}.absent.csv").exists()


def test_an_area_of_which_nothing_exists(tmp_path, cover, rsp):
    write_cover(tmp_path / "out.absent.csv", BLOCK)
    with TileServer(lambda path, _: good(path)) as server:
        ran = rsp("download", server.url + "/{z}/{x}/{y}.png", cover, tmp_path / "out")
        assert ran.code == 1 and "none of the 12 tiles exists there" in ran.stderr and not server.asked


def test_tiles_that_differ_in_size_are_said(tmp_path, cover, capsys):
    def answer(path: str, before: int) -> Reply:
        return Reply(encode(noise(tile_of(path), 32), "png")) if tile_of(path) == BLOCK[0] else good(path)

    with TileServer(answer) as server:
        run(server, cover, tmp_path / "out")
    assert "warning: the tiles differ in size: 1 of 32 pixels, 11 of 64 pixels" in capsys.readouterr().err


# --- secrets ------------------------------------------------------------------------------------------------


def test_credentials_are_in_no_message():
    text = "see https://me:secret@host/1.png?Key=abc&z=1&access_token=def#x and http://h/?sig=xyz&map=m"
    assert masked(text) == "see https://***@host/1.png?Key=***&z=1&access_token=***#x and http://h/?sig=***&map=m"


@pytest.mark.parametrize("reply", [Reply(status=403), Reply(b"<p>bad key in http://h/?key=hidden1 given</p>")])
def test_credentials_are_neither_printed_nor_reported(tmp_path, cover, rsp, reply, caplog):
    with TileServer(lambda path, _: reply if tile_of(path) == BLOCK[0] else good(path)) as server:
        url = f"http://me:hidden2@127.0.0.1:{server.port}/{{z}}/{{x}}/{{y}}.png?key=hidden1"
        ran = rsp("download", url, cover, tmp_path / "out", "--rate", 500, "--report", tmp_path / "r.json")
        assert server.headers[f"/15/{BLOCK[0].x}/{BLOCK[0].y}.png?key=hidden1"]["Authorization"].startswith(
            "Basic "
        )
    assert ran.code == 3
    said = ran.stdout + ran.stderr + caplog.text + (tmp_path / "r.json").read_text()
    assert "hidden" not in said and "hidden1" not in (tmp_path / "out/index.html").read_text()


def test_headers_come_from_the_environment_and_do_not_follow_redirects(tmp_path, cover, rsp, monkeypatch):
    monkeypatch.setenv("RSP_HTTP_HEADERS", "Authorization: Bearer abc\n\nX-Api-Key: hidden\nUser-Agent: mine\n")
    with TileServer(good) as other:
        there = other.url.replace("127.0.0.1", "localhost")

        def answer(path: str, before: int) -> Reply:
            elsewhere = tile_of(path) == BLOCK[0]
            return Reply(status=302, headers={"Location": there + path}) if elsewhere else good(path)

        with TileServer(answer) as server:
            assert not run(server, cover, tmp_path / "out").failed
            sent = server.headers[f"/15/{BLOCK[1].x}/{BLOCK[1].y}.png"]
        (leaked,) = other.headers.values()
    assert (sent["Authorization"], sent["X-Api-Key"], sent["User-Agent"]) == ("Bearer abc", "hidden", "mine")
    assert "Authorization" not in leaked and "X-Api-Key" not in leaked
    monkeypatch.setenv("RSP_HTTP_HEADERS", "hidden")
    ran = rsp("download", "http://h/{z}/{x}/{y}", cover, tmp_path / "o")
    assert ran.code == 2 and "RSP_HTTP_HEADERS" in ran.stderr and "hidden" not in ran.stderr


def test_we_say_who_we_are(tmp_path, cover):
    with TileServer(good) as server:
        run(server, cover, tmp_path / "out")
        assert {headers["User-Agent"].split("/")[0] for headers in server.headers.values()} == {"rsp"}


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://h/1.png", "/15/0/0.png"])
def test_redirects_lead_to_no_other_scheme_and_not_in_circles(tmp_path, cover, location):
    def answer(path: str, before: int) -> Reply:
        away = tile_of(path) in (BLOCK[0], Tile(0, 0, 15))
        return Reply(status=302, headers={"Location": location}) if away else good(path)

    with TileServer(answer) as server:
        assert set(run(server, cover, tmp_path / "out").failed) == {BLOCK[0]}


# --- kills and full disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out", "out.pmtiles"])
def test_a_download_that_is_killed_goes_on(tmp_path, large, out):
    with TileServer(good) as server:
        url = server.url + "/{z}/{x}/{y}.png"
        command = [sys.executable, "-m", "rsp.shared.cli", "download", url, str(large), str(tmp_path / out)]
        command += ["--format", "png", "--rate", "3000", "--no_web_ui"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        for number in range(1, 4):
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            while server.asked.total() < 60 * number and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
        assert server.asked.total() < 400 + 3 * 200  # no more is asked twice than was under way
    expected = {tile: encode(noise(tile), "png") for tile in read_cover(large)}
    assert content(tmp_path / out) == expected
    assert not list(tmp_path.rglob(".rsp-*"))


def test_a_full_disk_is_said(tmp_path, large, rsp):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with TileServer(good) as server:
            for out in ("out", "out.pmtiles"):
                ran = rsp("download", server.url + "/{z}/{x}/{y}.png", large, disk / out, "--rate", 3000,
                          "--format", "png")  # fmt: skip
                assert ran.code == 1 and "No space left on device" in ran.stderr
                if out == "out":
                    for tile, data in content(disk / out).items():
                        assert data == encode(noise(tile), "png")
                    subprocess.run(["rm", "-r", str(disk / out)], check=True)
            assert not (disk / "out.pmtiles").exists()
            with pytest.raises(StorageError):
                run(server, large, disk / "out.pmtiles", tile_format="png")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_component(run_component, tmp_path, cover):
    with TileServer(good) as server:
        step = run_component(
            download_component, {"cover": cover}, url=server.url + "/{z}/{x}/{y}.jpg", rate=500.0, layer=""
        )
        assert content(step.path("tiles")) == {tile: encode(noise(tile), "jpg") for tile in BLOCK}
    metadata = step.artifacts["tiles"]["metadata"]
    assert metadata == {"rsp_kind": "tiles", "tiles": 12, "downloaded": 12, "skipped": 0}


def test_a_component_fails_where_tiles_do(run_component, cover):
    with (
        TileServer(lambda path, _: Reply(status=403) if tile_of(path) == BLOCK[0] else good(path)) as server,
        pytest.raises(RuntimeError),
    ):
        run_component(download_component, {"cover": cover}, url=server.url + "/{z}/{x}/{y}.jpg", rate=500.0)


def test_unknown_kinds_are_refused(tmp_path):
    write_cover(cover := tmp_path / "cover", BLOCK)
    with pytest.raises(UsageError, match="XYZ, TMS, WMS, got 'WCS'"):
        download("http://h/{z}/{x}/{y}", cover, tmp_path / "o", kind="WCS")
