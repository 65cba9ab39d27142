"""The heads of HTTP/1.1 messages, taken apart strictly: what is ambiguous is refused, not repaired."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

# Netty, within TorchServe, takes a request line of 4096 bytes and headers of 8192, and makes no sense of more.
MAX_TARGET, MAX_HEAD = 4000, 8000

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})( [^\r\n]*)?")
# What concerns one connection only, or is written again for the next one.
_HOP = {
    b"connection", b"content-length", b"expect", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip


class RefusedError(Exception):
    """A request that is answered with an error; the connection is closed after it.

    Attributes:
        status: Of the answer.
        detail: The reason, for the client.
        headers: More headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


@dataclass
class Head:
    """The first line of a request or an answer, and its headers as they were sent."""

    first: re.Match[bytes]
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def all(self, name: bytes) -> list[bytes]:
        """Return all values of a header; its name in lower case."""
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: bytes) -> bytes:
        """Return the value of a header, in lower case; empty where there is none."""
        return b",".join(self.all(name)).lower()

    def kept(self, without: tuple[bytes, ...] = ()) -> bytes:
        """Return the headers that are passed on, as lines."""
        return b"".join(
            b"%b: %b\r\n" % pair
            for pair in self.headers
            if (name := pair[0].lower()) not in _HOP and name not in without
        )


def parse_request(raw: bytes) -> Head:
    """Take apart the head of a request, with its empty last line; groups of `first`: method, target, 0 or 1.

    Raises:
        RefusedError: it is malformed or too long.
    """
    if len(raw) > MAX_HEAD:
        raise RefusedError(431, f"the head of a request may have {MAX_HEAD} bytes")
    request = _parse(raw, _REQUEST)
    if len(request.first[2]) > MAX_TARGET:
        raise RefusedError(414, f"the URL may have {MAX_TARGET} bytes")
    return request


def parse_answer(raw: bytes) -> Head:
    """Take apart the head of an answer, with its empty last line; groups of `first`: status, phrase.

    Raises:
        RefusedError: it is malformed.
    """
    return _parse(raw, _STATUS)


def _parse(raw: bytes, first: re.Pattern[bytes]) -> Head:
    line, *lines = raw[:-4].split(b"\r\n")
    match = first.fullmatch(line)
    if match is None:
        raise RefusedError(400, "the first line is not one of HTTP/1.1")
    headers = []
    for each in lines:
        name, colon, value = each.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(rb"[\r\n\0]", value):
            raise RefusedError(400, "a line of the head is not a header")
        headers.append((name, value.strip(b" \t")))
    return Head(match, headers)


def body_size(request: Head, limit: int) -> int:
    """Return the size of a body (the limit, if it comes in chunks).

    Raises:
        RefusedError: it is too large, or the head does not say it clearly.
    """
    lengths, coding = request.all(b"content-length"), request.all(b"transfer-encoding")
    if coding:
        # Both at once is how requests are smuggled past a proxy.
        if lengths or request.get(b"transfer-encoding") != b"chunked":
            raise RefusedError(400, "Transfer-Encoding: expected `chunked`, without a Content-Length")
        return limit
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        raise RefusedError(400, "Content-Length: expected one whole number, 0 or more")
    if int(lengths[0]) > limit:
        raise too_large(limit)
    return int(lengths[0])


async def read_chunks(reader: asyncio.StreamReader, limit: int) -> bytes:
    """Read a body that comes in chunks.

    Raises:
        RefusedError: it is malformed, or has more than `limit` bytes.
    """
    body = bytearray()
    while True:
        line = (await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
            raise RefusedError(400, "a chunk of the body does not begin with its size")
        size = int(line, 16)
        if len(body) + size > limit:
            raise too_large(limit)
        if not size:
            break
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise RefusedError(400, "a chunk of the body is longer than it says")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return bytes(body)


def too_large(limit: int) -> RefusedError:
    """Return the refusal of a body that is larger than `limit` bytes."""
    return RefusedError(
        413, f"a request may have {limit} bytes (max_request_size of TorchServe's config.properties)"
    )
