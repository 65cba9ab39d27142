"""Servers that follow a release store, as far as their status goes: no TorchServe is behind them."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from rsp.serving.releases import ReleaseStore


class Follows:
    """A `/status` on 127.0.0.1 that says to serve what the pointer wants, after some looks.

    Args:
        store: What it follows.
        name: Of the model.
        looks: How many looks it takes to load a version.
        refuses: Versions that it cannot serve.
        host: Address to listen on.
        port: Port; a free one if 0.
        tls: Speak TLS.
    """

    def __init__(
        self, store: ReleaseStore, name: str = "rsp", *, looks: int = 1, refuses: tuple[str, ...] = (),
        host: str = "127.0.0.1", port: int = 0, server: str = "pod-0", tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.store, self.name, self.looks, self.refuses, self.server = store, name, looks, refuses, server
        self.serving: str | None = None
        self.draining = False
        self.seen: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.on_look: Callable[[int], None] = lambda number: None
        self.answer: Callable[[], bytes] | None = None
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    outer.asked += 1
                    outer.headers = dict(self.headers)
                    outer.on_look(outer.asked)
                    body = outer.answer() if outer.answer else json.dumps(outer.status()).encode()
                self.send_response(200 if self.path == "/status" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer((host, port), Handler)
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.host, self.port = host, self._http.server_port
        self.url = f"http://{host}:{self.port}/status"

    def status(self) -> dict[str, Any]:
        pointer = self.store.pointer(self.name)
        wanted = None if pointer is None else pointer.version
        state, reason = "serving", None
        if wanted in self.refuses:
            state, reason = "refused", "3 % of the pixels of the golden masks differ"
        elif wanted is not None and wanted != self.serving:
            state = "loading"
            self.seen[wanted] = self.seen.get(wanted, 0) + 1
            if self.seen[wanted] >= self.looks:
                self.serving, state = wanted, "serving"
        return {
            "format": 1, "server": self.server, "ready": self.serving is not None, "draining": self.draining,
            "store": {"address": self.store.address, "reachable": True, "reason": None},
            "models": {self.name: {
                "wanted": wanted, "serving": self.serving, "state": state, "reason": reason,
                "since": "2026-11-25T19:21:26Z", "torch": "2.13.0",
            }},
        }  # fmt: skip

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
