"""The semantic segmentation networks of `transformers` as they are: SegFormer, UPerNet, DPT, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from rsp.shared.config import ModelConfig
from rsp.shared.errors import ModelError
from rsp.shared.learning.models.encoders import config_of, encoder_config, fetch, fit_bands
from rsp.shared.learning.models.norms import check_pretrained

FAMILIES: tuple[str, ...] = tuple(sorted(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES))


def _mit(sizes: list[int], depths: list[int], decoder: int) -> dict[str, Any]:
    return {"hidden_sizes": sizes, "depths": depths, "decoder_hidden_size": decoder}


# The encoders of SegFormer by their short names (Xie et al., 2021, table 6).
SEGFORMER: dict[str, dict[str, Any]] = {
    "tiny": _mit([16, 32, 64, 128], [1, 1, 1, 1], 64),
    "mit-b0": _mit([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "mit-b1": _mit([64, 128, 320, 512], [2, 2, 2, 2], 256),
    "mit-b2": _mit([64, 128, 320, 512], [3, 4, 6, 3], 768),
    "mit-b3": _mit([64, 128, 320, 512], [3, 4, 18, 3], 768),
    "mit-b4": _mit([64, 128, 320, 512], [3, 8, 27, 3], 768),
    "mit-b5": _mit([64, 128, 320, 512], [3, 6, 40, 3], 768),
}


class Segmentation(nn.Module):
    """A network of `transformers`, its logits brought to the size of the input."""

    def __init__(self, network: nn.Module, plan: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.plan = plan

    @classmethod
    def build(
        cls, model: ModelConfig, in_channels: int, num_classes: int, plan: dict[str, Any] | None = None
    ) -> Self:
        """Build the network; see `rsp.shared.learning.models.build_model`.

        `encoder` is a short name (SegFormer: `mit-b0`...; UPerNet: every encoder of the U-Net), a hub id or a
        local folder of a whole network of this family. Pretrained weights are those of a hub id or folder; the
        head is replaced where it has other classes.
        """
        source = _source(model)
        if plan is not None:
            config = config_of(plan)  # it may have been for other bands and classes
        else:
            config = _config(model, source)
            if hasattr(config, "use_auxiliary_head"):
                config.use_auxiliary_head = False  # only its main answer is trained and used
        _set_bands(config, in_channels)
        if config.num_labels != num_classes or plan is None:
            config.num_labels = num_classes
        network: nn.Module = AutoModelForSemanticSegmentation.from_config(config)
        if model.pretrained:
            if source is None:
                raise ModelError(
                    f"no pretrained weights exist for {model.nn} with the encoder {model.encoder!r}; set "
                    "pretrained = false in [model], or give a hub id or local folder as the encoder"
                )
            if model.norm == "group":
                check_pretrained(network.base_model, f"{model.nn} {model.encoder!r}")  # type: ignore[arg-type]
            # Asked for with our classes, so that a head with other classes is replaced and not refused.
            pretrained = fetch(
                AutoModelForSemanticSegmentation, source, num_labels=num_classes, ignore_mismatched_sizes=True
            )
            network.load_state_dict(fit_bands(pretrained.state_dict(), network.state_dict(), source))
        return cls(network, config.to_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K, H, W) of an input (N, C, H, W)."""
        logits = self.network(pixel_values=x).logits
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def _source(model: ModelConfig) -> str | None:
    """Return where pretrained weights of the network come from, if from anywhere."""
    if model.nn.lower() == "segformer" and model.encoder.startswith("mit-") and model.encoder in SEGFORMER:
        return f"nvidia/{model.encoder}"
    return model.encoder if "/" in model.encoder or Path(model.encoder).is_dir() else None


def _config(model: ModelConfig, source: str | None) -> Any:
    if model.nn.lower() == "segformer" and model.encoder in SEGFORMER:
        return AutoConfig.for_model("segformer", **SEGFORMER[model.encoder])
    if model.nn.lower() == "upernet" and source is None:
        backbone = encoder_config(model.encoder)
        return AutoConfig.for_model(
            "upernet", backbone_config=backbone, hidden_size=max(64, 8 * model.num_filters)
        )
    if source is None:
        known = f"{', '.join(SEGFORMER)}, " if model.nn.lower() == "segformer" else ""
        raise ModelError(
            f"unknown encoder {model.encoder!r} of {model.nn}; expected {known}a hub id (`owner/name`) or a "
            "local folder"
        )
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot get the configuration of {source!r}: {reason}") from error
    if config.model_type != model.nn.lower():
        raise ModelError(f"{source} is a {config.model_type}, not a {model.nn}: set nn = {config.model_type!r}")
    return config


def _set_bands(config: Any, bands: int) -> None:
    """Set the number of input bands, in the configuration of the backbone too where there is one."""
    if getattr(config, "backbone_config", None) is not None:
        config.backbone_config.num_channels = bands
    if hasattr(config, "num_channels"):
        config.num_channels = bands
