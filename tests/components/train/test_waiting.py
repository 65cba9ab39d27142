"""A step hands its work to the GPU and goes on: it asks for no number, which it would have to wait for.

Steps are taken on torch's `meta` device, whose tensors have no values: whatever asks for one raises.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsp.components.train import metrics, terms, training
from rsp.components.train.augmentation import load_augmentation
from rsp.components.train.guard import Divergence
from rsp.components.train.losses import Loss, build_loss
from rsp.components.train.metrics import RunningMetrics
from rsp.components.train.optimise import Optimiser
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.components.train.terms import TERMS
from rsp.components.train.tones import Tones, prepare
from rsp.components.train.training import Trainer
from rsp.shared.config import Channel, ModelConfig, load_config
from rsp.shared.learning.inference import classes_of
from rsp.shared.learning.models import build_model
from rsp.shared.metrics import IGNORE
from rsp.shared.recipe import Settled
from tests.toy import make_config, make_dataset

META = torch.device("meta")
RGB = Channel("images", (1, 2, 3), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), value_type="uint8")
BATCH = torch.zeros((2, 64, 64, 3), dtype=torch.uint8)
LABELS = torch.zeros((2, 64, 64), dtype=torch.uint8)


class Waiting(TorchDispatchMode):
    """Raises where something is sent to the device in a way that first waits for all that it has to do."""

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if call in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source, target = args[-1], kwargs.get("device") or args[0].device
            if source.device.type == "cpu" and target == META and not kwargs.get("non_blocking"):
                raise AssertionError(f"{tuple(source.shape)} {source.dtype} is sent, and waited for")
        return call(*args, **kwargs)


def loss_on_meta(text: str, classes: torch.Tensor, **options) -> Loss:
    """Make a loss, which looks once at the weights of its classes."""
    made = build_loss(text, torch.ones(len(classes)) if classes.is_meta else classes, **options)
    made.classes = made.classes.to(META)
    return made


def step(classes: int, recipe: Settled, loss: str, optimizer: str = "Muon", **options) -> None:
    """Take a step as `Trainer._train` does."""
    config = replace(ModelConfig(), nn="unet", encoder="tiny", optimizer=optimizer, bs=2)
    with META:
        network = build_model(config, 3, classes).train()
    optimiser = Optimiser(network, config, recipe, batches=4, epochs=1)
    made = loss_on_meta(loss, torch.arange(1.0, classes + 1), **options)
    running, divergence = RunningMetrics(classes, META), Divergence(made)
    divergence.ignorant = 1.0  # it is asked for once, by the first batch
    optimiser.begin(1)
    tones = Tones.of([load_augmentation("color")(np.random.default_rng(seed), 3).tone for seed in range(2)])
    images = prepare(BATCH, tones, (RGB,), META)
    labels = LABELS.to(META)
    pixels = torch.ones((2, 64, 64), device=META) if options.get("weighted") else None
    with Waiting():
        for _ in range(2):
            logits = network(images).float()
            divergence.see(logits, labels.long(), pixels)
            value = made(logits, labels.long(), pixels)
            optimiser.learn(value, 2)
            running.add(classes_of(logits.detach()), labels, value, 2)


@pytest.mark.parametrize("loss", sorted(TERMS))
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_loss_is_waited_for(loss, classes, weighted):
    step(classes, Settled(ema=0.99), loss, weighted=weighted)


@pytest.mark.parametrize("optimizer", ["Muon", "SGD"])
def test_nor_is_anything_of_a_recipe(optimizer):
    recipe = Settled(ema=0.99, clip=1.0, accumulate=2, warmup=0.2)
    step(3, recipe, "cross_entropy + 0.5 dice", optimizer, hard=0.3)
    step(3, recipe, "cross_entropy", optimizer, smoothing=0.1)


def test_asking_for_a_number_would_be_seen():
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros(3, device=META).sum())
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.bincount(torch.zeros(3, dtype=torch.int64, device=META), minlength=2)
    with Waiting():
        for send in (lambda: torch.zeros(2).to(META), lambda: torch.zeros(2, device=META).copy_(torch.zeros(2))):
            with pytest.raises(AssertionError, match="is sent, and waited for"):
                send()
        torch.zeros(2).to(META, non_blocking=True)


@pytest.mark.parametrize("da", ["none", "color"])
def test_the_loop_itself_waits_for_nothing_between_two_epochs(tmp_path, monkeypatch, da):
    """That of `Trainer`, but for the first batch, by which divergence is told, and the end of an epoch.

    In the first epoch means and deviations are sent, which the device keeps.
    """
    config = load_config(make_config(tmp_path / "config.toml"))
    model = replace(config.model, da=da, dap=1.0, optimizer="Muon")
    config = replace(config, model=model, recipe=replace(config.recipe, precision="float32"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
    monkeypatch.setattr(training, "build_loss", loss_on_meta)
    monkeypatch.setattr(Optimiser, "finish", lambda self: None)
    monkeypatch.setattr(Trainer, "_measured", lambda self, running: {})
    trainer = Trainer(Plan(config, make_dataset(tmp_path / "toy"), tmp_path / "out", 2), World(META), None)
    trainer.divergence.ignorant = 1.0
    trainer._train(1)
    with Waiting():
        trainer._train(2)
    assert trainer.optimiser._step == 2 * len(trainer.batches) > 2
    trainer._validate(1)


@pytest.mark.parametrize("loss", sorted(TERMS))
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("hard", [1.0, 0.3])
@pytest.mark.parametrize("ignored", [False, True])
def test_losses_without_asking_are_the_same(monkeypatch, loss, classes, hard, ignored):
    """What is computed otherwise on a GPU, computed here."""
    source = torch.Generator().manual_seed(1)
    logits = torch.randn((2, classes, 40, 40), generator=source, dtype=torch.float64)
    labels = torch.randint(0, classes - 1, (2, 40, 40), generator=source)  # one class is not there
    if ignored:
        labels[0, :9] = IGNORE
    made = build_loss(f"{loss} + focal", torch.arange(1.0, classes + 1, dtype=torch.float64), hard=hard)
    found = []
    for far in (False, True):
        monkeypatch.setattr(terms, "must_wait", lambda tensor, far=far: far)
        given = logits.clone().requires_grad_()
        value = made(given, labels, None)
        value.backward()
        found.append((value.detach(), given.grad))
    torch.testing.assert_close(*found)
    assert found[0][1].abs().max() > 0


def test_pixels_are_counted_alike_without_asking(monkeypatch):
    rng = np.random.default_rng(0)
    masks, labels = (torch.from_numpy(rng.integers(0, 5, (3, 50, 50), dtype=np.uint8)) for _ in range(2))
    labels[1, :, :9] = IGNORE
    found = []
    for far in (False, True):
        monkeypatch.setattr(metrics, "must_wait", lambda tensor, far=far: far)
        running = RunningMetrics(5, torch.device("cpu"))
        for tiles in (1, 2):
            running.add(masks[:tiles], labels[:tiles], torch.tensor(float(tiles)), tiles)
        found.append(running.result())
    (near, loss), (far, other) = found
    assert np.array_equal(near, far) and loss == other == pytest.approx(5 / 3)
    assert near.sum() == 3 * 2500 - 450 and (near > 200).all()
