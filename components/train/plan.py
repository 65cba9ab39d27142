"""What to train: all that every process of a training is told."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from rsp.shared.config import Channel, ClassDef, Config, ModelConfig
from rsp.shared.errors import ConfigError, UsageError
from rsp.shared.learning.card import MAX_SIDE
from rsp.shared.locations import Location, location
from rsp.shared.recipe import Recipe

LOCATIONS = ("dataset", "out", "checkpoint")


@dataclass
class Plan:
    """What to train, on what, and for how long.

    Attributes:
        config: The configuration, overrides applied.
        dataset: The folder that holds `training` and `validation`.
        out: Where checkpoints, history and log go.
        epochs: The epoch to train up to.
        resume: Go on: from `checkpoint` if there is one, else from the last state in `out`.
        checkpoint: Where the first weights come from.
        workers: Processes that load tiles, for each training process; None chooses.
        seed: Of weights, shuffles and augmentations.
    """

    config: Config
    dataset: Location
    out: Location
    epochs: int = 10
    resume: bool = False
    checkpoint: Location | None = None
    workers: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise `UsageError` where no network can be trained so."""
        if self.epochs < 1:
            raise UsageError(f"--epochs must be at least 1, got {self.epochs}")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, got {self.seed}")
        side = self.config.model.side
        if side % 32:
            raise UsageError(
                f"the tile size is {side}; networks need a multiple of 32, as {round(side / 32) * 32 or 32} "
                "(tiles of other sizes are resized to it)"
            )
        if side > MAX_SIDE:
            raise UsageError(f"the tile size is {side}; networks see tiles of up to {MAX_SIDE} pixels")

    def to_json(self) -> str:
        """Return the plan as text for `from_json`, in another process of this program."""
        data = asdict(self)
        # `asdict` takes an Address apart: it is a dataclass, too.
        places = [(data, self, name) for name in LOCATIONS] + [(data["config"], self.config, "dataset")]
        for target, source, name in places:
            value = getattr(source, name)
            target[name] = None if value is None else str(value)
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return what `to_json` wrote."""
        data = json.loads(text)
        config = data.pop("config")
        paths = {name: None if data[name] is None else location(data[name]) for name in LOCATIONS}
        folder = config["dataset"]
        return cls(
            config=Config(
                channels=tuple(Channel(**_tuples(row)) for row in config["channels"]),
                classes=tuple(ClassDef(**_tuples(row)) for row in config["classes"]),
                model=ModelConfig(**{**config["model"], "metrics": tuple(config["model"]["metrics"])}),
                dataset=None if folder is None else location(folder),
                pg_dsn=config["pg_dsn"],
                recipe=Recipe(**_tuples(config["recipe"])),
            ),
            **{**data, **paths},
        )


def with_weights(config: Config, text: str) -> Config:
    """Return a configuration with other weights of the classes.

    Args:
        config: The configuration.
        text: `auto`, or one number for each class, as `1,2.5`.

    Raises:
        ConfigError: it is neither.
    """
    if text == "auto":
        return replace(config, recipe=replace(config.recipe, classes_weights="auto"))
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(config.classes) or not all(0 <= weight < math.inf for weight in weights):
        titles = ", ".join(entry.title for entry in config.classes)
        raise ConfigError(
            f"--classes_weights: expected auto, or a number from 0 for each of the classes {titles}, got {text!r}"
        )
    classes = tuple(replace(entry, weight=weight) for entry, weight in zip(config.classes, weights, strict=True))
    return replace(config, classes=classes, recipe=replace(config.recipe, classes_weights=None))


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a frozen dataclass: its lists are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
