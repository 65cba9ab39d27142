"""A tile server on this machine that answers as told: tiles, refusals, delays, and what is no tile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """An answer: its status, headers and body, and what is wrong with it.

    Attributes:
        cut: Bytes of the body that are promised and never sent.
        delay: Seconds before the answer.
        drip: Seconds between two bytes of the body.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    delay: float = 0.0
    drip: float = 0.0


class TileServer:
    """Serves on 127.0.0.1 while its context lasts.

    Attributes:
        answer: Called with the path and how often it was asked for before; returns the reply.
        asked: How often each path was asked for.
        headers: The headers of the last request for each path.
    """

    def __init__(self, answer: Callable[[str, int], Reply]) -> None:
        self.answer = answer
        self.asked: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with server._lock:
                    before = server.asked[self.path]
                    server.asked[self.path] += 1
                    server.headers[self.path] = dict(self.headers)
                server._send(self, server.answer(self.path, before))

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        self._stop.wait(reply.delay)
        try:
            handler.send_response(reply.status)
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            body = reply.body[: len(reply.body) - reply.cut]
            if reply.drip:
                for byte in body:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    if self._stop.wait(reply.drip):
                        break
            else:
                handler.wfile.write(body)
        except OSError:
            pass  # the client has gone
        if reply.cut:
            handler.close_connection = True

    def __enter__(self) -> TileServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        time.sleep(0)
