"""What building a network may take: its plan may come from a stranger, and its weights say how large it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rsp.shared.errors import ModelError

# What makes tensors out of nothing; networks make their weights, tables and rates by these.
_MAKERS = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.linspace, torch.arange}
)
# How many times the numbers, and the tensors, that it has in the end, and how many more. A norm that is replaced
# is made twice, and some numbers are only looked at.
TIMES, NUMBERS, TENSORS = 4, 1 << 20, 1000


class Budget(TorchFunctionMode):
    """Ends the building of a network within the block that would be far larger than its weights.

    Its tensors are counted before they are made, so that a width that is made up is refused at once, whatever the
    family of the network calls it. What some families do for each layer before they make the first one is not
    seen here: numbers of layers are looked at by their names.

    Raises:
        ModelError: it would be.
    """

    def __init__(self, plan: Any, weights: Sequence[torch.Tensor], where: str) -> None:
        """Set it up.

        Args:
            plan: What the network is built by.
            weights: Those that it will hold.
            where: Their file, for the message.
        """
        super().__init__()
        self._where = where
        if sum(_layers(plan)) > len(weights):
            raise self._error()
        sizes = [weight.numel() for weight in weights]
        self._numbers, self._tensors = TIMES * sum(sizes) + NUMBERS, TIMES * len(sizes) + TENSORS

    def _error(self) -> ModelError:
        return ModelError(
            f"the checkpoint {self._where} is damaged or made up: its network would be far larger than the "
            "weights in it"
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MAKERS:
            self._numbers -= func(*args, **{**kwargs, "device": "meta"}).numel()
            self._tensors -= 1
            if self._numbers < 0 or self._tensors < 0:
                raise self._error()
        return func(*args, **kwargs)


def _layers(plan: Any, key: str = "") -> Iterator[int]:
    """Yield the numbers of layers in a plan, whatever the family of the network."""
    if isinstance(plan, dict):
        for name, value in plan.items():
            yield from _layers(value, name)
    elif isinstance(plan, list):
        for value in plan:
            yield from _layers(value, key)
    elif isinstance(plan, int) and ("depth" in key or "layers" in key) and "bins" not in key:  # num_depth_bins
        yield max(plan, 0)
