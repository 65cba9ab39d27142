"""The client against a server that answers as told: retries, refusals, and answers that make no sense."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import rsp.serving.client
import rsp.shared.http
from rsp.serving.client import TileClient
from rsp.shared.errors import ServingError, TileError
from rsp.shared.images import decode, sniff
from rsp.shared.learning.card import ModelCard
from rsp.shared.tiles import Tile
from tests.networks import make_card
from tests.tilesets import BLOCK, noise

PNG = (200, "image/png", b"\x89PNG the mask")
GEOJSON = "application/geo+json"


class Scripted(ThreadingHTTPServer):
    """Answers each request with the next of `answers` (status, content type, body), the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers: list[tuple[int, str, bytes] | str] = [PNG]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.headers: dict[str, str] = {}
        self.lock = threading.Lock()


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if answer == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
            return
        if answer == "silence":
            time.sleep(2)
            answer = PNG
        assert not isinstance(answer, str)
        self.send_response(answer[0])
        self.send_header("Content-Type", answer[1])
        self.send_header("Content-Length", str(len(answer[2])))
        for header in self.server.headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(answer[2])

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(rsp.serving.client, "BACKOFF", 0.001)
    running = Scripted()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def client(server):
    with TileClient(f"http://127.0.0.1:{server.server_port}", timeout=1) as made:
        yield made


DIED = b'{"code": 500, "type": "x", "message": "Worker died."}'
BUSY = (503, "application/json", b'{"code": 503, "type": "x", "message": "no worker to serve"}')


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert TileClient(f"http://127.0.0.1:{server.server_port}").ready()


def test_what_is_sent(server, client, monkeypatch):
    assert client.predict(b"image", overlap=32) == PNG[2]
    client.predict(b"image")
    (path, headers, body), (_, plain, _) = server.requests
    assert (path, body) == ("/predictions/rsp", b"image")
    assert (headers["content-type"], headers["x-overlap"]) == ("application/octet-stream", "32")
    assert "x-overlap" not in plain and "authorization" not in plain
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "s3cret")
    TileClient(client.endpoint).predict(b"image")
    assert server.requests[-1][1]["authorization"] == "Bearer s3cret"


def test_a_token_with_a_line_break_is_not_printed(server, client, monkeypatch, tmp_path):
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "s3cret\n")  # as a file ends
    TileClient(client.endpoint).predict(b"image")
    assert server.requests[-1][1]["authorization"] == "Bearer s3cret"
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "s3cret\nX-Evil: 1")
    with pytest.raises(ServingError, match="RSP_TORCHSERVE_TOKEN holds") as caught:
        TileClient(client.endpoint)
    assert "s3cret" not in str(caught.value)


def test_passwords_of_other_places_are_not_sent(server, client, monkeypatch, tmp_path):
    """requests would put those of ~/.netrc in the place of the token."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pass\n")
    monkeypatch.setattr(rsp.serving.client, "is_loopback", lambda url: False)
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "s3cret")
    monkeypatch.setenv("no_proxy", "*")
    TileClient(client.endpoint).predict(b"image")
    assert server.requests[-1][1]["authorization"] == "Bearer s3cret"
    with pytest.raises(ServingError, match="holds a user or a password") as caught:
        TileClient(client.endpoint.replace("//", "//me:secret1@"))
    assert "secret1" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server, client, monkeypatch, status):
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "s3cret")
    server.headers = {"Location": f"{client.endpoint}/elsewhere"}
    server.answers = [(status, "text/plain", b"")]
    with TileClient(client.endpoint) as other:
        with pytest.raises(ServingError, match=r"answered with a redirect; if http.*/elsewhere is right"):
            other.predict(b"image")
        assert not other.ready()
    assert [path for path, _, _ in server.requests] == ["/predictions/rsp"] * 2


@pytest.mark.parametrize(
    ("tail", "version", "path"),
    [
        ("", "", "/predictions/rsp"),
        ("/", "2", "/predictions/rsp/2"),
        ("/predictions/roofs", "", "/predictions/roofs"),
        ("/predictions/roofs/3/", "", "/predictions/roofs/3"),
        ("/gateway", "", "/gateway/predictions/rsp"),
    ],
)
def test_endpoints(server, client, tail, version, path):
    TileClient(client.endpoint + tail, version=version).predict(b"x")
    assert server.requests[-1][0] == path


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "ftp://host", "", "http://"])
def test_what_is_no_endpoint(endpoint):
    with pytest.raises(ServingError, match="must be a URL"):
        TileClient(endpoint)


@pytest.mark.parametrize("trouble", [BUSY, (429, "text/plain", b"slow down"), (502, "text/html", b"?"), "reset"])
def test_trouble_that_passes(server, client, trouble):
    server.answers = [trouble, trouble, PNG]
    assert client.predict(b"image") == PNG[2]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [500, 507])
def test_a_worker_that_died_costs_no_tile(server, client, status):
    died = (status, "application/json", DIED)
    server.answers = [died, died, PNG]
    assert client.predict(b"image") == PNG[2]
    # A tile that kills every worker fails after a few; a request for the card is never to blame.
    server.answers, server.requests = [died], []
    with pytest.raises(TileError, match=r"3 workers of the server died .* this tile") as caught:
        client.predict(b"image")
    assert len(server.requests) == 3 and "memory" not in str(caught.value)
    with pytest.raises(ServingError, match=r"Worker died\. \(tried 8 times\)"):
        client.card()


def test_a_retry_after_that_is_a_date(server, client, monkeypatch):
    slept = []
    monkeypatch.setattr(rsp.serving.client.time, "sleep", slept.append)
    server.headers = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.answers = [BUSY, PNG]
    assert client.predict(b"image") == PNG[2]
    server.headers = {"Retry-After": "3"}
    server.answers = [BUSY, PNG]
    assert client.predict(b"image") == PNG[2]
    assert slept[0] < 0.1 and 3 <= slept[1] <= 4.5


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_is_asked_again_when_it_says(server, monkeypatch, status):
    """It is no fault: it is waited out, as long as an answer may take."""
    slept = []
    monkeypatch.setattr(rsp.serving.client.time, "sleep", slept.append)
    full = (status, "application/json", b'{"error": "Too Many Requests", "detail": "full"}')
    server.headers = {"Retry-After": "2"}
    server.answers = [full] * 20 + [PNG]
    # A patient client: what takes longer than its timeout on a busy machine would be tried again without a pause.
    with TileClient(f"http://127.0.0.1:{server.server_port}", timeout=60) as client:
        assert client.predict(b"image") == PNG[2]
    assert len(slept) == 20 and all(2 <= seconds <= 3 for seconds in slept) and len(set(slept)) > 10
    # Who says how often to try, as one behind whom somebody waits, is told soon.
    server.answers, server.requests, server.headers = [full], [], {"Retry-After": "0"}
    with TileClient(client.endpoint, attempts=2) as other, pytest.raises(ServingError, match="full") as caught:
        other.predict(b"image")
    assert caught.value.status == status and len(server.requests) == 2


def test_a_full_server_is_not_asked_for_ever(server):
    server.headers = {"Retry-After": "0"}
    server.answers = [*[(429, "text/plain", b"full")] * 300, PNG]
    url = f"http://127.0.0.1:{server.server_port}"
    full = pytest.raises(ServingError, match=r"is busy.*\(tried 8 times\)")
    with TileClient(url, timeout=0.05) as client, full:
        client.predict(b"image")
    assert len(server.requests) >= 8


CARD = make_card().to_json().encode()


def test_a_run_holds_on_to_one_version(server, client):
    server.headers = {"X-Model-Version": "v1"}
    server.answers = [(200, "application/json", CARD), PNG]
    assert client.pin() == ModelCard.from_json(CARD) and client.predict(b"image") == PNG[2]
    assert [path for path, _, _ in server.requests] == ["/predictions/rsp", "/predictions/rsp/v1"]
    # Another version that answers in its place is found out, as is its absence.
    server.headers = {"X-Model-Version": "v2"}
    gone = r"predictions/rsp/v1: version 'v1' of 'rsp' is not served any more.* without --resume"
    with pytest.raises(ServingError, match=gone):
        client.predict(b"image")
    server.answers = [(404, "application/json", b'{"message": "Model version: v1 does not exist"}')]
    with pytest.raises(ServingError, match=gone):
        client.predict(b"image")
    # A version that was asked for by its name is only said not to be there.
    with TileClient(client.endpoint, version="v7") as named, pytest.raises(ServingError, match="no version 'v7'"):
        named.predict(b"image")


def test_a_server_that_tells_no_version_is_asked_as_it_is(server, client):
    server.answers = [(200, "application/json", CARD), PNG]
    client.pin()
    assert client.predict(b"image") == PNG[2] and server.requests[-1][0] == "/predictions/rsp"


def test_other_forms_of_an_answer(server, client):
    server.headers = {"X-Shape": "2,2,1"}
    server.answers = [(200, "application/octet-stream", b"\1\2\3\4")]
    assert client.probabilities(b"image", overlap=3).tolist() == [[[1], [2]], [[3], [4]]]
    assert server.requests[-1][1]["accept"] == "application/octet-stream"
    for shape in ("2,2", "2,2,2", "-1,2,2", "1e3,1,1", ""):
        server.headers = {"X-Shape": shape}
        with pytest.raises(ServingError, match="4 bytes that are not of its X-Shape"):
            client.probabilities(b"image")
    server.answers = [(200, "application/geo+json", b'{"type": "FeatureCollection", "features": []}')]
    assert client.features(b"image", Tile(100, 200, 15))["features"] == []
    assert (server.requests[-1][1]["accept"], server.requests[-1][1]["x-tile"]) == (GEOJSON, "15/100/200")
    server.answers = [(200, "application/geo+json", b"{")]
    with pytest.raises(ServingError, match="did not answer with GeoJSON"):
        client.features(b"image", Tile(100, 200, 15))
    server.answers = [PNG]
    with pytest.raises(ServingError, match="did not answer with image/webp"):
        client.predict(b"image", accept="image/webp")


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("10.1.2.3", True), ("192.168.0.9", True),
        ("[fe80::1]", True), ("8.8.8.8", False), ("[2001:4860:4860::8888]", False),
        ("no-such-host.invalid", False),
    ],
)  # fmt: skip
def test_pixels_are_sent_as_they_are_to_a_server_that_is_near(host, near):
    window = noise(BLOCK[0])
    with TileClient(f"http://{host}:8080") as client:
        assert client.near is near
        sent = client.encode(window)
    assert np.array_equal(decode(sent), window)
    assert sniff(sent) == ("tif" if near else "webp")


def test_trouble_that_stays(server, client):
    server.answers = [BUSY]
    with pytest.raises(ServingError, match=r"is busy, or no worker .*no worker to serve \(tried 8 times\)"):
        client.predict(b"image")
    assert len(server.requests) == 8


def test_nobody_there():
    with pytest.raises(ServingError, match=r"cannot be reached: Connection refused \(tried 2 times\)"):
        TileClient("http://127.0.0.1:9", attempts=2).predict(b"image")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ((400, "application/json", b'{"error": "bad tile", "detail": "too blue"}'), TileError, "too blue"),
        (
            (400, "application/json", b'{"code": 400, "message": "Token wrong"}'),
            ServingError,
            "Token",
        ),
        ((400, "text/plain", b"what"), ServingError, "what"),
        ((413, "text/plain", b""), TileError, "larger than the server takes"),
        (
            (404, "application/json", b'{"message": "Model not found: rsp"}'),
            ServingError,
            "no model 'rsp'",
        ),
        ((413, "application/json", b'{"detail": "at most 16 MiB"}'), TileError, "tile: at most 16 MiB"),
        ((406, "application/json", b'{"error": "not acceptable", "detail": "Accept"}'), TileError, "tile: Accept"),
        ((500, "application/json", b'{"error": "model failed", "detail": "NaN there"}'), TileError, "^NaN there$"),
        ((507, "application/json", b'{"error": "out of memory", "detail": "more"}'), TileError, "^more$"),
        ((507, "application/json", b'{"message": "Out of resources"}'), ServingError, "ran out of memory"),
        ((503, "application/json", b'{"message": "Prediction failed"}'), ServingError, "log has the reason"),
        ((401, "text/plain", b"no"), ServingError, "RSP_TORCHSERVE_TOKEN"),
        ((200, "text/html", b"<html>"), ServingError, "did not answer with a mask"),
    ],
)
def test_answers_that_would_be_the_same_next_time(server, client, answer, error, text):
    server.answers = [answer]
    with pytest.raises(error, match=text) as caught:
        client.predict(b"image")
    assert type(caught.value) is error
    assert len(server.requests) == 1


def test_an_answer_that_does_not_come(server):
    server.answers = ["silence"]
    with pytest.raises(ServingError, match=r"no answer within 0\.2 s"):
        TileClient(f"http://127.0.0.1:{server.server_port}", timeout=0.2).predict(b"image")
    assert len(server.requests) == 1


def test_many_threads_share_a_client(server, client):
    server.answers = [BUSY, PNG, "reset", PNG, PNG]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client.predict, [b"%d" % number for number in range(64)])) == [PNG[2]] * 64
    assert {body for _, _, body in server.requests} == {b"%d" % number for number in range(64)}
