"""How tiles that lie in files become an archive: equal ones once, in the order of PMTiles, their bytes copied."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsp.shared.errors import StorageError
from rsp.shared.tileset.entries import Directory
from rsp.shared.tileset.journal import read_at

Ids = NDArray[np.uint64]
Indices = NDArray[np.int64]

# Bytes that are read at once, and parts that lie so near to each other that what is between is read with them.
BLOCK, GAP = 4 << 20, 4 << 10
# Spans whose samples are taken at once: the pages around them count as memory of ours until they are given back.
SAMPLED = 1 << 8


class Parts(NamedTuple):
    """Tiles that lie in open files.

    Attributes:
        ids: Of the tiles.
        files: Where each one lies: the number of a file.
        offsets: Where its data begin in that file.
        lengths: Of its data, in bytes.
    """

    ids: Ids
    files: NDArray[np.uint8]
    offsets: Ids
    lengths: Ids

    @classmethod
    def of(cls, ids: Ids, file: int, offsets: Ids, lengths: Ids) -> Parts:
        """Return tiles that lie in one file."""
        return cls(ids, np.full(len(ids), file, np.uint8), offsets, lengths)

    @classmethod
    def joined(cls, parts: Sequence[Parts]) -> Parts:
        """Return tiles of several, sorted, each once: the last of an id counts."""
        if not parts:
            none = np.empty(0, np.uint64)
            return cls(none, np.empty(0, np.uint8), none, none)
        if len(parts) == 1 and (parts[0].ids[1:] > parts[0].ids[:-1]).all():
            return parts[0]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        ids = columns[0][order]
        last = np.append(ids[1:] != ids[:-1], True)[: len(ids)]
        return cls(*(column[order[last]] for column in columns))


class Layout(NamedTuple):
    """An archive that is to be written.

    Attributes:
        directory: All its entries.
        files: In which file each stored tile lies, in the order in which the archive has them.
        offsets: Where they begin in that file.
        lengths: Of them, in bytes.
    """

    directory: Directory
    files: NDArray[np.uint8]
    offsets: Ids
    lengths: Ids

    @property
    def size(self) -> int:
        """Of all stored tiles, in bytes."""
        return int(self.lengths.sum())


def lay_out(parts: Parts, files: Sequence[int]) -> Layout:
    """Return how the archive of some tiles looks.

    Args:
        parts: The tiles, sorted.
        files: Open files, by number.
    """
    contents, firsts = _contents(parts, files)
    lengths = parts.lengths[firsts]
    offsets = np.cumsum(lengths) - lengths
    if contents is not None:
        offsets = offsets[contents]
    ids = parts.ids
    # A tile goes on with the run of its predecessor where it is the next one, and the same.
    begins = np.ones(len(ids), bool)
    begins[1:] = (ids[1:] != ids[:-1] + np.uint64(1)) | (offsets[1:] != offsets[:-1])
    starts = np.flatnonzero(begins)
    runs = np.diff(np.append(starts, len(ids))).astype(np.uint64)
    directory = Directory(ids[starts], runs, offsets[starts], parts.lengths[starts])
    return Layout(directory, parts.files[firsts], parts.offsets[firsts], lengths)


def _contents(parts: Parts, files: Sequence[int]) -> tuple[Indices | None, Indices | slice]:
    """Return the number of what each tile holds, counted as they first appear, and which tile that is.

    Where no two tiles are equal there is no need for numbers: the first of the two is None.
    """
    firsts = _firsts(parts, files)
    if firsts is None:
        return None, slice(None)
    own = firsts == np.arange(len(firsts))
    return (np.cumsum(own) - 1)[firsts], np.flatnonzero(own)


def _firsts(parts: Parts, files: Sequence[int]) -> Indices | None:
    """Return for each tile which is the first that holds the same, None where all are different."""
    samples = np.empty(len(parts.ids), np.uint64)
    for number, file in enumerate(files):
        within = np.flatnonzero(parts.files == number) if len(files) > 1 else slice(None)
        samples[within] = _samples(file, parts.offsets[within], parts.lengths[within])
    alike = _repeated(samples)
    if not len(alike):
        return None
    firsts = np.arange(len(samples))
    places: dict[tuple[int, int, int], int] = {}
    known: dict[bytes, int] = {}
    # Only what looks the same is read whole, and what lies in one place only once.
    columns = (column[alike].tolist() for column in (parts.files, parts.offsets, parts.lengths))
    for index, place in zip(alike.tolist(), zip(*columns, strict=True), strict=True):
        first = places.get(place)
        if first is None:
            data = read_at(files[place[0]], *place[1:])
            first = places[place] = known.setdefault(blake2b(data, digest_size=16).digest(), index)
        firsts[index] = first
    return firsts


def _repeated(numbers: Ids) -> Indices:
    """Return where those numbers stand that are there more than once, ascending."""
    order = np.argsort(numbers)
    ordered = numbers[order]
    same = np.zeros(len(order), bool)
    same[1:] = ordered[1:] == ordered[:-1]
    same[:-1] |= same[1:]
    return np.sort(order[same])


def _samples(file: int, offsets: Ids, lengths: Ids) -> Ids:
    """Return numbers that are the same where data are, and most often only there: of a few bytes of each.

    The last bytes hold the checksum of a PNG and the end of what others code; some of the middle are added.
    """
    found = lengths * np.uint64(0x9E3779B97F4A7C15)
    wide = np.flatnonzero(lengths >= 32)
    if not len(wide):
        return found
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as memory:
        for first in range(0, len(wide), SAMPLED):
            some = wide[first : first + SAMPLED]
            found[some] = _sampled(
                memory, offsets[some].astype(np.int64), lengths[some].astype(np.int64), found[some]
            )
            memory.madvise(mmap.MADV_DONTNEED)
    return found


def _sampled(memory: mmap.mmap, offsets: Indices, lengths: Indices, found: Ids) -> Ids:
    data = np.frombuffer(memory, np.uint8)
    for places in (
        offsets + lengths // 2 - 4,
        offsets + lengths - 8,
        offsets + lengths - 16,
        offsets + lengths - 24,
    ):
        words = data[places[:, np.newaxis] + np.arange(8)].view("<u8").ravel()
        found = (found ^ words) * np.uint64(0xBF58476D1CE4E5B9)
        found = found ^ found >> np.uint64(29)
    return found


def read_stored(layout: Layout, files: Sequence[int]) -> Iterator[bytes]:
    """Yield the stored tiles of an archive one behind the other, in blocks; neighbours are read together.

    To let the kernel copy (`copy_file_range`, `sendfile`) takes as much of the CPU.

    Raises:
        StorageError: a file has become shorter.
    """
    waiting: list[bytes | memoryview] = []
    size = 0
    for file, start, cuts in _reads(layout):
        end = cuts[-1][1]
        data = read_at(files[file], start, end - start)
        if len(data) != end - start:
            raise StorageError("a tile set ends before its last tile: it was changed while it was copied")
        if len(cuts) == 1:
            waiting.append(data)
        else:
            view = memoryview(data)
            waiting += [view[first - start : last - start] for first, last in cuts]
        size += len(data)
        if size >= BLOCK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _reads(layout: Layout) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield what is read together: a file, where that begins, and where each wanted stretch begins and ends."""
    file, start, cuts = -1, 0, list[tuple[int, int]]()
    for number, first, last in _stretches(layout):
        for begin in range(first, last, BLOCK):
            end = min(begin + BLOCK, last)
            if cuts and number == file and 0 <= begin - cuts[-1][1] <= GAP and end - start <= BLOCK:
                cuts.append((begin, end))
                continue
            if cuts:
                yield file, start, cuts
            file, start, cuts = number, begin, [(begin, end)]
    if cuts:
        yield file, start, cuts


def _stretches(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Yield the file, the beginning and the end of what lies together."""
    for first in range(0, len(layout.files), SAMPLED):
        files, starts, lengths = (column[first : first + SAMPLED] for column in layout[1:])
        ends = starts + lengths
        apart = np.append(True, (files[1:] != files[:-1]) | (starts[1:] != ends[:-1]))
        firsts = np.flatnonzero(apart)
        lasts = np.append(firsts[1:], len(starts)) - 1
        yield from zip(files[firsts].tolist(), starts[firsts].tolist(), ends[lasts].tolist(), strict=True)
