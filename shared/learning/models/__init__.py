"""Networks for semantic segmentation: (N, C, H, W) float32 -> logits (N, K, H, W), H and W multiples of 32.

`[model] nn` names one of ours (`unet`, `albunet`, or a family of `transformers`: `segformer`, `upernet`, ...),
`module:attribute`, or an entry point of the group `rsp.models`. The two last are called as
`make(model, in_channels, num_classes)` with the `[model]` of the configuration, and return a `torch.nn.Module`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from rsp.shared import plugins
from rsp.shared.config import ModelConfig
from rsp.shared.errors import ModelError, PluginError, RspError
from rsp.shared.learning.models.norms import with_group_norms
from rsp.shared.learning.models.unet import UNet

__all__ = ["BUILTIN", "build_model", "is_plugin", "plan_of"]


class _Builtin(Mapping[str, Any]):
    """What builds the networks that are built in, by their names.

    `transformers`, which takes seconds to import, is asked only for what may be a family of its own.
    """

    _ours: Mapping[str, Any] = {"unet": UNet.build, "albunet": UNet.build}

    def __getitem__(self, name: str) -> Any:
        if name in self._ours:
            return self._ours[name]
        if ":" in name:  # a plug-in
            raise KeyError(name)
        from rsp.shared.learning.models.segmentation import FAMILIES, Segmentation

        if name not in FAMILIES:
            raise KeyError(name)
        return Segmentation.build

    def __iter__(self) -> Iterator[str]:
        from rsp.shared.learning.models.segmentation import FAMILIES

        return iter((*self._ours, *FAMILIES))

    def __len__(self) -> int:
        return sum(1 for _ in self)


BUILTIN: Mapping[str, Any] = _Builtin()


def build_model(
    model: ModelConfig, in_channels: int, num_classes: int, *, plan: dict[str, Any] | None = None
) -> nn.Module:
    """Build a network.

    Args:
        model: Of it `nn`, `encoder`, `num_filters`, `norm` and `pretrained` are used.
        in_channels: How many bands the input has.
        num_classes: How many classes are told apart, the background included.
        plan: What `plan_of` gave for this network once; it then asks neither hub nor folder.

    Raises:
        ModelError: an unknown encoder, weights that cannot be had, or norms that cannot be replaced.
        PluginError: no such network, or a plug-in that fails or returns no network.
    """
    make = plugins.load(model.nn, "rsp.models", BUILTIN)
    try:
        if model.nn.lower() in BUILTIN:
            built = make(model, in_channels, num_classes, plan)
        else:
            built = make(model, in_channels, num_classes)
    except RspError:
        raise
    except Exception as error:
        kind = PluginError if is_plugin(model.nn) else ModelError
        reason = " ".join(str(error).split())
        raise kind(f"the network {model.nn!r} cannot be built: {type(error).__name__}: {reason}") from error
    if not isinstance(built, nn.Module):
        raise plugins.unexpected("network", model.nn, built, "a torch.nn.Module")
    return built if model.norm == "batch" else with_group_norms(built, model.nn)


def is_plugin(name: str) -> bool:
    """Tell whether `[model] nn` names a network that is not built in."""
    return name.lower() not in BUILTIN


def plan_of(model: nn.Module) -> dict[str, Any] | None:
    """Return what rebuilds a network where hub and folders are out of reach; None for plug-ins."""
    plan = getattr(model, "plan", None)
    return plan if isinstance(plan, dict) else None
