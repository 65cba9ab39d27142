"""Which version of which model answers, who still asks for another one by its name, and what is under way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http import HTTPStatus


class NoRouteError(Exception):
    """Nobody here can answer a request.

    Attributes:
        status: 404 where that stays so, 503 where it will pass.
    """

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Routes:
    """The table between the proxy, which sends each request to a version, and the follower, which makes versions.

    Only versions that were opened get requests, so what has not been verified answers nobody. All methods can be
    called from any thread.

    Args:
        names: The models that are served here, or will be.
        clock: Tells the seconds of `last_asked`.
    """

    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._default: dict[str, str | None] = dict.fromkeys(names)
        self._open: set[tuple[str, str]] = set()
        self._busy: Counter[tuple[str, str]] = Counter()
        self._asked: dict[tuple[str, str], float] = {}

    def enter(self, name: str, version: str | None) -> str:
        """Return the version that answers a request, which is under way until `leave`.

        Args:
            name: The model.
            version: The version that was asked for by its name, if any.

        Raises:
            NoRouteError: there is none.
        """
        with self._lock:
            if name not in self._default:
                known = ", ".join(sorted(self._default))
                raise NoRouteError(HTTPStatus.NOT_FOUND, f"no model of this name is served here; there is {known}")
            default = self._default[name]
            if default is None:
                raise NoRouteError(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"no verified release of {name} answers (yet); see /status"
                )
            found = version or default
            if (name, found) not in self._open:
                raise NoRouteError(
                    HTTPStatus.NOT_FOUND, f"this version of {name} is not served here; version {default} is"
                )
            # The lock: a version must not be removed between the look and the count.
            self._busy[name, found] += 1
            if version:
                self._asked[name, version] = self._clock()
            return found

    def leave(self, name: str, version: str) -> None:
        """Count a request as answered."""
        with self._lock:
            self._busy[name, version] -= 1
            if not self._busy[name, version]:
                del self._busy[name, version]

    def switch(self, name: str, version: str) -> None:
        """Let a verified version answer, by its name and where none is asked for."""
        with self._lock:
            self._open.add((name, version))
            self._default[name] = version

    def close(self, name: str, version: str) -> None:
        """Let no further request come to a version."""
        with self._lock:
            self._open.discard((name, version))
            self._asked.pop((name, version), None)
            if self._default.get(name) == version:
                self._default[name] = None

    def close_all(self) -> None:
        """Let no further request come to anybody: TorchServe has gone."""
        with self._lock:
            self._open.clear()
            self._default = dict.fromkeys(self._default)

    def default(self, name: str) -> str | None:
        """Return the version that answers where none is asked for."""
        with self._lock:
            return self._default.get(name)

    def busy(self, name: str, version: str) -> int:
        """Return how many requests to a version are under way."""
        with self._lock:
            return self._busy[name, version]

    def last_asked(self, name: str, version: str) -> float | None:
        """Return when a version was last asked for by its name, by the clock; None where it never was."""
        with self._lock:
            return self._asked.get((name, version))
