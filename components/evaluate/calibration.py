"""Calibration: whether of the pixels to which a model gives 80 % four in five are what it says.

Probabilities come as bytes (`rsp.shared.learning.encoded.probability_bytes`), so a table of how many pixels have
each byte says all: the measures are exact, and the same for any order of tiles, from a checkpoint and from what
`predict` wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsp.shared.images import Mask
from rsp.shared.metrics import IGNORE

Levels = npt.NDArray[np.int64]

# The bins of the expected calibration error, as in C. Guo et al., On Calibration of Modern Neural Networks, 2017:
# equally wide, each with its upper end and without its lower one. As bytes they are 17 wide.
BINS = 15
LEVELS = 256
_BIN_OF = np.maximum(0, (np.arange(LEVELS) + 16) // 17 - 1)


@dataclass(frozen=True)
class Bin:
    """Pixels whose confidence lies between two values.

    Attributes:
        low: The lower end, which belongs to the bin before.
        high: The upper end.
        pixels: How many there are.
        confidence: Their mean confidence; NaN where there is none.
        accuracy: The share of them that is right.
    """

    low: float
    high: float
    pixels: int
    confidence: float
    accuracy: float


def levels_of(label: Mask, mask: Mask, probabilities: npt.NDArray[np.uint8]) -> Levels:
    """Count the pixels of a tile by probability.

    Args:
        label: Class indices, shape (height, width); `IGNORE` is not counted.
        mask: The classes that are predicted, the same shape.
        probabilities: As bytes, shape (classes, height, width).

    Returns:
        Shape (classes + 1, 256, 2). By class: how many pixels have each byte as its probability, and how many of
        those are labelled so. Last: how many pixels have each byte as the probability of the class that is
        predicted, and of how many that class is the label's.
    """
    known = label != IGNORE
    truth, predicted, shares = label[known], mask[known], probabilities[:, known]
    found = np.empty((len(shares) + 1, LEVELS, 2), np.int64)
    for index, share in enumerate(shares):
        found[index, :, 0] = np.bincount(share, minlength=LEVELS)
        found[index, :, 1] = np.bincount(share[truth == index], minlength=LEVELS)
    confidence = np.take_along_axis(shares, predicted[np.newaxis].astype(np.intp), 0)[0]
    found[-1, :, 0] = np.bincount(confidence, minlength=LEVELS)
    found[-1, :, 1] = np.bincount(confidence[truth == predicted], minlength=LEVELS)
    return found


def reliability(levels: Levels) -> list[Bin]:
    """Return the bins of a class, or of what is predicted: a row of `levels_of`, shape (256, 2)."""
    pixels, hits = (np.bincount(_BIN_OF, column, BINS).astype(np.int64) for column in levels.T)
    shares = np.bincount(_BIN_OF, levels[:, 0] * np.arange(LEVELS), BINS).astype(np.int64)
    return [
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            pixels=int(count),
            confidence=int(share) / (255 * int(count)) if count else float("nan"),
            accuracy=int(hit) / int(count) if count else float("nan"),
        )
        for number, (count, share, hit) in enumerate(zip(pixels, shares, hits, strict=True))
    ]


def ece(levels: Levels) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy over the pixels."""
    bins = [each for each in reliability(levels) if each.pixels]
    total = sum(each.pixels for each in bins)
    gaps = (each.pixels * abs(each.accuracy - each.confidence) for each in bins)
    return sum(gaps) / total if total else float("nan")


def brier_of_class(levels: Levels) -> float:
    """Return the mean squared distance of the probability of a class from 1 where it is true, else from 0."""
    value = np.arange(LEVELS, dtype=np.int64)
    pixels, hits = levels[:, 0], levels[:, 1]
    total = int(pixels.sum())
    squares = int(((pixels - hits) * value**2 + hits * (255 - value) ** 2).sum())
    return squares / (255**2 * total) if total else float("nan")


def brier(levels: Levels) -> float:
    """Return the Brier score of all classes: their sum, 0 to 2; of two classes half of it, as is usual, 0 to 1."""
    scores = [brier_of_class(each) for each in levels[:-1]]
    return sum(scores) / (2 if len(scores) == 2 else 1)
