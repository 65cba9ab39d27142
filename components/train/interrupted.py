"""What of an epoch has to be known, beside weights and optimizer, to go on within it as if nothing had been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from rsp.components.train.metrics import RunningMetrics


@dataclass
class Part:
    """An epoch in the midst of training, between two steps.

    Attributes:
        batches: How many of it were learned from.
        matrix: Of its `RunningMetrics`.
        loss: Likewise.
        ignorant: Of `Divergence`.
        chance: The state of torch's source of chance, which dropout draws from.
        device_chance: That of the GPU, if it was trained on one.
        seconds: How long it has taken.
    """

    batches: int
    matrix: torch.Tensor
    loss: torch.Tensor
    ignorant: float
    chance: torch.Tensor
    device_chance: torch.Tensor | None
    seconds: float

    @classmethod
    def now(
        cls, batches: int, running: RunningMetrics, ignorant: float, device: torch.device, seconds: float
    ) -> Part:
        """Return where a training is."""
        matrix, loss = (each.cpu() for each in running.counts)
        gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(batches, matrix, loss, ignorant, torch.get_rng_state(), gpu, seconds)

    def set_chance(self, device: torch.device) -> None:
        """Let chance go on from where it was."""
        torch.set_rng_state(self.chance)
        if device.type == "cuda" and self.device_chance is not None:
            torch.cuda.set_rng_state(self.device_chance, device)

    def to_dict(self) -> dict[str, Any]:
        """Return it for `of_dict`."""
        return asdict(self)

    @classmethod
    def of_dict(cls, data: Mapping[str, Any], classes: int) -> Part:
        """Return what `to_dict` gave.

        Args:
            data: From a file, so of whatever kind.
            classes: Of the network.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(data, Mapping) or data.keys() != {each.name for each in fields(cls)}:
            raise ValueError("what is kept of the epoch is incomplete")
        found = cls(**data)
        near = torch.device("cpu")
        like = cls.now(1, RunningMetrics(classes, near), 0.0, near, 0.0)
        for name, value in vars(like).items():
            kept = getattr(found, name)
            if name == "device_chance":
                fits = kept is None or isinstance(kept, torch.Tensor)
            elif isinstance(value, torch.Tensor):
                fits = isinstance(kept, torch.Tensor) and (kept.shape, kept.dtype) == (value.shape, value.dtype)
            else:
                fits = type(kept) is type(value)
            if not fits:
                raise ValueError(f"{name} of the epoch is of another kind")
        if found.batches < 1:
            raise ValueError(f"{found.batches} batches of the epoch are done")
        return found
