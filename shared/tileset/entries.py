"""What stands before the tiles of a PMTiles archive: its header, and its directories as arrays.

Nothing of it is believed: every offset, length and count of a foreign file is checked before it is used.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pmtiles.tile import Compression, HeaderDict, TileType, deserialize_header

from rsp.shared.errors import TileSetError
from rsp.shared.tileset.base import FORMATS
from rsp.shared.tileset.hilbert import END

TILE_TYPES = {"png": TileType.PNG, "jpg": TileType.JPEG, "webp": TileType.WEBP, "tif": TileType.UNKNOWN}
MAGIC = b"PMTiles\x03"
HEADER_SIZE = 127

# Of one directory, packed and unpacked. Writers keep them to some 10 KB; an entry has four bytes at least.
MAX_PACKED = 16 << 20
MAX_UNPACKED = 16 << 20
# Of a tile, in bytes: the format has 32 bits for it.
MAX_TILE = (1 << 32) - 1

# An archive with more tiles than this is damaged, or not one of ours: their list would fill the memory.
MAX_TILES = 1 << 27

# Of the root directory, packed: as `pmtiles` has it, so that it is among the first 16 KiB with the header. Entries
# of a leaf directory, which are doubled until the root is small enough.
ROOT_SIZE, LEAF_ENTRIES = 16_384 - HEADER_SIZE, 4096

# Entries that are put into bytes at once.
PLAIN = 1 << 14

# A directory, those below it, and those below these: nobody nests them deeper.
MAX_DEPTH = 4


class DamagedError(ValueError):
    """An archive that cannot be what it says."""


def read_header(data: bytes, size: int) -> HeaderDict:
    """Return the header of an archive.

    Args:
        data: Its first bytes, 127 at least.
        size: Of the whole file.

    Raises:
        DamagedError: it says of itself what cannot be.
    """
    if len(data) < HEADER_SIZE:
        raise DamagedError("it ends within its header")
    try:
        header = deserialize_header(data[:HEADER_SIZE])
    except (LookupError, ValueError) as error:
        raise DamagedError(str(error)) from error
    places = (
        ("root directory", header["root_offset"], header["root_length"], MAX_PACKED),
        ("metadata", header["metadata_offset"], header["metadata_length"], size),
        ("leaf directories", header["leaf_directory_offset"], header["leaf_directory_length"], size),
        ("tiles", header["tile_data_offset"], 0, size),
    )
    for name, offset, length, most in places:
        if offset + length > size:
            raise DamagedError(f"it ends before its {name}")
        if length > most:
            raise DamagedError(f"its {name} would have {length} bytes")
    if not header["root_length"]:
        raise DamagedError("it has no root directory")
    return header


def image_format(header: HeaderDict, metadata: Callable[[], Mapping[str, Any]], where: object) -> str:
    """Return the format of an archive's tiles.

    Args:
        header: Of the archive.
        metadata: Asked where the header does not say.
        where: The archive, for messages.

    Raises:
        TileSetError: they are no images that the tools read.
    """
    if header["tile_compression"] not in (Compression.NONE, Compression.UNKNOWN):
        raise TileSetError(
            f"the tiles of {where} are compressed a second time, as vector tiles are; they are not images"
        )
    known: dict[TileType, str] = {kind: name for name, kind in TILE_TYPES.items() if name != "tif"}
    kind = header["tile_type"]
    if kind not in known and kind != TileType.UNKNOWN:
        raise TileSetError(f"the tiles of {where} are {kind.name}: not images that the tools read")
    return known.get(kind) or FORMATS.get(str(metadata().get("format")), "tif")


def unpack(data: bytes, compression: Compression, limit: int) -> bytes:
    """Return decompressed bytes; raise `DamagedError` where they are damaged, or more than `limit`."""
    if compression == Compression.NONE:
        return data
    if compression not in (Compression.GZIP, Compression.UNKNOWN):
        raise DamagedError(f"its directories are compressed as {compression.name}; only gzip is read")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise DamagedError(str(error)) from error
    if unpacker.unconsumed_tail:
        raise DamagedError(f"a directory or its metadata would have more than {limit} bytes")
    if not unpacker.eof:
        raise DamagedError("a directory or its metadata ends early")
    return unpacked


@dataclass(frozen=True)
class Directory:
    """The entries of a directory, sorted by id.

    An entry is a run of tiles that share their data, or another directory, where `runs` is 0.

    Attributes:
        ids: The first tile of each entry.
        runs: How many tiles each entry stands for.
        offsets: Where its data begins: among the tiles, or among the leaf directories.
        lengths: Of its data, in bytes.
    """

    ids: NDArray[np.uint64]
    runs: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint64]

    def __len__(self) -> int:
        """The number of entries."""
        return len(self.ids)

    def part(self, start: int, end: int) -> Directory:
        """Return some of its entries."""
        return Directory(
            self.ids[start:end], self.runs[start:end], self.offsets[start:end], self.lengths[start:end]
        )

    @property
    def nbytes(self) -> int:
        """What it takes of the memory."""
        return 32 * len(self.ids)

    @property
    def end(self) -> int:
        """The id after its last tile, of a directory with entries."""
        return int(self.ids[-1]) + max(int(self.runs[-1]), 1)

    @property
    def leaves(self) -> NDArray[np.bool_]:
        """Which entries are directories."""
        return self.runs == 0

    def entry(self, tile_id: int) -> int:
        """Return the entry that a tile belongs to, -1 where there is none."""
        found = int(self.ids.searchsorted(np.uint64(tile_id), "right")) - 1
        if found < 0:
            return -1
        run = int(self.runs[found])
        return found if not run or tile_id - int(self.ids[found]) < run else -1

    def tiles(self, most: int) -> Iterator[NDArray[np.uint64]]:
        """Yield the ids of its tiles, so many at a time: a few entries may stand for millions."""
        ends = np.cumsum(self.runs)
        for first in range(0, int(ends[-1]) if len(ends) else 0, most):
            places = np.arange(first, min(first + most, int(ends[-1])), dtype=np.uint64)
            entries = np.searchsorted(ends, places, "right")
            yield self.ids[entries] + places - (ends - self.runs)[entries]

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return for each tile the entry that it belongs to, -1 where there is none."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        found = np.searchsorted(self.ids, ids, "right") - 1
        entry = np.maximum(found, 0)
        within = (self.runs[entry] == 0) | (ids - self.ids[entry] < self.runs[entry])
        return np.where((found >= 0) & within, entry, -1)


def check_leaf(parent: Directory, entry: int, leaf: Directory) -> Directory:
    """Return a leaf directory; raise `DamagedError` where it is not what an entry of its parent is to lead to."""
    if not len(leaf.ids):
        raise DamagedError("a leaf directory is empty")
    last = entry + 1 == len(parent.ids)
    # As whole numbers of Python: to compare two of numpy takes longer.
    if int(leaf.ids[0]) < int(parent.ids[entry]) or not (last or leaf.end <= int(parent.ids[entry + 1])):
        raise DamagedError("a leaf directory has tiles that its parent does not send there")
    return leaf


def read_directory(data: bytes, compression: Compression, tiles: int, leaves: int) -> Directory:
    """Return a directory.

    Args:
        data: As it stands in the archive.
        compression: Of it.
        tiles: How many bytes there are for tiles.
        leaves: How many bytes there are for leaf directories.

    Raises:
        DamagedError: an entry that overlaps another, or lies outside of the archive.
    """
    values = _varints(unpack(data, compression, MAX_UNPACKED))
    count = int(values[0]) if len(values) else -1
    # Most are four columns of equal length.
    if count < 0 or len(values) - 1 != 4 * count:
        raise DamagedError("a directory has not as many entries as it says")
    steps, runs, lengths, gaps = values[1:].reshape(4, count)
    ids = np.cumsum(steps)
    directory = Directory(ids, runs, _offsets(gaps, lengths), lengths)
    _check(directory, tiles, leaves)
    return directory


def _varints(data: bytes) -> NDArray[np.uint64]:
    """Return numbers of 7 bits a byte, least first; the top bit says that there are more."""
    octets = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(octets < 0x80)
    if not len(octets) or not len(last) or last[-1] != len(octets) - 1:
        raise DamagedError("a directory ends within a number")
    values = octets[last].astype(np.uint64)
    if len(last) == len(octets):
        return values
    sizes = np.diff(last, prepend=-1)
    if sizes.max() > 8:
        raise DamagedError("a directory holds a number that no archive needs")
    # Most numbers are of one octet: only others are put together.
    longer, before = np.flatnonzero(sizes > 1), 1
    values[longer] <<= (7 * (sizes[longer] - 1)).astype(np.uint64)
    while len(longer):
        shifts = (7 * (sizes[longer] - 1 - before)).astype(np.uint64)
        values[longer] |= (octets[last[longer] - before] & 0x7F).astype(np.uint64) << shifts
        before += 1
        longer = longer[sizes[longer] > before]
    return values


def _offsets(gaps: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return where each entry lies: what is written is 0 where it follows its predecessor, else the offset + 1."""
    if not len(gaps):
        return gaps
    if not gaps[0]:
        raise DamagedError("its first entry lies behind nothing")
    before = np.cumsum(lengths) - lengths
    if not gaps[1:].any():
        return before + (gaps[0] - np.uint64(1))
    # The last entry at or before each that says where it lies.
    told = np.maximum.accumulate(np.where(gaps > 0, np.arange(len(gaps)), 0))
    return gaps[told] - np.uint64(1) - before[told] + before


def _check(directory: Directory, tiles: int, leaves: int) -> None:
    ids, runs, offsets, lengths = directory.ids, directory.runs, directory.offsets, directory.lengths
    if not len(ids):
        return
    # Eight bytes hold 56 bits, so that sums of two never wrap, and sums of many only where they exceed these.
    ends = ids + np.maximum(runs, 1)
    if int(ends.max()) > END or bool((ends[:-1] > ids[1:]).any()) or bool((ends <= ids).any()):
        raise DamagedError("entries of a directory overlap, or are no tiles")
    if not lengths.all():
        raise DamagedError("an entry of a directory has no bytes")
    limits = np.where(directory.leaves, np.uint64(leaves), np.uint64(tiles))
    if bool((lengths > limits).any()) or bool((offsets > limits - lengths).any()):
        raise DamagedError("it ends before its last tile")
    if int(lengths.max()) > MAX_TILE:
        raise DamagedError(f"a tile would have {int(lengths.max())} bytes")
    if bool((lengths[directory.leaves] > MAX_PACKED).any()):
        raise DamagedError("a directory is too large")


class Entries(Protocol):
    """The entries of an archive that is to be written, which need not all be there at once: `Directory` is one."""

    def __len__(self) -> int: ...

    def part(self, start: int, end: int) -> Directory:
        """Return some of them."""
        ...


def pack_directories(entries: Entries) -> tuple[bytes, list[bytes]]:
    """Return the root directory, and all leaf directories, of an archive with these entries.

    They are the same to the byte as those that the package `pmtiles` writes.
    """
    root = _small(entries)
    if root is not None:
        return root, []
    size = LEAF_ENTRIES
    while True:
        firsts, packed = [], []
        for first in range(0, len(entries), size):
            leaf = entries.part(first, first + size)
            firsts.append(leaf.ids[0])
            packed.append(pack(b"".join(_plain(leaf))))
        lengths = np.array([len(each) for each in packed], np.uint64)
        upper = Directory(np.array(firsts), np.zeros_like(lengths), np.cumsum(lengths) - lengths, lengths)
        root = _small(upper)
        if root is not None:
            return root, packed
        size *= 2


def pack(data: bytes) -> bytes:
    """Return what stands in an archive for a directory, or its metadata."""
    return gzip.compress(data, mtime=0)


def _small(entries: Entries) -> bytes | None:
    """Return a packed root directory, None where it would be too large; a large one is not packed to its end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    size, parts = 0, []
    for part in _plain(entries):
        parts.append(part)
        size += len(packer.compress(part))
        if size >= ROOT_SIZE:
            return None
    root = pack(b"".join(parts))
    return root if len(root) < ROOT_SIZE else None


def _plain(entries: Entries) -> Iterator[bytes]:
    """Yield a directory as bytes, in parts: its size, and four columns, of steps from one entry to the next."""
    count = len(entries)
    yield _octets(np.array([count], np.uint64))
    for column in (_steps, _runs, _lengths, _gaps):
        # The entry before, which each part begins after.
        before = Directory(*(np.zeros(1, np.uint64) for _ in range(4)))
        for start in range(0, count, PLAIN):
            part = entries.part(start, start + PLAIN)
            yield _octets(column(part, before))
            before = part.part(len(part) - 1, len(part))


def _steps(part: Directory, before: Directory) -> NDArray[np.uint64]:
    return np.diff(part.ids, prepend=before.ids)


def _runs(part: Directory, before: Directory) -> NDArray[np.uint64]:
    return part.runs


def _lengths(part: Directory, before: Directory) -> NDArray[np.uint64]:
    return part.lengths


def _gaps(part: Directory, before: Directory) -> NDArray[np.uint64]:
    """Return where entries lie, 0 where each follows the one before; the first of all never does."""
    ends = np.append(before.offsets + before.lengths, part.offsets[:-1] + part.lengths[:-1])
    follows = part.offsets == ends
    follows[0] &= bool(before.lengths[0])
    return np.where(follows, np.uint64(0), part.offsets + np.uint64(1))


def _octets(values: NDArray[np.uint64]) -> bytes:
    """Return numbers as `_varints` reads them."""
    shifts = np.uint64(7) * np.arange(1, 9, dtype=np.uint64)
    more = [values >> shift > 0 for shift in shifts]  # whether an octet follows
    sizes = 1 + np.sum(more, axis=0)
    ends = np.cumsum(sizes)
    octets = np.empty(int(ends[-1]), np.uint8)
    starts = ends - sizes
    octets[starts] = values & np.uint64(0x7F) | np.uint64(0x80) * more[0]
    for place, shift in enumerate(shifts[:-1], 1):
        longer = np.flatnonzero(more[place - 1])
        if not len(longer):
            break
        octets[starts[longer] + place] = (
            values[longer] >> shift & np.uint64(0x7F) | np.uint64(0x80) * more[place][longer]
        )
    return octets.tobytes()
