"""Servers behind the front that answer as told, for faults and times; where masks matter, it is TorchServe."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rsp.shared.errors import TileError
from rsp.shared.images import decode, encode_mask
from rsp.shared.learning.card import ModelCard

Reply = tuple[int, dict[str, str], bytes]


class Upstream:
    """Speaks the contract of the servers on 127.0.0.1 while its context lasts: a mask is where red is above 127.

    Attributes:
        version: What it serves.
        state: What /status says of it.
        trouble: Called with the number of each prediction; a reply of its own, or None to predict.
        gate: Predictions wait while it is cleared.
        asked: Headers of the predictions, in order.
        most: The greatest number of predictions that were under way at once.
    """

    def __init__(self, card: ModelCard, name: str = "roofs") -> None:
        self.card, self.name, self.version, self.state = card, name, "v1", "serving"
        self.trouble: Callable[[int], Reply | None] = lambda number: None
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.counts: Counter[str] = Counter()
        self.most = self._now = 0
        self._lock = threading.Lock()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(*upstream.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(*upstream.post(self.path, dict(self.headers), body))

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def status(self) -> dict[str, object]:
        serving = self.version if self.state == "serving" else None
        about = {"wanted": self.version, "serving": serving, "state": self.state, "reason": None, "since": 0}
        return {"format": 1, "ready": serving is not None, "draining": False, "models": {self.name: about}}

    def get(self, path: str) -> Reply:
        self.counts[path] += 1
        json_type = {"Content-Type": "application/json"}
        if path == "/status":
            return 200, json_type, json.dumps(self.status()).encode()
        if path == "/healthz":
            return (200 if self.state == "serving" else 503), json_type, b"{}"
        if path in (f"/predictions/{self.name}", f"/predictions/{self.name}/{self.version}"):
            return 200, {**json_type, "X-Model-Version": self.version}, self.card.to_json().encode()
        return 404, json_type, json.dumps({"error": "Not Found", "detail": "no such model"}).encode()

    def post(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        if path not in (f"/predictions/{self.name}", f"/predictions/{self.name}/{self.version}"):
            return self.get(path)
        with self._lock:
            number = len(self.asked)
            self.asked.append(headers)
            self.bodies.append(body)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self.gate.wait(30)
            if (told := self.trouble(number)) is not None:
                return told
            try:
                overlap, image = int(headers.get("X-Overlap", 0)), decode(body)
            except (TileError, ValueError) as error:
                content = json.dumps({"error": "bad tile", "detail": str(error)}).encode()
                return 400, {"Content-Type": "application/json"}, content
            inner = image[overlap : image.shape[0] - overlap, overlap : image.shape[1] - overlap, 0]
            mask = encode_mask((inner > 127).astype("uint8"), self.card.colors)
        finally:
            with self._lock:
                self._now -= 1
        kind = headers.get("Accept", "*/*").replace("*/*", "image/png")
        if kind == "application/geo+json":
            mask = json.dumps({"type": "FeatureCollection", "features": []}).encode()
        return 200, {"Content-Type": kind, "X-Model-Version": self.version, "X-Precision": "float32"}, mask

    def __enter__(self) -> Upstream:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()
