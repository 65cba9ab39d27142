"""Plug-ins that fail or return something else: one error that names them, in training, prediction and export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rsp.components.train.processes import World
from rsp.components.train.start import Plan
from rsp.components.train.training import train_model
from rsp.shared.config import load_config
from rsp.shared.errors import ModelError, PluginError, RspError
from rsp.shared.learning.checkpoint import load_checkpoint, save_checkpoint
from rsp.shared.learning.formats import write_model
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.plugins import describe
from tests import hostile
from tests.networks import make_card
from tests.toy import make_config, make_dataset

NETWORKS = [
    ("AsDict", "answers dict with the keys out; expected are logits"),
    ("Smaller", r"answers Tensor of (float32|bfloat16) and shape \((4|1|2), 2, 32, 32\)"),
    ("OneClass", r"answers Tensor of (float32|bfloat16) and shape \((4|1|2), 1, 64, 64\)"),
    ("Whole", "answers Tensor of int64"),
    ("Raising", "failed: KeyError: 'features'"),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("toy"))


def train(toy, tmp_path, **model):
    config = load_config(make_config(tmp_path / "config.toml"))
    model = {key: f"tests.hostile:{value}" for key, value in model.items()} | {"bs": 4}
    options = {"nn": "tests.hostile:Thin", "pretrained": False, "dap": 1.0, **model}
    if "metrics" in model:
        options["metrics"] = (model["metrics"],)
    config = replace(config, model=replace(config.model, **options))
    train_model(Plan(config, toy, tmp_path / "out", epochs=1), World(torch.device("cpu")))


def checkpoint(path, name):
    card = make_card(f"tests.hostile:{name}", tile_size=64, overlap=0)
    torch.manual_seed(0)
    save_checkpoint(path, getattr(hostile, name)(card.model_config(), 3, 2), card)
    return path


@pytest.mark.parametrize(("name", "message"), NETWORKS)
def test_networks(toy, tmp_path, name, message):
    """In training, prediction and export alike."""
    expected = f"^the network 'tests.hostile:{name}' {message}"
    with pytest.raises(PluginError, match=expected):
        train(toy, tmp_path, nn=name)
    path = checkpoint(tmp_path / "c.safetensors", name)
    with pytest.raises(PluginError, match=expected):
        load_predictor(path, device="cpu").masks([np.zeros((64, 64, 3), np.uint8)])
    for kind in ("jit", "pt2", "onnx"):
        with pytest.raises(PluginError, match=expected):
            write_model(tmp_path / kind, kind, *load_checkpoint(path))


def test_a_network_that_answers_nan(toy, tmp_path):
    """A mask of it would be all background, without a word."""
    with pytest.raises(ModelError, match="training diverged"):
        train(toy, tmp_path, nn="NotANumber")
    predictor = load_predictor(checkpoint(tmp_path / "c.safetensors", "NotANumber"), device="cpu")
    image = np.zeros((64, 64, 3), np.uint8)
    for answer in (predictor.masks, predictor.probabilities):
        with pytest.raises(PluginError, match=r"'tests.hostile:NotANumber' answers NaN"):
            answer([image])
    own = Predictor(lambda batch: torch.full((1, 2, 64, 64), torch.inf), make_card(tile_size=64, overlap=0))
    with pytest.raises(ModelError, match="the network 'unet' answers NaN or infinity"):
        own.masks([image])


def test_what_is_no_network(toy, tmp_path):
    with pytest.raises(PluginError, match=r"'tests.hostile:no_network' returned dict with the keys layer"):
        train(toy, tmp_path, nn="no_network")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loss_without_factory", "cannot be made: TypeError.*labels.*expected a function of the class weights"),
        ("loss_of_a_number", "returned 3.0; expected loss"),
        (
            "loss_per_pixel",
            r"returned Tensor of float32 and shape \(4, 64, 64\); expected a tensor of one number",
        ),
        ("loss_as_float", "returned 0.5; expected a tensor of one number"),
        ("loss_detached", "does not depend on the logits"),
        ("loss_raising", "failed: RuntimeError"),
    ],
)
def test_losses(toy, tmp_path, name, message):
    with pytest.raises(PluginError, match=f"^the loss 'tests.hostile:{name}' .*{message}"):
        train(toy, tmp_path, loss=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("augment_to_one", "returned ndarray of float32 .*; expected a pair"),
        (
            "augment_smaller",
            r"returned ndarray of float32 and shape \(3, 32, 32\); expected as its image",
        ),
        ("augment_to_double", "returned ndarray of float64"),
        ("augment_to_nan", "NaN or infinity"),
        ("augment_label", r"returned ndarray of int64 .*; expected as its label an array of uint8"),
        ("augment_raising", "failed: IndexError"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_augmentations(toy, tmp_path, name, message):
    with pytest.raises(PluginError, match=f"^the augmentation 'tests.hostile:{name}' .*{message}"):
        train(toy, tmp_path, da=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("metric_as_dict", "returned dict with the keys iou; expected a number"), ("metric_raising", "IndexError")],
)
def test_metrics(toy, tmp_path, name, message):
    with pytest.raises(PluginError, match=f"^the metric 'tests.hostile:{name}' .*{message}"):
        train(toy, tmp_path, metrics=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_loader", "returned list of length 1; expected an object with"),
        ("LoaderWithoutTiles", "returned LoaderWithoutTiles; expected an object with"),
        ("LoaderOfChannelsFirst", r"returned ndarray of uint8 and shape \(3, 64, 64\); expected as the image"),
        ("LoaderOfLongs", "returned ndarray of int64 .*; expected as the label"),
        ("LoaderOfManyClasses", r"tile 5/\d/0 that holds class 9; the configuration has 2 classes"),
        ("LoaderOfImages", "expected a pair: image and label"),
        ("LoaderOfOneNote", "returned .*; expected as `notes` a list of str"),
        ("LoaderOfOtherChannels", r"has the channels \[\('images', \(1,\)\)\]; the configuration has"),
        ("LoaderOfNames", "expected as `channels` a list of Channel"),
        ("LoaderOfADigest", r"expected by `digest\(\)` a SHA-256 in 64 hexadecimal digits"),
        ("LoaderOfNoDigest", "failed: KeyError"),
        ("LoaderRaising", "failed: FileNotFoundError"),
    ],
)
def test_loaders(toy, tmp_path, name, message):
    with pytest.raises(PluginError, match=f"^the loader 'tests.hostile:{name}' .*{message}"):
        train(toy, tmp_path, loader=name)


def test_a_loader_without_notes_trains(toy, tmp_path):
    train(toy, tmp_path, loader="Loader")
    assert (tmp_path / "out" / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (3, "3"), ([1, 2], "list of length 2"), ({}, "dict with the keys none"),
        (np.zeros((2, 3)), "ndarray of float64 and shape (2, 3)"),
        (torch.zeros(2), "Tensor of float32 and shape (2,)"),
    ],
)  # fmt: skip
def test_what_a_value_is_in_few_words(value, text):
    assert describe(value) == text
    assert issubclass(PluginError, RspError)
