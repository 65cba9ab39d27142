"""What a training must have in common with the one that it resumes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from rsp.components.train.history import State, read_state, write_state
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.components.train.settings import check_settings, settings_of
from rsp.components.train.start import notes_on_filters
from rsp.components.train.training import Trainer
from rsp.shared.config import ModelConfig, load_config
from rsp.shared.errors import ModelError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.models import build_model
from rsp.shared.tiles import Tile
from tests.tilesets import make_tileset, squares
from tests.toy import make_config, photo


@pytest.fixture
def plan(tmp_path):
    return Plan(load_config(make_config(tmp_path / "config.toml")), tmp_path, tmp_path / "out", epochs=2, seed=3)


def changed(plan, *, seed=3, model=None, recipe=None, weight=None, mean=None):
    config = plan.config
    if mean is not None:
        config = replace(config, channels=tuple(replace(c, mean=(mean,) * 3) for c in config.channels))
    classes = (
        config.classes if weight is None else (replace(config.classes[0], weight=weight), *config.classes[1:])
    )
    return replace(
        plan,
        seed=seed,
        config=replace(
            config,
            model=replace(config.model, **(model or {})),
            recipe=replace(config.recipe, **(recipe or {})),
            classes=classes,
        ),
    )


BEFORE = {"processes": 2, "tiles": [Tile(1, 2, 3), Tile(1, 3, 3)], "validation": "ab"}


def card_of(plan):
    config = plan.config
    channels = tuple(replace(c, value_type="uint8", divisor=255.0) for c in config.channels)
    return ModelCard("unet", "tiny", config.model.num_filters, channels, config.classes, 64, 16)


def resumed(plan, before, **now):
    """Go on with a training whose state is that of `before`; return the notes."""
    settings = settings_of(plan, **{**BEFORE, **now})
    return check_settings(plan, settings, settings_of(before, **BEFORE), card_of(before), "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "--seed was 3, is 4"),
        ({"model": {"loss": "dice"}}, "loss was lovasz, is dice"),
        ({"model": {"optimizer": "SGD"}}, "optimizer was Adam, is SGD"),
        ({"model": {"optimizer_options": {"betas": [0.5, 0.9]}}}, r"optimizer.betas was None, is \[0.5, 0.9\]"),
        ({"model": {"decay": 0.5}}, "decay was None, is 0.5"),
        ({"model": {"bs": 7}}, r"tiles in a batch \(--bs times processes\) was 8, is 14"),
        ({"model": {"ts": 96}}, "--ts was 64, is 96"),
        ({"model": {"da": "strong"}}, "da was flip, is strong"),
        ({"model": {"num_filters": 8}}, "num_filters was 32, is 8"),
        ({"model": {"background": False}}, "background was True, is False"),
        ({"weight": 2.0}, r"\[\[classes\]\] weight was \[1.0, 1.0\], is \[2.0, 1.0\]"),
        ({"mean": 0.25}, r"mean of 'images' was \[0.485, 0.456, 0.406\], is \[0.25, 0.25, 0.25\]"),
        ({"recipe": {"ema": 0.9}}, r"\[train\] ema was 0, is 0.9"),
        ({"recipe": {"crop": 32}}, r"\[train\] crop was 0, is 32"),
        ({"recipe": {"hard": 0.25}}, r"\[train\] hard was 1, is 0.25"),
        ({"recipe": {"clip": 1.0}}, r"\[train\] clip was 0, is 1"),
        ({"recipe": {"warmup": 0.2}}, r"\[train\] warmup was 0.1, is 0.2"),
        ({"recipe": {"accumulate": 2}}, r"\[train\] accumulate was 1, is 2"),
        ({"recipe": {"classes_weights": "auto"}}, r"\[train\] classes_weights was None, is auto"),
    ],
)
def test_training_that_would_not_go_on_as_it_began(plan, change, message):
    with pytest.raises(ModelError, match=f"out cannot be resumed, as a training goes on as it began: {message}"):
        resumed(changed(plan, **change), plan)
    if "mean" not in change:  # and what has come in since
        with pytest.raises(ModelError, match="goes on as it began"):
            resumed(plan, changed(plan, **change))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"processes": 1}, r"\(--bs times processes\) was 8, is 4"),
        ({"tiles": [Tile(1, 2, 3)]}, "training tiles was 2, .*, is 1, "),
        ({"tiles": [Tile(1, 2, 3), Tile(2, 3, 3)]}, "training tiles was 2, .*, is 2, "),
        ({"validation": "cd"}, "validation tiles was ab, is cd"),
    ],
)
def test_training_on_other_data_or_processes(plan, now, message):
    with pytest.raises(ModelError, match=message):
        resumed(plan, plan, **now)
    assert resumed(plan, plan, validation=None) == []  # a process that does not write has not measured it


def test_a_state_from_before_a_key_was_trained_without_it(plan):
    before = settings_of(plan, **BEFORE)
    del before["[train] hard"]
    assert check_settings(plan, settings_of(plan, **BEFORE), before, card_of(plan), "out") == []
    hard = changed(plan, recipe={"hard": 0.5})
    with pytest.raises(ModelError, match=r"\[train\] hard was 1, is 0.5"):
        check_settings(hard, settings_of(hard, **BEFORE), before, card_of(plan), "out")


def test_every_difference_is_named_at_once(plan):
    with pytest.raises(
        ModelError, match="--seed was 3, is 4; loss was lovasz, is dice; optimizer was Adam, is SGD"
    ):
        resumed(changed(plan, seed=4, model={"loss": "dice", "optimizer": "SGD"}), plan)


def test_rate_and_epochs_may_be_changed_and_are_told(plan):
    assert resumed(plan, plan) == []
    longer = replace(changed(plan, model={"lr": 0.5}), epochs=9)
    epochs, rate = resumed(longer, plan)
    assert epochs.startswith("--epochs was 2, is 9: the learning rate follows the longer")
    assert rate.startswith("--lr was 0.001, is 0.5")
    # Where a file lies is not what it holds.
    there, here = (changed(plan, recipe={"tile_weights": f"{folder}/weights.csv"}) for folder in ("a", "b"))
    assert resumed(there, here) == []
    assert resumed(changed(plan, recipe={"patience": 3, "tensorboard": True, "profile": 9}), plan) == []


def test_settings_come_back_from_the_state(plan):
    plan.out.mkdir()
    settings = settings_of(plan, **BEFORE)
    write_state(plan.out, State(1, "", "", "null", {}, {}, settings, []))
    assert read_state(plan.out).settings == settings


def test_state_of_an_older_version(plan):
    """Version 1, as it was before it kept settings."""
    plan.out.mkdir()
    old = {"version": 1, "epoch": 1, "uuid": "", "card": "", "plan": "null", "history": "[]"}
    torch.save({**old, "weights": {}, "optimizer": {}}, plan.out / "state.pt")
    with pytest.raises(ModelError, match=r"an older version of rsp .*fine-tune its weights, --checkpoint .*/last"):
        read_state(plan.out)
    torch.save({**old, "version": 99}, plan.out / "state.pt")
    with pytest.raises(ModelError, match="a newer version of rsp"):
        read_state(plan.out)


PART = {"loss": 1, "iou": None, "miou": 0.5, "mcc": 0.5, "iou_of": {"a": None}, "confusion": [[1]]}
ROW = {"epoch": 1, "lr": 0.1, "seconds": 1.0, "training": PART, "validation": PART}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "1"}, "epoch is no int"),
        ({"plan": "{"}, "Expecting property name"),
        ({"settings": "[]"}, "settings is no dict"),
        ({"weights": {"a": 3}}, "weights are no tensors"),
        ({"optimizer": [1]}, "optimizer is no dict"),
        ({"history": "{}"}, "history is no list"),
        ({"history": json.dumps([{"epoch": 1}])}, "row 1 of the history is none of epoch 1"),
        ({"history": json.dumps([ROW, ROW])}, "row 2 of the history is none of epoch 2"),
        ({"history": json.dumps([ROW | {"validation": {"loss": 1}}])}, "row 1 of the history lacks measures"),
        ({"history": json.dumps([ROW | {"lr": "fast"}])}, "row 1 of the history holds what is no number"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
)
def test_state_that_somebody_else_wrote(plan, change, message):
    plan.out.mkdir()
    good = {
        "version": 2, "epoch": 1, "uuid": "", "card": "", "plan": "null", "settings": "{}",
        "history": json.dumps([ROW]), "weights": {"a": torch.zeros(1)}, "optimizer": {},
    }  # fmt: skip
    torch.save(good, plan.out / "state.pt")
    assert read_state(plan.out).history == [ROW]
    torch.save(good | change, plan.out / "state.pt")
    with pytest.raises(ModelError, match=f"state.pt is damaged, so there is nothing to resume from: .*{message}"):
        read_state(plan.out)


def test_more_filters_than_the_encoder_has_use_for():
    sizes = {}
    for filters in (64, 32, 16, 17, 400):
        config = ModelConfig(encoder="tiny", pretrained=False, num_filters=filters)
        network = build_model(config, 3, 2)
        sizes[filters] = sum(weight.numel() for weight in network.parameters())
        notes = notes_on_filters(network, config)
        assert bool(notes) == (filters not in (16, 32)) and all(
            "is that of num_filters = 16" in note for note in notes
        )
    assert sizes[16] == sizes[17] == sizes[64] == sizes[400]
    assert notes_on_filters(torch.nn.Linear(2, 2), config) == []


@pytest.mark.parametrize(
    ("training", "validation", "zoom", "notes"),
    [
        ((15,), (15,), 15, []),
        ((15,), (14, 15), 15, ["no training tile is of the zoom of validation tiles (14): things have another"]),
        ((15, 14), (14,), None, ["training tiles of the zooms 14, 15 are mixed: the model notes no zoom, and"]),
        ((14, 15), (17, 16), None, ["training tiles of the zooms 14, 15 ", "validation tiles (16, 17)"]),
    ],
)
def test_mixed_zooms_are_said(plan, training, validation, zoom, notes):
    for part, zooms in (("training", training), ("validation", validation)):
        tiles = [Tile(x, 200, z) for z in zooms for x in (100, 101)]
        make_tileset(plan.dataset / part / "images", tiles, "png", photo)
        make_tileset(plan.dataset / part / "labels", tiles, "png", squares)
    trainer = Trainer(plan, World(torch.device("cpu")), None)
    assert trainer.zoom == zoom and len(trainer.notes) == len(notes)
    assert all(words in note for words, note in zip(notes, trainer.notes, strict=True))
