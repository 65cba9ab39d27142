"""Whether a network takes tiles of the sizes that training and prediction will ask it: before either begins."""

from __future__ import annotations

import torch
from torch import nn

from rsp.shared.config import Config
from rsp.shared.errors import ModelError
from rsp.shared.learning.models import is_plugin

# What networks raise where shapes do not fit.
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError)


def check_sizes(model: nn.Module, config: Config, crop: int) -> None:
    """Raise `ModelError` where a network that is built in cannot answer tiles of a size that it will see.

    Some encoders take one size alone (Hiera), which would be noticed with the first batch, or only with the first
    window that is predicted, after an epoch. It is asked on torch's meta device, which computes shapes and nothing
    else; only where that fails, which may have other reasons, in earnest.

    Args:
        model: The network, on its device.
        config: What it is trained by.
        crop: Side of the crops that it learns from; 0 for whole tiles.
    """
    if is_plugin(config.model.nn):
        return
    tile = config.model.side
    sides = {tile + 2 * config.model.overlap: "prediction, with the borders of tiles", crop or tile: "training"}
    bands = sum(len(channel.bands) for channel in config.channels)
    before = model.training
    model.eval()
    try:
        for side, what in sides.items():
            reason = _fails(model, bands, side)
            if reason:
                raise ModelError(
                    f"the network {config.model.nn!r} with the encoder {config.model.encoder!r} takes no images "
                    f"of {side} px ({what}): {reason}; set ts, crop and ms to sizes that it takes, or choose "
                    "another encoder"
                )
    finally:
        model.train(before)


@torch.no_grad()
def _fails(model: nn.Module, bands: int, side: int) -> str | None:
    shape = 1, bands, side, side
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    try:
        torch.func.functional_call(model, state, (torch.empty(shape, device="meta"),))
    except _ERRORS:
        device = next(model.parameters()).device
        try:
            model(torch.zeros(shape, device=device))
        except torch.OutOfMemoryError:
            return None  # that is said of the batch which does not fit
        except _ERRORS as error:
            return " ".join(str(error).split()) or type(error).__name__
    return None
