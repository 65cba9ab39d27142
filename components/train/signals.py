"""SIGTERM, by which Kubernetes and others ask a process to end, as an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """Leaves the process with the exit code of one that a signal ended, 143, and `finally` clauses run before."""


class _Hold:
    """Whether SIGTERM is put off, and whether it came: a process has one."""

    held = False
    came = False


@contextmanager
def terminated() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` within the block; later signals do not disturb what it then does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers of signals belong to the main thread
        return

    def leave(number: int, frame: FrameType | None) -> None:
        _Hold.came = True
        if not _Hold.held:
            release()

    before = signal.signal(signal.SIGTERM, leave)
    _Hold.held = _Hold.came = False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _Hold.held = _Hold.came = False


def hold() -> None:
    """Put SIGTERM off until `release`: what follows is to be done whole, or not at all."""
    _Hold.held = True


def release() -> None:
    """Let SIGTERM raise `Terminated` again, at once where it came since `hold`."""
    _Hold.held = False
    if _Hold.came:
        _Hold.came = False
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(128 + signal.SIGTERM)
