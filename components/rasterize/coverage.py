"""How many polygons cover each pixel of a tile, by scanning rows: all polygons of a tile at once, in arrays.

Polygons become edges in pixels of a block of tiles, each with a sign: +1 where a row that crosses it from the
left enters its polygon, -1 where it leaves. The signs of what lies to the left of a pixel sum to the number of
polygons that cover it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Steps = npt.NDArray[np.int32]  # enough for twice the pixels of a tile of 4096, and quick to sort

# So many crossings of rows and edges are worked out at a time.
MANY = 1 << 20

# Parts of a pixel that are rounding, where a polygon touches one.
ROUNDING = 1e-6

_POLYGON = 3


class Edges(NamedTuple):
    """Edges of polygons, in pixels of a block of tiles, x to the east and y to the south.

    Attributes:
        x1: Of the upper end, shape (n,), as the others.
        y1: Of the upper end.
        x2: Of the lower end.
        y2: Of the lower end. Horizontal edges are kept only where touched pixels are asked for.
        sign: +1 where the polygon begins to the right of the edge, -1 where it ends.
        left: Where the whole outline begins in the west.
        right: Where it ends in the east.
    """

    x1: Floats
    y1: Floats
    x2: Floats
    y2: Floats
    sign: npt.NDArray[np.int16]
    left: Floats
    right: Floats

    def take(self, chosen: npt.NDArray[np.bool_] | slice) -> Edges:
        """Return some of them."""
        return Edges._make(column[chosen] for column in self)


def edges_of(
    polygons: npt.NDArray[np.object_], west: float, north: float, resolution: float, *, touched: bool = False
) -> Edges:
    """Return the edges of valid polygons.

    Args:
        polygons: Polygons and MultiPolygons in metres of EPSG:3857.
        west: Of the upper left corner of the block, in the same metres.
        north: Likewise.
        resolution: Metres a pixel.
        touched: Keep horizontal edges, and take ends within `ROUNDING` of the edge of a pixel to lie on it, for
            `runs_of` with `touched`.
    """
    points, ring, hole = _rings_of(polygons)
    x, y = (points[:, 0] - west) / resolution, (north - points[:, 1]) / resolution
    if touched:
        for axis in (x, y):
            whole = np.rint(axis)
            np.copyto(axis, whole, where=np.abs(axis - whole) < ROUNDING)
    starts = np.searchsorted(ring, np.arange(len(hole)))
    # The sign of a ring: which way it turns, seen with y to the south, and whether it is a hole. Its first point
    # is the origin, for digits' sake.
    dx, dy = x - x[starts][ring], y - y[starts][ring]
    turned = np.add.reduceat(np.append(dx[:-1] * dy[1:] - dx[1:] * dy[:-1], 0.0), starts) if len(hole) else dx
    clockwise = np.where((turned > 0) != hole, 1, -1).astype(np.int16)
    left, right = (part.reduceat(x, starts) if len(hole) else x for part in (np.minimum, np.maximum))

    within = np.flatnonzero(ring[1:] == ring[:-1])
    down = y[within + 1] > y[within]
    level = y[within + 1] == y[within]
    if not touched:
        within, down = within[~level], down[~level]
    upper, lower = np.where(down, within, within + 1), np.where(down, within + 1, within)
    ring = ring[within]
    return Edges(
        x[upper], y[upper], x[lower], y[lower],
        np.where(down, -clockwise[ring], clockwise[ring]), left[ring], right[ring],
    )  # fmt: skip


def _rings_of(polygons: npt.NDArray[np.object_]) -> tuple[Floats, Indices, npt.NDArray[np.bool_]]:
    """Return the points of all outlines, which outline each belongs to, and which outlines are those of holes."""
    plain = (shapely.get_type_id(polygons) == _POLYGON) & (shapely.get_num_interior_rings(polygons) == 0)
    points, ring = shapely.get_coordinates(polygons[plain], return_index=True)
    count = int(plain.sum())
    if count == len(polygons):
        return points, ring, np.zeros(count, bool)
    rings, part = shapely.get_rings(shapely.get_parts(polygons[~plain]), return_index=True)
    others, theirs = shapely.get_coordinates(rings, return_index=True)
    hole = np.zeros(count + len(rings), bool)
    hole[count + 1 :] = part[1:] == part[:-1]
    return np.concatenate([points, others]), np.concatenate([ring, theirs + count]), hole


class Runs(NamedTuple):
    """Runs of pixels that are covered, of the pixels of a tile row after row; disjoint, in order.

    Attributes:
        starts: The first pixel of each.
        ends: The one after its last.
    """

    starts: Indices
    ends: Indices

    def bits(self, size: int) -> npt.NDArray[np.uint8]:
        """Return a bit a pixel, eight to a byte, the first the highest; the end is filled up with zeros."""
        # Bits where a run starts or ends are set in words of 64; then each bit becomes the sum of those before it,
        # without carrying: in its word by six shifts, and with the words before it.
        words = np.zeros(-(-size * size // 64) + 1, np.uint64)
        for ends in self:
            np.bitwise_xor.at(words, ends >> 6, _HIGHEST >> (ends & 63).astype(np.uint64))
        for shift in _SHIFTS:
            words ^= words >> shift
        odd = np.bitwise_xor.accumulate((words & _LOWEST).astype(np.uint8))
        words[1:] ^= np.where(odd[:-1] != 0, _FULL, _EMPTY)
        return words[:-1].astype(">u8").view(np.uint8)[: -(-size * size // 8)]

    @property
    def pixels(self) -> int:
        """How many pixels they are."""
        return int((self.ends - self.starts).sum())


_HIGHEST, _LOWEST, _FULL, _EMPTY = np.array([1 << 63, 1, (1 << 64) - 1, 0], np.uint64)
_SHIFTS = tuple(np.array([1, 2, 4, 8, 16, 32], np.uint64))


def runs_of(edges: Edges, column: int, row: int, size: int, *, least: int = 1, touched: bool = False) -> Runs:
    """Return the pixels of a tile that are covered by at least so many polygons.

    A polygon covers a pixel where its centre lies in it, as in GDAL. A centre on an edge counts to what is to the
    left of the edge, or below one that is level, so that no pixel belongs to two polygons that share an edge.

    Args:
        edges: Of the polygons, in pixels of a block.
        column: Of the block, where the tile starts.
        row: Likewise.
        size: Side of the tile.
        least: How many polygons.
        touched: A polygon covers all pixels of which it has a part. Only for `least` of 1: a pixel through which
            its outline passes counts more than once.
    """
    near = edges.take(
        (edges.y2 >= row) & (edges.y1 <= row + size) & (edges.right >= column) & (edges.left < column + size)
    )  # fmt: skip
    near = near._replace(x1=near.x1 - column, x2=near.x2 - column, y1=near.y1 - row, y2=near.y2 - row)
    found = []
    for start in range(0, len(near.sign), max(1, MANY // size)):
        some = near.take(slice(start, start + max(1, MANY // size)))
        found.append(_entered(some, size))
        if touched:
            found += _touched(some, size)
    # Where something begins and something ends at once it begins first, so that runs that meet are one.
    steps = np.sort(np.concatenate(found)) if found else np.empty(0, np.int32)
    sign = 1 - 2 * (steps & 1)
    after = np.cumsum(sign, dtype=np.int32)
    met = after >= least
    changes = np.flatnonzero(met != (after - sign >= least))
    places = (steps[changes] >> 1).astype(np.intp)
    starts, ends = places[::2], places[1::2]
    real = ends > starts
    return Runs(starts[real], ends[real])


def _entered(edges: Edges, size: int) -> Steps:
    """Return where polygons begin (even) and end (odd), of each row that an edge crosses: twice the pixel."""
    first = np.clip(np.ceil(edges.y1 - 0.5), 0, size).astype(np.intp)
    last = np.clip(np.ceil(edges.y2 - 0.5), 0, size).astype(np.intp)
    edge, row = _rows(first, last)
    x1, y1 = edges.x1[edge], edges.y1[edge]
    x = (row + 0.5 - y1) * (edges.x2[edge] - x1) / (edges.y2[edge] - y1) + x1
    column = np.clip(np.floor(x + 0.5), 0, size).astype(np.intp)
    return (row * size + column << 1 | (edges.sign[edge] < 0)).astype(np.int32)


def _touched(edges: Edges, size: int) -> list[Steps]:
    """Return the same of all pixels through whose inside an edge passes."""
    first = np.clip(np.floor(edges.y1), 0, size).astype(np.intp)
    last = np.clip(np.ceil(edges.y2), 0, size).astype(np.intp)
    edge, row = _rows(first, last)
    x1, y1, x2, y2 = (column[edge] for column in edges[:4])
    with np.errstate(divide="ignore", invalid="ignore"):  # of horizontal edges neither is taken
        slope = (x2 - x1) / (y2 - y1)
        enters = np.where(y1 >= row, x1, (row - y1) * slope + x1)
        leaves = np.where(y2 <= row + 1, x2, (row + 1 - y1) * slope + x1)
    left = np.clip(np.floor(np.minimum(enters, leaves)), 0, size).astype(np.intp)
    right = np.clip(np.ceil(np.maximum(enters, leaves)), 0, size).astype(np.intp)
    met = right > left
    start = row[met] * size
    return [(start + left[met] << 1).astype(np.int32), (start + right[met] << 1 | 1).astype(np.int32)]


def _rows(first: Indices, last: Indices) -> tuple[Indices, Indices]:
    """Return each row from `first` to before `last` of each edge, with the number of the edge."""
    count = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(count)), count)
    return edge, np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
