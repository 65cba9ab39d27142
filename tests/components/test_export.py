"""rsp export: the weights it writes, the check it makes, and its component."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kfp import dsl

from rsp.components.export.component import export as export_component
from rsp.components.export.tool import compare_models, export
from rsp.shared.errors import ModelError
from rsp.shared.learning.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from rsp.shared.learning.formats import read_model_card, sniff
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.learning.models import build_model
from tests.networks import make_card, make_checkpoint
from tests.tilesets import BLOCK, make_tileset

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.safetensors")


def test_jit_is_the_default_and_the_output_is_the_last_argument(checkpoint, tmp_path, rsp):
    ran = rsp("export", "--checkpoint", checkpoint, tmp_path / "model.pt")
    assert ran.code == 0, ran.stderr
    assert sniff(tmp_path / "model.pt") == "jit"
    assert "differing: 0" in ran.stderr


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_other_forms(checkpoint, tmp_path, rsp, kind):
    report = tmp_path / "report.json"
    ran = rsp("export", "--checkpoint", checkpoint, "--type", kind, "--out", tmp_path / "m", "--report", report)
    assert ran.code == 0, ran.stderr
    assert sniff(tmp_path / "m") == kind
    numbers = json.loads(report.read_text())
    assert numbers["pixels"] >= 400_000 and numbers["window"] == 96
    assert numbers["differing"] <= (4 if kind == "onnx" else 0)
    assert numbers["max_difference"] <= (1e-4 if kind == "onnx" else 0)


def test_the_card_travels_inside_and_beside(checkpoint, tmp_path):
    original = read_model_card(checkpoint)
    export(checkpoint, tmp_path / "m.pt2", kind="pt2")
    card = read_model_card(tmp_path / "m.pt2")
    assert replace(card, versions={}) == replace(original, versions={})
    assert card.uuid and card.versions["torch"] == torch.__version__
    assert json.loads((tmp_path / "m.pt2.json").read_text()) == json.loads(card.to_json())


def test_the_weights_are_those_of_the_checkpoint(checkpoint, tmp_path):
    """Bug 23: the export had random weights, since state_dict() was called where load_state_dict() was meant."""
    other = make_checkpoint(tmp_path / "other.safetensors", seed=5)
    export(checkpoint, tmp_path / "a.jit")
    export(other, tmp_path / "b.jit")
    for exported, source in (("a.jit", checkpoint), ("b.jit", other)):
        (ours,) = load_predictor(tmp_path / exported).logits([IMAGE])
        (theirs,) = load_predictor(source).logits([IMAGE])
        np.testing.assert_array_equal(ours, theirs)
    model, card = load_checkpoint(checkpoint)
    with pytest.raises(ModelError, match="does not answer as its checkpoint"):
        compare_models(Predictor(model, card), load_predictor(tmp_path / "b.jit"), [IMAGE])


def test_batch_normalisation_is_in_evaluation_mode(checkpoint, tmp_path):
    """Bug 23: the network was exported as in training, where an answer follows from the whole batch."""
    export(checkpoint, tmp_path / "m.jit")
    model = torch.jit.load(tmp_path / "m.jit")
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 9
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-4)


def save_plugin(path: Path, name: str) -> Path:
    card = make_card(f"tests.networks:{name}", "none")
    model = build_model(card.model_config(), card.in_channels, card.num_classes)
    save_checkpoint(path, model, replace(card, uuid=fingerprint(model)))
    return path


def test_an_export_that_answers_otherwise_is_not_written(tmp_path, rsp):
    source = save_plugin(tmp_path / "fickle.safetensors", "Fickle")
    (tmp_path / "out").mkdir()
    ran = rsp("export", "--checkpoint", source, tmp_path / "out" / "model.pt")
    assert ran.code == 1 and "does not answer as its checkpoint" in ran.stderr
    assert not list((tmp_path / "out").iterdir())


def test_an_export_that_fails_leaves_the_old_one(tmp_path, rsp):
    source = save_plugin(tmp_path / "fickle.safetensors", "Fickle")
    (tmp_path / "model.pt").write_bytes(b"old")
    assert rsp("export", "--checkpoint", source, tmp_path / "model.pt").code == 1
    assert (tmp_path / "model.pt").read_bytes() == b"old"


def test_a_network_that_cannot_be_exported(tmp_path, rsp):
    source = save_plugin(tmp_path / "branching.safetensors", "Branching")
    ran = rsp("export", "--checkpoint", source, "--type", "pt2", tmp_path / "model.pt2")
    assert ran.code == 1 and "cannot be exported to pt2" in ran.stderr
    assert not (tmp_path / "model.pt2").exists()


def test_it_is_compared_on_real_tiles(checkpoint, tmp_path):
    tiles = make_tileset(tmp_path / "tiles.pmtiles")
    result = export(checkpoint, tmp_path / "m.jit", tiles=tiles)
    plain = export(checkpoint, tmp_path / "m.jit")
    assert result.windows == plain.windows + len(BLOCK) and result.differing == 0


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_same_checkpoint_gives_the_same_file(checkpoint, tmp_path, kind):
    for name in ("a", "b"):
        export(checkpoint, tmp_path / name, kind=kind)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arguments_that_do_not_fit(checkpoint, tmp_path, rsp):
    assert rsp("export", tmp_path / "m").code == 2
    assert rsp("export", "--checkpoint", checkpoint).code == 2
    assert rsp("export", "--checkpoint", checkpoint, "--type", "pth", tmp_path / "m").code == 2
    ran = rsp("export", "--checkpoint", tmp_path / "none", tmp_path / "m")
    assert ran.code == 1 and "none" in ran.stderr
    torch.save({}, tmp_path / "pickle.pth")
    ran = rsp("export", "--checkpoint", tmp_path / "pickle.pth", tmp_path / "m")
    assert ran.code == 1 and "pickle" in ran.stderr
    ran = rsp("export", "--checkpoint", checkpoint, "--config", tmp_path / "none.toml", tmp_path / "m")
    assert ran.code == 1 and "none.toml" in ran.stderr
    assert not (tmp_path / "m").exists()


def test_component(checkpoint, run_component):
    step = run_component(export_component, {"checkpoint": (checkpoint, dsl.Model)})
    path = step.path("model")
    assert path.suffix == ".pt2" and sniff(path) == "pt2"
    metadata = step.artifacts["model"]["metadata"]
    assert metadata["rsp_kind"] == "model" and metadata["differing"] == 0
    assert json.loads(metadata["card"])["tile_size"] == 64
