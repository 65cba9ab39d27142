"""The measures of an evaluation, by name: of all pixels, and of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rsp.shared.metrics import (
    Counts,
    Floats,
    accuracy,
    f1_per_class,
    iou_per_class,
    mcc,
    nanmean,
    one_against_rest,
    precision_per_class,
    recall_per_class,
)

# In the order in which they are shown; those of each class are the same, but for `miou`.
MEASURES = ("iou", "miou", "f1", "precision", "recall", "mcc", "accuracy", "boundary_iou")


def boundary_iou(boundary: Counts) -> Floats:
    """Return the boundary IoU of each class, NaN where it has no boundary; `boundary` has the shape (K, 2)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(boundary[:, 0] / boundary[:, 1])


def overall(
    counts: Counts, boundary: Counts, ignored: Sequence[int] = (), *, background: bool = True
) -> dict[str, float]:
    """Return the measures of some pixels.

    Args:
        counts: Their confusion matrix, shape (K, K).
        boundary: Their `rsp.components.evaluate.boundary.boundary_counts`, shape (K, 2).
        ignored: The classes that are no part of any mean.
        background: Class 0 is the background.

    Returns:
        IoU, F1, precision, recall and boundary IoU are means over the classes but the background, `miou` is one
        over all; classes in neither label nor mask do not count. What is 0/0 is NaN.
    """
    every = [index for index in range(len(counts)) if index not in ignored]
    objects = [index for index in every if index or not background]
    ious = iou_per_class(counts)
    return {
        "iou": nanmean(ious[objects]),
        "miou": nanmean(ious[every]),
        "f1": nanmean(f1_per_class(counts)[objects]),
        "precision": nanmean(precision_per_class(counts)[objects]),
        "recall": nanmean(recall_per_class(counts)[objects]),
        "mcc": mcc(counts),
        "accuracy": accuracy(counts),
        "boundary_iou": nanmean(boundary_iou(boundary)[objects]),
    }


def by_class(counts: Counts, boundary: Counts) -> list[dict[str, float]]:
    """Return the measures of each class; MCC and accuracy tell it from all others together."""
    columns = {
        "iou": iou_per_class(counts),
        "f1": f1_per_class(counts),
        "precision": precision_per_class(counts),
        "recall": recall_per_class(counts),
        "boundary_iou": boundary_iou(boundary),
    }
    found = []
    for index in range(len(counts)):
        alone = one_against_rest(counts, index)
        values = {name: float(column[index]) for name, column in columns.items()}
        values |= {"mcc": mcc(alone), "accuracy": accuracy(alone)}
        found.append({name: values[name] for name in MEASURES if name in values})
    return found
