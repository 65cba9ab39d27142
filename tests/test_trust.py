"""`--trust_model` and RSP_TRUST_MODEL: an exported model that fails the check runs only for those who say so."""

from __future__ import annotations

import json

import pytest

from rsp.shared.errors import ModelError
from rsp.shared.learning.checkpoint import load_checkpoint
from rsp.shared.learning.formats import write_model
from rsp.shared.tileset import open_reader
from tests.learning.test_crafted_models import first_line, script
from tests.networks import make_card, make_checkpoint
from tests.serving.test_handler import context
from tests.tilesets import BLOCK, make_tileset, noise

MAPS_A_FILE = '_0 = torch.add_(x, torch.reshape(torch.from_file("marker", True, 3072), [1, 3, 32, 32]))'


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    checkpoint = make_checkpoint(folder / "model.safetensors", make_card(tile_size=32, overlap=0))
    own = folder / "model.jit"
    write_model(own, "jit", *load_checkpoint(checkpoint))
    return {"own": own, "crafted": script(own, folder / "crafted.jit", first_line(MAPS_A_FILE))}


@pytest.fixture
def tiles(tmp_path):
    return make_tileset(tmp_path / "images", BLOCK[:1], draw=lambda tile: noise(tile, 32))


def test_predict(models, tiles, tmp_path, monkeypatch, rsp):
    monkeypatch.chdir(tmp_path)
    argv = ("predict", "--workers", 0, "--no_web_ui", "--checkpoint")
    ran = rsp(*argv, models["crafted"], tiles, "masks")
    assert ran.code == 1 and "torch.from_file" in ran.stderr and "--trust_model" in ran.stderr
    assert not (tmp_path / "marker").exists() and not (tmp_path / "masks").exists()
    assert rsp(*argv, models["crafted"], "--trust_model", tiles, "masks").code == 0
    assert (tmp_path / "marker").exists()
    assert rsp(*argv, models["own"], tiles, "own").code == 0
    with open_reader("masks") as masks, open_reader("own") as own:
        assert masks.read(BLOCK[0]) == own.read(BLOCK[0])  # it adds the zeros of a new file


def test_publishing_and_the_server(models, tmp_path, monkeypatch):
    from rsp.serving.handler import TileHandler
    from rsp.serving.publish import publish_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSP_TRUST_MODEL", raising=False)
    with pytest.raises(ModelError, match=r"torch\.from_file"):
        publish_model(models["crafted"], tmp_path / "store", "m", "")
    with pytest.raises(ModelError, match=r"torch\.from_file"):
        TileHandler().initialize(context(models["crafted"]))
    assert not (tmp_path / "marker").exists()
    monkeypatch.setenv("RSP_TRUST_MODEL", "1")
    assert len(publish_model(models["crafted"], tmp_path / "store", "m", "")) == 8
    handler = TileHandler()
    handler.initialize(context(models["crafted"]))
    assert json.loads(handler.predictor.card.to_json())["tile_size"] == 32 and (tmp_path / "marker").exists()
