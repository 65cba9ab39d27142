"""Networks: any encoder, any number of bands and classes, from hub, folder or nothing, and out of the house."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoBackbone, AutoConfig, AutoModelForSemanticSegmentation

from rsp.shared.config import ModelConfig
from rsp.shared.errors import ModelError, PluginError
from rsp.shared.learning.models import build_model, plan_of
from rsp.shared.learning.models.encoders import ENCODERS, build_backbone, config_of, encoder_config
from rsp.shared.learning.models.resnet import ResNet, is_ours
from rsp.shared.learning.models.unet import ConvBlock, UNet


def make(nn="unet", encoder="tiny", bands=3, classes=2, **options):
    torch.manual_seed(0)
    options = {"pretrained": False, **options}
    return build_model(ModelConfig(nn=nn, encoder=encoder, **options), bands, classes).eval()


@pytest.mark.parametrize(
    ("nn", "encoder"),
    [
        ("unet", "tiny"),
        ("unet", "resnet18"),
        ("albunet", "convnextv2-atto"),
        ("unet", "swin-tiny"),
        ("segformer", "tiny"),
        ("segformer", "mit-b0"),
        ("upernet", "tiny"),
    ],
)
def test_bands_and_classes_of_any_number(nn, encoder):
    network = make(nn, encoder, bands=5, classes=4)
    with torch.no_grad():
        logits = network(torch.rand(2, 5, 64, 96))
    assert logits.shape == (2, 4, 64, 96) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_tiny_is_tiny():
    assert sum(weight.numel() for weight in make().parameters()) < 1_500_000


def test_every_short_name_has_a_configuration():
    for name, (hub, kind, shape) in ENCODERS.items():
        assert AutoConfig.for_model(kind, **shape).stage_names, name
        assert (hub is None) == (name == "tiny")


@pytest.mark.parametrize("encoder", ["tiny", "convnextv2-atto"])
def test_gradients_reach_every_weight(encoder):
    network = make(encoder=encoder).train()
    network(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


def test_training_takes_a_shorter_way_to_the_same():
    network = make(bands=2, classes=3).double().train()
    images = torch.rand(2, 2, 64, 96, dtype=torch.float64)

    def learn():
        network.zero_grad()
        with FlopCounterMode(display=False) as counter:
            answer = network(images)
        answer.square().mean().backward()
        return counter.get_total_flops(), [answer.detach(), *(weight.grad for weight in network.parameters())]

    few, short = learn()
    for module in network.modules():
        if isinstance(module, UNet | ConvBlock):
            module.training = False  # takes the plain way, with norms that still train
    many, plain = learn()
    assert few < 0.8 * many
    for ours, expected in zip(short, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("encoder", ["tiny", "resnet18", "resnet50"])
def test_a_resnet_is_that_of_transformers(encoder):
    """The same first weights by the same draws, the same answers and gradients; and plans go both ways."""
    config = encoder_config(encoder)
    config.num_channels = 5
    torch.manual_seed(3)
    expected, drawn = AutoBackbone.from_config(config), torch.get_rng_state()
    torch.manual_seed(3)
    ours, plan = build_backbone(encoder, 5, False, None)
    assert type(ours) is ResNet and torch.equal(torch.get_rng_state(), drawn)
    assert ours.training == expected.training
    weights = expected.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    images = torch.rand(2, 5, 64, 96)
    answers = [network(images).feature_maps for network in (ours, expected)]
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)
    for answer in answers:
        sum(feature.square().mean() for feature in answer).backward()
    for one, other in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    # A checkpoint of an earlier release, and one of this release in an earlier one; bands may be others.
    assert type(build_backbone(encoder, 3, False, config.to_dict())[0]) is ResNet
    theirs = AutoBackbone.from_config(config_of(plan)).state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in weights.items()
    }
    assert config_of(plan).out_indices == config.out_indices


@pytest.mark.parametrize(
    "other",
    [
        {"model_type": "regnet"}, {"hidden_act": "gelu"}, {"downsample_in_bottleneck": True},
        {"downsample_in_first_stage": True}, {"out_indices": [0, 1, 2, 3]}, {"depths": [1, 1, 1]},
    ],
)  # fmt: skip
def test_resnets_of_another_form_are_left_to_transformers(other):
    plan = build_backbone("tiny", 3, False, None)[1]
    assert is_ours(plan) and not is_ours({**plan, **other})
    assert not is_ours({}) and not is_ours({name: value for name, value in plan.items() if name != "model_type"})


def test_seed_of_torch_decides_the_first_weights():
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_names_in_any_case_as_configurations_have_them():
    assert type(make("Albunet")) is type(make("unet"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "resnet51"}, ModelError, "unknown encoder 'resnet51'; built in are tiny, resnet18"),
        ({"nn": "segformer", "encoder": "b9"}, ModelError, "expected tiny, mit-b0"),
        ({"nn": "dpt"}, ModelError, "expected a hub id"),
        ({"nn": "nonet"}, PluginError, "unknown network 'nonet'; known: albunet"),
        ({"nn": "collections:OrderedDict"}, PluginError, "cannot be built"),
        ({"nn": "tests.learning.test_models:no_network"}, PluginError, "returned dict"),
        ({"pretrained": True}, ModelError, "no pretrained weights exist for the encoder 'tiny'"),
        ({"nn": "segformer", "pretrained": True}, ModelError, "no pretrained weights exist for segformer"),
    ],
)
def test_networks_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize("encoder", ["resnet18", "someone/some-backbone"])
def test_offline_says_what_to_do(encoder):
    with pytest.raises(ModelError, match=r"set pretrained = false in .model., or give a local folder"):
        make(encoder=encoder, pretrained=True)


def no_network(model, in_channels, num_classes):
    return {}


class Own(torch.nn.Module):
    def __init__(self, model, in_channels, num_classes):
        super().__init__()
        self.layer = torch.nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x):
        return self.layer(x)


def test_plug_in_by_name_and_by_entry_point(tmp_path, monkeypatch):
    network = make("tests.learning.test_models:Own", bands=4, classes=3)
    assert network(torch.rand(1, 4, 8, 8)).shape == (1, 3, 8, 8) and plan_of(network) is None
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rsp.models]\nown = tests.learning.test_models:Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make("own", bands=4).layer.in_channels == 4


# --- pretrained weights, from a folder as from the hub ----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    _, kind, shape = ENCODERS["tiny"]
    AutoBackbone.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(path)
    return path


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_pretrained_encoder_from_a_folder(folder):
    source = weights_of(folder)
    network = make(encoder=str(folder), pretrained=True)
    own = network.backbone.state_dict()
    assert set(own) == set(source) and all(torch.equal(own[name], source[name]) for name in own)
    fresh = make(encoder=str(folder), pretrained=False).backbone.state_dict()
    assert not torch.equal(
        fresh["embedder.embedder.convolution.weight"], source["embedder.embedder.convolution.weight"]
    )


@pytest.mark.parametrize("bands", [1, 2, 4, 5, 7])
def test_first_layer_is_adapted_to_the_bands(folder, bands):
    name = "embedder.embedder.convolution.weight"
    source = weights_of(folder)[name]
    own = make(encoder=str(folder), pretrained=True, bands=bands).backbone.state_dict()[name]
    expected = torch.stack([source[:, band % 3] * 3 / bands for band in range(bands)], dim=1)
    torch.testing.assert_close(own, expected)


def test_pickled_weights_are_not_taken(folder, tmp_path):
    """A folder with pytorch_model.bin only: a pickle could run code."""
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(weights_of(folder), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        make(encoder=str(tmp_path), pretrained=True)


def test_weights_of_something_else(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="weights of another network"):
        make(encoder=str(tmp_path), pretrained=True)


def test_folder_that_is_no_backbone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="is not a backbone"):
        make(encoder=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot get the configuration"):
        make(encoder=str(tmp_path))


def test_plan_rebuilds_without_the_folder(folder, tmp_path):
    moved = tmp_path / "gone"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    network = make(encoder=str(moved), pretrained=True, bands=4)
    plan = json.loads(json.dumps(plan_of(network)))
    for file in moved.iterdir():
        file.unlink()
    again = build_model(ModelConfig(encoder=str(moved), pretrained=False), 4, 2, plan=plan).eval()
    again.load_state_dict(network.state_dict())
    image = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), network(image))


def test_plain_transformer_as_encoder(tmp_path):
    """All features of a DINOv2 have one resolution; they are brought to those of a pyramid."""
    config = AutoConfig.for_model(
        "dinov2", hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=224
    )
    config.save_pretrained(tmp_path)
    network = make(encoder=str(tmp_path), bands=4)
    with torch.no_grad():
        assert network(torch.rand(1, 4, 64, 128)).shape == (1, 2, 64, 128)


def test_pretrained_segformer_from_a_folder_with_other_classes(tmp_path):
    config = AutoConfig.for_model(
        "segformer", hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, decoder_hidden_size=32
    )
    config.num_labels = 7
    source = AutoModelForSemanticSegmentation.from_config(config)
    source.save_pretrained(tmp_path)
    network = make("segformer", str(tmp_path), bands=3, classes=2, pretrained=True)
    own, theirs = network.network.state_dict(), source.state_dict()
    head = "decode_head.classifier.weight"
    assert own[head].shape[0] == 2 and theirs[head].shape[0] == 7
    assert all(torch.equal(own[name], theirs[name]) for name in own if "classifier" not in name)
    with pytest.raises(ModelError, match="is a segformer, not a upernet: set nn = 'segformer'"):
        make("upernet", str(tmp_path))


# --- export -----------------------------------------------------------------------------------------------------


BATCH = ({0: torch.export.Dim("batch", min=1)},)


@pytest.mark.parametrize("nn", ["unet", "segformer"])
def test_networks_can_be_exported(nn):
    network = make(nn, bands=4)
    image = torch.rand(2, 4, 64, 64)
    with torch.no_grad():
        program = torch.export.export(network, (image,), dynamic_shapes=BATCH)
        assert torch.equal(program.module()(image[:1]), network(image[:1]))
        assert torch.equal(torch.jit.trace(network, image)(image), network(image))


def test_network_as_onnx(tmp_path):
    import onnxruntime

    network = make(bands=4)
    image = torch.rand(2, 4, 64, 64)
    with torch.no_grad():
        torch.onnx.export(network, (image,), dynamo=True, dynamic_shapes=BATCH, verbose=False).save(
            tmp_path / "a.onnx"
        )
        expected = network(image)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(answer, expected.numpy(), atol=1e-5)
