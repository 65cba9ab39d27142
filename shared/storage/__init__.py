"""Files in folders and in S3 behind one seam: ranged reads, atomic and conditional writes.

`open_storage("s3://bucket/prefix")` speaks to any S3 server. Where it is, and as whom, the environment says
(`rsp.shared.storage.settings`, docs/storage.md), never the address.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rsp.shared.errors import ChangedError, ConflictError, NotFoundError, StorageError, UsageError
from rsp.shared.storage.base import Stat, Storage, check_key
from rsp.shared.storage.folder import FolderStorage

__all__ = [
    "ChangedError",
    "ConflictError",
    "NotFoundError",
    "Stat",
    "Storage",
    "StorageError",
    "check_key",
    "is_remote",
    "open_object",
    "open_storage",
]

S3 = "s3://"
FILE = "file:"


def is_remote(text: str | Path) -> bool:
    """Tell whether an address is one of an object store, `s3://...`, and no path."""
    return str(text).lower().startswith(S3)


def open_storage(location: str | Path, **options: Any) -> Storage:
    """Open a store.

    Args:
        location: `s3://bucket/prefix`, `file:///folder`, or the path of a folder, which need not exist yet.
        options: For S3: `backoff` (`rsp.shared.http.Backoff`) and `timeout` in seconds, for tests.

    Raises:
        UsageError: the address is none of these, or holds credentials.
        StorageError: the folder is a file, or the environment does not say how to reach the server.
    """
    text = str(location)
    if is_remote(text):
        from rsp.shared.storage.s3 import S3Storage

        bucket, _, prefix = text[len(S3) :].partition("/")
        return S3Storage(bucket, prefix.strip("/"), **options)
    if text.lower().startswith(FILE):
        path = unquote(text[len(FILE) :])
        if path.startswith("//"):
            host, _, path = path[2:].partition("/")
            if host not in ("", "localhost"):
                raise UsageError(f"{text} names another machine: files are read from this one")
            path = f"/{path}"
        return FolderStorage(Path(path))
    if "://" in text:
        raise UsageError(f"{text.partition('://')[0]}:// is not known: a store is s3://bucket/prefix or a folder")
    return FolderStorage(Path(location))


def open_object(address: str | Path, **options: Any) -> tuple[Storage, str]:
    """Return the store that holds one object, and its key in it, which is the last part of its address.

    Raises:
        UsageError: the address names no object, or see `open_storage`.
    """
    text = str(address)
    above, separator, key = text.rpartition("/")
    if not key or (is_remote(text) and len(above) < len(S3)):
        raise UsageError(f"{text} names no object: expected s3://bucket/key or the path of a file")
    return open_storage(above or separator or ".", **options), key
