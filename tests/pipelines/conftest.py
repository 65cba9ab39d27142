"""What the tests of the cluster's client share."""

from __future__ import annotations

import pytest

from tests.pipelines.kfp_server import KfpServer


@pytest.fixture
def kfp_server(monkeypatch):
    """A Kubeflow Pipelines that the environment names."""
    monkeypatch.delenv("KF_PIPELINES_TOKEN", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("RSP_IMAGE_TAG", "1.0.0")
    with KfpServer() as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        yield server
