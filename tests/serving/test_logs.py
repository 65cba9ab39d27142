"""What a server writes down: one line a record, whatever a client sends, and nothing secret."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from rsp.serving import logs
from rsp.serving.logs import Limit, log_request, redact, request_id, set_up
from rsp.shared.errors import UsageError


@pytest.fixture
def stream():
    logger = logging.getLogger("rsp")
    before = logger.handlers[:], logger.level, logger.propagate, logs.requests.filters[:]
    yield io.StringIO()
    logger.handlers[:], logger.propagate, logs.requests.filters[:] = before[0], before[2], before[3]
    logger.setLevel(before[1])


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_line_with_the_fields(stream):
    set_up(stream, form="json")
    log_request(
        400, request_id="abc", method="POST", path="/predictions/roofs?access_token=secret", model="roofs",
        version="v2", seconds=0.0031, detail="the tile has 3 bands, the model takes 4",
    )  # fmt: skip
    (found,) = lines(stream)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "WARNING", "logger": "rsp.serving.requests", "message": "the tile has 3 bands, the model takes 4",
        "request_id": "abc", "method": "POST", "path": "/predictions/roofs", "model": "roofs", "version": "v2",
        "status": 400, "ms": 3.1,
    }  # fmt: skip


def test_good_requests_are_silent_unless_asked_for(stream):
    set_up(stream, form="json")
    log_request(200, request_id="a")
    assert stream.getvalue() == ""
    set_up(stream, form="json", level="debug")
    log_request(200, request_id="a")
    log_request(503, request_id="b", detail="the queue is full")
    assert [each["level"] for each in lines(stream)] == ["DEBUG", "ERROR"]


HOSTILE = '\r\n{"level": "INFO"}\x1b[2J\x00\x85\u2028\u202egnp.'


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_client_begins_a_second_line(stream, form):
    set_up(stream, form=form)
    log_request(404, request_id="a", path=f"/{HOSTILE}", model=HOSTILE, detail=HOSTILE)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and len(text.splitlines()) == 1
    assert text[:-1].isprintable()
    if form == "json":
        assert lines(stream)[0]["model"] == HOSTILE


def test_long_values_are_cut(stream):
    set_up(stream, form="json")
    log_request(414, request_id="a", path="/" + "x" * 100_000, detail="y" * 100_000)
    assert len(stream.getvalue()) < 3000


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_stays_with_its_record(stream, form):
    set_up(stream, form=form)
    try:
        raise ValueError("s3://me:secret@bucket/key?X-Amz-Signature=secret\x1b[2J")
    except ValueError:
        logging.getLogger("rsp.serving.follower").exception("cannot follow")
    text = stream.getvalue()
    assert "secret" not in text and "\x1b" not in text
    if form == "json":
        assert lines(stream)[0]["traceback"].startswith("Traceback")
    else:
        assert "\nTraceback" in text


def test_a_flood_ends_as_some_lines_and_a_number(stream):
    clock = iter([0.0, *[0.0] * 100, 1.0]).__next__
    set_up(stream, form="json")
    logs.requests.filters[:] = [Limit(rate=1, burst=10, clock=clock)]
    for _ in range(101):
        log_request(400, request_id="a", detail="bad tile 100%")
    found = [each["message"] for each in lines(stream)]
    assert found[:10] == ["bad tile 100%"] * 10
    assert found[10:] == ["bad tile 100% (and 90 other lines about requests that are not shown)"]


def test_the_server_s_own_lines_are_never_left_out(stream):
    set_up(stream, form="json")
    for number in range(200):
        logging.getLogger("rsp.serving.follower").info("state", extra={"model": "roofs", "state": number})
    assert [each["state"] for each in lines(stream)] == list(range(200))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a/b.tif?sig=abc#x", "https://...@host/a/b.tif?...#x"),
        ("no s3://bucket/key: Authorization: Bearer abc.def", "no s3://bucket/key: Authorization: Bearer ..."),
        ("Basic dTpw", "Basic ..."),
        ("mail me@example.org", "mail me@example.org"),
    ],
)  # fmt: skip
def test_what_is_secret_is_left_out(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("given", ["6f1c4a2b", b"trace/1:2.3+4=", "x" * 64])
def test_a_request_id_is_taken(given):
    assert request_id(given) == (given.decode() if isinstance(given, bytes) else given)


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a\nb", "é", b"\xff", '"', "<script>"])
def test_a_request_id_is_made(given):
    made = request_id(given)
    assert made != given and len(made) == 16 and int(made, 16) >= 0
    assert made != request_id(given)


def test_settings_come_from_the_environment(stream, monkeypatch):
    monkeypatch.setenv("RSP_LOG_FORMAT", "text")
    monkeypatch.setenv("RSP_LOG_LEVEL", "ERROR")
    set_up(stream)
    log_request(400, request_id="a", detail="bad")
    log_request(500, request_id="a", detail="worse")
    assert "error: worse [request_id=a status=500]" in stream.getvalue() and "bad" not in stream.getvalue()
    monkeypatch.setenv("RSP_LOG_FORMAT", "xml")
    with pytest.raises(UsageError, match="RSP_LOG_FORMAT: expected `json` or `text`, got `xml`"):
        set_up(stream)
    monkeypatch.setenv("RSP_LOG_FORMAT", "json")
    monkeypatch.setenv("RSP_LOG_LEVEL", "loud")
    with pytest.raises(UsageError, match="RSP_LOG_LEVEL"):
        set_up(stream)


def test_standard_error_may_be_another_one_later(stream, monkeypatch):
    first = io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    set_up(form="json")
    logging.getLogger("rsp").warning("one")
    monkeypatch.setattr(sys, "stderr", stream)
    assert [line["message"] for line in lines(first)] == ["one"]
    first.close()
    logging.getLogger("rsp").warning("two")
    assert [line["message"] for line in lines(stream)] == ["two"]
