"""Weights of a network taken over into one of other bands or other classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rsp.shared.config import Channel, ClassDef
from rsp.shared.errors import ModelError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.models import build_model, plan_of

# For each place of the new network that of the old one whose weights it takes; None where there is none.
Places = list[int | None]


def match_bands(ours: Sequence[Channel], theirs: Sequence[Channel]) -> Places:
    """Return where each band was: in the channel of the same name, the band of the same number.

    A channel that was called otherwise is the same where it stands in the same place and has the same bands.
    """
    starts, at = [], 0
    for channel in theirs:
        starts.append(at)
        at += len(channel.bands)
    names = [channel.name for channel in theirs]
    places: Places = []
    for number, channel in enumerate(ours):
        found = names.index(channel.name) if channel.name in names else None
        renamed = number < len(theirs) and theirs[number].bands == channel.bands
        if found is None and renamed and names[number] not in {other.name for other in ours}:
            found = number
        for band in channel.bands:
            bands = () if found is None else theirs[found].bands
            known = found is not None and band in bands
            places.append(starts[found] + bands.index(band) if known and found is not None else None)
    return places


def match_classes(ours: Sequence[ClassDef], theirs: Sequence[ClassDef]) -> Places:
    """Return where each class was: the one of the same title."""
    titles = [entry.title for entry in theirs]
    return [titles.index(entry.title) if entry.title in titles else None for entry in ours]


def transfer(
    model: nn.Module, card: ModelCard, channels: Sequence[Channel], classes: Sequence[ClassDef]
) -> tuple[nn.Module, list[str]]:
    """Return a network for other bands and classes with the weights of one.

    Bands and classes that both have keep their weights, in whatever order they are. New bands begin with the mean
    of those that there were, scaled so that answers keep their size; new classes begin by chance, as torch's seed
    has it. All other weights are the same.

    Args:
        model: The network.
        card: Its card.
        channels: Of the new one.
        classes: Of the new one.

    Returns:
        The network, the same one where nothing is to be changed, and what was changed, for the log.

    Raises:
        ModelError: it is not known which of its weights belong to bands and classes.
    """
    bands, titles = match_bands(channels, card.channels), match_classes(classes, card.classes)
    same_bands, same_classes = bands == list(range(card.in_channels)), titles == list(range(card.num_classes))
    if same_bands and same_classes:
        return model, []
    config, plan = card.model_config(), plan_of(model)
    made = build_model(config, len(bands), len(titles), plan=plan)
    # Which weights belong to bands, and which to classes, is seen by a network that has more of them.
    larger = build_model(config, card.in_channels + 1, card.num_classes + 2, plan=plan).state_dict()
    source, fitted = model.state_dict(), {}
    found = {1: 0, 2: 0}
    for name, own in made.state_dict().items():
        weight, other = source.get(name), larger.get(name)
        if weight is None or other is None or weight.dim() != other.dim():
            raise ModelError(f"the network {card.nn!r} cannot be fitted to other bands or classes: see {name}")
        grown = [more - before for before, more in zip(weight.shape, other.shape, strict=True)]
        found = {by: number + (by in grown) for by, number in found.items()}
        if 1 in grown:
            weight = _of_bands(weight, grown.index(1), bands)
        if 2 in grown:
            weight = _of_classes(weight, grown.index(2), titles, own)
        if weight.shape != own.shape:
            raise ModelError(
                f"the network {card.nn!r} cannot be fitted to other bands or classes: its weights {name} would "
                f"have the shape {list(weight.shape)}, not {list(own.shape)}"
            )
        fitted[name] = weight
    for by, same, what in ((1, same_bands, "bands"), (2, same_classes, "classes")):
        if not same and not found[by]:
            raise ModelError(f"the network {card.nn!r} cannot be fitted: none of its weights belong to {what}")
    made.load_state_dict(fitted)
    notes = []
    if not same_bands:
        names = [f"{channel.name} {band}" for channel in channels for band in channel.bands]
        notes.append(_told("bands", names, bands, "begin with the mean of those that there were"))
    if not same_classes:
        notes.append(_told("classes", [entry.title for entry in classes], titles, "begin by chance"))
    return made.train(model.training), notes


def _of_bands(weight: torch.Tensor, dimension: int, places: Places) -> torch.Tensor:
    mean = weight.mean(dimension) * (weight.shape[dimension] / len(places))
    parts = [mean if place is None else weight.select(dimension, place) for place in places]
    return torch.stack(parts, dimension)


def _of_classes(weight: torch.Tensor, dimension: int, places: Places, new: torch.Tensor) -> torch.Tensor:
    parts = [
        (new if place is None else weight).select(dimension, index if place is None else place)
        for index, place in enumerate(places)
    ]
    return torch.stack(parts, dimension)


def _told(what: str, names: Sequence[str], places: Places, fate: str) -> str:
    kept = [name for name, place in zip(names, places, strict=True) if place is not None]
    new = [name for name, place in zip(names, places, strict=True) if place is None]
    parts = [f"{', '.join(kept)} keep their weights"] if kept else []
    parts += [f"{', '.join(new)} {fate}"] if new else []
    return f"fitted to other {what}: {'; '.join(parts)}"
