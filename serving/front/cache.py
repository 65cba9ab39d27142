"""What was answered, for whoever asks for it again: in memory, and in a folder that outlives the process."""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rsp.shared.atomic import atomic_path
from rsp.shared.errors import RspError, StorageError

logger = logging.getLogger(__name__)

# What an entry costs beside its body.
OVERHEAD = 500
# A folder that is full is emptied down to this fraction of its bound, so that it is not swept at each tile.
SWEPT = 0.9
SUFFIX = ".tile"


@dataclass(frozen=True)
class Entry:
    """An answer: its body, and the headers that tell of it."""

    body: bytes
    headers: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, about."""
        return len(self.body) + OVERHEAD


class Cache:
    """Answers by their keys, the last used ones. May be shared by threads.

    Args:
        max_bytes: What they may take in memory; 0 keeps none.
        folder: Where they are kept beyond this process; None for nowhere.
        folder_bytes: What they may take there.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None, folder_bytes: int = 1 << 30) -> None:
        self._max, self.bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._folder = None if folder is None else _Folder(folder, folder_bytes)

    def get(self, key: str) -> Entry | None:
        """Return the answer of a key (letters and digits), None where there is none."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        found = None if self._folder is None else self._folder.get(key)
        if found is not None:
            self._keep(key, found)
        return found

    def put(self, key: str, entry: Entry) -> None:
        """Keep an answer."""
        self._keep(key, entry)
        if self._folder is not None:
            self._folder.put(key, entry)

    def _keep(self, key: str, entry: Entry) -> None:
        with self._lock:
            if entry.size > self._max:
                return
            before = self._entries.pop(key, None)
            self.bytes += entry.size - (before.size if before else 0)
            self._entries[key] = entry
            while self.bytes > self._max:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= oldest.size


class _Folder:
    """Answers as files, each with a checksum: what a crash or a full disk left is no answer."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._path, self._max, self._lock = folder, max_bytes, threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._bytes = sum(path.stat().st_size for path in folder.glob(f"*/*{SUFFIX}"))
            if not os.access(folder, os.W_OK):
                raise StorageError(f"cannot write the folder {folder}: no permission")
        except OSError as error:
            raise StorageError(f"cannot use the folder {folder}: {error.strerror}") from None

    def _file(self, key: str) -> Path:
        return self._path / key[:2] / f"{key[2:]}{SUFFIX}"

    def get(self, key: str) -> Entry | None:
        path = self._file(key)
        try:
            raw = path.read_bytes()
            line, _, body = raw.partition(b"\n")
            about = json.loads(line)
            if about["crc"] != zlib.crc32(body):
                raise ValueError("another checksum")
            os.utime(path)  # the last used ones stay
            return Entry(body, {str(name): str(value) for name, value in about["headers"].items()})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def put(self, key: str, entry: Entry) -> None:
        path = self._file(key)
        head = json.dumps({"crc": zlib.crc32(entry.body), "headers": dict(entry.headers)}).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(head + b"\n" + entry.body)
        except (OSError, RspError) as error:
            # The answer does not depend on it; whoever runs the server has to see that the disk is full.
            logger.warning("cannot keep a tile in %s: %s", self._path, error)
            return
        with self._lock:
            self._bytes += len(head) + 1 + len(entry.body)
            if self._bytes > self._max:
                self._sweep()

    def _sweep(self) -> None:
        """Remove the files that were used longest ago."""
        files = []
        for path in self._path.glob(f"*/*{SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        self._bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self._bytes <= self._max * SWEPT:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                self._bytes -= size
