"""The map of the live front: its files, the legend, and masks whose background lets the imagery through."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.responses import Response

from rsp.serving.front.errors import RefusedError, etag_matches
from rsp.shared.config import ClassDef

OPENAPI = (
    "Tiles of imagery that the operator named, and what a segmentation model sees in them, live. An error is a "
    "JSON object with `error` and `detail`; a tile has an `ETag` that changes with the model and with the imagery."
)

# By the name in the URL: the package and file that holds it, and its type.
_FILES = {
    "live.js": ("rsp.serving.front", "live.js", "text/javascript"),
    "live.css": ("rsp.serving.front", "live.css", "text/css"),
    "leaflet.js": ("rsp.shared.webmap", "vendor/leaflet.js", "text/javascript"),
    "fitted.js": ("rsp.shared.webmap", "fitted.js", "text/javascript"),
    "leaflet.css": ("rsp.shared.webmap", "vendor/leaflet.css", "text/css"),
    "leaflet.LICENSE": ("rsp.shared.webmap", "vendor/leaflet.LICENSE", "text/plain"),
}
# What refers to files that are not there: source maps, pictures of controls that the page has not.
_REFERENCE = re.compile(r"(?m)^//# sourceMappingURL=.*$|background-image: url\(images/[^)]*\);")


@cache
def html() -> str:
    """Return the page; the names of its files change with their content, so that no cache shows old ones."""
    text = files("rsp.serving.front").joinpath("live.html").read_text("utf-8")
    return re.sub(r"static/([\w.]+)", lambda match: f"{match[0]}?{_file(match[1])[1][:8]}", text)


def static(name: str, known: str = "") -> Response:
    """Return a file of the page; raise `RefusedError` (404) where there is none."""
    if name not in _FILES:
        raise RefusedError(404, "no such file")
    body, digest = _file(name)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "public, max-age=3600"}
    if etag_matches(known, f'"{digest}"'):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=f"{_FILES[name][2]}; charset=utf-8", headers=headers)


@cache
def _file(name: str) -> tuple[bytes, str]:
    package, path, _ = _FILES[name]
    body = _REFERENCE.sub("", files(package).joinpath(path).read_text("utf-8")).encode()
    return body, hashlib.blake2b(body, digest_size=8).hexdigest()


def clear_classes(classes: Sequence[ClassDef]) -> list[int]:
    """Return the classes that let the imagery through: transparent ones, and the background."""
    return [
        index
        for index, entry in enumerate(classes)
        if entry.transparent or (index == 0 and entry.title.casefold() == "background")
    ]


def legend(classes: Sequence[ClassDef]) -> list[dict[str, Any]]:
    """Return the classes as the page shows them: title, colour as #RRGGBB, and whether one sees through."""
    clear = clear_classes(classes)
    return [
        {"title": entry.title, "color": f"#{bytes(entry.color).hex()}", "transparent": index in clear}
        for index, entry in enumerate(classes)
    ]


def let_through(mask: bytes, classes: Sequence[ClassDef]) -> bytes:
    """Return a paletted PNG in which these classes are transparent: one chunk more, the pixels as they were.

    Args:
        mask: As `encode_mask` writes it.
        classes: Its classes.
    """
    clear = clear_classes(classes)
    position = 8
    while clear and position + 8 <= len(mask):
        (length,) = struct.unpack(">I", mask[position : position + 4])
        end = position + 12 + length
        if mask[position + 4 : position + 8] == b"PLTE":
            alphas = bytes(0 if index in clear else 255 for index in range(max(clear) + 1))[: length // 3]
            chunk = b"tRNS" + alphas
            added = struct.pack(">I", len(alphas)) + chunk + struct.pack(">I", zlib.crc32(chunk))
            return mask[:end] + added + mask[end:]
        position = end
    return mask
