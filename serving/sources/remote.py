"""What a file elsewhere is now: its ETag, by HTTP or from the object store."""

from __future__ import annotations

from collections.abc import Callable

import requests

from rsp.shared.errors import RspError, SourceError
from rsp.shared.http import connection_problem
from rsp.shared.tileserver import environment_headers, masked

TIMEOUT = 10.0


def remote_stamp(address: str) -> Callable[[], str]:
    """Return what tells whether the file at an http(s):// or s3:// address has changed."""
    return _stored(address) if address.startswith("s3://") else lambda: _http(address)


def _http(address: str) -> str:
    try:
        answer = requests.head(address, timeout=TIMEOUT, allow_redirects=True, headers=environment_headers())
    except requests.RequestException as error:
        raise SourceError(f"cannot reach {masked(address)}: {connection_problem(error)}") from None
    if answer.status_code != 200:
        raise SourceError(f"{masked(address)} answers HTTP {answer.status_code} {answer.reason}".rstrip())
    known = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]
    return " ".join(known)


def _stored(address: str) -> Callable[[], str]:
    from rsp.shared.storage import open_storage

    folder, _, key = address.rpartition("/")
    storage = open_storage(folder)

    def stamp() -> str:
        try:
            found = storage.stat(key)
        except RspError as error:
            raise SourceError(str(error)) from None
        if found is None:
            raise SourceError(f"there is no {address}")
        return str(found.etag)

    return stamp
