"""The measures, against their definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rsp.shared.errors import TileError
from rsp.shared.metrics import (
    accuracy,
    confusion,
    f1_per_class,
    foreground_iou,
    iou_per_class,
    mcc,
    miou,
    precision_per_class,
    qod,
    recall_per_class,
)

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, (40, 50), dtype=np.uint8)
MASK = np.where(RNG.random((40, 50)) < 0.7, LABEL, RNG.integers(0, 3, (40, 50))).astype(np.uint8)


def test_confusion_counts_every_pair_in_rows_of_labels():
    matrix = confusion(LABEL, MASK, 3)
    assert matrix.dtype == np.int64 and matrix.sum() == LABEL.size
    for label in range(3):
        for mask in range(3):
            assert matrix[label, mask] == np.sum((label == LABEL) & (mask == MASK))


def test_confusion_of_high_classes_does_not_overflow():
    label = np.full((4, 4), 200, np.uint8)
    assert confusion(label, label, 201)[200, 200] == 16


def test_confusion_refuses_other_sizes_and_unknown_classes():
    with pytest.raises(
        TileError,
        match=f"differ in size: {LABEL.shape[1]}x{LABEL.shape[0]} and .* pixels; make the labels as large",
    ):
        confusion(LABEL, MASK[:, :-1], 3)
    with pytest.raises(TileError, match="label holds class 2"):
        confusion(LABEL, MASK, 2)


def test_binary_measures_are_those_of_the_formulas():
    tp, tn, fp, fn = 42, 50, 3, 5
    matrix = np.array([[tn, fp], [fn, tp]])
    assert iou_per_class(matrix).tolist() == [tn / (tn + fn + fp), tp / (tp + fn + fp)]
    assert miou(matrix) == pytest.approx((tn / (tn + fn + fp) + tp / (tp + fn + fp)) / 2)
    assert foreground_iou(matrix) == tp / (tp + fn + fp)
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert mcc(matrix) == pytest.approx(expected)
    assert precision_per_class(matrix)[1] == tp / (tp + fp)
    assert recall_per_class(matrix)[1] == tp / (tp + fn)
    assert f1_per_class(matrix)[1] == 2 * tp / (2 * tp + fp + fn)
    assert accuracy(matrix) == pytest.approx((tp + tn) / 100)


def test_mcc_of_three_classes_is_the_correlation_of_one_hot_pixels():
    # R_K is cov(X, Y) / sqrt(cov(X, X) cov(Y, Y)), covariances summed over the classes.
    one_hot = np.eye(3)
    x, y = one_hot[LABEL.ravel()], one_hot[MASK.ravel()]
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert mcc(confusion(LABEL, MASK, 3)) == pytest.approx(expected)


def test_mcc_of_more_pixels_than_products_of_int64_hold():
    matrix = np.array([[50, 3], [5, 42]], np.int64) * 10**12
    assert mcc(matrix) == pytest.approx(mcc(matrix // 10**12))


def test_nothing_over_nothing_is_nan_and_does_not_count():
    matrix = np.array([[9, 0, 0], [0, 3, 1], [0, 0, 0]])
    assert np.isnan(iou_per_class(np.zeros((2, 2), np.int64))).all()
    assert math.isnan(mcc(np.array([[9, 0], [0, 0]]))) and math.isnan(mcc(np.zeros((2, 2), np.int64)))
    assert math.isnan(foreground_iou(np.array([[9, 0], [0, 0]])))
    assert miou(np.array([[9, 0], [0, 0]])) == 1.0
    # Class 2 was predicted once and is nowhere labelled: that is an IoU of 0, not NaN.
    assert iou_per_class(matrix).tolist() == [1.0, 0.75, 0.0]


def test_qod():
    label, mask = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    assert qod(label, mask) == (0.0, 100.0)
    label[:5], mask[:4] = 1, 1
    fg, quality = qod(label, mask)
    assert fg == 50.0 and quality == pytest.approx(100 - 0.2 * math.log(51) * 100 / math.log(100))
    mask[:] = 1
    label[:] = 0
    assert qod(label, mask) == (100.0, 0.0)  # clamped: ln 101 is beyond ln 100
    label[:5], mask[:] = 2, 0
    mask[:5] = 1
    assert qod(label, mask) == (50.0, 100.0)  # foreground is foreground, of whatever class


@pytest.mark.parametrize("classes", range(1, 8))
def test_every_pair_is_counted_whatever_the_number_of_classes(classes):
    rng = np.random.default_rng(classes)
    label, mask = rng.integers(0, classes, (2, 30, 40), dtype=np.uint8)
    expected = [[int(((label == a) & (mask == b)).sum()) for b in range(classes)] for a in range(classes)]
    assert confusion(label, mask, classes).tolist() == expected
    assert confusion(label[:0], mask[:0], classes).sum() == 0
