"""What the tests of pipelines share."""

from __future__ import annotations

from functools import partial

import pytest

from tests.pipelines.kfp_server import KfpServer
from tests.s3 import moto


@pytest.fixture(scope="session")
def hello_world_run(scene, scene_server, once):
    """HelloWorld with artifacts, on a machine without a network; run once for all processes of the suite."""
    from rsp.pipelines.local import LocalRun
    from tests.pipelines.test_hello_world import run_offline

    folder = once("hello_world", partial(run_offline, scene, scene_server))
    return LocalRun.load(folder / "hello-world-1")


@pytest.fixture(scope="module")
def s3():
    """An S3 server that the environment names."""
    with moto() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def bucket(s3) -> str:
    """The address of an empty bucket."""
    return f"s3://{s3.bucket()}"


@pytest.fixture
def kfp_server(monkeypatch):
    """A Kubeflow Pipelines that the environment names."""
    monkeypatch.delenv("KF_PIPELINES_TOKEN", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("RSP_IMAGE_TAG", "1.0.0")
    with KfpServer() as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        yield server
