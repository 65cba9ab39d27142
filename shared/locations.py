"""Where things are: paths on this machine and addresses in S3 (`s3://bucket/key`), behind one type.

Every tool takes a `Location` where it reads or writes. What wants a whole file on this machine calls `fetched`;
what writes goes through `rsp.shared.atomic`. An `Address` is no path on purpose: `Path(address)` raises, so that
none becomes a local folder named `s3:` by mistake.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from rsp.shared.errors import ChangedError, NotFoundError, RspError, StorageError, UsageError

if TYPE_CHECKING:
    from rsp.shared.storage import Stat, Storage

S3 = "s3://"

# Also what becomes of an address that somebody made a path of: `s3:/bucket/key`.
_ADDRESS = re.compile(r"s3:/+(?P<rest>.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, order=True)
class Address:
    """An object in S3, or what lies below a prefix.

    What follows the last `#` of its text is an ETag; a key that holds a `#` itself has one more at its end.

    Attributes:
        bucket: Name of the bucket.
        key: Key of the object, or the prefix without a slash at its end; empty for the whole bucket.
        etag: What the object has to be; None takes whatever is there.
    """

    bucket: str
    key: str = ""
    etag: str | None = None

    def __str__(self) -> str:
        text = f"{S3}{self.bucket}/{self.key}".rstrip("/")
        if self.etag is None:
            return f"{text}#" if "#" in self.key else text
        return f"{text}#{self.etag}"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no path on this machine: `rsp.shared.locations.fetched` makes a file of it")

    def __truediv__(self, name: str) -> Address:
        return Address(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def plain(self) -> Address:
        """The address without its ETag."""
        return replace(self, etag=None)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, as `.pmtiles`; empty where there is none."""
        return self._pure.suffix

    @property
    def parent(self) -> Address:
        """The prefix that it lies below; the bucket is its own parent."""
        return Address(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Address:
        """Return what is beside it under another name."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> Address:
        """Return what is beside it under another suffix."""
        return self.parent / self._pure.with_suffix(suffix).name

    def expanduser(self) -> Address:
        """Return the address as it is: it has no `~`. Paths have this method too."""
        return self

    def open(self) -> tuple[Storage, str]:
        """Return the store of the object and its key in it.

        Raises:
            UsageError: it names no object, only a bucket.
            StorageError: the environment does not say how to reach the server.
        """
        from rsp.shared.storage import open_object

        return open_object(f"{S3}{self.bucket}/{self.key}")

    def storage(self) -> Storage:
        """Return the store of what lies below this prefix; raises as `open`."""
        from rsp.shared.storage import open_storage

        return open_storage(f"{S3}{self.bucket}/{self.key}")

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)


Location = Path | Address
Place = TypeVar("Place", bound=Path | Address)


def listed(given: Location | Sequence[Location] | None) -> list[Location]:
    """Return what may be one location, several or none as a list."""
    if given is None:
        return []
    return [given] if isinstance(given, Path | Address | str) else list(given)


def location(text: str | Path | Address) -> Location:
    """Return the place that a text names: an `Address` for `s3://...`, in any case, else a path.

    It is the `type` of arguments on the command line.

    Raises:
        UsageError: an address that cannot be one, or holds credentials.
    """
    if isinstance(text, Address):
        return text
    found = _ADDRESS.match(str(text))
    if found is None:
        return Path(text)
    if isinstance(text, Path) or not str(text).lower().startswith(S3):
        raise UsageError(f"{text} is neither a path nor an address: an address is a text, {S3}{found['rest']}")
    return parse_address(str(text))


def parse_address(text: str) -> Address:
    """Return the address that `s3://bucket/key` or `s3://bucket/key#etag` names; raise `UsageError`."""
    from rsp.shared.storage.base import check_key

    rest, mark, etag = text[len(S3) :].rpartition("#")
    bucket, _, key = (rest if mark else etag).partition("/")
    if "@" in bucket:
        raise UsageError(
            "an s3:// address holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "RSP_S3_SECRETS"
        )
    if not bucket:
        raise UsageError(f"{text!r} names no bucket; expected {S3}bucket/key")
    key = key.strip("/")
    if key:
        try:
            check_key(key)
        except StorageError as error:
            raise UsageError(str(error)) from None
    return Address(bucket, key, (etag.strip('"') or None) if mark else None)


def check_output(address: Address) -> None:
    """Raise `UsageError` where an output is named with an ETag: that of what is yet to be written nobody knows."""
    if address.etag is not None:
        raise UsageError(f"cannot write {address}: an output has no ETag yet; give {address.plain}")


def is_address(where: object) -> bool:
    """Tell whether a place, or the text of one, is in S3."""
    return isinstance(where, Address) or (isinstance(where, str) and where.lower().startswith(S3))


def stat_of(address: Address) -> Stat | None:
    """Return what an object is, None where there is none.

    Raises:
        ChangedError: it has another ETag than the address.
        StorageError: the store cannot be reached, or refuses.
    """
    from rsp.shared.storage.base import check_etag

    storage, key = address.open()
    found = storage.stat(key)
    if found is not None:
        check_etag(address.plain, found.etag, address.etag)
    return found


def exists(where: Location) -> bool:
    """Tell whether there is a file or folder, an object, or an object below a prefix.

    Raises:
        ChangedError: an object that has another ETag than the address.
        StorageError: the store cannot be reached.
    """
    if isinstance(where, Path):
        return where.expanduser().exists()
    if where.key and stat_of(where) is not None:
        return True
    return next(iter(where.storage().list()), None) is not None


def etag_of(where: Location) -> str:
    """Return what changes whenever the content does.

    Returns:
        An object's ETag; of a prefix, and of a pattern of keys, the SHA-256 of the list of keys, sizes and ETags;
        of a file on this machine the SHA-256 of its bytes, of a folder that of all names and files in it.

    Raises:
        NotFoundError: nothing is there.
        ChangedError: it has another ETag than the address.
        StorageError: the store cannot be reached, or the file cannot be read.
    """
    if isinstance(where, Path):
        return _digest(where.expanduser())
    found = stat_of(where) if where.key else None
    if found is not None:
        return found.etag
    if has_magic(where.key):
        return _digest_of((each for _, each in _matching(where)), where, f"no object is named as {where.plain}")
    return _digest_of(where.storage().list(), where, f"there is no {where.plain}, and nothing below it")


def _digest_of(objects: Iterable[Stat], where: Address, nothing: str) -> str:
    """Return the SHA-256 of a list of objects; raise `ChangedError` where it is not that of the address."""
    digest, count = hashlib.sha256(), 0
    for each in objects:
        digest.update(f"{each.key}\0{each.size}\0{each.etag}\n".encode())
        count += 1
    if not count:
        raise NotFoundError(nothing)
    if where.etag not in (None, digest.hexdigest()):
        raise ChangedError(f"what {where.plain} names was changed: its objects are not those of {where.etag}")
    return digest.hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for each in sorted(path.rglob("*")):
            if each.is_file():
                digest.update(f"{each.relative_to(path).as_posix()}\0{_digest(each)}\n".encode())
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def pinned(address: Address) -> Address:
    """Return the address with the ETag that its object has now; raises as `etag_of`."""
    return replace(address, etag=etag_of(address))


def fetched(where: Location) -> Path:
    """Return a file on this machine: a path as it is, an object downloaded whole into the cache.

    An object is downloaded once for each ETag. It stays in the cache at least until this process ends; see
    `rsp.shared.filecache`.

    Raises:
        NotFoundError: there is no such object.
        ChangedError: it has another ETag than the address.
        StorageError: the store cannot be reached, or the cache cannot hold it.
    """
    if isinstance(where, Path):
        return where.expanduser()
    from rsp.shared.filecache import fetch

    return fetch(where)


@contextmanager
def on_disk(where: Location) -> Iterator[Path]:
    """Yield what `fetched` returns; errors of the block name the address, not the file in the cache."""
    path = fetched(where)
    try:
        yield path
    except RspError as error:
        if isinstance(where, Address):
            error.args = tuple(
                each.replace(str(path), str(where)) if isinstance(each, str) else each for each in error.args
            )
        raise


def read_text(where: Location, *, encoding: str = "utf-8") -> str:
    """Return the text of a file or an object.

    Raises:
        OSError: the file cannot be read; also where there is no such object.
        UnicodeDecodeError: it is not text in this encoding.
        StorageError: the store cannot be reached.
    """
    try:
        return fetched(where).read_text(encoding)
    except NotFoundError as error:
        raise FileNotFoundError(str(error)) from error


def remove(where: Location) -> None:
    """Remove a file or an object; nothing happens where there is none.

    Raises:
        OSError: the file cannot be removed.
        StorageError: the store refuses, or cannot be reached.
    """
    if isinstance(where, Path):
        where.expanduser().unlink(missing_ok=True)
        return
    storage, key = where.open()
    # Not every account that may write may delete: who has nothing to delete shall not need to.
    if storage.stat(key) is not None:
        storage.delete(key)


def matching(pattern: str | Location) -> list[Location]:
    """Return the files or objects that a path, an address or a glob pattern of either names, sorted.

    A `*` does not reach across a slash. A name without a wildcard stands for itself, whether it is there or not.
    The objects of a pattern that has an ETag have theirs, too.

    Raises:
        UsageError: an address that cannot be one.
        NotFoundError: a pattern with an ETag names nothing any more.
        ChangedError: it names other objects than those of its ETag.
        StorageError: the store cannot be reached.
    """
    where = location(pattern).expanduser()
    if isinstance(where, Path):
        if where.exists() or not has_magic(str(where)):
            return [where]
        return sorted(map(Path, glob(str(where))))  # noqa: PTH207 (absolute patterns too)
    if not has_magic(where.key) or exists(where):
        return [where]
    found = list(_matching(where))
    if where.etag is None:
        return [address for address, _ in found]
    _digest_of((each for _, each in found), where, f"no object is named as {where.plain}")
    return [replace(address, etag=each.etag) for address, each in found]


def _matching(pattern: Address) -> Iterator[tuple[Address, Stat]]:
    """Yield the objects whose keys a pattern names, sorted."""
    parts = pattern.key.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root = Address(pattern.bucket, "/".join(parts[:fixed]))
    wanted = parts[fixed:]
    for found in root.storage().list():
        names = found.key.split("/")
        if len(names) == len(wanted) and all(map(fnmatchcase, names, wanted)):
            yield root / found.key, found
