"""Metrics while training: one confusion matrix, summed over batches and over processes.

`[model] metrics` names those that are shown for every epoch: ours, `module:attribute`, or an entry point of the
group `rsp.metrics`. A metric is a function of the confusion matrix (numpy int64, (K, K), rows are labels) that
returns a float, NaN where it is undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from rsp.shared import metrics, plugins
from rsp.shared.config import Config
from rsp.shared.learning.devices import must_wait
from rsp.shared.metrics import IGNORE, Counts

Metric = Callable[[Counts], float]


def _mean(per_class: Callable[[Counts], metrics.Floats], first: int) -> Metric:
    """Return the mean over the classes from the first that counts."""

    def mean(matrix: Counts) -> float:
        values = per_class(matrix)[first:]
        found = values[~np.isnan(values)]
        return float(found.mean()) if found.size else float("nan")

    return mean


# Means over classes leave the background out, where there is one.
_MEANS: dict[str, Callable[[Counts], metrics.Floats]] = {
    "iou": metrics.iou_per_class,
    "f1": metrics.f1_per_class,
    "precision": metrics.precision_per_class,
    "recall": metrics.recall_per_class,
}


def builtin(background: bool = True) -> dict[str, Metric]:
    """Return our metrics by name."""
    means = {name: _mean(per_class, int(background)) for name, per_class in _MEANS.items()}
    return means | {
        "miou": metrics.miou,
        "mcc": metrics.mcc,
        "accuracy": metrics.accuracy,
        "qod": lambda matrix: metrics.qod_of(matrix)[1],
    }


def load_metrics(names: Sequence[str], background: bool = True) -> dict[str, Metric]:
    """Return the metrics of these names.

    Args:
        names: Of ours, `module:attribute`, or plug-ins.
        background: The first class is the background, which means over classes leave out.
    """
    ours = builtin(background)
    return {
        name.lower() if name.lower() in ours else name: plugins.load(name, "rsp.metrics", ours) for name in names
    }


def counted(matrix: Counts, config: Config) -> Counts:
    """Return a confusion matrix without the classes to ignore, which no mask holds."""
    kept = [index for index, entry in enumerate(config.classes) if not entry.ignore]
    return matrix[np.ix_(kept, kept)]


def measure(chosen: dict[str, Metric], matrix: Counts) -> dict[str, float]:
    """Return the value of each metric."""
    values = {}
    for name, metric in chosen.items():
        with plugins.guarded("metric", name):
            value: Any = metric(matrix.copy())
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            raise plugins.unexpected("metric", name, value, "a number, NaN where it is undefined") from None
    return values


class RunningMetrics:
    """Confusion matrix and mean loss of an epoch, kept on the device so that no batch waits for it."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        # One place more than there are pairs of classes: for pixels of which the label knows nothing.
        self._matrix = torch.zeros(classes * classes + 1, dtype=torch.int64, device=device)
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum over tiles, number of tiles

    @torch.no_grad()
    def add(self, masks: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, tiles: int) -> None:
        """Count some pixels.

        Args:
            masks: Class indices, uint8, of any shape.
            labels: The same, and `IGNORE` where nothing is known.
            loss: The mean loss of the tiles.
            tiles: How many tiles they are of.
        """
        if must_wait(masks):
            # Not by bincount, which asks for the largest value.
            pairs = torch.where(labels == IGNORE, self.classes**2, labels.long() * self.classes + masks)
            places = len(self._matrix)
            self._matrix += torch.histc(pairs.double(), bins=places, min=0, max=places).long()
        else:
            counts = metrics.confusion(labels.numpy(), masks.numpy(), self.classes)
            self._matrix[:-1] += torch.from_numpy(counts.reshape(-1))
        self._loss += torch.stack([loss.detach().double() * tiles, torch.full_like(self._loss[1], tiles)])

    @property
    def counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What it has counted, which can be counted on from: see `restore`."""
        return self._matrix, self._loss

    def restore(self, matrix: torch.Tensor, loss: torch.Tensor) -> None:
        """Count on from what another one has counted."""
        self._matrix.copy_(matrix)
        self._loss.copy_(loss)

    def result(self) -> tuple[Counts, float]:
        """Return the confusion matrix and the mean loss of all processes; every process must ask."""
        if distributed.is_initialized():
            distributed.all_reduce(self._matrix)
            distributed.all_reduce(self._loss)
        total, tiles = self._loss.tolist()
        matrix = self._matrix[:-1].cpu().numpy().reshape(self.classes, self.classes)
        return matrix, total / tiles if tiles else float("nan")
