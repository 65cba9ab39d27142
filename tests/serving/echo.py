"""A server that stands for TorchServe where what it predicts does not matter: it answers with what it was sent."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rsp.serving.proxy import Proxy


class Echo(BaseHTTPRequestHandler):
    """Answers with what it got; a path says what else."""

    protocol_version = "HTTP/1.1"
    server: Backend

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.got.append((self.requestline, dict(self.headers), body))
        if self.path == "/predictions/wait":
            self.server.waiting.release()
            assert self.server.go.wait(60)
        status, content = self.server.says.get(self.path, (200, None))
        if content is not None:
            body = json.dumps(content).encode()
        self.send_response(status, "As asked")
        self.send_header("X-Method", self.command)
        if self.path == "/predictions/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in filter(None, (body[:10], body[10:])):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/predictions/close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: object) -> None:
        pass


class Backend(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.says: dict[str, tuple[int, dict[str, object]]] = {}  # by the path: what to answer instead
        self.lock, self.go, self.waiting = threading.Lock(), threading.Event(), threading.Semaphore(0)


def connect(proxy: Proxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)


def raw(proxy: Proxy, data: bytes) -> bytes:
    """Send bytes and return all that comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))
