"""The stages of an encoder: which weights of a network lie in which, for rates of their own and for freezing.

The stem is the first stage, if an encoder has one of its own; then come those that the encoder counts, as the four
of a ResNet or the twelve layers of a plain transformer. All else of a network, its decoder and head, is in none.
"""

from __future__ import annotations

import re

from torch import nn

from rsp.shared.errors import ConfigError

_NUMBER = re.compile(r"\.(?:\d+|stage(?P<named>\d+))(?:\.|$)")


def find_encoder(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the encoder of a network and the start of the names of its weights; None where it has none."""
    network = getattr(model, "network", None)
    for start, owner, name in (
        ("", model, "backbone"),
        ("network.", network, "backbone"),
        ("network.", network, getattr(network, "base_model_prefix", "")),
    ):
        encoder = getattr(owner, name, None) if name else None
        if isinstance(encoder, nn.Module):
            return f"{start}{name}.", encoder
    return None


def stages_of(model: nn.Module) -> dict[str, int]:
    """Return the stage of each weight of the encoder, by name, from 0; empty where there is no encoder."""
    found = find_encoder(model)
    if found is None:
        return {}
    prefix, encoder = found
    stages: dict[str, int] = {}
    last = []
    for name, _ in encoder.named_parameters():
        number = _NUMBER.search(f".{name}")
        if number:
            stages[prefix + name] = int(number["named"]) if number["named"] else int(number[0].strip(".")) + 1
        elif re.search("embed|stem|patch", name):
            stages[prefix + name] = 0
        else:
            last.append(prefix + name)  # a norm at the end
    stages |= dict.fromkeys(last, max(stages.values(), default=0))
    ranks = {stage: rank for rank, stage in enumerate(sorted(set(stages.values())))}
    return {name: ranks[stage] for name, stage in stages.items()}


def check_stages(model: nn.Module, name: str, key: str, stages: int = 0) -> None:
    """Raise `ConfigError` where a network has no encoder, or not so many stages.

    Args:
        model: The network.
        name: What the configuration calls it.
        key: What asks for them, as `freeze`.
        stages: How many it asks for.
    """
    count = max(stages_of(model).values(), default=-1) + 1
    if not count:
        raise ConfigError(
            f"[train] {key}: the network {name!r} has no encoder whose stages are known: leave it out"
        )
    if stages > count:
        raise ConfigError(
            f"[train] {key}: the encoder has {count} stages, the stem being the first of them; got {stages}"
        )


class Frozen:
    """The first stages of an encoder, which do not learn: neither weights nor statistics of norms.

    Make it before a network is given to an optimizer or to `DistributedDataParallel`.
    """

    def __init__(self, model: nn.Module, stages: int) -> None:
        names = {name for name, stage in stages_of(model).items() if stage < stages}
        for name, weight in model.named_parameters():
            if name in names:
                weight.requires_grad_(False)
        self._model = model
        self._places = [
            place
            for place, module in model.named_modules()
            if (own := {f"{place}.{name}" for name, _ in module.named_parameters(recurse=False)}) and own <= names
        ]

    def hold(self) -> None:
        """Keep them as in prediction; after each `model.train()`."""
        for place in self._places:  # what is there may have been replaced, as a norm is by one over all processes
            self._model.get_submodule(place).eval()
