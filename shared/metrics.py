"""Measures of agreement between labels and masks, all from one confusion matrix. Pure numpy.

A confusion matrix here is an array of int64, shape (K, K), K being the number of classes: rows are the classes
of the label, columns those of the mask. Matrices of tiles add up. What is 0/0 is NaN. Pixels of which the label
knows nothing (`IGNORE`) are counted nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import TileError

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# What a label holds where nothing is known: such pixels teach nothing and count nowhere.
IGNORE = 255

# Up to this many classes, a count of each pair is quicker than one histogram of all (6 and 1.3 times for 2 and 4).
PLANES = 4


def confusion(label: npt.NDArray[np.integer], mask: npt.NDArray[np.integer], classes: int) -> Counts:
    """Count the pixels of each pair of classes.

    Args:
        label: Class indices, any shape; pixels that hold `IGNORE` are left out.
        mask: Class indices, the same shape.
        classes: How many classes there are, K.

    Returns:
        The confusion matrix, shape (K, K).

    Raises:
        TileError: the shapes differ, or a class index is K or more.
    """
    if label.shape != mask.shape:
        ours, theirs = ("x".join(map(str, reversed(each.shape))) for each in (label, mask))
        raise TileError(
            f"label and mask differ in size: {ours} and {theirs} pixels; make the labels as large as the masks, "
            "as by `rsp rasterize --like`"
        )
    if label.size and int(label.max()) == IGNORE:
        known = label != IGNORE
        label, mask = label[known], mask[known]
    for name, array in (("label", label), ("mask", mask)):
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < classes:
            raise TileError(
                f"the {name} holds class {int(array.max())}; there are {classes} classes (0 to {classes - 1})"
            )
    if classes <= PLANES:
        return _by_planes(label, mask, classes)
    pairs = label.ravel().astype(np.int64) * classes + mask.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def leave_out(label: npt.NDArray[np.uint8], ignored: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return a label that is `IGNORE` where its class is to be ignored."""
    return np.where(np.isin(label, ignored), np.uint8(IGNORE), label) if len(ignored) else label


def _by_planes(label: npt.NDArray[np.integer], mask: npt.NDArray[np.integer], classes: int) -> Counts:
    """Count as `confusion` by comparing arrays instead of adding up pixels one by one."""
    counts = np.zeros((classes, classes), np.int64)
    labelled, masked = ([array == value for value in range(1, classes)] for array in (label, mask))
    for row, one in enumerate(labelled, 1):
        for column, other in enumerate(masked, 1):
            counts[row, column] = np.count_nonzero(one & other)
        counts[row, 0] = np.count_nonzero(one) - counts[row].sum()
    for column, other in enumerate(masked, 1):
        counts[0, column] = np.count_nonzero(other) - counts[:, column].sum()
    counts[0, 0] = label.size - counts.sum()
    return counts


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Divide; 0/0 is NaN and nobody is warned."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.asarray(numerator, np.float64) / np.asarray(denominator, np.float64))


def _sides(matrix: Counts) -> tuple[Counts, Counts, Counts]:
    """Return how many pixels of each class are right, labelled, and masked."""
    return np.diag(matrix), matrix.sum(1), matrix.sum(0)


def _iou(hits: npt.ArrayLike, labelled: npt.NDArray[Any], masked: npt.NDArray[Any]) -> Floats:
    return _ratio(hits, labelled + masked - hits)


def _precision(hits: npt.ArrayLike, labelled: npt.ArrayLike, masked: npt.ArrayLike) -> Floats:
    return _ratio(hits, masked)


def _recall(hits: npt.ArrayLike, labelled: npt.ArrayLike, masked: npt.ArrayLike) -> Floats:
    return _ratio(hits, labelled)


def _f1(hits: npt.NDArray[Any], labelled: npt.NDArray[Any], masked: npt.NDArray[Any]) -> Floats:
    return _ratio(2 * hits, labelled + masked)


def iou_per_class(matrix: Counts) -> Floats:
    """Return TP / (TP + FN + FP) of each class; NaN where a class is in neither label nor mask."""
    return _iou(*_sides(matrix))


def miou(matrix: Counts, ignored: Sequence[int] = ()) -> float:
    """Return the mean IoU of the classes, background included; classes found nowhere do not count."""
    return nanmean(np.delete(iou_per_class(matrix), ignored))


def foreground_iou(matrix: Counts, ignored: Sequence[int] = ()) -> float:
    """Return the mean IoU of the classes but the background (class 0): with two classes, that of class 1.

    Args:
        matrix: The confusion matrix.
        ignored: Classes that count as little as the background.
    """
    return nanmean(np.delete(iou_per_class(matrix), [0, *ignored]))


def nanmean(values: Floats) -> float:
    """Return the mean of the values that are defined; NaN where none is, and nobody is warned."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")


def precision_per_class(matrix: Counts) -> Floats:
    """Return TP / (TP + FP) of each class."""
    return _precision(*_sides(matrix))


def recall_per_class(matrix: Counts) -> Floats:
    """Return TP / (TP + FN) of each class."""
    return _recall(*_sides(matrix))


def f1_per_class(matrix: Counts) -> Floats:
    """Return 2 TP / (2 TP + FN + FP) of each class."""
    return _f1(*_sides(matrix))


class ClassCounts(NamedTuple):
    """Pixels of classes, each against all others: arrays of any one shape, as (tiles, classes).

    Attributes:
        hits: How many are of the class in the label and in the mask.
        labelled: How many in the label.
        masked: How many in the mask.
        total: How many there are.
    """

    hits: npt.NDArray[Any]
    labelled: npt.NDArray[Any]
    masked: npt.NDArray[Any]
    total: npt.NDArray[Any]

    @classmethod
    def of(cls, matrix: Counts) -> ClassCounts:
        """Return those of a confusion matrix, arrays of shape (K,)."""
        hits, labelled, masked = _sides(matrix)
        return cls(hits, labelled, masked, np.full(len(matrix), matrix.sum()))

    def measures(self) -> dict[str, Floats]:
        """Return the measures of each class by name, in the shape of the counts; what is 0/0 is NaN.

        `iou`, `precision`, `recall` and `f1` are those of `iou_per_class` and the like, `mcc` is that of two
        classes, `fg` and `qod` are those of `qod`.
        """
        sides = self.hits, self.labelled, self.masked
        total = np.asarray(self.total, np.float64)
        hits, labelled, masked = (_ratio(each, total) for each in sides)
        spread = np.sqrt(labelled * (1 - labelled)) * np.sqrt(masked * (1 - masked))
        iou = _iou(*sides)
        fg = 100 * np.nan_to_num(np.maximum(labelled, masked))
        return {
            "iou": iou,
            "precision": _precision(*sides),
            "recall": _recall(*sides),
            "f1": _f1(*sides),
            "mcc": np.clip(_ratio(hits - labelled * masked, spread), -1, 1),
            "fg": fg,
            "qod": _quality(np.nan_to_num(iou, nan=1.0), fg),
        }


def one_against_rest(matrix: Counts, index: int) -> Counts:
    """Return the matrix of a class against all others together, shape (2, 2): the class is the second."""
    both, labelled, masked = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
    return np.array([[matrix.sum() - labelled - masked + both, masked - both], [labelled - both, both]])


def accuracy(matrix: Counts) -> float:
    """Return the share of pixels whose class is right."""
    return float(_ratio(np.trace(matrix), matrix.sum()))


def mcc(matrix: Counts) -> float:
    """Return the Matthews correlation coefficient, -1 to 1.

    For two classes (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)); for more, its generalisation R_K
    (Gorodkin, 2004), of which that is the case K = 2. NaN where labels or masks hold a single class.
    """
    # Shares of the total: products of pixel counts would leave int64 at some 3e9 pixels.
    shares = _ratio(matrix, matrix.sum())
    labels, masks = shares.sum(1), shares.sum(0)
    covariance = np.trace(shares) - labels @ masks
    spread = (1 - labels @ labels) * (1 - masks @ masks)
    # With a single class on one side, `spread` is 0 but for rounding.
    if np.count_nonzero(matrix.sum(0)) < 2 or np.count_nonzero(matrix.sum(1)) < 2:
        return float("nan")
    return float(covariance / np.sqrt(spread))


def qod_of(matrix: Counts) -> tuple[float, float]:
    """Return what `qod` does, from a confusion matrix; all classes but the background count as one."""
    total, hit = int(matrix.sum()), int(matrix[1:, 1:].sum())
    labelled, masked = int(matrix[1:].sum()), int(matrix[:, 1:].sum())
    union = labelled + masked - hit
    fg = 100 * max(labelled, masked) / total if total else 0.0
    return fg, float(_quality(hit / union if union else 1.0, fg))


def _quality(iou: Any, fg: Any) -> Any:
    """Return the quality of data for an IoU of the foreground and its share; numbers, or arrays of one shape."""
    eps = float(np.finfo(np.float64).eps)
    return np.maximum(0.0, 100 - (1 - iou) * (np.log(fg + 1) + eps) * 100 / np.log(100))


def qod(label: npt.NDArray[np.integer], mask: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Return the share of foreground of a tile, and its quality of data.

    A low quality of data on a tile with much foreground points at a label that is likely wrong.

    Args:
        label: Class indices; 0 is background, all else foreground.
        mask: Class indices, the same shape.

    Returns:
        `fg`, 0 to 100: the larger of the foreground shares of label and mask, in percent of the pixels.
        `qod`, 0 to 100: with d = 1 - IoU of the foreground (0 where there is none),
        max(0, 100 - d (ln(fg + 1) + eps) 100 / ln 100).
    """
    return qod_of(confusion(label != 0, mask != 0, 2))
