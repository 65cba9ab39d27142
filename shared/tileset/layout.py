"""How tiles that lie in files become an archive: equal ones once, in the order of PMTiles, their bytes copied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rsp.shared.errors import StorageError
from rsp.shared.tileset.entries import Directory
from rsp.shared.tileset.journal import read_at
from rsp.shared.tileset.parts import Held, Ids, Numbers, Parts, blocks

# Bytes that are read at once, and parts that lie so near to each other that what is between is read with them.
BLOCK, GAP = 1 << 20, 4 << 10
# Tiles of which it is known where their data begin in the archive; of those between these it is added up.
STEP = 1 << 12
# Tiles whose stretches are looked for at once.
STRETCH = 1 << 8
# Places whose contents are remembered while equal tiles are looked for.
REMEMBERED = 1 << 14


class Layout:
    """An archive that is to be written.

    What it consists of is worked out when it is asked for, some entries or tiles at a time.

    Args:
        taken: The tiles, the last of an id counts. The list is empty afterwards: what is in it takes memory.
        held: The files in which they lie, by number.

    Attributes:
        contents: How many different tiles there are.
        size: Of these together, in bytes.
    """

    def __init__(self, taken: list[Parts], held: Sequence[Held]) -> None:
        parts = Parts.joined(taken)
        alike = _repeated(parts.samples)
        self._parts, self._held = parts._replace(samples=np.empty(0, np.uint32)), held
        del parts
        self._firsts = _firsts(self._parts, held, alike)
        self.contents, self.size = self._place()
        self._starts = self._begin()

    def _place(self) -> tuple[int, int]:
        """Note where the data of tiles are to begin; return how many different ones there are, and their size."""
        count, contents, end = len(self._parts.ids), 0, 0
        every, steps = self._firsts is None, []
        self._begins = np.empty(0 if every else count, np.uint64)
        for first in range(0, count, STEP):
            some = slice(first, min(first + STEP, count))
            own, sizes = self._own(some), self._parts.sizes[some].astype(np.uint64)
            sizes[~own] = 0
            steps.append(end)
            if self._firsts is not None:
                begins = end + np.cumsum(sizes) - sizes
                self._begins[some] = begins
                later = np.flatnonzero(~own)
                self._begins[first + later] = self._begins[self._firsts[some][later]]
            contents, end = contents + int(own.sum()), end + int(sizes.sum())
        self._steps = np.array(steps, np.uint64)
        return contents, end

    def _own(self, some: slice) -> NDArray[np.bool_]:
        """Tell of tiles whether they are the first that hold what they hold."""
        if self._firsts is None:
            return np.ones(some.stop - some.start, bool)
        found: NDArray[np.bool_] = self._firsts[some] == np.arange(some.start, some.stop)
        return found

    def _offsets(self, first: int, last: int) -> Ids:
        """Return where the data of tiles are to begin, among the tiles."""
        if self._firsts is not None:
            return self._begins[first:last]
        start = first // STEP * STEP
        sizes = self._parts.sizes[start:last].astype(np.uint64)
        return (self._steps[start // STEP] + np.cumsum(sizes) - sizes)[first - start :]

    def _begin(self) -> Numbers | None:
        """Return the tiles that begin an entry, None where all do.

        A tile goes on with the run of its predecessor where it is the next one, and the same.
        """
        if self._firsts is None:
            return None
        ids, found = self._parts.ids, []
        for some in blocks(len(ids)):
            before = slice(max(some.start - 1, 0), some.stop)
            near, offsets = ids[before], self._begins[before]
            apart = (near[1:] != near[:-1] + np.uint64(1)) | (offsets[1:] != offsets[:-1])
            starts = np.flatnonzero(apart) + before.start + 1
            found.append((np.append(0, starts) if not some.start else starts).astype(np.uint32))
        return np.concatenate(found)

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._parts.ids) if self._starts is None else len(self._starts)

    @property
    def ids(self) -> Ids:
        """All tiles, sorted."""
        return self._parts.ids

    def part(self, start: int, end: int) -> Directory:
        """Return some of its entries."""
        end = min(end, len(self))
        if self._starts is None:
            runs = np.ones(end - start, np.uint64)
            offsets, sizes = self._offsets(start, end), self._parts.sizes[start:end].astype(np.uint64)
            return Directory(self.ids[start:end], runs, offsets, sizes)
        starts = self._starts[start:end]
        after = self._starts[end] if end < len(self) else len(self.ids)
        runs = np.diff(np.append(starts, np.uint32(after))).astype(np.uint64)
        return Directory(self.ids[starts], runs, self._begins[starts], self._parts.sizes[starts].astype(np.uint64))

    def first(self) -> bytes:
        """Return the data of the first tile; there must be one."""
        (number,), (offset,), (length,) = self._parts.places(self._held, slice(0, 1))
        return read_at(self._held[number].file, int(offset), int(length))

    def stored(self) -> Iterator[bytes]:
        """Yield the stored tiles one behind the other, in blocks; neighbours are read together.

        To let the kernel copy (`copy_file_range`, `sendfile`) takes as much of the CPU.

        Raises:
            StorageError: a file has become shorter.
        """
        waiting: list[bytes | memoryview] = []
        size = 0
        for number, start, cuts in _reads(self._stretches()):
            end = cuts[-1][1]
            data = read_at(self._held[number].file, start, end - start)
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

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """Yield the file, the beginning and the end of what lies together, of the stored tiles in their order."""
        for some in blocks(len(self.ids)):
            files, starts, lengths = self._parts.places(self._held, some)
            if self._firsts is not None:
                own = self._own(some)
                files, starts, lengths = files[own], starts[own], lengths[own]
            if (lengths != self._parts.sizes[some][self._own(some)]).any():
                raise StorageError("a tile set was changed while it was copied")
            for first in range(0, len(files), STRETCH):
                near = slice(first, first + STRETCH)
                yield from _together(files[near], starts[near], lengths[near])


def _together(files: NDArray[np.uint8], starts: Ids, lengths: Ids) -> Iterator[tuple[int, int, int]]:
    ends = starts + lengths
    apart = np.append(True, (files[1:] != files[:-1]) | (starts[1:] != ends[:-1]))
    firsts = np.flatnonzero(apart)
    lasts = np.append(firsts[1:], len(starts)) - 1
    yield from zip(files[firsts].tolist(), starts[firsts].tolist(), ends[lasts].tolist(), strict=True)


def _reads(stretches: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield what is read together: a file, where that begins, and where each wanted stretch begins and ends."""
    file, start, cuts = -1, 0, list[tuple[int, int]]()
    for number, first, last in stretches:
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


# --- equal tiles ----------------------------------------------------------------------------------------------


def _firsts(parts: Parts, held: Sequence[Held], alike: Numbers) -> Numbers | None:
    """Return for each tile which is the first that holds the same, None where all are different.

    Args:
        parts: The tiles.
        held: The files in which they lie.
        alike: Those that may be the same as another, ascending.
    """
    if not len(alike):
        return None
    digests = _digests(parts, held, alike)
    contents = np.sort(digests)
    distinct = np.append(True, contents[1:] != contents[:-1])
    if distinct.all():
        return None
    contents = contents[distinct]
    del distinct
    firsts, earliest = np.arange(len(parts.ids), dtype=np.uint32), np.zeros(len(contents), np.uint32)
    known = np.zeros(len(contents), bool)
    for some in blocks(len(alike)):
        places = np.searchsorted(contents, digests[some])
        new = np.flatnonzero(~known[places])[::-1]
        earliest[places[new]] = alike[some][new]  # of several the last assignment counts, which is the first tile
        known[places[new]] = True
        firsts[alike[some]] = earliest[places]
    return firsts


def _repeated(numbers: Numbers) -> Numbers:
    """Return where those numbers stand that are there more than once, ascending."""
    ordered = np.sort(numbers)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    twice = twice[np.append(True, twice[1:] != twice[:-1])[: len(twice)]]
    if not len(twice):
        return np.empty(0, np.uint32)
    del ordered
    found = []
    for some in blocks(len(numbers)):
        places = np.minimum(np.searchsorted(twice, numbers[some]), len(twice) - 1)
        found.append((np.flatnonzero(twice[places] == numbers[some]) + some.start).astype(np.uint32))
    return np.concatenate(found)


def _digests(parts: Parts, held: Sequence[Held], alike: Numbers) -> Ids:
    """Return what tells the contents of tiles apart; what lies in one place is read once, if it is not far apart.

    Eight bytes of a hash with a key are enough: without the key nobody makes two tiles that have the same, and
    among 10^7 tiles it happens by chance in one of 300,000 archives.
    """
    key = os.urandom(16)
    digests = np.empty(len(alike), np.uint64)
    known: dict[tuple[int, int, int], int] = {}
    for some in blocks(len(alike)):
        columns = (column.tolist() for column in parts.places(held, alike[some]))
        for index, place in enumerate(zip(*columns, strict=True), some.start):
            digest = known.get(place)
            if digest is None:
                data = read_at(held[place[0]].file, *place[1:])
                digest = known[place] = int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little")
                if len(known) > REMEMBERED:
                    for oldest in list(islice(known, REMEMBERED // 2)):
                        del known[oldest]
            digests[index] = digest
    return digests
