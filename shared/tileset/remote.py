"""Tile sets on HTTP servers and in object stores, opened by their address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from rsp.shared.covers import Cover
from rsp.shared.errors import NotFoundError, TileError, TileSetError
from rsp.shared.locations import Address, Location, etag_of, is_address, location, parse_address
from rsp.shared.tiles import MAX_ZOOM, Tile, zxy
from rsp.shared.tileset.base import FORMATS, TileReader, tile_format
from rsp.shared.tileset.listing import Listing, Rows, number
from rsp.shared.tileset.metadata import MAX_BYTES, SIDECAR, parse_metadata

if TYPE_CHECKING:
    from rsp.shared.storage import Storage

# Objects whose names are read at a time.
LISTED = 1 << 14
_SCHEMES = ("s3://", "http://", "https://")


def is_remote(path: str | Location) -> bool:
    """Tell whether a tile set is named by an address, and not by a path."""
    return str(path).lower().startswith(_SCHEMES)


def open_remote(where: str | Location, *, empty: bool = False) -> TileReader:
    """Open an archive at `http(s)://...` or `s3://...`, or a folder of tiles `z/x/y.ext` below `s3://...`.

    With `empty` an archive may have no tile.

    Raises:
        TileSetError: there is neither.
        ChangedError: an address says which ETag it has, and there is another.
        StorageError: it cannot be reached, or not by ranges.
    """
    from rsp.shared.tileset.ranged import RangedReader
    from rsp.shared.tileset.ranges import HttpRanges, Ranges, StoredRanges

    address = parse_address(str(where)) if is_address(str(where)) else None
    source: Ranges
    try:
        if address is None:
            source = HttpRanges(str(where))
        elif not address.key or str(where).endswith("/"):
            return _folder(address)
        else:
            source = StoredRanges(*address.open(), address.etag)
    except NotFoundError as error:
        if address is not None and address.suffix.lower() != ".pmtiles":
            return _folder(address)
        raise TileSetError(f"no tile set: {error}") from error
    try:
        return RangedReader(source, empty=empty)
    except BaseException:
        source.close()
        raise


def _folder(address: Address) -> TileReader:
    if address.etag is not None:
        etag_of(address)  # raises where it is another
    return StoredReader(address.storage())


class StoredReader(TileReader):
    """Tiles as objects `z/x/y.ext` of a store. They are listed once, when it is opened."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self.address = storage, storage.address
        self.path = location(self.address)
        self._listing = present(storage)
        self._listing.check(self.address)
        first = self._listing.first
        if first is None:
            raise TileSetError(
                f"no tile set at {self.address}; expected objects z/x/y with one of {', '.join(FORMATS)}, or a "
                "PMTiles file"
            )
        self.format = tile_format(str(self._listing.extension(first)))
        self.formats = self._listing.formats

    @property
    def metadata(self) -> dict[str, Any]:
        return stored_sidecar(self._storage)

    def cover(self) -> Cover:
        return self._listing.cover

    def __contains__(self, tile: object) -> bool:
        return self._listing.extension(tile) is not None

    def __len__(self) -> int:
        return len(self._listing)

    def _key(self, tile: Tile) -> str | None:
        extension = self._listing.extension(tile)
        return None if extension is None else f"{zxy(tile)}.{extension}"

    def delete(self, tiles: Iterable[Tile]) -> None:
        """Remove the objects of tiles; raise `StorageError` where the store refuses."""
        keys = [key for tile in tiles if (key := self._key(tile))]
        if keys:
            self._storage.delete(*keys)

    def read(self, tile: Tile) -> bytes:
        key = self._key(tile)
        if key is None:
            raise TileError(f"no tile {zxy(tile)} in {self.address}")
        try:
            return self._storage.read(key)[0]
        except NotFoundError as error:
            raise TileError(f"cannot read the tile {zxy(tile)}: {error}") from None


def present(storage: Storage) -> Listing:
    """Return the tiles that a store has."""
    return Listing(_rows(found.key for found in storage.list()))


def _rows(keys: Iterable[str]) -> Iterator[Rows]:
    keys = iter(keys)
    while names := list(islice(keys, LISTED)):
        found = [each for key in names if (each := _tile(key))]
        for zoom in {tile.z for tile, _ in found}:
            some = [(tile.x << 32 | tile.y, extension) for tile, extension in found if tile.z == zoom]
            yield Rows(zoom, np.array([key for key, _ in some], np.int64), [extension for _, extension in some])


def stored_sidecar(storage: Storage) -> dict[str, Any]:
    """Return the metadata beside tiles in a store, empty where it has none; raises as `read_sidecar`."""
    try:
        data, _ = storage.read(SIDECAR, limit=MAX_BYTES)
    except NotFoundError:
        return {}
    return parse_metadata(data, f"{storage.address}/{SIDECAR}")


def _tile(key: str) -> tuple[Tile, str] | None:
    """Return the tile that a key names, and its extension; None where it names none."""
    name, _, extension = key.partition(".")
    numbers = [number(part) for part in name.split("/")]
    if len(numbers) != 3 or extension.lower() not in FORMATS:
        return None
    z, x, y = numbers
    if z is None or x is None or y is None or z > MAX_ZOOM or x >> z or y >> z:
        return None
    return Tile(x, y, z), extension
