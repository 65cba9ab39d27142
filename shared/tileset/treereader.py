"""What every reader of a PMTiles archive says of its tiles, from its directories, wherever the bytes are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
from pmtiles.tile import HeaderDict

from rsp.shared.covers import Cover
from rsp.shared.errors import TileSetError
from rsp.shared.tileset.base import TileReader
from rsp.shared.tileset.entries import DamagedError, unpack
from rsp.shared.tileset.hilbert import BLOCK, cover_of, cover_of_blocks, ids_of_cover, zoom_of_id
from rsp.shared.tileset.metadata import MAX_BYTES, parse_metadata
from rsp.shared.tileset.tree import Tree


def metadata_of(header: HeaderDict, read: Callable[[int, int], bytes], path: object) -> dict[str, Any]:
    """Return the metadata of an archive, empty where it has none.

    Args:
        header: Of the archive.
        read: Returns so many bytes from an offset.
        path: Where the archive is, for messages.

    Raises:
        TileSetError: they are damaged, or too large. No more than the limit is unpacked: a few bytes can hold
            gigabytes.
    """
    offset, length = header["metadata_offset"], header["metadata_length"]
    where = f"the metadata of {path}"
    if not length:
        return {}
    if length > MAX_BYTES:
        raise TileSetError(f"{where} would have {length} bytes, more than any have")
    try:
        data = unpack(read(offset, length), header["internal_compression"], MAX_BYTES)
    except DamagedError as error:
        raise TileSetError(f"{where} cannot be read: {error}") from error
    return parse_metadata(data, where)


class TreeReader(TileReader):
    """A tile set whose tiles are found through a `Tree`."""

    _header: HeaderDict
    _tree: Tree

    @abstractmethod
    def _checked(self) -> AbstractContextManager[None]:
        """Turn what is wrong with a directory, read within, into an error that names the archive."""

    @abstractmethod
    def _bytes(self, offset: int, length: int) -> bytes:
        """Return bytes of the archive."""

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return metadata_of(self._header, self._bytes, self.path)

    def cover(self) -> Cover:
        return self._cover

    @cached_property
    def _cover(self) -> Cover:
        """All tiles, for which all leaf directories are read."""
        with self._checked():
            return cover_of_blocks(self._tree.ids())

    def among(self, cover: Cover) -> Cover:
        ids = ids_of_cover(cover)
        there = np.empty(len(ids), bool)
        with self._checked():
            for start in range(0, len(ids), BLOCK):
                there[start : start + BLOCK] = self._tree.find(ids[start : start + BLOCK])[1] > 0
        return cover if there.all() else cover_of(ids[there])

    def zoom(self) -> int:
        with self._checked():
            first, last = map(zoom_of_id, self._tree.ends()) if self._tree else (0, 1)
        return first if first == last else super().zoom()
