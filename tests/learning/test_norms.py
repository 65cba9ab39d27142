"""Group normalisation in place of batch normalisation: in every network that has the latter, of no other tiles."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig

from rsp.shared.config import ModelConfig
from rsp.shared.errors import ModelError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from rsp.shared.learning.models import build_model
from rsp.shared.learning.models.norms import groups_of, has_batch_norm
from tests.networks import make_card


def make(network="unet", encoder="tiny", norm="group", **options):
    torch.manual_seed(0)
    return build_model(ModelConfig(network, encoder, norm=norm, **{"pretrained": False, **options}), 3, 2)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (1, 1),
        (7, 1),
        (8, 1),
        (13, 1),
        (16, 2),
        (24, 3),
        (30, 3),
        (40, 5),
        (64, 8),
        (256, 32),
        (512, 32),
        (2048, 32),
    ],
)
def test_groups_have_eight_channels_or_more(channels, groups):
    assert groups_of(channels) == groups
    nn.GroupNorm(groups, channels)  # which refuses groups of different sizes


@pytest.mark.parametrize(("network", "encoder"), [("unet", "tiny"), ("upernet", "tiny"), ("segformer", "tiny")])
def test_no_batch_normalisation_is_left(network, encoder):
    batch, group = make(network, encoder, norm="batch"), make(network, encoder)
    assert has_batch_norm(batch) and not has_batch_norm(group)
    kept = {name for name in batch.state_dict() if not name.rpartition(".")[2].startswith(("running", "num_b"))}
    assert kept == set(group.state_dict())
    # The same places, and nothing else is another.
    norms = {name for name, module in batch.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {name for name, module in group.named_modules() if isinstance(module, nn.GroupNorm)}
    assert all(torch.equal(batch.state_dict()[name], weight) for name, weight in group.state_dict().items())


def test_a_tile_is_normalised_by_itself_in_training_as_in_prediction():
    tiles = torch.rand(3, 3, 64, 64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None, None]
    network = make().train()
    with torch.no_grad():
        together = network(tiles)
        alone = torch.cat([network(tile[None]) for tile in tiles])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(network.eval()(tiles), together)
        batch = make(norm="batch").train()
        assert (batch(tiles[:2])[0] - batch(tiles[[0, 2]])[0]).abs().max() > 0.1  # what is to be got rid of


def test_networks_that_have_none():
    with pytest.raises(ModelError, match='Blurred\' has no batch normalisation that norm = "group" could'):
        make("tests.networks:Blurred")


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("convnextv2", {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16]}),
        ("swin", {"depths": [1] * 4, "num_heads": [1, 2, 2, 4], "embed_dim": 8}),
    ],
)
def test_encoders_that_have_none_keep_their_norms_and_their_weights(tmp_path, kind, shape):
    """Only the decoder is another, which is new in any case."""
    source = AutoBackbone.from_config(AutoConfig.for_model(kind, **shape))
    source.save_pretrained(tmp_path)
    network = make(encoder=str(tmp_path), pretrained=True)
    kinds = {type(module) for module in network.backbone.modules()}
    assert nn.GroupNorm not in kinds and not has_batch_norm(network)
    weights = network.backbone.state_dict()
    shared = [name for name in source.state_dict() if "hidden_states_norms" not in name]
    assert shared and all(torch.equal(weights[name], source.state_dict()[name]) for name in shared)


@pytest.mark.parametrize(("network", "encoder"), [("unet", "resnet18"), ("unet", "someone/resnet")])
def test_pretrained_weights_of_batch_normalisation(monkeypatch, tmp_path, network, encoder):
    """They are not even asked for."""
    if "/" in encoder:
        encoder = str(tmp_path)
        AutoConfig.for_model("resnet", depths=[1] * 4, hidden_sizes=[8] * 4, layer_type="basic").save_pretrained(
            tmp_path
        )
    monkeypatch.setattr("rsp.shared.learning.models.encoders.fetch", None)
    with pytest.raises(ModelError, match=r"were trained with batch normalisation, .* set pretrained = false"):
        make(network, encoder, pretrained=True)


def test_a_checkpoint_says_so_and_is_built_so(tmp_path):
    network = make(num_filters=8).eval()
    card = replace(make_card(), norm="group", uuid=fingerprint(network))
    save_checkpoint(tmp_path / "a.safetensors", network, card)
    again, found = load_checkpoint(tmp_path / "a.safetensors")
    assert found.norm == "group" and not has_batch_norm(again)
    tile = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(tile), network(tile))


def test_a_card_says_what_there_is():
    data = json.loads(make_card().to_json())
    with pytest.raises(ModelError, match="norm: expected one of batch, group"):
        ModelCard.from_json(json.dumps(data | {"norm": "layer"}))
    del data["norm"]  # as one of an older version
    assert ModelCard.from_json(json.dumps(data)).norm == "batch"
