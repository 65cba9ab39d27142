"""HelloWorld with all that it reads and writes in S3, and what tells somebody that a run has failed."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rsp.pipelines.local import REMOTE, LocalRun, run_local
from rsp.shared.config import parse_tables
from rsp.shared.errors import PipelineError
from rsp.shared.http import Backoff
from rsp.shared.tileset import open_reader
from rsp.shared.webhook import VARIABLE, notify_failure
from tests.pipelines import toys
from tests.tilesets import CONFIG

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


def parameters(scene, server, bucket: str, **changes) -> dict:
    return {
        "source": f"s3://{bucket}/area.geojson", "kind": "geojson", "zoom": scene.zoom, "rate": 500,
        "url": f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.jpg", "features": f"s3://{bucket}/features.geojson",
        "config": parse_tables(CONFIG.replace("ts = 64", "ts = 256.0\nnum_filters = 8.0")), "epochs": 1,
        "block": 2, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def area(scene) -> str:
    west, south, east, north = map(float, scene.bbox_text.split(","))
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return json.dumps(
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    )


def pixels(where) -> dict:
    with open_reader(where) as reader:
        return {tile: reader.read(tile) for tile in reader.tiles()}


def address(run: LocalRun, step: str, output: str) -> str:
    return str(run.steps[f"{step}{REMOTE}"].outputs[output].metadata["address"])


@pytest.mark.slow
@pytest.mark.xdist_group("hello_world")
def test_the_same_through_s3_and_nothing_twice(scene, scene_server, area, s3, tmp_path):
    bucket = s3.bucket()
    for name, data in (("area.geojson", area.encode()), ("features.geojson", scene.features.read_bytes())):
        from io import BytesIO

        s3.client().put_object(bucket, name, BytesIO(data), len(data))
    given = parameters(scene, scene_server, bucket)
    here = run_local("hello_world", given, tmp_path)
    there = run_local("hello_world", {**given, "data_root": f"s3://{bucket}/data"}, tmp_path)
    assert there.skipped == here.skipped == ["deploy"]
    for step, output in (("download", "tiles"), ("rasterize", "labels"), ("predict", "masks")):
        where = address(there, step, output)
        assert where.startswith(f"s3://{bucket}/data/{step}/") and "#" in where
        assert pixels(where) == pixels(here.path(step, output))
        small = json.loads(there.path(f"{step}{REMOTE}", output).read_text())
        assert f"{small['address']}#{small['etag']}" == where and small["tiles"] == len(scene.tiles)
    assert there.metrics(f"compare{REMOTE}") == here.metrics("compare")
    # Another run finds what is finished, but for what follows from an input that was overwritten under its name.
    changed = scene.features.read_bytes().replace(b'"Polygon"', b'"Polygon" ')
    s3.client().put_object(bucket, "features.geojson", BytesIO(changed), len(changed))
    nobody = {**given, "data_root": f"s3://{bucket}/data", "epochs": 1}
    again = run_local("hello_world", nobody, tmp_path)
    reused = {
        name: artifact.metadata.get("reused", False)
        for name, step in again.steps.items()
        for artifact in step.outputs.values()
        if "address" in artifact.metadata
    }
    assert reused.pop(f"rasterize{REMOTE}") is False
    assert reused[f"download{REMOTE}"] is True and reused[f"predict{REMOTE}"] is True
    assert "very-secret-key" not in there.log.read_text()
