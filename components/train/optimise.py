"""How weights follow gradients: the optimizer and its groups, the learning rate, the moving average.

All that it needs to go on after an interruption is in `state_dict`: a training that was killed ends with the same
weights as one that was not, to the last bit.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import nn

from rsp.components.train.muon import Muon, layers_of
from rsp.components.train.stages import check_stages, stages_of
from rsp.shared.config import ModelConfig
from rsp.shared.errors import ConfigError, ModelError
from rsp.shared.learning.devices import must_wait
from rsp.shared.recipe import Recipe

# What is left of the learning rate at the end of the cosine.
FLOOR = 0.01

# The highest that is taken for one: no optimizer learns in steps so long, and its numbers stay finite for hours.
HIGHEST = 10.0


def learning_rate(step: int, steps: int, rate: float, *, warmup: float = 0.1, schedule: str = "cosine") -> float:
    """Return the rate of a step (from 0): a linear climb, then half a cosine, or the rate itself.

    It follows from its arguments alone, so that a training that was interrupted goes on the same.

    Args:
        step: Which.
        steps: Of the whole training.
        rate: The highest.
        warmup: The fraction of the steps that climb.
        schedule: `cosine` or `constant`.
    """
    climb = max(1, round(warmup * steps)) if warmup else 0
    if step < climb:
        return rate * (step + 1) / climb
    if schedule == "constant":
        return rate
    progress = (step - climb) / max(1, steps - climb)
    return rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


# What optimizers keep of each weight, of its shape; torch would find out in the next step.
_LIKE_WEIGHTS = {"exp_avg", "exp_avg_sq", "momentum_buffer"}


class Average:
    """A moving average of the weights, which is smoother than they are and mostly better.

    Statistics of norms are averaged as the weights are: those of one batch of weights would not fit the mean of
    many. Whole numbers, as counts of batches, are copied.

    Attributes:
        model: The network with the averaged weights.
        decay: How much of the average is kept in a step. In the first steps it is less, (1 + t) / (10 + t), so
            that the weights from which training started are soon forgotten.
        updates: The steps so far, t.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        # They share their memory with the networks.
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([mine for mine, _ in self._floats], [now for _, now in self._floats], 1 - decay)
        for mine, now in self._others:
            mine.copy_(now)


class Optimiser:
    """Turns the loss of batches into steps of the weights.

    Call `begin` before an epoch, `learn` for each of its batches and `finish` after it.

    Attributes:
        rate: The learning rate of the last step.
        kept: The network that is validated and saved: with averaged weights where they are averaged.
    """

    def __init__(
        self, model: nn.Module, config: ModelConfig, recipe: Recipe, *, batches: int, epochs: int
    ) -> None:
        """Make it for a network on its device, with frozen weights frozen.

        Args:
            model: Not wrapped in anything.
            config: Of it `optimizer`, `optimizer_options`, `lr` and `decay` are used.
            recipe: Of it all that is about steps.
            batches: In an epoch.
            epochs: Of the whole training.

        Raises:
            ConfigError: there is no such optimizer, it does not take its options, or the network has no encoder
                for a rate of its own.
        """
        self.config, self.recipe = config, recipe
        if recipe.freeze:
            check_stages(model, config.nn, "freeze", recipe.freeze)
        self.batches, self.per_epoch = batches, -(-batches // recipe.accumulate)
        self.steps = self.per_epoch * epochs
        self.rate = config.lr
        self.optimizer = make_optimizer(model, config, recipe)
        self.average = Average(model, recipe.ema) if recipe.ema else None
        self.kept = self.average.model if self.average else model
        self._names = {weight: name for name, weight in model.named_parameters()}
        self._weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self._step, self._batch, self._tiles = 0, 0, 0
        self._finite = torch.ones((), dtype=torch.bool, device=self._weights[0].device)

    def begin(self, epoch: int, batches: int = 0) -> None:
        """Prepare for an epoch, from 1: the learning rate follows from its number.

        Args:
            epoch: Which.
            batches: How many of it were learned from already, before an interruption that fell between two steps.
        """
        self._step, self._batch, self._tiles = (epoch - 1) * self.per_epoch, batches, 0
        if batches:
            self._step += -(-batches // self.recipe.accumulate)
            self.rate = self._rate_of(self._step - 1)
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def is_between(self) -> bool:
        """Whether no gradients are kept for a later step."""
        return self._tiles == 0

    def _rate_of(self, step: int) -> float:
        recipe = self.recipe
        return learning_rate(step, self.steps, self.config.lr, warmup=recipe.warmup, schedule=recipe.schedule)

    @property
    def is_last(self) -> bool:
        """Whether the next batch is the last before a step, so that processes must exchange their gradients."""
        return (self._batch + 1) % self.recipe.accumulate == 0 or self._batch + 1 >= self.batches

    def learn(self, loss: torch.Tensor, tiles: int) -> None:
        """Take the gradients of a batch, and a step where enough of them are joined.

        Several batches teach what one of all their tiles would, for a loss that is a mean over tiles.

        Args:
            loss: The mean over the tiles of the batch.
            tiles: How many they are.

        Raises:
            ModelError: the gradients are not finite.
        """
        alone, is_last = self.recipe.accumulate == 1, self.is_last
        (loss if alone else loss * tiles).backward()  # type: ignore[no-untyped-call]
        self._batch, self._tiles = self._batch + 1, self._tiles + tiles
        if is_last:
            self._take_step()

    def finish(self) -> None:
        """End an epoch; raise as `learn` does."""
        self._check_finite()

    @torch.no_grad()
    def _take_step(self) -> None:
        recipe = self.recipe
        slopes = [weight.grad for weight in self._weights if weight.grad is not None]
        if recipe.accumulate > 1 and slopes:
            torch._foreach_mul_(slopes, 1 / self._tiles)
        norm = nn.utils.get_total_norm(slopes)
        self._finite = self._finite & norm.isfinite()
        if not must_wait(norm):  # a GPU is asked once an epoch
            self._check_finite()
        if recipe.clip:
            nn.utils.clip_grads_with_norm_(self._weights, recipe.clip, norm)
        self.rate = self._rate_of(self._step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        self._step, self._tiles = self._step + 1, 0

    def _check_finite(self) -> None:
        if not bool(self._finite):
            raise ModelError(
                f"the gradients are not finite by step {self._step + 1} of {self.steps}: training diverged; lower "
                f"the learning rate (it is {self.config.lr:g})" + ("" if self.recipe.clip else " or set clip")
            )

    # --- what it goes on from ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, but for the weights."""
        return {
            "weights": [self._names[weight] for weight in self._weights],
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "updates": self.average.updates if self.average else 0,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; raise `ModelError` where it was for other weights, or is damaged."""
        ours = [self._names[weight] for weight in self._weights]
        try:
            if state["weights"] != ours or (state["average"] is None) != (self.average is None):
                raise ModelError(
                    "the state of the optimizer is of another network, or of other groups of its weights"
                )
            self.optimizer.load_state_dict(state["optimizer"])
            for weight in self._weights:
                kept = self.optimizer.state.get(weight, {})
                for name in _LIKE_WEIGHTS & kept.keys():
                    if kept[name] is not None and kept[name].shape != weight.shape:
                        raise ValueError(f"{name} of {self._names[weight]} has another shape")
            if self.average:
                self.average.model.load_state_dict(state["average"])
                if not isinstance(state["updates"], int):
                    raise TypeError(f"updates is {state['updates']!r}")
                self.average.updates = state["updates"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"the state of the optimizer is damaged: {type(error).__name__}: {error}") from error


def make_optimizer(model: nn.Module, config: ModelConfig, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of the configuration: any of `torch.optim` that takes steps from gradients alone.

    LBFGS needs a closure, and SparseAdam gradients of another kind. `Muon` is ours, which takes convolutions.
    """
    kinds: dict[str, Any] = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        if name not in ("Optimizer", "LBFGS", "SparseAdam")
    } | {"Muon": Muon}
    name = config.optimizer
    if name not in kinds:
        raise ConfigError(f"[train] optimizer.name: unknown {name!r}; expected one of {', '.join(sorted(kinds))}")
    if config.lr > HIGHEST:
        raise ConfigError(
            f"[train] optimizer.lr: {config.lr:g} is too long a step to learn by; expected 1 or less"
        )
    known = inspect.signature(kinds[name]).parameters
    options = dict(config.optimizer_options)
    if config.decay or (config.decay is not None and "weight_decay" in known):
        options.setdefault("weight_decay", config.decay)
    if name in ("Adam", "AdamW") and not {"foreach", "fused", "capturable", "differentiable"} & set(options):
        # Half the time of the loop over weights, on a CPU, too; SGD is quicker without.
        options["fused"] = all(weight.is_floating_point() for weight in model.parameters())
    decay = options.get("weight_decay", known["weight_decay"].default if "weight_decay" in known else 0)
    groups = parameter_groups(
        model, config, recipe, decays=bool(decay), layers=layers_of(model) if name == "Muon" else frozenset()
    )
    if not groups:
        raise ConfigError("[train] freeze: no weight is left to train")
    try:
        made: torch.optim.Optimizer = kinds[name](groups, lr=config.lr, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"[train] optimizer: {error}") from error
    return made


def parameter_groups(
    model: nn.Module, config: ModelConfig, recipe: Recipe, *, decays: bool, layers: Set[str] = frozenset()
) -> list[dict[str, Any]]:
    """Return the weights that learn, in groups of one rate, one decay and one kind of step.

    Weights of one dimension, biases and those of norms, do not decay: that would only bend what they shift and
    scale. Those of the encoder have `encoder_rate` times the rate in its last stage, and `layer_decay` times that
    of the next one in each stage before.

    Args:
        model: The network.
        config: Of it `pretrained` is used, and `nn` in messages.
        recipe: Of it the two rates are used.
        decays: Whether there is any weight decay.
        layers: The names of weights that are matrices to the optimizer.

    Raises:
        ConfigError: rates for an encoder that a network does not have.
    """
    for key in ("encoder_rate", "layer_decay"):
        if getattr(recipe, key) not in (1, "auto"):
            check_stages(model, config.nn, key)
    rate = recipe.rate_of_encoder(config.pretrained)
    stages = stages_of(model)
    last = max(stages.values(), default=0)
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        factor = 1.0
        if name in stages:
            factor = rate * recipe.layer_decay ** (last - stages[name])
        plain = decays and weight.dim() < 2
        layer = name in layers
        group = groups.setdefault((factor, plain, layer), {"params": [], "factor": factor})
        group["params"].append(weight)
        if layer:
            group["matrices"] = True
        if plain:
            group["weight_decay"] = 0.0
    return list(groups.values())
