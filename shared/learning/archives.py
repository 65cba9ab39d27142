"""Reading the zip archives that exported models are, without trusting what they claim."""

from __future__ import annotations

import io
import mmap
import re
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsp.shared.errors import ModelError

# The largest network built in has some 500 weights; a stranger's archive is not read without end.
MAX_MEMBERS = 20_000
# A member that is text: the program, the code, a table of the weights.
MAX_TEXT = 64 << 20
# What the sizes and places in a plain zip archive can say.
MAX_STORED = (1 << 32) - 2
NOTHING = re.compile(r"(?!)")
_ROOT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)*")


class Archive:
    """An open archive whose directory was checked; members are named without the folder that they all lie in.

    Attributes:
        sizes: How many bytes each member has.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        entries = file.infolist()
        if len(entries) > MAX_MEMBERS:
            raise ModelError(f"{path} has {len(entries)} members, the limit is {MAX_MEMBERS}: refused")
        self.root = entries[0].filename.partition("/")[0] if entries else ""
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            root, _, name = entry.filename.partition("/")
            # What the name was before zipfile cut it at a NUL: other readers do not.
            odd = entry.orig_filename != entry.filename or ".." in name.split("/")
            if odd or root != self.root or not _ROOT.fullmatch(root) or not _NAME.fullmatch(name):
                raise ModelError(
                    f"{path} holds {entry.orig_filename[:100]!r}, which is not a name of an export: refused"
                )
            if name in self._entries:
                raise ModelError(f"{path} holds {name!r} twice: refused")
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ModelError(f"{path}: {name!r} is encrypted or compressed in an unknown way: refused")
            if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
                raise ModelError(f"{path}: the sizes of {name!r} contradict each other: refused")
            if entry.compress_type == zipfile.ZIP_DEFLATED and entry.file_size > MAX_TEXT:
                raise ModelError(
                    f"{path}: {name!r} unpacks to {entry.file_size} bytes, the limit is {MAX_TEXT}: refused"
                )
            self._entries[name] = entry
        packed = sum(entry.compress_size for entry in entries)
        unpacked = sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_DEFLATED)
        if packed > path.stat().st_size or unpacked > MAX_TEXT:
            raise ModelError(f"{path} unpacks to more than it can hold (a zip bomb?): refused")
        self.sizes = {name: entry.file_size for name, entry in self._entries.items()}

    def require(self, pattern: re.Pattern[str], needed: tuple[str, ...]) -> None:
        """Raise where the archive has a member that `pattern` does not match, or lacks one that is needed."""
        for name in self.sizes:
            if not pattern.fullmatch(name):
                raise ModelError(f"{self.path} holds {name!r}, which `rsp export` does not write: refused")
        for name in needed:
            if name not in self.sizes:
                raise ModelError(f"{self.path} lacks {name!r}: damaged, or not written by `rsp export`")

    def text(self, name: str) -> bytes:
        """Return a member that is text, checked against its checksum."""
        if self.sizes[name] > MAX_TEXT:
            raise ModelError(f"{self.path}: {name!r} has {self.sizes[name]} bytes, the limit is {MAX_TEXT}")
        return self._file.read(self._entries[name])

    def copy(self, changed: Mapping[str, bytes], left_out: re.Pattern[str]) -> Checked:
        """Return a plain archive of the members, each checked against its checksum, as a file.

        torch reads zip archives by its own code. It is given what was checked, byte for byte, and cannot find in a
        file what this code did not see: another directory, a second member of that name, bytes between members.
        What is large is not copied: it stays in the file, which must not be written to meanwhile.

        Args:
            changed: What stands for some of the members.
            left_out: Names of those that are left out.
        """
        with self.path.open("rb") as file:
            # It lives as long as a member is looked at.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        members: list[tuple[str, bytes | memoryview]] = []
        for name, entry in self._entries.items():
            if entry.compress_type == zipfile.ZIP_STORED:
                content: bytes | memoryview = self._stored(entry, data)
            else:
                content = self._file.read(entry)
            if not left_out.fullmatch(name):
                members.append((f"{self.root}/{name}", changed.get(name, content)))
        return Checked(members)

    def _stored(self, entry: zipfile.ZipInfo, data: memoryview) -> memoryview:
        with self._file.open(entry):  # zipfile compares its header with the directory
            pass
        lengths = struct.unpack_from("<HH", data, entry.header_offset + 26)
        start = entry.header_offset + 30 + sum(lengths)
        content = data[start : start + entry.file_size]
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise zipfile.BadZipFile(f"the checksum of {entry.filename!r} is wrong")
        return content


class Checked(io.RawIOBase):
    """A zip archive, uncompressed, made of parts that lie elsewhere in memory; reads like a file.

    Attributes:
        members: What is in it, by the name without the folder that all lie in.
    """

    def __init__(self, members: Sequence[tuple[str, bytes | memoryview]]) -> None:
        self.members = {name.partition("/")[2]: data for name, data in members}
        self._parts: list[bytes | memoryview] = []
        self._ends: list[int] = []
        self._position = 0
        directory = b""
        for name, data in members:
            if len(data) > MAX_STORED:
                raise ModelError(f"{name!r} has {len(data)} bytes, the limit is {MAX_STORED}")
            offset, title = self._size, name.encode()
            # Version 2.0, no flags, stored, 1 January 1980.
            common = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(title), 0)
            if offset > MAX_STORED:
                raise ModelError(f"the archive has more than {MAX_STORED} bytes")
            self._add(b"PK\3\4" + common + title)
            self._add(data)
            directory += b"PK\1\2" + struct.pack("<H", 20) + common
            directory += struct.pack("<3H2L", 0, 0, 0, 0, offset) + title
        end = struct.pack("<4H2LH", 0, 0, len(members), len(members), len(directory), self._size, 0)
        self._add(directory + b"PK\5\6" + end)

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _add(self, part: bytes | memoryview) -> None:
        if len(part):
            self._ends.append(self._size + len(part))
            self._parts.append(part)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on; return how many bytes there were."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target) and self._position < self._size:
            index = bisect_right(self._ends, self._position)
            part = self._parts[index]
            start = self._position - (self._ends[index] - len(part))
            count = min(len(part) - start, len(target) - done)
            target[done : done + count] = part[start : start + count]
            done, self._position = done + count, self._position + count
        return done

    def readall(self) -> bytes:
        """Return what is left from the position on."""
        data = bytearray(max(0, self._size - self._position))
        self.readinto(data)
        return bytes(data)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an exported model; raise `ModelError` where it is damaged, now or when a member is read."""
    try:
        with zipfile.ZipFile(path) as file:
            yield Archive(path, file)
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ModelError(f"the model {path} is damaged: {error}") from error
    except (ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ModelError(f"the model {path} is damaged: {error}") from error
