"""Objects of S3 as files on this machine, downloaded once for each ETag into a folder of bounded size.

They are in `objects` of the folder `$RSP_CACHE`, else of `rsp-<uid>` among the temporary files. Each object has a
folder of its own, with a lock: whoever uses the file holds it shared until the process ends, whoever downloads or
removes it holds it alone. Processes of one machine share the cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from rsp.shared.errors import NotFoundError, StorageError
from rsp.shared.locations import Address, Location
from rsp.shared.locks import SHARED, try_lock
from rsp.shared.storage.base import check_etag

GiB = 1 << 30
SIZE = 10 * GiB

# An object that is replaced while it is downloaded is asked for again, so often.
_ATTEMPTS = 3

# How often it is tried to be the one who downloads, 0.05 s apart.
_TURNS = 40

_LOCK = ".lock"

# Locks of what this process uses, by the folder: their files stay open, so that nobody removes what is in use.
_held: dict[Path, int] = {}
_turn = threading.Lock()


def folder() -> Path:
    """Return the folder of the cache, and make it.

    Raises:
        StorageError: it cannot be made, or it is another user's, who could put files of theirs into it.
    """
    named = os.environ.get("RSP_CACHE")
    root = Path(named).expanduser() if named else Path(tempfile.gettempdir()) / f"rsp-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
        if not named and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022):
            raise StorageError(f"others may write to {root}: remove it, or name another folder in RSP_CACHE")
        path = root / "objects"
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the cache {root}: {error.strerror}; name another in RSP_CACHE") from error
    return path


def limit() -> int:
    """Return how many bytes the cache may have; raise `StorageError` where RSP_CACHE_SIZE is no number."""
    text = os.environ.get("RSP_CACHE_SIZE", "").strip()
    if not text:
        return SIZE
    if not text.isdecimal():
        raise StorageError(f"RSP_CACHE_SIZE is {text!r}; expected a number of bytes, such as {SIZE}")
    return int(text)


def fits(address: Address) -> bool:
    """Tell whether an object takes no more than half of the cache, and may be fetched for convenience."""
    storage, key = address.open()
    found = storage.stat(key)
    return found is not None and found.size <= limit() // 2


def nearby(tiles: Location) -> Location:
    """Return the copy of an archive in S3 on this machine, for who reads most of its tiles, or reads them often.

    What the cache cannot hold stays where it is and is read by ranges; so do tiles that are objects of their own.
    """
    if isinstance(tiles, Address) and tiles.suffix.lower() == ".pmtiles" and fits(tiles):
        return fetch(tiles)
    return tiles


def fetch(address: Address) -> Path:
    """Return an object as a file; see `rsp.shared.locations.fetched`."""
    from rsp.shared.storage.settings import find_endpoint  # the client of S3 takes 0.3 s to import

    storage, key = address.open()
    for _ in range(_ATTEMPTS):
        found = storage.stat(key)
        if found is None:
            raise NotFoundError(f"there is no {address.plain}")
        check_etag(address.plain, found.etag, address.etag)
        text = f"{find_endpoint()}\0{address.plain}\0{found.etag}"
        entry = folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
        path = entry / address.name
        with _turn:
            if entry in _held and not path.exists():  # removed by hand
                os.close(_held.pop(entry))
            if entry not in _held:
                lock = _share(entry, path)
                try:
                    if not path.exists():
                        _make_room(entry, found.size, address)
                        if storage.download(key, path).etag != found.etag:
                            path.unlink()
                        # From here on others may use it too.
                        try_lock(lock, SHARED)
                    if not path.exists():
                        raise FileNotFoundError(path)
                except FileNotFoundError:  # replaced while it was downloaded, or removed between two locks
                    os.close(lock)
                    continue
                except BaseException:
                    os.close(lock)
                    raise
                _held[entry] = lock
            with suppress(OSError):
                os.utime(entry)
            return path
    raise StorageError(f"{address.plain} is replaced again and again, or vanishes from the cache {folder()}")


def _share(entry: Path, path: Path) -> int:
    """Return the lock of an object: shared where its file is there, else for this process alone.

    Who finds another process downloading waits for it.
    """
    for _ in range(_TURNS):
        lock = _open_lock(entry)
        try_lock(lock, SHARED)
        try:
            # Whoever removed the folder meanwhile has left us a lock on nothing.
            if os.path.samestat(os.fstat(lock), (entry / _LOCK).stat()):
                if not path.exists():
                    try_lock(lock)
                return lock
        except FileNotFoundError:
            pass
        except BlockingIOError:
            # Others look, too: one of them will be first. Where a file was removed by hand under a process that
            # uses it, none ever is; then it is downloaded all the same, for it appears whole.
            time.sleep(0.05)
        os.close(lock)
    return _open_lock(entry)


def _open_lock(entry: Path) -> int:
    while True:
        entry.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # removed since
            return os.open(entry / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _make_room(entry: Path, size: int, address: Address) -> None:
    """Remove what was not used for longest until an object fits; raise `StorageError` where it cannot."""
    most = limit()
    found = []
    for other in folder().iterdir():
        if other != entry and other.is_dir():
            with suppress(OSError):
                bytes_of = sum(file.lstat().st_size for file in other.iterdir())
                found.append((other.stat().st_mtime, other, bytes_of))
    total = sum(bytes_of for *_, bytes_of in found)
    for _, other, bytes_of in sorted(found):
        if total + size <= most:
            return
        if size <= most and _remove(other):
            total -= bytes_of
    if total + size > most:
        raise StorageError(
            f"{address.plain} has {size} bytes, and the cache {folder()} may have {most}, of which "
            f"{total if size <= most else 0} are in use; raise RSP_CACHE_SIZE, or name a larger disk in RSP_CACHE"
        )


def _remove(entry: Path) -> bool:
    """Remove an object from the cache; tell whether nobody used it."""
    try:
        lock = os.open(entry / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # not ours
    try:
        if not try_lock(lock):
            return False  # without locks nobody can tell who uses it
        shutil.rmtree(entry)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
