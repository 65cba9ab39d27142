"""The tile set that a download writes, opened when its format is known: with the first tile at the latest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rsp.shared.locations import Location
from rsp.shared.tiles import Tile

if TYPE_CHECKING:
    from rsp.shared.tileset import TileWriter

# What an archive says of its tiles that has none, where nobody said anything.
NO_TILE = "png"


class Output:
    """A tile set open for writing. Use it as a context manager: leaving it well commits.

    All tiles of a set have one format. Where none was asked for it is that of the tiles that are there, else that
    of the first that comes; a server that sends another one for some tiles has these converted.

    Attributes:
        format: Of the tiles; None until it is known.
        done: The tiles that were there already.
        converted: How many tiles came in another format than was expected, by format.

    Args:
        out: Where it is.
        tile_format: What was asked for; empty for what the server sends.
        resume: Keep the tiles that are there.
        empty: An archive may end without a tile.
        later: Open it only when there is something to write: what is there already would be copied for nothing.
        attribution: Whose the tiles are.
    """

    def __init__(
        self,
        out: Location,
        tile_format: str,
        *,
        resume: bool,
        empty: bool,
        later: bool = False,
        attribution: str = "",
    ) -> None:
        from rsp.shared.tileset.found import found_format

        self._out, self._resume, self._empty = out, resume, empty
        self._writer: TileWriter | None = None
        self._attribution = attribution
        self._as_sent = not tile_format
        self.done: Collection[Tile] = frozenset()
        self.converted: Counter[str] = Counter()
        self.format = tile_format or found_format(out)
        if self.format and not later:
            self._open(self.format)

    def _open(self, tile_format: str) -> TileWriter:
        from rsp.shared.attribution import note
        from rsp.shared.tileset import open_writer

        self.format = tile_format
        self._writer = open_writer(self._out, tile_format, resume=self._resume, empty=self._empty)
        note(self._writer, self._attribution)
        self.done = self._writer.done
        return self._writer

    def write(self, tile: Tile, data: bytes, came: str) -> None:
        """Write a tile.

        Args:
            tile: Which.
            data: The tile, in the format of the set.
            came: The format that the server sent.
        """
        writer = self._writer or self._open(self.format or came)
        if self._as_sent and came != writer.format:
            self.converted[came] += 1
        writer.write(tile, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None and kind is None and self._empty:
            self._open(self.format or NO_TILE)
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
