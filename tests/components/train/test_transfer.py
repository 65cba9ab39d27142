"""Fine-tuning to other bands and classes: what both have keeps its weights, and what is new begins in between."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.components.train.start import keep_statistics
from rsp.components.train.training import train_model
from rsp.components.train.transfer import match_bands, match_classes, transfer
from rsp.shared.config import Channel, ClassDef, ModelConfig, load_config
from rsp.shared.errors import ModelError
from rsp.shared.images import encode, encode_mask
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import load_checkpoint, read_card
from rsp.shared.learning.models import build_model
from rsp.shared.tileset import open_writer
from tests.tilesets import squares
from tests.toy import TRAINING, VALIDATION, make_config, make_dataset, photo


def channel(name, *bands, mean=0.5):
    return Channel(name, bands, (mean,) * len(bands), (0.25,) * len(bands), "uint8", 255.0)


def classes(*titles):
    return tuple(ClassDef(title, (0, 0, 0)) for title in titles)


RGB = (channel("images", 1, 2, 3),)
OLD = classes("background", "building")


def test_bands_are_known_by_channel_and_number():
    assert match_bands((channel("images", 3, 1, 7),), RGB) == [2, 0, None]
    assert match_bands((channel("roads", 1), *RGB), RGB) == [None, 0, 1, 2]
    assert match_bands(RGB, (channel("roads", 1), *RGB)) == [1, 2, 3]
    assert match_bands((channel("ortho", 1, 2, 3),), RGB) == [0, 1, 2]  # called otherwise
    assert match_bands((channel("ortho", 1, 2, 3), channel("images", 1)), RGB) == [None, None, None, 0]
    assert match_bands((channel("ortho", 1, 2),), RGB) == [None, None]
    assert match_classes(classes("a", "background", "building"), OLD) == [None, 0, 1]


def test_statistics_of_bands_that_the_weights_know_are_kept():
    card = ModelCard("unet", "tiny", 32, (channel("images", 1, 2, 3, mean=0.1),), OLD, 64, 16)
    given = (replace(channel("images", 3, 9), mean=(), std=()), replace(channel("roads", 1), mean=(), std=()))
    assert keep_statistics(given, given, card) == given  # some must be measured
    measured = (channel("images", 3, 9, mean=0.7), channel("roads", 1, mean=0.8))
    one, other = keep_statistics(given, measured, card)
    assert (one.mean, other.mean) == ((0.1, 0.7), (0.8,))
    whole = (replace(channel("images", 2, 1), mean=(), std=()),)
    assert keep_statistics(whole, whole, card)[0].mean == (0.1, 0.1)
    # What is said is used, and values of another kind are others.
    assert keep_statistics(RGB, RGB, card) == RGB
    deep = (replace(given[0], value_type="uint16", divisor=65535.0),)
    assert keep_statistics(deep, measured[:1], card) == measured[:1]


@pytest.mark.parametrize(
    ("nn", "first", "head"),
    [
        ("unet", 2, "head"),  # the skip connection at full resolution sees the bands, too
        ("segformer", 1, "network.decode_head.classifier"),
        ("upernet", 1, "network.decode_head.classifier"),
    ],
)
def test_weights_of_bands_and_classes(nn, first, head):
    torch.manual_seed(1)
    model = build_model(ModelConfig(nn=nn, encoder="tiny", pretrained=False), 3, 2)
    card = ModelCard(nn, "tiny", 32, RGB, OLD, 64, 16)
    assert transfer(model, card, RGB, OLD) == (model, [])
    wanted = (channel("images", 3, 1, 2, 8),), classes("background", "road", "building")
    new, notes = transfer(model, card, *wanted)
    assert notes == [
        "fitted to other bands: images 3, images 1, images 2 keep their weights; images 8 begin with the mean of "
        "those that there were",
        "fitted to other classes: background, building keep their weights; road begin by chance",
    ]
    old, made = model.state_dict(), new.state_dict()
    changed = [name for name in old if not torch.equal(old[name], made[name])]
    assert len(changed) == first + 2, changed
    for name in changed:
        if not name.startswith(head):
            assert torch.equal(made[name][:, :3], old[name][:, [2, 0, 1]])
            torch.testing.assert_close(made[name][:, 3], old[name].mean(1) * 3 / 4)
    assert torch.equal(made[f"{head}.weight"][[0, 2]], old[f"{head}.weight"])
    assert torch.equal(made[f"{head}.bias"][[0, 2]], old[f"{head}.bias"])
    x = torch.randn(1, 4, 64, 64)
    assert new.eval()(x).shape == (1, 3, 64, 64)
    # Classes in another order are others to the head, too.
    turned, _ = transfer(model, card, RGB, tuple(reversed(OLD)))
    x = x[:, :3]
    torch.testing.assert_close(turned.eval()(x), model.eval()(x).flip(1))


class Fixed(torch.nn.Module):
    """A network of its own mind."""

    def __init__(self, model, bands, classes):
        super().__init__()
        self.weight = torch.nn.Conv2d(3, 2, 1)


def test_network_that_cannot_be_fitted():
    nn = "tests.components.train.test_transfer:Fixed"
    card = ModelCard(nn, "tiny", 32, RGB, OLD, 64, 16)
    model = build_model(ModelConfig(nn=nn, pretrained=False), 3, 2)
    with pytest.raises(ModelError, match="none of its weights belong to classes"):
        transfer(model, card, RGB, classes("a", "b", "c"))
    with pytest.raises(ModelError, match="none of its weights belong to bands"):
        transfer(model, card, (channel("images", 1),), OLD)


@pytest.mark.slow
def test_fine_tuned_to_other_classes_and_bands(tmp_path):
    """From buildings in three bands to doors and buildings in four, with a frozen stem."""
    toy = make_dataset(tmp_path / "toy", archives=False)
    config = load_config(make_config(tmp_path / "config.toml", lr="0.005"))
    world = World(torch.device("cpu"))
    train_model(Plan(config, toy, tmp_path / "first", epochs=3), world)

    def label(tile):
        mask = squares(tile) * 2
        mask[40:, 40:] = 1
        return mask

    for part, tiles in (("training", TRAINING), ("validation", VALIDATION)):
        for name in ("images", "labels"):
            shutil.rmtree(toy / part / name)
        with (
            open_writer(toy / part / "images", "tif") as images,
            open_writer(toy / part / "labels", "png") as labels,
        ):
            for tile in tiles:
                more = (label(tile) == 1).astype(np.uint8)[:, :, None] * 200
                images.write(tile, encode(np.concatenate([photo(tile), more], axis=2), "tif"))
                labels.write(tile, encode_mask(label(tile), [(0, 0, 0)] * 3))
    new = replace(
        config,
        channels=(Channel("images", (1, 2, 3, 4), (), ()),),
        classes=classes("background", "door", "building"),
        recipe=replace(config.recipe, freeze=1),
    )
    start = tmp_path / "first" / "last.safetensors"
    outcome = train_model(Plan(new, toy, tmp_path / "second", epochs=3, checkpoint=start), world)
    log = (tmp_path / "second" / "log").read_text()
    assert "fitted to other bands: images 1, images 2, images 3 keep" in log and "door begin by chance" in log
    card = read_card(tmp_path / "second" / "last.safetensors")
    assert card.mean[:3] == (0.485, 0.456, 0.406) and card.num_classes == 3
    assert outcome.miou > 0.6, outcome.history[-1]["validation"]
    before, after = (
        load_checkpoint(path)[0].state_dict() for path in (start, tmp_path / "second" / "last.safetensors")
    )
    norms = [name for name in before if "backbone.embedder" in name and "running" in name]
    assert norms and all(torch.equal(before[name], after[name]) for name in norms)  # frozen, as its weights are
    outcome = train_model(Plan(new, toy, tmp_path / "second", epochs=4, resume=True), world)
    assert len(outcome.history) == 4
