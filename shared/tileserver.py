"""Fetching from a tile server: no faster than asked, again where that may help, and trusting no answer."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import TYPE_CHECKING, Literal, Self

from rsp import __version__
from rsp.shared.errors import UsageError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry, retry_after
from rsp.shared.tiles import Tile, bounds_mercator

if TYPE_CHECKING:
    import requests

# Seconds before the second request for a tile; doubled each time after.
BACKOFF = 0.5
ATTEMPTS = 4
# A server may ask us to wait, but not forever.
MAX_WAIT = 60.0
# Far more than a tile; an answer without end is cut off here.
MAX_BODY = 32 << 20
# An answer that trickles may take this many times the timeout.
PATIENCE = 6

# What says something of the server, or of our right to use it. Others are of one tile: some servers answer 403 or
# 500 where they have no tile.
_SERVER = (401, 402, 407, 429, 503)
# What says that there is no such tile; object stores say 403 where nobody may list what there is.
_ABSENT = (204, 403, 404, 410)
_SECRET = re.compile(r"([?&][^=&#\s]*(?:key|token|secret|passw|pwd|sig|auth|cred)[^=&#\s]*=)[^&#\s\"'<>)]+", re.I)
_USERINFO = re.compile(r"(https?://)[^/@\s]+@", re.I)

Kind = Literal["XYZ", "WMS", "TMS"]

SUBDOMAINS = "abc"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# What a URL must hold: one of each group.
_NEEDED = {
    "XYZ": [["z"], ["x"], ["y", "-y"]],
    "TMS": [["z"], ["x"], ["y", "-y"]],
    "WMS": [["xmin", "bbox"], ["ymin", "bbox"], ["xmax", "bbox"], ["ymax", "bbox"]],
}
_KNOWN = {"z", "x", "y", "-y", "xmin", "ymin", "xmax", "ymax", "bbox", "s"}


class FetchError(Exception):
    """A tile that was not fetched.

    Attributes:
        server: The fault is the server's as a whole (unreachable, refusing, overloaded), not of this tile.
        absent: The server says that it has no such tile.
        forbidden: It said 403: object stores do where there is none, and so do servers that want credentials.
    """

    def __init__(self, reason: str, *, server: bool, absent: bool = False, forbidden: bool = False) -> None:
        super().__init__(reason)
        self.server, self.absent, self.forbidden = server, absent, forbidden


def masked(text: str) -> str:
    """Return a text with the credentials in its URLs made unreadable."""
    return _SECRET.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


class TokenBucket:
    """Lets callers of all threads pass at a steady rate, so that no second sees more than `rate` of them."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._interval = 1.0 / rate
        self._clock, self._sleep = clock, sleep
        self._next = clock()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Wait for one's turn."""
        with self._lock:
            now = self._clock()
            turn = max(self._next, now)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)

    def pause(self, seconds: float) -> None:
        """Let nobody else pass for some seconds (who has a turn already goes)."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def environment_headers() -> dict[str, str]:
    """Return the HTTP headers of `$RSP_HTTP_HEADERS`, one `Name: value` a line.

    Raises:
        UsageError: a line that is not a header.
    """
    headers = {}
    for line in os.environ.get("RSP_HTTP_HEADERS", "").splitlines():
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip()):
            raise UsageError("RSP_HTTP_HEADERS has a line that is not `Name: value`")
        headers[name.strip()] = value.strip()
    return headers


def _session(secret: tuple[str, ...]) -> requests.Session:
    """Return a session that keeps these headers from other hosts that a redirect leads to."""
    import requests  # here, so that modules that only check URLs start without it

    class Session(requests.Session):
        def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
            before, after = response.request.url or "", prepared_request.url or ""
            if self.should_strip_auth(before, after):  # type: ignore[no-untyped-call]
                for name in secret:
                    prepared_request.headers.pop(name, None)

    return Session()


@dataclass(frozen=True)
class Answer:
    """The body of an answer with status 200, and what the server calls it."""

    body: bytes
    content_type: str


class Client:
    """Fetches URLs, from any number of threads.

    Args:
        rate: Requests a second, over all threads and retries.
        timeout: Seconds to wait for a connection, and for each part of an answer.
        workers: How many threads there are.
        attempts: How often a URL is asked for in all; `ATTEMPTS` where None.
    """

    def __init__(self, rate: float, timeout: float, workers: int, *, attempts: int | None = None) -> None:
        from requests.adapters import HTTPAdapter

        self._stop = threading.Event()
        self._bucket = TokenBucket(rate, sleep=self._stop.wait)
        self._timeout, self._attempts = timeout, ATTEMPTS if attempts is None else attempts
        headers = environment_headers()
        self._session = _session(tuple(headers))
        self._session.headers["User-Agent"] = f"rsp/{__version__}"
        self._session.headers.update(headers)
        self._session.max_redirects = 5
        # Retries are ours, since they too must keep to the rate.
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=workers, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wake the threads that wait (what they would fetch fails), and close the connections."""
        self._stop.set()
        self._session.close()

    def fetch(self, url: str) -> Answer:
        """Return the answer of a server; ask again, later each time, where it is overloaded or out of reach.

        Raises:
            FetchError: the last reason why there is none.
        """
        backoff = Backoff(self._attempts, BACKOFF, longest=MAX_WAIT)
        return retry(lambda: self._fetch(url), backoff, self._stop.wait)

    def _fetch(self, url: str) -> Answer:
        """Ask once."""
        import requests
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        self._bucket.take()
        if self._stop.is_set():
            raise FetchError("given up", server=True)
        try:
            with self._session.get(url, timeout=self._timeout, stream=True) as response:
                if response.status_code == 200:
                    return Answer(self._body(response), response.headers.get("Content-Type", ""))
                error = _refusal(response)
                if response.status_code not in TEMPORARY:
                    raise error
                asked = retry_after(response.headers.get("Retry-After"))
                if asked is not None:
                    self._bucket.pause(min(asked, MAX_WAIT))  # the others would only be told the same
                raise TryAgain(error, asked)
        except requests.exceptions.SSLError as problem:
            raise FetchError(f"no secure connection: {connection_problem(problem)}", server=True) from None
        except (requests.exceptions.Timeout, ReadTimeoutError):
            raise TryAgain(FetchError(f"no answer within {self._timeout:g} s", server=True)) from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as problem:
            raise FetchError(masked(str(problem))[:200], server=False) from None
        except requests.exceptions.TooManyRedirects:
            raise FetchError("too many redirects", server=False) from None
        except (requests.exceptions.RequestException, HTTPError) as problem:
            raise TryAgain(FetchError(connection_problem(problem), server=True)) from None

    def _body(self, response: requests.Response) -> bytes:
        """Read the body of an answer, up to a limit in bytes and in time."""
        import requests

        parts: list[bytes] = []
        size, end = 0, time.monotonic() + PATIENCE * self._timeout
        # What has come, as it comes: iter_content would wait for whole pieces, past any deadline.
        while part := response.raw.read1(1 << 16, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > MAX_BODY:
                raise FetchError(f"the answer has more than {MAX_BODY >> 20} MiB", server=False)
            if time.monotonic() > end:
                raise requests.exceptions.Timeout
        return b"".join(parts)


def _refusal(response: requests.Response) -> FetchError:
    """Return the error of an answer whose status is not 200."""
    status = response.status_code
    reason = f"HTTP {status} {response.reason or ''}".strip()
    return FetchError(reason, server=status in _SERVER, absent=status in _ABSENT, forbidden=status == 403)


def error_text(answer: Answer) -> str | None:
    """Return what a server says in words where an image was asked for; None where the answer is no text.

    A WMS reports its errors as XML, with status 200; portals answer with a page to log in.
    """
    head = answer.body[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    kind = answer.content_type.partition(";")[0].strip().lower()
    textual = kind.startswith("text/") or kind.endswith(("xml", "json", "html")) or head[:1] in (b"<", b"{")
    if not textual or b"\x00" in head:
        return None
    text = head.decode("utf-8", "replace")
    what = "a WMS exception" if "ServiceException" in text or "ExceptionReport" in text else "text"
    code = re.search(r"\b(?:code|exceptionCode)=[\"']([\w.]+)", text)
    text = re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->|<!\[CDATA\[|\]\]>", " ", text, flags=re.S | re.I)
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())
    said = masked(text[:200] + ("..." if len(text) > 200 else ""))
    return f"the server answered with {what}, not an image: {f'{code[1]}: ' if code else ''}{said}".rstrip(": ")


def check_scheme(url: str) -> None:
    """Raise `UsageError` unless a URL is http or https."""
    if not re.match(r"https?://[^/]", url, re.I):
        raise UsageError(f"the URL must begin with http:// or https://, got {masked(url)[:60]!r}")


def check_url(url: str, kind: Kind) -> None:
    """Raise `UsageError` where a URL cannot be that of a tile."""
    if kind not in _NEEDED:
        raise UsageError(f"--type is one of {', '.join(_NEEDED)}, got {kind!r}")
    check_scheme(url)
    found = set(_PLACEHOLDER.findall(url))
    lacking = [choices[0] for choices in _NEEDED[kind] if not found & set(choices)]
    if lacking:
        raise UsageError(
            f"the URL lacks {', '.join(f'{{{name}}}' for name in lacking)}, which --type {kind} needs"
        )
    if unknown := sorted(found - _KNOWN):
        raise UsageError(
            f"the URL has {{{unknown[0]}}}, which is not a placeholder; known are "
            + ", ".join(f"{{{name}}}" for name in sorted(_KNOWN))
        )


def tile_url(url: str, tile: Tile, kind: Kind) -> str:
    """Return the URL of a tile."""
    flipped = (1 << tile.z) - 1 - tile.y
    west, south, east, north = (repr(value) for value in bounds_mercator(tile))
    values = {
        "z": str(tile.z),
        "x": str(tile.x),
        "y": str(flipped if kind == "TMS" else tile.y),
        "-y": str(flipped),
        "xmin": west,
        "ymin": south,
        "xmax": east,
        "ymax": north,
        "bbox": f"{west},{south},{east},{north}",
        "s": SUBDOMAINS[(tile.x + tile.y) % len(SUBDOMAINS)],
    }
    return _PLACEHOLDER.sub(lambda match: values[match[1]], url)
