"""Asking an HTTP server again, what a failed connection is called, and lines of long answers."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

T = TypeVar("T")

# Statuses that say "not now" rather than "no": the same request may well succeed a moment later.
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")


@dataclass(frozen=True)
class Backoff:
    """When to try again: exponential back-off, which a server's Retry-After overrides.

    Attributes:
        attempts: How often to try in all.
        first: Seconds before the second attempt; doubled before each one after.
        longest: Upper bound of every wait, of one that the server asks for, too.
        jitter: How far a wait of ours may stray, as a fraction of it. Clients that were refused together must not
            come back together, so it is not seeded.
    """

    attempts: int
    first: float
    longest: float = 60.0
    jitter: float = 0.0

    def wait(self, attempt: int, asked: float | None = None) -> float:
        """Return the seconds to wait after an attempt (counted from 0)."""
        if asked is None:
            spread = random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311
            asked = self.first * 2.0**attempt * spread
        return min(max(asked, 0.0), self.longest)


class TryAgain(Exception):
    """Raised within `retry` by an attempt that is worth another one.

    Attributes:
        error: What to raise where it was the last.
        after: Seconds that the server asked to wait, None where it did not say.
    """

    def __init__(self, error: Exception, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after = error, after


def retry(attempt: Callable[[], T], backoff: Backoff, sleep: Callable[[float], object] = time.sleep) -> T:
    """Call `attempt` until it returns, and return what it returned.

    Args:
        attempt: Raises `TryAgain` where it should be called again; every other exception ends the attempts.
        backoff: How often, and when.
        sleep: Waits; may return early.

    Raises:
        Exception: the error of the last `TryAgain`.
    """
    number = 0
    while True:
        try:
            return attempt()
        except TryAgain as failed:
            if number + 1 >= backoff.attempts:
                raise failed.error from None
            wait = backoff.wait(number, failed.after)
        sleep(wait)
        number += 1


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date; None where it holds neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds == seconds else None


def connection_problem(error: BaseException) -> str:
    """Return why a connection failed, without the URL that libraries put into their messages."""
    text = str(error)
    if "NameResolutionError" in text or "getaddrinfo" in text:
        return "the name of the server does not resolve"
    if found := _ERRNO.search(text):
        return found[1].strip()
    if "IncompleteRead" in text or "ended prematurely" in text:
        return "the answer was cut off"
    if "RemoteDisconnected" in text or "without response" in text:
        return "the server closed the connection without an answer"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "the certificate of the server is not trusted"
    if "Read timed out" in text:
        return "the server stopped answering"
    return f"the connection failed ({type(error).__name__})"


def lines_of(parts: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of an answer whose parts come one by one: it may be larger than the memory."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
