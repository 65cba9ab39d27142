"""The client of the management API against a server that is not TorchServe's."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rsp.serving.management import TOKEN_VARIABLE, Management
from rsp.shared.errors import ServingError


@pytest.fixture
def redirecting():
    """A server that sends each request to `/elsewhere`, and notes what it was asked for."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_redirect_is_not_followed(redirecting, monkeypatch):
    """The token is for the server that was named, and for no other."""
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    url, asked = redirecting
    with pytest.raises(ServingError, match="answered 302"):
        Management(url, "rsp").versions()
    assert len(asked) == 1 and asked[0][0].startswith("/models") and asked[0][1] == "Bearer secret"


def test_what_is_not_a_url():
    with pytest.raises(ServingError, match="must look like http"):
        Management("ftp://127.0.0.1", "rsp")
