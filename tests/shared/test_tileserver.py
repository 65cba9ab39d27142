"""Tile servers: when they are asked again, in the time of a clock that only waiting moves."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rsp.shared import tileserver
from rsp.shared.tileserver import Client, FetchError, TokenBucket
from tests.tileserver import Reply, TileServer


class Clock(threading.Event):
    """Shows how long was waited, and waits no longer than that takes."""

    now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        return self.is_set()


@pytest.fixture
def arrivals(monkeypatch):
    """Fetch paths from a server that sends some replies and then a tile; return when it was asked for each."""
    monkeypatch.delenv("RSP_HTTP_HEADERS", raising=False)

    def run(*replies: Reply, paths: tuple[str, ...] = ("/tile",)) -> list[float]:
        clock, times, left = Clock(), [], list(replies)

        def answer(path: str, before: int) -> Reply:
            times.append(round(clock.now, 2))
            return left.pop(0) if left else Reply(b"tile")

        with TileServer(answer) as server, Client(1e6, 5, 1) as asking:
            asking._stop = clock
            asking._bucket = TokenBucket(1e6, clock=lambda: clock.now, sleep=clock.wait)
            for path in paths:
                try:
                    asking.fetch(server.url + path)
                except FetchError:
                    times.append("failed")
        return times

    return run


BUSY = Reply(status=503)


def asked(value: object, status: int = 429) -> Reply:
    return Reply(status=status, headers={"Retry-After": str(value)})


def test_each_wait_is_twice_the_one_before(arrivals):
    assert (tileserver.BACKOFF, tileserver.ATTEMPTS) == (0.5, 4)
    assert arrivals(BUSY, Reply(status=500), BUSY) == [0, 0.5, 1.5, 3.5]
    assert arrivals(BUSY, BUSY, BUSY, BUSY) == [0, 0.5, 1.5, 3.5, "failed"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(arrivals, status):
    assert arrivals(Reply(status=status)) == [0, 0.5]


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410, 501])
def test_what_does_not_pass_is_asked_once(arrivals, status):
    assert arrivals(Reply(status=status)) == [0, "failed"]


def test_a_connection_that_breaks_off_is_tried_again(arrivals):
    assert arrivals(Reply(b"half of it", cut=5), Reply(b"x", cut=1)) == [0, 0.5, 1.5]


def test_the_server_says_how_long_to_wait(arrivals):
    assert arrivals(asked(7)) == [0, 7]
    assert arrivals(BUSY, asked(7, 503), BUSY) == [0, 0.5, 7.5, 9.5]
    assert arrivals(asked(0)) == [0, 0]
    assert arrivals(asked("-3")) == [0, 0]
    assert arrivals(asked("soon")) == arrivals(asked("nan")) == [0, 0.5]


def test_a_date_is_as_good_as_seconds(arrivals):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    first, second = arrivals(asked(soon))
    assert first == 0 and 20 < second <= 30
    assert arrivals(asked("Wed, 21 Oct 2015 07:28:00 GMT")) == [0, 0]


def test_a_server_does_not_make_us_wait_for_ever(arrivals):
    assert arrivals(asked(1e9)) == [0, tileserver.MAX_WAIT]
    assert arrivals(asked("Fri, 31 Dec 2999 00:00:00 GMT")) == [0, tileserver.MAX_WAIT]


def test_other_tiles_wait_as_well(arrivals, monkeypatch):
    monkeypatch.setattr(tileserver, "ATTEMPTS", 1)
    assert arrivals(asked(7), paths=("/one", "/two")) == [0, "failed", 7]
    assert arrivals(BUSY, paths=("/one", "/two")) == [0, "failed", 0]
    assert arrivals(asked(1e9), paths=("/one", "/two")) == [0, "failed", tileserver.MAX_WAIT]
