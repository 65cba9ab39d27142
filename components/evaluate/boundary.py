"""Boundary IoU: how well masks follow the outlines of labels, whatever lies deep inside of them.

Of each class only the pixels count that are no farther from its outline than a distance, in the label as in the
mask (B. Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, 2021). Distances are
those of erosion by 3 x 3 pixels, as there.

What lies beyond the tiles that are evaluated, or is ignored, is unknown: nothing has an outline there, so a
building that the edge of the area cuts in two has none along that edge.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import TileError, UsageError
from rsp.shared.images import Mask
from rsp.shared.metrics import IGNORE, Counts
from rsp.shared.tiles import Tile, bounds_mercator

Plane = npt.NDArray[np.bool_]

_WIDTH = re.compile(r"(\d+(?:\.\d+)?)(px|m|%|)")


class Width(NamedTuple):
    """How far from an outline a boundary reaches.

    Attributes:
        amount: A number of the unit.
        unit: `px`; `m` on the ground; or `%` of the diagonal of a tile.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Width:
        """Parse `7`, `7px`, `0.5m` or `2%`; raise `UsageError` where it is none of them."""
        found = _WIDTH.fullmatch(text.strip())
        amount, unit = (float(found[1]), found[2] or "px") if found else (0.0, "")
        if not amount or (unit == "px" and amount != int(amount)) or (unit == "%" and amount > 50):
            raise UsageError(
                "--boundary is a number of pixels (7), metres on the ground (0.5m), or a share of the diagonal of "
                f"a tile (2%), up to 50%; got {text!r}"
            )
        return cls(amount, unit)

    def pixels(self, tile: Tile, height: int, width: int) -> int:
        """Return the distance in pixels of a tile, at least 1.

        Raises:
            TileError: it is as wide as the tile itself.
        """
        found = self.amount
        if self.unit == "%":
            found *= math.hypot(height, width) / 100
        elif self.unit == "m":
            from rsp.shared.ground import scale

            west, south, east, north = bounds_mercator(tile)
            # Metres of EPSG:3857 a metre on the ground; east and north differ by 0.7 % at most.
            stretched = float(scale(np.array([(south + north) / 2])).mean())
            found *= stretched * width / (east - west)
        distance = max(1, round(found))
        if distance >= min(height, width):
            raise TileError(
                f"a boundary of {distance} pixels is as wide as the tile, which has {width}x{height}; give a "
                "lower --boundary"
            )
        return distance

    def __str__(self) -> str:
        """Return what `parse` takes."""
        return f"{self.amount:g}{self.unit}"


def boundary_counts(label: Mask, mask: Mask, classes: int, distance: int) -> Counts:
    """Count the pixels of the boundaries of a tile.

    Args:
        label: Class indices of a tile and, on each side, so many pixels of its neighbours as the distance has;
            `IGNORE` where nothing is known. Shape (height + 2 * distance, width + 2 * distance).
        mask: Likewise; what it says where the label is `IGNORE` is not looked at.
        classes: How many classes there are, K.
        distance: How far from the outline a boundary reaches, in pixels.

    Returns:
        Shape (K, 2): for each class the pixels in the boundary of both, and those in the boundary of either. Their
        sums over the tiles of an area give its boundary IoU.
    """
    unknown = label == IGNORE
    found = np.zeros((classes, 2), np.int64)
    inner = np.s_[distance:-distance, distance:-distance]
    for index in range(classes):
        ours, theirs = label == index, (mask == index) & ~unknown
        edges = [_boundary(plane, unknown, distance) for plane in (ours, theirs) if plane[inner].any()]
        if len(edges) == 2:
            found[index] = np.count_nonzero(edges[0] & edges[1]), np.count_nonzero(edges[0] | edges[1])
        elif edges:
            found[index, 1] = np.count_nonzero(edges[0])
    return found


def _boundary(plane: Plane, unknown: Plane, distance: int) -> Plane:
    """Return which pixels of a class have something else within a distance; without the margin of that width."""
    deep = plane | unknown
    for axis in (0, 1):
        # A run of n pixels that are all set is two shorter ones that overlap.
        run, length = 1, 2 * distance + 1
        while run < length:
            step = min(run, length - run)
            deep = deep[step:] & deep[:-step] if axis == 0 else deep[:, step:] & deep[:, :-step]
            run += step
    inner: Plane = plane[distance:-distance, distance:-distance]
    return inner & ~deep
