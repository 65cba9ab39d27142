"""Tile sets: a directory `{z}/{x}/{y}.{ext}` or one PMTiles archive, behind one seam.

Readers tell the form by content, writers by the suffix `.pmtiles`. Writers are atomic: a reader sees a whole
tile or none, a whole archive or none. What an interrupted writer had done is there for the next one that
resumes.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import mmap
import os
import shutil
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pmtiles.tile import (
    Compression,
    Entry,
    TileType,
    deserialize_directory,
    deserialize_header,
    tileid_to_zxy,
    zxy_to_tileid,
)
from pmtiles.writer import finalize_header

from shared.atomic import atomic_path, write_bytes
from shared.errors import StorageError, TileError, TileSetError, UsageError
from shared.tiles import Tile, bounds_lonlat, zoom_of

# The file extensions of tiles, and the one that stands for each format.
FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp", "tif": "tif", "tiff": "tif"}
TILE_TYPES = {"png": TileType.PNG, "jpg": TileType.JPEG, "webp": TileType.WEBP, "tif": TileType.UNKNOWN}
MAGIC = b"PMTiles\x03"


def tile_format(name: str) -> str:
    """Return the one name of a tile format (`jpeg` is `jpg`, `tiff` is `tif`); raise `UsageError` if unknown."""
    try:
        return FORMATS[name.lower().lstrip(".")]
    except KeyError:
        raise UsageError(f"unknown tile format {name!r}; expected one of {', '.join(FORMATS)}") from None


class TileReader(ABC):
    """A tile set open for reading. Use it as a context manager."""

    path: Path
    format: str

    @abstractmethod
    def tiles(self) -> list[Tile]:
        """Return all tiles, sorted."""

    @abstractmethod
    def __contains__(self, tile: object) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, tile: Tile) -> bytes:
        """Return the encoded image of a tile; raise `TileError` where there is none or it cannot be read."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What the writer noted about the whole set (always empty for a directory)."""
        return {}

    def zoom(self) -> int:
        """Return the one zoom of the set; raise `CoverError` where there are more."""
        return zoom_of(self.tiles(), self.path)

    def close(self) -> None:
        """Release what the reader holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TileWriter(ABC):
    """A tile set open for writing. Use it as a context manager: leaving it well commits.

    Attributes:
        done: Tiles that were there already when a writer was opened to resume.
        metadata: Notes about the whole set; an archive keeps them, a directory has no place for them.
    """

    path: Path
    format: str
    done: frozenset[Tile]
    metadata: dict[str, Any]

    @abstractmethod
    def write(self, tile: Tile, data: bytes) -> None:
        """Write a tile, in place of one that is there. Safe to call from several threads."""

    @abstractmethod
    def commit(self) -> None:
        """Make everything visible to readers."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go after a failure; what was written stays for a writer that resumes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abandon()


def is_archive(path: str | Path) -> bool:
    """Tell whether a tile set to be written at this path is an archive."""
    return Path(path).suffix.lower() == ".pmtiles"


def open_reader(path: str | Path) -> TileReader:
    """Open a tile set, whichever its form.

    Raises:
        TileSetError: nothing there, neither a directory nor an archive, or no tile in it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return DirectoryReader(path)
    if not path.exists():
        raise TileSetError(f"no tile set at {path}; expected a directory z/x/y.ext or a PMTiles file")
    return ArchiveReader(path)


def open_writer(path: str | Path, tiles_format: str, *, resume: bool = False) -> TileWriter:
    """Open a tile set for writing: an archive where the path ends in `.pmtiles`, else a directory.

    Args:
        path: Where to write.
        tiles_format: The format of every tile: png, jpg, webp or tif.
        resume: Keep the tiles that are there (`done` lists them). Without it an archive starts anew, and a
            directory has its tiles replaced one by one.
    """
    path = Path(path).expanduser()
    if is_archive(path):
        return ArchiveWriter(path, tile_format(tiles_format), resume=resume)
    return DirectoryWriter(path, tile_format(tiles_format), resume=resume)


def find_tileset(parent: Path, name: str) -> Path:
    """Return `parent/name` or `parent/name.pmtiles`, whichever is there; raise `TileSetError` if neither is."""
    for candidate in (parent / name, parent / f"{name}.pmtiles"):
        if candidate.exists():
            return candidate
    raise TileSetError(f"no tile set {name} (nor {name}.pmtiles) in {parent}")


# --- directories --------------------------------------------------------------------------------------------


def scan(root: Path) -> Iterator[tuple[Tile, str]]:
    """Yield each tile below a directory with its extension; whatever is not named like a tile is passed over."""
    for zoom in _numbered(root):
        for column in _numbered(Path(zoom.path)):
            with os.scandir(column.path) as files:
                for file in files:
                    stem, _, extension = file.name.partition(".")
                    if stem.isdecimal() and extension.lower() in FORMATS:
                        yield Tile(int(column.name), int(stem), int(zoom.name)), extension


def _numbered(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the sub-directories whose name is a number."""
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if entry.name.isdecimal() and entry.is_dir())


class DirectoryReader(TileReader):
    """Tiles as files `{z}/{x}/{y}.{ext}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._extensions: dict[Tile, str] = {}
        for tile, extension in scan(path):
            if tile in self._extensions:
                raise TileSetError(
                    f"{path} holds tile {tile.z}/{tile.x}/{tile.y} twice, as "
                    f".{self._extensions[tile]} and .{extension}; remove one of them"
                )
            self._extensions[tile] = extension
        if not self._extensions:
            raise TileSetError(f"no tile in {path}; expected files z/x/y with one of {', '.join(FORMATS)}")
        self._tiles = sorted(self._extensions)
        self.format = tile_format(self._extensions[self._tiles[0]])

    def tiles(self) -> list[Tile]:
        return self._tiles

    def __contains__(self, tile: object) -> bool:
        return tile in self._extensions

    def __len__(self) -> int:
        return len(self._extensions)

    def locate(self, tile: Tile) -> Path:
        """Return the file of a tile; raise `TileError` where there is none."""
        try:
            extension = self._extensions[tile]
        except KeyError:
            raise TileError(f"no tile {tile.z}/{tile.x}/{tile.y} in {self.path}") from None
        return self.path / str(tile.z) / str(tile.x) / f"{tile.y}.{extension}"

    def read(self, tile: Tile) -> bytes:
        path = self.locate(tile)
        try:
            return path.read_bytes()
        except OSError as error:
            raise TileError(f"cannot read the tile {path}: {error.strerror}") from error


class DirectoryWriter(TileWriter):
    """Writes each tile as a file of its own, atomically."""

    def __init__(self, path: Path, tiles_format: str, *, resume: bool) -> None:
        if path.exists() and not path.is_dir():
            raise TileSetError(f"cannot write tiles to {path}: it is a file (name it *.pmtiles for an archive)")
        self.path, self.format, self.metadata = path, tiles_format, {}
        self.done = frozenset()
        if path.exists():
            present = list(scan(path))
            # One tile under two extensions would make the set unreadable: say it before any work is done.
            other = {extension for _, extension in present if tile_format(extension) != tiles_format}
            if other:
                raise TileSetError(
                    f"{path} already holds .{', .'.join(sorted(other))} tiles and {tiles_format} was asked for; "
                    "choose another output or the same --format"
                )
            if resume:
                self.done = frozenset(tile for tile, _ in present)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {path}: {error.strerror}") from error

    def write(self, tile: Tile, data: bytes) -> None:
        column = self.path / str(tile.z) / str(tile.x)
        write_bytes(column / f"{tile.y}.{self.format}", data)

    def commit(self) -> None:
        """Nothing to do: every tile is visible since it was written."""

    def abandon(self) -> None:
        """Nothing to do: whole tiles stay."""


# --- archives -----------------------------------------------------------------------------------------------


class ArchiveReader(TileReader):
    """One PMTiles file, read in place: its directories once into an index, its tiles from the memory map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise TileSetError(f"{path} is neither a directory of tiles nor a PMTiles (version 3) file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._header = deserialize_header(self._map[:127])
            self._index: dict[Tile, tuple[int, int]] = {}
            self._walk(self._header["root_offset"], self._header["root_length"], depth=0)
        except OSError as error:
            raise TileSetError(f"cannot read the archive {path}: {error}") from error
        except (EOFError, IndexError, KeyError, OverflowError, ValueError, zlib.error) as error:
            raise TileSetError(f"the archive {path} is damaged: {error}") from error
        if not self._index:
            raise TileSetError(f"no tile in the archive {path}")
        if self._header["tile_compression"] not in (Compression.NONE, Compression.UNKNOWN):
            raise TileSetError(f"the tiles of {path} are compressed once more, as vector tiles are: not images")
        self._tiles = sorted(self._index)
        known: dict[TileType, str] = {kind: name for name, kind in TILE_TYPES.items() if name != "tif"}
        kind = self._header["tile_type"]
        self.format = known.get(kind) or tile_format(str(self.metadata.get("format", "tif")))

    def _walk(self, offset: int, length: int, depth: int) -> None:
        """Add a directory, and those below it, to the index."""
        if depth > 3:
            raise ValueError("directories are nested too deep")
        data, leaves = self._header["tile_data_offset"], self._header["leaf_directory_offset"]
        for entry in deserialize_directory(self._map[offset : offset + length]):
            if entry.run_length == 0:
                self._walk(leaves + entry.offset, entry.length, depth + 1)
                continue
            if data + entry.offset + entry.length > len(self._map):
                raise ValueError("it ends before its last tile")
            for tile_id in range(entry.tile_id, entry.tile_id + entry.run_length):
                z, x, y = tileid_to_zxy(tile_id)
                self._index[Tile(x, y, z)] = (data + entry.offset, entry.length)

    @property
    def metadata(self) -> dict[str, Any]:
        start = self._header["metadata_offset"]
        try:
            return dict(json.loads(gzip.decompress(self._map[start : start + self._header["metadata_length"]])))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise TileSetError(f"the metadata of {self.path} cannot be read: {error}") from error

    def tiles(self) -> list[Tile]:
        return self._tiles

    def __contains__(self, tile: object) -> bool:
        return tile in self._index

    def __len__(self) -> int:
        return len(self._index)

    def read(self, tile: Tile) -> bytes:
        try:
            offset, length = self._index[tile]
        except KeyError:
            raise TileError(f"no tile {tile.z}/{tile.x}/{tile.y} in {self.path}") from None
        return self._map[offset : offset + length]

    def close(self) -> None:
        self._map.close()


class ArchiveWriter(TileWriter):
    """Writes a PMTiles file: tiles go to a journal beside it, which becomes the archive when committed.

    The journal survives a kill; a writer that resumes goes on after its last whole record. Equal tiles are
    stored once. Memory grows with the number of tiles, not with their size.
    """

    _RECORD = struct.Struct("<QII")  # tile id, length, CRC of the data

    def __init__(self, path: Path, tiles_format: str, *, resume: bool) -> None:
        if path.is_dir():
            raise TileSetError(f"cannot write the archive {path}: it is a directory")
        self.path, self.format, self.metadata = path, tiles_format, {}
        self._journal = path.parent / f".rsp-{path.name}.{tiles_format}.journal"
        self._records: dict[int, tuple[int, int, bytes]] = {}  # tile id -> offset, length, digest
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._journal.unlink(missing_ok=True)
            self._file = self._journal.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except BlockingIOError:
            raise TileSetError(f"another process is writing {path} now") from None
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        if resume and path.exists():
            self._adopt()
        self.done = frozenset(Tile(x, y, z) for z, x, y in map(tileid_to_zxy, self._records))

    def _recover(self) -> None:
        """Read the records of an interrupted writer and cut off the one that it did not finish."""
        self._file.seek(0)
        end = 0
        while len(head := self._file.read(self._RECORD.size)) == self._RECORD.size:
            tile_id, length, crc = self._RECORD.unpack(head)
            data = self._file.read(length)
            if len(data) < length or zlib.crc32(data) != crc:
                break
            self._note(tile_id, end + self._RECORD.size, data)
            end += self._RECORD.size + length
        self._file.truncate(end)
        self._end = end

    def _adopt(self) -> None:
        """Take over the tiles of the archive that is there."""
        with ArchiveReader(self.path) as reader:
            if reader.format != self.format:
                raise TileSetError(
                    f"{self.path} holds {reader.format} tiles and {self.format} was asked for; "
                    "choose another output or the same --format"
                )
            for tile in reader.tiles():
                if zxy_to_tileid(tile.z, tile.x, tile.y) not in self._records:
                    self.write(tile, reader.read(tile))

    def _note(self, tile_id: int, offset: int, data: bytes) -> None:
        self._records[tile_id] = (offset, len(data), blake2b(data, digest_size=16).digest())

    def write(self, tile: Tile, data: bytes) -> None:
        tile_id = zxy_to_tileid(tile.z, tile.x, tile.y)
        head = self._RECORD.pack(tile_id, len(data), zlib.crc32(data))
        with self._lock:
            try:
                self._file.write(head + data)
            except OSError as error:
                raise StorageError(f"cannot write {self._journal}: {error.strerror}") from error
            self._note(tile_id, self._end + len(head), data)
            self._end += len(head) + len(data)

    def commit(self) -> None:
        if not self._records:
            self._discard()
            raise TileSetError(f"no tile was written, so {self.path} was not made")
        entries: list[Entry] = []
        sources: list[tuple[int, int]] = []  # where in the journal each stored tile lies
        stored: dict[bytes, int] = {}  # digest -> offset in the archive
        size = 0
        for tile_id in sorted(self._records):
            offset, length, digest = self._records[tile_id]
            if digest not in stored:
                stored[digest] = size
                sources.append((offset, length))
                size += length
            last = entries[-1] if entries else None
            if last and last.offset == stored[digest] and last.tile_id + last.run_length == tile_id:
                last.run_length += 1
            else:
                entries.append(Entry(tile_id, stored[digest], length, 1))
        metadata = {"format": self.format, **self.metadata}
        # fmt: off
        head = finalize_header(  # type: ignore[no-untyped-call]
            self._bounds(), len(self._records), entries, len(stored), metadata, True, size
        )
        # fmt: on
        try:
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self._journal}: {error.strerror}") from error
        with atomic_path(self.path) as temporary, temporary.open("wb") as archive:
            for part in head:
                archive.write(part)
            for offset, length in sources:
                self._file.seek(offset)
                archive.write(self._file.read(length))
        self._discard()

    def _bounds(self) -> dict[str, Any]:
        """Return the header of the archive as far as it does not follow from its directories."""
        boxes = [bounds_lonlat(Tile(x, y, z)) for z, x, y in map(tileid_to_zxy, self._records)]
        west, south = min(box[0] for box in boxes), min(box[1] for box in boxes)
        east, north = max(box[2] for box in boxes), max(box[3] for box in boxes)
        return {
            "tile_type": TILE_TYPES[self.format],
            "tile_compression": Compression.NONE,
            "min_lon_e7": int(west * 1e7),
            "min_lat_e7": int(south * 1e7),
            "max_lon_e7": int(east * 1e7),
            "max_lat_e7": int(north * 1e7),
            "center_zoom": tileid_to_zxy(next(iter(self._records)))[0],
        }

    def abandon(self) -> None:
        self._file.close()

    def _discard(self) -> None:
        self._file.close()
        self._journal.unlink(missing_ok=True)


def copy_tiles(source: TileReader, target: TileWriter, tiles: list[Tile]) -> None:
    """Copy encoded tiles as they are."""
    for tile in tiles:
        target.write(tile, source.read(tile))


def remove_tileset(path: Path) -> None:
    """Remove a tile set, whichever its form; nothing happens where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
