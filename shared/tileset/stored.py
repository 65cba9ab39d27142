"""Tile sets written to S3: an archive as one object, or one object a tile.

An archive is put together from a journal in a scratch file, as on the disk. So that another machine can go on
where one was stopped, whole records of the journal are stored beside the archive as they grow, in segments:

    <name>.pmtiles.journal/owner       who writes now
    <name>.pmtiles.journal/00000001    the journal's records, in the order in which they were written

The writer that came last owns the journal. One that was taken over notices when it stores the next segment or
commits, and says so: a pod that is thought dead and is not must not spoil what its successor does.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from rsp.shared.atomic import temporary_prefix
from rsp.shared.covers import Cover
from rsp.shared.errors import NotFoundError, StorageError, TileSetError
from rsp.shared.locations import Address, check_output
from rsp.shared.storage import Stat
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset.archive import ArchiveWriter
from rsp.shared.tileset.base import TileWriter, refuse_other_formats
from rsp.shared.tileset.hilbert import cover_of, id_of, in_order
from rsp.shared.tileset.journal import Journal
from rsp.shared.tileset.metadata import SIDECAR, complete, foreign, to_json
from rsp.shared.tileset.ranged import RangedReader
from rsp.shared.tileset.ranges import StoredRanges
from rsp.shared.tileset.remote import present, stored_sidecar

# Records are stored when they are this large together, or this old. What a killed writer had beyond is lost.
SEGMENT, SECONDS = 16 << 20, 30.0
# Tiles of an archive that is there already, which are copied at a time.
COPIED = 256
# Tiles that are on their way to the store at once, where each is an object.
AT_ONCE = 16
OWNER = "owner"


class StoredArchiveWriter(ArchiveWriter):
    """Writes a PMTiles archive to S3. Memory grows with the number of tiles, the scratch file with their size.

    Attributes:
        etag: Of the archive, when it is committed.
    """

    etag: str | None = None
    _local = False

    def __init__(self, address: Address, tiles_format: str, *, resume: bool, empty: bool = False) -> None:
        self.path, self._empty = address, empty
        self._storage, self._key = address.open()
        self._segments = f"{self._key}.journal/"
        self._scratch = TemporaryDirectory(prefix=temporary_prefix("archive"), ignore_cleanup_errors=True)
        self._base: RangedReader | None = None
        self._kept = Cover()
        self._flushing = threading.Lock()
        self._number, self._last = 0, time.monotonic()
        try:
            self._own()
            path = Path(self._scratch.name) / "journal"
            self._collect(path, tiles_format, resume=resume)
            self._begin(address, path, tiles_format, resume=resume)
        except BaseException:
            self._close()
            raise
        self._flushed = self._journal.end
        self.done |= self._kept

    # --- who writes ------------------------------------------------------------------------------------------

    def _own(self) -> None:
        self._name = f"{os.uname().nodename} {os.getpid()} {secrets.token_hex(8)}".encode()
        self._storage.write(self._segments + OWNER, self._name)

    def _owner(self) -> bytes:
        try:
            return self._storage.read(self._segments + OWNER)[0]
        except NotFoundError:
            return b""

    def _check_owner(self) -> None:
        """Raise `TileSetError` where another writer has taken over."""
        if (found := self._owner()) != self._name:
            who = f"on {found.decode(errors='replace').partition(' ')[0]} " if found else ""
            raise TileSetError(
                f"another process {who}has begun to write {self.path} and goes on in place of this one"
            )

    # --- what is there ---------------------------------------------------------------------------------------

    def _collect(self, path: Path, tiles_format: str, *, resume: bool) -> None:
        """Put together the journal of a writer that was interrupted; without `resume` remove what it left."""
        stored = [each for each in self._storage.list(self._segments) if not each.key.endswith(OWNER)]
        if not resume:
            self._storage.delete(*(each.key for each in stored))
            return
        if stored:
            self._number = int(stored[-1].key.rpartition("/")[2])
            with path.open("wb") as journal:
                journal.write(Journal.head(tiles_format))
                for each in stored:
                    data, _ = self._storage.read(each.key, limit=max(each.size, 1))
                    journal.write(Journal.records_of(data, tiles_format, self.path))

    def _adopt(self) -> None:
        """Take over the tiles of the archive that is there: they stay where they are until something is added."""
        try:
            self._base = RangedReader(StoredRanges(self._storage, self._key), empty=True)
        except NotFoundError:
            return
        self._check_format(self._base)
        self.metadata = self._base.metadata
        self._before = dict(self.metadata)
        self._kept = self._base.cover()

    # --- writing ---------------------------------------------------------------------------------------------

    def write(self, tile: Tile, data: bytes) -> None:
        super().write(tile, data)
        if self._journal.end - self._flushed >= SEGMENT or time.monotonic() - self._last >= SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Store the records that are not stored yet, in one segment."""
        with self._flushing:
            start, end = self._flushed, self._journal.end
            if start == end:
                return
            self._check_owner()
            self._number += 1
            segment = Journal.head(self.format) + self._journal.read(start, end - start)
            self._storage.write(f"{self._segments}{self._number:08d}", segment)
            self._flushed, self._last = end, time.monotonic()

    def commit(self) -> None:
        try:
            if self._base is not None and not len(self._journal) and self.metadata == self._before:
                self.etag = self._base.etag  # nothing was added
            else:
                self._copy(self._kept - cover_of(self._journal.tiles()))
                super()._commit()
            if self._owner() == self._name:  # what is there is a successor's otherwise
                self._storage.delete(*(each.key for each in self._storage.list(self._segments)))
        except BaseException:
            self.abandon()
            raise
        self._close()

    def _copy(self, cover: Cover) -> None:
        """Put tiles of the archive that is there into the journal."""
        for chunk in in_order(cover, COPIED):
            assert self._base is not None
            for tile, data in self._base.read_many(chunk).items():
                self._journal.append(id_of(tile), data)

    def _publish(self, head: list[bytes], stored: Iterable[bytes], size: int) -> None:
        stream = _Stream(chain(head, stored))
        # At the end: an upload of minutes must not replace what a successor has committed meanwhile.
        size += sum(map(len, head))
        self.etag = self._storage.upload_from(self._key, stream, size, check=self._check_owner).etag

    def abandon(self) -> None:
        """Store what was written, so that a writer that resumes has it, and let go."""
        with suppress(StorageError, TileSetError, OSError):
            if len(self._journal):
                self._flush()
            else:
                self._forget()
        self._close()

    def _forget(self) -> None:
        """Leave no trace of a writer that wrote nothing."""
        self._check_owner()
        self._storage.delete(self._segments + OWNER)

    def _close(self) -> None:
        if self._base is not None:
            self._base.close()
        if hasattr(self, "_journal"):
            self._journal.close()
        self._scratch.cleanup()


class _Stream:
    """What an iterator yields, as a `Readable`."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, fewer only at the end."""
        found, there = [self._rest], len(self._rest)
        while size < 0 or there < size:
            part = next(self._parts, None)
            if part is None:
                break
            found.append(part)
            there += len(part)
        data = b"".join(found)
        cut = len(data) if size < 0 else size
        self._rest = data[cut:]
        return data[:cut]


class StoredWriter(TileWriter):
    """Writes each tile as an object `{z}/{x}/{y}.{ext}` below a prefix, and `metadata.json` when all are there."""

    def __init__(self, address: Address, tiles_format: str, *, resume: bool) -> None:
        self.path = address
        self.format = tiles_format
        self._storage = address.storage()
        there = present(self._storage)
        refuse_other_formats(address, there.extensions, tiles_format)
        # A tile may be there as .jpeg, ...
        self._odd = there if set(there.extensions) - {tiles_format} else None
        self._zooms, self._first = set(there.cover.zooms), there.first
        before = stored_sidecar(self._storage)
        self.metadata = before if resume else foreign(before)
        self.done = there.cover if resume else Cover()
        self._pool = ThreadPoolExecutor(AT_ONCE, "store")
        self._under_way: deque[Future[Stat]] = deque()
        self._lock = threading.Lock()

    def write(self, tile: Tile, data: bytes) -> None:
        with self._lock:
            self._zooms.add(tile.z)
            self._first = tile if self._first is None else min(tile, self._first)
            if len(self._under_way) >= 2 * AT_ONCE:
                self._under_way.popleft().result()
            self._under_way.append(self._pool.submit(self._storage.write, self._key(tile), data))

    def _key(self, tile: Tile) -> str:
        return f"{zxy(tile)}.{(self._odd and self._odd.extension(tile)) or self.format}"

    def commit(self) -> None:
        try:
            while self._under_way:
                self._under_way.popleft().result()
            if self._first is not None:
                first, _ = self._storage.read(self._key(self._first))
                metadata = complete(self.metadata, self.format, self._zooms, first)
                self._storage.write(SIDECAR, to_json(metadata).encode())
        finally:
            self._pool.shutdown(cancel_futures=True)

    def abandon(self) -> None:
        """Whole tiles stay."""
        self._pool.shutdown(cancel_futures=True)


def open_stored(address: Address, tiles_format: str, *, resume: bool, empty: bool = False) -> TileWriter:
    """Open a tile set in S3 for writing; see `rsp.shared.tileset.open_writer`.

    Raises:
        UsageError: the address has an ETag.
    """
    check_output(address)
    if address.suffix.lower() == ".pmtiles":
        return StoredArchiveWriter(address, tiles_format, resume=resume, empty=empty)
    return StoredWriter(address, tiles_format, resume=resume)
