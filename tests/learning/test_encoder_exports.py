"""Networks and encoders of every kind, and norms, through every export, which compares the answers: small ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from rsp.components.export import tool
from rsp.shared.config import Channel, ClassDef, ModelConfig
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, save_checkpoint
from rsp.shared.learning.models import build_model, encoders
from rsp.shared.learning.models.segmentation import FAMILIES

pytestmark = pytest.mark.slow

# ResNet is what the tests of export take.
SMALL = {
    "swin": {"depths": [1] * 4, "num_heads": [1, 2, 2, 4], "embed_dim": 16},
    "convnextv2": {"depths": [1] * 4, "hidden_sizes": [16, 16, 32, 32]},
}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
FUSION = {"neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16}
# The networks that have encoders of their own.
NETWORKS = {
    "beit": {**PLAIN, "image_size": 64, "out_indices": [0, 1, 2, 3]},
    "data2vec-vision": {**PLAIN, "image_size": 64, "out_indices": [0, 1, 2, 3]},
    "dpt": {**PLAIN, **FUSION, "image_size": 64, "backbone_out_indices": [0, 1, 2, 3]},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]},
    "mobilevitv2": {"width_multiplier": 0.25, "base_attn_unit_dims": [16, 16, 16]},
    "sapiens2": {
        **PLAIN, "image_size": 64, "num_key_value_attention_heads": 2,
        "head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [16]},
    },
    "segformer": {"hidden_sizes": [16, 16, 32, 32], "depths": [1] * 4, "decoder_hidden_size": 32},
    "tipsv2_dpt": {
        **FUSION, "backbone_config": {**PLAIN, "model_type": "tipsv2_vision_model", "image_size": 56,
                                      "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
    },
}  # fmt: skip

# Each takes as long as the two other forms together, so not all of them are written as ONNX.
IN_ONNX = ("segformer", "upernet")


def test_no_kind_is_left_out():
    assert {kind for _, kind, _ in encoders.ENCODERS.values()} == {"resnet", *SMALL}
    assert set(FAMILIES) == {"upernet", *NETWORKS}


@pytest.mark.parametrize("kind", ["onnx", "jit", "pt2"])
@pytest.mark.parametrize("encoder", SMALL)
def test_encoders_can_be_exported(tmp_path, monkeypatch, encoder, kind):
    monkeypatch.setitem(encoders.ENCODERS, "small", (None, encoder, SMALL[encoder]))
    assert_exported(tmp_path, [kind], "small")


@pytest.mark.parametrize("nn", FAMILIES)
def test_networks_of_every_family_can_be_exported(tmp_path, monkeypatch, nn):
    encoder = "tiny"
    if nn in NETWORKS:
        encoder = str(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": nn, **NETWORKS[nn]}))
    monkeypatch.setattr(tool, "SAMPLE_PIXELS", 40_000)
    assert_exported(tmp_path, ["jit", "pt2", *(["onnx"] if nn in IN_ONNX else [])], encoder, nn=nn)


@pytest.mark.parametrize("kind", ["onnx", "jit", "pt2"])
def test_group_norms_can_be_exported(tmp_path, kind):
    assert_exported(tmp_path, [kind], "tiny", norm="group")


def assert_exported(tmp_path, kinds, encoder, **network):
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder=encoder, num_filters=8, pretrained=False, **network), 3, 2)
    make_lively(model)
    channels = (Channel("images", (1, 2, 3), (0.5,) * 3, (0.25,) * 3, "uint8", 255.0),)
    classes = (ClassDef("background", (0, 0, 0)), ClassDef("building", (255, 0, 0)))
    card = ModelCard(
        encoder=encoder, num_filters=8, channels=channels, classes=classes, tile_size=64, overlap=0,
        uuid=fingerprint(model), **{"nn": "unet", **network},
    )  # fmt: skip
    save_checkpoint(tmp_path / "c.safetensors", model, card)
    for kind in kinds:
        result = tool.export(tmp_path / "c.safetensors", tmp_path / f"model.{kind}", kind=kind)
        assert result.differing <= (2 if kind == "onnx" else 0) and not result.refused


def make_lively(model):
    """Give a network weights with which its answer follows from the image: of fresh ones many say one class."""
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        model.train()(images)
        share = model.eval()(images).argmax(1).float().mean()
    assert 0.01 < share < 0.99
