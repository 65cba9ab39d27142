"""Batch normalisations that are folded into convolutions: by whatever answers, of our own U-Net, and in a copy."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rsp.components.train.syncnorm import SyncNorm, synchronised
from rsp.shared.config import ModelConfig
from rsp.shared.learning.checkpoint import load_checkpoint
from rsp.shared.learning.formats import load_network, write_model
from rsp.shared.learning.formats.pt2 import PROGRAM
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.learning.models import build_model
from rsp.shared.learning.models.folding import folded
from rsp.shared.learning.models.norms import has_batch_norm
from rsp.shared.learning.models.resnet import Features, ResNet
from rsp.shared.learning.models.unet import UNet
from tests.learning.test_inference import pictures

# Of the largest logit; measured are 0.000004 for the tiny encoder and 0.000014 for a ResNet-50.
TOLERANCE = 5e-5


def make(encoder: str = "tiny", nn: str = "unet", norm: str = "batch") -> nn.Module:
    """Return a network whose normalisations have seen images, and differ in all that they compute with."""
    torch.manual_seed(0)
    config = ModelConfig(nn=nn, encoder=encoder, pretrained=False, num_filters=8, norm=norm)
    network = build_model(config, 3, 3).train()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = None  # the statistics are those of all batches
                module.eps = 0.01
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(2):
            network(torch.rand(2, 3, 64, 64) * 2 - 1)
    return network.eval()


def norms_of(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


@torch.inference_mode()
def answer(network: nn.Module, side: int = 96) -> torch.Tensor:
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    logits: torch.Tensor = network(images.contiguous(memory_format=torch.channels_last))
    return logits


@pytest.mark.parametrize(
    ("encoder", "pairs", "left"),
    [
        # 11 of the decoder, and those of the encoder: its first convolution, its layers and its shortcuts.
        ("tiny", 11 + 1 + 8 + 3, 0),
        ("resnet18", 11 + 1 + 16 + 3, 0),
        ("resnet50", 11 + 1 + 48 + 4, 0),
        ("convnextv2-atto", 11, 0),
        ("swin-tiny", 11, 0),
    ],
)
def test_a_unet_answers_the_same_without_its_normalisations(encoder, pairs, left):
    network = make(encoder)
    assert norms_of(network) == pairs
    quick = folded(network)
    assert type(quick) is UNet and not quick.training
    assert norms_of(quick) == left and norms_of(network) == pairs
    expected, found = answer(network), answer(quick)
    assert 0 < (found - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert expected.std() > 0.01


def test_what_is_trained_stays_as_it_is():
    """It goes on learning as a twin that nobody asked."""
    network = make()
    twin, modules = copy.deepcopy(network), dict(network.named_modules())
    quick = folded(network)
    answer(quick)
    for each in (network, twin):
        each.train()
        rate = torch.optim.SGD(each.parameters(), 0.1)
        torch.manual_seed(3)
        F.cross_entropy(each(torch.rand(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64))).backward()
        rate.step()
    assert dict(network.named_modules()) == modules
    weights = twin.state_dict()
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not quick.training


def test_other_weights_are_shared():
    network = make("swin-tiny")
    quick = folded(network)
    assert quick.backbone is network.backbone and quick.head is network.head
    assert quick.detail is not network.detail and quick.detail[2] is network.detail[2]


class Own(UNet):
    """A plug-in that looks at its layers in a way of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.detail[0](x).mean()


def of_a_plugin() -> nn.Module:
    network = make()
    network.__class__ = Own
    return network


@pytest.mark.parametrize(
    "build",
    [
        lambda: make(norm="group"),
        lambda: make("tiny", "segformer"),
        lambda: make("tiny", "upernet"),
        lambda: make().train(),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval(),
        lambda: nn.Sequential(make()).eval(),
        of_a_plugin,
        lambda: torch.relu,
    ],
    ids=["group", "segformer", "upernet", "training", "layers", "wrapped", "plug-in", "function"],
)
def test_networks_that_stay_as_they_are(build):
    network = build()
    before = dict(network.named_modules()) if isinstance(network, nn.Module) else {}
    assert folded(network) is network
    assert not before or before == dict(network.named_modules())


class OwnEncoder(ResNet):
    """An encoder that looks at its layers in a way of its own."""

    def forward(self, x: torch.Tensor) -> Features:
        first, *others = super().forward(x).feature_maps
        return Features((first + self.embedder.embedder.convolution(x).mean(), *others))


def test_an_encoder_of_another_class_is_kept():
    network = make()
    network.backbone.__class__ = OwnEncoder
    quick = folded(network)
    assert quick.backbone is network.backbone and norms_of(quick) == norms_of(network.backbone) == 12
    expected = answer(network)
    assert 0 < (answer(quick) - expected).abs().max() < TOLERANCE * expected.abs().max()


class Louder(nn.Conv2d):
    """A convolution that is more than one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def louder(network: nn.Module) -> None:
    network.detail[0].__class__ = Louder


def silent(network: nn.Module) -> None:
    network.detail[1].forward = lambda x: 0 * x


PARTS: dict[str, Callable[[nn.Module], object]] = {
    "seen after": lambda network: network.detail[0].register_forward_hook(lambda module, given, made: 2 * made),
    "seen before": lambda network: network.detail[1].register_forward_pre_hook(lambda module, given: 2 * given[0]),
    "another class": louder,
    "another way": silent,
    "in training": lambda network: network.detail[1].train(),
    "no statistics": lambda network: network.detail.__setitem__(
        1, nn.BatchNorm2d(8, track_running_stats=False).eval()
    ),
    "half": lambda network: network.detail.half(),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_pair_that_is_not_sure_is_left_alone(what):
    network = make()
    PARTS[what](network)
    quick = folded(network)
    assert norms_of(quick) == 1 and quick.detail is network.detail and quick.detail2 is not network.detail2
    if what != "half":  # which no longer fits the images
        torch.testing.assert_close(answer(quick), answer(network), atol=1e-4, rtol=1e-4)


def test_convolutions_with_a_bias_and_normalisations_without_weights():
    network = make()
    network.detail[0] = nn.Conv2d(3, 8, 3, padding=1)
    network.detail2[1] = nn.BatchNorm2d(8, affine=False).eval()
    network.detail2[1].running_mean.uniform_(-1, 1)
    quick = folded(network)
    assert norms_of(quick) == 0
    expected = answer(network)
    assert (answer(quick) - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("kind", [SyncNorm, nn.SyncBatchNorm])
def test_normalisations_over_processes_are_folded_to_the_same_bits(kind):
    """Training has them, and its validation must answer as the checkpoint does."""
    network = make()
    expected = folded(network).state_dict()
    changed = copy.deepcopy(network)
    convert = synchronised if kind is SyncNorm else nn.SyncBatchNorm.convert_sync_batchnorm
    changed = convert(changed).to(memory_format=torch.channels_last)
    assert sum(type(module) is kind for module in changed.modules()) == norms_of(network)
    found = folded(changed)
    assert norms_of(found) == 0
    assert list(found.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def test_all_that_answers_is_folded_and_gives_the_same_bytes(models):
    images = pictures(3, 96)
    network, card = load_checkpoint(models["checkpoint"])
    asked = load_predictor(models["checkpoint"])._network
    assert has_batch_norm(network) and not has_batch_norm(asked)
    expected = Predictor(network, card).logits(images, 16)
    for kind in ("checkpoint", "jit", "pt2"):
        for found, wanted in zip(load_predictor(models[kind]).logits(images, 16), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, kind)
    exported, _, _ = load_network(models["jit"])
    assert "conv" in str(exported.graph) and "batch_norm" not in str(exported.graph)
    for kind, name in (("pt2", PROGRAM), ("onnx", "")):
        data = member(models[kind], name).lower().replace(b"_", b"")
        assert b"conv" in data and b"batchnorm" not in data, kind


@pytest.mark.parametrize("kind", ["jit", "pt2"])
def test_exports_of_earlier_versions_answer_what_they_did(tmp_path, monkeypatch, models, kind):
    network, card = load_checkpoint(models["checkpoint"])
    with monkeypatch.context() as earlier:
        earlier.setattr("rsp.shared.learning.models.folding.folded", lambda network: network)
        write_model(tmp_path / "model", kind, network, card)
        expected = Predictor(network, card).logits(pictures(2, 96), 16)
    answers = load_predictor(tmp_path / "model").logits(pictures(2, 96), 16)
    for found, wanted in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(Predictor(network, card).logits(pictures(2, 96), 16), expected)


def member(path: Path, name: str) -> bytes:
    if not name:
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (found,) = (each for each in archive.namelist() if each.endswith(name))
        return archive.read(found)
