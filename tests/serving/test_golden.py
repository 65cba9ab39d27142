"""Comparing golden masks, the releases on a server's disk, and TorchServe that does not start."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import rsp.serving.supervisor
from rsp.serving.cache import Cache, default_cache
from rsp.serving.golden import compare
from rsp.serving.management import NotReadyError
from rsp.serving.manifest import Precision
from rsp.serving.reader import ReleaseReader
from rsp.serving.releases import ReleaseStore
from rsp.serving.routes import Routes
from rsp.serving.supervisor import Supervisor
from rsp.shared.errors import ServingError
from rsp.shared.http import Backoff
from rsp.shared.images import encode_mask
from rsp.shared.storage import open_storage
from tests.serving.releases import publish
from tests.tilesets import COLORS

MASK = np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8)


class Worker(ThreadingHTTPServer):
    """Answers each tile with one mask."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.inference = f"http://127.0.0.1:{self.server_port}"
        self.say()

    def say(self, mask: np.ndarray = MASK, status: int = 200, body: bytes | None = None, **headers: str) -> None:
        self.status, self.body = status, encode_mask(mask, COLORS) if body is None else body
        told = {"x_model_version": "v1", "x_precision": "float32", "x_device": "cpu AVX2"} | headers
        self.headers = {name.replace("_", "-"): value for name, value in told.items() if value}


class Handler(BaseHTTPRequestHandler):
    server: Worker

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def worker():
    running = Worker()
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def release(tmp_path):
    """One whose masks were computed with AVX2, and its folder."""
    store = ReleaseStore(open_storage(tmp_path / "store"))
    made = publish(store, "v1", name="rsp")
    folder = tmp_path / "release"
    ReleaseReader(store.storage).fetch("rsp", "v1", folder)
    (folder / "golden/0.png").write_bytes(encode_mask(MASK, COLORS))
    assert made.precision == Precision("float32", "cpu", "AVX2")
    return made, folder


def off_by(pixels: int) -> np.ndarray:
    mask = MASK.copy()
    mask.reshape(-1)[:pixels] ^= 1
    return mask


def test_equal_masks(worker, release):
    worker.say()
    compare(*release, worker.inference, 30)


def test_pixels_may_differ_only_where_something_else_computes(worker, release):
    worker.say(off_by(1))
    with pytest.raises(ServingError, match=r"differ .* 0\.02% .*none may, as both compute alike"):
        compare(*release, worker.inference, 30)
    others = [
        {"x_device": "cpu AVX512"},
        {"x_device": "cuda sm_90"},
        {"x_precision": "bfloat16"},
        {"x_device": ""},
    ]
    for other in others:
        worker.say(off_by(4), **other)  # of 4,096: 0.098 %
        compare(*release, worker.inference, 30)
        worker.say(off_by(5), **other)
        with pytest.raises(ServingError, match=r"up to 0\.10% may"):
            compare(*release, worker.inference, 30)


def test_checkpoints_of_another_version_of_the_code_may_round_otherwise(worker, release):
    """An exported model is in the release; the network of a checkpoint is code of the server."""
    made, folder = release
    other, checkpoint = {"rsp": "0.0.1"}, {"model": "model.safetensors"}
    for pixels, changes, passes in (
        (4, other | checkpoint, True),
        (5, other | checkpoint, False),
        (1, other, False),
        (1, checkpoint, False),
    ):
        worker.say(off_by(pixels))
        with nullcontext() if passes else pytest.raises(ServingError, match="differ"):
            compare(replace(made, **changes), folder, worker.inference, 30)


def test_answers_that_are_no_masks_of_this_version(worker, release):
    for said, error, reason in (
        ({"body": b"{}"}, ServingError, "is no mask"),
        ({"mask": MASK[:32]}, ServingError, r"shape \(32, 64\)"),
        ({"x_model_version": "v2"}, ServingError, "version v2 answers in the place of v1"),
        ({"status": 400, "body": b"bad tile"}, ServingError, "answered with 400: bad tile"),
        ({"status": 507, "body": b"Worker died."}, NotReadyError, "answered with 507"),
    ):
        worker.say(**said)
        with pytest.raises(error, match=reason) as caught:
            compare(*release, worker.inference, 30)
        assert type(caught.value) is error
    with pytest.raises(NotReadyError, match="does not answer a golden tile"):
        compare(*release, "http://127.0.0.1:9", 30)


def test_releases_on_the_disk(tmp_path):
    store, cache = ReleaseStore(open_storage(tmp_path / "store")), Cache(tmp_path / "cache")
    assert cache.served("rsp") is None and cache.verified("rsp", "v1") is None
    for version in ("v1", "v2", "v3"):
        publish(store, version, name="rsp")
        store.fetch("rsp", version, cache.place("rsp", version))
    cache.note_served("rsp", "v2")
    assert cache.served("rsp") == "v2" and cache.verified("rsp", "v2") == store.release("rsp", "v2")
    model = cache.place("rsp", "v2") / "model.pt2"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert cache.verified("rsp", "v2") is None  # damaged
    store.fetch("rsp", "v2", cache.place("rsp", "v2"))
    assert cache.verified("rsp", "v2") is not None
    cache.place("rsp", "v1").rename(cache.place("rsp", "v9"))
    assert cache.verified("rsp", "v9") is None  # another one
    cache.prune("rsp", {"v2", "v3"})
    assert sorted(path.name for path in (tmp_path / "cache" / "rsp").iterdir()) == [".served", "v2", "v3"]
    (tmp_path / "cache" / "rsp" / ".served").write_text("../../etc\n")
    assert cache.served("rsp") is None


def test_where_releases_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, two = default_cache("s3://a/b"), default_cache("s3://a/c")
    assert one != two and one.parent == two.parent == tmp_path / "rsp" / "releases"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # as read-only as a container
    assert default_cache("s3://a/b").is_dir()


def test_a_torchserve_that_does_not_start_is_given_up(monkeypatch):
    """It is tried a few times; then whoever runs this process has to help."""

    class Broken:
        running, starts, port = False, 0, 9

        def launch(self) -> None:
            self.starts += 1

        def kill(self) -> None:
            pass

        def answers(self) -> bool:
            return False

        def tail(self) -> str:
            return "no memory"

    monkeypatch.setattr(rsp.serving.supervisor, "BACKOFF", Backoff(5, 0.01))
    monkeypatch.setattr(rsp.serving.supervisor, "POLL", 0.01)
    broken, ports = Broken(), []
    supervisor = Supervisor(broken, Routes(["rsp"]), ports.append)
    assert supervisor.problem() == "TorchServe is being started"
    supervisor.start()
    while supervisor.fault is None:
        time.sleep(0.01)
    assert supervisor.fault == "TorchServe has ended 5 times in a row:\nno memory" == supervisor.problem()
    assert broken.starts == 5 and ports == [9] * 5
