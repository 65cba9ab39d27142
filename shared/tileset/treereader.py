"""What every reader of a PMTiles archive says of its tiles, from its directories, wherever the bytes are."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from functools import cached_property

import numpy as np

from rsp.shared.covers import Cover
from rsp.shared.tileset.base import TileReader
from rsp.shared.tileset.hilbert import BLOCK, cover_of, ids_of_cover, zoom_of_id
from rsp.shared.tileset.tree import Tree


class TreeReader(TileReader):
    """A tile set whose tiles are found through a `Tree`."""

    _tree: Tree

    @abstractmethod
    def _checked(self) -> AbstractContextManager[None]:
        """Turn what is wrong with a directory, read within, into an error that names the archive."""

    def cover(self) -> Cover:
        return self._cover

    @cached_property
    def _cover(self) -> Cover:
        """All tiles, for which all leaf directories are read."""
        with self._checked():
            return cover_of(self._tree.runs().ids())

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
