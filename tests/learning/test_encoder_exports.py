"""Encoders of every kind, and norms, through every export, which compares the answers: small ones, alike."""

from __future__ import annotations

import pytest
import torch

from rsp.components.export.tool import export
from rsp.shared.config import Channel, ClassDef, ModelConfig
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, save_checkpoint
from rsp.shared.learning.models import build_model, encoders

pytestmark = pytest.mark.slow

# ResNet is what the tests of export take.
SMALL = {
    "swin": {"depths": [1] * 4, "num_heads": [1, 2, 2, 4], "embed_dim": 16},
    "convnextv2": {"depths": [1] * 4, "hidden_sizes": [16, 16, 32, 32]},
}


def test_no_kind_is_left_out():
    assert {kind for _, kind, _ in encoders.ENCODERS.values()} == {"resnet", *SMALL}


@pytest.mark.parametrize(
    ("encoder", "kind"), [("swin", "onnx"), ("swin", "jit"), ("swin", "pt2"), ("convnextv2", "onnx")]
)
def test_encoders_can_be_exported(tmp_path, monkeypatch, encoder, kind):
    monkeypatch.setitem(encoders.ENCODERS, "small", (None, encoder, SMALL[encoder]))
    assert_exported(tmp_path, kind, "small")


@pytest.mark.parametrize("kind", ["onnx", "jit", "pt2"])
def test_group_norms_can_be_exported(tmp_path, kind):
    assert_exported(tmp_path, kind, "tiny", norm="group")


def assert_exported(tmp_path, kind, encoder, norm="batch"):
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder=encoder, norm=norm, pretrained=False), 3, 2).eval()
    channels = (Channel("images", (1, 2, 3), (0.5,) * 3, (0.25,) * 3, "uint8", 255.0),)
    classes = (ClassDef("background", (0, 0, 0)), ClassDef("building", (255, 0, 0)))
    card = ModelCard("unet", encoder, 32, channels, classes, 64, 0, norm=norm, uuid=fingerprint(model))
    save_checkpoint(tmp_path / "c.safetensors", model, card)
    result = export(tmp_path / "c.safetensors", tmp_path / f"model.{kind}", kind=kind)
    assert result.differing <= 2 and result.max_difference < 1e-4 and not result.refused
