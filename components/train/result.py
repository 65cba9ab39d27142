"""What a training ended with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from rsp.shared.locations import Location, location
from rsp.shared.report import Result


def number(value: float | None) -> float:
    """Return a metric of a row, NaN where it is undefined."""
    return math.nan if value is None else float(value)


@dataclass(kw_only=True)
class TrainResult(Result):
    """What `train` did. Metrics are those of the best epoch on the validation tiles; NaN where undefined.

    Attributes:
        epochs: Up to which epoch it trained.
        best_epoch: The epoch whose weights are in `checkpoint`.
        iou: IoU of the foreground: the mean over all classes but the background.
        miou: Mean IoU over all classes.
        mcc: Matthews correlation coefficient.
        loss: Mean loss.
        confusion: Confusion matrix in pixels, rows are labels.
        classes: The titles of its rows and columns.
        checkpoint: The best checkpoint.
        training_tiles: How many tiles it trained on.
        validation_tiles: How many it was measured on.
        seconds: How long this run took.
        history: One row for each epoch.
        notes: What a person should know of the data.
    """

    epochs: int
    best_epoch: int
    iou: float
    miou: float
    mcc: float
    loss: float
    confusion: list[list[int]]
    classes: list[str]
    checkpoint: Location
    training_tiles: int
    validation_tiles: int
    seconds: float
    history: list[dict[str, Any]]
    notes: list[str]

    @classmethod
    def of(cls, best: dict[str, Any], *, history: list[dict[str, Any]], **others: Any) -> TrainResult:
        """Return what a training ended with.

        Args:
            best: The row of its best epoch.
            history: All rows.
            others: What the rows do not say.
        """
        part = best["validation"]
        return cls(
            iou=number(part["iou"]),
            miou=number(part["miou"]),
            mcc=number(part["mcc"]),
            loss=number(part["loss"]),
            epochs=history[-1]["epoch"],
            best_epoch=best["epoch"],
            confusion=part["confusion"],
            history=history,
            **others,
        )

    def measures(self) -> dict[str, float]:
        """Return the metrics that are defined."""
        found = {"iou": self.iou, "miou": self.miou, "mcc": self.mcc, "loss": self.loss}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def to_json(self) -> str:
        """Return the result as text for `from_json`, in another process of this program."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "failed"}
        # Python's JSON keeps NaN, which the result may hold; nobody else reads it.
        return json.dumps(values, default=str)

    @classmethod
    def from_json(cls, text: str) -> TrainResult:
        """Return what `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "checkpoint": location(data["checkpoint"])})
