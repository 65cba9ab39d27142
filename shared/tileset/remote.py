"""Tile sets on HTTP servers and in object stores, opened by their address."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rsp.shared.errors import NotFoundError, TileError, TileSetError
from rsp.shared.locations import Address, Location, etag_of, is_address, location, parse_address
from rsp.shared.tiles import MAX_ZOOM, Tile, zxy
from rsp.shared.tileset.base import FORMATS, TileReader, tile_format
from rsp.shared.tileset.metadata import MAX_BYTES, SIDECAR, parse_metadata

if TYPE_CHECKING:
    from rsp.shared.storage import Storage

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
        self._keys = self.present(storage)
        if not self._keys:
            raise TileSetError(
                f"no tile set at {self.address}; expected objects z/x/y with one of {', '.join(FORMATS)}, or a "
                "PMTiles file"
            )
        self._tiles = sorted(self._keys)
        self.format = _format(self._keys[self._tiles[0]])
        self.formats = frozenset(map(_format, self._keys.values()))

    @staticmethod
    def present(storage: Storage) -> dict[Tile, str]:
        """Return the key of each tile that a store has; raise `TileSetError` where one has two."""
        keys: dict[Tile, str] = {}
        for found in storage.list():
            if tile := _tile(found.key):
                if tile in keys:
                    raise TileSetError(
                        f"{storage.address} holds tile {zxy(tile)} twice, as {keys[tile]} and {found.key}; "
                        "remove one of them"
                    )
                keys[tile] = found.key
        return keys

    @property
    def metadata(self) -> dict[str, Any]:
        return stored_sidecar(self._storage)

    def tiles(self) -> list[Tile]:
        return self._tiles

    def __contains__(self, tile: object) -> bool:
        return tile in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def delete(self, tiles: Iterable[Tile]) -> None:
        """Remove the objects of tiles; raise `StorageError` where the store refuses."""
        keys = [self._keys[tile] for tile in tiles if tile in self._keys]
        if keys:
            self._storage.delete(*keys)

    def read(self, tile: Tile) -> bytes:
        try:
            return self._storage.read(self._keys[tile])[0]
        except KeyError:
            raise TileError(f"no tile {zxy(tile)} in {self.address}") from None
        except NotFoundError as error:
            raise TileError(f"cannot read the tile {zxy(tile)}: {error}") from None


def stored_sidecar(storage: Storage) -> dict[str, Any]:
    """Return the metadata beside tiles in a store, empty where it has none; raises as `read_sidecar`."""
    try:
        data, _ = storage.read(SIDECAR, limit=MAX_BYTES)
    except NotFoundError:
        return {}
    return parse_metadata(data, f"{storage.address}/{SIDECAR}")


def _format(key: str) -> str:
    return tile_format(key.rpartition(".")[2])


def _tile(key: str) -> Tile | None:
    """Return the tile that a key names, None where it names none."""
    name, _, extension = key.partition(".")
    parts = name.split("/")
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and str(int(part)) == part]
    if len(parts) != 3 or len(numbers) != 3 or extension.lower() not in FORMATS:
        return None
    z, x, y = numbers
    return Tile(x, y, z) if z <= MAX_ZOOM and not x >> z and not y >> z else None
