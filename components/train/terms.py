"""What losses are made of: each term is a function of a `Batch` and returns a scalar tensor.

All of them leave out what is ignored as if it were not there, and take the weights of pixels and classes in one
way. Terms over pixels (cross entropy, focal) are weighted means, of all pixels or of the hardest. Terms over
regions (Dice, Tversky, Lovász, mean IoU) are taken over the whole batch, as the IoU of a data set is over all of
its tiles, and averaged over the classes that are in its labels: one that is not there has no overlap to gain, and
would only add a constant. Where nothing is left to count, they are 0, and so is their gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from rsp.shared.learning.devices import must_wait
from rsp.shared.metrics import IGNORE

# A mean over fewer pixels would be mostly noise.
LEAST_PIXELS = 1024


@dataclass
class Batch:
    """A batch as the terms of a loss see it; what several of them need is made once.

    Attributes:
        logits: (N, K, H, W) float32.
        labels: (N, H, W) int64, below K; 0 where the pixel is ignored.
        pixels: (N, H, W), the weight of each pixel, 0 where it is ignored; None where all weigh 1.
        classes: (K,), the weight of each class.
        even: Whether all classes weigh 1.
        smoothing: The part of each label that cross entropy spreads over all classes.
        hard: The part of the pixels, those of the highest loss, that terms over pixels are means of.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor | None
    classes: torch.Tensor
    even: bool = False
    smoothing: float = 0.0
    hard: float = 1.0

    @classmethod
    def of(
        cls,
        logits: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        classes: torch.Tensor,
        even: bool = False,
        smoothing: float = 0.0,
        hard: float = 1.0,
    ) -> Batch:
        """Make a batch of labels that may be `IGNORE`.

        Args:
            logits: (N, K, H, W) float32.
            labels: (N, H, W) int64.
            weights: (N, H, W) float32, the weight of each pixel.
            classes: (K,), the weight of each class.
            even: Whether all of them are 1.
            smoothing: See `Batch`.
            hard: Likewise.
        """
        pixels = None if weights is None else weights.to(logits.dtype)
        logits = logits.contiguous()
        # On a GPU the mask is applied whether or not it masks anything.
        if must_wait(labels) or (labels.numel() and int(labels.max()) == IGNORE):
            ignored = labels == IGNORE
            pixels = (~ignored).to(logits.dtype) if pixels is None else pixels * ~ignored
            labels = labels.masked_fill(ignored, 0)
        return cls(logits, labels, pixels, classes.to(logits.dtype), even, smoothing, hard)

    @cached_property
    def log_probabilities(self) -> torch.Tensor:
        """(N, K, H, W)."""
        return self.logits.log_softmax(1)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """(N, K, H, W)."""
        return self.logits.softmax(1)

    @cached_property
    def truth(self) -> torch.Tensor:
        """(N, K, H, W) bool: which class each pixel is."""
        index = torch.arange(self.logits.shape[1], device=self.labels.device)
        return self.labels[:, None] == index[:, None, None]

    @cached_property
    def counts(self) -> torch.Tensor:
        """(K,), how many pixels each class has, by their weights."""
        if self.pixels is None:
            counts = torch.bincount(self.labels.flatten(), minlength=self.logits.shape[1])
            return counts.to(self.logits.dtype)
        return (self.truth * self.pixels[:, None]).sum((0, 2, 3))

    @cached_property
    def right(self) -> torch.Tensor:
        """(N, H, W), the log of the probability of the class that is right."""
        return self.log_probabilities.gather(1, self.labels[:, None])[:, 0]

    def over_pixels(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of (N, H, W) values over the pixels, each with its weight times that of its class."""
        return self.per_weight(values if self.even else values * self.classes[self.labels])

    def per_weight(self, values: torch.Tensor) -> torch.Tensor:
        """Return the same where the values are multiplied by the weight of the class already."""
        if self.pixels is None and self.even and self.hard == 1:
            return values.sum() / max(values.numel(), 1)
        values = values if self.pixels is None else values * self.pixels
        if self.hard == 1:
            return _ratio(values.sum(), (self.counts * self.classes).sum())
        with torch.no_grad():
            weights = self.classes[self.labels] if self.pixels is None else self.classes[self.labels] * self.pixels
            shares = hardest(values.detach(), weights > 0, self.hard)
        return _ratio((values * shares).sum(), (weights * shares).sum())

    def over_classes(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of (K,) values over the classes that are there, by their weights."""
        return (values * self.shares).sum()

    @cached_property
    def shares(self) -> torch.Tensor:
        """(K,), the part of each class in a mean over classes: 0 for one that is not in the labels."""
        weights = self.classes * (self.counts > 0)
        return _ratio(weights, weights.sum())

    def overlaps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (K,) the soft intersections of prediction and labels, and the soft areas of the prediction."""
        chance = self.probabilities if self.pixels is None else self.probabilities * self.pixels[:, None]
        return (chance * self.truth).sum((0, 2, 3)), chance.sum((0, 2, 3))


def hardest(values: torch.Tensor, counted: torch.Tensor, part: float) -> torch.Tensor:
    """Return which pixels have the highest loss: 1 for them, 0 for all others (Shrivastava et al., 2016).

    Pixels that share the last place share what is left of it, so that the answer is the same in whatever order
    they come, as from one process or from several.

    Args:
        values: (N, H, W), the loss of each pixel, 0 or more.
        counted: (N, H, W) bool, which of them count at all.
        part: How many are taken, of those that count; never fewer than `LEAST_PIXELS`, if there are so many.
    """
    ranked = values.masked_fill(~counted, -1).flatten()
    count = counted.sum()
    wanted = (count * part).ceil().clamp_min(LEAST_PIXELS).minimum(count).clamp_min(1)
    if must_wait(values):
        limit = ranked.sort(descending=True).values.gather(0, wanted.long()[None] - 1)
    else:
        limit = ranked.kthvalue(len(ranked) - int(wanted) + 1).values
    above, last = ranked > limit, (ranked == limit) & counted.flatten()
    left = (wanted - above.sum()) / last.sum().clamp_min(1)
    return (above + last * left).to(values.dtype).view_as(values)


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Return a ratio, 0 where what is below is 0, as what is above is then, too."""
    return above / torch.where(below > 0, below, torch.ones_like(below))


def cross_entropy(batch: Batch) -> torch.Tensor:
    """Cross entropy, with label smoothing if there is any (Szegedy et al., 2016, arxiv.org/abs/1512.00567)."""
    if not batch.smoothing:
        return batch.over_pixels(-batch.right)
    logs = batch.log_probabilities
    # As torch has it, each class that a label is spread over brings its own weight.
    spread = torch.einsum("nkhw,k->nhw", logs, batch.classes) / logs.shape[1]
    own = batch.right * batch.classes[batch.labels]
    return batch.per_weight(-(1 - batch.smoothing) * own - batch.smoothing * spread)


def focal(batch: Batch, gamma: float = 2.0) -> torch.Tensor:
    """Cross entropy times (1 - p) ** gamma (Lin et al., 2017, arxiv.org/abs/1708.02002)."""
    # A power below 1 has an infinite slope at 0.
    missing = (-batch.right.expm1()).clamp_min(torch.finfo(batch.right.dtype).tiny)
    return batch.over_pixels(-batch.right * missing.pow(gamma))


def dice(batch: Batch) -> torch.Tensor:
    """1 - the Sørensen-Dice coefficient of each class (Milletari et al., 2016, arxiv.org/abs/1606.04797)."""
    both, area = batch.overlaps()
    return batch.over_classes(1 - _ratio(2 * both, area + batch.counts))


def tversky(batch: Batch, alpha: float = 0.3, beta: float = 0.7) -> torch.Tensor:
    """As Dice, but false positives weigh alpha and misses beta (Salehi et al., 2017, arxiv.org/abs/1706.05721)."""
    both, area = batch.overlaps()
    below = both + alpha * (area - both) + beta * (batch.counts - both)
    return batch.over_classes(1 - _ratio(both, below))


def miou(batch: Batch) -> torch.Tensor:
    """1 - the IoU of the probabilities, or cross entropy where that is larger, as it is early on."""
    both, area = batch.overlaps()
    soft = batch.over_classes(1 - _ratio(both, area + batch.counts - both))
    return torch.maximum(soft, cross_entropy(batch))


def lovasz(batch: Batch) -> torch.Tensor:
    """The Lovász extension of the IoU (Berman et al., 2018, arxiv.org/abs/1705.08790), of classes that are there.

    It is linear in the errors as long as their order stays, with the slopes that `_slopes` says, so that autograd
    needs to know of neither the order nor the sums.
    """
    chance, shares = batch.probabilities, batch.shares
    classes = chance.shape[1]
    pixels = None if batch.pixels is None else batch.pixels.flatten()
    small = batch.labels.flatten().to(torch.uint8)  # gathered in no order, small values stay in the cache
    if classes == 2:
        # The errors of one class are those of the other.
        groups = [(1, [0, 1])]
    else:
        there = range(classes) if must_wait(chance) else shares.nonzero().flatten().tolist()
        groups = [(index, [index]) for index in there]
    value = 0 * chance.sum() if not groups else chance.new_zeros(())
    for first, members in groups:
        errors = ((batch.labels == first).to(chance.dtype) - chance[:, first]).abs().flatten()
        with torch.no_grad():
            order = _order(errors)
            weight = None if pixels is None else pixels.index_select(0, order)
            labels = small.index_select(0, order)
            found = [shares[index] * _slopes(labels == index, weight, batch.counts[index]) for index in members]
            slopes = torch.empty_like(errors).scatter_(0, order, sum(found[1:], found[0]))
        value = value + (errors * slopes).sum()
    return value


def _order(errors: torch.Tensor) -> torch.Tensor:
    """Return the places of numbers from 0 to 1, the largest first; of equals, the first."""
    # They are in the order of their bits, and a CPU sorts integers six times as fast, if the smallest comes first.
    kind = torch.int64 if errors.dtype == torch.float64 else torch.int32
    return (torch.iinfo(kind).max - errors.detach().view(kind)).argsort(stable=True)


def _slopes(truth: torch.Tensor, weight: torch.Tensor | None, area: torch.Tensor) -> torch.Tensor:
    """Return by how much 1 - IoU grows as each pixel in turn becomes wrong.

    Args:
        truth: (pixels,), whether each is of the class, the largest error first.
        weight: (pixels,), how much each counts; None for 1.
        area: How much the class has of them.
    """
    area = torch.where(area > 0, area, torch.ones_like(area))  # a class that is not there has no share
    part = truth.to(area.dtype) if weight is None else truth * weight
    others = torch.zeros(len(part) + 1, dtype=part.dtype, device=part.device)
    torch.cumsum((1 if weight is None else weight) - part, 0, out=others[1:])
    union = area + others
    left = (area - part.cumsum(0)).clamp_min_(0)
    # A miss takes from the intersection, a false alarm adds to the union: what either changes is written without
    # the difference of two ratios, of which rounding would leave little.
    slopes = torch.where(truth, 1 / union[1:], left / union[1:] / union[:-1])
    return slopes if weight is None else slopes * weight


def lovasz_ce(batch: Batch) -> torch.Tensor:
    """Half Lovász, half cross entropy: the first follows the IoU, the second learns well from scratch."""
    return 0.5 * lovasz(batch) + 0.5 * cross_entropy(batch)


# Each by its name, with the options that it takes besides the batch.
TERMS: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "lovasz_ce": lovasz_ce,
    "miou": miou,
    "tversky": tversky,
}

# Those in which single pixels have a loss, if only in part.
OVER_PIXELS = ("cross_entropy", "focal", "lovasz_ce", "miou")

# Those of which cross entropy, and so label smoothing, is a part.
SMOOTHED = ("cross_entropy", "lovasz_ce", "miou")
