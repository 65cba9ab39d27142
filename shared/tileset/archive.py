"""Tile sets as PMTiles archives (version 3): one file, read in place, written through a journal."""

from __future__ import annotations

import gzip
import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pmtiles.tile import Compression, Entry, HeaderDict, deserialize_header, serialize_directory, serialize_header
from pmtiles.writer import finalize_header

from rsp.shared.atomic import PREFIX, atomic_path
from rsp.shared.errors import StorageError, TileError, TileSetError
from rsp.shared.locations import Location
from rsp.shared.locks import hold
from rsp.shared.tiles import Tile, bounds_lonlat, zxy
from rsp.shared.tileset.base import TileReader, TileWriter
from rsp.shared.tileset.entries import (
    HEADER_SIZE,
    MAGIC,
    TILE_TYPES,
    DamagedError,
    Directory,
    Runs,
    check_leaf,
    image_format,
    read_directory,
    read_header,
    walk,
)
from rsp.shared.tileset.hilbert import columns_of, id_of, in_grid, tile_of, tiles_of
from rsp.shared.tileset.metadata import MAX_BYTES, complete, parse_metadata


class ArchiveReader(TileReader):
    """One PMTiles file, read in place: its directories once into an index, its tiles from the memory map.

    Args:
        path: The file.
        empty: It may have no tile.
    """

    path: Path

    def __init__(self, path: Path, *, empty: bool = False) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise TileSetError(f"{path} is neither a directory of tiles nor a PMTiles (version 3) file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise TileSetError(f"cannot read the archive {path}: {error}") from error
        try:
            self._load(empty=empty)
        except BaseException:
            self._map.close()
            raise

    def _load(self, *, empty: bool) -> None:
        """Read the header and the directories."""
        path, size = self.path, len(self._map)
        try:
            self._header = read_header(self._map[:HEADER_SIZE], size)
            root = self._directory(self._header["root_offset"], self._header["root_length"])
            self._runs = Runs(walk(root, self._below))
        except (DamagedError, MemoryError) as error:
            raise TileSetError(f"the archive {path} is damaged: {error}") from error
        if not len(self._runs) and not empty:
            raise TileSetError(f"no tile in the archive {path}")
        self.format = image_format(self._header, lambda: self.metadata, path)
        self.formats = frozenset({self.format})

    def _directory(self, offset: int, length: int) -> Directory:
        header, size = self._header, len(self._map)
        room = size - header["tile_data_offset"], size - header["leaf_directory_offset"]
        return read_directory(self._map[offset : offset + length], header["internal_compression"], *room)

    def _below(self, directory: Directory, entries: NDArray[np.int64]) -> list[Directory]:
        """Return the leaf directories of entries."""
        base = self._header["leaf_directory_offset"]
        return [
            check_leaf(
                directory,
                entry,
                self._directory(base + int(directory.offsets[entry]), int(directory.lengths[entry])),
            )
            for entry in entries.tolist()
        ]

    @property
    def metadata(self) -> dict[str, Any]:
        start, length = self._header["metadata_offset"], self._header["metadata_length"]
        return _unpack(self._map[start : start + length], self.path)

    def tiles(self) -> list[Tile]:
        return self._tiles

    @cached_property
    def _tiles(self) -> list[Tile]:
        return tiles_of(self._runs.ids())

    def __contains__(self, tile: object) -> bool:
        found = tile_of(tile)
        return found is not None and self._runs.find(id_of(found)) is not None

    def __len__(self) -> int:
        return len(self._runs)

    def read(self, tile: Tile) -> bytes:
        found = self._runs.find(id_of(tile)) if in_grid(tile) else None
        if found is None:
            raise TileError(f"no tile {zxy(tile)} in {self.path}")
        start = self._header["tile_data_offset"] + found[0]
        return self._map[start : start + found[1]]

    def close(self) -> None:
        self._map.close()


def read_archive_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of an archive, without reading its directories; else as `ArchiveReader.metadata`."""
    try:
        with path.open("rb") as file:
            head = file.read(127)
            if not head.startswith(MAGIC):
                raise TileSetError(f"{path} is neither a directory of tiles nor a PMTiles (version 3) file")
            header = deserialize_header(head)
            file.seek(header["metadata_offset"])
            return _unpack(file.read(min(header["metadata_length"], MAX_BYTES)), path)
    except (OSError, LookupError, OverflowError, ValueError, struct.error) as error:
        raise TileSetError(f"cannot read the archive {path}: {error}") from error


def _unpack(data: bytes, path: Path) -> dict[str, Any]:
    """Return compressed metadata. No more than the limit is unpacked: a few bytes can hold gigabytes."""
    where = f"the metadata of {path}"
    try:
        return parse_metadata(zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES + 1), where)
    except zlib.error as error:
        raise TileSetError(f"{where} cannot be read: {error}") from error


class ArchiveWriter(TileWriter):
    """Writes a PMTiles file: tiles go to a journal beside it, which becomes the archive when committed.

    The journal survives a kill; a writer that resumes goes on after its last whole record. Equal tiles are
    stored once. Memory grows with the number of tiles, not with their size.

    Args:
        path: The file to write.
        tiles_format: The format of every tile.
        resume: Go on with the tiles of an archive or a journal that is there.
        empty: Make an archive even of no tile.
    """

    _empty: bool

    def __init__(self, path: Path, tiles_format: str, *, resume: bool, empty: bool = False) -> None:
        self._empty = empty
        if path.is_dir():
            raise TileSetError(f"cannot write the archive {path}: it is a directory")
        self._begin(path, path.parent / f"{PREFIX}{path.name}.journal", tiles_format, resume=resume)

    def _begin(self, path: Location, journal: Path, tiles_format: str, *, resume: bool) -> None:
        """Open the journal of an archive, and take over what is there."""
        self.path, self.format, self.metadata = path, tiles_format, {}
        self._journal = Journal(journal, path, tiles_format, resume=resume)
        try:
            if resume:
                self._adopt()
        except BaseException:
            self.abandon()
            raise
        self.done = frozenset(tiles_of(self._ids()))

    def _adopt(self) -> None:
        """Take over the tiles of the archive that is there."""
        assert isinstance(self.path, Path)
        if not self.path.exists():
            return
        with ArchiveReader(self.path, empty=True) as reader:
            self._check_format(reader)
            self.metadata = reader.metadata
            for tile in reader.tiles():
                if id_of(tile) not in self._journal.records:
                    self.write(tile, reader.read(tile))

    def _check_format(self, reader: TileReader) -> None:
        """Raise `TileSetError` where the archive that is there has tiles of another format."""
        if len(reader) and reader.format != self.format:
            raise TileSetError(
                f"{self.path} holds {reader.format} tiles and {self.format} was asked for; "
                "choose another output or the same --format"
            )

    def write(self, tile: Tile, data: bytes) -> None:
        self._journal.append(id_of(tile), data)

    def commit(self) -> None:
        try:
            self._commit()
        except BaseException:
            self.abandon()
            raise

    def _commit(self) -> None:
        records = self._journal.records
        if not records and not self._empty:
            raise TileSetError(f"no tile was written, so {self.path} was not made")
        entries: list[Entry] = []
        sources: list[tuple[int, int]] = []  # where in the journal each stored tile lies
        stored: dict[bytes, int] = {}  # digest -> offset in the archive
        size = 0
        for tile_id in sorted(records):
            offset, length, digest = records[tile_id]
            if digest not in stored:
                stored[digest] = size
                sources.append((offset, length))
                size += length
            last = entries[-1] if entries else None
            if last and last.offset == stored[digest] and last.tile_id + last.run_length == tile_id:
                last.run_length += 1
            else:
                entries.append(Entry(tile_id, stored[digest], length, 1))
        zooms = np.unique(columns_of(self._ids())[2]).tolist()
        first = self._journal.read(*sources[0]) if sources else b""
        metadata = complete(self.metadata, self.format, zooms, first)
        if records:
            # fmt: off
            head = finalize_header(  # type: ignore[no-untyped-call]
                self._header(), len(records), entries, len(stored), metadata, True, size
            )
            # fmt: on
        else:
            head = empty_head(self.format, metadata)
        self._publish(head, sources, size)
        self._journal.remove()

    def _publish(self, head: Iterable[bytes], sources: Iterable[tuple[int, int]], size: int) -> None:
        """Make the archive visible.

        Args:
            head: All that stands before the tiles.
            sources: Offset and length in the journal of each stored tile, in order.
            size: Of these together, in bytes.
        """
        assert isinstance(self.path, Path)
        with atomic_path(self.path) as temporary, temporary.open("wb") as archive:
            archive.writelines(head)
            archive.writelines(self._journal.read(*source) for source in sources)

    def _ids(self) -> NDArray[np.uint64]:
        return np.fromiter(self._journal.records, np.uint64, len(self._journal.records))

    def _header(self) -> dict[str, Any]:
        """Return the header of the archive as far as it does not follow from its directories."""
        # Corners of the tiles of each zoom, in tiles.
        x, y, zooms = columns_of(self._ids())
        corners: dict[int, tuple[int, int, int, int]] = {}
        for zoom in np.unique(zooms).tolist():
            column, row = x[zooms == zoom], y[zooms == zoom]
            corners[zoom] = (int(column.min()), int(row.min()), int(column.max()), int(row.max()))
        boxes = [
            (*bounds_lonlat(Tile(x0, y0, z))[0::3], *bounds_lonlat(Tile(x1, y1, z))[1:3])
            for z, (x0, y0, x1, y1) in corners.items()
        ]
        wests, norths, souths, easts = zip(*boxes, strict=True)
        return {
            "tile_type": TILE_TYPES[self.format],
            "tile_compression": Compression.NONE,
            "min_lon_e7": round(min(wests) * 1e7),
            "min_lat_e7": round(min(souths) * 1e7),
            "max_lon_e7": round(max(easts) * 1e7),
            "max_lat_e7": round(max(norths) * 1e7),
            "center_zoom": min(corners),
        }

    def abandon(self) -> None:
        if self._journal.records:
            self._journal.close()
        else:
            self._journal.remove()


def empty_head(tiles_format: str, metadata: dict[str, Any]) -> list[bytes]:
    """Return an archive of no tile, which the package `pmtiles` does not make."""
    root = serialize_directory([])
    packed = gzip.compress(json.dumps(metadata).encode(), mtime=0)
    end = HEADER_SIZE + len(root) + len(packed)
    header: Any = dict.fromkeys(HeaderDict.__annotations__, 0) | {
        "version": 3, "clustered": True, "tile_type": TILE_TYPES[tiles_format],
        "tile_compression": Compression.NONE, "internal_compression": Compression.GZIP,
        "root_offset": HEADER_SIZE, "root_length": len(root),
        "metadata_offset": HEADER_SIZE + len(root), "metadata_length": len(packed),
        "leaf_directory_offset": end, "tile_data_offset": end,
    }  # fmt: skip
    return [serialize_header(header), root, packed]


class Journal:
    """Tiles in the order in which they were written, in a file that is whole up to its last whole record.

    Attributes:
        records: By tile id, where its data begins, its length, and the digest of the data.
    """

    _MAGIC = b"rsp-1"
    _HEAD = len(_MAGIC) + 8  # and the format of the tiles
    _RECORD = struct.Struct("<QII")  # tile id, length, CRC of the data

    def __init__(self, path: Path, target: Location, tiles_format: str, *, resume: bool) -> None:
        self.path, self.target = path, target
        self.records: dict[int, tuple[int, int, bytes]] = {}
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

    @property
    def end(self) -> int:
        """Where the last whole record ends, in bytes."""
        return self._end

    def _recover(self) -> None:
        """Read the records of an interrupted writer and cut off the one that it did not finish."""
        self._end, size = self._HEAD, os.fstat(self._file).st_size
        while self._end + self._RECORD.size <= size:
            tile_id, length, crc = self._RECORD.unpack(os.pread(self._file, self._RECORD.size, self._end))
            start = self._end + self._RECORD.size
            if start + length > size:
                break
            data = self.read(start, length)
            if zlib.crc32(data) != crc:
                break
            self._note(tile_id, start, data)
            self._end = start + length
        os.ftruncate(self._file, self._end)

    def _note(self, tile_id: int, offset: int, data: bytes) -> None:
        self.records[tile_id] = (offset, len(data), blake2b(data, digest_size=16).digest())

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
            self._note(tile_id, start, data)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the journal, fewer where it ends before."""
        parts = []
        while length and (part := os.pread(self._file, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

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
