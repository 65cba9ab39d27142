"""SIGTERM, by which Kubernetes and others ask a process to end, as an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """Leaves the process with the exit code of one that a signal ended, 143, and `finally` clauses run before."""


@contextmanager
def terminated() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` within the block; later signals do not disturb what it then does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers of signals belong to the main thread
        return

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
