"""Networks that do not take the sizes of tiles that they would see are refused before they learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from rsp.components.train.sizes import check_sizes
from rsp.shared.config import parse_config, parse_tables
from rsp.shared.errors import ModelError
from rsp.shared.learning.models import build_model
from tests.tilesets import CONFIG

HIERA = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}


def config_of(encoder="tiny", **model):
    config = parse_config(parse_tables(CONFIG))
    return replace(config, model=replace(config.model, encoder=str(encoder), **model))


def test_an_encoder_of_one_size(tmp_path):
    AutoConfig.for_model("hiera", **HIERA).save_pretrained(tmp_path)
    model = build_model(config_of(tmp_path).model, 3, 2).train()
    for options, crop, message in (
        ({"ts": 256, "ms": 0}, 0, r"takes no images of 256 px \(training\): .*size"),
        (
            {"ts": 256, "ms": 0},
            224,
            r"takes no images of 256 px \(prediction, with the borders",
        ),
        ({"ts": 224, "ms": 32}, 0, r"takes no images of 288 px \(prediction, with the borders of tiles\)"),
    ):
        with pytest.raises(ModelError, match=message):
            check_sizes(model, config_of(tmp_path, **options), crop)
    check_sizes(model, config_of(tmp_path, ts=224, ms=0), 0)
    assert model.training


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("swin", {"depths": [1] * 4, "num_heads": [1, 2, 2, 4], "embed_dim": 8}),
        ("convnextv2", {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16]}),
        ("dinov2", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 224}),
        ("resnet", {"layer_type": "basic", "depths": [1] * 4, "hidden_sizes": [8] * 4, "embedding_size": 8}),
    ],
)
def test_others_take_any_size_and_nothing_is_computed(tmp_path, monkeypatch, kind, shape):
    AutoConfig.for_model(kind, **shape).save_pretrained(tmp_path)
    model = build_model(config_of(tmp_path).model, 3, 2)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].device.type))
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    check_sizes(model, config_of(tmp_path, ts=512, ms=128), 96)
    assert seen == ["meta", "meta"] and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Handmade(nn.Module):
    """A network that counts on the values of its input: no shapes alone will do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.layer(x) if float(x.sum()) == 0 else x


def test_what_the_meta_device_cannot_do_is_tried_in_earnest():
    check_sizes(Handmade(), config_of(), 0)


def test_plug_ins_say_it_for_themselves():
    check_sizes(nn.Identity(), replace(config_of(), model=replace(config_of().model, nn="somewhere:net")), 0)
