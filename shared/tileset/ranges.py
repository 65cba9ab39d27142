"""Bytes of a file that lies elsewhere: in a store (`rsp.shared.storage`), or on an HTTP server with ranges."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rsp.shared.errors import ChangedError, NotFoundError, StorageError, TileSetError, UsageError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry, retry_after
from rsp.shared.storage import Storage
from rsp.shared.storage.base import check_etag

if TYPE_CHECKING:
    import requests

# What is asked for first: an archive's header and root directory are within it.
HEAD = 16_384

BACKOFF = Backoff(attempts=5, first=0.2, longest=20.0, jitter=0.3)
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two parts of an answer

_PART = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Ranges(ABC):
    """One file, pinned: all that is read is of the version that was there first.

    Attributes:
        address: Where it is, without credentials.
        size: In bytes.
        etag: What the server calls this version; it changes with the content.
        head: Its first bytes, as many as `HEAD` or all.
    """

    address: str
    size: int
    etag: str
    head: bytes

    @abstractmethod
    def read(self, start: int, length: int) -> bytes:
        """Return bytes that are there, all of them.

        Raises:
            ChangedError: the file is another by now.
            StorageError: they cannot be read.
        """

    def close(self) -> None:
        """Let go of connections."""


class StoredRanges(Ranges):
    """An object of a store.

    Args:
        storage: The store.
        key: The object.
        etag: The version that it has to be; None takes the one that is there.

    Raises:
        NotFoundError: it is not there.
        ChangedError: it is of another version.
    """

    def __init__(self, storage: Storage, key: str, etag: str | None = None) -> None:
        self._storage, self._key = storage, key
        self.address = f"{storage.address}/{key}"
        found = storage.stat(key)
        if found is None:
            raise NotFoundError(f"there is no {self.address}")
        check_etag(self.address, found.etag, etag)
        self.size, self.etag = found.size, found.etag
        self.head = self.read(0, min(HEAD, self.size))

    def read(self, start: int, length: int) -> bytes:
        data = self._storage.read_range(self._key, start, length, etag=self.etag)
        if len(data) != length:
            raise StorageError(f"{self.address} gave {len(data)} bytes where {length} were asked for")
        return data


class HttpRanges(Ranges):
    """A file on an HTTP server. One that ignores ranges is refused before it sends the whole file."""

    def __init__(self, url: str, backoff: Backoff = BACKOFF, timeout: tuple[float, float] = TIMEOUT) -> None:
        import requests  # here: it takes longer to load than all the rest

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("expected http://host/path or https://host/path")
        # What stands in the query and before the host may be a permit.
        self.address = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        self._url, self._backoff, self._timeout = url, backoff, timeout
        self._session = requests.Session()
        self._session.max_redirects = 5
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._errors: type[Exception] = requests.RequestException
        self.size, self.etag, self._lock = -1, "", threading.Lock()
        self.head = self._ask(0, HEAD)

    def read(self, start: int, length: int) -> bytes:
        data = self._ask(start, length)
        if len(data) != length:
            raise StorageError(f"{self.address} gave {len(data)} bytes where {length} were asked for")
        return data

    def close(self) -> None:
        self._session.close()

    def _ask(self, start: int, length: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        if self.etag.startswith('"'):
            headers["If-Match"] = self.etag

        def attempt() -> bytes:
            try:
                with self._session.get(self._url, headers=headers, timeout=self._timeout, stream=True) as answer:
                    self._judge(answer, start)
                    return self._body(answer, length)
            except self._errors as error:
                raise self._failed(error) from None

        return retry(attempt, self._backoff)

    def _failed(self, error: Exception) -> Exception:
        """Return what to raise where no whole answer came."""
        import requests

        if isinstance(error, requests.TooManyRedirects):
            return StorageError(f"cannot read {self.address}: too many redirects")
        failed = StorageError(f"cannot read {self.address}: {connection_problem(error)}")
        passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        again = isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)
        return TryAgain(failed) if again else failed

    def _judge(self, answer: requests.Response, start: int) -> None:
        """Raise where an answer is not the part that was asked for, of the file that was opened."""
        status = answer.status_code
        if status in TEMPORARY:
            error = StorageError(f"cannot read {self.address}: the server answered {status}, again and again")
            raise TryAgain(error, retry_after(answer.headers.get("Retry-After")))
        if status in (404, 410):
            raise NotFoundError(f"there is no {self.address}: the server answered {status}")
        if status == 412 or (status == 416 and start):
            raise self._changed()
        if status == 200:
            raise StorageError(
                f"cannot read {self.address}: the server ignores byte ranges and would send the whole file; put "
                "it on one that knows them, or download it"
            )
        if status == 416:
            raise TileSetError(f"{self.address} is empty")
        part = _PART.fullmatch(answer.headers.get("Content-Range", "").strip())
        if status != 206 or not part or int(part[1]) != start:
            raise StorageError(f"cannot read {self.address}: the server answered {status}, not the part asked for")
        size, etag = int(part[3]), _version(answer.headers)
        with self._lock:
            if self.size < 0:
                self.size, self.etag = size, etag
        if (size, etag) != (self.size, self.etag):
            raise self._changed()

    def _body(self, answer: requests.Response, length: int) -> bytes:
        parts, size = [], 0
        for part in answer.iter_content(1 << 16):
            parts.append(part)
            size += len(part)
            if size > length:
                raise StorageError(f"cannot read {self.address}: the server sends more than was asked for")
        expected = int(answer.headers.get("Content-Length") or size)
        if size < expected:
            raise TryAgain(StorageError(f"cannot read {self.address}: the answer was cut off"))
        return b"".join(parts)

    def _changed(self) -> ChangedError:
        return ChangedError(f"{self.address} has changed since it was opened: open it again")


def _version(headers: Mapping[str, str]) -> str:
    """Return what tells one version of a file from the next, empty where the server says nothing of it."""
    return headers.get("ETag") or headers.get("Last-Modified") or ""
