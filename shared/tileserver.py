"""Fetching from a tile server: no faster than asked, again where that may help, and trusting no answer."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from rsp import __version__
from rsp.shared.credentials import environment_headers, masked
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry, retry_after

if TYPE_CHECKING:
    import requests

# Seconds before the second request for a tile; doubled each time after.
BACKOFF = 0.5
ATTEMPTS = 4
# A server may ask us to wait, but not forever.
MAX_WAIT = 60.0
# Far more than a tile; an answer without end is cut off here.
MAX_BODY = 32 << 20
# Bytes of an answer by which it is known what it is.
HEAD = 4096
# An answer that trickles may take this many times the timeout.
PATIENCE = 6

# Headers that ask for a tile only if it has changed.
CONDITIONS = frozenset({"If-None-Match", "If-Modified-Since"})

# What says something of the server, or of our right to use it. Others are of one tile: some servers answer 403 or
# 500 where they have no tile.
_SERVER = (401, 402, 407, 429, 503)
# What says that there is no such tile; object stores say 403 where nobody may list what there is.
_ABSENT = (204, 403, 404, 410)


class FetchError(Exception):
    """A tile that was not fetched.

    Attributes:
        server: The fault is the server's as a whole (unreachable, refusing, overloaded), not of this tile.
        absent: The server says that it has no such tile.
        forbidden: It said 403: object stores do where there is none, and so do servers that want credentials.
        too_large: The answer goes on beyond the limit.
    """

    def __init__(
        self,
        reason: str,
        *,
        server: bool,
        absent: bool = False,
        forbidden: bool = False,
        too_large: bool = False,
    ) -> None:
        super().__init__(reason)
        self.server, self.absent, self.forbidden, self.too_large = server, absent, forbidden, too_large


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


class Validators(NamedTuple):
    """By what a server tells whether a tile has changed, in its own words; empty where it said nothing."""

    etag: str = ""
    last_modified: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Validators:
        """Return those of an answer, without what cannot be sent back."""
        return cls(*(_sendable(headers.get(name, "")) for name in ("ETag", "Last-Modified")))

    def condition(self) -> dict[str, str]:
        """Return the headers that ask for a tile only if it has changed."""
        names = ("If-None-Match", "If-Modified-Since")
        return {name: value for name, value in zip(names, self, strict=True) if value}


NOTHING_SAID = Validators()


def _sendable(value: str) -> str:
    return value if len(value) <= 256 and value.isascii() and value.isprintable() else ""


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        body: Empty where the tile has not changed.
        content_type: What the server calls it.
        validators: By what it tells whether it has changed later.
        changed: False where it was asked only for changes, and there are none.
    """

    body: bytes
    content_type: str
    validators: Validators = NOTHING_SAID
    changed: bool = True


class Client:
    """Fetches URLs, from any number of threads.

    Args:
        rate: Requests a second, over all threads and retries.
        timeout: Seconds to wait for a connection, and for each part of an answer.
        workers: How many threads there are.
        attempts: How often a URL is asked for in all; `ATTEMPTS` where None.
        home: A URL that the user gave: the headers of the environment go to its host alone. None where every URL
            is of the user.
    """

    def __init__(
        self, rate: float, timeout: float, workers: int, *, attempts: int | None = None, home: str | None = None
    ) -> None:
        from requests.adapters import HTTPAdapter

        self._stop = threading.Event()
        self._bucket = TokenBucket(rate, sleep=self._stop.wait)
        self._timeout, self._attempts = timeout, ATTEMPTS if attempts is None else attempts
        headers = environment_headers()
        self._session = _session(tuple(headers))
        self._session.headers["User-Agent"] = f"rsp/{__version__}"
        self._secret, self._home = headers, home
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

    def fetch(self, url: str, known: Validators | None = None) -> Answer:
        """Return the answer of a server; ask again, later each time, where it is overloaded or out of reach.

        Args:
            url: Where.
            known: Of what is there already: then it is asked for changes.

        Raises:
            FetchError: the last reason why there is none.
        """
        return self._ask(url, self._body, {} if known is None else known.condition())

    def save(self, url: str, path: Path, *, limit: int, slowest: int) -> Answer:
        """Write the answer of a server to a file; asks again as `fetch` does, from the start.

        Args:
            url: Where.
            path: The file. After an error it may hold a part.
            limit: How many bytes it may have.
            slowest: How many have to come in `PATIENCE` times the timeout, as often as that passes.

        Returns:
            The answer, with the first bytes of its body.

        Raises:
            FetchError: the last reason why there is none.
            OSError: the file cannot be written.
        """

        def write(response: requests.Response) -> bytes:
            head = b""
            with path.open("wb") as file:
                for part in self._parts(response, limit, slowest):
                    head += part[: HEAD - len(head)]
                    file.write(part)
            return head

        return self._ask(url, write, {})

    def _ask(self, url: str, receive: Callable[[requests.Response], bytes], headers: dict[str, str]) -> Answer:
        """Ask until there is an answer that is worth no other attempt."""
        backoff = Backoff(self._attempts, BACKOFF, longest=MAX_WAIT)
        if self._home is None or not self._session.should_strip_auth(self._home, url):  # type: ignore[no-untyped-call]
            headers = self._secret | headers
        return retry(lambda: self._fetch(url, receive, headers), backoff, self._stop.wait)

    def _fetch(self, url: str, receive: Callable[[requests.Response], bytes], headers: dict[str, str]) -> Answer:
        """Ask once."""
        import requests
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        self._bucket.take()
        if self._stop.is_set():
            raise FetchError("given up", server=True)
        try:
            with self._session.get(url, headers=headers, timeout=self._timeout, stream=True) as response:
                told = response.headers
                if response.status_code == 200:
                    return Answer(receive(response), told.get("Content-Type", ""), Validators.of(told))
                if response.status_code == 304 and not CONDITIONS.isdisjoint(headers):
                    return Answer(b"", "", Validators.of(told), changed=False)
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
        return b"".join(self._parts(response, MAX_BODY))

    def _parts(self, response: requests.Response, limit: int, slowest: int | None = None) -> Iterator[bytes]:
        """Yield the body of an answer as it comes, up to a limit in bytes.

        It has `PATIENCE` times the timeout in all, or, with `slowest`, for each so many bytes.
        """
        import requests

        size = before = 0
        end = time.monotonic() + PATIENCE * self._timeout
        # What has come, as it comes: iter_content would wait for whole pieces, past any deadline.
        while part := response.raw.read1(1 << 16, decode_content=True):
            size += len(part)
            if size > limit:
                told = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
                raise FetchError(f"the answer has more than {told}", server=False, too_large=True)
            yield part
            if time.monotonic() > end:
                if slowest is None or size - before < slowest:
                    raise requests.exceptions.Timeout
                before, end = size, time.monotonic() + PATIENCE * self._timeout


def _refusal(response: requests.Response) -> FetchError:
    """Return the error of an answer whose status is not 200."""
    status = response.status_code
    reason = f"HTTP {status} {response.reason or ''}".strip()
    return FetchError(reason, server=status in _SERVER, absent=status in _ABSENT, forbidden=status == 403)


def error_text(answer: Answer) -> str | None:
    """Return what a server says in words where an image was asked for; None where the answer is no text.

    A WMS reports its errors as XML, with status 200; portals answer with a page to log in.
    """
    head = _start(answer)
    kind = answer.content_type.partition(";")[0].strip().lower()
    textual = kind.startswith("text/") or kind.endswith(("xml", "json", "html")) or head[:1] in (b"<", b"{")
    if not textual or b"\x00" in head:
        return None
    return _words(head, "an image")


def complaint(answer: Answer) -> str | None:
    """Return what a server says in words where features were asked for, which may be text; None for features."""
    head = _start(answer)
    page = head[:15].lower().startswith((b"<!doctype html", b"<html"))
    return _words(head, "features") if page or _EXCEPTION.search(head) else None


def _start(answer: Answer) -> bytes:
    return answer.body[:HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")


_EXCEPTION = re.compile(rb"<(?:\w+:)?(?:ServiceException|ExceptionReport)")


def _words(head: bytes, wanted: str) -> str:
    """Return what the beginning of a page, or of an exception of an OGC service, says."""
    text = head.decode("utf-8", "replace")
    what = "text"
    if "ServiceException" in text or "ExceptionReport" in text:
        what = "a WMS exception" if wanted == "an image" else "an exception"
    code = re.search(r"\b(?:code|exceptionCode)=[\"']([\w.]+)", text)
    text = re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->|<!\[CDATA\[|\]\]>", " ", text, flags=re.S | re.I)
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())
    said = masked(text[:200] + ("..." if len(text) > 200 else ""))
    return f"the server answered with {what}, not {wanted}: {f'{code[1]}: ' if code else ''}{said}".rstrip(": ")
