"""Requests that cannot be answered with a mask, of more than 50 kinds, for a model of `tests.serving.tiny`.

The model takes tiles of 64 pixels, three bands of bytes, and borders of up to 16. Each of `BAD` is a whole request
with what must answer it; those of `RAW` are not even HTTP, and are sent over a socket as they stand.
"""

from __future__ import annotations

import io
import socket
import struct
import zlib
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import requests
from PIL import Image

from rsp.shared.images import encode
from tests.tilesets import BLOCK, noise

GOOD = encode(noise(BLOCK[0]), "png")
PNG_TYPE = {"Content-Type": "image/png"}


@dataclass(frozen=True)
class Bad:
    """A request that is refused.

    Attributes:
        name: Of its kind.
        body: What is sent.
        reason: A piece of the `detail` of the answer.
        status: Of the answer.
        headers: Sent with it.
    """

    name: str
    body: bytes
    reason: str
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)


def pillow(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, color: int = 2) -> bytes:
    """A PNG that claims a size, whatever its rows hold."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


PICTURE = Image.fromarray(noise(BLOCK[0]))
PIXELS = noise(BLOCK[0])
TIFF = encode(PIXELS, "tif")
JPEG, WEBP = encode(PIXELS, "jpg"), encode(PIXELS, "webp")
NOT_ONE = "not an image"
NO_IMAGE = "no image"
OVERLAP = "X-Overlap: expected a whole number"
TILE = "X-Tile: expected z/x/y"
GEOJSON = "application/geo+json"


def header(name: str, key: str, value: str, reason: str, status: int = 400) -> Bad:
    return Bad(name, GOOD, reason, status, {key: value})


BAD = [
    # Bodies that are no image.
    Bad("empty", b"", NO_IMAGE),
    Bad("text", b"these are not the pixels you are looking for", NOT_ONE),
    Bad("text as text", b"no pixels", NOT_ONE, headers={"Content-Type": "text/plain"}),
    Bad("text that is not UTF-8", b"\xff\xfe\xfd", NOT_ONE, headers={"Content-Type": "text/plain"}),
    Bad("JSON", b'{"instances": [[1, 2], [3, 4]]}', NOT_ONE, headers={"Content-Type": "application/json"}),
    Bad("malformed JSON", b'{"instances": [[1, 2', NOT_ONE, headers={"Content-Type": "application/json"}),
    Bad("JSON 10,000 deep", b"[" * 10_000, NOT_ONE, headers={"Content-Type": "application/json"}),
    Bad("HTML", b"<html><body>captive portal</body></html>", NOT_ONE, headers={"Content-Type": "text/html"}),
    Bad("one byte", b"\x89", NOT_ONE),
    Bad("zeros", bytes(100_000), NOT_ONE),
    Bad("noise", np.random.default_rng(0).bytes(100_000), NOT_ONE),
    Bad("base64", b"iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJ", NOT_ONE),
    Bad("GIF", pillow(PICTURE, "GIF"), NOT_ONE),
    Bad("BMP", pillow(PICTURE, "BMP"), NOT_ONE),
    Bad("EPS, which starts a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", NOT_ONE),
    Bad("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", NOT_ONE),
    Bad("ZIP", b"PK\x03\x04" + bytes(100), NOT_ONE),
    Bad("PDF", b"%PDF-1.7\n", NOT_ONE),
    Bad("a pickle", b"\x80\x04cos\nsystem\n(S'id'\ntR.", NOT_ONE),
    # Damaged images.
    Bad("PNG, its signature alone", GOOD[:8], NOT_ONE),
    Bad("PNG, cut off in its header", GOOD[:20], "corrupt"),
    Bad("PNG, cut off in its pixels", GOOD[:200], "corrupt"),
    Bad("PNG, a flipped byte of its pixels", flipped(GOOD, 200), "corrupt"),
    Bad("PNG without pixels", png(64, 64, b""), "corrupt"),
    Bad("PNG of size 0", png(0, 0, b""), NOT_ONE),
    Bad("JPEG, cut off in its header", JPEG[:30], "image"),
    Bad("JPEG, cut off in its pixels", JPEG[: len(JPEG) // 2], "corrupt"),
    Bad("WebP, cut off in its header", WEBP[:16], "image"),
    Bad("WebP, cut off in its pixels", WEBP[: len(WEBP) // 2], "image"),
    Bad("TIFF, its signature alone", TIFF[:8], "TIFF is corrupt"),
    Bad("TIFF, cut off", TIFF[: len(TIFF) // 2], "TIFF is corrupt"),
    Bad("TIFF whose directory lies beyond its end", b"II*\x00\xff\xff\xff\x7f" + bytes(64), "TIFF is corrupt"),
    Bad("TIFF whose directory is itself", b"II*\x00\x08\x00\x00\x00" + b"\xff" * 64, "TIFF is corrupt"),
    # Images that claim too much.
    Bad("PNG of 10^10 pixels", png(100_000, 100_000, bytes(1000)), "more pixels than the limit"),
    Bad("PNG of 2^62 pixels", png(0x7FFFFFFF, 0x7FFFFFFF, b""), "image"),
    Bad("PNG, 25 million pixels in 25 KB", pillow(Image.new("L", (5000, 5000)), "PNG"), "5000x5000"),
    # Images of another size or with other bands.
    Bad("one pixel", encode(PIXELS[:1, :1], "png"), "1x1 pixels"),
    Bad("too small", encode(PIXELS[:60, :60], "png"), "60x60 pixels, expected 64x64"),
    Bad("not a square", encode(PIXELS[:32], "png"), "64x32 pixels"),
    Bad("a border that was not announced", encode(noise(BLOCK[0], 96), "png"), "96x96 pixels"),
    Bad("one band", encode(PIXELS[:, :, :1], "png"), "the tile has 1"),
    Bad("two bands", encode(PIXELS[:, :, :2], "tif"), "the tile has 2"),
    # Values of another type: they would be answered with one class everywhere.
    Bad("16 bits", encode(PIXELS.astype(np.uint16) * 257, "tif"), "uint16"),
    Bad("16 bits, signed", encode(PIXELS.astype(np.int16), "tif"), "int16"),
    Bad("32 bits", encode(PIXELS.astype(np.uint32), "tif"), "uint32"),
    Bad("floats", encode(PIXELS.astype(np.float32) / 255, "tif"), "float32"),
    Bad("doubles", encode(PIXELS.astype(np.float64), "tif"), "float32"),
    Bad("NaN", encode(np.full((64, 64, 3), np.nan, np.float32), "tif"), "float32"),
    Bad("infinity", encode(np.full((64, 64, 3), np.inf, np.float32), "tif"), "float32"),
    Bad("complex numbers", encode(PIXELS.astype(np.complex64), "tif"), "complex64"),
    # Headers.
    header("X-Overlap of 5,000 digits", "X-Overlap", "9" * 5000, OVERLAP),
    header("X-Overlap that is negative", "X-Overlap", "-1", OVERLAP),
    header("X-Overlap that is a fraction", "X-Overlap", "1.5", OVERLAP),
    header("X-Overlap in words", "X-Overlap", "sixteen", OVERLAP),
    header("X-Overlap, twice in one", "X-Overlap", "16, 16", OVERLAP),
    header("X-Overlap beyond any", "X-Overlap", "1025", OVERLAP),
    header("X-Overlap beyond the model's", "X-Overlap", "17", "up to 16"),
    header("X-Overlap that the image has not", "X-Overlap", "16", "expected 96x96"),
    header("X-Tile without a number", "X-Tile", "here", TILE),
    header("X-Tile of two numbers", "X-Tile", "15/100", TILE),
    header("X-Tile that is negative", "X-Tile", "15/-1/200", TILE),
    header("X-Tile of 5,000 digits", "X-Tile", f"15/{'9' * 5000}/1", TILE),
    header("X-Tile off the grid", "X-Tile", "3/8/0", "X-Tile: tile x=8 y=0 does not exist at zoom 3"),
    header("X-Tile beyond any zoom", "X-Tile", "31/0/0", "X-Tile: zoom 31"),
    header("X-Tile that climbs", "X-Tile", "../../etc/passwd", TILE),
    header("GeoJSON without a tile", "Accept", GEOJSON, "X-Tile: z/x/y"),
    header("Accept of something else", "Accept", "application/x-tar", "image/png, image/webp", 406),
    header("Accept that forbids all", "Accept", "*/*;q=0", "image/png, image/webp", 406),
    header("Accept that is malformed", "Accept", ";;;,/,=", "image/png, image/webp", 406),
    header("Accept without end", "Accept", "image/png," * 300, "Accept: it may have"),
]  # fmt: skip


def without_end(head: bytes) -> bytes:
    return head + b"\r\n" + b"x" * 100


HEAD = b"POST /predictions/rsp HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
# By name: what is sent, and the statuses of which one must answer; none where the connection may just be closed.
RAW: dict[str, tuple[bytes, set[int]]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n", {400}),
    "no method": (b" / HTTP/1.1\r\n\r\n", {400}),
    "HTTP/0.9": (b"GET /\r\n\r\n", {400}),
    "a version to come": (b"GET / HTTP/9.9\r\n\r\n", {400}),
    "a header without a colon": (b"GET /ping HTTP/1.1\r\nHost here\r\n\r\n", {400}),
    "a header with a NUL": (b"GET /ping HTTP/1.1\r\nHost: a\x00b\r\n\r\n", {400}),
    "a header that goes on": (b"GET /ping HTTP/1.1\r\nX-A: b\r\n c\r\n\r\n", {400}),
    "a head without end": (b"GET /ping HTTP/1.1\r\n" + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", {400, 431}),
    "a long URL": (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", {414}),
    "a negative length": (without_end(HEAD + b"Content-Length: -1\r\n"), {400}),
    "a length in words": (without_end(HEAD + b"Content-Length: ten\r\n"), {400}),
    "two lengths": (without_end(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n"), {400}),
    "a length beyond all": (without_end(HEAD + b"Content-Length: 99999999999999999999999\r\n"), {400}),
    "a body that is too large": (without_end(HEAD + b"Content-Length: 17000000\r\n"), {413}),
    "a length and chunks": (without_end(HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), {400}),
    "an unknown coding": (without_end(HEAD + b"Transfer-Encoding: gzip\r\n"), {400}),
    "a chunk that does not say its size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", {400}),
    "a chunk longer than it says": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", {400}),
}


def send(url: str, bad: Bad, timeout: float = 60.0) -> requests.Response:
    """Send one of `BAD` to `http://.../predictions/NAME` and return the answer."""
    return requests.post(url, bad.body, headers=PNG_TYPE | bad.headers, timeout=timeout)


def fault(bad: Bad, status: int, body: object) -> str | None:
    """Return what is wrong with the answer (its parsed JSON) to one of `BAD`; None where it is right."""
    if status != bad.status:
        return f"{bad.name}: status {status}, expected {bad.status}: {body!r}"
    if not isinstance(body, dict) or not body.get("error") or bad.reason not in str(body.get("detail")):
        return f"{bad.name}: expected a detail with {bad.reason!r}, got {body!r}"
    # Reasons are ours; nothing of a library, a path or a traceback.
    leaks = [word for word in ("Traceback", " at 0x", "/tmp", "PIL", "rasterio", "Error") if word in str(body)]
    return f"{bad.name}: {body!r} tells of our insides: {leaks}" if leaks else None


def send_raw(url: str, data: bytes, timeout: float = 60.0) -> int | None:
    """Send bytes to the host and port of a URL; return the status of the answer, None where there was none."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=timeout) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else None
