"""Retraining into a TorchServe that runs: the pipeline deploys, the endpoint answers as the pipeline did."""

from __future__ import annotations

import pytest

from rsp.pipelines.local import run_local
from rsp.serving.manifest import sha8
from rsp.shared.tileset import open_reader
from tests.tilesets import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.java, pytest.mark.xdist_group("torchserve")]


def test_retraining_deploys(scene, scene_server, tmp_path, rsp):
    from rsp.serving.host import preflight
    from rsp.serving.server import Server
    from rsp.shared.errors import ServingError

    try:
        preflight()
    except ServingError as error:
        pytest.skip(str(error))
    store = tmp_path / "store"
    with Server(store, ["nightly"], cache=tmp_path / "cache") as server:
        run = run_local(
            "retraining",
            {
                "source": scene.bbox_text,
                "zoom": scene.zoom,
                "url": f"{scene_server.url}/xyz/{{z}}/{{x}}/{{y}}.jpg",
                "rate": 100,
                "features": str(scene.features),
                "config": CONFIG.replace("ts = 64", "ts = 256\nnum_filters = 8"),
                "epochs": 1,
                "gpus": "0",
                "block": 2,
                "threshold": 0.0,
                "store": str(store),
                "status": server.status_url,
                "endpoint": server.inference,
                "model_name": "nightly",
            },
            tmp_path / "runs",
        )
        assert run.steps["deploy"].ok and run.skipped == []
        assert run.steps["gate"].parameters == {"Output": "deploy"}
        version = sha8(run.path("export", "model"))
        endpoint = f"{server.inference}/predictions/nightly"
        assert run.steps["deploy"].parameters == {"version": version, "endpoint": endpoint, "replaced": ""}
        images = run.path("subset-validation-images", "subset")
        ran = rsp("predict", "--endpoint", endpoint, images, tmp_path / "masks")
        assert ran.code == 0, ran.stderr
    with open_reader(tmp_path / "masks") as served, open_reader(run.path("predict", "masks")) as predicted:
        assert served.tiles() == predicted.tiles()
        for tile in served.tiles():
            assert served.read(tile) == predicted.read(tile)
