"""Tile sets as directories: one file a tile, `{z}/{x}/{y}.{ext}`, and `metadata.json` beside them."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsp.shared.atomic import PREFIX, atomic_text
from rsp.shared.errors import StorageError, TileError, TileSetError
from rsp.shared.locks import hold, try_lock
from rsp.shared.tiles import MAX_ZOOM, Tile, zxy
from rsp.shared.tileset.base import FORMATS, TileReader, TileWriter, refuse_other_formats, tile_format
from rsp.shared.tileset.metadata import MAX_BYTES, SIDECAR, complete, foreign, parse_metadata, to_json


def scan(root: Path) -> Iterator[tuple[Tile, str]]:
    """Yield each tile below a directory with its extension; whatever is not named like a tile is passed over."""
    for zoom, folder in _numbered(root):
        if zoom > MAX_ZOOM:
            continue
        for x, column in _numbered(folder):
            if x >> zoom:
                continue
            with os.scandir(column) as files:
                for file in files:
                    stem, _, extension = file.name.partition(".")
                    y = _number(stem)
                    if y is not None and not y >> zoom and extension.lower() in FORMATS:
                        yield Tile(x, y, zoom), extension


def _number(name: str) -> int | None:
    """Return the number that a name is, or None; `007` does not count, as tile 7 would not be found again."""
    return int(name) if name.isascii() and name.isdecimal() and (name[0] != "0" or name == "0") else None


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the sub-directories whose name is a number."""
    with os.scandir(folder) as entries:
        for entry in entries:
            number = _number(entry.name)
            if number is not None and entry.is_dir():
                yield number, Path(entry.path)


class DirectoryReader(TileReader):
    """Tiles as files `{z}/{x}/{y}.{ext}`."""

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        self._extensions: dict[Tile, str] = {}
        try:
            for tile, extension in scan(path):
                if tile in self._extensions:
                    raise TileSetError(
                        f"{path} holds tile {zxy(tile)} twice, as "
                        f".{self._extensions[tile]} and .{extension}; remove one of them"
                    )
                self._extensions[tile] = extension
        except OSError as error:
            raise TileSetError(f"cannot list the tiles of {path}: {error}") from error
        if not self._extensions:
            raise TileSetError(f"no tile in {path}; expected files z/x/y with one of {', '.join(FORMATS)}")
        self._tiles = sorted(self._extensions)
        self.format = tile_format(self._extensions[self._tiles[0]])
        self.formats = frozenset(map(tile_format, set(self._extensions.values())))

    @property
    def metadata(self) -> dict[str, Any]:
        return read_sidecar(self.path)

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
            raise TileError(f"no tile {zxy(tile)} in {self.path}") from None
        return self.path / str(tile.z) / str(tile.x) / f"{tile.y}.{extension}"

    def read(self, tile: Tile) -> bytes:
        path = self.locate(tile)
        try:
            return path.read_bytes()
        except OSError as error:
            raise TileError(f"cannot read the tile {path}: {error.strerror}") from error


def read_sidecar(folder: Path) -> dict[str, Any]:
    """Return the metadata of a directory, empty where it has none; raise `TileSetError` where they are damaged."""
    path = folder / SIDECAR
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TileSetError(f"cannot read {path}: {error.strerror}") from error
    return parse_metadata(data, str(path))


class DirectoryWriter(TileWriter):
    """Writes each tile as a file of its own, atomically, and `metadata.json` when the last one is there.

    Files are made in a hidden folder within the directory and moved to their place when whole. A writer that
    is killed leaves that folder behind; the next one removes it.
    """

    path: Path

    def __init__(self, path: Path, tiles_format: str, *, resume: bool) -> None:
        if path.exists() and not path.is_dir():
            raise TileSetError(f"cannot write tiles to {path}: it is a file (name it *.pmtiles for an archive)")
        self.path, self.format = path, tiles_format
        self.done = frozenset()
        self._odd: dict[Tile, str] = {}  # the extension of tiles that are there as .jpeg, .TIFF, ...
        self._columns: set[Path] = set()
        self._staging = path / f"{PREFIX}{secrets.token_hex(8)}"
        self._claim: int | None = None
        self._lock = threading.Lock()
        self._made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            present = list(scan(path))
            _sweep(path)
        except OSError as error:
            raise StorageError(f"cannot write the folder {path}: {error.strerror}") from error
        # One tile under two extensions would make the set unreadable: say it before any work is done.
        refuse_other_formats(path, (extension for _, extension in present), tiles_format)
        self._odd = {tile: extension for tile, extension in present if extension != tiles_format}
        before = read_sidecar(path)
        self.metadata = before if resume else foreign(before)
        self._zooms = {tile.z for tile, _ in present}
        self._first = min((tile for tile, _ in present), default=None)
        if resume:
            self.done = frozenset(tile for tile, _ in present)

    def write(self, tile: Tile, data: bytes) -> None:
        column = self.path / str(tile.z) / str(tile.x)
        path = column / f"{tile.y}.{self._odd.get(tile, self.format)}"
        temporary = self._staging / f"{tile.z}-{tile.x}-{tile.y}-{threading.get_ident()}"
        try:
            if self._claim is None:
                self._stage()
            if column not in self._columns:
                column.mkdir(parents=True, exist_ok=True)
                self._columns.add(column)
            with self._lock:
                self._zooms.add(tile.z)
                self._first = tile if self._first is None else min(tile, self._first)
            try:
                temporary.write_bytes(data)
                try:
                    temporary.replace(path)
                except FileNotFoundError:
                    # Somebody has removed the empty column since.
                    column.mkdir(parents=True, exist_ok=True)
                    temporary.replace(path)
            except OSError:
                # A file in part only fills the disk further.
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _stage(self) -> None:
        """Make the hidden folder, and hold a lock in it that tells others that its writer lives."""
        with self._lock:
            while self._claim is None:
                # A writer that starts now may sweep the folder away before it is locked.
                with suppress(FileNotFoundError):
                    self._staging.mkdir(parents=True, exist_ok=True)
                    self._claim = hold(self._staging / "lock")

    def commit(self) -> None:
        """Every tile is visible since it was written; the metadata are left to write, and to clear up."""
        self._clear()
        if self._first is None:
            return
        tile = self._first
        path = self.path / str(tile.z) / str(tile.x) / f"{tile.y}.{self._odd.get(tile, self.format)}"
        try:
            first = path.read_bytes()
        except OSError:  # somebody has removed it since: then nothing is known of its pixels
            first = b""
        metadata = complete(self.metadata, self.format, self._zooms, first)
        with atomic_text(self.path / SIDECAR) as file:
            file.write(to_json(metadata))

    def abandon(self) -> None:
        """Whole tiles stay; a folder that was made for tiles, and got none, does not."""
        self._clear()
        if self._made:
            with suppress(OSError):
                self.path.rmdir()

    def _clear(self) -> None:
        with self._lock:
            if self._claim is not None:
                shutil.rmtree(self._staging, ignore_errors=True)
                os.close(self._claim)
                self._claim = None


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a directory: hidden folders whose lock nobody holds."""
    for staging in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(staging / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(staging, ignore_errors=True)
            finally:
                os.close(descriptor)
