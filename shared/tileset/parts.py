"""Tiles that lie in open files, before an archive is made of them: sixteen bytes a tile."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rsp.shared.errors import TileSetError

Ids = NDArray[np.uint64]
Numbers = NDArray[np.uint32]

# Tiles that are looked up at once: what is in between takes some fifty bytes of each.
BLOCK = 1 << 15
# Spans whose samples are taken at once: the pages around them count as memory of ours until they are given back.
SAMPLED = 1 << 8


class Held(Protocol):
    """An open file that knows where the data of its tiles lie, so that nobody has to remember."""

    @property
    def path(self) -> object:
        """Where the file is, for messages."""
        ...

    @property
    def file(self) -> int:
        """The descriptor of the file."""
        ...

    def places(self, ids: Ids, records: Numbers) -> tuple[Ids, Ids]:
        """Return where the data of tiles begin in the file, and their lengths; 0 where there are none.

        Args:
            ids: The tiles, sorted.
            records: Which record of the file each one is, where they are numbered.
        """
        ...


class Parts(NamedTuple):
    """Tiles that lie in open files.

    Attributes:
        ids: Of the tiles.
        files: Where each one lies: the number of a file. One number where all lie in the same.
        records: Which record of that file each one is; None where they are counted from 0.
        sizes: Of their data, in bytes.
        samples: Numbers that are the same where data are, and most often only there.
    """

    ids: Ids
    files: NDArray[np.uint8] | int
    records: Numbers | None
    sizes: Numbers
    samples: Numbers

    @classmethod
    def of(cls, ids: Ids, number: int, held: Held, start: int = 0) -> Parts:
        """Return tiles that lie in one file.

        Args:
            ids: The tiles, in the order of their records where these are numbered.
            number: Of the file.
            held: The file.
            start: Which record the first of them is.

        Raises:
            TileSetError: the file has not all of them.
        """
        sizes, samples = np.empty(len(ids), np.uint32), np.empty(len(ids), np.uint32)
        with _Sampler(held.file) as sampler:
            for some in blocks(len(ids)):
                records = np.arange(start + some.start, start + some.stop, dtype=np.uint32)
                offsets, lengths = held.places(ids[some], records)
                if not lengths.all():
                    raise TileSetError(f"{held.path} has not all of the tiles that are to be taken from it")
                sizes[some], samples[some] = lengths, sampler.samples(offsets, lengths)
        numbered = np.arange(start, start + len(ids), dtype=np.uint32) if start else None
        return cls(ids, number, numbered, sizes, samples)

    @classmethod
    def joined(cls, parts: list[Parts]) -> Parts:
        """Return tiles of several, sorted, each once: the last of an id counts. The list is empty afterwards."""
        parts[:] = [part for part in parts if len(part.ids)]
        if not parts:
            none = np.empty(0, np.uint32)
            return cls(np.empty(0, np.uint64), 0, None, none, none)
        if len(parts) == 1 and _ascend(parts[0].ids):
            return parts.pop()
        counts = [len(part.ids) for part in parts]
        files: NDArray[np.uint8] | int = parts[0].files
        if len(parts) > 1:
            files = np.repeat(np.array([part.files for part in parts], np.uint8), counts)
        records = np.concatenate([np.arange(n, dtype=np.uint32) if p.records is None else p.records
                                  for p, n in zip(parts, counts, strict=True)])  # fmt: skip
        sizes, samples = (np.concatenate([part[column] for part in parts]) for column in (3, 4))
        ids = np.concatenate([part.ids for part in parts])
        parts.clear()
        order = np.argsort(ids, kind="stable").astype(np.uint32)
        ids.sort()
        last = np.append(ids[1:] != ids[:-1], True)
        if not last.all():
            ids, order = ids[last], order[last]
        del last
        records, sizes, samples = records[order], sizes[order], samples[order]
        return cls(ids, files if isinstance(files, int) else files[order], records, sizes, samples)

    def places(self, held: Sequence[Held], wanted: slice | Numbers) -> tuple[NDArray[np.uint8], Ids, Ids]:
        """Return the file of some of the tiles, where their data begin in it, and their lengths.

        Args:
            held: The files, by number.
            wanted: Which tiles, ascending.
        """
        ids = self.ids[wanted]
        if self.records is None:
            some = np.arange(len(self.ids), dtype=np.uint32)[wanted] if isinstance(wanted, slice) else wanted
        else:
            some = self.records[wanted]
        if isinstance(self.files, int):
            return np.full(len(ids), self.files, np.uint8), *held[self.files].places(ids, some)
        files = self.files[wanted]
        offsets, lengths = np.empty(len(ids), np.uint64), np.empty(len(ids), np.uint64)
        for number in np.unique(files).tolist():
            within = files == number
            offsets[within], lengths[within] = held[number].places(ids[within], some[within])
        return files, offsets, lengths


def _ascend(ids: Ids) -> bool:
    """Tell whether each is above the one before."""
    return all(bool((ids[1:][some] > ids[:-1][some]).all()) for some in blocks(max(len(ids) - 1, 0)))


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of what is worked on at once."""
    for first in range(0, count, BLOCK):
        yield slice(first, min(first + BLOCK, count))


class _Sampler:
    """Takes samples of the data in a file. Use it as a context manager."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._memory: mmap.mmap | None = None

    def __enter__(self) -> _Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._memory is not None:
            # Where an error is on its way, its traceback holds on to what was read: the map goes away with it.
            with suppress(BufferError):
                self._memory.close()

    def samples(self, offsets: Ids, lengths: Ids) -> Numbers:
        """Return numbers that are the same where data are, and most often only there: of a few bytes of each.

        The last bytes hold the checksum of a PNG and the end of what others code; some of the middle are added.
        """
        found = lengths * np.uint64(0x9E3779B97F4A7C15)
        wide = np.flatnonzero(lengths >= 32)
        if len(wide):
            if self._memory is None:
                self._memory = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
            for first in range(0, len(wide), SAMPLED):
                some = wide[first : first + SAMPLED]
                found[some] = _sampled(
                    self._memory, offsets[some].astype(np.int64), lengths[some].astype(np.int64), found[some]
                )
                self._memory.madvise(mmap.MADV_DONTNEED)
        return (found >> np.uint64(32)).astype(np.uint32)


def _sampled(memory: mmap.mmap, offsets: NDArray[np.int64], lengths: NDArray[np.int64], found: Ids) -> Ids:
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
