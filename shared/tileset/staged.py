"""Archives that are written to S3: through a journal on this machine, uploaded when they are whole."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from rsp.shared import filecache
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.locations import Address
from rsp.shared.storage.settings import find_endpoint
from rsp.shared.tiles import Tile
from rsp.shared.tileset.archive import ArchiveWriter
from rsp.shared.tileset.base import TileWriter


class StagedArchiveWriter(TileWriter):
    """Writes a PMTiles object. What a killed writer had done is found again by one on the same machine.

    Attributes:
        etag: The ETag of the object once it is there; None before.
    """

    def __init__(self, address: Address, tiles_format: str, *, resume: bool) -> None:
        if address.etag is not None:
            raise UsageError(f"cannot write {address}: an output has no ETag yet; give {address.plain}")
        if address.suffix.lower() != ".pmtiles":
            raise UsageError(f"cannot write {address}: a tile set in S3 is an archive; give {address}.pmtiles")
        self._storage, self._key = address.open()
        self.address, self.format = address, tiles_format
        self.etag: str | None = None
        name = hashlib.sha256(f"{find_endpoint()}\0{address}".encode()).hexdigest()[:32]
        self._folder: Path = filecache.folder().parent / "writing" / name
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = self._folder / address.name
        if resume and not self.path.exists() and self._storage.stat(self._key) is not None:
            self._storage.download(self._key, self.path)
        if not resume:
            self.path.unlink(missing_ok=True)
        self._archive = ArchiveWriter(self.path, tiles_format, resume=resume)
        self.done: frozenset[Tile] = self._archive.done
        self.metadata = self._archive.metadata

    def write(self, tile: Tile, data: bytes) -> None:
        self._archive.write(tile, data)

    def commit(self) -> None:
        self._archive.metadata = self.metadata
        try:
            self._archive.commit()
        except TileSetError as error:
            raise TileSetError(str(error).replace(str(self.path), str(self.address))) from error
        self.etag = self._storage.upload(self._key, self.path).etag
        with suppress(OSError):
            shutil.rmtree(self._folder)

    def abandon(self) -> None:
        self._archive.abandon()
        with suppress(OSError):
            self._folder.rmdir()  # only where nothing is left
