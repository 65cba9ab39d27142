"""A proxy before an HTTP server that lets go wrong what goes wrong in networks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        forward: Whether the server gets it.
        status: The status of an answer that the proxy gives itself; None passes on the server's.
        headers: Of the answer, beside or instead of the server's.
        body: In place of the body of the answer.
        stall: Seconds for which the request is held up before anything else happens to it.
        cut: Bytes of the body after which the connection breaks; None sends all, -1 not even the status.
    """

    forward: bool = True
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    cut: int | None = None
    stall: float = 0.0


LOST_REQUEST = Fault(forward=False, cut=-1)
LOST_ANSWER = Fault(cut=-1)
NONE = Fault()
FAULTS = {
    "refused": Fault(forward=False, status=503, body=b""),
    "lost request": LOST_REQUEST,
    "lost answer": LOST_ANSWER,
    "stalled": Fault(stall=0.5),
    "cut": Fault(cut=0),
}


class OneInTen:
    """What goes wrong with a tenth of all requests: a refusal, a reset before or after, a stall, a body cut short.

    The same requests fail at every run, in whatever order they come; none thrice in a row. The bucket does not
    matter, and the faults take turns.

    Attributes:
        done: Each request that failed, and how.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.done: list[tuple[str, str]] = []
        self._share = share
        self._asked: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str, headers: Any) -> Fault:
        request = f"{method} {path.lstrip('/').partition('/')[2]} {headers.get('Range')}"
        with self._lock:
            self._asked[request] += 1
            chance = Random(f"{request} {self._asked[request]}").random()
            if chance >= self._share or self._in_a_row[request] == 2:
                self._in_a_row[request] = 0
                return NONE
            self._in_a_row[request] += 1
            name = list(FAULTS)[len(self.done) % len(FAULTS)]
            self.done.append((request, name))
        return FAULTS[name]


class FaultyProxy:
    """Forwards to a server on this machine while its context lasts.

    Attributes:
        fault: Called with method, path and headers of a request; says what happens to it.
        asked: Method and path of each request.
    """

    def __init__(
        self, host: str, fault: Callable[[str, str, Any], Fault] = lambda *_: NONE, tls: Any = None
    ) -> None:
        self.fault = fault
        self.asked: list[tuple[str, str]] = []
        self._ending = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.asked.append((self.command, self.path))
                fault = proxy.fault(self.command, self.path, self.headers)
                status, headers, data = 200, {}, b""
                proxy._ending.wait(fault.stall)
                if fault.forward:
                    connection = HTTPConnection(host, timeout=20)
                    connection.request(self.command, self.path, body, dict(self.headers))
                    reply = connection.getresponse()
                    status, headers, data = reply.status, dict(reply.getheaders()), reply.read()
                    connection.close()
                if fault.cut == -1:
                    self.close_connection = True
                    return
                data = data if fault.body is None else fault.body
                self.send_response_only(fault.status or status)
                dropped = {"content-length", "transfer-encoding", "connection"}
                if self.command == "HEAD" and fault.body is None:
                    dropped.discard("content-length")
                else:
                    self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    if name.lower() not in dropped | {replaced.lower() for replaced, _ in fault.headers}:
                        self.send_header(name, value)
                for name, value in fault.headers:
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: fault.cut])
                self.close_connection = fault.cut is not None

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._http.shutdown()
        self._http.server_close()
