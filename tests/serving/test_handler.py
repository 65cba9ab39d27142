"""The handler by itself, in batches, with TorchServe's own context and without its server."""

from __future__ import annotations

import json

import pytest
from ts.context import Context, RequestProcessor

from rsp.serving.handler import TileHandler
from rsp.serving.store import read_failure
from rsp.shared.errors import ModelError
from rsp.shared.images import encode
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.inference import load_predictor, predict_tiles
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, noise


def context(model, *headers: dict[str, str]) -> Context:
    manifest = {"model": {"modelName": "rsp", "serializedFile": model.name, "modelVersion": "v1"}}
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


ABSURD = ["9" * 5000, "1" * 5, "-1", "+1", "1_0", "1.0", " 1", "٣", "", "\x00", "NaN", "16, 16", "0x10"]


@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_header_fails_its_own_request_only(model, handler, value):
    """C5: int() refuses more than 4,300 digits with an error that failed the whole batch."""
    plain = encode(noise(BLOCK[0]), "png")
    here = context(model, {"X-Overlap": value}, {"describe": value, "Content-Type": value}, {})
    refused, *others = handler.handle([{"body": plain}] * 3, here)
    assert here.get_response_status(0)[0] == 400 and "X-Overlap: expected a whole number" in refused
    assert others == predict_tiles(load_predictor(model, device="cpu"), [plain] * 2)


def test_why_a_model_cannot_be_loaded_is_noted_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RSP_MODEL_STORE", str(tmp_path))
    model = make_checkpoint(tmp_path / "m.safetensors")
    whole = model.read_bytes()
    model.write_bytes(whole[:5000])
    with pytest.raises(ModelError):
        TileHandler().initialize(context(model))
    assert read_failure(tmp_path, "rsp", "v1").startswith("ModelError: ")
    model.write_bytes(whole)
    TileHandler().initialize(context(model))
    assert read_failure(tmp_path, "rsp", "v1") is None
    # A store that is gone hides no reason.
    monkeypatch.setenv("RSP_MODEL_STORE", str(model / "none"))
    model.write_bytes(whole[:5000])
    with pytest.raises(ModelError):
        TileHandler().initialize(context(model))


def test_another_torch(tmp_path):
    model = make_checkpoint(tmp_path / "m.safetensors", versions={"torch": "1.13.1"})
    with pytest.raises(ModelError, match=r"exported by torch 1\.13\.1"):
        TileHandler().initialize(context(model))


def test_torchserve_finds_one_class():
    from ts.utils.util import list_classes_from_module

    import rsp.serving.handler

    assert list_classes_from_module(rsp.serving.handler) == [TileHandler]
