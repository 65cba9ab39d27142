"""Tile sets as directories: one file a tile, `{z}/{x}/{y}.{ext}`, and `metadata.json` beside them."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsp.shared.atomic import PREFIX, atomic_text
from rsp.shared.covers import Cover
from rsp.shared.errors import StorageError, TileError, TileSetError
from rsp.shared.locks import hold, try_lock
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset.base import FORMATS, TileReader, TileWriter, refuse_other_formats, tile_format
from rsp.shared.tileset.listing import Listing, scan
from rsp.shared.tileset.metadata import MAX_BYTES, SIDECAR, complete, foreign, parse_metadata, to_json


class DirectoryReader(TileReader):
    """Tiles as files `{z}/{x}/{y}.{ext}`."""

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._listing = Listing(scan(path))
        except OSError as error:
            raise TileSetError(f"cannot list the tiles of {path}: {error}") from error
        self._listing.check(path)
        first = self._listing.first
        if first is None:
            raise TileSetError(f"no tile in {path}; expected files z/x/y with one of {', '.join(FORMATS)}")
        self.format = tile_format(str(self._listing.extension(first)))
        self.formats = self._listing.formats

    @property
    def metadata(self) -> dict[str, Any]:
        return read_sidecar(self.path)

    def cover(self) -> Cover:
        return self._listing.cover

    def __contains__(self, tile: object) -> bool:
        return self._listing.extension(tile) is not None

    def __len__(self) -> int:
        return len(self._listing)

    def locate(self, tile: Tile) -> Path:
        """Return the file of a tile; raise `TileError` where there is none."""
        extension = self._listing.extension(tile)
        if extension is None:
            raise TileError(f"no tile {zxy(tile)} in {self.path}")
        return self.path / f"{tile.z}/{tile.x}/{tile.y}.{extension}"

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
        self._columns: set[tuple[int, int]] = set()
        self._staging = path / f"{PREFIX}{secrets.token_hex(8)}"
        self._claim: int | None = None
        self._lock = threading.Lock()
        self._made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            present = Listing(scan(path))
            _sweep(path)
        except OSError as error:
            raise StorageError(f"cannot write the folder {path}: {error.strerror}") from error
        # One tile under two extensions would make the set unreadable: say it before any work is done.
        refuse_other_formats(path, present.extensions, tiles_format)
        # Tiles may be there as .jpeg, .TIFF, ...
        self._odd = present if set(present.extensions) - {tiles_format} else None
        before = read_sidecar(path)
        self.metadata = before if resume else foreign(before)
        self._zooms, self._first = set(present.cover.zooms), present.first
        self.done = present.cover if resume else Cover()

    def write(self, tile: Tile, data: bytes) -> None:
        self._place(tile, lambda temporary: _write(temporary, data))

    def link(self, tile: Tile, file: Path, *, hard: bool = False) -> None:
        """Write a tile as a link to a file that is there.

        Args:
            tile: The tile.
            file: What it links to. A symbolic link is relative, so that both may be moved together.
            hard: Make a hard link, which is the file itself under a second name.

        Raises:
            StorageError: the file system has no such links, or the file lies on another one.
        """
        if hard:
            self._place(tile, lambda temporary: os.link(file, temporary))
            return
        source = os.path.relpath(file.parent.resolve() / file.name, (self.path / f"{tile.z}/{tile.x}").resolve())
        self._place(tile, lambda temporary: Path(temporary).symlink_to(source))

    def _place(self, tile: Tile, make: Callable[[str], None]) -> None:
        """Make the file of a tile where nobody sees it, and move it to its place."""
        # Paths as text: to make objects of them takes longer than the kernel takes.
        column = self.path / f"{tile.z}/{tile.x}"
        path = f"{column}/{tile.y}.{self._extension(tile)}"
        temporary = f"{self._staging}/{tile.z}-{tile.x}-{tile.y}-{threading.get_ident()}"
        try:
            if self._claim is None:
                self._stage()
            if (tile.z, tile.x) not in self._columns:
                column.mkdir(parents=True, exist_ok=True)
                self._columns.add((tile.z, tile.x))
            with self._lock:
                self._zooms.add(tile.z)
                self._first = tile if self._first is None else min(tile, self._first)
            try:
                make(temporary)
                try:
                    os.replace(temporary, path)  # noqa: PTH105
                except FileNotFoundError:
                    # Somebody has removed the empty column since.
                    column.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, path)  # noqa: PTH105
            finally:
                # A file in part only fills the disk further, and of two names of one file neither gives way.
                with suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _extension(self, tile: Tile) -> str:
        return (self._odd and self._odd.extension(tile)) or self.format

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
        path = self.path / f"{tile.z}/{tile.x}/{tile.y}.{self._extension(tile)}"
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


def _write(path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    finally:
        os.close(file)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a directory: hidden folders whose lock nobody holds."""
    for staging in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            try:
                descriptor = os.open(staging / "lock", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                # Its writer was killed before it held the lock; one that is about to, makes the folder again.
                staging.rmdir()
                continue
            try:
                if try_lock(descriptor):
                    shutil.rmtree(staging, ignore_errors=True)
            finally:
                os.close(descriptor)
