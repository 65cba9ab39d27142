"""rsp deploy and a real server: what is deployed answers, what the server refuses is taken back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import rsp.components.deploy.golden
from rsp.components.deploy.tool import deploy
from rsp.serving.client import TileClient
from rsp.serving.manifest import sha8
from rsp.serving.releases import ReleaseStore
from rsp.serving.server import Server
from rsp.shared.errors import ServingError
from rsp.shared.images import encode
from rsp.shared.learning.encoded import predict_tiles
from rsp.shared.learning.inference import load_predictor
from rsp.shared.storage import open_storage
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, make_tileset, noise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.java,
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java: install openjdk-17-jre-headless"),
]

IMAGE = encode(noise(BLOCK[0]), "png")


def mask_of(model: Path) -> bytes:
    (mask,) = predict_tiles(load_predictor(model, device="cpu"), [IMAGE])
    assert isinstance(mask, bytes)
    return mask


def test_deployed_replaced_refused_and_rolled_back(tmp_path, monkeypatch):
    place = tmp_path / "store"
    store = ReleaseStore(open_storage(place))
    golden = make_tileset(tmp_path / "golden.pmtiles")
    models = [make_checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1, 2)]
    first, second, third = map(sha8, models)
    with Server(place, ["rsp"], cache=tmp_path / "cache") as server:
        given = {"store": str(place), "golden": golden, "status": [server.status_url], "timeout": 120.0}
        result = deploy(models[0], **given)
        assert result.replicas and result.endpoint == f"{server.inference}/predictions/rsp"
        with TileClient(result.endpoint) as client:
            assert client.predict(IMAGE) == mask_of(models[0]) and client.served_version() == first
            assert deploy(models[1], **given).replaced == first
            assert client.predict(IMAGE) == mask_of(models[1]) and client.served_version() == second
            # Masks that the server will not make: as those of a model that it reads otherwise.
            masks = rsp.components.deploy.golden.predict_tiles
            monkeypatch.setattr(
                rsp.components.deploy.golden, "predict_tiles",
                lambda predictor, images: masks(load_predictor(models[0], device="cpu"), images),
            )  # fmt: skip
            with pytest.raises(ServingError, match=f"version {second} of rsp is wanted again: .* refuses it: "):
                deploy(models[2], **given)
            assert store.pointer("rsp").version == second and third in store.pointer("rsp").reason
            assert client.predict(IMAGE) == mask_of(models[1]) and client.served_version() == second
            assert deploy(store=str(place), rollback="", status=[server.status_url]).version == first
            assert client.predict(IMAGE) == mask_of(models[0]) and client.served_version() == first
