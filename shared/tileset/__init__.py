"""Tile sets: a directory `{z}/{x}/{y}.{ext}` or one PMTiles archive, here or remote, behind one seam.

What is known of a whole set (classes, value type, size of its tiles, ...) stands in the metadata of the archive,
or in `metadata.json` of the directory; see `rsp.shared.tileset.metadata`.

Readers tell the form by content, writers by the suffix `.pmtiles`. Writers are atomic: a reader sees a whole
tile or none, a whole archive or none. What an interrupted writer had done is there for the next one that
resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from rsp.shared.errors import TileError, TileSetError
from rsp.shared.locations import Address, Location, Place, exists, location, remove
from rsp.shared.tileset.archive import ArchiveReader, ArchiveWriter, read_archive_metadata
from rsp.shared.tileset.base import FORMATS, TileReader, TileWriter, tile_format
from rsp.shared.tileset.digest import tiles_digest
from rsp.shared.tileset.directory import DirectoryReader, DirectoryWriter, read_sidecar
from rsp.shared.tileset.metadata import SIDECAR, TileSetInfo, classes_metadata, parse_info
from rsp.shared.tileset.remote import is_remote, open_remote, present

__all__ = [
    "FORMATS",
    "SIDECAR",
    "ArchiveReader",
    "ArchiveWriter",
    "DirectoryReader",
    "DirectoryWriter",
    "TileReader",
    "TileSetInfo",
    "TileWriter",
    "classes_metadata",
    "find_tileset",
    "is_archive",
    "is_remote",
    "open_reader",
    "open_writer",
    "read_info",
    "read_metadata",
    "read_side",
    "remove_tileset",
    "tile_format",
    "tiles_digest",
]


def is_archive(path: str | Location) -> bool:
    """Tell whether a tile set to be written at this path is an archive."""
    return location(path).suffix.lower() == ".pmtiles"


def open_reader(path: str | Location, *, empty: bool = False) -> TileReader:
    """Open a tile set, whichever its form.

    Args:
        path: A directory or an archive on this machine; an archive at `http(s)://...`; an archive or a folder of
            tiles at `s3://bucket/...`. What is remote is read by ranges, as it is asked for.
        empty: An archive may have no tile, as that of a block of which the tile server has nothing.

    Raises:
        TileSetError: nothing there, neither a directory nor an archive, or no tile in it.
        StorageError: a remote one that cannot be reached.
    """
    if is_remote(path):
        return open_remote(path, empty=empty)
    path = Path(path).expanduser()
    if path.is_dir():
        return DirectoryReader(path)
    if not path.exists():
        raise _absent(path)
    return ArchiveReader(path, empty=empty)


def _absent(path: Path) -> TileSetError:
    archive = path.with_name(f"{path.name}.pmtiles")
    beside = f"; is {archive} meant?" if path.name and archive.is_file() else ""
    return TileSetError(f"no tile set at {path}; expected a directory z/x/y.ext or a PMTiles file{beside}")


def read_info(path: str | Location) -> TileSetInfo:
    """Return what a tile set says of itself, without looking for its tiles. See `open_reader`.

    Raises:
        TileSetError: nothing there, neither a directory nor an archive, or metadata that are damaged.
    """
    return parse_info(read_metadata(path), f"the metadata of {path}")


def read_metadata(path: str | Location) -> dict[str, Any]:
    """Return all the metadata of a tile set, without looking for its tiles; else as `read_info`."""
    if is_remote(path):
        with open_remote(path, empty=True) as reader:
            return reader.metadata
    path = Path(path).expanduser()
    if path.is_dir():
        return read_sidecar(path)
    if path.exists():
        return read_archive_metadata(path)
    raise _absent(path)


def read_side(path: str | Location) -> int:
    """Return the side in pixels of the tiles of a set: what it says of itself, else that of the first image in it.

    Raises:
        TileSetError: nothing there, no tile that can be decoded, or tiles that are not square.
    """
    from rsp.shared.images import decode

    with open_reader(path) as reader:
        if reader.info.tile_size is not None:
            return reader.info.tile_size
        for tile in reader.tiles():
            try:
                height, width = decode(reader.read(tile)).shape[:2]
            except TileError:
                continue  # whoever needs that tile is told
            if height != width:
                raise TileSetError(f"{path}: tile {tile} has {width} x {height} pixels; tiles must be square")
            return int(height)
    raise TileSetError(f"{path}: no tile can be decoded, so that nobody knows their size")


def open_writer(
    path: str | Location, tiles_format: str, *, resume: bool = False, empty: bool = False
) -> TileWriter:
    """Open a tile set for writing: an archive where the path ends in `.pmtiles`, else a directory.

    Args:
        path: Where to write: a path, or an address in S3 (`s3://bucket/images.pmtiles`, or a prefix).
        tiles_format: The format of every tile: png, jpg, webp or tif.
        resume: Keep the tiles that are there (`done` lists them). Without it an archive starts over, and a
            directory has its tiles replaced one by one.
        empty: An archive may end without a tile. Readers take it only where they are told to.

    Raises:
        TileSetError: it cannot be written there, or holds tiles of another format.
        StorageError: the disk, or the store, refuses.
    """
    path = location(path).expanduser()
    if isinstance(path, Address):
        from rsp.shared.tileset.stored import open_stored

        return open_stored(path, tile_format(tiles_format), resume=resume, empty=empty)
    if is_archive(path):
        return ArchiveWriter(path, tile_format(tiles_format), resume=resume, empty=empty)
    return DirectoryWriter(path, tile_format(tiles_format), resume=resume)


def find_tileset(parent: Place, name: str) -> Place:
    """Return `parent/name` or `parent/name.pmtiles`, whichever is there; raise `TileSetError` if neither is."""
    for candidate in (parent / name, parent / f"{name}.pmtiles"):
        if exists(candidate):
            return cast("Place", candidate)
    raise TileSetError(f"no tile set {name} (nor {name}.pmtiles) in {parent}")


def remove_tileset(path: Location) -> None:
    """Remove a tile set, whichever its form; nothing happens where there is none."""
    if isinstance(path, Address):
        if is_archive(path):
            return remove(path)
        storage = path.storage()
        storage.delete(*present(storage).names(), SIDECAR)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
