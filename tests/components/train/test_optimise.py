"""The optimizer: groups, the learning rate, joined batches, the moving average, and its state."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rsp.components.train.muon import Muon
from rsp.components.train.optimise import Average, Optimiser, learning_rate, make_optimizer
from rsp.components.train.stages import Frozen, stages_of
from rsp.shared.config import ModelConfig
from rsp.shared.errors import ConfigError, ModelError
from rsp.shared.learning.models import build_model
from rsp.shared.recipe import Recipe

ADAMW = ModelConfig(optimizer="AdamW", lr=0.01, decay=0.1)
MUON = ModelConfig(optimizer="Muon", lr=0.01, decay=0.1)
SGD = ModelConfig(optimizer="SGD", lr=0.5, optimizer_options={"momentum": 0.9})


def toy(seed=0, norm=False):
    """A network of two layers, in double precision so that only what is meant differs."""
    torch.manual_seed(seed)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.Tanh(), nn.Conv2d(4, 2, 1)).double()


def tiles(seed, count=4):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=rng, dtype=torch.float64)
    return images, torch.randint(0, 2, (count, 6, 6), generator=rng)


def train(model, optimiser, batches, epoch=1):
    """Train an epoch on batches, and return the loss of each."""
    optimiser.begin(epoch)
    losses = []
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.learn(loss, len(images))
        losses.append(loss.item())
    optimiser.finish()
    return losses


def split(batch, *sizes):
    images, labels = batch
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def flat(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


# --- the learning rate --------------------------------------------------------------------------------------


def test_learning_rate_climbs_and_falls():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates)
    assert rates[9:] == sorted(rates[9:], reverse=True) and 0.01 <= rates[-1] < 0.02
    assert learning_rate(0, 1, 0.5) == 0.5


def test_learning_rate_as_the_recipe_says():
    assert learning_rate(0, 100, 1.0, warmup=0) == 1.0
    constant = [learning_rate(step, 100, 1.0, warmup=0.25, schedule="constant") for step in range(100)]
    assert constant[24:] == [1.0] * 76 and constant[4] == pytest.approx(0.2)


def test_the_rate_follows_from_the_epoch():
    model = toy()
    optimiser = Optimiser(model, SGD, Recipe(accumulate=2), batches=5, epochs=4)
    assert optimiser.steps == 12  # the fifth batch of an epoch is a step by itself
    train(model, optimiser, [tiles(seed, 2) for seed in range(5)], epoch=3)
    assert optimiser.rate == learning_rate(8, 12, 0.5)


# --- groups -------------------------------------------------------------------------------------------------


def factors(model, recipe, config=ADAMW):
    """The factor of the rate and the decay of each weight, by name."""
    names = {weight: name for name, weight in model.named_parameters()}
    groups = make_optimizer(model, config, recipe).param_groups
    return {
        names[weight]: (group["factor"], group["weight_decay"]) for group in groups for weight in group["params"]
    }


def test_biases_and_norms_do_not_decay():
    found = factors(toy(norm=True), Recipe())
    assert found == {
        "0.weight": (1, 0.1), "0.bias": (1, 0), "1.weight": (1, 0), "1.bias": (1, 0), "3.weight": (1, 0.1),
        "3.bias": (1, 0),
    }  # fmt: skip
    # AdamW decays unless it is told not to; Adam does not.
    assert factors(toy(), Recipe(), replace(ADAMW, decay=None))["0.weight"] == (1, 0.01)
    assert factors(toy(), Recipe(), replace(ADAMW, decay=0.0))["0.weight"] == (1, 0)
    assert len(make_optimizer(toy(), ModelConfig(optimizer="Adam"), Recipe()).param_groups) == 1
    assert len(make_optimizer(toy(), ModelConfig(optimizer="Rprop", decay=0.0), Recipe()).param_groups) == 1


@pytest.fixture(scope="module")
def unet():
    return build_model(ModelConfig(encoder="tiny", pretrained=False), 3, 2)


def test_rates_of_the_encoder_by_stage(unet):
    found = factors(unet, Recipe(encoder_rate=0.5, layer_decay=0.1))
    assert found["head.weight"] == found["detail.0.weight"] == (1, 0.1)
    assert found["backbone.encoder.stages.3.layers.0.layer.0.convolution.weight"] == (0.5, 0.1)
    assert found["backbone.encoder.stages.1.layers.0.layer.0.normalization.bias"] == (pytest.approx(0.005), 0)
    assert found["backbone.embedder.embedder.convolution.weight"] == (pytest.approx(0.00005), 0.1)


def test_what_is_pretrained_learns_at_a_tenth_of_the_rate(unet):
    pretrained = replace(ADAMW, pretrained=True)
    for config, recipe, factor in (
        (pretrained, Recipe(), 0.1),
        (ADAMW, Recipe(), 1),
        (pretrained, Recipe(encoder_rate=1.0), 1),
        (pretrained, Recipe(layer_decay=0.5), 0.1),
    ):
        found = factors(unet, recipe, config)
        assert found["head.weight"] == (1, 0.1)
        assert found["backbone.encoder.stages.3.layers.0.layer.0.convolution.weight"] == (factor, 0.1)
    # A network of one's own may have none.
    assert set(factors(toy(), Recipe(), replace(pretrained, nn="own:net"))) == {
        "0.weight", "0.bias", "3.weight", "3.bias"
    }  # fmt: skip


def test_the_rate_of_the_encoder_is_taken(unet):
    model = copy.deepcopy(unet)
    optimiser = Optimiser(model, replace(SGD, optimizer_options={}), Recipe(encoder_rate=0), batches=1, epochs=1)
    before = dict(copy.deepcopy(model).named_parameters())
    optimiser.learn(model(torch.randn(2, 3, 64, 64)).square().mean(), 2)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if not name.startswith("backbone")}


@pytest.mark.parametrize(
    ("nn_", "encoder", "count", "first", "last"),
    [
        ("unet", "convnextv2-atto", 5, "embeddings.patch_embeddings", "hidden_states_norms.stage4"),
        ("segformer", "tiny", 4, "stages.0.patch_embeddings", "stages.3.blocks"),
        ("upernet", "tiny", 5, "embedder.embedder", "encoder.stages.3"),
    ],
)
def test_stages_of_other_encoders(nn_, encoder, count, first, last):
    model = build_model(ModelConfig(nn=nn_, encoder=encoder, pretrained=False), 3, 2)
    stages = stages_of(model)
    assert set(stages.values()) == set(range(count))
    assert stages.items() <= {name: stages.get(name) for name, _ in model.named_parameters()}.items()
    assert {stage for name, stage in stages.items() if first in name} == {0}
    assert {stage for name, stage in stages.items() if last in name} == {count - 1}
    assert not any("head" in name or "up16" in name for name in stages)


def test_frozen_stages_stay_as_they_are():
    model = build_model(ModelConfig(encoder="tiny", pretrained=False), 3, 2)
    frozen = Frozen(model, 3)
    optimiser = Optimiser(model, ADAMW, Recipe(freeze=3), batches=1, epochs=1)
    before = copy.deepcopy(model.state_dict())
    model.train()
    frozen.hold()
    images = torch.randn(2, 3, 64, 64)
    optimiser.learn(model(images).square().mean(), 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    held = ("backbone.embedder", "backbone.encoder.stages.0", "backbone.encoder.stages.1")
    assert changed == {name for name in before if not name.startswith(held)}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(encoder_rate=0.1), r"encoder_rate: the network 'own:net' has no encoder"),
        (Recipe(layer_decay=0.5), r"layer_decay: the network 'own:net' has no encoder"),
        (Recipe(freeze=1), r"freeze: the network 'own:net' has no encoder"),
    ],
)
def test_network_without_an_encoder(recipe, message):
    with pytest.raises(ConfigError, match=message):
        Optimiser(toy(), replace(ADAMW, nn="own:net"), recipe, batches=1, epochs=1)


def test_more_stages_than_there_are(unet):
    with pytest.raises(ConfigError, match="the encoder has 5 stages, the stem being the first of them; got 6"):
        Optimiser(unet, ADAMW, Recipe(freeze=6), batches=1, epochs=1)


def test_optimizers_of_the_configuration():
    assert type(make_optimizer(toy(), ModelConfig(), Recipe())) is Muon
    made = make_optimizer(toy(), replace(ADAMW, optimizer_options={"amsgrad": True}), Recipe())
    assert type(made) is torch.optim.AdamW
    assert made.defaults["weight_decay"] == 0.1 and made.defaults["amsgrad"] and made.defaults["lr"] == 0.01
    with pytest.raises(ConfigError, match=r"optimizer\.name: unknown 'LBFGS'; expected one of ASGD, Adadelta, "):
        make_optimizer(toy(), replace(ADAMW, optimizer="LBFGS"), Recipe())
    with pytest.raises(ConfigError, match=r"\[train\] optimizer.lr: 900 is too long a step"):
        make_optimizer(toy(), replace(ADAMW, lr=900.0), Recipe())
    with pytest.raises(ConfigError, match=r"\[train\] optimizer: .*momentum"):
        make_optimizer(toy(), replace(ADAMW, optimizer_options={"momentum": 0.9}), Recipe())


# --- joined batches, clipping, what is not finite -----------------------------------------------------------


@pytest.mark.parametrize("config", [SGD, ADAMW, MUON])
def test_joined_batches_teach_what_a_larger_one_does(config):
    joined, whole = toy(), toy()
    several = Optimiser(joined, config, Recipe(accumulate=2, clip=0.1), batches=5, epochs=1)
    one = Optimiser(whole, config, Recipe(clip=0.1), batches=3, epochs=1)
    large = [tiles(0), tiles(1), tiles(2, 2)]
    # The second step joins batches of two sizes, the last is of the one that is left.
    train(joined, several, [*split(large[0], 2, 2), *split(large[1], 3, 1), large[2]])
    train(whole, one, large)
    assert torch.allclose(flat(joined), flat(whole), rtol=1e-12)
    assert not torch.allclose(flat(joined), flat(toy()), rtol=1e-3)


def test_gradients_are_exchanged_before_a_step():
    model = toy()
    optimiser = Optimiser(model, SGD, Recipe(accumulate=2), batches=5, epochs=1)
    optimiser.begin(1)
    found = []
    for images, labels in [tiles(seed, 1) for seed in range(5)]:
        found.append(optimiser.is_last)
        optimiser.learn(nn.functional.cross_entropy(model(images), labels), 1)
    assert found == [False, True, False, True, True]


def test_gradients_are_clipped_together():
    plain = replace(SGD, optimizer_options={})
    model, clipped = toy(), toy()
    images, labels = tiles(0)
    before = flat(model)
    train(model, Optimiser(model, plain, Recipe(), batches=1, epochs=1), [(images, labels)])
    train(clipped, Optimiser(clipped, plain, Recipe(clip=0.01), batches=1, epochs=1), [(images, labels)])
    long, short = flat(model) - before, flat(clipped) - before
    assert float(short.norm()) == pytest.approx(0.5 * 0.01, rel=1e-4)
    assert torch.allclose(short / short.norm(), long / long.norm(), rtol=1e-6)


def test_gradients_that_are_not_finite_change_nothing():
    model = toy()
    optimiser = Optimiser(model, SGD, Recipe(ema=0.9), batches=2, epochs=1)
    before = flat(model)
    optimiser.begin(1)
    with pytest.raises(ModelError, match="not finite by step 1 of 2: training diverged; lower the learning rate"):
        optimiser.learn((model(tiles(0)[0]) * math.inf).mean(), 4)
    assert torch.equal(flat(model), before)
    assert torch.equal(flat(optimiser.kept), before)


# --- the moving average -------------------------------------------------------------------------------------


def test_average_of_the_weights():
    model = toy(norm=True)
    average = Average(model, 0.3)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for value in model.state_dict().values():
                value += 1 if value.dtype == torch.int64 else torch.randn_like(value)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.dtype == torch.int64:
                expected[name] = value.clone()  # how many batches: no mean of it means anything
            else:
                expected[name] = decay * expected[name] + (1 - decay) * value
        average.update()
    for name, value in average.model.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-12), name
    assert not average.model.training and not any(weight.requires_grad for weight in average.model.parameters())


def test_an_average_of_few_steps_has_forgotten_the_first_weights():
    """With a decay of 0.99 from the start, nine tenths of them would be left after ten steps."""
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    average = Average(model, 0.99)
    nn.init.zeros_(model.weight)
    for _ in range(10):
        average.update()
    assert 0 < float(average.model.weight) < 1e-4


def test_averaged_weights_are_kept_and_the_others_learn():
    averaged, plain = toy(), toy()
    optimiser = Optimiser(averaged, SGD, Recipe(ema=0.5), batches=4, epochs=1)
    other = Optimiser(plain, SGD, Recipe(ema=0.0), batches=4, epochs=1)
    batches = [tiles(seed) for seed in range(4)]
    assert train(averaged, optimiser, batches) == train(plain, other, batches)
    assert torch.equal(flat(averaged), flat(plain))
    assert other.kept is plain
    assert not torch.allclose(flat(optimiser.kept), flat(plain), rtol=1e-3)


# --- what it goes on from -----------------------------------------------------------------------------------


def through_a_file(state):
    """A state as it comes back from the disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("config", [SGD, ADAMW, MUON, replace(ADAMW, optimizer_options={"betas": [0.8, 0.9]})])
def test_goes_on_as_if_it_had_never_stopped(config):
    recipe = Recipe(ema=0.99, accumulate=2, clip=0.5)
    batches = [tiles(seed, 2) for seed in range(3)]

    def made(model):
        return Optimiser(model, config, recipe, batches=3, epochs=4)

    whole = toy(norm=True)
    optimiser = made(whole)
    for epoch in (1, 2, 3, 4):
        train(whole, optimiser, batches, epoch)
    model = toy(norm=True)
    before = made(model)
    for epoch in (1, 2):
        train(model, before, batches, epoch)
    state = through_a_file({"weights": model.state_dict(), "optimizer": before.state_dict()})
    resumed = toy(seed=1, norm=True)
    resumed.load_state_dict(state["weights"])
    after = made(resumed)
    after.load_state_dict(state["optimizer"])
    for epoch in (3, 4):
        train(resumed, after, batches, epoch)
    assert torch.equal(flat(resumed), flat(whole))
    assert torch.equal(flat(after.kept), flat(optimiser.kept))


def test_state_of_other_weights_is_refused():
    def made(model, **recipe):
        return Optimiser(model, ADAMW, Recipe(**{"ema": 0.0, **recipe}), batches=1, epochs=1)

    encoded = build_model(ModelConfig(encoder="tiny", pretrained=False), 3, 2)
    for ours, theirs in (
        (made(toy()), made(toy(norm=True))),
        (made(toy()), made(toy(), ema=0.9)),
        (made(encoded), made(encoded, encoder_rate=0.5)),
    ):
        with pytest.raises(ModelError, match="of another network, or of other groups of its weights"):
            ours.load_state_dict(through_a_file(theirs.state_dict()))


def test_damaged_state_is_refused():
    model = toy()
    optimiser = Optimiser(model, ADAMW, Recipe(ema=0.9), batches=1, epochs=1)
    train(model, optimiser, [tiles(0, 2)], 1)

    def drop(state):
        del state["updates"]

    def empty(state):
        state["optimizer"] = {}

    def widen(state):
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)

    def rename(state):
        state["average"] = {"other": torch.zeros(1)}

    for damage, message in (
        (drop, "KeyError: 'updates'"),
        (empty, "KeyError"),
        (widen, "exp_avg of .* has another shape"),
        (rename, "RuntimeError: Error.*in loading state_dict"),
    ):
        state = through_a_file(optimiser.state_dict())
        damage(state)
        other = Optimiser(toy(), ADAMW, Recipe(ema=0.9), batches=1, epochs=1)
        with pytest.raises(ModelError, match=f"the state of the optimizer is damaged: .*{message}"):
            other.load_state_dict(state)
