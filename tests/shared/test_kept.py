"""What is kept, and errors that are: they keep nothing else alive."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rsp.shared.errors import NotFoundError, TileError, untraced
from rsp.shared.kept import Kept


class OddError(TileError):
    """An error that is not made of its message."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"number {number}")
        self.number = number


def failed(seen: list[weakref.ref]) -> TileError:
    """Return the error of something that works on a picture."""

    def work() -> None:
        picture = np.zeros((8, 8))
        seen.append(weakref.ref(picture))
        try:
            raise ValueError("of something else")
        except ValueError as cause:
            error = OddError(number=3)
            error.status = 404
            raise error from cause

    try:
        work()
    except TileError as error:
        return untraced(error)
    raise AssertionError


def test_an_error_without_traceback():
    seen: list[weakref.ref] = []
    error = failed(seen)
    assert (type(error), str(error), error.number, error.status) == (OddError, "number 3", 3, 404)
    assert error.__traceback__ is error.__cause__ is error.__context__ is None
    gc.collect()  # `error` and its frame are a cycle of their own
    assert seen[0]() is None


def test_what_cannot_be_made_keeps_nothing(uncollected):
    """An error that is raised to who asks is in no cycle: what its makers worked on goes with it."""
    seen: list[weakref.ref] = []
    kept: Kept[int] = Kept(lambda value: 8, 100)

    def make() -> int:
        picture = np.zeros((8, 8))
        seen.append(weakref.ref(picture))
        raise NotFoundError("out of reach")

    def ask(_: int) -> bool:
        try:
            kept.get("key", make)
        except NotFoundError:
            return True
        return False

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, range(20)))
    assert ask(0)
    assert len(seen) and [each() for each in seen] == [None] * len(seen)
    assert len(kept) == 0
    assert kept.get("key", lambda: 5) == 5
    with pytest.raises(NotFoundError):
        kept.get("other", make)
