"""The front's HTTP: bad heads, slow clients, too many connections; each gets a reason, and hurts nobody else."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager

import pytest
import requests

from rsp.serving.front import http
from rsp.serving.front.http import HttpServer


async def app(scope, receive, send):
    """Answers with the body it got."""
    if scope["type"] == "lifespan":
        for name in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{name}.complete"})
        return
    body, more = b"", scope["path"] != "/unread"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server():
    started = HttpServer(app, "127.0.0.1", 0)
    started.start()
    yield started
    started.stop(0)


@contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as found:
        yield found


def read(connection: socket.socket) -> tuple[int, dict]:
    """The status and the JSON of an answer, after which the connection ends."""
    raw = b""
    while part := connection.recv(1 << 16):
        raw += part
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    content = json.loads(body)
    assert set(content) == {"error", "detail"}
    return int(head.split()[1]), content


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 8000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1500 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 100_000, 431),  # without end
        (b"GET /" + b"x" * 5_000_000, 431),  # far more than is read before it is refused
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_a_bad_head_is_refused_with_the_reason(server, sent, status):
    with connected(server) as connection:
        connection.sendall(sent)
        assert read(connection)[0] == status


def test_who_was_refused_does_not_stay(server, monkeypatch):
    monkeypatch.setattr(http, "LINGER", 0.2)
    with connected(server) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert read(connection)[0] == 400
        end = time.monotonic() + 10
        while server.connections:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_slow_clients_are_let_go(server, monkeypatch):
    monkeypatch.setattr(http, "FIRST", 0.3)
    monkeypatch.setattr(http, "BODY", 0.3)
    with (
        connected(server) as silent,
        connected(server) as head,
        connected(server) as body,
        connected(server) as two,
    ):
        head.sendall(b"GET / HTTP/1.1\r\nHost:")
        body.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        two.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert two.recv(1000).startswith(b"HTTP/1.1 200")
        two.sendall(b"GET / HT")  # the next one is as slow
        assert silent.recv(1000) == b""
        assert read(head) == (
            408,
            {"error": "Request Timeout", "detail": "the head of a request must come within 0.3 s"},
        )
        assert read(body)[1]["detail"] == "the body of a request must come within 0.3 s"
        assert read(two)[0] == 408
    assert requests.get(server.url).status_code == 200


def test_a_body_that_nobody_reads_does_not_stay(server, monkeypatch):
    monkeypatch.setattr(http, "BODY", 0.3)
    with connected(server) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        end = time.monotonic() + 10
        while connection.recv(1000):
            assert time.monotonic() < end


def test_heads_in_small_pieces_and_bodies_of_any_size_are_taken(server):
    with connected(server) as connection:
        for byte in b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n":
            connection.sendall(bytes([byte]))
        connection.sendall(b"y" * 200_000)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"y" * 200_000)
    # The head and the beginning of the body in one piece.
    assert requests.post(server.url, b"z" * 60_000, headers={"A": "x" * 4000}).content == b"z" * 60_000


def test_more_connections_than_there_may_be_are_refused(server, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    with connected(server) as one, connected(server) as two:
        for connection in (one, two):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with connected(server) as three:
            assert read(three)[0] == 503
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch):
    monkeypatch.setattr(http, "STALLED", 0.3)
    size = 32 << 20

    async def large(scope, receive, send):
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for _ in range(size >> 20):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        return await send({"type": "http.response.body", "body": b""})

    started = HttpServer(large, "127.0.0.1", 0)
    started.start()
    try:
        with connected(started) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1) == b"H" and started.connections == 1
            end = time.monotonic() + 10
            while started.connections:
                assert time.monotonic() < end
                time.sleep(0.02)
    finally:
        started.stop(0)
