"""What training starts from: the first weights, and the state of one that is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsp.components.train.history import STATE, Log, Row, State, read_state
from rsp.components.train.interrupted import Part
from rsp.components.train.plan import Plan
from rsp.components.train.settings import check_settings
from rsp.components.train.transfer import match_bands, transfer
from rsp.shared.config import Channel, ModelConfig
from rsp.shared.errors import ModelError, UsageError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import load_checkpoint, load_weights
from rsp.shared.learning.inference import check_precision, has_bfloat16
from rsp.shared.learning.models import build_model
from rsp.shared.locations import Location, exists
from rsp.shared.tiles import strange_zooms


@dataclass
class StartingPoint:
    """What this run of a training starts from.

    Attributes:
        model: The network with its first weights.
        optimizer: The state of the optimizer, where training goes on.
        epoch: How many epochs are done.
        history: Their rows.
        best_from: The first epoch whose checkpoint may be the best one in `out`.
        card: What the weights were used to; None for new ones.
        uuid: Of the checkpoint of the last epoch that is done.
        part: What is done of the next epoch.
    """

    model: nn.Module
    optimizer: dict[str, Any] | None = None
    epoch: int = 0
    history: list[Row] = field(default_factory=list)
    best_from: int = 1
    card: ModelCard | None = None
    uuid: str = ""
    part: Part | None = None

    @property
    def is_resumed(self) -> bool:
        """Whether a training goes on."""
        return self.epoch > 0 or self.part is not None


def starting_point(plan: Plan, log: Log, settings: Mapping[str, Any]) -> StartingPoint:
    """Build the network with new weights, those of a checkpoint, or those that `--resume` finds.

    Args:
        plan: What to train.
        log: Where it is told from what training starts.
        settings: Of the plan, as `settings_of` gives them.

    Raises:
        ModelError: a checkpoint of another network, or a damaged one, or a training that would not go on as it
            began.
        UsageError: there is nothing left to train.
    """
    if not plan.resume and exists(plan.out / STATE):
        log(f"note: {plan.out} holds a training, which is begun again; --resume goes on with it")
    if plan.checkpoint is not None:
        return _from_checkpoint(plan, plan.checkpoint, log, settings)
    channels, classes = sum(len(channel.bands) for channel in plan.config.channels), len(plan.config.classes)
    state = read_state(plan.out) if plan.resume else None
    if state is None:
        if plan.resume:
            log(f"nothing to resume in {plan.out}: training begins at epoch 1")
        return StartingPoint(build_model(plan.config.model, channels, classes))
    where = str(plan.out)
    card = ModelCard.from_json(state.card)
    notes = check_settings(plan, settings, state.settings, card, where)
    model = build_model(card.model_config(), channels, classes, plan=json.loads(state.plan))
    load_weights(model, state.weights, where)
    _check_left(plan, state.epoch, where)
    part = _part_of(state, classes, where)
    _tell(log, where, state.epoch, part, notes)
    return StartingPoint(model, state.optimizer, state.epoch, state.history, card=card, uuid=state.uuid, part=part)


def _part_of(state: State, classes: int, where: str) -> Part | None:
    try:
        return None if state.part is None else Part.of_dict(state.part, classes)
    except ValueError as error:
        raise ModelError(f"{where} is damaged, so there is nothing to resume from: {error}") from error


def _tell(log: Log, where: str, epoch: int, part: Part | None, notes: Sequence[str]) -> None:
    after = f"after epoch {epoch}" if part is None else f"after batch {part.batches} of epoch {epoch + 1}"
    log(f"resuming from {where}, {after}")
    for note in notes:
        log(f"note: {note}")


def _from_checkpoint(plan: Plan, path: Location, log: Log, settings: Mapping[str, Any]) -> StartingPoint:
    model, card = load_checkpoint(path)
    if not plan.resume:
        _check_card(plan, card, str(path))
        log(f"fine-tuning from {path}")
        model, notes = transfer(model, card, plan.config.channels, plan.config.classes)
        for note in notes:
            log(f"note: {note}")
        return StartingPoint(model, card=card)
    state: State | None = read_state(path.parent)
    # What the state beside it says holds for an earlier checkpoint of the same training, too.
    notes = check_settings(plan, settings, state.settings if state else {}, card, str(path))
    _check_left(plan, card.epoch, str(path))
    here = _resolved(path.parent) == _resolved(plan.out)
    point = StartingPoint(model, None, card.epoch, [], 1 if here else card.epoch + 1, card, card.uuid)
    if state is not None and state.uuid == card.uuid:
        load_weights(model, state.weights, str(path.parent))  # those of the checkpoint may be an average of them
        point.optimizer, point.part = state.optimizer, _part_of(state, card.num_classes, str(path.parent))
    _tell(log, str(path), card.epoch, point.part, notes)
    if point.optimizer is None:
        log(f"no optimizer state is stored with {path}: the optimizer starts from scratch")
    if state is not None:
        point.history = [row for row in state.history if row["epoch"] <= card.epoch]
    return point


def _resolved(place: Location) -> Location:
    return place.expanduser().resolve() if isinstance(place, Path) else place.plain


def _check_card(plan: Plan, card: ModelCard, where: str) -> None:
    """Raise where a checkpoint is of another network than the configuration; bands and classes may be others."""
    for name in ("nn", "encoder", "num_filters", "norm"):
        theirs, ours = getattr(card, name), getattr(plan.config.model, name)
        if theirs != ours:
            raise ModelError(
                f"{where} is of another network: its {name} is {theirs}, the configuration has {ours}; "
                f"its weights can be fine-tuned with {name} = {theirs!r}, for other bands and classes, too"
            )


def choose_precision(wanted: str, resumed: ModelCard | None, device: torch.device) -> str:
    """Return what the network computes in: `float32` or `bfloat16`.

    Args:
        wanted: `[train] precision`.
        resumed: The card of the training that goes on, if one does.
        device: What it trains on.

    Raises:
        ModelError: the device does not compute in it, or the training that goes on was in another.
    """
    before = resumed.precision if resumed is not None else None
    if wanted == "auto":
        wanted = before or ("bfloat16" if has_bfloat16(device) else "float32")
    if before not in (None, wanted):
        raise ModelError(
            f"the training that is to be resumed was in {before}, and [train] precision is {wanted}: leave it "
            f"at auto"
        )
    check_precision(wanted, "checkpoint", device)
    return wanted


def keep_statistics(given: Sequence[Channel], channels: Sequence[Channel], card: ModelCard) -> tuple[Channel, ...]:
    """Return channels with the means and deviations that weights are used to, where none are given.

    Args:
        given: The channels as the configuration has them, some without means.
        channels: The same, or what was measured of them.
        card: Of the weights. The bands that it knows, of values of the same kind, have theirs.
    """
    places = iter(match_bands(given, card.channels))
    owners = [channel for channel in card.channels for _ in channel.bands]
    kept = []
    for ours, channel in zip(given, channels, strict=True):
        known: list[int | None] = []
        for place in islice(places, len(ours.bands)):
            owner = None if place is None else owners[place]
            alike = owner and owner.kind == ours.kind and (owner.divisor or ours.divisor) == ours.divisor
            known.append(place if alike else None)
        if ours.mean or not (channel.mean or all(place is not None for place in known)):
            kept.append(channel)
            continue
        mean, std = (
            tuple(own[index] if place is None else theirs[place] for index, place in enumerate(known))
            for own, theirs in ((channel.mean, card.mean), (channel.std, card.std))
        )
        kept.append(replace(channel, mean=mean, std=std))
    return tuple(kept)


def check_values(channels: Sequence[Channel], card: ModelCard) -> None:
    """Raise `ModelError` where tiles hold other values than those of a training that is to be resumed."""
    for channel, theirs in zip(channels, card.channels, strict=True):
        for name in ("kind", "value_type", "divisor"):
            ours, other = getattr(channel, name), getattr(theirs, name)
            if ours and other and ours != other:
                raise ModelError(
                    f"the training that is to be resumed had the {name} {other} for {channel.name!r}, now it is "
                    f"{ours}: a training goes on as it began; without --resume, its weights are fine-tuned"
                )


def _check_left(plan: Plan, epoch: int, where: str) -> None:
    if epoch >= plan.epochs:
        raise UsageError(
            f"{where} is already trained for {epoch} epochs, and --epochs is {plan.epochs}: give more than "
            f"{epoch} to go on"
        )


def notes_on_filters(model: nn.Module, config: ModelConfig) -> list[str]:
    """Return a note where `num_filters` says more than the network can use."""
    largest, wanted = getattr(model, "largest_filters", None), config.num_filters
    # The default is a number for encoders of any size, and nobody's mistake.
    if largest is None or wanted <= largest or wanted == ModelConfig().num_filters:
        return []
    return [
        f"num_filters = {wanted} is more than the encoder {config.encoder!r} can use: the decoder is never wider "
        f"than its features, and the network is that of num_filters = {largest}"
    ]


def notes_on_zooms(training: Sequence[int], validation: Sequence[int]) -> list[str]:
    """Return notes where the training tiles are of several zooms, and where validation tiles are of others."""
    notes = []
    if len(training) > 1:
        notes.append(
            f"training tiles of the zooms {', '.join(map(str, training))} are mixed: the model notes no zoom, and "
            "predict and evaluate cannot warn of tiles of another"
        )
    if strange := strange_zooms(training, validation):
        notes.append(strange)
    return notes
