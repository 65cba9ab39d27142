"""What a training must have in common with the one that it resumes, and what may be another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from rsp.components.train.plan import Plan
from rsp.shared.errors import ModelError
from rsp.shared.learning.card import ModelCard
from rsp.shared.tiles import Tile

# Of the recipe: what changes nothing that is learned, and the precision, which the card knows.
_FREE_OF_RECIPE = {"patience", "tensorboard", "profile", "precision"}
# What a state says nothing of, being older than the key, was as the key is now where it is left out.
_LATER = {"[train] hard": 1.0}
# What may be changed on purpose: a longer training, or one that is to go on more carefully.
LR, EPOCHS = "--lr", "--epochs"
VALIDATION = "validation tiles"


def settings_of(
    plan: Plan, *, processes: int = 1, tiles: Sequence[Tile] = (), validation: str | None = None
) -> dict[str, Any]:
    """Return what decides how a training goes on, by the names that users know.

    Args:
        plan: What to train; its recipe is settled.
        processes: How many train together.
        tiles: The training tiles.
        validation: What identifies the validation tiles and their labels, where that is known.
    """
    config, model = plan.config, plan.config.model
    settings = {
        LR: model.lr,
        EPOCHS: plan.epochs,
        "--seed": plan.seed,
        "tiles in a batch (--bs times processes)": model.bs * processes,
        "--ts": model.side,
        "ms": model.overlap,
        "loss": model.loss,
        "[[classes]] weight": [entry.weight for entry in config.classes],
        "[[classes]] ignore": [entry.title for entry in config.classes if entry.ignore],
        "background": model.background,
        "optimizer": model.optimizer,
        **{f"optimizer.{key}": value for key, value in model.optimizer_options.items()},
        "decay": model.decay,
        "da": model.da,
        "dap": model.dap,
        "loader": model.loader,
        "training tiles": f"{len(tiles)}, {_digest(tiles)}",
        VALIDATION: validation,
    }
    for name, value in asdict(config.recipe).items():
        if name not in _FREE_OF_RECIPE:
            # Where a file lies may differ from machine to machine.
            settings[f"[train] {name}"] = PurePath(value).name if name == "tile_weights" and value else value
    settings["[train] encoder_rate"] = config.recipe.rate_of_encoder(model.pretrained)
    same: dict[str, Any] = json.loads(json.dumps(settings, default=str))  # as a state holds them
    return same


def _digest(tiles: Sequence[Tile]) -> str:
    text = "\n".join(f"{tile.z}/{tile.x}/{tile.y}" for tile in tiles)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_settings(
    plan: Plan, now: Mapping[str, Any], before: Mapping[str, Any], card: ModelCard, where: str
) -> list[str]:
    """Refuse to go on with what would not be the training that began.

    Args:
        plan: Of the training that goes on.
        now: Its settings.
        before: Those of the training that is resumed; empty where they are not known.
        card: Of its weights.
        where: What it is called.

    Returns:
        What is different and may be, for the log.

    Raises:
        ModelError: anything else is different; names all of it.
    """
    found = _differences(plan, card)
    if before:
        before = {**_LATER, **before}
        found += [
            (name, before.get(name), now.get(name))
            for name in {**now, **before}
            if before.get(name) != now.get(name)
            # Only the process that writes has measured the validation tiles.
            if name not in (LR, EPOCHS) and not (name == VALIDATION and now.get(name) is None)
        ]
    if found:
        listed = "; ".join(f"{name} was {_shown(theirs)}, is {_shown(ours)}" for name, theirs, ours in found)
        raise ModelError(
            f"{where} cannot be resumed, as a training goes on as it began: {listed}. Set it back, or start a new "
            "training from these weights: --checkpoint without --resume, into another folder"
        )
    notes = []
    for name, effect in (
        (EPOCHS, "the learning rate follows the longer or shorter schedule from here on"),
        (LR, "the rest of the schedule has this peak"),
    ):
        if before and before.get(name) != now.get(name):
            notes.append(f"{name} was {_shown(before.get(name))}, is {_shown(now.get(name))}: {effect}")
    return notes


def _differences(plan: Plan, card: ModelCard) -> list[tuple[str, Any, Any]]:
    """Return in what a configuration differs from the network and the channels of a card."""
    model, ours, theirs = plan.config.model, plan.config.channels, card.channels
    pairs = [
        ("nn", card.nn, model.nn),
        ("encoder", card.encoder, model.encoder),
        ("num_filters", card.num_filters, model.num_filters),
        ("norm", card.norm, model.norm),
        ("[[classes]] title", [c.title for c in card.classes], [c.title for c in plan.config.classes]),
        ("[[channels]] name", [c.name for c in theirs], [c.name for c in ours]),
    ]
    if len(ours) == len(theirs):
        for mine, other in zip(ours, theirs, strict=True):
            for name in ("bands", "mean", "std"):
                value = getattr(mine, name)
                if value:  # what is to be measured is kept as it was
                    pairs.append((f"{name} of {mine.name!r}", list(getattr(other, name)), list(value)))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
