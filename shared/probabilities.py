"""Tile sets of probabilities, as `rsp predict` writes them, summed up over the objects of a tile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.errors import RspError, TileError
from rsp.shared.images import Array
from rsp.shared.tiles import Tile
from rsp.shared.tileset import TileReader

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]

# Rows of edges that are followed at once.
MANY = 1 << 20


class Zone(NamedTuple):
    """Edges of objects in a tile, in parts of its side: x to the east, y to the south.

    Attributes:
        tile: The tile.
        bands: The band of the class of each object.
        owner: The place of the object of each edge among the bands.
        edges: x and y where each begins, and where it ends, shape (4, n); outlines run counter-clockwise.
    """

    tile: Tile
    bands: Integers
    owner: Integers
    edges: Floats


class Sums(NamedTuple):
    """What the pixels of each object in a tile sum to, and how many they are; the objects' shares of a pixel."""

    values: Floats
    pixels: Floats
    side: int


def read_planes(reader: TileReader, tile: Tile, classes: int) -> Array:
    """Return the probabilities of a tile, uint8 of shape (size, size, classes), 255 for 1.

    Raises:
        TileError: the tile cannot be read, or holds no probabilities of so many classes.
    """
    try:
        image = reader.image(tile)
    except RspError as error:
        raise TileError(f"{reader.path}: {error}") from None
    height, width, bands = image.shape
    if bands != classes or image.dtype != np.uint8 or height != width:
        raise TileError(
            f"{reader.path}: expected square tiles of probabilities with {classes} bands of uint8, one for each "
            f"class, got {width}x{height} with {bands} of {image.dtype}"
        )
    return image


def sums_of(zone: Zone, image: np.ndarray) -> Sums:
    """Return the sums of a tile's pixels over objects: the centre of a pixel says where it belongs.

    Along a row, what lies between two edges is the difference of what lies to the west of each: so it is enough to
    know the sums from the west, and to add them up with the sign of each edge.

    Args:
        zone: The objects.
        image: uint8, shape (size, size, bands).
    """
    size = image.shape[0]
    used, band = np.unique(zone.bands, return_inverse=True)
    west = np.zeros((len(used), size, size + 1), np.int64)
    np.cumsum(image[:, :, used].transpose(2, 0, 1), axis=2, out=west[:, :, 1:])
    values, pixels = np.zeros(len(zone.bands)), np.zeros(len(zone.bands))
    step = max(1, MANY // size)
    for start in range(0, len(zone.owner), step):
        x1, y1, x2, y2 = zone.edges[:, start : start + step] * size
        owner = zone.owner[start : start + step]
        first = np.clip(np.ceil(np.minimum(y1, y2) - 0.5), 0, size).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y1, y2) - 0.5), 0, size).astype(np.int64)
        rows = np.maximum(last - first, 0)
        edge = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - first, rows)
        x = (row + 0.5 - y1[edge]) * ((x2 - x1)[edge] / (y2 - y1)[edge]) + x1[edge]
        column = np.clip(np.floor(x + 0.5), 0, size).astype(np.int64)
        # Outlines run counter-clockwise: what goes up, to the north, has its object to the west.
        sign = np.where(y2 < y1, 1, -1)[edge]
        of = owner[edge]
        values += np.bincount(of, sign * west[band[of], row, column], len(values))
        pixels += np.bincount(of, sign * column, len(pixels))
    return Sums(values, pixels, size)


def edges_of(polygons: Objects) -> tuple[Integers, Floats]:
    """Return the edges that may cross a row of pixels of a tile, and the place of the polygon of each.

    Args:
        polygons: In parts of the side of the tile, x to the east and y to the south. Outlines run as they do on a
            map that is counter-clockwise, with the polygon on the left, and holes the other way.
    """
    parts, of = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    at = np.flatnonzero(ring[1:] == ring[:-1])
    edges = np.concatenate([points[at].T, points[at + 1].T])
    _, y1, _, y2 = edges
    crossing = (y1 != y2) & (np.maximum(y1, y2) > 0) & (np.minimum(y1, y2) < 1)
    return of[part[ring[at]]][crossing], edges[:, crossing]
