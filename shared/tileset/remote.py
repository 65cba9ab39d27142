"""Tile sets on HTTP servers and in object stores, opened by their address."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.shared.errors import ChangedError, NotFoundError, TileError, TileSetError
from rsp.shared.tiles import MAX_ZOOM, Tile, zxy
from rsp.shared.tileset.base import FORMATS, TileReader, tile_format
from rsp.shared.tileset.metadata import MAX_BYTES, SIDECAR, parse_metadata

if TYPE_CHECKING:
    from rsp.shared.storage import Storage

_SCHEMES = ("s3://", "http://", "https://")


def is_remote(path: str | Path) -> bool:
    """Tell whether a tile set is named by an address, and not by a path."""
    return str(path).lower().startswith(_SCHEMES)


def open_remote(address: str) -> TileReader:
    """Open an archive at `http(s)://...` or `s3://...`, or a folder of tiles `z/x/y.ext` below `s3://...`.

    Raises:
        TileSetError: there is neither.
        ChangedError: the archive at `s3://...#etag` has another ETag.
        StorageError: it cannot be reached, or not by ranges.
    """
    from rsp.shared.locations import parse_address
    from rsp.shared.storage import open_storage
    from rsp.shared.tileset.ranged import RangedReader
    from rsp.shared.tileset.ranges import HttpRanges, Ranges, StoredRanges

    source: Ranges
    try:
        if not address.lower().startswith("s3://"):
            source = HttpRanges(address)
        elif address.rstrip("/").count("/") > 2 and not address.endswith("/"):
            meant = parse_address(address)
            source = StoredRanges(*meant.open())
            if meant.etag not in (None, source.etag):
                raise ChangedError(
                    f"{meant.plain} was replaced: its ETag is {source.etag}, and {meant.etag} was expected"
                )
        else:
            return StoredReader(open_storage(address))
    except NotFoundError as error:
        if address.lower().startswith("s3://") and not address.lower().endswith(".pmtiles"):
            return StoredReader(open_storage(address))
        raise TileSetError(f"no tile set: {error}") from error
    try:
        return RangedReader(source)
    except BaseException:
        source.close()
        raise


class StoredReader(TileReader):
    """Tiles as objects `z/x/y.ext` of a store. They are listed once, when it is opened."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.address, self.path = storage.address, Path(storage.address)
        self._keys: dict[Tile, str] = {}
        for found in storage.list():
            if tile := _tile(found.key):
                if tile in self._keys:
                    raise TileSetError(
                        f"{self.address} holds tile {zxy(tile)} twice, as {self._keys[tile]} and {found.key}; "
                        "remove one of them"
                    )
                self._keys[tile] = found.key
        if not self._keys:
            raise TileSetError(
                f"no tile set at {self.address}; expected objects z/x/y with one of {', '.join(FORMATS)}, or a "
                "PMTiles file"
            )
        self._tiles = sorted(self._keys)
        self.format = _format(self._keys[self._tiles[0]])
        self.formats = frozenset(map(_format, self._keys.values()))

    @property
    def metadata(self) -> dict[str, Any]:
        try:
            data, _ = self._storage.read(SIDECAR, limit=MAX_BYTES)
        except NotFoundError:
            return {}
        return parse_metadata(data, f"{self.address}/{SIDECAR}")

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
