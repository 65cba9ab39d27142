"""Takes regions off an image of pixels that are too small, and fills holes that are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.bits import WORD, Bits
from rsp.shared.contours import Flags, Objects, trace
from rsp.shared.ground import scale
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.polygons import Grid

# Holes are filled only where they are no longer than this, in pixels: what lies beyond may not be seen whole.
LONGEST_HOLE = 24
# How many steps small regions and holes are looked for in a quick way.
FLOODED = 48

# Rows and columns of an image.
Window = tuple[slice, slice]
Floats = npt.NDArray[np.float64]


def without_small(
    pixels: Flags, least: float, margin: int, corner: tuple[int, int], grid: Grid
) -> tuple[Flags, int]:
    """Return regions without those that are too small, and with holes filled that are.

    Which these are must be the same for whoever sees them: one that is longer than the margin may not be seen
    whole, and so is not small.

    Args:
        pixels: A tile with a margin.
        least: In square metres on the ground.
        margin: The margin on each side, in pixels.
        corner: x and y of the first pixel of the tile, in pixels of the grid.
        grid: The grid.

    Returns:
        The regions, and how many that begin in the tile were too small.
    """
    if not least:
        return pixels, 0
    row = np.array([-margin, pixels.shape[0] - margin]) + corner[1]
    for doubtful in (_doubtful(pixels, least / float(_ground_area(row, grid).min())), None):
        # Of a region that is large, what is around its holes tells which they are.
        near = pixels if doubtful is None else pixels & doubtful.around().flags()
        if not near.any():
            return pixels, 0
        window = _window(near)
        regions = trace(near[window])
        rings, of = shapely.get_rings(regions, return_index=True)
        hole = np.append(False, of[1:] == of[:-1])
        holes = np.asarray(shapely.polygons(rings[hole]), object)
        firsts = np.add(shapely.get_coordinates(shapely.get_point(rings, 0)), [window[1].start, window[0].start])
        ground = _ground_area(firsts[:, 1] - margin + corner[1], grid)
        inside = shapely.area(holes)
        filled = (inside * ground[hole] < least) & _no_longer(holes, LONGEST_HOLE)
        areas = shapely.area(regions) + np.bincount(of[hole], inside * filled, len(regions))
        small = (areas * ground[~hole] < least) & _no_longer(regions, margin)
        starts = firsts[~hole]
        if doubtful is None:
            break
        flags = doubtful.flags()
        column, row = starts.astype(np.int64).T
        small &= flags[row, column]  # others are parts of what is large
        if (_with(pixels, holes[filled], window, True) | ~flags).all():
            break
        # The region around a hole may hang together farther away, or the hole is none: all of them are looked at.
    height, width = pixels.shape
    here = ((starts >= margin) & (starts < (width - margin, height - margin))).all(axis=1)
    # A region that goes takes along the holes that were to be filled; one in a hole goes before that is filled.
    goes = small[of[hole]]
    found = pixels
    for some, value in ((regions[small], False), (holes[filled & goes], False), (holes[filled & ~goes], True)):
        found = _with(found, some, window, value)
    return found, int((small & here).sum())


def _doubtful(pixels: Flags, least: float) -> Bits | None:
    """Return regions and holes that may have less than so many pixels; None where they take too long to find.

    What a square of so many pixels fits into is larger. This is only quicker than looking at all of them.
    """
    side = int(np.ceil(least**0.5))
    if side >= WORD:
        return None
    regions, others = Bits.of(pixels), Bits.of(~pixels)
    edge = np.zeros_like(pixels)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    # What reaches the edge of the image is no hole.
    beyond = Bits.of(edge).words & others.words
    large = regions.reached(regions.squares(side).words, FLOODED)
    outside = others.reached(others.squares(side).words | beyond, FLOODED)
    if large is None or outside is None:
        return None
    return regions.like((regions.words | others.words) ^ (large | outside))


def _window(pixels: Flags) -> Window:
    """Return the rows and columns from the first to the last pixel that is set."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _with(pixels: Flags, regions: Objects, window: Window, value: bool) -> Flags:
    """Return an image with a value for the pixels in some regions, whose places are those in a window of it."""
    if not len(regions):
        return pixels
    found = pixels.copy()
    part = found[window]
    part[_painted(regions, part.shape)] = value
    return found


def _painted(regions: Objects, shape: tuple[int, ...]) -> Flags:
    """Return which pixels lie in regions that are made of pixels, and whose rings turn as those of `trace` do."""
    rings, _ = shapely.get_rings(regions, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = points.astype(np.int64)
    upright = np.flatnonzero((ring[1:] == ring[:-1]) & (points[1:, 0] == points[:-1, 0]))
    x, one, other = points[upright, 0], points[upright, 1], points[upright + 1, 1]
    first, rows = np.minimum(one, other), np.abs(other - one)
    down = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    # Along a row, what goes down is the western edge of a region, or the eastern one of a hole in it.
    height, width = shape
    places = (np.repeat(first, rows) + down) * (width + 1) + np.repeat(x, rows)
    crossed = np.zeros((height, width + 1), np.int8)
    np.add.at(crossed.reshape(-1), places, np.repeat(np.sign(other - one), rows).astype(np.int8))
    return (np.cumsum(crossed, axis=1, dtype=np.int8) != 0)[:, :-1]


def _ground_area(y: Floats, grid: Grid) -> Floats:
    """Return the area of pixels on the ground, in square metres, by their rows in the grid."""
    side = AROUND / (grid.size << grid.zoom)
    found: Floats = side**2 / scale(HALF - y * side).prod(axis=1)
    return found


def _no_longer(polygons: Objects, most: int) -> Flags:
    west, north, east, south = shapely.bounds(polygons).reshape(-1, 4).T
    return np.asarray(np.maximum(east - west, south - north) <= most)
