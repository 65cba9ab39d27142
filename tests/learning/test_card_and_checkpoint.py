"""Model cards and checkpoints: what travels with weights, and what is refused."""

from __future__ import annotations

import json
import math
import resource
import stat

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from rsp.shared.config import Channel, ClassDef
from rsp.shared.errors import ModelError, StorageError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, load_checkpoint, read_card, save_checkpoint
from rsp.shared.learning.models import build_model

CARD = ModelCard(
    nn="unet",
    encoder="tiny",
    num_filters=16,
    channels=(Channel("images", (3, 1), (0.5, 0.4), (0.2, 0.1)), Channel("height", (1,), (0.5,), (0.25,))),
    classes=(ClassDef("background", (255, 255, 255)), ClassDef("dåch", (255, 20, 147), 2.0, True)),
    tile_size=64,
    overlap=16,
    epoch=3,
    epochs=10,
    metrics={"iou": 0.5, "mcc": math.nan},
    versions={"torch": "2.13.0"},
    uuid="",
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(CARD.model_config(), CARD.in_channels, CARD.num_classes).eval()


@pytest.fixture
def checkpoint(tmp_path, model):
    save_checkpoint(tmp_path / "a.safetensors", model, CARD)
    return tmp_path / "a.safetensors"


def test_card_survives_json():
    again = ModelCard.from_json(CARD.to_json())
    assert again.to_json() == CARD.to_json()
    assert again.channels == CARD.channels and again.classes == CARD.classes
    assert again.in_channels == 3 and again.mean == (0.5, 0.4, 0.5) and again.std == (0.2, 0.1, 0.25)
    assert math.isnan(again.metrics["mcc"]) and "NaN" not in CARD.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.pop("nn"), "'nn' is missing"),
        (lambda card: card.update(extra=1), "unknown key 'extra'"),
        (lambda card: card.update(tile_size="64"), "tile_size"),
        (lambda card: card.update(tile_size=10**9), "tile_size"),
        # A window of so many pixels takes more memory than there is.
        (lambda card: card.update(tile_size=4097), "tile_size: expected a whole number, 1 or more, up to 4096"),
        (lambda card: card.update(overlap=2049), "overlap: expected a whole number, 0 or more, up to 2048"),
        (lambda card: card.update(epoch=True), "epoch"),
        (lambda card: card.update(nn=3), "nn"),
        (lambda card: card.update(channels=[]), "channels"),
        (lambda card: card["channels"][0].update(bands=[0]), "channel 1: bands"),
        (lambda card: card["channels"][0].update(mean=[0.5]), "channel 1: mean has 1 numbers for 2 bands"),
        (lambda card: card["channels"][0].update(std=[0.0, 1.0]), "std must be above 0"),
        (lambda card: card["classes"].pop(), "classes"),
        (lambda card: card["classes"][1].update(color=[0, 0, 256]), "color"),
        (lambda card: card["classes"][1].update(title=None), "title"),
        (lambda card: card["classes"][1].update(title="a\nb"), "class 2: title: expected a name in one line"),
        (lambda card: card["classes"][1].update(title=card["classes"][0]["title"]), "have the same title"),
        (lambda card: [entry.update(ignore=True) for entry in card["classes"]], "nothing can be told apart"),
        (lambda card: card["classes"].append("roof"), "class 3: expected a table"),
        (lambda card: card.update(metrics={"iou": "high"}), "metrics"),
        (lambda card: card.update(versions=["2.13"]), "versions"),
    ],
)
def test_card_that_is_wrong(change, message):
    data = json.loads(CARD.to_json())
    change(data)
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 100_000, "1" * (1 << 21)])
def test_card_that_is_none(text):
    with pytest.raises(ModelError, match="model card"):
        ModelCard.from_json(text)


def test_checkpoint_gives_back_network_and_card(checkpoint, model):
    again, card = load_checkpoint(checkpoint)
    assert not again.training and card.to_json() == CARD.to_json() == read_card(checkpoint).to_json()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    assert (checkpoint.parent / "a.safetensors.json").read_text() == CARD.to_json() + "\n"


def test_checkpoint_can_be_read_by_others(checkpoint, tmp_path):
    """Pods that serve run as another user than those that train."""
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(checkpoint.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_bug_22_checkpoint_bakes_in_no_wrapper_and_no_pickle(checkpoint):
    from safetensors import safe_open

    with safe_open(checkpoint, "np") as file:
        assert not [name for name in file.keys() if name.startswith("module.")]  # noqa: SIM118
        assert "optimizer" not in file.metadata()
    assert checkpoint.read_bytes()[8:9] == b"{"


def test_fingerprint_follows_the_weights(model):
    first = fingerprint(model)
    assert first == fingerprint(model)
    with torch.no_grad():
        model.head.bias[0] += 1
        assert fingerprint(model) != first
        model.head.bias[0] -= 1


def test_pickle_is_refused(tmp_path):
    torch.save({"epoch": 1, "state_dict": {}}, tmp_path / "checkpoint-00001-of-00001.pth")
    torch.save({"epoch": 1}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("checkpoint-00001-of-00001.pth", "old.pth"):
        with pytest.raises(ModelError, match="pickle"):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 5000, -1])
def test_truncated_checkpoint(checkpoint, length):
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(checkpoint)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="cannot read"):
        read_card(tmp_path)


def test_safetensors_without_card(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="without a model card"):
        load_checkpoint(tmp_path / "a.safetensors")


def rewrite(path, weights=None, **metadata):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        notes = {**file.metadata(), **metadata}
    save_file(own if weights is None else weights(own), path, notes)


def test_checkpoint_of_another_network(checkpoint):
    rewrite(checkpoint, lambda own: {f"module.{name}": value for name, value in own.items()})
    with pytest.raises(ModelError, match=r"another network: 1.. are missing, 1.. are unknown"):
        load_checkpoint(checkpoint)


def test_checkpoint_of_another_width(checkpoint):
    rewrite(checkpoint, card=CARD.to_json().replace('"num_filters": 16', '"num_filters": 8'))
    with pytest.raises(ModelError, match="have another shape"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"depths": [1, 20_000, 1, 1]},
        {"inner": [{"num_hidden_layers": 2000}]},
        {"hidden_sizes": [16, 32, 64, 1_000_000]},
        {"model_type": "swin", "embed_dim": 16, "depths": [1, 1, 10**9, 1], "num_heads": [1] * 4},
        {"model_type": "swin", "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1] * 4, "window_size": 9999},
        {"model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 20_000, "image_size": 32},
        {"model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 4, "image_size": 10**6},
    ],
)  # fmt: skip
def test_checkpoint_with_a_plan_that_is_never_built(checkpoint, change):
    """Gigabytes would be taken, or minutes, before the weights are looked at."""
    with safe_open(checkpoint, "pt") as file:
        plan = json.loads(file.metadata()["plan"])
    if "model_type" in change:
        plan = {"out_indices": plan["out_indices"]}
    rewrite(checkpoint, plan=json.dumps(plan | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="made up: its network would be far larger than the weights in it"):
        load_checkpoint(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("plan", ["[", "[]", '{"model_type": "none"}', '{"depths": 3}'])
def test_checkpoint_with_a_plan_of_rubbish(checkpoint, plan):
    rewrite(checkpoint, plan=plan)
    with pytest.raises(ModelError):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:exec", "no.such:thing"])
def test_checkpoint_that_names_something_else_as_its_network(checkpoint, name, capfd):
    from rsp.shared.errors import PluginError

    rewrite(checkpoint, card=CARD.to_json().replace('"nn": "unet"', f'"nn": "{name}"'))
    with pytest.raises((ModelError, PluginError)):
        load_checkpoint(checkpoint)


def test_failure_to_write_leaves_the_old_checkpoint(checkpoint):
    class Bad(nn.Module):
        def state_dict(self):
            raise OSError(28, "No space left on device")

    before = checkpoint.read_bytes()
    with pytest.raises(StorageError, match="No space left"):
        save_checkpoint(checkpoint, Bad(), CARD)
    assert checkpoint.read_bytes() == before
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["a.safetensors", "a.safetensors.json"]


def test_shared_weights_are_saved(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    save_checkpoint(tmp_path / "a.safetensors", network, CARD)
    assert read_card(tmp_path / "a.safetensors").epoch == 3
    assert np.isfinite((tmp_path / "a.safetensors").stat().st_size)
