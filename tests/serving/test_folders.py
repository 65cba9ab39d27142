"""`rsp serve FOLDER`: ranges, types and maps of what is in folders, and nothing of what is outside."""

from __future__ import annotations

import os
import socket

import pytest
import requests

from rsp.serving.front.folders import create_folders_app
from rsp.serving.front.http import HttpServer
from rsp.serving.tokens import Tokens
from rsp.shared.errors import UsageError
from tests.browser import Tab, chromium
from tests.tilesets import BLOCK, make_tileset

DATA = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders") / "shown"
    make_tileset(root / "tiles", fmt="webp")
    make_tileset(root / "town.pmtiles", fmt="webp")
    (root / "data.bin").write_bytes(DATA)
    (root / "roofs.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (root / "a <b> & c.txt").write_text("hello")
    (root / ".hidden").write_text("secret")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root.parent / "outside.txt").write_text("secret")
    (root.parent / "shown-too").mkdir()
    (root.parent / "shown-too" / "x.txt").write_text("secret")
    (root / "link.txt").symlink_to(root.parent / "outside.txt")
    (root / "linked").symlink_to(root.parent / "shown-too")
    (root / "git.txt").symlink_to(root / ".git" / "config")
    (root / "within.bin").symlink_to(root / "data.bin")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture(scope="module")
def server(root):
    started = HttpServer(create_folders_app([root, root / "town.pmtiles"]), "127.0.0.1", 0)
    started.start()
    yield started
    started.stop(0)


@pytest.fixture
def get(server):
    def get(path: str, method: str = "GET", **headers: str) -> requests.Response:
        request = requests.Request(method, server.url, headers=headers).prepare()
        request.url = server.url + path  # as it is, not tidied up
        with requests.Session() as session:
            return session.send(request, allow_redirects=False, timeout=20)

    return get


def test_a_file_comes_whole_or_by_ranges(get):
    whole = get("/shown/data.bin")
    assert whole.content == DATA and whole.headers["Accept-Ranges"] == "bytes"
    etag = whole.headers["ETag"]
    part = get("/shown/data.bin", Range="bytes=1000-1999")
    assert part.status_code == 206 and part.content == DATA[1000:2000]
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(DATA)}"
    assert get("/shown/data.bin", Range="bytes=-10").content == DATA[-10:]
    assert get("/shown/data.bin", Range="bytes=102000-").content == DATA[102000:]
    several = get("/shown/data.bin", Range="bytes=0-9,50000-50009")
    assert several.status_code == 206 and DATA[50000:50010] in several.content
    assert several.headers["Content-Type"].startswith("multipart/byteranges")
    # Only of the file that the client knows.
    assert get("/shown/data.bin", Range="bytes=0-9", **{"If-Range": etag}).status_code == 206
    assert get("/shown/data.bin", Range="bytes=0-9", **{"If-Range": '"another"'}).content == DATA
    assert get("/shown/data.bin", **{"If-None-Match": etag}).status_code == 304
    beyond = get("/shown/data.bin", Range="bytes=999999-")
    assert beyond.status_code == 416 and beyond.headers["Content-Range"] == f"bytes */{len(DATA)}"
    for nonsense in ("bytes=x-y", "lines=1-2", "bytes=", "bytes=5"):
        assert get("/shown/data.bin", Range=nonsense).status_code == 200
    head = get("/shown/data.bin", "HEAD")
    assert head.content == b"" and head.headers["Content-Length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/shown/roofs.geojson", "application/geo+json"),
        ("/shown/town.pmtiles", "application/vnd.pmtiles"),
        ("/shown/tiles/15/100/200.webp", "image/webp"),
        ("/shown/tiles/metadata.json", "application/json"),
        ("/shown/data.bin", "application/octet-stream"),
        ("/shown/a%20%3Cb%3E%20&%20c.txt", "text/plain; charset=utf-8"),
        ("/shown/within.bin", "application/octet-stream"),
    ],
)
def test_a_file_has_its_type(get, path, kind):
    answer = get(path)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == kind
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/shown/../outside.txt", "/shown/%2e%2e/outside.txt", "/shown/..%2foutside.txt",
        "/shown/tiles/../../outside.txt", "/shown/..%5coutside.txt", "/shown//etc/passwd",
        "/shown/%2fetc%2fpasswd",
        "/../outside.txt", "/outside.txt", "/shown-too/x.txt", "/shown/.hidden", "/shown/.git/config",
        "/shown/%2egit/config", "/shown/link.txt", "/shown/linked/x.txt", "/shown/linked/", "/shown/git.txt",
        "/shown/pipe", "/shown/none", "/shown/data.bin/", "/shown/data.bin/x", "/shown/x%00y",
        "/shown/" + "x" * 300, "/shown/.", "/shown/./data.bin",
    ],
)  # fmt: skip
def test_nothing_outside_and_nothing_hidden_is_shown(get, path):
    answer = get(path)
    assert answer.status_code == 404, answer.text
    assert set(answer.json()) == {"error", "detail"} and "secret" not in answer.text


def test_only_looking_is_possible(get):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = get("/shown/data.bin", method)
        assert answer.status_code == 405 and answer.headers["Allow"] == "GET, HEAD"


def test_lists_name_what_there_is_and_hide_the_hidden(get):
    index = get("/").text
    assert 'href="shown/"' in index and 'href="town.pmtiles.html"' in index
    listed = get("/shown/").text
    assert "a &lt;b&gt; &amp; c.txt" in listed and 'href="a%20%3Cb%3E%20%26%20c.txt"' in listed
    assert ".hidden" not in listed and ".git" not in listed
    assert 'href="town.pmtiles.html"' in listed and 'href="tiles/"' in listed
    moved = get("/shown")
    assert moved.status_code == 308 and moved.headers["Location"] == "shown/"


def test_a_file_larger_than_memory_is_streamed(root, get, server):
    import psutil

    big = root / "big.tif"
    with big.open("wb") as file:
        file.truncate(3 << 30)  # sparse
    before = psutil.Process().memory_info().rss
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /shown/big.tif HTTP/1.1\r\nHost: x\r\n\r\n")
        taken = 0
        while taken < 64 << 20:
            taken += len(connection.recv(1 << 20))
    assert psutil.Process().memory_info().rss - before < 48 << 20
    assert len(get("/shown/big.tif", Range=f"bytes={2 << 30}-{(2 << 30) + 99}").content) == 100
    big.unlink()


def test_folders_are_checked_and_named(tmp_path):
    for name in ("one/data", "two/data", ".dotted"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UsageError, match="neither a folder nor a PMTiles file"):
        create_folders_app([tmp_path / "none"])
    app = create_folders_app([tmp_path / "one/data", tmp_path / "two/data", tmp_path / ".dotted"])
    assert sorted(app._app._roots) == ["data", "data-2", "dotted-2"]


def test_tokens_hold_here_too(root, tmp_path):
    (tmp_path / "tokens").write_text("team:0123456789abcdef\n")
    (tmp_path / "tokens").chmod(0o600)
    started = HttpServer(create_folders_app([root], tokens=Tokens(tmp_path / "tokens")), "127.0.0.1", 0)
    started.start()
    try:
        assert requests.get(f"{started.url}/shown/data.bin").status_code == 401
        assert requests.get(f"{started.url}/shown/data.bin", auth=("x", "0123456789abcdef")).content == DATA
    finally:
        started.stop(0)


@pytest.mark.browser
def test_tile_sets_are_maps(server):
    with chromium() as browser:
        for path in ("/town.pmtiles.html", "/shown/town.pmtiles.html", "/shown/tiles/"):
            page = browser.new_page(viewport={"width": 1200, "height": 760})
            tab = Tab(page)
            tab.open(server.url + path)
            tab.wait_for_images(len(BLOCK))
            assert tab.errors == [] and tab.hosts == {"127.0.0.1"}
            page.close()
