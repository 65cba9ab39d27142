"""Mean and standard deviation of the bands of imagery: exact, and streamed.

Sums of whole numbers are whole numbers: the answer is the same in whatever order tiles come.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rsp.shared.images import Array, value_type


class Sums(NamedTuple):
    """Of some pixels, for each band: how many have a value, their sum, and that of their squares."""

    kind: str
    pixels: list[int]
    total: list[Any]
    squares: list[Any]

    def __add__(self, other: Any) -> Sums:
        """Return the sums over the pixels of both."""
        if not isinstance(other, Sums):
            return NotImplemented
        parts = zip(self[1:], other[1:], strict=True)
        return Sums(self.kind, *([a + b for a, b in zip(mine, theirs, strict=True)] for mine, theirs in parts))

    def mean_and_std(self, divisor: float) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each band, of values that are divided; of no value 0 and 0."""
        means, spread = [], []
        for count, total, squares in zip(self.pixels, self.total, self.squares, strict=True):
            count = max(1, count)
            means.append(total / count / divisor)
            # Whole numbers are subtracted before anything is rounded.
            spread.append(math.sqrt(max(0, count * squares - total * total)) / count / divisor)
        return means, spread

    def rounded(self, divisor: float) -> tuple[list[float], list[float]]:
        """Return what `mean_and_std` does, to six decimals, or as many as four digits of the deviation need."""
        means, spread = self.mean_and_std(divisor)
        # Of reflectances of 0.00001, six decimals would leave nothing.
        decimals = [max(6, 3 - math.floor(math.log10(std))) if std else 6 for std in spread]
        digits = list(zip(means, spread, decimals, strict=True))
        return [round(mean, left) for mean, _, left in digits], [round(std, left) for _, std, left in digits]


def sums_of(image: Array) -> Sums:
    """Return the sums of an image (height, width, bands): exact for whole numbers of up to 32 bits.

    Of floats, those that are not finite are no data, and left out.
    """
    kind = value_type(image)
    flat = image.reshape(-1, image.shape[2])
    pixels = [len(flat)] * flat.shape[1]
    if kind == "float32":
        wide = flat.astype(np.float64)
        known = np.isfinite(wide)
        wide[~known] = 0
        pixels = known.sum(axis=0).tolist()
        total, squares = wide.sum(axis=0).tolist(), (wide * wide).sum(axis=0).tolist()
    elif kind in ("uint8", "int8", "uint16", "int16"):
        wide = flat.astype(np.int64)
        total, squares = wide.sum(axis=0).tolist(), (wide * wide).sum(axis=0).tolist()
    else:  # squares of 32 bits, summed, do not fit into 64
        high, low = np.divmod(flat.astype(np.int64), 1 << 16)
        total = flat.astype(np.int64).sum(axis=0).tolist()
        squares = [
            (int(a) << 32) + (int(b) << 17) + int(c)
            for a, b, c in zip(
                (high * high).sum(axis=0), (high * low).sum(axis=0), (low * low).sum(axis=0), strict=True
            )
        ]
    return Sums(kind, pixels, total, squares)
