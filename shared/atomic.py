"""Files that appear whole or not at all: written under a hidden name beside the target, then renamed.

What goes to an address in S3 is written to a temporary file on this machine and uploaded when it is whole: an
object, too, is seen whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO

from rsp.shared.errors import StorageError
from rsp.shared.locations import Address, Location, check_output

# Hidden, so that no scan of a tile set takes an unfinished file for a tile.
PREFIX = ".rsp-"


def is_stream(path: Location) -> bool:
    """Tell whether a path is a device, a pipe, or a name of an open stream.

    `/dev/stdout` may lead to a file, into which the shell put the output: the name itself must stay.
    """
    if isinstance(path, Address):
        return False
    named = path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",)) and path.parts[2:3] != ("shm",)
    return named or (path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def atomic_path(path: Location) -> Iterator[Path]:
    """Yield a path to write to; it takes the place of `path` when the block ends well, and goes when it fails.

    A device or a pipe (`/dev/stdout`) is written to as it is: it cannot be replaced, and must not be. An object in
    S3 is uploaded when the block has ended well.

    Raises:
        UsageError: an address that says which ETag there is: that of what is yet to be written nobody knows.
        StorageError: the folder cannot be made or written (disk full, no permission), or the store refuses, with
            the reason. Errors of the block that are about other files pass through.
    """
    if isinstance(path, Address):
        with _uploaded(path) as temporary:
            yield temporary
        return
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a directory")
    if is_stream(path):
        yield path
        return
    ours = f"{PREFIX}{path.name[:100]}.{os.uname().nodename[:60]}."
    temporary = path.parent / f"{ours}{os.getpid()}.{os.urandom(8).hex()}{path.suffix}"
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, ours)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    try:
        yield temporary
        # What a name points to must be on the disk before the name is: a machine may stop between the two.
        _sync(temporary)
        temporary.replace(path)
        # The name itself is in the folder, and a new folder's name in the one above it.
        for folder in [path.parent, *(folder.parent for folder in made)]:
            _sync_folder(folder)
    except OSError as error:
        # A full disk is reported without a name, or with ours; errors about other files belong to the block.
        if error.errno is not None and error.filename in (None, str(temporary), temporary):
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _uploaded(address: Address) -> Iterator[Path]:
    """Yield a temporary file that becomes the object when the block ends well."""
    check_output(address)
    # Who cannot be written to is found out before the work.
    storage, key = address.open()
    # The name stays: some writers tell by its suffix what to write.
    with TemporaryDirectory(prefix=temporary_prefix("upload"), ignore_cleanup_errors=True) as folder:
        temporary = Path(folder) / address.name
        try:
            yield temporary
        except OSError as error:
            if error.errno is not None and error.filename in (None, str(temporary), temporary):
                raise StorageError(f"cannot write {address} by way of {folder}: {error.strerror}") from error
            raise
        storage.upload(key, temporary)


@contextmanager
def scratch(path: Location) -> Iterator[Path]:
    """Yield a folder for what waits to become part of an output: beside it, where there is room for that too.

    It goes in the end; what a process that was killed left of one goes when the output is written again.

    Raises:
        StorageError: it cannot be made.
    """
    if isinstance(path, Address):
        with TemporaryDirectory(prefix=temporary_prefix("scratch"), ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    ours = f"{PREFIX}{path.name[:100]}.{os.uname().nodename[:60]}."
    parts = path.parent / f"{ours}{os.getpid()}.{os.urandom(8).hex()}.parts"
    try:
        parts.mkdir(parents=True)
        # An output that is a folder has nothing written beside it that would sweep there.
        _sweep(path.parent, ours)
    except OSError as error:
        raise StorageError(f"cannot make the folder {parts}: {error.strerror}") from error
    try:
        yield parts
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def temporary_prefix(what: str) -> str:
    """Return how the name of a folder for temporary files begins, and remove those of processes that were killed.

    Nothing else would: some of them hold a country, and not every machine empties its temporary folder.

    Args:
        what: What the folder is for, in a word; only those for the same are removed.
    """
    ours = f"{PREFIX}{what}.{os.uname().nodename[:60]}."
    _sweep(Path(gettempdir()), ours)
    return f"{ours}{os.getpid()}."


def _sweep(folder: Path, ours: str) -> None:
    """Remove what processes of this machine that were killed had left half written."""
    for path in folder.glob(f"{escape(ours)}*"):
        pid = path.name[len(ours) :].partition(".")[0]
        if pid.isdecimal() and not alive(int(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                continue
            with suppress(OSError):
                path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Tell whether a process of this machine lives, as far as that can be seen."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder, and a folder may be writable but not readable:
        # the file is whole all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES):
            raise


@contextmanager
def atomic_text(path: Location) -> Iterator[IO[str]]:
    """Open a text file (UTF-8) for writing that replaces `path` when the block ends well."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def write_bytes(path: Location, data: bytes) -> None:
    """Write a file or an object atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
