"""Encoders of the U-Net: any backbone of `transformers`, by a short name, hub id or folder.

A ResNet is built without `transformers`, which takes seconds to import: hence the imports within functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rsp.shared.errors import ModelError
from rsp.shared.learning.models.norms import check_pretrained
from rsp.shared.learning.models.resnet import ResNet, is_ours

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Hub id of pretrained weights, type of the backbone, and its shape.
Known = tuple[str | None, str, dict[str, Any]]


def _resnet(hub: str | None, kind: str, depths: list[int], **options: Any) -> Known:
    basic = kind == "basic"
    sizes = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    return hub, "resnet", {"layer_type": kind, "depths": depths, "hidden_sizes": sizes, **options}


def _convnext(size: str, depths: list[int], sizes: list[int]) -> Known:
    hub = f"facebook/convnextv2-{size}-1k-224"
    return hub, "convnextv2", {"depths": depths, "hidden_sizes": sizes}


def _swin(size: str, depths: list[int], heads: list[int], width: int) -> Known:
    hub = f"microsoft/swin-{size}-patch4-window7-224"
    return hub, "swin", {"depths": depths, "num_heads": heads, "embed_dim": width}


# By short name. The shapes stand here, so that no hub is asked for them.
ENCODERS: dict[str, Known] = {
    # Small enough for tests and for a CPU; there are no pretrained weights of it.
    "tiny": _resnet(None, "basic", [1, 1, 1, 1], embedding_size=16, hidden_sizes=[16, 32, 64, 128]),
    "resnet18": _resnet("microsoft/resnet-18", "basic", [2, 2, 2, 2]),
    "resnet34": _resnet("microsoft/resnet-34", "basic", [3, 4, 6, 3]),
    "resnet50": _resnet("microsoft/resnet-50", "bottleneck", [3, 4, 6, 3]),
    "resnet101": _resnet("microsoft/resnet-101", "bottleneck", [3, 4, 23, 3]),
    "resnet152": _resnet("microsoft/resnet-152", "bottleneck", [3, 8, 36, 3]),
    "convnextv2-atto": _convnext("atto", [2, 2, 6, 2], [40, 80, 160, 320]),
    "convnextv2-femto": _convnext("femto", [2, 2, 6, 2], [48, 96, 192, 384]),
    "convnextv2-pico": _convnext("pico", [2, 2, 6, 2], [64, 128, 256, 512]),
    "convnextv2-nano": _convnext("nano", [2, 2, 8, 2], [80, 160, 320, 640]),
    "convnextv2-tiny": _convnext("tiny", [3, 3, 9, 3], [96, 192, 384, 768]),
    "convnextv2-base": _convnext("base", [3, 3, 27, 3], [128, 256, 512, 1024]),
    "convnextv2-large": _convnext("large", [3, 3, 27, 3], [192, 384, 768, 1536]),
    "swin-tiny": _swin("tiny", [2, 2, 6, 2], [3, 6, 12, 24], 96),
    "swin-small": _swin("small", [2, 2, 18, 2], [3, 6, 12, 24], 96),
    "swin-base": _swin("base", [2, 2, 18, 2], [4, 8, 16, 32], 128),
}


def encoder_config(encoder: str) -> PretrainedConfig:
    """Return the configuration of a backbone whose features are those of four of its stages.

    Args:
        encoder: A short name, a local folder with a `config.json`, or a hub id.

    Raises:
        ModelError: none of them, or no backbone; says what there is.
    """
    from transformers import AutoConfig

    if encoder in ENCODERS:
        _, kind, shape = ENCODERS[encoder]
        config = AutoConfig.for_model(kind, **shape)
    else:
        if "/" not in encoder and not Path(encoder).is_dir():
            raise ModelError(
                f"unknown encoder {encoder!r}; built in are {', '.join(ENCODERS)}; or give a hub id "
                "(`owner/name`) or a local folder"
            )
        try:
            config = AutoConfig.from_pretrained(encoder)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(_unreachable(encoder, "configuration", error)) from error
    stages = getattr(config, "stage_names", None)
    if not stages:
        raise ModelError(f"the encoder {encoder!r} ({config.model_type}) is not a backbone: it has no stages")
    count = len(stages) - (stages[0] in ("stem", "embeddings"))
    # The last of each quarter: all four of a pyramid, every third of a transformer of twelve equal layers.
    config.out_indices = sorted({len(stages) - 1 - round(count * part / 4) for part in range(4)})
    return config


def build_backbone(
    encoder: str, in_channels: int, pretrained: bool, plan: dict[str, Any] | None, norm: str = "batch"
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a backbone for any number of bands, also where its plan was for another.

    Pretrained weights are for three bands: those of the first layer are repeated over the bands (R, G, B, R, ...)
    and scaled by 3 / bands, so that its answers keep their size.

    Returns:
        The backbone, and the plan that builds it again without hub or folder.
    """
    if plan is None and encoder in ENCODERS:
        _, kind, shape = ENCODERS[encoder]
        known: dict[str, Any] = {"model_type": kind, **shape}
    else:
        known = plan or {}
    backbone, built = _resnet_of(known, in_channels) if is_ours(known) else _other(encoder, in_channels, plan)
    if pretrained:
        hub = ENCODERS[encoder][0] if encoder in ENCODERS else encoder
        if hub is None:
            raise ModelError(
                f"no pretrained weights exist for the encoder {encoder!r}; set pretrained = false in [model]"
            )
        if norm == "group":
            check_pretrained(backbone, f"the encoder {encoder!r}")
        # Not AutoBackbone.from_pretrained: that asks the hub whether it has such a repository, even for a folder.
        source = fetch(_factory(backbone), hub, out_indices=list(built["out_indices"]))
        backbone.load_state_dict(fit_bands(source.state_dict(), backbone.state_dict(), hub))
    return backbone, built


def _resnet_of(plan: dict[str, Any], in_channels: int) -> tuple[nn.Module, dict[str, Any]]:
    made = ResNet(plan, in_channels)
    return made, made.plan


def _other(encoder: str, in_channels: int, plan: dict[str, Any] | None) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoBackbone

    config = encoder_config(encoder) if plan is None else config_of(plan)
    config.num_channels = in_channels
    return AutoBackbone.from_config(config), config.to_dict()


def _factory(backbone: nn.Module) -> Any:
    """Return the class of `transformers` that reads the pretrained weights of a backbone."""
    if not isinstance(backbone, ResNet):
        return type(backbone)
    from transformers import ResNetBackbone

    return ResNetBackbone


def config_of(plan: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration that a plan (`config.to_dict()`) stands for."""
    from transformers import AutoConfig

    plan = dict(plan)
    try:
        return AutoConfig.for_model(str(plan.pop("model_type")), **plan)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the plan of the network cannot be used: {error}") from error


def fetch(factory: Any, source: str, **options: Any) -> nn.Module:
    """Load pretrained weights from the hub or a folder: safetensors only, as a pickle could run code."""
    from transformers.utils import logging

    log: Any = logging  # untyped
    verbosity = log.get_verbosity()
    log.set_verbosity_error()  # heads that are left out need no warning
    log.disable_progress_bar()
    try:
        model, info = factory.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(_unreachable(source, "pretrained weights (safetensors)", error)) from error
    finally:
        log.set_verbosity(verbosity)
        log.enable_progress_bar()
    # A backbone adds some norms of its own; where most is missing, the weights are those of something else.
    missing, all_of_it = len(info["missing_keys"]), len(model.state_dict())
    if missing > all_of_it / 2:
        raise ModelError(f"{source} holds the weights of another network: {missing} of {all_of_it} are missing")
    fetched: nn.Module = model
    return fetched


def fit_bands(
    source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], where: str
) -> dict[str, torch.Tensor]:
    """Return the weights of `source` in the shapes of `target`, which may differ in the number of bands only."""
    fitted = {}
    for name, own in target.items():
        weight = source.get(name)
        if weight is None:
            raise ModelError(f"the pretrained weights of {where} lack {name}")
        if weight.shape != own.shape:
            bands = own.shape[1] if own.dim() == 4 else 0
            if (
                not bands
                or weight.dim() != 4
                or (weight.shape[0], *weight.shape[2:]) != (own.shape[0], *own.shape[2:])
            ):
                raise ModelError(f"the pretrained weights of {where} have another shape at {name}")
            cycle = torch.arange(bands) % weight.shape[1]
            weight = weight[:, cycle] * (weight.shape[1] / bands)
        fitted[name] = weight
    return fitted


def _unreachable(source: str, what: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"cannot get the {what} of {source!r}: {reason} Without network, set pretrained = false in [model], or "
        "give a local folder (config.json, model.safetensors) as the encoder"
    )
