"""The client against a server that answers as told: retries, refusals, and answers that make no sense."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import rsp.serving.client
import rsp.shared.http
from rsp.serving.client import TileClient
from rsp.serving.management import ready_workers
from rsp.shared.errors import ServingError, TileError

PNG = (200, "image/png", b"\x89PNG the mask")


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
    server.answers = [(200, "application/json", b'[{"workers": [{"status": "READY"}, {"status": "UNLOADED"}]}]')]
    url = f"http://127.0.0.1:{server.server_port}"
    assert ready_workers(url, "rsp") == 1
    assert TileClient(url).ready() and TileClient(url, management=url).ready()


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
    monkeypatch.setattr(rsp.serving.client, "retry", partial(rsp.shared.http.retry, sleep=slept.append))
    server.headers = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.answers = [BUSY, PNG]
    assert client.predict(b"image") == PNG[2]
    server.headers = {"Retry-After": "3"}
    server.answers = [BUSY, PNG]
    assert client.predict(b"image") == PNG[2]
    assert slept == [0, 3]


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
