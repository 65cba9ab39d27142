"""Chromium and a small web server, to see pages as people do."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",  # the tests may run as root, in a container
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and ranges of them where the server is told to; counts the ranges."""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (asked and self.server.ranges and path.is_file()):  # type: ignore[attr-defined]
            return super().do_GET()
        self.server.served_ranges += 1  # type: ignore[attr-defined]
        data = path.read_bytes()
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path, *, ranges: bool = True) -> Iterator[ThreadingHTTPServer]:
    """Serve a folder on 127.0.0.1; the server's `url` ends in a slash."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.ranges, server.served_ranges = ranges, 0  # type: ignore[attr-defined]
    server.url = f"http://127.0.0.1:{server.server_port}/"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# What somebody may have written into the metadata of tiles: a page shows the text of it, and the link to the web.
STRANGE = (
    '<img src="x" onerror="document.title = 1">© <a href="javascript:document.title = 2">me</a> '
    '<a href="https://tiles.example" onclick="document.title = 3">tilers</a>'
    "<script>document.title = 4</script><svg onload='document.title = 5'></svg>"
)


def credited(place: Any, *others: str) -> None:
    """Assert that an element of a page shows the text and the link of `STRANGE`, and nothing of it has run.

    Args:
        place: Its locator.
        others: Where its other links lead.
    """
    assert "© me tilers" in place.inner_text()
    strange = "img, script, [onclick], [onload], [onerror]"
    assert place.evaluate("(each, strange) => each.querySelectorAll(strange).length", strange) == 0
    links = place.evaluate("each => [...each.querySelectorAll('a')].map(one => one.getAttribute('href'))")
    assert sorted(links) == sorted(["https://tiles.example", *others])
    assert place.page.title() not in ("1", "2", "3", "4", "5")


class Tab:
    """A page, what it said, and what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.hosts: set[str] = set()
        # For a test without images: that they are missing is no error then, however late it is said.
        self.images_missing = False
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)
        page.on("request", self._asked)
        page.on("dialog", self._dialog)

    def _said(self, message: Any) -> None:
        if self.images_missing and "404" in message.text:
            return
        {"error": self.errors, "warning": self.warnings}.get(message.type, []).append(message.text)

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob", "about", "file"):
            self.hosts.add(parts.hostname or "")

    def _dialog(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, url: str) -> Any:
        """Go to a page of ours and wait until it knows its tiles."""
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def wait_for_images(self, count: int) -> None:
        """Wait until so many tiles show their image."""
        self.page.wait_for_function(
            "count => [...document.querySelectorAll('img.tile')].filter(i => i.naturalWidth).length === count",
            arg=count,
        )


@contextmanager
def chromium() -> Iterator[Any]:
    """Run Chromium; skips the test where there is none."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
