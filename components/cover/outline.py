"""Outlines of boxes and rasters on the tile grid, whose straight edges bend where their CRS is another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsp.shared.errors import RspError
from rsp.shared.mercator import AROUND, HALF, MAX_LATITUDE, RADIUS

Points = npt.NDArray[np.float64]

# Points along a side at first and at most. They are doubled until what lies between is straight to so many tiles.
FIRST, MOST, STRAIGHT = 16, 1 << 14, 1e-3

# Corners of the unit square, which stands for a box: counterclockwise, the first again at the end.
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], float)


def bent(place: Callable[[Points], Points], crs: Any, zoom: int, error: Callable[[str], RspError]) -> Any:
    """Return the polygon that a box is on the tile grid.

    Args:
        place: Where points of the unit square, shape (n, 2), are in the CRS of the box.
        crs: That CRS, as rasterio takes it.
        zoom: Zoom of the grid.
        error: Makes an error of what is wrong with the box.

    Returns:
        A polygon in units of tiles, y down. It may reach beyond the antimeridian; the pole that a box holds is
        replaced by the edge of the grid.

    Raises:
        RspError: as `error` makes it; the box lies where the CRS or web mercator is not defined.
    """
    count = FIRST
    while True:
        steps = np.arange(2 * count) / (2 * count)
        sides = [start + (end - start) * steps[:, np.newaxis] for start, end in pairwise(_CORNERS)]
        ring = np.concatenate([*sides, _CORNERS[:1]])
        metres = _unwrapped(_metres(place(ring), crs, error))
        tiles = (metres * (1, -1) + HALF) * ((1 << zoom) / AROUND)
        middles = (tiles[:-2:2] + tiles[2::2]) / 2
        if np.abs(middles - tiles[1:-1:2]).max() < STRAIGHT or count >= MOST:
            return shapely.Polygon(_closed(tiles, zoom))
        count *= 2


def _metres(points: Points, crs: Any, error: Callable[[str], RspError]) -> Points:
    """Return points in metres of EPSG:3857, those beyond its square on the edge of it."""
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        if CRS.from_user_input(crs).to_epsg() == 3857:
            return points
        longitudes, latitudes = map(np.array, transform(crs, "EPSG:4326", points[:, 0], points[:, 1]))
    except (RasterioError, ValueError) as reason:
        raise error(f"cannot be projected: {reason}") from reason
    if not np.isfinite([longitudes, latitudes]).all():
        raise error("lies, at least in part, outside the area of its CRS")
    if (latitudes > MAX_LATITUDE).all() or (latitudes < -MAX_LATITUDE).all():
        raise error(f"lies beyond {MAX_LATITUDE:.2f} degrees, where web mercator ends")
    y = RADIUS * np.log(np.tan(np.pi / 4 + np.radians(latitudes.clip(-MAX_LATITUDE, MAX_LATITUDE)) / 2))
    return np.column_stack([RADIUS * np.radians(longitudes), y])


def _unwrapped(metres: Points) -> Points:
    """Return a ring that goes on beyond the antimeridian, where its points jump from one side to the other."""
    if np.abs(np.diff(metres[:, 0])).max() > HALF:
        metres = np.column_stack([np.unwrap(metres[:, 0], period=AROUND), metres[:, 1]])
    return metres


def _closed(ring: Points, zoom: int) -> Points:
    """Return a ring closed; one around the world holds a pole, and is closed along that edge of the grid."""
    if abs(ring[-1, 0] - ring[0, 0]) < (1 << zoom) / 2:
        return ring
    edge = 0.0 if ring[:, 1].mean() < (1 << zoom) / 2 else float(1 << zoom)
    return np.concatenate([ring, [[ring[-1, 0], edge], [ring[0, 0], edge], ring[0]]])
