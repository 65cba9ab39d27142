"""What threads ask for again and again, made once: the last ones are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key, made by the first thread that asks for them; others wait for it.

    Args:
        size: Returns what a value takes of the memory, in bytes.
        most: Bytes that are kept.
        count: Values that are kept; None for any number.
    """

    def __init__(self, size: Callable[[Value], int], most: int, count: int | None = None) -> None:
        self._size, self._most, self._count = size, most, count
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; what `make` raises is raised to all who wait, and not kept."""
        with self._lock:
            found = self._kept.get(key)
            mine = found is None
            if found is None:
                found = self._kept[key] = Future()
            self._kept.move_to_end(key)
        try:
            if mine:
                try:
                    found.set_result(make())
                except BaseException as error:
                    # It says nothing of the value (a server is out of reach, say): whoever asks next tries again.
                    with self._lock:
                        self._kept.pop(key, None)
                    found.set_exception(error)
                    raise
                self._evict(found.result())
            return found.result()
        finally:
            del found  # it holds the error, whose traceback holds this frame

    def _evict(self, value: Value) -> None:
        """Count a value in, and let the oldest go."""
        with self._lock:
            self._bytes += self._size(value)
            while self._bytes > self._most or (self._count is not None and len(self._kept) > self._count):
                key, oldest = next(iter(self._kept.items()))
                if not oldest.done():
                    break
                del self._kept[key]
                self._bytes -= self._size(oldest.result())
