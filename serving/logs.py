"""What a server writes down: one line a record, JSON where a program reads it, text on a terminal.

    {"time": "2026-05-01T12:00:00.123Z", "level": "WARNING", "logger": "rsp.serving.requests",
     "message": "the tile has 3 bands, the model takes 4", "request_id": "6f1c4a2be90d7735", "method": "POST",
     "path": "/predictions/roofs", "model": "roofs", "version": "v2", "status": 400, "ms": 3.1}

Clients choose much of what stands here, so a record can never begin a second line, nor move the cursor of a
terminal; query strings and the credentials in addresses are left out; and a flood of bad requests ends as some
lines and a number.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from rsp.shared.errors import UsageError

# The keys of a record, in this order, that `extra=` of a logging call gives.
FIELDS = ("request_id", "method", "path", "model", "version", "source", "state", "status", "ms")
# Characters of a message, and of each field: nobody reads more, and a client chooses how long its URL is.
LONGEST, LONGEST_FIELD = 2000, 300
# Lines a second about requests, after so many at once.
RATE, BURST = 5.0, 50.0

requests = logging.getLogger("rsp.serving.requests")

_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")
_USER = re.compile(r"(?<=://)[^\s/@?#]*@")
_QUERY = re.compile(r"(?<=\?)[^\s'\"<>#]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")


def request_id(given: str | bytes | None = None) -> str:
    """Return the X-Request-Id that a client gave, or a new one where it gave none that can stand in a log.

    Args:
        given: Value of the header; taken if it has 1 to 64 letters, digits and `._:/+=-`.
    """
    if given:
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        if _ID.fullmatch(text):
            return text
    return secrets.token_hex(8)


def redact(text: str) -> str:
    """Return a text without the query strings, users and passwords of the addresses in it, and without tokens."""
    return _BEARER.sub(r"\1 ...", _QUERY.sub("...", _USER.sub("...@", text)))


def log_request(
    status: int,
    *,
    request_id: str,
    method: str = "",
    path: str = "",
    model: str | None = None,
    version: str | None = None,
    source: str | None = None,
    seconds: float | None = None,
    detail: str = "",
) -> None:
    """Write one line about a request: a warning for 4xx, an error for 5xx, for all others at the level DEBUG.

    Args:
        status: Of the answer.
        request_id: From the function of that name.
        method: Of the request.
        path: Of its URL; a query string is left out.
        model: Name of the model.
        version: The version that answered.
        source: Of the live front.
        seconds: From the end of the request to the answer.
        detail: The reason that the client was told.
    """
    level = logging.ERROR if status >= 500 else logging.WARNING if status >= 400 else logging.DEBUG
    if not requests.isEnabledFor(level):
        return
    fields = {
        "request_id": request_id, "method": method, "path": path.partition("?")[0], "model": model,
        "version": version, "source": source, "status": status,
        "ms": None if seconds is None else round(seconds * 1000, 1),
    }  # fmt: skip
    requests.log(level, "%s", detail or "answered", extra=fields)


class JsonFormatter(logging.Formatter):
    """One JSON object a record, in ASCII, so that nothing in it can end the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        found: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(redact(record.getMessage()), LONGEST),
        }
        found |= dict(_fields(record))
        if record.exc_info:
            found["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(found)


class TextFormatter(logging.Formatter):
    """For people: time, level and message, with the fields behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and those of its traceback."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{_time(record).astimezone():%H:%M:%S} {level}{_cut(redact(record.getMessage()), LONGEST)}"
        fields = " ".join(f"{name}={value}" for name, value in _fields(record))
        lines = [f"{line} [{fields}]" if fields else line]
        if record.exc_info:
            lines += redact(self.formatException(record.exc_info)).splitlines()
        return "\n".join(map(_printable, lines))


class Limit(logging.Filter):
    """Lets through so many records a second, and says in the next one how many were left out.

    Args:
        rate: Records a second.
        burst: Records at once.
        clock: Tells the seconds.
    """

    def __init__(
        self, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._rate, self._burst, self._clock = rate, burst, clock
        self._lock = threading.Lock()
        self._credit, self._last, self._left_out = burst, clock(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written."""
        if record.levelno <= logging.DEBUG:
            return True  # who asks for all of them gets all of them
        with self._lock:
            now = self._clock()
            self._credit = min(self._burst, self._credit + (now - self._last) * self._rate)
            self._last = now
            if self._credit < 1:
                self._left_out += 1
                return False
            self._credit -= 1
            left_out, self._left_out = self._left_out, 0
        if left_out:
            record.msg = f"{record.msg} (and {left_out} other lines about requests that are not shown)"
        return True


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error as it is when a record comes: who sets another one may close the one before."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr


def set_up(stream: TextIO | None = None, *, form: str | None = None, level: str | None = None) -> None:
    """Write what the server logs to a stream, in place of where it went before.

    Args:
        stream: Standard error if None.
        form: `json` or `text`; by the variable RSP_LOG_FORMAT, else text on a terminal and JSON elsewhere.
        level: DEBUG (a line for each request), INFO, WARNING or ERROR; by the variable RSP_LOG_LEVEL, else INFO.

    Raises:
        UsageError: the form or the level is not one of these.
    """
    terminal = (stream or sys.stderr).isatty()
    form = form or os.environ.get("RSP_LOG_FORMAT") or ("text" if terminal else "json")
    level = (level or os.environ.get("RSP_LOG_LEVEL") or "INFO").upper()
    if form not in ("json", "text"):
        raise UsageError(f"RSP_LOG_FORMAT: expected `json` or `text`, got `{form}`")
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UsageError(f"RSP_LOG_LEVEL: expected DEBUG, INFO, WARNING or ERROR, got `{level}`")
    handler = StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger = logging.getLogger("rsp")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    requests.filters[:] = [Limit()]


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> list[tuple[str, Any]]:
    values = ((name, getattr(record, name, None)) for name in FIELDS)
    return [
        (name, _cut(redact(value), LONGEST_FIELD) if isinstance(value, str) else value)
        for name, value in values
        if value not in (None, "")
    ]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _printable(text: str) -> str:
    """Return a text in which control characters, and those that turn the direction of writing, are written out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
