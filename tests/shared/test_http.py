"""Trying again: how often, after how long, and what a server may ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests

from rsp.shared.http import Backoff, TryAgain, connection_problem, retry, retry_after


def attempts_of(outcomes, backoff):
    """Run `retry` over outcomes (values, or exceptions); returns what came of it, and the waits."""
    left, waits = list(outcomes), []

    def attempt():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        return retry(attempt, backoff, waits.append), waits, left
    except Exception as error:  # noqa: BLE001 (looked at by the test)
        return error, waits, left


def again(after=None, name="busy"):
    return TryAgain(ValueError(name), after)


def test_waits_double_up_to_a_limit():
    result, waits, _ = attempts_of([again()] * 5 + ["done"], Backoff(6, 0.5, longest=3))
    assert (result, waits) == ("done", [0.5, 1, 2, 3, 3])


def test_the_last_error_is_raised_without_a_wait_after_it():
    error, waits, left = attempts_of([again(name="1"), again(name="2"), again(name="3")], Backoff(2, 1))
    assert isinstance(error, ValueError) and str(error) == "2" and waits == [1] and len(left) == 1
    error, waits, _ = attempts_of([again()], Backoff(1, 1))
    assert isinstance(error, ValueError) and not waits


def test_other_exceptions_end_it():
    error, waits, left = attempts_of([KeyError("no"), "done"], Backoff(5, 1))
    assert isinstance(error, KeyError) and not waits and left == ["done"]


def test_what_the_server_asks_for_goes_first_within_bounds():
    backoff = Backoff(9, 0.5, longest=60, jitter=0.5)
    _, waits, _ = attempts_of([again(7.0), again(0.0), again(1e9), again(-3.0), "done"], backoff)
    assert waits == [7, 0, 60, 0]


def test_jitter_strays_both_ways_and_no_further():
    waits = [Backoff(9, 1.0, jitter=0.5).wait(2) for _ in range(200)]
    assert 2 <= min(waits) < 4 < max(waits) <= 6 and len(set(waits)) > 100
    assert Backoff(9, 1.0).wait(2) == 4


def test_retry_after_in_seconds_and_as_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < retry_after(soon) <= 30
    local = format_datetime(datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=30))  # "-0000": no zone
    assert 28 < retry_after(local) <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert (retry_after("3"), retry_after("0.5"), retry_after("-5"), retry_after("1e9")) == (3, 0.5, 0, 1e9)
    assert all(retry_after(value) is None for value in (None, "", "soon", "nan"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/?key=secret", "http://nobody.invalid/?key=secret"])
def test_a_failed_connection_in_words_without_its_url(url):
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get(url, timeout=5, proxies={"http": ""})
    said = connection_problem(caught.value)
    assert said in ("Connection refused", "the name of the server does not resolve")
