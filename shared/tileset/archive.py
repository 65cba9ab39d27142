"""Tile sets as PMTiles archives (version 3): one file, read in place, written through a journal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property, partial
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pmtiles.tile import Compression, HeaderDict, serialize_header

from rsp.shared.atomic import PREFIX, atomic_path
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError, TileSetError
from rsp.shared.locations import Location
from rsp.shared.tiles import Tile, bounds_lonlat, zxy
from rsp.shared.tileset.base import TileReader, TileWriter
from rsp.shared.tileset.entries import (
    HEADER_SIZE,
    MAGIC,
    TILE_TYPES,
    DamagedError,
    image_format,
    pack,
    pack_directories,
    read_header,
)
from rsp.shared.tileset.hilbert import Box, boxes_of, cover_of, id_of, ids_of_cover, in_grid, tile_of
from rsp.shared.tileset.journal import Journal, read_at
from rsp.shared.tileset.layout import Layout
from rsp.shared.tileset.metadata import complete
from rsp.shared.tileset.parts import Parts
from rsp.shared.tileset.tree import Span, Tree
from rsp.shared.tileset.treereader import TreeReader, metadata_of

# Archives that tiles are taken from at once; their numbers are bytes.
MAX_FILES = 250


class ArchiveReader(TreeReader):
    """One PMTiles file, read in place: its directories once into an index, its tiles from the memory map.

    Args:
        path: The file.
        empty: It may have no tile.
    """

    path: Path

    def __init__(self, path: Path, *, empty: bool = False) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise TileSetError(f"cannot read the archive {path}: {error}") from error
        try:
            self._load(empty=empty)
        except BaseException:
            self._file.close()
            raise

    def _load(self, *, empty: bool) -> None:
        """Read the header and the root directory."""
        path = self.path
        with self._checked():
            size, head = os.fstat(self._file.fileno()).st_size, self._bytes(0, HEADER_SIZE)
            if not head.startswith(MAGIC):
                raise TileSetError(f"{path} is neither a directory of tiles nor a PMTiles (version 3) file")
            self._header = read_header(head, size)
            root = self._bytes(self._header["root_offset"], self._header["root_length"])
            # Without a method of this object: in a cycle, closed readers would stay until they are collected.
            self._tree = Tree(self._header, size, root, partial(_spans, self._file))
        if not self._tree and not empty:
            raise TileSetError(f"no tile in the archive {path}")
        self.format = image_format(self._header, lambda: self.metadata, path)
        self.formats = frozenset({self.format})

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (DamagedError, MemoryError) as error:
            raise TileSetError(f"the archive {self.path} is damaged: {error}") from error
        except OSError as error:
            raise TileSetError(f"cannot read the archive {self.path}: {error.strerror}") from error

    def _bytes(self, offset: int, length: int) -> bytes:
        return read_at(self._file.fileno(), offset, length)

    def __contains__(self, tile: object) -> bool:
        found = tile_of(tile)
        return found is not None and self._find(found) is not None

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        with self._checked():
            return self._tree.count()

    def _find(self, tile: Tile) -> Span | None:
        try:
            return self._tree.at(id_of(tile)) if in_grid(tile) else None
        except (DamagedError, MemoryError, OSError):
            with self._checked():
                raise

    def read(self, tile: Tile) -> bytes:
        found = self._find(tile)
        if found is None:
            raise TileError(f"no tile {zxy(tile)} in {self.path}")
        try:
            data = self._bytes(*found)
        except OSError as error:
            raise TileError(f"cannot read the tile {zxy(tile)} of {self.path}: {error.strerror}") from error
        if len(data) != found[1]:
            raise TileError(f"cannot read the tile {zxy(tile)} of {self.path}: the file has become shorter")
        return data

    def again(self) -> ArchiveReader:
        """Return a reader of the same file that stays good when this one is closed; what they keep is shared."""
        other = copy(self)
        other._file = FileIO(os.dup(self._file.fileno()))
        other._tree = self._tree.through(partial(_spans, other._file))
        return other

    @property
    def file(self) -> int:
        """The descriptor of the file, while it is open."""
        return self._file.fileno()

    def places(
        self, ids: NDArray[np.uint64], records: object = None
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return where tiles, given by their ids, begin in the file, and their lengths; 0 where there are none."""
        with self._checked():
            return self._tree.find(ids)

    def close(self) -> None:
        self._file.close()


def _spans(file: FileIO, spans: list[Span]) -> dict[Span, bytes]:
    return {span: read_at(file.fileno(), *span) for span in spans}


def read_archive_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of an archive, without reading its directories; else as `ArchiveReader.metadata`."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_SIZE)
            if not head.startswith(MAGIC):
                raise TileSetError(f"{path} is neither a directory of tiles nor a PMTiles (version 3) file")
            header = read_header(head, os.fstat(file.fileno()).st_size)
            return metadata_of(header, partial(read_at, file.fileno()), path)
    except DamagedError as error:
        raise TileSetError(f"the archive {path} is damaged: {error}") from error
    except OSError as error:
        raise TileSetError(f"cannot read the archive {path}: {error}") from error


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
    # Whether it is put together on this machine, so that what lies here need not be copied before.
    _local = True

    def __init__(self, path: Path, tiles_format: str, *, resume: bool, empty: bool = False) -> None:
        self._empty = empty
        if path.is_dir():
            raise TileSetError(f"cannot write the archive {path}: it is a directory")
        self._begin(path, path.parent / f"{PREFIX}{path.name}.journal", tiles_format, resume=resume)

    def _begin(self, path: Location, journal: Path, tiles_format: str, *, resume: bool) -> None:
        """Open the journal of an archive, and take over what is there."""
        self.path, self.format, self.metadata = path, tiles_format, {}
        self._taken: list[Parts] = []
        self._readers: list[ArchiveReader] = []  # of the archives that tiles are taken from
        self._journal = Journal(journal, path, tiles_format, resume=resume)
        try:
            if resume:
                self._adopt()
        except BaseException:
            self.abandon()
            raise
        self.done = cover_of(np.concatenate([part.ids for part in self._taken] + [self._journal.tiles()]))

    def _adopt(self) -> None:
        """Take over the tiles of the archive that is there: they stay where they are until it is replaced."""
        assert isinstance(self.path, Path)
        if not self.path.exists():
            return
        with ArchiveReader(self.path, empty=True) as reader:
            self._check_format(reader)
            self.metadata = reader.metadata
            self._refer(reader, reader.cover())

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

    def take(self, reader: TileReader, cover: Cover) -> bool:
        if not (self._local and isinstance(reader, ArchiveReader) and len(self._readers) < MAX_FILES):
            return False
        # What was written before gives way, what is written from now on does not.
        self._settle()
        self._refer(reader, cover)
        return True

    def _refer(self, reader: ArchiveReader, cover: Cover) -> None:
        self._readers.append(reader.again())
        self._taken.append(Parts.of(ids_of_cover(cover), len(self._readers), self._readers[-1]))

    def _settle(self) -> None:
        """Note the tiles that the journal has got since this was last called."""
        start, tiles = self._journal.settle()
        if len(tiles):
            self._taken.append(Parts.of(tiles, 0, self._journal, start))

    def _commit(self) -> None:
        self._settle()
        if not any(len(part.ids) for part in self._taken) and not self._empty:
            raise TileSetError(f"no tile was written, so {self.path} was not made")
        layout = Layout(self._taken, [self._journal, *self._readers])
        boxes = boxes_of(layout.ids)
        metadata = complete(self.metadata, self.format, tuple(boxes), layout.first() if boxes else b"")
        self._publish(archive_head(layout, boxes, self.format, metadata), layout.stored(), layout.size)
        self._journal.remove()
        self._release()

    def _publish(self, head: list[bytes], stored: Iterable[bytes], size: int) -> None:
        """Make the archive visible.

        Args:
            head: All that stands before the tiles, in pieces.
            stored: The tiles, in blocks.
            size: Of these together, in bytes.
        """
        assert isinstance(self.path, Path)
        with atomic_path(self.path) as temporary, temporary.open("wb", buffering=0) as archive:
            for block in chain(head, stored):
                view = memoryview(block)
                while view:
                    view = view[archive.write(view) :]

    def abandon(self) -> None:
        if len(self._journal):
            self._journal.close()
        else:
            self._journal.remove()
        self._release()

    def _release(self) -> None:
        """Let go of the archives that tiles were taken from."""
        while self._readers:
            self._readers.pop().close()


def archive_head(
    layout: Layout, boxes: dict[int, Box], tiles_format: str, metadata: dict[str, Any]
) -> list[bytes]:
    """Return what stands before the tiles, in pieces: as the package `pmtiles` writes it, to the byte."""
    root, leaves = pack_directories(layout)
    packed = pack(json.dumps(metadata).encode())
    after_root = HEADER_SIZE + len(root)
    after_metadata, below = after_root + len(packed), sum(map(len, leaves))
    header: Any = dict.fromkeys(HeaderDict.__annotations__, 0) | {
        "version": 3, "clustered": True, "tile_type": TILE_TYPES[tiles_format],
        "tile_compression": Compression.NONE, "internal_compression": Compression.GZIP,
        "root_offset": HEADER_SIZE, "root_length": len(root),
        "metadata_offset": after_root, "metadata_length": len(packed),
        "leaf_directory_offset": after_metadata, "leaf_directory_length": below,
        "tile_data_offset": after_metadata + below, "tile_data_length": layout.size,
        "addressed_tiles_count": len(layout.ids), "tile_entries_count": len(layout),
        "tile_contents_count": layout.contents,
    }  # fmt: skip
    if boxes:
        header |= _extent(boxes)
    return [serialize_header(header), root, packed, *leaves]


def _extent(found: dict[int, Box]) -> dict[str, int]:
    """Return what the header says of where tiles are."""
    boxes = []
    for zoom, (left, top, right, bottom) in found.items():
        west, _, _, north = bounds_lonlat(Tile(left, top, zoom))
        _, south, east, _ = bounds_lonlat(Tile(right, bottom, zoom))
        boxes.append((west, south, east, north))
    wests, souths, easts, norths = zip(*boxes, strict=True)
    box = {
        "min_lon_e7": round(min(wests) * 1e7),
        "min_lat_e7": round(min(souths) * 1e7),
        "max_lon_e7": round(max(easts) * 1e7),
        "max_lat_e7": round(max(norths) * 1e7),
    }
    return box | {
        "min_zoom": min(found), "max_zoom": max(found), "center_zoom": min(found),
        "center_lon_e7": round((box["min_lon_e7"] + box["max_lon_e7"]) / 2),
        "center_lat_e7": round((box["min_lat_e7"] + box["max_lat_e7"]) / 2),
    }  # fmt: skip
