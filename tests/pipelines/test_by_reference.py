"""HelloWorld with all that it reads and writes in S3, and what tells somebody that a run has failed."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rsp.pipelines.local import run_local
from rsp.shared.errors import PipelineError
from rsp.shared.http import Backoff
from rsp.shared.webhook import VARIABLE, notify_failure
from tests.pipelines import toys

AT_ONCE = Backoff(attempts=2, first=0.0)


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(json.loads(body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def hook(*answers: int) -> Iterator[http.server.HTTPServer]:
    """A web hook that answers with these statuses, then with 204; `seen` has what was posted."""
    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        server.seen, server.answers = [], list(answers)
        server.url = f"http://127.0.0.1:{server.server_port}/secret-path"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_failure_is_told_and_a_success_is_not(monkeypatch):
    assert "names nobody" in notify_failure("FAILED", {})
    with hook(503) as server:
        monkeypatch.setenv(VARIABLE, server.url)
        assert "nobody is told" in notify_failure("SUCCEEDED", {"text": "a"})
        assert server.seen == []
        notify_failure("FAILED", {"text": "b"}, AT_ONCE)
        assert server.seen == [{"state": "FAILED", "text": "b"}] * 2


def test_the_url_of_the_hook_stays_secret(monkeypatch):
    with hook(403) as server:
        monkeypatch.setenv(VARIABLE, server.url)
        with pytest.raises(PipelineError, match="answered 403") as caught:
            notify_failure("FAILED", {})
        assert len(server.seen) == 1
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:1/secret-path")
    with pytest.raises(PipelineError, match="cannot be reached") as unreachable:
        notify_failure("FAILED", {}, AT_ONCE)
    assert "secret-path" not in str(caught.value) + str(unreachable.value)


@pytest.mark.slow
def test_a_run_that_fails_posts_what_failed(tmp_path, monkeypatch):
    with hook() as server:
        with pytest.raises(PipelineError, match="the step fail failed"):
            run_local(toys.told, {"message": "wrong"}, tmp_path, env={VARIABLE: server.url})
        (seen,) = server.seen
    assert (seen["state"], seen["pipeline"]) == ("FAILED", "told")
