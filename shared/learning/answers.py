"""What a network answers: logits, or an error that names the network and says what it answered instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rsp.shared import plugins
from rsp.shared.errors import ModelError, PluginError, RspError


@contextmanager
def guarded_network(name: str) -> Iterator[None]:
    """Name the network that raises inside of the block, where it is a plug-in."""
    try:
        yield
    except (RspError, torch.OutOfMemoryError):
        raise
    except Exception:
        if not _is_plugin(name):
            raise
        with plugins.guarded("network", name):
            raise


def lacks_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that the memory did not suffice."""
    # That of a GPU has a class of its own, but not out of TorchScript; that of a CPU has only its words.
    words = "CUDA out of memory", "not enough memory"
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in words)


def check_logits(answer: Any, name: str, wanted: Sequence[int]) -> torch.Tensor:
    """Return what a network answered, if it is logits.

    Args:
        answer: Of the network.
        name: What the configuration calls it.
        wanted: The shape (N, classes, H, W).

    Raises:
        PluginError: the network is a plug-in and answers something else.
        ModelError: any other network does.
    """
    if isinstance(answer, torch.Tensor) and tuple(answer.shape) == tuple(wanted) and answer.is_floating_point():
        return answer
    raise (PluginError if _is_plugin(name) else ModelError)(
        f"the network {name!r} answers {plugins.describe(answer)}; expected are logits, as its card says: a "
        f"tensor of floats and shape {tuple(wanted)}"
    )


def check_finite(logits: torch.Tensor, name: str) -> None:
    """Raise as `check_logits` does where logits hold NaN or infinity: their classes would mean nothing."""
    # A sum is quicker, and finite where all terms are, but for the largest of numbers.
    if not bool(logits.sum().isfinite()) and not bool(logits.isfinite().all()):
        raise (PluginError if _is_plugin(name) else ModelError)(
            f"the network {name!r} answers NaN or infinity, so no class can be chosen; did its training diverge?"
        )


def _is_plugin(name: str) -> bool:
    # Not at the top: an exported model needs none of what builds networks.
    from rsp.shared.learning.models import is_plugin

    return is_plugin(name)
