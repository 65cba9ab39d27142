"""U-Net (Ronneberger et al., 2015) over any encoder, with a skip connection at full resolution."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from rsp.shared.config import ModelConfig
from rsp.shared.errors import ModelError
from rsp.shared.learning.models.encoders import build_backbone

# The strides of the encoder's features that the decoder climbs.
STRIDES = (4, 8, 16, 32)


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """Doubles the resolution, joins the skip connection, and mixes both."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.mix = ConvBlock(inputs + skip, outputs)
        self.refine = ConvBlock(outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.refine(double(x, skip, self.mix))


class UNet(nn.Module):
    """The network.

    Encoders begin at a quarter of the resolution; two light convolutions on the input itself are the skip
    connections at full and at half, from which sharp edges come.

    Args:
        backbone: A `transformers` backbone of four features.
        channels: The widths of its features.
        strides: Their strides. Where they are not 4, 8, 16, 32 (a plain transformer has one resolution), the
            features are resized to them.
        in_channels: Bands of the input.
        num_classes: Classes of the answer.
        num_filters: Width of the decoder at half resolution; it doubles with each step down, never wider than
            the feature that it joins.
        plan: What builds the backbone again.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: list[int],
        strides: tuple[float, ...],
        in_channels: int,
        num_classes: int,
        num_filters: int,
        plan: dict[str, Any],
    ) -> None:
        super().__init__()
        self.plan = plan
        self.backbone = backbone
        self.resized = strides != STRIDES
        # Beyond this `num_filters`, the width of the encoder's features is all that counts.
        self.largest_filters = max(channels[0], -(-channels[1] // 4), -(-channels[2] // 8))
        first = min(num_filters, channels[0])
        detail = max(8, first // 2)
        self.detail = ConvBlock(in_channels, detail)
        self.detail2 = ConvBlock(detail, detail, stride=2)
        widths = [min(num_filters * times, width) for times, width in zip((2, 4, 8), channels, strict=False)]
        self.up16 = UpBlock(channels[3], channels[2], widths[2])
        self.up8 = UpBlock(widths[2], channels[1], widths[1])
        self.up4 = UpBlock(widths[1], channels[0], widths[0])
        self.up2 = UpBlock(widths[0], detail, first)
        self.up1 = ConvBlock(first + detail, detail)
        self.head = nn.Conv2d(detail, num_classes, 1)

    @classmethod
    def build(
        cls, model: ModelConfig, in_channels: int, num_classes: int, plan: dict[str, Any] | None = None
    ) -> Self:
        """Build the network; see `rsp.shared.learning.models.build_model`."""
        backbone, plan = build_backbone(model.encoder, in_channels, model.pretrained, plan, model.norm)
        channels, strides = _probe(backbone, in_channels, model.encoder)
        return cls(backbone, channels, strides, in_channels, num_classes, model.num_filters, plan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K, H, W) of an input (N, C, H, W), H and W multiples of 32."""
        detail = self.detail(x)
        half = self.detail2(detail)
        features = list(self.backbone(x).feature_maps)
        if self.resized:
            features = [
                F.interpolate(feature, size=(x.shape[2] // stride, x.shape[3] // stride), mode="bilinear")
                for feature, stride in zip(features, STRIDES, strict=True)
            ]
        y = self.up16(features[3], features[2])
        y = self.up8(y, features[1])
        y = self.up4(y, features[0])
        y = self.up2(y, half)
        y = double(y, detail, self.up1)
        if not _is_short(self, y):
            return self.head(y)
        # On one thread torch computes a 1x1 convolution slowly, and its gradients more so.
        y = F.linear(y.permute(0, 2, 3, 1), self.head.weight.flatten(1), self.head.bias)
        return y.permute(0, 3, 1, 2)


def double(x: torch.Tensor, skip: torch.Tensor, block: ConvBlock) -> torch.Tensor:
    """Return what a block makes of an input at twice its resolution, joined with a skip connection.

    Training on a CPU takes a shorter way to the same, up to rounding: each pixel twice and a 3x3 convolution are
    one transposed convolution of 4x4, which multiplies four times for a pixel where the two multiply nine times,
    and makes no tensor that is only there to be convolved. What is exported, and what answers, is the plain form.

    Args:
        x: (N, C, H, W).
        skip: (N, D, 2 * H, 2 * W).
        block: Of C + D channels.
    """
    if not _is_short(block, x):
        return block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
    weight, channels = block.get_parameter("0.weight"), x.shape[1]
    # A transposed convolution looks at its weights from the other end.
    wide = F.avg_pool2d(F.pad(weight[:, :channels].flip(2, 3), (1, 1, 1, 1)), 2, stride=1, divisor_override=1)
    y = F.conv_transpose2d(x, wide.transpose(0, 1), stride=2, padding=1)
    y = y.add_(F.conv2d(skip, weight[:, channels:], padding=1))
    _, *others = block.children()
    for layer in others:
        y = layer(y)
    return y


def _is_short(module: nn.Module, x: torch.Tensor) -> bool:
    """Tell whether to take the way to an answer that is quicker to train, and rounds otherwise."""
    return module.training and x.device.type == "cpu"


def _probe(backbone: nn.Module, in_channels: int, encoder: str) -> tuple[list[int], tuple[float, ...]]:
    """Return the widths and strides of the features of a backbone, by asking it."""
    side = 224  # a multiple of 32, and of the patches of 14 pixels that some transformers have
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, in_channels, side, side)).feature_maps
    backbone.train(training)
    if len(features) != len(STRIDES):
        raise ModelError(f"the encoder {encoder!r} has {len(features)} stages; the U-Net needs {len(STRIDES)}")
    return [feature.shape[1] for feature in features], tuple(side / feature.shape[2] for feature in features)
