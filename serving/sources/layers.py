"""What a source of live imagery is made of: folders of tiles, PMTiles, tile servers and rasters, behind one seam.

A layer reads one tile at a time, tells what it is now (its revision), and follows what changes: a file that was
replaced is opened again. A tile that is not there is a `NoTileError`, and its neighbours are mirrored there; a
server that does not answer is a `SourceError`, so that nobody takes a mirrored border for the real one.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import mercantile
import numpy as np

from rsp.shared.attribution import of_readers
from rsp.shared.errors import ChangedError, SourceError, StorageError, TileError, TileSetError
from rsp.shared.images import Array, Mask, decode, decode_mask
from rsp.shared.mercator import MAX_LATITUDE
from rsp.shared.tiles import Tile, bounds_lonlat, zxy
from rsp.shared.tileset import DirectoryReader, TileReader, open_reader
from rsp.shared.tileset.ranged import RangedReader

# Bounds in degrees: west, south, east, north.
Bounds = tuple[float, float, float, float]
WORLD: Bounds = (-180.0, -MAX_LATITUDE, 180.0, MAX_LATITUDE)


T = TypeVar("T")


class NoTileError(TileError):
    """The source has no such tile."""


class Extent(NamedTuple):
    """Where a layer has tiles: the lowest and the highest zoom, and bounds in degrees."""

    low: int
    high: int
    bounds: Bounds

    def holds(self, tile: Tile) -> bool:
        """Tell whether a tile is of these zooms and meets these bounds."""
        if not self.low <= tile.z <= self.high:
            return False
        west, south, east, north = bounds_lonlat(tile)
        return (
            west < self.bounds[2] and east > self.bounds[0] and south < self.bounds[3] and north > self.bounds[1]
        )


class Layer(ABC):
    """One set of tiles of live imagery.

    Attributes:
        kind: What it is, as people see it.
        path: What messages call it; it holds no credentials.
        extent: Where it has tiles.
        tile_size: Side of its tiles in pixels; None where it makes tiles of any size, or that is not known.
        remote: Each tile is a journey over the network: its neighbours are fetched at once, not in turn.
        slow: Seconds between two looks for a change.
        attribution: Whose they are, where they say so.
    """

    kind: str
    path: Path | str
    extent: Extent
    tile_size: int | None = None
    remote = False
    slow = 2.0
    attribution: str | None = None

    @abstractmethod
    def __contains__(self, tile: object) -> bool: ...

    @abstractmethod
    def image(self, tile: Tile) -> Array:
        """Return the pixels of a tile, shape (height, width, bands).

        Raises:
            NoTileError: there is none.
            TileError: it is no image.
            SourceError: it cannot be had now.
        """

    def mask(self, tile: Tile) -> Mask:
        """Return the class indices of a tile, shape (height, width); raises as `image` does."""
        stored = self.encoded(tile)
        if stored is None:
            raise SourceError(f"{self.path} holds pixels, and the model takes tiles of classes for this channel")
        return decode_mask(stored)

    def encoded(self, tile: Tile) -> bytes | None:
        """Return a tile as it is stored; None where it is made when asked for. Raises as `image` does."""
        return None

    @abstractmethod
    def revision(self, tile: Tile) -> str:
        """Return what changes when the tile does."""

    def refresh(self) -> None:
        """Look whether what is read has changed; raises `SourceError` where that cannot be told."""

    def sized(self, side: int) -> Layer:
        """Return the layer with tiles of a size, where it makes them; else itself."""
        return self

    @abstractmethod
    def sample(self) -> Tile:
        """Return a tile that stands for all."""

    def close(self) -> None:
        """Release what it holds."""


class FolderLayer(Layer):
    """A folder of tiles on this machine. Tiles may be added, replaced and removed at any time."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        with DirectoryReader(path) as reader:
            self.path, self.attribution = path, of_readers([reader])
            self._extensions = sorted({reader.locate(tile).suffix for tile in reader.tiles()})
            tiles = reader.tiles()
            self.extent, self._sample = extent_of(tiles), middle(tiles)
        self.tile_size = square(self.image(self._sample))

    def _file(self, tile: Tile) -> tuple[Path, os.stat_result] | None:
        for extension in self._extensions:
            path = Path(self.path) / str(tile.z) / str(tile.x) / f"{tile.y}{extension}"
            with suppress(OSError):
                return path, path.stat()
        return None

    def __contains__(self, tile: object) -> bool:
        return isinstance(tile, Tile) and self._file(tile) is not None

    def encoded(self, tile: Tile) -> bytes:
        found = self._file(tile)
        if found is None:
            raise NoTileError(f"no tile {zxy(tile)} in {self.path}")
        try:
            return found[0].read_bytes()
        except FileNotFoundError:
            raise NoTileError(f"no tile {zxy(tile)} in {self.path}") from None
        except OSError as error:
            raise SourceError(f"cannot read {found[0]}: {error.strerror}") from None

    def image(self, tile: Tile) -> Array:
        return decode(self.encoded(tile))

    def revision(self, tile: Tile) -> str:
        found = self._file(tile)
        return "-" if found is None else f"{found[1].st_mtime_ns}.{found[1].st_size}.{found[1].st_ino}"

    def sample(self) -> Tile:
        return self._sample


class ArchiveLayer(Layer):
    """A PMTiles file: on this machine, or read by ranges over HTTP or from an object store.

    Args:
        address: The file.
        stamp: Tells what the file is now; another stamp has it opened again.
    """

    kind = "pmtiles"

    def __init__(self, address: str | Path, stamp: Callable[[], str], *, remote: bool = False) -> None:
        self.path, self._stamp, self.remote = address, stamp, remote
        self.slow = 10.0 if remote else 2.0
        self._lock = threading.Lock()
        self._generation = 0
        self._reader, self._now = self._open()
        self._measure()

    def _open(self) -> tuple[TileReader, str]:
        stamp = self._stamp()
        try:
            return open_reader(self.path), stamp
        except StorageError as error:
            raise SourceError(str(error)) from None

    def _measure(self) -> None:
        reader = self._reader
        self.attribution = of_readers([reader])
        if isinstance(reader, RangedReader):
            # To list all tiles, all directories would have to be fetched: the header has what is needed.
            self.extent = Extent(*reader.zooms, reader.bounds)
            west, south, east, north = reader.bounds
            around = tile_at((west + east) / 2, (south + north) / 2, self.extent.high)
            self._sample = around if around in reader else middle(reader.tiles())
        else:
            tiles = reader.tiles()
            self.extent, self._sample = extent_of(tiles), middle(tiles)
        self.tile_size = square(self.image(self._sample))

    def __contains__(self, tile: object) -> bool:
        return self._read(lambda reader: tile in reader)

    def encoded(self, tile: Tile) -> bytes:
        def read(reader: TileReader) -> bytes:
            if tile not in reader:
                raise NoTileError(f"no tile {zxy(tile)} in {self.path}")
            return reader.read(tile)

        return self._read(read)

    def _read(self, read: Callable[[TileReader], T]) -> T:
        reader = self._reader  # another thread may open a new one meanwhile
        try:
            return read(reader)
        except ChangedError:
            # It was replaced since it was opened: what there is now has all tiles of one version again.
            with self._lock:
                if self._reader is reader:
                    self._reopen()
            try:
                return read(self._reader)
            except StorageError as error:
                raise SourceError(str(error)) from None
        except (StorageError, TileSetError) as error:
            raise SourceError(str(error)) from None

    def image(self, tile: Tile) -> Array:
        return decode(self.encoded(tile))

    def revision(self, tile: Tile) -> str:
        # A tile that is read while the archive is opened again is noted under a revision that never comes back.
        return f"{self._now} {self._generation}"

    def refresh(self) -> None:
        if self._stamp() != self._now:
            with self._lock:
                self._reopen()

    def _reopen(self) -> None:
        try:
            self._generation += 1
            # The old one is closed when the last thread has let it go.
            self._reader, self._now = self._open()
            self._measure()
        except (TileSetError, TileError) as error:
            raise SourceError(str(error)) from None

    def sample(self) -> Tile:
        return self._sample

    def close(self) -> None:
        self._reader.close()


def file_stamp(path: Path) -> str:
    """Return what changes when a file is replaced or written; raise `SourceError` where it cannot be seen."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from None
    return f"{status.st_mtime_ns}.{status.st_size}.{status.st_ino}"


def extent_of(tiles: Iterable[Tile]) -> Extent:
    """Return where tiles lie."""
    grid = np.array(list(tiles), np.int64)
    west, south, east, north = 180.0, 90.0, -180.0, -90.0
    for zoom in np.unique(grid[:, 2]).tolist():
        block = grid[grid[:, 2] == zoom]
        (x0, y0), (x1, y1) = block[:, :2].min(axis=0).tolist(), block[:, :2].max(axis=0).tolist()
        first, last = bounds_lonlat(Tile(x0, y0, zoom)), bounds_lonlat(Tile(x1, y1, zoom))
        west, north = min(west, first[0]), max(north, first[3])
        east, south = max(east, last[2]), min(south, last[1])
    return Extent(int(grid[:, 2].min()), int(grid[:, 2].max()), (west, south, east, north))


def middle(tiles: list[Tile]) -> Tile:
    """Return a tile from amid the highest zoom, where imagery is likeliest to be what it is elsewhere."""
    highest = max(tile.z for tile in tiles)
    among = [tile for tile in tiles if tile.z == highest]
    return among[len(among) // 2]


def square(image: Array) -> int:
    """Return the side of a tile; raise `SourceError` where it is not a square."""
    height, width = image.shape[:2]
    if height != width:
        raise SourceError(f"a tile is a square, the ones here have {width}x{height} pixels")
    return int(width)


def tile_at(longitude: float, latitude: float, zoom: int) -> Tile:
    """Return the tile that holds a point."""
    found = mercantile.tile(longitude, latitude, zoom)
    return Tile(found.x, found.y, found.z)
