"""What training writes for people and for its own return: the log, the history, and the state to resume from."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsp.shared.atomic import atomic_path, atomic_text
from rsp.shared.errors import ModelError, StorageError
from rsp.shared.locations import Location, exists, on_disk

LAST, BEST = "last.safetensors", "best.safetensors"
LOG, HISTORY_JSON, HISTORY_CSV, STATE = "log", "history.json", "history.csv", "state.pt"
# That of a state between two epochs, and within one, which older versions of rsp cannot go on from.
VERSION, WITHIN = 2, 3

# One row an epoch: `epoch`, `lr`, `seconds`, `training` and `validation` (metrics by name).
Row = dict[str, Any]


@dataclass
class State:
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        epoch: How many epochs are done.
        uuid: Of the weights.
        card: The model card as JSON: what network this is.
        plan: What rebuilds the network (see `rsp.shared.learning.models.plan_of`), as JSON.
        weights: The state of the network.
        optimizer: The state of the optimizer, and the moving average of the weights.
        settings: What must be the same where it goes on, by the names that users know.
        history: One row an epoch.
        part: What `rsp.components.train.interrupted` keeps of the next epoch, where it was stopped within it.
    """

    epoch: int
    uuid: str
    card: str
    plan: str
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    settings: dict[str, Any]
    history: list[Row]
    part: dict[str, Any] | None = None


def write_state(out: Path, state: State) -> None:
    """Write the state atomically, after all else of its epoch: what it describes is there."""
    data = {
        "version": VERSION if state.part is None else WITHIN,
        "epoch": state.epoch,
        "uuid": state.uuid,
        "card": state.card,
        "plan": state.plan,
        "settings": json.dumps(state.settings),
        "history": json.dumps(state.history),
        "weights": state.weights,
        "optimizer": state.optimizer,
    }
    if state.part is not None:
        data["part"] = state.part
    path = out / STATE
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(data, file)
    except RuntimeError as error:
        # Of a full disk torch's writer tells what it expected; what the disk said is in the context.
        said = error.__context__.strerror if isinstance(error.__context__, OSError) else str(error).splitlines()[0]
        raise StorageError(f"cannot write {path}: {said}") from error


def read_state(folder: Location) -> State | None:
    """Return the state in a folder or below a prefix, or None where there is none. Nothing in it can run code.

    Raises:
        ModelError: it is damaged, or of another version.
    """
    path = folder / STATE
    if not exists(path):
        return None
    try:
        with on_disk(path) as file:
            data = torch.load(file, map_location="cpu", weights_only=True)
        version = data.pop("version")
        if version not in (VERSION, WITHIN):
            age = "an older" if version < VERSION else "a newer"
            raise ModelError(
                f"{path} was written by {age} version of rsp (version {version}, this one reads {VERSION}): "
                f"resume with that version, or fine-tune its weights, --checkpoint {folder / LAST} without "
                "--resume, into another folder"
            )
        state = State(**{**data, **{name: json.loads(data[name]) for name in ("settings", "history")}})
        _check(state)
        return state
    except (ModelError, StorageError):
        raise
    except Exception as error:  # torch raises what it likes on a damaged file
        raise ModelError(f"{path} is damaged, so there is nothing to resume from: {error}") from error


# What rows have of all versions, and each of their two parts.
_ROW = {"epoch", "lr", "seconds", "training", "validation"}
_PART = {"loss", "iou", "miou", "mcc", "iou_of", "confusion"}


def _check(state: State) -> None:
    """Raise `ValueError` where a state is not one that `write_state` wrote, whoever made it."""
    for name, kind in (("epoch", int), ("uuid", str), ("card", str), ("settings", dict), ("history", list)):
        if not isinstance(getattr(state, name), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    json.loads(state.plan)
    weights, optimizer = state.weights, state.optimizer
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise ValueError("weights are no tensors by name")
    if not isinstance(optimizer, dict):
        raise ValueError("optimizer is no dict")
    for number, row in enumerate(state.history, 1):
        if not (isinstance(row, dict) and row.keys() >= _ROW and row["epoch"] == number):
            raise ValueError(f"row {number} of the history is none of epoch {number}")
        for part in (row["training"], row["validation"]):
            if not isinstance(part, dict) or part.keys() < _PART or not isinstance(part["iou_of"], dict):
                raise ValueError(f"row {number} of the history lacks measures")
        if not all(value is None or isinstance(value, int | float) for value in flatten(row).values()):
            raise ValueError(f"row {number} of the history holds what is no number")


def finite(value: Any) -> Any:
    """Return rows in types of JSON: what is not finite is null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def best_row(history: list[Row], first: int) -> Row:
    """Return the row of the best epoch from one on: by the IoU, then by the loss; the first of equals."""

    def score(row: Row) -> tuple[float, float]:
        part = row["validation"]
        value = next((part[key] for key in ("iou", "miou") if part[key] is not None), -1.0)
        return value, -part["loss"] if part["loss"] is not None else -math.inf

    return max((row for row in history if row["epoch"] >= first), key=score)


def write_history(out: Path, history: list[Row]) -> None:
    """Write the history as JSON, and its numbers as CSV: one line an epoch, columns as `validation_iou`."""
    with atomic_text(out / HISTORY_JSON) as file:
        json.dump(finite(history), file, indent=2)
        file.write("\n")
    with atomic_text(out / HISTORY_CSV) as file:
        columns = list(flatten(history[-1]))
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flatten(row) for row in history)


def flatten(row: Row, prefix: str = "") -> dict[str, Any]:
    """Return the numbers of a row under joined names; lists (the confusion matrix) are left to the JSON."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}_"))
        elif not isinstance(value, list):
            flat[f"{prefix}{key}"] = value
    return flat


class Log:
    """Prints lines and appends them to the text log in a folder.

    Without a folder, as in all processes but the main one, it is silent.
    """

    def __init__(self, out: Path | None) -> None:
        self.path = None if out is None else out / LOG

    def __call__(self, text: str = "") -> None:
        if self.path is None:
            return
        # One write: a signal between a line and its end would join it with the last words of the training.
        print(f"{text}\n", end="", flush=True)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
