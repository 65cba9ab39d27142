"""What a file elsewhere is now: its ETag, by HTTP or from the object store."""

from __future__ import annotations

import time
from collections.abc import Callable

import requests

from rsp.shared.credentials import environment_headers, masked
from rsp.shared.errors import RspError, SourceError
from rsp.shared.http import connection_problem

TIMEOUT = 10.0
# Seconds after which a folder of a store is listed again.
LISTED = 300.0


def remote_stamp(address: str) -> Callable[[], str]:
    """Return what tells whether the file at an http(s):// or s3:// address has changed."""
    return _stored(address) if address.startswith("s3://") else lambda: _http(address)


def _http(address: str) -> str:
    headers = {**environment_headers(), "Range": "bytes=0-0"}  # addresses that are signed for GET know no HEAD
    try:
        with requests.get(address, timeout=TIMEOUT, headers=headers, stream=True) as answer:
            status, reason, told = answer.status_code, answer.reason, answer.headers
    except requests.RequestException as error:
        raise SourceError(f"cannot reach {masked(address)}: {connection_problem(error)}") from None
    if status not in (200, 206):
        raise SourceError(f"{masked(address)} answers HTTP {status} {reason}".rstrip())
    size = told.get("Content-Range", "").rpartition("/")[2] or told.get("Content-Length", "")
    return " ".join([told.get("ETag", ""), told.get("Last-Modified", ""), size])


def _stored(address: str) -> Callable[[], str]:
    from rsp.shared.storage import open_storage

    folder, _, key = address.rstrip("/").rpartition("/")

    def stamp() -> str:
        try:
            found = open_storage(folder).stat(key)
        except RspError as error:
            raise SourceError(str(error)) from None
        # What is no object is a folder of tiles, which is listed again now and then.
        return str(found.etag) if found else f"listed {int(time.time() // LISTED)}"

    return stamp
