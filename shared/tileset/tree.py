"""The directories of a PMTiles archive, each read when a tile is looked for in it, whoever has the bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from copy import copy

import numpy as np
from numpy.typing import NDArray
from pmtiles.tile import HeaderDict

from rsp.shared.tileset.entries import (
    MAX_DEPTH,
    MAX_TILES,
    DamagedError,
    Directory,
    check_leaf,
    read_directory,
)

# Leaf directories that are kept, in bytes of memory, and how many are read at once by who goes through all.
CACHED, AT_ONCE = 8 << 20, 64
# Tiles that are looked up at once, where they are many.
BLOCK = 1 << 16

Ids = NDArray[np.uint64]
Span = tuple[int, int]  # offset in the file, and length


class Leaves:
    """Leaf directories that were read, as many of the last ones as are kept. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Span, Directory] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, span: Span) -> Directory | None:
        """Return a leaf, None where it is not kept."""
        with self._lock:
            found = self._kept.get(span)
            if found is not None:
                self._kept.move_to_end(span)
            return found

    def keep(self, span: Span, leaf: Directory) -> None:
        """Keep a leaf."""
        with self._lock:
            if span not in self._kept:
                self._kept[span] = leaf
                self._size += leaf.nbytes
            while self._size > CACHED and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1].nbytes


class Tree:
    """The directories of an archive. Safe to use from several threads.

    What is found in them is checked when it is read: a tile is never looked for where it cannot be. All methods
    raise `DamagedError` where a directory cannot be what it says.

    Args:
        header: Of the archive.
        size: Of the file, in bytes.
        root: The root directory, as it stands in the file.
        fetch: Returns the bytes of spans of the file.
    """

    def __init__(
        self, header: HeaderDict, size: int, root: bytes, fetch: Callable[[list[Span]], Mapping[Span, bytes]]
    ) -> None:
        self._compression, self._fetch = header["internal_compression"], fetch
        self._tiles, self._below = header["tile_data_offset"], header["leaf_directory_offset"]
        self._room = size - self._tiles, size - self._below
        self._leaves = Leaves()
        self.root = self._parse(root)

    def through(self, fetch: Callable[[list[Span]], Mapping[Span, bytes]]) -> Tree:
        """Return the same directories, read in another way; what is kept of them is shared."""
        other = copy(self)
        other._fetch = fetch
        return other

    def __bool__(self) -> bool:
        """Tell whether there is any tile."""
        return len(self.root.ids) > 0

    def _parse(self, data: bytes) -> Directory:
        return read_directory(data, self._compression, *self._room)

    # --- some tiles ------------------------------------------------------------------------------------------

    def at(self, tile_id: int) -> Span | None:
        """Return where the data of a tile lies in the file, None where there is none."""
        directory = self.root
        for _ in range(MAX_DEPTH):
            entry = directory.entry(tile_id)
            if entry < 0:
                return None
            if directory.runs[entry]:
                return self._tiles + int(directory.offsets[entry]), int(directory.lengths[entry])
            directory = self._leaf(directory, entry)
        raise DamagedError("directories are nested too deep")

    def find(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return where the data of tiles begin in the file, and their lengths, 0 where there are none."""
        offsets, lengths = np.zeros_like(ids), np.zeros_like(ids)
        order = None if (ids[1:] >= ids[:-1]).all() else np.argsort(ids, kind="stable")
        for first in range(0, len(ids), BLOCK):
            last = min(first + BLOCK, len(ids))
            places = np.arange(first, last) if order is None else order[first:last]
            self._descend(self.root, ids[places], places, offsets, lengths, MAX_DEPTH)
        return offsets, lengths

    def _descend(
        self, directory: Directory, ids: Ids, places: NDArray[np.int64], offsets: Ids, lengths: Ids, depth: int
    ) -> None:
        """Find sorted ids in a directory; `places` is where in the arrays each one's answer belongs."""
        if not depth:
            raise DamagedError("directories are nested too deep")
        if not len(directory.ids):
            return
        entries = directory.find(ids)
        there = entries >= 0
        leaves = there & (directory.runs[entries] == 0)
        tiles = there & ~leaves
        offsets[places[tiles]] = directory.offsets[entries[tiles]] + np.uint64(self._tiles)
        lengths[places[tiles]] = directory.lengths[entries[tiles]]
        ids, places, entries = ids[leaves], places[leaves], entries[leaves]
        wanted, starts = np.unique(entries, return_index=True)
        ends = [*starts[1:].tolist(), len(entries)]
        for first in range(0, len(wanted), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            parts = zip(starts[some].tolist(), ends[some], self._load(directory, wanted[some]), strict=True)
            for start, end, leaf in parts:
                self._descend(leaf, ids[start:end], places[start:end], offsets, lengths, depth - 1)

    def _leaf(self, directory: Directory, entry: int) -> Directory:
        """Return one leaf directory; as `_load`, and quicker where it is in the cache."""
        span = self._below + int(directory.offsets[entry]), int(directory.lengths[entry])
        found = self._leaves.get(span)
        if found is None:
            return self._load(directory, np.array([entry]))[0]
        return check_leaf(directory, entry, found)

    def _load(self, directory: Directory, entries: NDArray[np.int64]) -> list[Directory]:
        """Return the leaf directories of entries, those from the cache that are there."""
        offsets = (directory.offsets[entries] + np.uint64(self._below)).tolist()
        spans: list[Span] = list(zip(offsets, directory.lengths[entries].tolist(), strict=True))
        known = {span: leaf for span in spans if (leaf := self._leaves.get(span)) is not None}
        if missing := [span for span in spans if span not in known]:
            for span, data in self._fetch(missing).items():
                known[span] = self._parse(data)
                self._leaves.keep(span, known[span])
        # Entries may share a leaf, which cannot be what both are to lead to.
        return [
            check_leaf(directory, entry, known[span]) for entry, span in zip(entries.tolist(), spans, strict=True)
        ]

    # --- all tiles -------------------------------------------------------------------------------------------

    def directories(self) -> Iterator[Directory]:
        """Yield all directories, those below an entry before what comes after it."""
        tiles = 0.0
        for directory in self._walk(self.root, MAX_DEPTH):
            # As floating point: the sum of so many may wrap.
            tiles += float(directory.runs.astype(np.float64).sum())
            if tiles > MAX_TILES:
                raise DamagedError(f"it claims more than {MAX_TILES} tiles")
            yield directory

    def _walk(self, directory: Directory, depth: int) -> Iterator[Directory]:
        if not depth:
            raise DamagedError("directories are nested too deep")
        yield directory
        entries = np.flatnonzero(directory.leaves)
        for start in range(0, len(entries), AT_ONCE):
            for leaf in self._load(directory, entries[start : start + AT_ONCE]):
                yield from self._walk(leaf, depth - 1)

    def ids(self) -> Iterator[Ids]:
        """Yield all tiles, some at a time."""
        for directory in self.directories():
            yield from directory.tiles(BLOCK)

    def count(self) -> int:
        """Return how many tiles there are."""
        return sum(int(directory.runs.sum()) for directory in self.directories())

    def ends(self) -> Span:
        """Return the ids of the first tile and of the last; there must be one."""
        first = last = self.root
        for _ in range(MAX_DEPTH):
            if first.runs[0] and last.runs[-1]:
                return int(first.ids[0]), int(last.end) - 1
            if not first.runs[0]:
                (first,) = self._load(first, np.array([0]))
            if not last.runs[-1]:
                (last,) = self._load(last, np.array([len(last.ids) - 1]))
        raise DamagedError("directories are nested too deep")
