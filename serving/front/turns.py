"""Whose turn it is: so many at once, so many who wait, and one for all who ask the same."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from rsp.serving.front.errors import RefusedError

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Gate:
    """Lets so many through at once, has so many wait in line, and sends the others away until later.

    Args:
        width: How many at once.
        line: How many may wait.
    """

    def __init__(self, width: int, line: int) -> None:
        self.width, self._line = width, line
        self._free = asyncio.Semaphore(width)
        self.running = self.waiting = 0
        self._took = 0.1  # seconds of a turn, smoothed

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn, and have it; raises `RefusedError` (429) where too many wait."""
        if self._free.locked() and self.waiting >= self._line:
            after = min(60, max(1, math.ceil(self.waiting * self._took / self.width)))
            raise RefusedError(
                429, f"{self.waiting} requests wait already; come back in {after} s", {"Retry-After": str(after)}
            )
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._took += 0.1 * (time.monotonic() - began - self._took)
            self.running -= 1
            self._free.release()


class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters = 0
    begun = False


class Flights(Generic[T]):
    """Joins equal requests that are under way to one."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def join(self, key: str, make: Callable[[Callable[[], None]], Awaitable[T]]) -> tuple[T, bool]:
        """Return what `make` returns, and whether somebody else had asked for it.

        Where all who wait have gone before `make` has begun, it is cancelled; what it has begun it ends.

        Args:
            key: What is asked for.
            make: Is given a function to call when it begins what costs something.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.ensure_future(self._fly(key, flight, make))
            flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.begun and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()

    async def _fly(self, key: str, flight: _Flight[T], make: Callable[[Callable[[], None]], Awaitable[T]]) -> T:
        def begin() -> None:
            flight.begun = True

        try:
            return await make(begin)
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` returns, and cancel it where the client goes before.

    Raises:
        ClientGoneError: it has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _gone(request: Request) -> None:
    message: Any = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
