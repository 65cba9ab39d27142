"""Polygons put by until their block of tiles is burnt: in memory, and in a temporary file once they are many."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.atomic import temporary_prefix
from rsp.shared.errors import StorageError

Indices = npt.NDArray[np.int64]
Polygons = npt.NDArray[np.object_]

# So many points are held in memory, 16 bytes each and some hundreds for every polygon; then they go to the disk.
POINTS = 250_000

# So many bytes of them are read back at once.
BYTES = 16 * POINTS


class Group(NamedTuple):
    """Some polygons of a block.

    Attributes:
        polygons: In metres of EPSG:3857.
        layer: What each is burnt as.
    """

    polygons: Polygons
    layer: npt.NDArray[np.uint16]


class Shelf:
    """Takes polygons by block, in any order, and says where those of a block are found.

    Use it as a context manager: leaving it removes the temporary files.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Indices, Polygons, npt.NDArray[np.uint16]]] = []
        self._points = self._bytes = 0
        self._runs = [0]
        self._folder: Path | None = None
        self._sorted: tuple[Indices, Polygons, npt.NDArray[np.uint16]] | None = None

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, block: Indices, polygons: Polygons, layer: npt.NDArray[np.uint16]) -> None:
        """Put polygons by.

        Raises:
            StorageError: they are too many for the memory, and the disk refuses them.
        """
        self._held.append((block, polygons, layer))
        self._points += int(shapely.get_num_coordinates(polygons).sum()) + len(polygons)
        if self._points > POINTS:
            self._write()

    def finish(self) -> Path | None:
        """Return the folder that holds all polygons; None where they are in memory, for `held`."""
        if self._folder is not None:
            self._write()
        else:
            self._sorted = self._gathered()
        return self._folder

    def held(self, block: int) -> list[Group]:
        """Return the polygons of a block that are in memory."""
        if self._sorted is None:
            return []
        blocks, polygons, layer = self._sorted
        start, end = np.searchsorted(blocks, [block, block + 1])
        return [Group(polygons[start:end], layer[start:end])] if end > start else []

    def _gathered(self) -> tuple[Indices, Polygons, npt.NDArray[np.uint16]] | None:
        """Return what is held, sorted by block, and hold it no more."""
        if not self._held:
            return None
        block, polygons, layer = (np.concatenate(column) for column in zip(*self._held, strict=True))
        self._held, self._points = [], 0
        order = np.argsort(block, kind="stable")
        return block[order], polygons[order], layer[order]

    def _write(self) -> None:
        found = self._gathered()
        if found is None:
            return
        block, polygons, layer = found
        try:
            if self._folder is None:
                self._folder = Path(mkdtemp(prefix=temporary_prefix("rasterize")))
            data = shapely.to_wkb(polygons)
            ends = self._bytes + np.cumsum(np.fromiter(map(len, data), np.int64, len(data)))
            with (self._folder / _POLYGONS).open("ab") as file:
                file.writelines(data)
            self._runs.append(self._runs[-1] + len(data))
            for (name, kind), column in zip(_COLUMNS.items(), (block, ends, layer), strict=True):
                with (self._folder / name).open("ab") as file:
                    file.write(np.asarray(column, kind).tobytes())
            np.save(self._folder / _RUNS, self._runs)
        except OSError as error:
            raise StorageError(
                f"cannot put polygons by in {self._folder or gettempdir()}: {error.strerror}; "
                "the environment variable TMPDIR names another place"
            ) from error
        self._bytes = int(ends[-1])


# Files of a shelf: the polygons as WKB, run after run, each run sorted by block; of each polygon its block, where
# its WKB ends, and its layer; and the first polygon of each run.
_POLYGONS, _RUNS = "polygons.wkb", "runs.npy"
_COLUMNS = {"block": np.int64, "end": np.int64, "layer": np.uint16}


class Stack:
    """The polygons that a `Shelf` has put on the disk; any process can read them."""

    def __init__(self, folder: Path) -> None:
        self._runs = np.load(folder / _RUNS).tolist()
        self._maps, columns = [], []
        for name, kind in _COLUMNS.items():
            with (folder / name).open("rb") as file:
                self._maps.append(mmap(file.fileno(), 0, access=ACCESS_READ))
            columns.append(np.frombuffer(self._maps[-1], kind))
        self._block, self._end, self._layer = columns
        self._file = os.open(folder / _POLYGONS, os.O_RDONLY)

    def close(self) -> None:
        """Close the files."""
        os.close(self._file)

    def groups(self, block: int) -> Iterator[Group]:
        """Yield the polygons of a block, a bounded number at a time."""
        held: list[Group] = []
        size = 0
        for start, stop in pairwise(self._runs):
            first, last = (start + np.searchsorted(self._block[start:stop], [block, block + 1])).tolist()
            while first < last:
                begin = int(self._end[first - 1]) if first else 0
                room = begin + max(1, BYTES - size)
                end = max(first + 1, first + int(np.searchsorted(self._end[first:last], room, "right")))
                held.append(self._group(first, end, begin))
                size += int(self._end[end - 1]) - begin
                if size >= BYTES:
                    yield _joined(held)
                    held, size = [], 0
                first = end
        if held:
            yield _joined(held)
        for each in self._maps:
            each.madvise(MADV_DONTNEED)  # what has been looked up would count as memory of this process

    def _group(self, first: int, end: int, begin: int) -> Group:
        """Return the polygons of a range, whose WKB begins there."""
        ends = (self._end[first:end] - begin).tolist()
        data = os.pread(self._file, ends[-1], begin)
        texts = [data[one:other] for one, other in pairwise([0, *ends])]
        return Group(shapely.from_wkb(np.array(texts, dtype=object)), np.array(self._layer[first:end]))


def _joined(groups: list[Group]) -> Group:
    return Group(*(np.concatenate(column) for column in zip(*groups, strict=True)))
