"""Losses. `[model] loss` names one of ours, `module:attribute`, or an entry point of the group `rsp.losses`.

A loss is made once, as `make(weights)` with the weight of each class (float32, shape (K,), mean 1), and called
as `loss(logits, labels)`: logits (N, K, H, W) float32, labels (N, H, W) int64 -> a scalar tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from kornia.losses import LovaszSoftmaxLoss, dice_loss, focal_loss
from torch import nn
from torch.nn import functional as F

from rsp.shared import plugins
from rsp.shared.config import ClassDef
from rsp.shared.errors import ConfigError, PluginError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Lovasz(LovaszSoftmaxLoss):
    """The Lovász extension of the IoU, per image and class (Berman et al., 2018, arxiv.org/abs/1705.08790)."""


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy."""


class LovaszCrossEntropy(nn.Module):
    """Half Lovász, half cross entropy: the first follows the IoU, the second learns well from scratch."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.lovasz = Lovasz(weight)
        self.cross_entropy = CrossEntropy(weight)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = 0.5 * self.lovasz(logits, labels) + 0.5 * self.cross_entropy(logits, labels)
        return value


class Focal(nn.Module):
    """Focal loss, gamma 2 (Lin et al., 2017, arxiv.org/abs/1708.02002)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.weight: torch.Tensor

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return focal_loss(logits, labels, alpha=None, gamma=2.0, reduction="mean", weight=self.weight)


class Dice(nn.Module):
    """Sørensen-Dice, of each class on its own."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.weight: torch.Tensor

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return dice_loss(logits, labels, average="macro", weight=self.weight)


class MIoU(nn.Module):
    """1 - mean IoU of the probabilities over the batch, or cross entropy where that is larger (early on)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.weight: torch.Tensor

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        probabilities = logits.softmax(1)
        truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
        both = (probabilities * truth).sum((0, 2, 3))
        union = (probabilities + truth).sum((0, 2, 3)) - both
        soft = 1 - (self.weight * both / union.clamp_min(1e-6)).sum() / self.weight.sum()
        return torch.maximum(soft, F.cross_entropy(logits, labels, self.weight))


BUILTIN: dict[str, Callable[[torch.Tensor], Loss]] = {
    "lovasz": Lovasz,
    "cross_entropy": CrossEntropy,
    "lovasz_ce": LovaszCrossEntropy,
    "focal": Focal,
    "dice": Dice,
    "miou": MIoU,
}


def class_weights(classes: Sequence[ClassDef]) -> torch.Tensor:
    """Return the weight of each class, scaled to a mean of 1 so that weights do not change the learning rate.

    Raises:
        ConfigError: a weight below 0, or none above.
    """
    weights = torch.tensor([entry.weight for entry in classes], dtype=torch.float32)
    if not (weights.isfinite().all() and weights.min() >= 0 and weights.sum() > 0):
        raise ConfigError(
            f"[[classes]] weight: expected numbers from 0, and one above 0, got {[c.weight for c in classes]}"
        )
    return weights * len(classes) / weights.sum()


def build_loss(name: str, weights: torch.Tensor) -> Loss:
    """Return the loss of a name; raise `PluginError` where there is none or it cannot be made."""
    make = plugins.load(name, "rsp.losses", BUILTIN)
    expected = "loss(logits, labels), since a loss is made once, as make(class_weights)"
    try:
        loss: Loss = make(weights)
    except Exception as error:
        raise PluginError(
            f"the loss {name!r} cannot be made: {type(error).__name__}: {error}; expected a function of the class "
            f"weights that returns {expected}"
        ) from error
    if not callable(loss) or isinstance(loss, torch.Tensor):
        raise plugins.unexpected("loss", name, loss, expected)
    return loss.to(weights.device) if isinstance(loss, nn.Module) else loss


def measure_loss(loss: Loss, name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of a batch; raise `PluginError` where it fails or is not a number to learn from."""
    if name.lower() in BUILTIN:
        return loss(logits, labels)
    with plugins.guarded("loss", name):
        value: Any = loss(logits, labels)
    if not isinstance(value, torch.Tensor) or value.dim() or not value.is_floating_point():
        raise plugins.unexpected("loss", name, value, "a tensor of one number, shape ()")
    if logits.requires_grad and not value.requires_grad:
        raise PluginError(
            f"the loss {name!r} returned a number that does not depend on the logits, or was detached from them: "
            "nothing can be learned from it"
        )
    return value
