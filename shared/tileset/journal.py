"""The journal of an archive that is being written: its tiles, in the order in which they came."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from array import array
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsp.shared.errors import StorageError, TileSetError
from rsp.shared.locations import Location
from rsp.shared.locks import hold


class Journal:
    """Tiles in the order in which they were written, in a file that is whole up to its last whole record.

    In memory are sixteen bytes a record: its tile, until it is settled, and where in the file its data begin.
    """

    _MAGIC = b"rsp-1"
    _HEAD = len(_MAGIC) + 8  # and the format of the tiles
    _RECORD = struct.Struct("<QII")  # tile id, length, CRC of the data

    def __init__(self, path: Path, target: Location, tiles_format: str, *, resume: bool) -> None:
        self.path, self.target = path, target
        self._tiles, self._starts = array("Q"), array("Q")
        self._lock = threading.Lock()
        self._open = False
        head = self.head(tiles_format)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = hold(path)
            self._open = True
            found = os.pread(self._file, self._HEAD, 0)
            if resume and found == head:
                self._recover()
                return
            if resume:
                self._check_format(found, tiles_format, target)
            os.ftruncate(self._file, 0)
            self._end = 0
            self._put(head)
        except BlockingIOError:
            raise TileSetError(f"another process is writing {target} now") from None
        except OSError as error:
            self.close()
            raise StorageError(f"cannot write {target}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def head(cls, tiles_format: str) -> bytes:
        """Return what stands before the records."""
        return cls._MAGIC + tiles_format.encode().ljust(8)

    @classmethod
    def _check_format(cls, head: bytes, tiles_format: str, target: Location) -> None:
        """Raise `TileSetError` where a journal is one of tiles of another format."""
        if head.startswith(cls._MAGIC) and len(head) == cls._HEAD and head != cls.head(tiles_format):
            raise TileSetError(
                f"an interrupted run had begun {target} with {head[len(cls._MAGIC) :].decode().strip()} tiles and "
                f"{tiles_format} was asked for; choose the same --format, or start over without --resume"
            )

    @classmethod
    def records_of(cls, segment: bytes, tiles_format: str, target: Location) -> bytes:
        """Return the records of a part of a journal that was stored with a head of its own; empty if damaged.

        Raises:
            TileSetError: its tiles are of another format.
        """
        head = segment[: cls._HEAD]
        cls._check_format(head, tiles_format, target)
        return segment[cls._HEAD :] if head == cls.head(tiles_format) else b""

    def __len__(self) -> int:
        """The number of records; a tile that was written twice has two."""
        return len(self._starts)

    @property
    def end(self) -> int:
        """Where the last whole record ends, in bytes."""
        return self._end

    @property
    def file(self) -> int:
        """The descriptor of the file, while it is open."""
        return self._file

    def tiles(self) -> NDArray[np.uint64]:
        """Return the tile of each record that is not settled, in their order."""
        with self._lock:
            return np.array(self._tiles, np.uint64)

    def settle(self) -> tuple[int, NDArray[np.uint64]]:
        """Return the number of the first record that was not settled, and the tiles of all these: they are now."""
        with self._lock:
            tiles = np.array(self._tiles, np.uint64)
            self._tiles = array("Q")
            return len(self._starts) - len(tiles), tiles

    def places(
        self, ids: NDArray[np.uint64], records: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return where the data of records begin in the file, and their lengths."""
        with self._lock:
            # Records lie one behind the other. While the view is there, no record can be added.
            count, end = len(self._starts), np.uint64(self._end + self._RECORD.size)
            view = np.frombuffer(self._starts, np.uint64)
            starts, ends = view[records], view[np.minimum(records + np.uint32(1), np.uint32(count - 1))]
            del view
        ends[records == count - 1] = end
        return starts, ends - starts - np.uint64(self._RECORD.size)

    def _recover(self) -> None:
        """Read the records of an interrupted writer and cut off the one that it did not finish."""
        self._end, size = self._HEAD, os.fstat(self._file).st_size
        with open(self._file, "rb", buffering=1 << 20, closefd=False) as file:
            file.seek(self._end)
            while self._end + self._RECORD.size <= size:
                tile_id, length, crc = self._RECORD.unpack(file.read(self._RECORD.size))
                start = self._end + self._RECORD.size
                if start + length > size or zlib.crc32(file.read(length)) != crc:
                    break
                self._note(tile_id, start)
                self._end = start + length
        os.ftruncate(self._file, self._end)

    def _note(self, tile_id: int, start: int) -> None:
        self._tiles.append(tile_id)
        self._starts.append(start)

    def _put(self, data: bytes) -> None:
        """Write at the end, all or nothing: a full disk leaves no part that would hide what follows."""
        view, at = memoryview(data), self._end
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end = at

    def append(self, tile_id: int, data: bytes) -> None:
        """Write a tile; the last one of an id counts. Safe to call from several threads."""
        record = self._RECORD.pack(tile_id, len(data), zlib.crc32(data)) + data
        with self._lock:
            start = self._end + self._RECORD.size
            try:
                self._put(record)
            except OSError as error:
                raise StorageError(f"cannot write {self.target}: {error.strerror}") from error
            self._note(tile_id, start)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the journal, fewer where it ends before."""
        return read_at(self._file, offset, length)

    def close(self) -> None:
        """Let go; the file stays for a writer that resumes."""
        if self._open:
            self._open = False
            os.close(self._file)

    def remove(self) -> None:
        """Remove the file, while the lock is held, and let go."""
        if self._open:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self.close()


def read_at(file: int, offset: int, length: int) -> bytes:
    """Return bytes of an open file, fewer where it ends before."""
    data = os.pread(file, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    while (missing := length - sum(map(len, parts))) and (
        part := os.pread(file, missing, offset + length - missing)
    ):
        parts.append(part)
    return b"".join(parts)
