"""Folders over HTTP: tile sets as maps, files by byte ranges, and lists; nothing that lies outside of them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import mimetypes
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from rsp.serving.front.errors import RefusedError, refusal
from rsp.serving.front.outer import Outer, note
from rsp.serving.tokens import Tokens
from rsp.shared.attribution import of_readers
from rsp.shared.errors import RspError, TileSetError, UsageError
from rsp.shared.tileset import is_archive, open_reader
from rsp.shared.tileset.base import FORMATS
from rsp.shared.webmap import tileset_page

logger = logging.getLogger(__name__)

# Our pages hold their scripts and styles themselves; the one foreign host is that of the background map, which a
# page asks only where somebody ticks a box.
POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; img-src 'self' data: blob: https://tile.openstreetmap.org; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'self'"
)
TYPES = {
    ".pmtiles": "application/vnd.pmtiles", ".geojson": "application/geo+json", ".json": "application/json",
    ".webp": "image/webp", ".tif": "image/tiff", ".tiff": "image/tiff", ".png": "image/png", ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
    ".html": "text/html", ".csv": "text/csv", ".txt": "text/plain", ".toml": "text/plain", ".md": "text/plain",
    ".gpkg": "application/geopackage+sqlite3", ".svg": "image/svg+xml",
}  # fmt: skip
# Entries that a list shows; pages of tile sets that are kept.
MOST, PAGES = 2000, 16
_RANGES = re.compile(r"bytes=\s*(\d{1,18}-\d{0,18}|-\d{1,18})(\s*,\s*(\d{1,18}-\d{0,18}|-\d{1,18}))*\s*")


def create_folders_app(folders: Sequence[Path], *, tokens: Tokens | None = None) -> Outer:
    """Return the application that shows folders, each under its name.

    Args:
        folders: The folders, or single PMTiles files.
        tokens: Who may look; everybody where None.

    Raises:
        UsageError: one is neither a folder nor a PMTiles file.
    """
    return Outer(Folders(folders), tokens=tokens, origins=(), metrics=None, heads=True)


class Folders:
    """An ASGI application.

    Args:
        folders: What it shows.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._roots: dict[str, Path] = {}
        self._pages: OrderedDict[tuple[Path, str], str] = OrderedDict()
        self._lock = threading.Lock()
        for folder in folders:
            path = folder.expanduser()
            if not path.is_dir() and not (path.is_file() and is_archive(path)):
                raise UsageError(f"{folder} is neither a folder nor a PMTiles file")
            base = path.resolve().name or "files"
            name, number = base, 1
            while name in self._roots or name.startswith("."):
                number += 1
                name = f"{base.lstrip('.')}-{number}"
            self._roots[name] = path.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        request = Request(scope, receive)
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise RefusedError(405, "folders can only be looked at", {"Allow": "GET, HEAD"})
            answer = await asyncio.to_thread(self._answer, request)
        except RefusedError as error:
            note(scope, detail=error.detail)
            answer = refusal(error.status, error.detail, error.headers)
        answer.headers["Content-Security-Policy"] = POLICY
        await answer(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        path: str = request.scope["path"]
        if path in ("/healthz", "/livez"):
            return Response("{}", media_type="application/json")
        if path == "/":
            entries = [_entry(name, root) for name, root in sorted(self._roots.items())]
            return _html(_list("Folders", "", entries, up=False))
        found, wanted = self._find(path)
        if wanted is not None:
            return _html(self._page(found, wanted))
        if found.is_dir():
            if not path.endswith("/"):
                # Relative, so that it holds behind a proxy that knows this server by another name, too.
                return RedirectResponse(f"{quote(path.rpartition('/')[2])}/", 308)
            index = found / "index.html"
            if index.is_file() and self._inside(index, path):
                return self._file(index, request)
            if _is_tileset(found):
                return _html(self._page(found, "folder"))
            return _html(_listing(found, path))
        if path.endswith("/"):
            raise RefusedError(404, "this is a file: leave out the slash behind it")
        return self._file(found, request)

    def _find(self, path: str) -> tuple[Path, str | None]:
        """Return what is at a path, and, where that is the page of an archive which has none as a file, `archive`.

        Raises:
            RefusedError: nothing is there that may be shown (404).
        """
        missing = RefusedError(404, "there is no such file or folder")
        name, *parts = path.strip("/").split("/")
        root = self._roots.get(name)
        if root is None and name.endswith(".html") and not parts:
            root, parts = self._roots.get(name.removesuffix(".html")), [".html"]
            if root is not None and root.is_file():
                return root, "archive"
        if root is None:
            raise missing
        # Hidden files are nobody's business, and a name that means something to the system is no name.
        if any(part in ("", ".", "..") or part[0] == "." or re.search(r"[\\\0]", part) for part in parts):
            raise missing
        target = root.joinpath(*parts)
        try:
            if not target.exists() and target.name.endswith(".pmtiles.html"):
                archive = target.with_name(target.name.removesuffix(".html"))
                if archive.is_file() and self._inside(archive, path):
                    return archive, "archive"
            resolved = target.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise missing from None
        if not self._inside(target, path):
            raise missing
        mode = resolved.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not os.access(resolved, os.R_OK):
            raise missing
        return resolved, None

    def _inside(self, target: Path, path: str) -> bool:
        """Tell whether a file, with its links followed, lies in the folder that its path names."""
        root = self._roots[path.strip("/").partition("/")[0]]
        resolved = target.resolve()
        if resolved == root:
            return True
        inner = resolved.relative_to(root).parts if resolved.is_relative_to(root) else ()
        return bool(inner) and not any(part.startswith(".") for part in inner)

    def _file(self, path: Path, request: Request) -> Response:
        """Return a file, or the ranges of it that are asked for."""
        status = path.stat()
        stamp = f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"
        etag = f'"{hashlib.blake2b(stamp.encode(), digest_size=12).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        known = request.headers.get("if-none-match", "")
        if known and (
            known.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in known.split(","))
        ):
            return Response(status_code=304, headers=headers)
        asked = request.headers.get("range")
        if asked is not None and not _RANGES.fullmatch(asked):
            # As the standard has it: what is no range is not there.
            request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        elif asked is not None and "," not in asked and not request.headers.get("if-range"):
            first = asked.partition("=")[2].strip().partition("-")[0]
            if (first and int(first) >= status.st_size) or (not first and asked.strip().endswith("-0")):
                raise RefusedError(
                    416, f"the file has {status.st_size} bytes", {"Content-Range": f"bytes */{status.st_size}"}
                )
        kind = TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        kind += "; charset=utf-8" if kind.startswith("text/") else ""
        return FileResponse(path, headers=headers, media_type=kind, stat_result=status)

    def _page(self, path: Path, kind: str) -> str:
        """Return the map of a tile set."""
        status = path.stat()
        key = (path, f"{status.st_mtime_ns} {status.st_size} {status.st_ino}")
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key]
        try:
            with open_reader(path) as reader:
                name = path.name if kind == "archive" else ""
                text = tileset_page(
                    reader.cover(), reader.format, title=path.name, archive=name, attribution=of_readers([reader])
                )
        except (TileSetError, RspError) as error:
            raise RefusedError(404, str(error)) from None
        if kind == "archive":  # a folder may get tiles without a change of its own
            with self._lock:
                self._pages[key] = text
                while len(self._pages) > PAGES:
                    self._pages.popitem(last=False)
        return text


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _html(text: str) -> Response:
    return HTMLResponse(text, headers={"Cache-Control": "no-cache"})


def _is_tileset(folder: Path) -> bool:
    """Tell whether a folder looks like tiles: a zoom, a column and a tile in it."""
    try:
        for zoom in _numbered(folder):
            for column in _numbered(zoom):
                with os.scandir(column) as files:
                    return any(entry.name.partition(".")[2].lower() in FORMATS for entry in files)
    except OSError:
        pass
    return False


def _numbered(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.name.isdecimal() and entry.is_dir()]


def _entry(name: str, path: Path) -> tuple[str, str, str, str]:
    """Return what a list says of something: its link, its name, what it is, and its size."""
    if path.is_dir():
        map_ = (path / "index.html").is_file() or _is_tileset(path)
        return f"{quote(name)}/", name, "map" if map_ else "folder", ""
    size = _size(path.stat().st_size)
    if is_archive(path):
        return f"{quote(name)}.html", name, "map", size
    kinds = {".geojson": "features", ".html": "page", ".csv": "cover"}
    return quote(name), name, kinds.get(path.suffix.lower(), "file"), size


def _listing(folder: Path, path: str) -> str:
    entries: list[tuple[str, str, str, str]] = []
    more = 0
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    for name in names:
        child = folder / name
        if name.endswith(".pmtiles.html") and name.removesuffix(".html") in names:
            continue  # the archive beside it leads there
        if len(entries) == MOST:
            more += 1
            continue
        try:
            entries.append(_entry(name, child))
        except OSError:
            continue  # a link to nowhere
    return _list(path.strip("/"), f"and {more} more" if more else "", entries, up=True)


def _list(title: str, note_: str, entries: Sequence[tuple[str, str, str, str]], *, up: bool) -> str:
    rows = [("../", "..", "", "")] if up else []
    cells = "\n".join(
        f'<li><a href="{escape(link)}">{escape(name)}</a><span>{kind}</span><span>{size}</span></li>'
        for link, name, kind, size in [*rows, *entries]
    )
    empty = "" if entries else "<p>Nothing is here.</p>"
    return (
        _LIST.replace("{title}", escape(title)).replace("{rows}", cells).replace("{note}", escape(note_) or empty)
    )


def _size(count: float) -> str:
    units = ["B", "KB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} {units[0]}" if count >= 10 or units[0] == "B" else f"{count:.1f} {units[0]}"


_LIST = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: dark; }
  body { margin: 0 auto; max-width: 760px; padding: 24px 16px; background: #14161a; color: #e4e7eb;
    font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
  h1 { font-size: 20px; overflow-wrap: anywhere; }
  ul { list-style: none; padding: 0; border-top: 1px solid #363b44; }
  li { display: grid; grid-template-columns: 1fr 80px 80px; gap: 12px; border-bottom: 1px solid #282c33; }
  a { color: #4cc9f0; text-decoration: none; padding: 8px 4px; overflow-wrap: anywhere; }
  a:hover, a:focus-visible { text-decoration: underline; }
  span { color: #9aa2ad; align-self: center; font-variant-numeric: tabular-nums; }
  span:last-child { text-align: right; }
</style>
</head>
<body>
<h1>{title}</h1>
<ul>
{rows}
</ul>
{note}
</body>
</html>
"""
