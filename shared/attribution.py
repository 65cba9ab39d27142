"""Whose data are: the text that imagery, OpenStreetMap and others ask to be shown with whatever is made of them.

It is one line, which may hold links (`<a href="https://...">`), as the key `attribution` of TileJSON, MBTiles and
PMTiles. Tile sets have it in their metadata, features where their format has a place for it; what comes of several
has that of all of them, each once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from html.parser import HTMLParser
from typing import Any

from rsp.shared.errors import RspError
from rsp.shared.locations import Location
from rsp.shared.tileset.base import TileReader, TileWriter

KEY = "attribution"
SEPARATOR = " | "
MAX_LENGTH = 4000

_WEB = re.compile(r"(?i)https?://")


def joined(texts: Iterable[str | None]) -> str | None:
    """Return texts as one, each of their parts once, in this order; None where there is none."""
    parts: dict[str, None] = {}
    for text in texts:
        for part in (text or "").split(SEPARATOR):
            if clean := " ".join(part.split()):
                parts[clean] = None
    return SEPARATOR.join(parts)[:MAX_LENGTH] or None


def of_metadata(metadata: Mapping[str, Any]) -> str | None:
    """Return the attribution in the metadata of a tile set; what is no text is none."""
    found = metadata.get(KEY)
    return joined([found]) if isinstance(found, str) else None


def of_readers(readers: Iterable[TileReader]) -> str | None:
    """Return that of open tile sets, together."""
    return joined(of_metadata(reader.metadata) for reader in readers)


def of_tiles(*paths: str | Location | None) -> str | None:
    """Return that of tile sets, together; those that are None, or cannot be read, have none."""
    from rsp.shared.tileset import read_metadata

    found = []
    for path in paths:
        if path is None:
            continue
        try:
            found.append(of_metadata(read_metadata(path)))
        except RspError:
            continue  # who reads the tiles says what is wrong
    return joined(found)


def note(writer: TileWriter, *texts: str | None, keep: bool = False) -> None:
    """Note whose the tiles of a set are.

    Args:
        writer: The tile set.
        texts: Attributions of what its tiles are made of.
        keep: Tiles that were there stay: so does what was said of them.
    """
    if found := joined([of_metadata(writer.metadata) if keep else None, *texts]):
        writer.describe({KEY: found})


class _Safe(HTMLParser):
    """Keeps text, and links to web pages; drops every other element, and the content of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html: list[str] = []
        self.text: list[str] = []
        self._open = False
        self.feed(text)
        self.close()
        if self._open:
            self.html.append("</a>")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and not self._open and _WEB.match(where := dict(attrs).get("href") or ""):
            self.html.append(f'<a href="{escape(where)}" rel="noopener">')
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._open:
            self.html.append("</a>")
            self._open = False

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.html.append(escape(data))
            self.text.append(data)


def to_html(text: str | None) -> str:
    """Return an attribution that pages may take as HTML: its text, its links to web pages, and nothing else."""
    return SEPARATOR.join("".join(each.html) for each in _safe(text))


def to_text(text: str | None) -> str:
    """Return an attribution as plain text."""
    return SEPARATOR.join("".join(each.text) for each in _safe(text))


def _safe(text: str | None) -> list[_Safe]:
    """Return what pages may take of each part; a part that has no text is left out."""
    parts = [_Safe(part) for part in (text or "").split(SEPARATOR)]
    return [part for part in parts if "".join(part.text).strip()]
