"""Filters of tiles by a measure of a class: `--min` and `--max`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rsp.shared.classes import class_index
from rsp.shared.config import ClassDef
from rsp.shared.errors import UsageError
from rsp.shared.metrics import ClassCounts, Counts

# What filters and tables know of a class on a tile, and from where to where it goes.
RANGES = {
    "iou": (0, 1), "precision": (0, 1), "recall": (0, 1), "f1": (0, 1), "mcc": (-1, 1),
    "fg": (0, 100), "qod": (0, 100),
}  # fmt: skip

# Class, metric, and value.
Limit = tuple[str, str, float]


class Bound(NamedTuple):
    """A tile passes if a measure of a class lies between two values, themselves included.

    Attributes:
        place: The index of the class.
        metric: One of `RANGES`.
        low: The lowest value that passes.
        high: The highest.
    """

    place: int
    metric: str
    low: float = -math.inf
    high: float = math.inf


def passes(counts: Counts, bounds: Sequence[Bound]) -> bool:
    """Tell whether a tile passes all bounds; it passes none of a measure that it has not (0/0)."""
    if not bounds:
        return True
    found = ClassCounts.of(counts).measures()
    return all(bound.low <= found[bound.metric][bound.place] <= bound.high for bound in bounds)


def bounds_of(
    minimum: Sequence[Limit] | None, maximum: Sequence[Limit] | None, classes: Sequence[ClassDef]
) -> tuple[Bound, ...]:
    """Return what `--min` and `--max` ask for.

    Raises:
        ConfigError: there is no such class.
        UsageError: there is no such metric, the class is ignored, or the value makes no sense.
    """
    found = []
    for flag, limits in (("min", minimum), ("max", maximum)):
        for limit in limits or ():
            index, metric, value = _parse(flag, limit, classes)
            found.append(Bound(index, metric, **{"low" if flag == "min" else "high": value}))
    return tuple(found)


def _parse(flag: str, limit: Any, classes: Sequence[ClassDef]) -> tuple[int, str, float]:
    """Return class, metric and value of a limit, as the command line or Kubeflow hands it over."""
    if isinstance(limit, str) or not isinstance(limit, Sequence) or len(limit) != 3:
        raise UsageError(f"--{flag} takes CLASS METRIC VALUE, as building iou 0.5, got {limit!r}")
    title, metric, value = str(limit[0]), str(limit[1]).lower(), limit[2]
    said = f"--{flag} {title} {limit[1]} {value}"
    index = class_index(classes, title)
    if classes[index].ignore:
        raise UsageError(f"{said}: the pixels of {title} are ignored, so it has no measures")
    if metric not in RANGES:
        raise UsageError(f"{said}: no metric {limit[1]!r}; the metrics are {', '.join(RANGES)}")
    low, high = RANGES[metric]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise UsageError(f"{said}: {metric} is a number from {low} to {high}")
    return index, metric, number
