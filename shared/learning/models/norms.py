"""Group normalisation in place of batch normalisation, where `[model] norm` asks for it.

Batch normalisation takes its statistics over the tiles of a batch, group normalisation (Wu & He, 2018,
arxiv.org/abs/1803.08494) over groups of channels of each tile. So a batch may have one tile, several processes
need not exchange anything, and a network is the same in training and in prediction. What it answers for a pixel
then follows a little from all of the window.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsp.shared.errors import ModelError

# The paper has 32 groups; of fewer channels than these a group would know too little of what it normalises.
GROUPS, CHANNELS = 32, 8


def groups_of(channels: int) -> int:
    """Return into how many groups channels are divided: up to 32, equal ones of 8 channels or more."""
    most = min(GROUPS, channels // CHANNELS)
    return next((count for count in range(most, 1, -1) if channels % count == 0), 1)


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether there is a batch normalisation in a network."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def with_group_norms(model: nn.Module, name: str) -> nn.Module:
    """Return a network whose batch normalisations are group normalisations, of the same names.

    Args:
        model: The network.
        name: What the configuration calls it.

    Raises:
        ModelError: it has no batch normalisation.
    """
    if not has_batch_norm(model):
        raise ModelError(
            f'the network {name!r} has no batch normalisation that norm = "group" could replace: leave norm out '
            "of [model]"
        )
    return _replaced(model)


def _replaced(model: nn.Module) -> nn.Module:
    if isinstance(model, _BatchNorm):
        made = nn.GroupNorm(groups_of(model.num_features), model.num_features, model.eps, model.affine)
        return made.train(model.training)
    for name, child in model.named_children():
        setattr(model, name, _replaced(child))
    return model


def check_pretrained(encoder: nn.Module, name: str) -> None:
    """Raise `ModelError` where weights that were trained with batch normalisation would lose it."""
    if has_batch_norm(encoder):
        raise ModelError(
            f'the pretrained weights of {name} were trained with batch normalisation, and norm = "group" would '
            'leave them without: set pretrained = false, or norm = "batch", in [model]'
        )
