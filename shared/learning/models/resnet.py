"""ResNet (He et al., 2016, arxiv.org/abs/1512.03385) as an encoder: that of `transformers`, without its imports.

Weights have the same names, the same first values and the same answers, so that checkpoints and pretrained
weights go both ways. But a process that trains, exports or predicts does not import `transformers`, which takes
twice as long as torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

# What `transformers` fills in where a configuration says nothing else.
DEFAULTS: dict[str, Any] = {
    "model_type": "resnet", "num_channels": 3, "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3], "layer_type": "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False, "out_indices": [1, 2, 3, 4],
}  # fmt: skip
# Of these, what is built here; other values are left to `transformers`.
FIXED = ("model_type", "hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck", "out_indices")
LAYERS = ("basic", "bottleneck")


class Features(NamedTuple):
    """What a backbone answers: (N, C, H, W) at 1/4, 1/8, 1/16 and 1/32 of the resolution."""

    feature_maps: tuple[torch.Tensor, ...]


def is_ours(plan: Mapping[str, Any]) -> bool:
    """Tell whether a plan (see `rsp.shared.learning.models.plan_of`) is of a ResNet that is built here."""
    full = {**DEFAULTS, "model_type": "", **plan}
    return (
        all(full[name] == DEFAULTS[name] for name in FIXED)
        and full["layer_type"] in LAYERS
        and len(full["hidden_sizes"]) == len(full["depths"]) == len(DEFAULTS["depths"])
    )


class Conv(nn.Module):
    """A convolution, batch normalisation, and ReLU but where a sum follows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(x)))


class Stem(nn.Module):
    """The first convolution, and the maximum of each 3x3 pixels: a quarter of the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.embedder = Conv(inputs, outputs, 7, 2)
        self.pooler = nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pooler(self.embedder(x))


class Shortcut(nn.Module):
    """Brings an input to the shape of what is added to it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalization(self.convolution(x))


class Residual(nn.Module):
    """Two convolutions of 3x3, or one between two of 1x1, and the input itself."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: str) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else Shortcut(inputs, outputs, stride)
        if kind == "basic":
            convs = [Conv(inputs, outputs, 3, stride), Conv(outputs, outputs, 3, relu=False)]
        else:
            few = outputs // 4
            convs = [Conv(inputs, few, 1), Conv(few, few, 3, stride), Conv(few, outputs, 1, relu=False)]
        self.layer = nn.Sequential(*convs)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        y += self.shortcut(x)
        return self.activation(y)


class Stage(nn.Module):
    """Residual layers of one resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, depth: int, kind: str) -> None:
        super().__init__()
        first = Residual(inputs, outputs, stride, kind)
        self.layers = nn.Sequential(first, *(Residual(outputs, outputs, 1, kind) for _ in range(depth - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Stages(nn.Module):
    """All stages; each after the first halves the resolution."""

    def __init__(self, width: int, sizes: list[int], depths: list[int], kind: str) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(inputs, outputs, 1 if index == 0 else 2, depth, kind)
            for index, (inputs, outputs, depth) in enumerate(zip([width, *sizes], sizes, depths, strict=False))
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


class ResNet(nn.Module):
    """The network: (N, C, H, W) -> four features.

    Args:
        plan: Of which `is_ours` is true.
        in_channels: Bands of the input, whatever the plan says of them.
    """

    def __init__(self, plan: Mapping[str, Any], in_channels: int) -> None:
        super().__init__()
        own = {**DEFAULTS, **{name: plan[name] for name in DEFAULTS if name in plan}, "num_channels": in_channels}
        self.plan = own
        self.embedder = Stem(in_channels, own["embedding_size"])
        self.encoder = Stages(own["embedding_size"], own["hidden_sizes"], own["depths"], own["layer_type"])
        self.apply(_begin)

    def forward(self, x: torch.Tensor) -> Features:
        return Features(self.encoder(self.embedder(x)))


@torch.no_grad()
def _begin(module: nn.Module) -> None:
    """Give a convolution its first weights: those that `transformers` draws, which draws twice."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
