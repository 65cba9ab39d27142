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
from rsp.shared.metrics import Counts

Metric = Callable[[Counts], float]


def _foreground(per_class: Callable[[Counts], metrics.Floats]) -> Metric:
    """Return the mean over the classes but the background."""

    def mean(matrix: Counts) -> float:
        values = per_class(matrix)[1:]
        found = values[~np.isnan(values)]
        return float(found.mean()) if found.size else float("nan")

    return mean


BUILTIN: dict[str, Metric] = {
    "iou": metrics.foreground_iou,
    "miou": metrics.miou,
    "mcc": metrics.mcc,
    "f1": _foreground(metrics.f1_per_class),
    "precision": _foreground(metrics.precision_per_class),
    "recall": _foreground(metrics.recall_per_class),
    "accuracy": metrics.accuracy,
    "qod": lambda matrix: metrics.qod_of(matrix)[1],
}


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Return the metrics of these names."""
    return {
        name.lower() if name.lower() in BUILTIN else name: plugins.load(name, "rsp.metrics", BUILTIN)
        for name in names
    }


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
        self._matrix = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)  # sum over tiles, number of tiles

    @torch.no_grad()
    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Count a batch: logits (N, K, H, W), labels (N, H, W) int64, and its mean loss."""
        pairs = labels.flatten() * self.classes + logits.argmax(1).flatten()
        # bincount sums in any order on a GPU, which integers do not mind.
        self._matrix += torch.bincount(pairs, minlength=self.classes**2)
        tiles = labels.shape[0]
        self._loss += torch.stack([loss.detach().double() * tiles, self._loss.new_tensor(tiles)])

    def result(self) -> tuple[Counts, float]:
        """Return the confusion matrix and the mean loss of all processes; every process must ask."""
        if distributed.is_initialized():
            distributed.all_reduce(self._matrix)
            distributed.all_reduce(self._loss)
        total, tiles = self._loss.tolist()
        matrix = self._matrix.cpu().numpy().reshape(self.classes, self.classes)
        return matrix, total / tiles if tiles else float("nan")
