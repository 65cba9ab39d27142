"""Thins regions of pixels to lines of one pixel, and measures how wide they are there.

The thinning is that of Z. Guo and R. W. Hall (Parallel thinning with two-subiteration algorithms, Communications
of the ACM 32, 1989, algorithm A1): all pixels are looked at at once, and what becomes of one follows from its
eight neighbours alone. So after n rounds a pixel follows from what is no more than 2 n pixels away, and a line
does not depend on how an image is cut, as long as each cut is seen with so much around it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.shared.contours import Flags, Integers

Floats = npt.NDArray[np.float64]

# The neighbours of a pixel, clockwise from the north: (down, right).
AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _goes() -> npt.NDArray[np.bool_]:
    """Return for either half of a round which neighbours make a pixel go, shape (2, 256): bit i is `AROUND[i]`."""
    bits = (np.arange(256)[:, np.newaxis] >> np.arange(8)) & 1 == 1
    north, north_east, east, south_east, south, south_west, west, north_west = bits.T
    parts = (
        (~north & (north_east | east)).astype(int) + (~east & (south_east | south))
        + (~south & (south_west | west)) + (~west & (north_west | north))
    )  # fmt: skip
    one = sum(
        (a | b).astype(int)
        for a, b in ((north_west, north), (north_east, east), (south_east, south), (south_west, west))
    )
    other = sum(
        (a | b).astype(int)
        for a, b in ((north, north_east), (east, south_east), (south, south_west), (west, north_west))
    )
    fewer = np.minimum(one, other)
    found = (parts == 1) & (fewer >= 2) & (fewer <= 3)
    return np.stack([
        found & ~((south | south_west | ~north_west) & west),
        found & ~((north | north_east | ~south_east) & east),
    ])  # fmt: skip


_GOES = _goes()


def thinned(pixels: Flags) -> Flags:
    """Return what is left of regions when they are thinned: lines of one pixel, connected as the regions are.

    Args:
        pixels: Shape (height, width). What lies beyond its edges is no region.
    """
    width = pixels.shape[1] + 2
    flat = np.pad(pixels, 1).ravel()
    steps = np.array([down * width + right for down, right in AROUND])
    weights = 1 << np.arange(8)
    edge = np.flatnonzero(flat)
    edge = edge[~flat[edge[:, np.newaxis] + steps].all(axis=1)]
    waiting = np.zeros(len(flat), bool)
    waiting[edge] = True
    idle = 0
    half = 0
    while idle < 2:
        codes = flat[edge[:, np.newaxis] + steps] @ weights
        going = _GOES[half][codes]
        gone = edge[going]
        half, idle = 1 - half, 0 if len(gone) else idle + 1
        if not len(gone):
            continue
        flat[gone] = False
        near = np.unique(gone[:, np.newaxis] + steps)
        near = near[flat[near] & ~waiting[near]]
        waiting[near] = True
        edge = np.concatenate([edge[~going], near])
    return flat.reshape(-1, width)[1:-1, 1:-1]


class Distances:
    """How far pixels of regions are from what is none.

    Args:
        pixels: Shape (height, width). What lies beyond its edges is no region.
    """

    def __init__(self, pixels: Flags) -> None:
        padded = np.pad(pixels, 1)
        rows = np.arange(len(padded))[:, np.newaxis]
        above = np.maximum.accumulate(np.where(padded, -1, rows), axis=0)
        below = np.minimum.accumulate(np.where(padded, len(padded), rows)[::-1], axis=0)[::-1]
        up, down = rows - above, below - rows
        self._upward = up <= down
        self._near = np.minimum(up, down).astype(np.int64)

    def __call__(self, rows: Integers, columns: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the squared distance from the nearest pixel of no region, and how far down and right that is.

        Args:
            rows: Of the pixels, all in regions or beside the image.
            columns: The same.
        """
        height, width = self._near.shape
        rows, columns = np.clip(rows + 1, 0, height - 1), np.clip(columns + 1, 0, width - 1)
        best = self._near[rows, columns] ** 2
        across = np.zeros(len(rows), np.int64)
        step = 0
        while len(best) and step**2 < best.max():
            step += 1
            for right in (step, -step):
                at = columns + right
                inside = (at >= 0) & (at < width)
                found = np.where(inside, self._near[rows, np.where(inside, at, 0)] ** 2, 0) + step**2
                closer = found < best
                best[closer], across[closer] = found[closer], right
        at = np.clip(columns + across, 0, width - 1)
        down = np.where(self._upward[rows, at], -1, 1) * self._near[rows, at]
        return best, down, across


class Measured(NamedTuple):
    """Where the middle of a region is at pixels of its line, and how wide it is there; n pixels.

    Attributes:
        radius: How far the pixels are from what is none of the region, in pixels.
        shift: x and y from the middle of each pixel to that of the region, shape (n, 2).
        width: In pixels.
    """

    radius: Floats
    shift: Floats
    width: Floats


def measured(pixels: Flags, rows: Integers, columns: Integers) -> Measured:
    """Measure regions at some of their pixels.

    A pixel in the middle has what is none of the region as far behind as ahead. Where the region is an even number
    of pixels wide, the middle is between two of them: so the distance is taken on the other side, too, from the
    pixel behind.

    Args:
        pixels: Shape (height, width).
        rows: Of the pixels.
        columns: The same.
    """
    distances = Distances(pixels)
    squared, down, right = distances(rows, columns)
    radius = np.sqrt(squared)
    away = -np.stack([down, right], axis=1) / radius[:, np.newaxis]
    steps = np.rint(away).astype(np.int64)
    height, width = pixels.shape
    at = np.stack([rows, columns], axis=1) + steps
    inside = ((at >= 0) & (at < (height, width))).all(axis=1)
    there = np.zeros(len(rows), bool)
    there[inside] = pixels[at[inside, 0], at[inside, 1]]
    behind = np.zeros(len(rows))
    behind[there] = np.sqrt(distances(at[there, 0], at[there, 1])[0])
    long = np.hypot(steps[:, 0], steps[:, 1])
    offset = np.where(there, (behind + long - radius) / 2, 0.0)
    shift = np.clip(offset, -0.75, 0.75)[:, np.newaxis] * away
    # Distances go to the middle of pixels: what is more than the width follows from how far apart their rows are,
    # seen so.
    more = np.abs(away).max(axis=1)
    return Measured(radius, shift[:, ::-1], radius + behind + np.where(there, long, more) - more)
