"""The live front before servers that answer as told: what it asks, joins, keeps, refuses, and how it ends."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import quote

import numpy as np
import pytest
import requests

from rsp.serving.front.app import create_app
from rsp.serving.front.http import HttpServer
from rsp.serving.front.models import Models
from rsp.serving.metrics import Metrics
from rsp.serving.sources import open_source
from rsp.serving.tokens import Tokens
from rsp.shared.errors import UsageError
from rsp.shared.images import decode, decode_mask, encode
from rsp.shared.tiles import Tile
from tests.browser import STRANGE, Tab, credited
from tests.serving.test_sources import card, windows
from tests.serving.upstream import Upstream
from tests.tilesets import BLOCK, make_tileset, noise

TILE = Tile(101, 201, 15)
MASK = "/town/roofs/15/101/201"


class Client:
    """Asks the front; keeps its connection."""

    def __init__(self, url: str) -> None:
        self.url, self.session = url, requests.Session()

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.session.get(self.url + path, headers=headers, timeout=30, allow_redirects=False)

    def error(self, path: str, **headers: str) -> tuple[int, str]:
        answer = self.get(path, **headers)
        content = answer.json()
        assert set(content) == {"error", "detail"}
        return answer.status_code, content["detail"]


@pytest.fixture
def upstream():
    with Upstream(card()) as started:
        yield started


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return make_tileset(tmp_path_factory.mktemp("live") / "town.pmtiles")


@contextmanager
def running(upstream: Upstream, tiles, models: Models | None = None, attribution: str = "Town", **options):
    source = open_source(f"town={tiles}#attribution={quote(attribution)}")
    app = create_app([source], models or Models(upstream.url, attempts=3), **{"width": 2, **options})
    server = HttpServer(app, "127.0.0.1", 0)
    server.start()
    try:
        client = Client(server.url)
        client.server, client.source = server, source
        yield client
    finally:
        server.stop(0)


@pytest.fixture
def front(upstream, tiles):
    with running(upstream, tiles) as client:
        yield client


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_mask_is_asked_for_with_its_border_once(front, upstream, tiles):
    (window,) = windows(tiles, [TILE])
    answer = front.get(f"{MASK}.png")
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/png"
    assert answer.headers["X-Model-Version"] == "v1" and answer.headers["X-Precision"] == "float32"
    assert np.array_equal(decode_mask(answer.content), noise(TILE)[:, :, 0] > 127)
    assert np.array_equal(decode(upstream.bodies[0]), window)
    assert upstream.asked[0]["X-Overlap"] == "16" and upstream.asked[0]["X-Tile"] == "15/101/201"
    again = front.get(f"{MASK}.png")
    assert again.content == answer.content and len(upstream.asked) == 1
    assert front.get(f"{MASK}.png", **{"If-None-Match": answer.headers["ETag"]}).status_code == 304
    other = front.get(f"{MASK}.png?overlap=8")
    assert other.headers["ETag"] != answer.headers["ETag"] and upstream.asked[1]["X-Overlap"] == "8"
    assert front.get(f"{MASK}.geojson").json()["type"] == "FeatureCollection"
    seen = decode(front.get(f"{MASK}.tif").content)
    assert np.array_equal(seen, window) and len(upstream.asked) == 3
    head = front.session.head(f"{front.url}{MASK}.png")
    assert head.content == b"" and head.headers["Content-Length"] == answer.headers["Content-Length"]


def test_a_transparent_mask_has_the_same_pixels(front):
    plain, clear = front.get(f"{MASK}.png").content, front.get(f"{MASK}.png?transparent=true").content
    assert np.array_equal(decode_mask(plain), decode_mask(clear))
    from io import BytesIO

    from PIL import Image

    alpha = np.asarray(Image.open(BytesIO(clear)).convert("RGBA"))[:, :, 3]
    assert np.array_equal(alpha > 0, decode_mask(plain) > 0)
    assert front.error(f"{MASK}.webp?transparent=true")[0] == 400


def test_another_version_is_another_answer(front, upstream):
    before = front.get(f"{MASK}.png")
    upstream.version = "v2"
    wait_for(lambda: front.get("/status").json()["models"]["roofs"]["serving"] == "v2")
    after = front.get(f"{MASK}.png", **{"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200 and after.headers["X-Model-Version"] == "v2"
    assert front.get(f"{MASK}.png?version=v1").content == before.content  # what it answered stays true
    gone = (404, "version v1 of 'roofs' is not served (any more)")
    assert front.error("/town/roofs/15/100/200.png?version=v1") == gone
    assert front.get(f"{MASK}.png?version=v2").headers["ETag"] == after.headers["ETag"]


def test_a_switch_between_look_and_answer_is_noticed(front, upstream):
    assert front.get(f"{MASK}.png").status_code == 200
    upstream.card, upstream.version = card(overlap=8), "v2"  # nobody has looked at /status since
    answer = front.get("/town/roofs/15/100/200.png")
    assert answer.headers["X-Model-Version"] == "v2"
    assert [headers["X-Overlap"] for headers in upstream.asked] == ["16", "16", "8"]


def test_a_changed_source_is_another_answer(upstream, tmp_path):
    path = make_tileset(tmp_path / "town")
    with running(upstream, path) as front:
        before = front.get(f"{MASK}.png")
        (path / "15/102/201.png").write_bytes(encode(255 - noise(Tile(102, 201, 15)), "png"))
        after = front.get(f"{MASK}.png", **{"If-None-Match": before.headers["ETag"]})
        assert after.status_code == 200 and len(upstream.asked) == 2


def test_equal_requests_are_one(front, upstream):
    upstream.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(requests.get, f"{front.url}{MASK}.png") for _ in range(8)]
        wait_for(lambda: front.server.connections >= 8 and len(upstream.asked) == 1)
        upstream.gate.set()
        assert len({answer.result().content for answer in answers}) == 1
    assert len(upstream.asked) == 1


def test_no_more_at_once_than_asked_for_and_no_more_in_line(upstream, tiles):
    upstream.gate.clear()
    with running(upstream, tiles, line=3) as front, ThreadPoolExecutor(12) as pool:
        assert front.get("/models").status_code == 200
        urls = [f"{front.url}/town/roofs/15/{tile.x}/{tile.y}.png" for tile in BLOCK]
        answers = [pool.submit(requests.get, url) for url in urls]
        wait_for(lambda: sum(answer.done() for answer in answers) == len(BLOCK) - 5)
        refused = [answer.result() for answer in answers if answer.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert "wait already" in refused[0].json()["detail"]
        wait_for(lambda: upstream.most == 2)  # both that are let through have come this far
        upstream.gate.set()
        assert sum(answer.result().status_code == 200 for answer in answers) == 5
    assert upstream.most == 2


def test_a_client_that_goes_gives_up_its_place(upstream, tiles):
    upstream.gate.clear()
    with running(upstream, tiles, width=1) as front:
        assert front.get("/models").status_code == 200
        gate = front.server._server.config.app._app.state.tiles.gate
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(requests.get, f"{front.url}/town/roofs/15/100/200.png")
            wait_for(lambda: gate.running == 1)
            for x in (101, 102, 103):
                with pytest.raises(requests.ReadTimeout):
                    requests.get(f"{front.url}/town/roofs/15/{x}/200.png", timeout=0.1)
            wait_for(lambda: gate.waiting == 0)
            upstream.gate.set()
            assert first.result().status_code == 200
    assert len(upstream.asked) == 1


def test_a_worker_that_died_costs_no_tile_and_a_bad_tile_is_no_fault_of_the_client(front, upstream):
    died = json.dumps({"code": 500, "type": "InternalServerException", "message": "Worker died."}).encode()
    upstream.trouble = lambda number: (500, {}, died) if number == 0 else None
    assert front.get(f"{MASK}.png").status_code == 200 and len(upstream.asked) == 2
    bad = json.dumps({"error": "bad tile", "detail": "it is too blue"}).encode()
    upstream.trouble = lambda number: (400, {"Content-Type": "application/json"}, bad)
    assert front.error("/town/roofs/15/100/200.png") == (409, "it is too blue")
    upstream.trouble = lambda number: (503, {"Retry-After": "0"}, b"{}")
    status, detail = front.error("/town/roofs/15/102/200.png")
    assert status == 503 and "no worker" in detail
    upstream.trouble = lambda number: (200, {"Content-Type": "text/html"}, b"hello")
    assert front.error("/town/roofs/15/102/200.png")[0] == 502


def test_servers_that_are_gone_or_have_no_release(front, upstream):
    upstream.state = "loading"
    wait_for(lambda: front.get("/status").json()["ready"] is False)
    status, detail = front.error(f"{MASK}.png")
    assert (status, detail) == (503, "no release of 'roofs' answers (yet): loading")
    assert front.error("/healthz")[0] == 503 and front.get("/livez").status_code == 200
    assert front.get("/town/15/101/201.webp").status_code == 200
    (listed,) = front.get("/models").json()["models"]
    assert listed["state"] == "loading" and "classes" not in listed


def test_servers_without_status_have_the_models_that_the_operator_names(upstream, tiles):
    known = upstream.get
    upstream.get = lambda path: known("/none") if path in ("/status", "/healthz") else known(path)
    with running(upstream, tiles, Models(upstream.url, ["roofs"])) as front:
        assert front.get(f"{MASK}.png").status_code == 200
        assert front.get("/status").status_code == 404 and front.get("/healthz").status_code == 200
        assert front.error("/town/other/15/101/201.png")[0] == 404


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/town/roofs/15/1/1.png", 404, "has no tile 15/1/1; it has zooms 15 to 15 within"),
        ("/town/roofs/3/9/1.png", 404, "zoom 3 has columns and rows 0 to 7"),
        ("/town/roofs/31/9/1.png", 400, "z: "),
        ("/town/roofs/15/-1/1.png", 400, "x: "),
        ("/town/roofs/15/1e3/1.png", 400, "x: "),
        ("/town/roofs/15/101/201.gif", 400, "form: "),
        ("/town/roofs/15/101/201", 404, "openapi.json"),
        ("/town/roofs/15/101/201.png?overlap=17", 400, "the model takes up to 16, got 17"),
        ("/town/roofs/15/101/201.png?overlap=99999", 400, "overlap: "),
        ("/town/roofs/15/101/201.png?version=../x", 400, "version: "),
        ("/other/roofs/15/101/201.png", 404, "no source 'other'; there is town"),
        ("/town/other/15/101/201.png", 404, "no model 'other' is served here; there is roofs"),
        ("/%2e%2e/roofs/15/101/201.png", 400, "source: "),
        ("/static/../live.html", 404, ""),
        ("/nothing", 404, "openapi.json"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(front, upstream, path, status, says):
    request = requests.Request("GET", front.url).prepare()
    request.url = front.url + path  # as it is, not tidied up
    answer = front.session.send(request)
    assert answer.status_code == status and says in answer.json()["detail"]
    assert set(answer.json()) == {"error", "detail"} and upstream.asked == []


def test_what_is_missing_may_be_empty_on_request(front):
    assert front.get("/town/roofs/15/1/1.png?empty=true").status_code == 204
    assert front.get("/town/15/1/1.webp?empty=true").status_code == 204
    assert front.get("/other/15/1/1.webp?empty=true").status_code == 404


def test_a_source_that_the_model_cannot_take_is_a_conflict(upstream, tiles):
    upstream.card = card(tile_size=128)
    with running(upstream, tiles) as front:
        assert front.error(f"{MASK}.png") == (
            409, "the tiles of the source 'town' have 64 pixels a side, the model takes 128"
        )  # fmt: skip


def test_images_are_passed_on_as_they_are(front, upstream):
    image = encode(noise(TILE), "png")
    url = f"{front.url}/predictions/roofs"
    answer = requests.post(url, image, headers={"X-Overlap": "4", "X-Request-Id": "me-1", "Accept": "image/webp"})
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/webp"
    assert answer.headers["X-Request-Id"] == "me-1" and answer.headers["X-Model-Version"] == "v1"
    assert upstream.bodies == [image]
    assert {name: upstream.asked[0][name] for name in ("X-Overlap", "X-Request-Id", "Accept")} == {
        "X-Overlap": "4", "X-Request-Id": "me-1", "Accept": "image/webp"
    }  # fmt: skip
    assert requests.post(f"{url}/v1", image).status_code == 200
    assert requests.post(f"{url}/v9", image).status_code == 404
    assert requests.post(f"{front.url}/predictions/x", image).status_code == 404
    assert requests.post(url, b"").json()["detail"] == "the body is empty: send an image"
    assert requests.post(url, b"x" * (17 << 20)).status_code == 413
    assert requests.post(url, image, headers={"Content-Encoding": "gzip"}).status_code == 415
    bad = json.dumps({"error": "bad tile", "detail": "not an image"}).encode()
    upstream.trouble = lambda number: (400, {"Content-Type": "application/json"}, bad)
    answer = requests.post(url, b"nonsense")
    assert answer.status_code == 400 and answer.json()["detail"] == "not an image"
    described = requests.get(url)
    assert described.json()["tile_size"] == 64 and described.headers["X-Model-Version"] == "v1"
    assert requests.get(f"{url}/v9").status_code == 404 and requests.delete(url).status_code == 405


def test_tokens_are_asked_for_by_all_but_probes(upstream, tiles, tmp_path):
    (tmp_path / "tokens").write_text("team:0123456789abcdef\n")
    (tmp_path / "tokens").chmod(0o600)
    with running(upstream, tiles, tokens=Tokens(tmp_path / "tokens")) as front:
        for path in ("/", "/models", f"{MASK}.png", "/openapi.json", "/static/live.js", "/nothing"):
            refused = front.get(path)
            assert refused.status_code == 401 and "Basic" in refused.headers["WWW-Authenticate"]
        assert requests.post(f"{front.url}/predictions/roofs", b"x").status_code == 401
        for path in ("/livez", "/healthz", "/status"):
            assert front.get(path).status_code == 200
        assert front.get(f"{MASK}.png", Authorization="Bearer 0123456789abcdef").status_code == 200
        assert requests.get(f"{front.url}/", auth=("any", "0123456789abcdef")).status_code == 200
    assert len(upstream.asked) == 1


def test_other_origins_read_only_what_the_operator_lets_them(upstream, tiles):
    with running(upstream, tiles, origins=["https://maps.example"]) as front:
        allowed = front.get(f"{MASK}.png", Origin="https://maps.example")
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://maps.example"
        assert "Origin" in allowed.headers["Vary"]
        assert "Access-Control-Allow-Origin" not in front.get(f"{MASK}.png", Origin="https://evil.example").headers
        asked = {"Origin": "https://maps.example", "Access-Control-Request-Method": "GET"}
        assert front.session.options(f"{front.url}{MASK}.png", headers=asked).status_code == 204
    with running(upstream, tiles) as front:
        headers = front.get(f"{MASK}.png", Origin="https://maps.example").headers
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert front.session.options(f"{front.url}{MASK}.png", headers=asked).status_code == 405


def test_what_there_is_is_told(front):
    (source,) = front.get("/sources").json()["sources"]
    assert source["name"] == "town" and source["attribution"] == "Town" and source["maxzoom"] == 15
    (model,) = front.get("/models").json()["models"]
    assert model["version"] == "v1" and [entry["title"] for entry in model["classes"]] == [
        "background",
        "building",
    ]
    told = front.get("/town/roofs.json").json()
    assert told["tilejson"] == "3.0.0" and told["minzoom"] == told["maxzoom"] == 15
    url = told["tiles"][0].format(z=15, x=101, y=201)
    assert requests.get(url).headers["Content-Type"] == "image/png"
    assert requests.get(front.get("/town.json").json()["tiles"][0].format(z=15, x=101, y=201)).status_code == 200
    page = front.get("/")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"] and "unsafe" not in str(page.headers)
    assert "http" not in page.text.replace("http-equiv", "")


def test_tiles_in_a_folder_outlive_the_process_and_damaged_ones_are_made_again(upstream, tiles, tmp_path):
    for round_ in range(3):
        with running(upstream, tiles, cache_folder=tmp_path / "cache", cache_bytes=0) as front:
            answer = front.get(f"{MASK}.png")
            assert answer.status_code == 200 and answer.headers["X-Model-Version"] == "v1"
        (file,) = (tmp_path / "cache").glob("*/*.tile")
        assert len(upstream.asked) == 1 + (round_ == 2)
        if round_ == 1:
            data = bytearray(file.read_bytes())
            data[-20] ^= 1
            file.write_bytes(data)


def test_metrics_tell_what_was_asked(upstream, tiles):
    metrics = Metrics()
    with running(upstream, tiles, metrics=metrics) as front:
        front.get(f"{MASK}.png")
        front.get(f"{MASK}.png")
        front.get("/town/invented/15/101/201.png")
        text = metrics.render().decode()
    assert 'rsp_live_cache_total{result="hit"} 1.0' in text and 'rsp_live_cache_total{result="miss"} 1.0' in text
    assert "invented" not in text
    assert 'rsp_live_source_seconds_count{source="town"} 1.0' in text


def test_who_is_told_that_it_is_ready_is_not_refused(upstream, tiles, caplog):
    """Between two looks at the servers' status, /healthz knows more than what was seen last."""
    upstream.state = "loading"
    with caplog.at_level("WARNING", "rsp.serving.requests"), running(upstream, tiles) as front:
        while front.get("/status").json().get("models") is None:
            time.sleep(0.01)
        assert front.get("/healthz").status_code == 503
        assert not caplog.records  # a probe that finds it so is no fault
        upstream.state = "serving"
        assert front.get("/healthz").status_code == 200
        assert front.get(f"{MASK}.png").status_code == 200


def test_curl_sends_a_file_with_put(front):
    image = encode(noise(TILE), "png")
    for path in ("/predictions/roofs", "/predictions/roofs/v1"):
        answers = [front.session.request(method, front.url + path, data=image) for method in ("PUT", "POST")]
        assert answers[0].status_code == 200 and answers[0].content == answers[1].content


def test_the_end_loses_no_request(upstream, tiles):
    upstream.gate.clear()
    with running(upstream, tiles) as front:
        idle = requests.Session()
        assert idle.get(f"{front.url}/livez").status_code == 200
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(requests.get, f"{front.url}/town/roofs/15/{x}/200.png") for x in (100, 101)]
            wait_for(lambda: len(upstream.asked) == 2)
            ending = threading.Thread(target=lambda: answers.append(front.server.stop(20)))
            ending.start()
            # Its connection was open: what it sends now is still answered, and then the connection is closed.
            wait_for(lambda: idle.get(f"{front.url}/livez").headers.get("Connection") == "close")
            upstream.gate.set()
            assert [answer.result().status_code for answer in answers[:2]] == [200, 200]
            ending.join()
        assert answers[2] == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{front.url}/livez")


def test_a_request_that_takes_too_long_at_the_end_is_counted(upstream, tiles):
    upstream.gate.clear()
    with running(upstream, tiles) as front, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(requests.get, f"{front.url}{MASK}.png")
        wait_for(lambda: len(upstream.asked) == 1)
        assert front.server.stop(0.1) == 1
        upstream.gate.set()
        with pytest.raises(requests.ConnectionError):
            answer.result()


def test_an_endpoint_is_a_url():
    from rsp.shared.errors import ServingError

    with pytest.raises(ServingError, match="must be a URL"):
        Models("ftp://x")
    with pytest.raises(UsageError):
        open_source("x")


@pytest.mark.browser
def test_whose_the_imagery_is_is_text_and_links_alone(upstream, tiles, browser):
    with running(upstream, tiles, attribution=STRANGE) as client:
        tab = Tab(browser.new_page())
        page = tab.open(f"{client.url}/")
        credited(page.locator(".leaflet-control-attribution"), "https://leafletjs.com")
        page.close()
    assert tab.errors == [] and tab.hosts == {"127.0.0.1"}


@pytest.mark.browser
def test_the_map_is_fitted_to_the_size_that_the_page_gets_after_its_script(front, browser):
    tab = Tab(browser.new_page(viewport={"width": 1, "height": 1}))
    page = tab.open(f"{front.url}/")
    page.set_viewport_size({"width": 1200, "height": 760})
    page.wait_for_function(
        """() => {
            const tiles = [...document.querySelectorAll(".leaflet-tile:not(.empty)")];
            const boxes = tiles.map((each) => each.getBoundingClientRect());
            return boxes.length > 0 && boxes.every(({ left, top, right, bottom }) =>
                left >= 0 && top >= 0 && right <= innerWidth - 264 && bottom <= innerHeight);
        }"""
    )
    page.close()
    assert tab.errors == []
