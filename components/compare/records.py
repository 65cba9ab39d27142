"""The scores of tiles in a temporary file, to be read the worst first: memory is some bytes a tile."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rsp.components.compare.work import Compared
from rsp.shared.atomic import temporary_prefix
from rsp.shared.metrics import ClassCounts
from rsp.shared.tiles import Tile

# Bytes of records that are read at once: as numbers of Python they take twenty times the memory.
BATCH = 1 << 19


class Batch:
    """Some tiles and their scores.

    Attributes:
        tiles: x, y and z, (N, 3).
        fg: The foreground share of each, (N,).
        qod: The quality of data of each, (N,).
        counts: Of each tile and class, (N, K), where they were kept.
    """

    def __init__(self, records: npt.NDArray[Any]) -> None:
        self.tiles: npt.NDArray[np.int64] = records["tile"]
        self.fg: npt.NDArray[np.float64] = records["fg"]
        self.qod: npt.NDArray[np.float64] = records["qod"]
        hits, labelled, masked = np.moveaxis(records["counts"], 1, 0)
        self.counts = ClassCounts(hits, labelled, masked, np.repeat(records["pixels"][:, None], hits.shape[1], 1))

    def __iter__(self) -> Iterator[tuple[Tile, float, float]]:
        """Yield each tile with its foreground and its quality of data."""
        for (x, y, z), fg, qod in zip(self.tiles.tolist(), self.fg.tolist(), self.qod.tolist(), strict=True):
            yield Tile(x, y, z), fg, qod


class Records:
    """Takes tiles in any order, and gives them back the worst first.

    Args:
        classes: Of how many classes counts are kept for each tile.
    """

    def __init__(self, classes: int = 0) -> None:
        self.classes, self.count = classes, 0
        self._pack = Struct(f"=3q2dq{3 * classes}q").pack
        counts = ("counts", np.int64, (3, classes))
        self._kind = np.dtype([("tile", np.int64, 3), ("fg", float), ("qod", float), ("pixels", np.int64), counts])
        self._file = TemporaryFile(prefix=temporary_prefix("compare"))  # noqa: SIM115 (closed by `close`)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, found: Compared) -> None:
        """Keep a tile that was scored."""
        assert found.counts is not None
        kept: list[int] = []
        if self.classes:
            kept = np.concatenate(ClassCounts.of(found.counts)[:3]).tolist()
        self._file.write(self._pack(*found.tile, found.fg, found.qod, int(found.counts.sum()), *kept))
        self.count += 1

    def worst_first(self) -> Iterator[Batch]:
        """Yield the tiles of lowest quality of data first; of equals those of more foreground, then by x and y."""
        if not self.count:
            return
        self._file.flush()
        records = np.memmap(self._file, self._kind, "r")
        tiles = records["tile"]
        order = np.lexsort((tiles[:, 1], tiles[:, 0], tiles[:, 2], -records["fg"], records["qod"]))
        size = max(1, BATCH // self._kind.itemsize)
        for start in range(0, self.count, size):
            yield Batch(np.asarray(records[order[start : start + size]]))
