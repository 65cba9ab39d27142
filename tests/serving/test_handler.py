"""The handler by itself, in batches, with TorchServe's own context and without its server."""

from __future__ import annotations

import json

import pytest
from ts.context import Context, RequestProcessor

from rsp.serving.handler import TileHandler
from rsp.shared.errors import ModelError
from rsp.shared.images import encode
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.inference import load_predictor, predict_tiles
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, noise


def context(model, *headers: dict[str, str]) -> Context:
    manifest = {"model": {"serializedFile": model.name, "modelVersion": "v1"}}
    made = Context("rsp", str(model.parent), manifest, len(headers), None, "0.12.0")
    made.model_yaml_config = {"handler": {"threads": 1}}
    made.request_processor = [RequestProcessor(dict(entry)) for entry in headers]
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def handler(model):
    made = TileHandler()
    made.initialize(context(model))
    return made


def test_a_batch_of_all_sorts(model, handler):
    plain, wide = encode(noise(BLOCK[0]), "png"), encode(noise(BLOCK[1], 96), "webp")
    rows = [
        ({"body": bytearray(plain)}, {}),
        ({"body": bytearray(b"junk")}, {}),
        ({"data": bytearray(wide)}, {"X-OVERLAP": "16"}),
        ({}, {"describe": "True"}),
        ({"body": "text"}, {"Content-Type": "text/plain"}),
        ({"body": bytearray(plain)}, {"x-overlap": "many"}),
        ({"body": bytearray(wide)}, {}),
        ({"body": {"a": "JSON"}}, {}),
    ]
    here = context(model, *(headers for _, headers in rows))
    answers = handler.handle([row for row, _ in rows], here)
    predictor = load_predictor(model, device="cpu")
    assert answers[0] == predict_tiles(predictor, [plain])[0]
    assert answers[2] == predict_tiles(predictor, [wide], 16)[0]
    assert ModelCard.from_json(answers[3]) == predictor.card
    good = [here.get_response_status(index)[0] == 200 for index in range(len(rows))]
    assert good == [True, False, True, True, False, False, False, False]
    for index, answer in enumerate(answers):
        assert here.get_response_headers(index)["X-Model-Version"] == "v1"
        kind = here.get_response_content_type(index)
        assert kind == ("image/png" if index in (0, 2) else "application/json")
        if not good[index]:
            assert here.get_response_status(index)[0] == 400
            assert set(json.loads(answer)) == {"error", "detail"}


def test_an_overlap_beyond_the_models(model, handler):
    here = context(model, {"X-Overlap": "17"})
    (answer,) = handler.handle([{"body": encode(noise(BLOCK[0], 98), "png")}], here)
    assert here.get_response_status(0)[0] == 400 and "up to 16" in answer


def test_another_torch(tmp_path):
    model = make_checkpoint(tmp_path / "m.safetensors", versions={"torch": "1.13.1"})
    with pytest.raises(ModelError, match=r"exported by torch 1\.13\.1"):
        TileHandler().initialize(context(model))


def test_torchserve_finds_one_class():
    from ts.utils.util import list_classes_from_module

    import rsp.serving.handler

    assert list_classes_from_module(rsp.serving.handler) == [TileHandler]
