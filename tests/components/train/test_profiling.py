"""Where the time of training goes, by a clock that moves only where it is told to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rsp.components.train import profiling
from rsp.components.train.profiling import Profile, Watch

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock; call it to let seconds pass."""
    now = [100.0]
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


class Slow(nn.Module):
    """A network that takes five seconds."""

    def __init__(self, clock):
        super().__init__()
        self.layer, self.clock = nn.Linear(4, 4), clock

    def forward(self, x):
        self.clock(5.0)
        return self.layer(x)


def load(clock, steps):
    for _ in range(steps):
        clock(2.0)
        yield torch.ones(3, 4)


def train(clock, watch, model, optimizer, steps, every=1):
    """Train for an epoch; return the seconds that batches were waited for."""
    for number, batch in enumerate(watch.batches(load(clock, steps), steps), 1):
        clock(1.0)
        loss = model(batch).sum()
        clock(10.0)
        loss.backward()
        if number % every == 0:
            optimizer.step()
        clock(0.5)
    return watch.waited


@pytest.fixture
def recorded(clock, tmp_path):
    """A profile of some steps of a network."""
    model = Slow(clock)

    class SlowStep(torch.optim.Optimizer):
        def step(self, closure=None):
            clock(3.0)

    optimizer, told = SlowStep(model.parameters(), {}), []

    def make(steps):
        return Profile(tmp_path / "profile.txt", steps, model, optimizer, CPU, told.append)

    return make, model, optimizer, told


def parts(path):
    """The milliseconds of each part, by its name."""
    table = path.read_text().split("\n\n")[1].splitlines()[1:]
    return {line[:24].strip(): float(line[24:36]) for line in table}


def test_batches_are_waited_for(clock):
    model = Slow(clock)
    watch = Watch(None)
    for _ in range(2):  # each epoch for itself
        assert train(clock, watch, model, torch.optim.SGD(model.parameters(), 0.1), 4) == 8.0


def test_parts_of_a_step(clock, recorded, tmp_path):
    make, model, optimizer, told = recorded
    watch = Watch(make(3))
    assert train(clock, watch, model, optimizer, 20) == 40.0
    path = tmp_path / "profile.txt"
    text = path.read_text()
    assert text.startswith("Steps 6 to 8 on cpu: 21500.0 ms a step")
    assert parts(path) == {
        "waiting for the batch": 2000,
        "to the device": 1000,
        "forward": 5000,
        "loss, backward": 10000,
        "optimizer": 3000,
        "averages, metrics": 500,
    }
    assert "aten::addmm" in text and told == [f"the profile of 3 steps is in {path}"]
    assert not model._forward_hooks and not model._forward_pre_hooks
    path.unlink()
    train(clock, watch, model, optimizer, 20)
    assert not path.exists()  # the first epoch says it


def test_batches_without_a_step_of_their_own(clock, recorded, tmp_path):
    make, model, optimizer, _ = recorded
    train(clock, Watch(make(2)), model, optimizer, 20, every=2)
    found = parts(tmp_path / "profile.txt")
    # Of two batches one steps: the other ends with its gradients, metrics included.
    assert found["optimizer"] == 1500 and found["loss, backward"] == 10250 and found["averages, metrics"] == 250


@pytest.mark.parametrize(("steps", "said"), [(1, "Steps 1 to 1"), (3, "Steps 2 to 3"), (12, "Steps 6 to 12")])
def test_short_epochs_have_a_profile_too(clock, recorded, tmp_path, steps, said):
    make, model, optimizer, _ = recorded
    train(clock, Watch(make(50)), model, optimizer, steps)
    assert (tmp_path / "profile.txt").read_text().startswith(said)


def test_nothing_is_left_of_an_epoch_that_fails(clock, recorded, tmp_path):
    make, model, _, _ = recorded
    batches = Watch(make(5)).batches(load(clock, 8), 8)
    for _ in range(6):
        next(batches)
    assert model._forward_hooks
    batches.close()
    assert not model._forward_hooks and not (tmp_path / "profile.txt").exists()
