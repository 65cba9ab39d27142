"""Where the tiles of a raster lie, and how much of it they are cut out of at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import rasterio

from rsp.shared.errors import RasterError
from rsp.shared.mercator import AROUND, MAX_LATITUDE
from rsp.shared.rasters import MERCATOR, geographic_bounds, natural_grid, open_raster
from rsp.shared.tiles import Tile, tile_block

MAX_SIDE = (1 << 31) - 1  # pixels that GDAL can count in a row
# Bytes of blocks that stay decoded, in each process: at least, and at most.
LEAST_CACHE, MOST_CACHE = 32 << 20, 256 << 20


@dataclass(frozen=True)
class Footprint:
    """Where the tiles of a raster lie.

    Attributes:
        blocks: The first and the last tile of each block of tiles: of one, or of two beside the antimeridian.
        cache: Bytes that its blocks take that a row of tiles is cut out of, decoded.
    """

    blocks: tuple[tuple[Tile, Tile], ...]
    cache: int


def footprint(path: str, zoom: int, tile_size: int) -> Footprint:
    """Return where the tiles are that the bounding box of a raster meets.

    Raises:
        RasterError: it cannot be read, or lies outside the grid of tiles.
    """
    with open_raster(path) as raster:
        west, south, east, north = geographic_bounds(raster)
        if not np.isfinite([west, south, east, north]).all():
            raise RasterError(f"{path} lies, at least in part, where {MERCATOR} is not defined")
        south, north = max(south, -MAX_LATITUDE), min(north, MAX_LATITUDE)
        if south >= north:
            raise RasterError(f"{path} lies beyond the latitudes of the tile grid ({MAX_LATITUDE:.2f} degrees)")
        blocks = tuple(tile_block(left, south, right, north, zoom) for left, right in _around(west, east))
        if max(last.x - first.x + 1 for first, last in blocks) * tile_size > MAX_SIDE:
            raise RasterError(f"{path} has more than {MAX_SIDE} pixels in a row at zoom {zoom}; cut it into parts")
        return Footprint(blocks, _cache(raster, blocks[0], tile_size))


def _around(west: float, east: float) -> list[tuple[float, float]]:
    """Return west and east of a box that may cross the antimeridian, as boxes from -180 to 180 degrees."""
    if -180 <= west <= east <= 180:
        return [(west, east)]
    if west <= east and east - west >= 360:
        return [(-180.0, 180.0)]
    west, east = (west + 180) % 360 - 180, (east + 180) % 360 - 180
    return [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]


def _cache(raster: rasterio.DatasetReader, block: tuple[Tile, Tile], tile_size: int) -> int:
    """Return how many bytes of a raster should stay decoded so that a row of tiles needs each of its blocks once.

    They are as wide as the raster. They are as high as two tiles, since blocks stand out, and as much more as the
    raster is bent: by so much the tiles around it are higher than itself.
    """
    if raster.transform.b or raster.transform.d:  # turned: a row runs across all of it
        return MOST_CACHE
    first, last = block
    side = AROUND / (1 << first.z) / natural_grid(raster)[0].a  # of a tile, in pixels of the raster
    bent = max(0.0, side * (last.y - first.y - 1) - raster.height)
    # An overview has at least the resolution of the tiles, and at most twice that.
    shrink = max(1.0, side / (2 * tile_size)) if raster.overviews(1) else 1.0
    tallest = max(height for height, _ in raster.block_shapes)
    height = min(2 * side + bent, raster.height) / shrink + tallest
    pixel = sum(np.dtype(kind).itemsize for kind in raster.dtypes)
    needed = height * raster.width / shrink * pixel
    return int(min(max(needed, LEAST_CACHE), MOST_CACHE))
