"""Muon: steps of even length in all directions of a layer (Jordan, 2024, kellerjordan.github.io/posts/muon).

Seen as a matrix, the momentum of a layer has a few large singular values and many small ones, so that a network
learns first what it is shown most. Here each step has them all near one.

`torch.optim.Muon` takes matrices alone, no convolutions, computes in bfloat16, which not all processors have, and
leaves biases and norms to a second optimizer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

# Coefficients of the iteration, as Jordan gives them: they take singular values to some 0.7 to 1.2.
ITERATION = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5

# A matrix shorter than this is not made longer: its norm, a sum of squares, would no longer be exact.
SHORTEST = 1e-12

# The root mean square of what AdamW changes in a step of rate 1, so that one rate serves both (Liu et al., 2025,
# arxiv.org/abs/2502.16982).
LENGTH = 0.2


class Muon(torch.optim.Optimizer):
    """Steps with orthogonalised momentum for the weights of layers, and AdamW for all others.

    Args:
        params: Weights, or groups of them. Those of a group with `matrices = true` are orthogonalised: as (rows,
            columns) where a convolution is (outputs, inputs, height, width).
        lr: Learning rate.
        weight_decay: Apart from the gradients, as AdamW's.
        momentum: Of layers.
        betas: Of AdamW.
        eps: Of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        first, second = betas
        for name, value in (("momentum", momentum), ("betas[0]", first), ("betas[1]", second)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected 0 or more and less than 1, got {value}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": (first, second),
            "eps": eps,
            "matrices": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step from the gradients.

        Args:
            closure: Not taken: a step is taken from the gradients that there are.
        """
        for group in self.param_groups:
            learnt = [(weight, weight.grad) for weight in group["params"] if weight.grad is not None]
            if group["matrices"]:
                self._orthogonal(learnt, group)
            elif learnt:
                self._adam(learnt, group)

    def _orthogonal(self, learnt: list[tuple[torch.Tensor, torch.Tensor]], group: dict[str, Any]) -> None:
        """Step layers, all of them by as few calls as can be: on a GPU each takes longer than what it computes."""
        if not learnt:
            return
        weights, slopes = ([pair[at] for pair in learnt] for at in (0, 1))
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, slopes, 1 - group["momentum"])
        # Nesterov's: where the next step would be looked for.
        ahead = torch._foreach_lerp(slopes, momenta, group["momentum"])
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        matrices = [each.flatten(1) for each in ahead]
        for number, matrix in enumerate(matrices):
            alike[matrix.shape].append(number)
        made = orthogonalised([torch.stack([matrices[number] for number in found]) for found in alike.values()])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for (shape, found), steps in zip(alike.items(), made, strict=True):
            torch._foreach_sub_(
                [weights[number] for number in found],
                [step.view(weights[number].shape) for number, step in zip(found, steps, strict=True)],
                alpha=group["lr"] * LENGTH * math.sqrt(max(shape)),
            )

    def _adam(self, weights: list[tuple[torch.Tensor, torch.Tensor]], group: dict[str, Any]) -> None:
        states = [self.state[weight] for weight, _ in weights]
        for (weight, _), state in zip(weights, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        adamw(
            [weight for weight, _ in weights],
            [slope for _, slope in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalised(stacks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return matrices with the same singular vectors and singular values near one, by Newton-Schulz iteration.

    A polynomial of X Xᵀ, of which X is a factor: so it is iterated on the smaller square, which for a convolution
    of 3x3 takes less than half as many multiplications as on X itself, and on all squares of one side together.

    Args:
        stacks: Each (N, rows, columns), floating point; matrices that are zero stay so, and next to zero stay
            short.
    """
    wide = [stack if stack.shape[1] <= stack.shape[2] else stack.mT for stack in stacks]
    wide = [each / each.norm(dim=(1, 2), keepdim=True).clamp_min(SHORTEST) for each in wide]
    alike: dict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(wide):
        alike[each.shape[1]].append(number)
    made = list(wide)
    for found in alike.values():
        factors = _factors(torch.cat([wide[number] @ wide[number].mT for number in found]))
        parts = torch.split(factors, [len(wide[number]) for number in found])
        for number, factor in zip(found, parts, strict=True):
            made[number] = factor @ wide[number]
    return [
        each if stack.shape[1] <= stack.shape[2] else each.mT for stack, each in zip(stacks, made, strict=True)
    ]


def _factors(square: torch.Tensor) -> torch.Tensor:
    """Return by what X is multiplied, of X Xᵀ, both (N, side, side)."""
    a, b, c = ITERATION
    factor = None
    for left in reversed(range(ITERATIONS)):
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if left:
            square = polynomial @ square @ polynomial
    assert factor is not None
    return factor


def layers_of(model: nn.Module) -> set[str]:
    """Return the names of weights that mix channels, and so are matrices: those of convolutions and linear layers.

    A convolution by groups is one of many small matrices, and left to AdamW.
    """
    return {
        f"{name}.weight" if name else "weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and getattr(layer, "groups", 1) == 1
    }
