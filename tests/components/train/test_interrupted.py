"""A training that SIGTERM stops within an epoch goes on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from rsp.components.train.history import read_state
from rsp.components.train.interrupted import Part
from rsp.components.train.metrics import RunningMetrics
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.components.train.training import train_model
from rsp.shared.config import load_config
from rsp.shared.errors import ModelError
from rsp.shared.learning.checkpoint import read_card
from tests.components.train import crashes
from tests.tilesets import CONFIG
from tests.toy import make_config, make_dataset

CPU = World(torch.device("cpu"))
HERE = "tests.components.train.test_interrupted"
# What is measured by the clock.
BY_THE_CLOCK = {"seconds", "images_per_second", "waiting", "peak_memory"}
# 18 tiles of 64 px as 72 crops of 32, in batches of 4.
BATCHES = 18
pytestmark = pytest.mark.slow


class Chancy(nn.Module):
    """A network with norms, and with dropout, which draws from torch's source of chance."""

    def __init__(self, config, in_channels, num_classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3),
            nn.Conv2d(8, num_classes, 3, padding=1),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration with much that is random, and much to keep."""
    path = tmp_path_factory.mktemp("config") / "config.toml"
    recipe = (
        "\n[train]\nema = 0.9\naccumulate = 4\nclip = 1.0\nwarmup = 0.2\ncrop = 32\npasses = 1\n"
        "scale = [0.75, 1.33]\nbalance = 0.3\n"
    )
    return make_config(path, CONFIG + recipe, nn=f'"{HERE}:Chancy"', da='"strong"', loss='"lovasz_ce"')


@pytest.fixture(scope="module")
def whole(toy, config, tmp_path_factory):
    """What four epochs leave behind where nothing goes wrong."""
    out = tmp_path_factory.mktemp("whole") / "out"
    torch.set_num_threads(1)
    train_model(Plan(load_config(config), toy, out, epochs=4), CPU)
    return out


def rows(out):
    """Return the history without what is measured by the clock."""
    found = json.loads((out / "history.json").read_text())
    return [{key: value for key, value in row.items() if key not in BY_THE_CLOCK} for row in found]


def same(out, whole):
    assert rows(out) == rows(whole) and len(rows(out)) == 4
    for name in ("last.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("where", "after", "epoch", "batches"),
    [
        ("training.prepare", 0, 0, 4),  # a step is four batches
        ("training.prepare", 6, 0, 8),
        ("training.prepare", 2 * BATCHES - 1, 1, BATCHES),  # the last step of an epoch is two
        ("batches.collate", BATCHES + 8, 1, 8),  # between two steps
        ("training.validate", 1, 1, BATCHES),
    ],
)
def test_it_goes_on_within_the_epoch(toy, config, whole, tmp_path, where, after, epoch, batches):
    out = tmp_path / "out"
    assert crashes.end_of(crashes.stopped, config, toy, out, after, where) == 143
    state = read_state(out)
    assert (state.epoch, state.part["batches"], len(state.history)) == (epoch, batches, epoch)
    kept = f"epoch {epoch + 1} is kept up to batch {batches} of {BATCHES}, in {out}"
    assert f"stopped by SIGTERM: {kept}; the same command with --resume" in (out / "log").read_text()
    assert (out / "last.safetensors").exists() == bool(epoch)
    torch.set_num_threads(1)
    train_model(Plan(load_config(config), toy, out, epochs=4, resume=True), CPU)
    same(out, whole)
    assert f"resuming from {out}, after batch {batches} of epoch {epoch + 1}\n" in (out / "log").read_text()
    assert read_state(out).part is None


def test_it_may_be_stopped_again_and_again(toy, config, whole, tmp_path):
    """Also before it has learned anything more, and from the checkpoint beside the state."""
    out = tmp_path / "out"
    for after, where, batches in (
        (3, "training.prepare", 4),
        (0, "batches.collate", 4),
        (5, "training.prepare", 12),
    ):
        assert crashes.end_of(crashes.stopped, config, toy, out, after, where) == 143
        assert read_state(out).part["batches"] == batches
    assert (out / "log").read_text().count("stopped by SIGTERM: epoch 1 is kept up to batch 4 of 18, in") == 2
    assert crashes.end_of(crashes.stopped, config, toy, out, BATCHES, "training.prepare") == 143
    state, last = read_state(out), out / "last.safetensors"
    assert (state.epoch, state.part["batches"]) == (1, 16) and state.uuid == read_card(last).uuid
    torch.set_num_threads(1)
    train_model(Plan(load_config(config), toy, out, epochs=4, resume=True, checkpoint=last), CPU)
    same(out, whole)


def test_fine_tuning_goes_on_without_the_checkpoint_that_it_began_with(toy, config, whole, tmp_path):
    start, out, other = whole / "best.safetensors", tmp_path / "out", tmp_path / "other"
    assert crashes.end_of(crashes.stopped, config, toy, out, 8, "training.prepare", start) == 143
    said = (out / "log").read_text()
    assert f"up to batch 12 of 18, in {out}; the same command with --resume, without --checkpoint, goes on" in said
    torch.set_num_threads(1)
    train_model(Plan(load_config(config), toy, out, epochs=4, resume=True), CPU)
    train_model(Plan(load_config(config), toy, other, epochs=4, checkpoint=start), CPU)
    same(out, other)


def test_what_is_kept_is_looked_at(toy, config, tmp_path):
    out = tmp_path / "out"
    assert crashes.end_of(crashes.stopped, config, toy, out, 0, "training.prepare") == 143
    plan = Plan(load_config(config), toy, out, epochs=4, resume=True)
    both = replace(plan, config=replace(plan.config, model=replace(plan.config.model, bs=2)))
    with pytest.raises(ModelError, match="was stopped within epoch 1, in one process: let one resume it"):
        train_model(both, World(torch.device("cpu"), 1, 2))
    data = torch.load(out / "state.pt", weights_only=True)
    assert data["version"] == 3
    for change in (
        {"batches": 0},
        {"batches": "4"},
        {"ignorant": None},
        {"chance": torch.zeros(3)},
        {"matrix": torch.zeros(5)},
        {"device_chance": 1},
        {"more": 1},
    ):
        torch.save({**data, "part": {**data["part"], **change}}, out / "state.pt")
        with pytest.raises(ModelError, match=r"is damaged, so there is nothing to resume from: .*epoch"):
            train_model(plan, CPU)


def test_a_part_is_what_it_was():
    running = RunningMetrics(3, torch.device("cpu"))
    running.add(
        torch.ones(2, 4, 4, dtype=torch.uint8), torch.ones(2, 4, 4, dtype=torch.uint8), torch.tensor(0.5), 2
    )
    part = Part.now(7, running, 0.25, torch.device("cpu"), 3.5)
    drawn = torch.rand(3)
    found = Part.of_dict(part.to_dict(), 3)
    found.set_chance(torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn) and (found.batches, found.ignorant, found.seconds) == (7, 0.25, 3.5)
    with pytest.raises(ValueError, match="matrix of the epoch"):
        Part.of_dict(part.to_dict(), 2)
