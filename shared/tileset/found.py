"""Which format the tiles have that are at a place already, or that an interrupted writer has begun with."""

from __future__ import annotations

from pathlib import Path

from rsp.shared.atomic import PREFIX
from rsp.shared.errors import NotFoundError
from rsp.shared.locations import Address, Location, exists, location
from rsp.shared.tileset.archive import ArchiveReader
from rsp.shared.tileset.base import FORMATS, tile_format
from rsp.shared.tileset.journal import Journal
from rsp.shared.tileset.listing import scan
from rsp.shared.tileset.remote import open_remote, present


def found_format(path: str | Location) -> str | None:
    """Return the format of the tiles of a set that is to be written further; None where there is no tile yet.

    Args:
        path: Where a writer is to be opened.

    Raises:
        TileSetError: what is there is damaged.
        StorageError: the store cannot be reached.
    """
    path = location(path).expanduser()
    archive = path.suffix.lower() == ".pmtiles"
    if isinstance(path, Address):
        return _stored_archive(path) if archive else _stored_folder(path)
    if not archive:
        found = next(scan(path), None) if path.is_dir() else None
        return None if found is None else tile_format(found.first)
    if path.is_file():
        with ArchiveReader(path, empty=True) as reader:
            if len(reader):
                return reader.format
    return _journal(path.parent / f"{PREFIX}{path.name}.journal")


def _journal(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return _head(file.read(64))
    except FileNotFoundError:
        return None


def _head(data: bytes) -> str | None:
    """Return the format that the head of a journal says."""
    return next((name for name in sorted(set(FORMATS.values())) if data.startswith(Journal.head(name))), None)


def _stored_archive(path: Address) -> str | None:
    if exists(path):
        with open_remote(path, empty=True) as reader:
            if len(reader):
                return reader.format
    storage, key = path.open()
    for each in storage.list(f"{key}.journal/"):
        if not each.key.endswith("/owner"):
            try:
                return _head(storage.read(each.key, limit=max(each.size, 1))[0][:64])
            except NotFoundError:
                continue
    return None


def _stored_folder(path: Address) -> str | None:
    extensions = present(path.storage()).extensions
    return tile_format(extensions[0]) if extensions else None
