"""What ends a training that goes wrong, in words that help: divergence, and memory that is too small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

from rsp.components.train.history import Row
from rsp.components.train.losses import Loss
from rsp.shared.errors import ModelError, TileSetError, TooLargeError
from rsp.shared.learning.answers import lacks_memory
from rsp.shared.metrics import IGNORE

# How many times the loss of a network that knows nothing an epoch may have. Steps that are too bold reach a few
# times that much and come back; beyond a hundred, none was seen to.
LIMIT = 100.0


class Divergence:
    """Tells whether a training has left all sense.

    What it is measured by is the loss of a network that knows nothing, whose logits are all alike. It follows
    from the loss and from the labels, so that it is the same for a training that was resumed. Losses of overlap
    (Lovász, Dice) never exceed 1, however wild the logits: the cross entropy of the last batch is looked at, too.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.ignorant = 0.0  # the loss of a network that knows nothing
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def see(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> None:
        """Look at a batch: the first one of which there is anything to learn, and the last one, matter."""
        self._last = logits.detach(), labels
        if not self.ignorant > 0:
            with torch.no_grad():
                self.ignorant = float(self._loss(torch.zeros_like(logits), labels, weights))

    def check(self, epoch: int, loss: float, rate: float) -> None:
        """Raise `ModelError` where an epoch diverged.

        Args:
            epoch: Which.
            loss: Its mean training loss.
            rate: The peak of the learning rate, for the message.
        """
        what, ignorant = "loss", self.ignorant
        # A loss of a plug-in may be 0 or less for a network that knows nothing: it has no scale then.
        beyond = math.isfinite(ignorant) and 0 < ignorant * LIMIT < loss
        entropy, even = self._entropy()
        if math.isfinite(loss) and not beyond and entropy > even * LIMIT:
            what, loss, ignorant, beyond = "cross entropy of the last batch", entropy, even, True
        if math.isfinite(loss) and not beyond:
            return
        known = f", and that of a network that knows nothing is {ignorant:.3g}" if beyond else ""
        kept = (
            f"; the state after epoch {epoch - 1} is kept, so that --resume with a lower --lr goes on from there"
            if epoch > 1
            else ""
        )
        raise ModelError(
            f"the {what} is {loss:.4g} in epoch {epoch}{known}: training diverged; lower the learning rate "
            f"(it is {rate:g}){kept}"
        )

    def _entropy(self) -> tuple[float, float]:
        """Return the cross entropy of the last batch, and that of a network that knows nothing."""
        if self._last is None:
            return math.nan, math.nan
        logits, labels = self._last
        self._last = None
        entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        return float(entropy), math.log(logits.shape[1])


def check_counted(row: Row) -> None:
    """Raise `TileSetError` where no pixel counted in an epoch: nothing was learned, or no epoch is the best.

    Args:
        row: The epoch.
    """
    for part, so in (("training", "there is nothing to learn"), ("validation", "no epoch can be told the best")):
        if not any(map(sum, row[part]["confusion"])):
            raise TileSetError(
                f"no pixel of the {part} labels counts: all are {IGNORE}, or of a class to ignore; {so}"
            )


@contextmanager
def enough_memory(tiles: int, side: int, device: torch.device) -> Iterator[None]:
    """Say which batch did not fit, and which may.

    Args:
        tiles: In a batch.
        side: Of a tile in pixels.
        device: Where it is to fit.

    Raises:
        TooLargeError: the memory did not suffice within the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        half = tiles // 2
        advice = (
            f"take --bs {half} (with `accumulate = 2` in [train], a step still learns from as many tiles)"
            if half
            else "take smaller tiles (--ts), a smaller encoder, or a device with more memory"
        )
        raise TooLargeError(
            f"out of memory on {device}: a batch of {tiles} tile{'s' * (tiles > 1)} of {side} px does not fit; "
            f"{advice}"
        ) from error
