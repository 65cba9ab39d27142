"""When a download gives up."""

from __future__ import annotations

from rsp.shared.errors import DownloadError
from rsp.shared.tileserver import FetchError


class FailureLimit:
    """Tells when going on makes no sense: what the server refuses ten times running, it will refuse a thousand.

    A server that has never given a tile is given up after `FIRST` faults of its own running, or after `NONE` tiles
    without any; one that has given some, after `LATER` faults running.
    """

    FIRST, NONE, LATER = 10, 100, 50

    def __init__(self, good: int = 0) -> None:
        self.good = good
        self._faults = 0
        self._failed = 0

    def succeeded(self) -> None:
        """Note a tile."""
        self.good += 1
        self._faults = 0

    def failed(self, reason: FetchError) -> None:
        """Note a failure; raise `DownloadError` where it is one too many."""
        self._failed += 1
        self._faults = self._faults + 1 if reason.server else 0
        if not self.good and (self._faults >= self.FIRST or self._failed >= self.NONE):
            raise DownloadError(
                f"gave up: {self._failed} tiles were tried and the server gave none: {reason} (check the URL, "
                "the zoom of the cover and the credentials)"
            )
        if self._faults >= self.LATER:
            raise DownloadError(
                f"the server has failed {self._faults} times running: {reason}; run the same command later to "
                "continue"
            )
