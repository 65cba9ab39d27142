"""PMTiles archives that lie elsewhere, read by ranges: what is asked for is fetched, and little else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from rsp.shared.errors import TileError, TileSetError
from rsp.shared.locations import is_address, location
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset.entries import (
    MAGIC,
    DamagedError,
    image_format,
    read_header,
)
from rsp.shared.tileset.hilbert import ids_of, in_grid, tile_of
from rsp.shared.tileset.ranges import Ranges
from rsp.shared.tileset.tree import Span, Tree
from rsp.shared.tileset.treereader import TreeReader

# Two wanted parts with less than this between them are fetched as one: a request costs more than these bytes.
GAP = 32 << 10
# No request is for more than this, but for a single larger tile.
LARGEST_REQUEST = 8 << 20
# No tile is as large: an archive that says so is damaged.
MAX_TILE = 64 << 20


class RangedReader(TreeReader):
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
        if not source.head.startswith(MAGIC):
            raise TileSetError(f"{self.address} is not a PMTiles (version 3) file")
        with self._checked():
            self._header = read_header(source.head, source.size)
            place = self._header["root_offset"], self._header["root_length"]
            self._tree = Tree(self._header, source.size, _bytes(source, *place), partial(_fetch, source))
        if not self._tree and not empty:
            raise TileSetError(f"no tile in the archive {self.address}")
        self.format = image_format(self._header, lambda: self.metadata, self.address)
        self.formats = frozenset({self.format})

    def _bytes(self, offset: int, length: int) -> bytes:
        return _bytes(self._source, offset, length)

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

    def __contains__(self, tile: object) -> bool:
        found = tile_of(tile)
        return found is not None and self._find([found])[0] is not None

    def __len__(self) -> int:
        return self._header["addressed_tiles_count"] or len(self.cover())

    def read(self, tile: Tile) -> bytes:
        (span,) = self._find([tile])
        if span is None:
            raise TileError(f"no tile {zxy(tile)} in {self.address}")
        return _fetch(self._source, [span])[span]

    def read_many(self, tiles: Iterable[Tile]) -> dict[Tile, bytes]:
        wanted = list(tiles)
        spans = dict(zip(wanted, self._find(wanted), strict=True))
        data = _fetch(self._source, [span for span in spans.values() if span is not None])
        return {tile: data[span] for tile, span in spans.items() if span is not None}

    def close(self) -> None:
        self._source.close()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (DamagedError, MemoryError) as error:
            raise TileSetError(f"the archive {self.address} is damaged: {error}") from error

    def _find(self, tiles: list[Tile]) -> list[Span | None]:
        """Return where tiles lie in the file, None for those that are not there."""
        found: list[Span | None] = [None] * len(tiles)
        fitting = [number for number, tile in enumerate(tiles) if in_grid(tile)]
        with self._checked():
            offsets, lengths = self._tree.find(ids_of(tiles[number] for number in fitting))
        for number, offset, length in zip(fitting, offsets.tolist(), lengths.tolist(), strict=True):
            if length:
                found[number] = offset, length
        return found


def _bytes(source: Ranges, offset: int, length: int) -> bytes:
    if offset + length <= len(source.head):
        return source.head[offset : offset + length]
    return source.read(offset, length)


def _fetch(source: Ranges, spans: Iterable[Span]) -> dict[Span, bytes]:
    """Return the bytes of spans; those that are neighbours are asked for together."""
    data: dict[Span, bytes] = {}
    for group in _together(sorted(set(spans))):
        start, end = group[0][0], max(offset + length for offset, length in group)
        if end - start > MAX_TILE:
            raise TileSetError(f"the archive {source.address} is damaged: a tile would have {end - start} bytes")
        content = _bytes(source, start, end - start)
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
