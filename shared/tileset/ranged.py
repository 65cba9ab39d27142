"""PMTiles archives that lie elsewhere, read by ranges: what is asked for is fetched, and little else."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsp.shared.errors import TileError, TileSetError
from rsp.shared.locations import is_address, location
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset.base import TileReader
from rsp.shared.tileset.entries import (
    MAGIC,
    MAX_DEPTH,
    DamagedError,
    Directory,
    Runs,
    check_leaf,
    image_format,
    read_directory,
    read_header,
    unpack,
    walk,
)
from rsp.shared.tileset.hilbert import ids_of, in_grid, tile_of, tiles_of
from rsp.shared.tileset.metadata import MAX_BYTES, parse_metadata
from rsp.shared.tileset.ranges import Ranges

# Two wanted parts with less than this between them are fetched as one: a request costs more than these bytes.
GAP = 32 << 10
# No request is for more than this, but for a single larger tile.
LARGEST_REQUEST = 8 << 20
# No tile is as large: an archive that says so is damaged.
MAX_TILE = 64 << 20
# Leaf directories that are kept, in bytes of memory.
CACHED = 64 << 20

Ids = NDArray[np.uint64]
Span = tuple[int, int]  # offset in the file, and length


class RangedReader(TileReader):
    """A PMTiles archive behind `Ranges`. Safe to use from several threads.

    To open it takes one request (two in a store), for the header and the root directory. A tile takes one more,
    and one for its leaf directory, which is kept. All that is read is of the version that was there when it was
    opened: where the archive was replaced since, reading raises `ChangedError`.

    Args:
        source: Where its bytes come from.
        empty: It may have no tile.

    Attributes:
        address: Where it is.
        etag: What the server calls the version that is read.
    """

    def __init__(self, source: Ranges, *, empty: bool = False) -> None:
        self._source = source
        self.address, self.etag = source.address, source.etag
        self.path = location(self.address) if is_address(self.address) else self.address
        self._lock = threading.Lock()
        self._leaves: OrderedDict[Span, Directory] = OrderedDict()
        self._held = 0
        if not source.head.startswith(MAGIC):
            raise TileSetError(f"{self.address} is not a PMTiles (version 3) file")
        with self._checked():
            self._header = read_header(source.head, source.size)
            place = self._header["root_offset"], self._header["root_length"]
            self._root = self._parse(self._bytes(*place))
        if not len(self._root.ids) and not empty:
            raise TileSetError(f"no tile in the archive {self.address}")
        self.format = image_format(self._header, lambda: self.metadata, self.address)
        self.formats = frozenset({self.format})

    @cached_property
    def metadata(self) -> dict[str, Any]:
        offset, length = self._header["metadata_offset"], self._header["metadata_length"]
        where = f"the metadata of {self.address}"
        if not length:
            return {}
        if length > MAX_BYTES:
            raise TileSetError(f"{where} would have {length} bytes, more than any have")
        with self._checked():
            data = unpack(self._bytes(offset, length), self._header["internal_compression"], MAX_BYTES + 1)
        return parse_metadata(data, where)

    @property
    def zooms(self) -> tuple[int, int]:
        """The lowest and the highest zoom, as the header says."""
        return self._header["min_zoom"], self._header["max_zoom"]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north in degrees (WGS84), as the header says."""
        header = self._header
        return (
            header["min_lon_e7"] / 1e7,
            header["min_lat_e7"] / 1e7,
            header["max_lon_e7"] / 1e7,
            header["max_lat_e7"] / 1e7,
        )

    @property
    def mean_size(self) -> float:
        """How many bytes a tile has on average, as the header says."""
        return self._header["tile_data_length"] / max(1, self._header["tile_contents_count"])

    def tiles(self) -> list[Tile]:
        return self._all

    @cached_property
    def _all(self) -> list[Tile]:
        """All tiles, for which all leaf directories are fetched."""
        with self._checked():
            return tiles_of(Runs(walk(self._root, self._below)).ids())

    def __contains__(self, tile: object) -> bool:
        found = tile_of(tile)
        return found is not None and self._find([found])[0] is not None

    def __len__(self) -> int:
        return self._header["addressed_tiles_count"] or len(self.tiles())

    def read(self, tile: Tile) -> bytes:
        (span,) = self._find([tile])
        if span is None:
            raise TileError(f"no tile {zxy(tile)} in {self.address}")
        return self._fetch([span])[span]

    def read_many(self, tiles: Iterable[Tile]) -> dict[Tile, bytes]:
        wanted = list(tiles)
        spans = dict(zip(wanted, self._find(wanted), strict=True))
        data = self._fetch([span for span in spans.values() if span is not None])
        return {tile: data[span] for tile, span in spans.items() if span is not None}

    def close(self) -> None:
        self._source.close()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (DamagedError, MemoryError) as error:
            raise TileSetError(f"the archive {self.address} is damaged: {error}") from error

    def _parse(self, data: bytes) -> Directory:
        header, size = self._header, self._source.size
        room = size - header["tile_data_offset"], size - header["leaf_directory_offset"]
        return read_directory(data, header["internal_compression"], *room)

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self._source.head):
            return self._source.head[offset : offset + length]
        return self._source.read(offset, length)

    def _spans(self, directory: Directory, entries: NDArray[np.int64]) -> list[Span]:
        """Return where entries lie in the file."""
        leaves = directory.leaves[entries]
        bases = np.where(
            leaves, np.uint64(self._header["leaf_directory_offset"]), np.uint64(self._header["tile_data_offset"])
        )
        offsets, lengths = directory.offsets[entries] + bases, directory.lengths[entries]
        return list(zip(offsets.tolist(), lengths.tolist(), strict=True))

    def _find(self, tiles: list[Tile]) -> list[Span | None]:
        """Return where tiles lie in the file, None for those that are not there."""
        found: list[Span | None] = [None] * len(tiles)
        fitting = [number for number, tile in enumerate(tiles) if in_grid(tile)]
        ids = ids_of(tiles[number] for number in fitting)
        with self._checked():
            self._descend(self._root, ids, np.array(fitting, np.int64), found, MAX_DEPTH)
        return found

    def _descend(
        self, directory: Directory, ids: Ids, numbers: NDArray[np.int64], found: list[Span | None], depth: int
    ) -> None:
        if not depth:
            raise DamagedError("directories are nested too deep")
        entries = directory.find(ids)
        there = entries >= 0
        ids, numbers, entries = ids[there], numbers[there], entries[there]
        leaves = directory.leaves[entries]
        places = self._spans(directory, entries[~leaves])
        for number, span in zip(numbers[~leaves].tolist(), places, strict=True):
            found[number] = span
        wanted = np.unique(entries[leaves])
        if not len(wanted):
            return
        for entry, leaf in zip(wanted.tolist(), self._below(directory, wanted), strict=True):
            of_it = leaves & (entries == entry)
            self._descend(leaf, ids[of_it], numbers[of_it], found, depth - 1)

    def _below(self, directory: Directory, entries: NDArray[np.int64]) -> list[Directory]:
        """Return the leaf directories of entries."""
        below = self._load(self._spans(directory, entries))
        return [check_leaf(directory, *pair) for pair in zip(entries.tolist(), below, strict=True)]

    def _load(self, spans: list[Span]) -> list[Directory]:
        """Return leaf directories, those from the cache that are there."""
        with self._lock:
            known = {span: self._leaves[span] for span in spans if span in self._leaves}
            for span in known:
                self._leaves.move_to_end(span)
        for span, data in self._fetch([span for span in spans if span not in known]).items():
            leaf = self._parse(data)
            known[span] = leaf
            with self._lock:
                if span not in self._leaves:
                    self._leaves[span] = leaf
                    self._held += leaf.nbytes
                while self._held > CACHED and len(self._leaves) > 1:
                    self._held -= self._leaves.popitem(last=False)[1].nbytes
        return [known[span] for span in spans]

    def _fetch(self, spans: Iterable[Span]) -> dict[Span, bytes]:
        """Return the bytes of spans; those that are neighbours are asked for together."""
        data: dict[Span, bytes] = {}
        for group in _together(sorted(set(spans))):
            start, end = group[0][0], max(offset + length for offset, length in group)
            if end - start > MAX_TILE:
                raise TileSetError(f"the archive {self.address} is damaged: a tile would have {end - start} bytes")
            content = self._bytes(start, end - start)
            for offset, length in group:
                data[offset, length] = content[offset - start : offset - start + length]
        return data


def _together(spans: list[Span]) -> Iterator[list[Span]]:
    """Yield groups of sorted spans that one request is to fetch."""
    group: list[Span] = []
    end = 0
    for offset, length in spans:
        if group and (offset - end > GAP or offset + length - group[0][0] > LARGEST_REQUEST):
            yield group
            group, end = [], 0
        group.append((offset, length))
        end = max(end, offset + length)
    if group:
        yield group
