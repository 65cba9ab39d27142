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

from rsp.shared.bits import LAST, ONE, Bits, Words
from rsp.shared.contours import Flags, Integers

Floats = npt.NDArray[np.float64]

# Where fewer words than one of so many have changed, they are looked at by themselves.
FEW = 10

# The neighbours of a pixel, clockwise from the north: (down, right).
AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def thinned(pixels: Flags) -> Flags:
    """Return what is left of regions when they are thinned: lines of one pixel, connected as the regions are.

    Args:
        pixels: Shape (height, width). What lies beyond its edges is no region.
    """
    image = Bits.of(pixels)
    inner = len(image.words) - 2 * image.across
    before = changed = np.arange(inner) + image.across
    half = 0
    while len(before) or len(changed):
        if len(before) + len(changed) > len(image.words) // FEW:
            found = _half(image, half)
        else:
            found = _half_near(image, np.concatenate([before, changed]), half)
        half, before, changed = 1 - half, changed, found
    return image.flags()


def _half(image: Bits, half: int) -> Integers:
    """Let all pixels go that do in a half of a round; return the words that have changed."""
    words, across = image.words, image.across
    west, east = image.west(), image.east()
    above, here, below = slice(None, -2 * across), slice(across, -across), slice(2 * across, None)
    going = _going(
        words[here], words[above], words[below], west[here], east[here],
        west[above], east[above], west[below], east[below], half,
    )  # fmt: skip
    words[here] ^= going
    return np.flatnonzero(going != 0) + across


def _half_near(image: Bits, changed: Integers, half: int) -> Integers:
    """Do the same where only what is beside some words, or in them, can go."""
    words, across = image.words, image.across
    rows = across * np.array([-1, 0, 1])
    near = np.zeros(len(words), bool)
    for steps in (rows, [-1, 0, 1]):
        near[(changed[:, np.newaxis] + steps) % len(words)] = True
        changed = np.flatnonzero(near)
    some = changed[(changed >= across) & (changed < len(words) - across)]
    lines = []
    for row in rows:
        before, here, after = (words.take(some + (row + step), mode="wrap") for step in (-1, 0, 1))
        lines.append((here, (here << ONE) | (before >> LAST), (here >> ONE) | (after << LAST)))
    (north, north_west, north_east), (here, west, east), (south, south_west, south_east) = lines
    going = _going(here, north, south, west, east, north_west, north_east, south_west, south_east, half)
    words[some] ^= going
    return some[going != 0]


def _going(
    here: Words, north: Words, south: Words, west: Words, east: Words,
    north_west: Words, north_east: Words, south_west: Words, south_east: Words, half: int,
) -> Words:  # fmt: skip
    """Return which pixels go in one or the other half of a round, from them and those around them.

    These are the conditions of A1, C(p) = 1, 2 <= N(p) <= 3, and the one of the half. The second one is written
    shorter than there: as what it says where the others hold.
    """
    if half:  # the first one turned around
        north, south, west, east = south, north, east, west
        north_west, south_east, north_east, south_west = south_east, north_west, south_west, north_east
    one = (north_west | north, north_east | east, south_east | south, south_west | west)
    begins = (~north & one[1], ~east & one[2], ~south & one[3], ~west & one[0])
    found: Words = np.bitwise_xor(begins[0], begins[1])
    found ^= begins[2]
    found ^= begins[3]
    stays: Words = np.bitwise_and(begins[0], begins[1])  # only one of them: three are odd, too
    stays |= begins[2] & begins[3]
    stays |= (south | south_west | ~north_west) & west
    stays |= one[1] & one[2] & north_west & south_west  # all around but the west: N(p) is 4
    # Two that are straight, or two diagonal ones beside each other: N(p) is 2 or more.
    found &= ((north | south) & (east | west)) | ((north_east | south_west) & (north_west | south_east))
    found &= here
    found &= ~stays
    return found


class Distances:
    """How far pixels of regions are from what is none.

    Args:
        pixels: Shape (height, width). What lies beyond its edges is no region.
    """

    def __init__(self, pixels: Flags) -> None:
        self.pixels = pixels
        padded = np.pad(pixels, 1)
        width = padded.shape[1]
        # From row to row, downwards and upwards side by side: how far it is to the last pixel that is none.
        both = np.concatenate([padded, padded[::-1]], axis=1).astype(np.int16)
        last = both[0]
        for row, inside in zip(both[1:], -both[1:], strict=True):
            row += last & inside
            last = row
        up, down = both[:, :width], both[::-1, width:]
        self._upward = up <= down
        self._near = np.minimum(up, down)

    def __call__(self, rows: Integers, columns: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the squared distance from the nearest pixel of no region, and how far down and right that is.

        Args:
            rows: Of the pixels, all in regions or beside the image.
            columns: The same.
        """
        height, width = self._near.shape
        rows, columns = np.clip(rows + 1, 0, height - 1), np.clip(columns + 1, 0, width - 1)
        places = rows * width + columns
        near = self._near.ravel()
        best = near[places].astype(np.int64) ** 2
        across = np.zeros(len(rows), np.int64)
        # Those that something farther to the side may be nearer to: it is in the image, since its edge is nearer.
        some = np.flatnonzero(best > 1)
        step = 0
        while len(some):
            step += 1
            ours, least = places[some], best[some]
            for right in (step, -step):
                found = near[ours + right].astype(np.int64) ** 2 + step**2
                closer = found < least
                least[closer], across[some[closer]] = found[closer], right
            best[some] = least
            some = some[least > (step + 1) ** 2]
        places += across
        down = np.where(self._upward.ravel()[places], -1, 1) * near[places].astype(np.int64)
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


def measured(distances: Distances, rows: Integers, columns: Integers) -> Measured:
    """Measure regions at some of their pixels.

    A pixel in the middle has what is none of the region as far behind as ahead. Where the region is an even number
    of pixels wide, the middle is between two of them: so the distance is taken on the other side, too, from the
    pixel behind.

    Args:
        distances: Those in the image.
        rows: Of the pixels.
        columns: The same.
    """
    squared, down, right = distances(rows, columns)
    radius = np.sqrt(squared)
    away = -np.stack([down, right], axis=1) / radius[:, np.newaxis]
    steps = np.rint(away).astype(np.int64)
    height, width = distances.pixels.shape
    at = np.stack([rows, columns], axis=1) + steps
    inside = ((at >= 0) & (at < (height, width))).all(axis=1)
    there = np.zeros(len(rows), bool)
    there[inside] = distances.pixels[at[inside, 0], at[inside, 1]]
    behind = np.zeros(len(rows))
    behind[there] = np.sqrt(distances(at[there, 0], at[there, 1])[0])
    long = np.hypot(steps[:, 0], steps[:, 1])
    offset = np.where(there, (behind + long - radius) / 2, 0.0)
    shift = np.clip(offset, -0.75, 0.75)[:, np.newaxis] * away
    # Distances go to the middle of pixels: what is more than the width follows from how far apart their rows are,
    # seen so.
    more = np.abs(away).max(axis=1)
    return Measured(radius, shift[:, ::-1], radius + behind + np.where(there, long, more) - more)
