"""Batch normalisation over all processes of a training, on a CPU: torch's own takes only GPUs.

A batch of several processes is normalised as one process would normalise it, and its statistics are the same; in
prediction it is the batch normalisation that it replaces, whose weights it shares by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class SyncNorm(_BatchNorm):
    """Batch normalisation whose mean and variance are those of the batches of all processes together."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> SyncNorm:
        """Return one with the weights and statistics of a batch normalisation, shared with it."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, weight in norm.named_parameters(recurse=False):
            setattr(made, name, weight)
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(made, name, buffer)
        return made.train(norm.training)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of 2 dimensions or more, got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, ...): in training over the batches of all processes, else by what was kept of them."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        answer: tuple[torch.Tensor, ...] = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps
        )
        normalised, mean, variance, count = answer
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        return normalised


class _Normalise(torch.autograd.Function):
    """The normalisation itself, and its gradient, which crosses processes as the statistics do."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        values = x.float()
        # What torch's own normalisation calls: `var_mean` takes nineteen times as long on channels that lie last.
        mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
        # Means are joined by their differences (Chan et al., 1979): sums of squares would lose digits.
        count = mean.new_full((1,), x.numel() // x.shape[1])
        own = torch.cat([mean, variance * count, count])
        parts = torch.stack(_gathered(own))
        means, squares, counts = parts[:, : len(mean)], parts[:, len(mean) : -1], parts[:, -1:]
        total = counts.sum()
        if total <= 1:
            raise ValueError("Expected more than 1 value per channel when training")
        mean = (means * counts).sum(0) / total
        variance = (squares + (means - mean) ** 2 * counts).sum(0) / total
        result = functional.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), total)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        return result.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        x, weight, mean, scale, total = ctx.saved_tensors
        slope, values = slopes[0].float(), x.float()
        # Sums over a channel of the slope times what was normalised, and of the slope alone.
        _, product, plain = torch.ops.aten.native_batch_norm_backward(
            slope, values, weight, None, None, mean, scale, True, 0.0, [False, True, True]
        )
        sums = torch.stack([product, plain])
        distributed.all_reduce(sums)
        sums /= total
        # slope - sums[1] - normalised * sums[0], times factor, in two passes: a line of x, and the slope added.
        factor = scale if weight is None else scale * weight
        steepness = -factor * scale * sums[0]
        changed = functional.batch_norm(
            values, mean, torch.ones_like(mean), steepness, -factor * sums[1], training=False, eps=0.0
        )
        changed.addcmul_(slope, factor.view([1, -1] + [1] * (x.dim() - 2)))
        # Gradients of weights are averaged over processes with all others.
        return changed.to(x.dtype), None if weight is None else product, plain if ctx.has_bias else None, None


def _gathered(values: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values)
    return parts


def synchronised(model: nn.Module) -> nn.Module:
    """Return a network whose batch normalisations are over all processes; its weights stay the same objects."""
    if isinstance(model, _BatchNorm) and not isinstance(model, SyncNorm | nn.SyncBatchNorm):
        return SyncNorm.of(model)
    for name, child in model.named_children():
        setattr(model, name, synchronised(child))
    return model


def gather_batch(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the batches of all processes as one.

    What a loss makes of it is what one process would make of all tiles, whatever the loss is: an overlap of
    regions over the whole batch, or a mean over the pixels that are known, which processes have in different
    numbers. Its gradient goes to the logits of this process alone.
    """
    rank = distributed.get_rank()
    parts = _gathered(logits.detach().contiguous())
    parts[rank] = logits
    joined = torch.cat(_gathered(labels.contiguous()))
    return torch.cat(parts), joined, None if weights is None else torch.cat(_gathered(weights.contiguous()))
