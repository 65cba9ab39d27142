"""Losses. `[model] loss` names one, or a weighted sum of several: `cross_entropy + 0.5 dice`.

Each is one of ours (`rsp.components.train.terms`), `module:attribute`, or an entry point of `rsp.losses`. Some of
ours take options: `focal(gamma=3)`, `tversky(alpha=0.3, beta=0.7)`.

A loss is made once, from the weight of each class (float32, shape (K,), mean 1), and called as
`loss(logits, labels, weights)`: logits (N, K, H, W) float32, labels (N, H, W) int64, and the weights of the pixels
(N, H, W) float32, or None -> a scalar tensor. A label of `IGNORE` (255) is masked.

A plug-in is made as `make(class_weights)` and never sees 255. One with a parameter `weights` is called with all
three, the weight (and the label) being 0 where a pixel is ignored. One without is called as
`loss(logits, labels)`, and if a batch has ignored pixels, with those that are left as one row, (1, K, 1, pixels)
and (1, 1, pixels).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from rsp.components.train.terms import OVER_PIXELS, SMOOTHED, TERMS, Batch
from rsp.shared import plugins
from rsp.shared.config import ClassDef
from rsp.shared.errors import ConfigError, PluginError

Term = Callable[[Batch], torch.Tensor]

_PART = re.compile(
    r"(?:(?P<factor>[+-]?[\d.][^\s*]*)(?:\s*\*\s*|\s+))?(?P<name>[^\s()*]+)\s*(?:\((?P<options>[^()]*)\))?"
)
_EXPECTED = "loss(logits, labels[, weights]), since a loss is made once, as make(class_weights)"


@dataclass(frozen=True)
class Part:
    """A part of a weighted sum, as it is written: `0.5 focal(gamma=3)`."""

    factor: float
    name: str
    options: dict[str, float]


class Loss:
    """A weighted sum of terms; see the module."""

    def __init__(
        self, terms: Sequence[tuple[float, Term]], classes: torch.Tensor, smoothing: float, hard: float
    ) -> None:
        self.terms, self.classes, self.smoothing, self.hard = terms, classes, smoothing, hard
        self.even = bool((classes == 1).all())

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch = Batch.of(logits, labels, weights, self.classes, self.even, self.smoothing, self.hard)
        total: torch.Tensor | None = None
        for factor, term in self.terms:
            value = term(batch) if factor == 1 else factor * term(batch)
            total = value if total is None else total + value
        assert total is not None
        return total


def parse_loss(text: str) -> list[Part]:
    """Return the parts of a loss that is written as text.

    Raises:
        ConfigError: it cannot be read; says where.
    """
    parts = []
    # A sign within a number, 1e+3, is no sum.
    for written in re.split(r"(?<![\d.]e)\+", text):
        match = _PART.fullmatch(written.strip())
        if match is None:
            raise ConfigError(
                f"loss {text!r}: cannot read {written.strip()!r}; expected a name, or a sum as "
                "`cross_entropy + 0.5 dice` or `lovasz + 2 focal(gamma=3)`"
            )
        name, factor = match["name"], _number(text, match["factor"] or "1", "the factor of " + match["name"])
        if factor <= 0:
            raise ConfigError(f"loss {text!r}: {name} is multiplied by {factor:g}; expected a number above 0")
        parts.append(Part(factor, name, _options(text, name, match["options"])))
    return parts


def _options(text: str, name: str, written: str | None) -> dict[str, float]:
    if written is None:
        return {}
    term = TERMS.get(name.lower())
    known = list(inspect.signature(term).parameters)[1:] if term else []
    options = {}
    for each in filter(None, (each.strip() for each in written.split(","))):
        key, _, value = (part.strip() for part in each.partition("="))
        if key not in known:
            takes = f"{name} takes {', '.join(known)}" if known else f"{name} takes none"
            raise ConfigError(f"loss {text!r}: unknown option {key!r}; {takes}")
        options[key] = _number(text, value, f"{key} of {name}")
        if options[key] < 0:
            raise ConfigError(f"loss {text!r}: {key} of {name} is {value}; expected a number from 0")
    return options


def _number(text: str, written: str, what: str) -> float:
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"loss {text!r}: {what} is {written!r}; expected a number")
    return value


def build_loss(
    text: str, classes: torch.Tensor, *, smoothing: float = 0.0, hard: float = 1.0, weighted: bool = False
) -> Loss:
    """Make a loss.

    Args:
        text: As in the configuration.
        classes: (K,), the weight of each class.
        smoothing: The part of each label, 0 to 1, that cross entropy spreads over all classes.
        hard: The part of the pixels, those of the highest loss, that cross entropy and focal loss learn from.
        weighted: Whether batches come with weights of pixels.

    Raises:
        ConfigError: the text cannot be read, or no part of it is what `smoothing` or `hard` are about.
        PluginError: there is no such loss, it cannot be made, or it takes no weights where there are some.
    """
    terms: list[tuple[float, Term]] = []
    parts = parse_loss(text)
    if hard < 1 and not any(part.name.lower() in OVER_PIXELS for part in parts):
        raise ConfigError(
            f"[train] hard: the loss {text!r} has no part that is a mean over pixels, whose hardest could be "
            f"taken; those are {', '.join(OVER_PIXELS)}: add one, as {text + ' + cross_entropy'!r}, or leave hard "
            "out"
        )
    if smoothing and not any(part.name.lower() in SMOOTHED for part in parts):
        raise ConfigError(
            f"[train] label_smoothing: the loss {text!r} has no part that spreads labels; those are "
            f"{', '.join(SMOOTHED)}: add one, as {text + ' + cross_entropy'!r}, or leave label_smoothing out"
        )
    for part in parts:
        if part.name.lower() in TERMS:
            terms.append((part.factor, partial(TERMS[part.name.lower()], **part.options)))
        else:
            terms.append((part.factor, PlugIn(part.name, classes, weighted=weighted)))
    return Loss(terms, classes, smoothing, hard)


class PlugIn:
    """A loss of someone else's as a term: it is called as it wants to be, and what it returns is checked."""

    def __init__(self, name: str, classes: torch.Tensor, *, weighted: bool) -> None:
        self.name = name
        make = plugins.load(name, "rsp.losses", TERMS)
        try:
            loss = make(classes)
        except Exception as error:
            raise PluginError(
                f"the loss {name!r} cannot be made: {type(error).__name__}: {error}; expected a function of the "
                f"class weights that returns {_EXPECTED}"
            ) from error
        if not callable(loss) or isinstance(loss, torch.Tensor):
            raise plugins.unexpected("loss", name, loss, _EXPECTED)
        self.loss: Callable[..., Any] = loss.to(classes.device) if isinstance(loss, nn.Module) else loss
        self.takes_weights = "weights" in _parameters(loss)
        if weighted and not self.takes_weights:
            raise PluginError(
                f"the loss {name!r} takes no weights of pixels, and the configuration gives some: write it as "
                "loss(logits, labels, weights)"
            )

    def __call__(self, batch: Batch) -> torch.Tensor:
        logits, labels = batch.logits, batch.labels
        with plugins.guarded("loss", self.name):
            if self.takes_weights:
                value = self.loss(logits, labels, weights=batch.pixels)
            elif batch.pixels is None:
                value = self.loss(logits, labels)
            else:
                counted = batch.pixels > 0
                if not bool(counted.any()):
                    return 0 * logits.sum()
                left = logits.movedim(1, 0)[:, counted]
                value = self.loss(left[None, :, None], labels[counted][None, None])
        if not isinstance(value, torch.Tensor) or value.dim() or not value.is_floating_point():
            raise plugins.unexpected("loss", self.name, value, "a tensor of one number, shape ()")
        if logits.requires_grad and not value.requires_grad:
            raise PluginError(
                f"the loss {self.name!r} returned a number that does not depend on the logits, or was detached "
                "from them: nothing can be learned from it"
            )
        return value


def _parameters(loss: Callable[..., Any]) -> Sequence[str]:
    try:
        return list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters)
    except (TypeError, ValueError):  # one in C says nothing
        return []


def class_weights(classes: Sequence[ClassDef], counts: Sequence[int] | None = None) -> torch.Tensor:
    """Return the weight of each class, scaled to a mean of 1 so that weights do not change the learning rate.

    Args:
        classes: Those to be ignored get 0.
        counts: How many pixels of the labels each has, for weights by `balanced_weights` in place of theirs.

    Raises:
        ConfigError: a weight below 0, or fewer than two above.
    """
    given = [entry.weight for entry in classes] if counts is None else balanced_weights(counts)
    weights = torch.tensor(given, dtype=torch.float32)
    counted = torch.tensor([not entry.ignore for entry in classes])
    if not (weights.isfinite().all() and weights.min() >= 0 and weights[counted].sum() > 0):
        raise ConfigError(f"[[classes]] weight: expected numbers from 0, and one above 0, got {given}")
    weights = weights * counted
    if int((weights > 0).sum()) < 2:
        only = classes[int(weights.argmax())].title
        why = "by [[classes]] weight" if counts is None else "as no other class is in the training labels"
        raise ConfigError(f"only {only!r} weighs anything {why}: nothing can be told apart")
    return weights * counted.sum() / weights.sum()


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return weights that make up for how rare classes are: 1 / ln(1.02 + share of the pixels).

    They are those of ENet (Paszke et al., 2016, arxiv.org/abs/1606.02147): between 1.4 and 50, so that a class of
    a few pixels does not drown all others, as it would with one over its share.

    Args:
        counts: How many pixels of the training labels each class has, 0 for one that is ignored.

    Returns:
        The weight of each class, 0 for one of no pixels.
    """
    total = sum(counts)
    return [1 / math.log(1.02 + count / total) if count else 0.0 for count in counts]
