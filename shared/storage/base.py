"""What every store of files can do, whether it is a folder or a bucket."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rsp.shared.atomic import PREFIX
from rsp.shared.errors import ChangedError, ConflictError, StorageError

MiB = 1 << 20

# S3's own bound, in bytes of UTF-8.
LONGEST_KEY = 1024


@dataclass(frozen=True)
class Stat:
    """An object at one moment.

    Attributes:
        key: Its name, relative to the store.
        size: In bytes.
        etag: Another one whenever the content is another. Equal contents need not have equal ETags.
        modified: When it was written, by the clock of the store; None where that was not asked for. A list has it.
    """

    key: str
    size: int
    etag: str
    modified: datetime | None = field(default=None, compare=False)


def nothing() -> None:
    """Check nothing."""


class Readable(Protocol):
    """A file that is read once, in parts."""

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes, fewer only at the end."""
        ...


def check_key(key: str) -> str:
    """Return the key; raise `StorageError` where it is no plain relative POSIX path.

    What is refused has several meanings or leads out of the store: absolute paths, `.`, `..` and empty segments,
    backslashes, control characters, and names that begin like our own temporary files.
    """
    problem = None
    if not key:
        problem = "it is empty"
    elif "\\" in key or any(ord(character) < 32 or ord(character) == 127 for character in key):
        problem = "it holds a backslash or a control character"
    elif any(segment in ("", ".", "..") for segment in key.split("/")):
        problem = "it has an empty segment, `.` or `..`; expected a relative path such as a/b.json"
    elif any(segment.startswith(PREFIX) for segment in key.split("/")):
        problem = f"names that begin with {PREFIX} are kept for temporary files"
    else:
        try:
            if len(key.encode()) > LONGEST_KEY:
                problem = f"it is longer than {LONGEST_KEY} bytes"
        except UnicodeEncodeError:
            problem = "it is not Unicode text"
    if problem:
        raise StorageError(f"{key[:200]!r} cannot be the key of an object: {problem}")
    return key


def check_limit(where: str, size: int, limit: int) -> None:
    """Raise `StorageError` where an object is larger than what is expected of it."""
    if size > limit:
        raise StorageError(f"{where} has {size} bytes, more than the {limit} that are expected of it")


def check_digest(where: str, found: str, expected: str | None) -> None:
    """Raise `StorageError` where a SHA-256 (in hexadecimal) is another than the expected one."""
    if expected is not None and found != expected.lower():
        raise StorageError(
            f"{where} is damaged, or was replaced: its SHA-256 begins with {found[:16]}, and {expected[:16]} was "
            "expected"
        )


def check_etag(where: object, found: str, expected: str | None) -> None:
    """Raise `ChangedError` where an object has another ETag than is expected of it; None expects nothing."""
    if expected not in (None, found):
        raise ChangedError(f"{where} was replaced: its ETag is {found}, and {expected} was expected")


def conflict(where: str, etag: str | None, now: Stat | None) -> ConflictError:
    """Return the error of a conditional write whose condition does not hold."""
    if etag is None:
        return ConflictError(f"{where} is there already: somebody else has written it")
    if now is None:
        return ConflictError(f"{where} is not there any more: somebody else has removed it")
    return ConflictError(f"{where} was changed by somebody else: read it again")


class Storage(ABC):
    """A store of objects, each with a key: files in a folder, or objects below a prefix of a bucket.

    A reader sees an object whole or not at all, before and after any writer. Keys are relative POSIX paths
    (`check_key`). Every method raises `StorageError` where the store refuses or cannot be reached. Objects of this
    class may be shared by threads and passed to other processes.

    Attributes:
        address: What `open_storage` takes to open it again. It never holds credentials.
    """

    address: str

    @abstractmethod
    def stat(self, key: str) -> Stat | None:
        """Return size and ETag of an object, or None where there is none."""

    @abstractmethod
    def read(self, key: str, *, limit: int = 64 * MiB) -> tuple[bytes, Stat]:
        """Return a whole object, and what it is.

        Args:
            key: Which.
            limit: The most bytes that it may have.

        Raises:
            NotFoundError: it is not there.
            StorageError: it is larger than `limit`.
        """

    @abstractmethod
    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """Return bytes of an object, fewer than `length` only where it ends before.

        Args:
            key: Which.
            start: Offset of the first byte.
            length: How many.
            etag: What the object has to be; None takes whatever is there.

        Raises:
            NotFoundError: it is not there.
            ChangedError: its ETag is another.
        """

    @abstractmethod
    def download(self, key: str, path: Path, *, sha256: str | None = None) -> Stat:
        """Write an object to a file, which appears when it is whole and its digest is right.

        Args:
            key: Which.
            path: The file; its folder is made, and one that is there is replaced.
            sha256: The digest that the content must have, in hexadecimal.

        Raises:
            NotFoundError: it is not there.
            ChangedError: it was replaced while it was read.
            StorageError: its digest is another than `sha256`.
        """

    @abstractmethod
    def upload(self, key: str, path: Path) -> Stat:
        """Store a file of any size, in place of an object that is there."""

    @abstractmethod
    def upload_from(self, key: str, source: Readable, size: int, *, check: Callable[[], None] = nothing) -> Stat:
        """Store what a source gives, of any size, in place of an object that is there.

        Args:
            key: Which.
            source: Read once, from where it stands to its end.
            size: How many bytes it gives.
            check: Called when all of it has come and none of it is visible; where it raises, none ever is.

        Raises:
            StorageError: it gives another number of bytes; what was there stays.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> Stat:
        """Store a small object, in place of one that is there."""

    @abstractmethod
    def write_if(self, key: str, data: bytes, *, etag: str | None) -> Stat:
        """Store a small object on condition.

        It is as good as the store: see `honours_conditions`.

        Args:
            key: Which.
            data: Its new content.
            etag: The ETag that the object must have; None where it must not be there.

        Raises:
            ConflictError: it has another ETag, is not there, or is there.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Stat]:
        """Yield all objects whose key begins with `prefix`, sorted by key. Folders are not objects."""

    @abstractmethod
    def delete(self, *keys: str) -> None:
        """Remove objects; one that is not there is no error."""

    @abstractmethod
    def honours_conditions(self) -> bool:
        """Tell whether the store holds to the condition of `write_if` when several write at once.

        A server that does not may let two writers both believe that they were first. Found out once, by writing an
        object of its own name and removing it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"
