"""What became of the tiles of a download."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Container, Iterable

from rsp.components.download.failures import FailureLimit
from rsp.shared.errors import DownloadError
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileserver import FetchError


class Tally:
    """Counts what comes, and gives up where going on makes no sense.

    Attributes:
        failed: The tiles that were not fetched, with the reason of each.
        absent: The tiles that do not exist.
        gone: The tiles that no longer exist, and stay, with the reason of each.
        written: How many tiles were written, and how many of these were not there before.
        sides: How many tiles have a side, in pixels.

    Args:
        present: The tiles that are there.
        absent: Those that are known not to exist.
        limit: When to give up.
        empty: That tiles do not exist is no reason to.
    """

    def __init__(
        self, present: Container[Tile], absent: Iterable[Tile], limit: FailureLimit, *, empty: bool
    ) -> None:
        self.present, self.limit = present, limit
        self.failed: dict[Tile, str] = {}
        self.absent, self.gone = set(absent), dict[Tile, str]()
        self.written, self.new = 0, 0
        self.sides: Counter[int] = Counter()
        self._reasons: Counter[str] = Counter()
        self._empty = empty

    def refused(self, tile: Tile, error: FetchError) -> None:
        """Note a tile that was not fetched; raise `DownloadError` where it is one too many."""
        if error.absent and not error.forbidden:
            self._reasons[str(error)] += 1
            if tile in self.present:
                self.gone[tile] = str(error)
            else:
                self.absent.add(tile)
                if self._empty:
                    return
        else:
            self.failed[tile] = str(error)
        self.limit.failed(error)

    def succeeded(self, side: int) -> None:
        """Note an answer that is good; its side is 0 where nothing has changed."""
        self.limit.succeeded()
        if side:
            self.sides[side] += 1

    def wrote(self, tile: Tile) -> None:
        """Note a tile that was written."""
        self.written += 1
        self.new += tile not in self.present

    def check(self, wanted: int) -> None:
        """Raise `DownloadError` where not one tile was fetched, and none was there."""
        if not self.limit.good and not (self._empty and self.absent):
            reason, count = (self._reasons + Counter(self.failed.values())).most_common(1)[0]
            raise DownloadError(f"none of the {wanted} tiles could be fetched; {count} times: {reason}")

    def tell(self, converted: Counter[str], tile_format: str | None) -> None:
        """Print what is odd about the tiles."""
        if len(self.sides) > 1:
            counts = ", ".join(f"{count} of {side} pixels" for side, count in sorted(self.sides.items()))
            print(f"warning: the tiles differ in size: {counts}", file=sys.stderr)
        for came, count in sorted(converted.items()):
            print(
                f"warning: {count} tiles came as {came} and were converted to {tile_format}, as the others are; "
                "choose the format with --format",
                file=sys.stderr,
            )
        if self.gone:
            tile, reason = min(self.gone.items())
            print(
                f"warning: the server no longer has {len(self.gone)} tiles, as {zxy(tile)} ({reason}); what was "
                "downloaded before stays",
                file=sys.stderr,
            )
