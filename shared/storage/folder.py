"""A folder as a store: one file an object, conditional writes under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat as modes
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rsp.shared.atomic import PREFIX, atomic_path
from rsp.shared.errors import ChangedError, NotFoundError, StorageError
from rsp.shared.storage.base import (
    MiB,
    Readable,
    Stat,
    Storage,
    check_digest,
    check_key,
    check_limit,
    conflict,
    nothing,
)

# Up to this size an ETag is the SHA-256 of the content, above it what the file system knows of the file.
HASHED = 64 << 10

# Times of files move in steps. Within a step of the last change, another change may leave no trace.
STEP = 0.02
WHOLE_SECONDS = 2.0  # on file systems that note no fractions

_CHUNK = MiB


class FolderStorage(Storage):
    """Files below a folder. While they are written they are hidden in it (`rsp.shared.atomic`).

    Links to files are followed as long as they stay within the folder; folders that are links are refused.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.address = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise StorageError(f"{self.root} is a file; a store is a folder, or s3://bucket/prefix")

    def stat(self, key: str) -> Stat | None:
        try:
            with self._open(key) as file:
                return _stat(key, file)
        except NotFoundError:
            return None

    def read(self, key: str, *, limit: int = 64 * MiB) -> tuple[bytes, Stat]:
        with self._open(key) as file:
            before = _stat(key, file)
            check_limit(self._where(key), before.size, limit)
            data = file.read(min(before.size, limit) + 1)
            if len(data) != before.size:
                raise ChangedError(f"{self._where(key)} changed while it was read: try again")
            if len(data) <= HASHED:
                return data, Stat(key, len(data), _digest(data))
            self._unchanged(key, file, before)
            return data, before

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        with self._open(key) as file:
            before = _stat(key, file)
            if etag is not None and before.etag != etag:
                raise ChangedError(f"{self._where(key)} has changed since it was opened: open it again")
            file.seek(start)
            data = file.read(min(length, max(before.size - start, 0)))
            self._unchanged(key, file, before)
            return data

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> Stat:
        with self._open(key) as file, atomic_path(path) as temporary:
            before = _stat(key, file)
            digest = hashlib.sha256()
            with temporary.open("wb") as output:
                while data := file.read(_CHUNK):
                    digest.update(data)
                    output.write(data)
            self._unchanged(key, file, before)
            check_digest(self._where(key), digest.hexdigest(), sha256)
        return before

    def upload(self, key: str, path: Path) -> Stat:
        try:
            source = path.open("rb")
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error

        def copy(temporary: Path) -> None:
            source.seek(0)
            with temporary.open("wb") as output:
                while data := source.read(_CHUNK):
                    output.write(data)

        with source:
            return self._replace(key, copy)

    def upload_from(self, key: str, source: Readable, size: int, *, check: Callable[[], None] = nothing) -> Stat:
        written: IO[bytes] | None = None

        def copy(temporary: Path) -> None:
            nonlocal written
            output = held.enter_context(temporary.open("w+b"))
            # The source is read once. Who has to write again, since somebody removed the folder with the file in
            # it, still has the file open.
            before: Readable = source if written is None else written
            if written is not None:
                written.seek(0)
            while data := before.read(_CHUNK):
                output.write(data)
            if output.tell() != size:
                raise StorageError(
                    f"cannot write {self._where(key)}: {output.tell()} bytes came, {size} were announced"
                )
            output.flush()
            written = output
            check()

        with ExitStack() as held:
            return self._replace(key, copy)

    def write(self, key: str, data: bytes) -> Stat:
        return self._replace(key, lambda temporary: _fill(temporary, data))

    def write_if(self, key: str, data: bytes, *, etag: str | None) -> Stat:
        def compare() -> None:
            now = self.stat(key)
            if (now and now.etag) != etag:
                raise conflict(self._where(key), etag, now)

        return self._replace(key, lambda temporary: _fill(temporary, data), compare)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        above = prefix.rpartition("/")[0]
        if above:
            check_key(above)
        for key in self._walk(self.root / above, f"{above}/" if above else "", prefix):
            if found := self.stat(key):
                yield found

    def delete(self, *keys: str) -> None:
        for key in keys:
            path = self._path(key)
            try:
                with _lock(path.parent):
                    path.unlink(missing_ok=True)
                    self._prune(path.parent)
            except (FileNotFoundError, NotADirectoryError):
                pass  # no such folder, so no such object
            except OSError as error:
                raise StorageError(f"cannot delete {self._where(key)}: {error.strerror}") from error

    def honours_conditions(self) -> bool:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _lock(self.root) as certain:
                return certain
        except OSError as error:
            raise StorageError(f"cannot write the folder {self.root}: {error.strerror}") from error

    def __reduce__(self) -> tuple[type[FolderStorage], tuple[Path]]:
        return FolderStorage, (self.root,)

    def _where(self, key: str) -> str:
        return str(self.root / key)

    def _path(self, key: str) -> Path:
        """Return the file of a key; raise `StorageError` where it would lie outside the folder."""
        path = self.root / check_key(key)
        root = os.path.realpath(self.root)
        if os.path.realpath(path.parent) != str(Path(root, key).parent):
            raise StorageError(f"{path.parent} is a link, or lies behind one: a store follows links to files only")
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if target.is_symlink() or not target.is_relative_to(root):
                raise StorageError(f"{path} is a link that leads out of {self.root}, or to itself")
        return path

    @contextmanager
    def _open(self, key: str) -> Iterator[IO[bytes]]:
        try:
            path = self._path(key)
            # O_NONBLOCK: opening a pipe would wait for its other end.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:
                if not modes.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise FileNotFoundError
                yield file
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"there is no {self._where(key)}") from None
        except OSError as error:
            raise StorageError(f"cannot read {self._where(key)}: {error.strerror}") from error

    def _unchanged(self, key: str, file: IO[bytes], before: Stat) -> None:
        if _stat(key, file).etag != before.etag:
            raise ChangedError(f"{self._where(key)} changed while it was read: try again")

    def _replace(
        self, key: str, fill: Callable[[Path], None], condition: Callable[[], None] | None = None
    ) -> Stat:
        """Put a file in place of that of a key, under the lock of its folder; the condition may raise."""
        for attempts_left in (4, 3, 2, 1, 0):
            try:
                with ExitStack() as held:
                    path = self._path(key)
                    with atomic_path(path) as temporary:
                        fill(temporary)
                        held.enter_context(_lock(path.parent))
                        if condition:
                            condition()
                    # Still under the lock: it must not be what somebody else has written since.
                    found = self.stat(key)
                    if found is None:
                        raise StorageError(f"{path} was removed by somebody else while it was written")
                    return found
            except (StorageError, OSError) as error:
                reason = error if isinstance(error, OSError) else error.__cause__
                # Somebody who deleted the last object of the folder has removed it between our steps; while it is
                # made, Python then says that it exists.
                if isinstance(reason, (FileNotFoundError, FileExistsError)) and attempts_left:
                    continue
                if isinstance(reason, (FileExistsError, NotADirectoryError)):
                    raise StorageError(
                        f"cannot write {self._where(key)}: a folder on its way is a file"
                    ) from error
                if isinstance(error, OSError):
                    raise StorageError(f"cannot write {self._where(key)}: {error.strerror}") from error
                raise
        raise AssertionError

    def _prune(self, folder: Path) -> None:
        """Remove folders that hold nothing any more, up to the root."""
        with suppress(OSError):
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent

    def _walk(self, folder: Path, above: str, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder in the order of their bytes; what is not named like one is passed over."""
        try:
            with os.scandir(folder) as entries:
                found = [
                    (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries
                ]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"cannot list {folder}: {error.strerror}") from error
        for name in sorted(f"{name}/" if is_folder else name for name, is_folder, _ in found):
            key = above + name
            if name.startswith(PREFIX) or not (key.startswith(prefix) or prefix.startswith(key)):
                continue
            if name.endswith("/"):
                yield from self._walk(folder / name, key, prefix)
            elif key.startswith(prefix) and self._listed(key):
                yield key

    def _listed(self, key: str) -> bool:
        try:
            self._path(key)
        except StorageError:
            return False
        return True


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stat(key: str, file: IO[bytes]) -> Stat:
    """Return what an open file is; its position stays at the beginning.

    A large file is known by its inode, size and times. The time of the last change (ctime) cannot be set, so it
    tells of a rewrite that kept size and mtime, unless that happened within one step of the clock: where the last
    change is as young as that, the step is waited out. What changes the file from then on leaves another time.
    """
    for _ in range(50):
        status = os.fstat(file.fileno())
        if status.st_size <= HASHED:
            file.seek(0)
            data = file.read(HASHED + 1)
            file.seek(0)
            if len(data) <= HASHED:
                return Stat(key, len(data), _digest(data), _modified(status))
            continue  # it has grown since
        step = STEP if status.st_ctime_ns % 1_000_000_000 else WHOLE_SECONDS
        age = time.time() - status.st_ctime_ns / 1e9
        if age >= step:
            break
        time.sleep(step - max(age, 0))  # a time in the future is another machine's
        again = os.fstat(file.fileno())
        if (again.st_ctime_ns, again.st_size) == (status.st_ctime_ns, status.st_size):
            break
    parts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return Stat(key, status.st_size, "-".join(f"{part:x}" for part in parts), _modified(status))


def _modified(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, and yield whether it is certain: some network file systems have no locks."""
    while True:
        descriptor, certain = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), True
        try:
            name = folder
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                # NFS locks only what is open for writing, and a folder cannot be.
                name, of_folder = folder / f"{PREFIX}lock", descriptor
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                os.close(of_folder)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                except OSError:
                    certain = False
            # Its last holder may have removed it between the opening and the locking.
            if os.path.samestat(os.fstat(descriptor), name.stat()):
                yield certain
                return
        finally:
            os.close(descriptor)
