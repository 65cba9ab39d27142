"""The proxy: what it passes on, what it refuses, and how it closes."""

from __future__ import annotations

import errno
import gc
import http.client
import json
import os
import re
import select
import socket
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

import rsp.serving.proxy
from rsp.serving.archive import HERE
from rsp.serving.host import free_ports
from rsp.serving.proxy import Proxy, drop_new_connections, max_request_size
from rsp.shared.errors import ServingError
from tests.serving.echo import Backend, connect, raw

LIMIT = 100_000
URL = "/predictions/rsp"
POST, GET = b"POST /predictions/rsp HTTP/1.1\r\n", b"GET /predictions/rsp HTTP/1.1\r\n"
OLD = b"GET /predictions/rsp HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def backend():
    running = Backend()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.go.set()
    running.shutdown()
    running.server_close()


@pytest.fixture
def proxy(backend):
    backend.got.clear()
    backend.go.clear()
    made = Proxy("127.0.0.1", 0, backend.server_port, max_body=LIMIT)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("path", ["/predictions/rsp", "/predictions/chunked", "/predictions/close"])
def test_requests_and_answers_pass(proxy, backend, path):
    connection = connect(proxy)
    for size in (0, 1, LIMIT):
        body = os.urandom(size)
        connection.request("POST", path, body, {"X-Overlap": "3", "X-Twice": "a"})
        answer = connection.getresponse()
        assert (answer.status, answer.reason) == (200, "As asked")
        assert answer.read() == body and answer.headers["X-Method"] == "POST"
        assert answer.headers.get_all("Content-Length") == [str(size)]
        line, headers, got = backend.got[-1]
        assert (line, got) == (f"POST {path} HTTP/1.1", body)
        assert headers["X-Overlap"] == "3" and headers["Host"] == f"127.0.0.1:{proxy.port}"
    local = connection.sock.getsockname()
    connection.request("GET", URL)
    connection.getresponse().read()
    assert connection.sock.getsockname() == local  # one connection for all of them


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_every_method(proxy, method):
    connection = connect(proxy)
    for _ in range(2):
        connection.request(method, "/predictions/x", b"abc")
        answer = connection.getresponse()
        assert answer.headers["X-Method"] == method and answer.headers["Content-Length"] == "3"
        assert answer.read() == b"abc"


def test_bodies_in_chunks_and_with_a_question_first(proxy, backend):
    connection = connect(proxy)
    connection.request(
        "POST", URL, iter([b"abc", b"de"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert connection.getresponse().read() == b"abcde"
    assert backend.got[-1][1]["Content-Length"] == "5" and "Transfer-Encoding" not in backend.got[-1][1]
    asking = POST + b"Host: h\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
    answer = raw(proxy, asking)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nhi")
    assert raw(proxy, OLD).count(b"Connection: close") == 1


MALFORMED = {
    "negative": (POST + b"Content-Length: -1\r\n\r\n", 400, "Content-Length"),
    "no number": (POST + b"Content-Length: 1e3\r\n\r\n", 400, "Content-Length"),
    "endless number": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "Content-Length"),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "Content-Length"),
    "smuggled": (
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400, "Transfer-Encoding",
    ),
    "another coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400, "Transfer-Encoding"),
    "bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n", 400, "chunk"),
    "no HTTP": (b"hello\r\n\r\n", 400, "first line"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 400, "first line"),
    "folded": (GET + b"A: b\r\n c\r\n\r\n", 400, "not a header"),
    "space before colon": (GET + b"Content-Length : 3\r\n\r\n", 400, "not a header"),
    "bare return": (GET + b"A: b\rC: d\r\n\r\n", 400, "not a header"),
    "long head": (GET + b"A: " + b"a" * 9000 + b"\r\n\r\n", 431, "head"),
    "endless head": (GET + b"A: " + b"a" * 300_000, 431, "head"),
    "long URL": (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "URL"),
    "large": (POST + b"Content-Length: 100001\r\n\r\n" + bytes(100001), 413, "100000 bytes"),
    "large in chunks": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n186a1\r\n" + bytes(100001), 413, "100000 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_or_too_large_is_refused_with_a_reason(proxy, backend, kind):
    """C5: a negative Content-Length hung, 413 said nothing."""
    data, status, reason = MALFORMED[kind]
    head, _, body = raw(proxy, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"Connection: close" in head
    assert reason in json.loads(body)["detail"]
    assert not backend.got


def test_a_body_that_is_too_large_is_refused_and_the_client_can_read_it(proxy):
    connection = connect(proxy)
    connection.request("POST", URL, bytes(20_000_000))
    answer = connection.getresponse()
    assert answer.status == 413 and "100000 bytes" in json.loads(answer.read())["detail"]


def test_slow_clients_are_dropped(proxy, backend, monkeypatch):
    """C5: 300 slow connections stayed open for ever."""
    monkeypatch.setattr(rsp.serving.proxy, "FIRST", 0.2)
    monkeypatch.setattr(rsp.serving.proxy, "BODY", 0.2)
    slow = [socket.create_connection(("127.0.0.1", proxy.port), timeout=30) for _ in range(300)]
    for number, sock in enumerate(slow):
        sock.sendall((b"", b"POST / HT", POST + b"Content-Length: 9\r\n\r\nabc")[number % 3])
    assert [sock.recv(1) for sock in slow] == [b""] * 300
    assert not backend.got
    connection = connect(proxy)
    connection.request("GET", URL)
    assert connection.getresponse().status == 200


@pytest.mark.parametrize(("limit", "value"), [("MAX_CONNECTIONS", 0), ("MAX_HELD", 2)])
def test_more_than_it_can_hold_is_asked_to_come_back(proxy, monkeypatch, limit, value):
    monkeypatch.setattr(rsp.serving.proxy, limit, value)
    connection = connect(proxy)
    connection.request("POST", URL, b"abc")
    answer = connection.getresponse()
    assert answer.status == 503 and answer.headers["Retry-After"] == "1"
    monkeypatch.undo()
    for _ in range(2):  # nothing is counted twice
        connection = connect(proxy)
        connection.request("POST", URL, b"abc")
        assert connection.getresponse().read() == b"abc"


def test_a_backend_that_is_not_there_or_hangs_up(backend):
    (port,) = free_ports((0,))
    proxy = Proxy("127.0.0.1", 0, port, max_body=LIMIT)
    proxy.start()
    connection = connect(proxy)
    connection.request("GET", URL)
    answer = connection.getresponse()
    assert answer.status == 503 and "TorchServe does not answer" in answer.read().decode()
    with socket.create_server(("127.0.0.1", port)) as rude:
        threading.Thread(target=lambda: rude.accept()[0].close(), daemon=True).start()
        connection = connect(proxy)
        connection.request("GET", URL)
        assert connection.getresponse().status == 502
    proxy.backend = backend.server_port
    connection = connect(proxy)
    connection.request("GET", URL)
    assert connection.getresponse().status == 200
    proxy.stop()


def test_a_connection_to_the_backend_that_it_closed_is_replaced(proxy, backend):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: raw(proxy, OLD)[:12], range(8))) == [b"HTTP/1.1 200"] * 8
    assert proxy._pool
    for _, writer in proxy._pool:
        proxy._loop.call_soon_threadsafe(writer.transport.abort)
    assert raw(proxy, OLD).startswith(b"HTTP/1.1 200")


def test_a_port_that_is_taken(proxy):
    with pytest.raises(ServingError, match="choose another port"):
        Proxy("127.0.0.1", proxy.port, 1, max_body=1)


def test_the_limit_is_torchserves(monkeypatch):
    (value,) = re.findall(r"^max_request_size=(\d+)", (HERE / "config.properties").read_text(), re.M)
    assert max_request_size() == int(value)
    monkeypatch.setenv("TS_MAX_REQUEST_SIZE", "77")
    assert max_request_size() == 77


# --- the end ------------------------------------------------------------------------------------------------


def test_the_end_answers_what_was_sent_and_accepts_no_more(proxy, backend):
    """C3."""
    under_way, idle = connect(proxy), connect(proxy)
    idle.request("GET", URL)
    idle.getresponse().read()
    under_way.request("POST", "/predictions/wait", b"abc")
    assert backend.waiting.acquire(timeout=30)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(proxy.stop, 60)
        assert idle.sock.recv(1) == b""  # closed when the grace is over, not reset
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
        assert not stopped.done()
        backend.go.set()
        answer = under_way.getresponse()
        assert answer.read() == b"abc" and answer.headers["Connection"] == "close"
        assert stopped.result(30) == 0


def test_an_idle_connection_may_send_one_more(proxy, monkeypatch):
    monkeypatch.setattr(rsp.serving.proxy, "GRACE", 30.0)
    idle = connect(proxy)
    idle.request("GET", URL)
    idle.getresponse().read()
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(proxy.stop, 60)
        while True:  # the last answers of a connection say so
            idle.request("POST", URL, b"more")
            answer = idle.getresponse()
            assert answer.read() == b"more"
            if answer.headers["Connection"] == "close":
                break
        assert stopped.result(30) == 0


def test_an_end_that_is_asked_for_twice(proxy, backend, caplog):
    """As by a second Ctrl-C: the first wait ends, and leaves nothing behind."""
    connection = connect(proxy)
    connection.request("POST", "/predictions/wait", b"abc")
    assert backend.waiting.acquire(timeout=30)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(proxy.stop, 20)
        while not proxy._draining:
            time.sleep(0.01)
        assert proxy.stop() == 1
        with pytest.raises(CancelledError):
            first.result(30)
    del first
    gc.collect()
    assert "Task was destroyed" not in caplog.text


def test_what_takes_too_long_is_cut_off_and_counted(proxy, backend):
    connection = connect(proxy)
    connection.request("POST", "/predictions/wait", b"abc")
    assert backend.waiting.acquire(timeout=30)
    assert proxy.stop(0.2) == 1
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.getresponse()


def test_no_connection_is_reset_while_it_stops(proxy):
    """Clients that open one connection after the other: each is answered or refused, none is cut."""
    started = threading.Semaphore(0)

    def ask(_: int) -> Exception:
        count = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
            try:
                connection.connect()
                connection.request("POST", URL, b"abc")
                assert connection.getresponse().read() == b"abc"
            except Exception as error:  # noqa: BLE001 (whatever it is, it is looked at)
                return error
            count += 1
            if count == 20:
                started.release()

    with ThreadPoolExecutor(8) as pool:
        ends = [pool.submit(ask, number) for number in range(8)]
        for _ in ends:
            assert started.acquire(timeout=60)
        assert proxy.stop(60) == 0
    assert [type(end.result()) for end in ends] == [ConnectionRefusedError] * 8


def test_new_connections_are_passed_over_and_those_that_exist_go_on():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        waiting = socket.create_connection(address)
        drop_new_connections(listening)
        late = socket.socket()
        late.setblocking(False)
        assert late.connect_ex(address) == errno.EINPROGRESS
        waiting.sendall(b"hello")
        accepted, _ = listening.accept()
        assert accepted.recv(5) == b"hello"
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
        accepted.close()
    # The kernel knocks again a second later, and finds the door closed: refused, not reset.
    _, ready, _ = select.select([], [late], [], 30)
    assert ready and late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    late.close()
    waiting.close()
