"""From the pixels of one mask to polygons, and from polygons of pixels to features on the ground.

Polygons are in pixels of the whole grid until they are finished: x = tile.x * size + column, y down. These are
whole numbers, so that parts of a feature in neighbouring tiles fit together exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from rasterio.session import DummySession
from shapely.geometry import Polygon, shape
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from rsp.shared.errors import TileError
from rsp.shared.features import DECIMALS
from rsp.shared.images import Mask
from rsp.shared.tiles import Tile

Floats = npt.NDArray[np.float64]

# WGS 84.
SEMI_MAJOR = 6378137.0
ECCENTRICITY = 0.0818191908426215


@dataclass(frozen=True)
class Grid:
    """The pixels of all tiles of a zoom."""

    zoom: int
    size: int

    def to_lonlat(self, pixels: Floats) -> Floats:
        """Return degrees, by web mercator (so exact at every zoom, not linear inside a tile)."""
        turns = pixels / (self.size << self.zoom)
        latitude = np.arctan(np.sinh(np.pi * (1 - 2 * turns[:, 1])))
        return np.column_stack([turns[:, 0] * 360 - 180, np.degrees(latitude)])


@dataclass(frozen=True)
class Feature:
    """A feature on the ground.

    Attributes:
        polygon: In degrees, rounded as it is written, outline counter-clockwise.
        area: In square metres of the ellipsoid.
        start: The tile where it starts: of its tiles the northernmost, of these the westernmost.
        tiles: How many tiles it lies in.
    """

    polygon: Polygon
    area: float
    start: Tile
    tiles: int

    @property
    def order(self) -> tuple[int, int, tuple[float, ...], str, int]:
        """What sorts features: the tile where they start, their bounds, and what tells two apart at last."""
        ending = hashlib.blake2b(shapely.to_wkb(self.polygon), digest_size=8).hexdigest()
        return self.start.y, self.start.x, self.polygon.bounds, ending, self.tiles

    def properties(self, title: str) -> dict[str, Any]:
        """Return the properties that it has as GeoJSON, where the class has this title."""
        return {
            "class": title, "x": self.start.x, "y": self.start.y, "z": self.start.z, "tiles": self.tiles,
            "area_m2": round(self.area, 2),
        }  # fmt: skip


def polygons_of(mask: Mask, value: int, tile: Tile, size: int) -> list[Polygon]:
    """Return the regions of a value in a mask, connected by edges, in pixels of a grid with tiles of `size`."""
    found = mask == value
    if not found.any():
        return []
    height, width = mask.shape
    transform = rasterio.Affine(size / width, 0, tile.x * size, 0, size / height, tile.y * size)
    polygons: list[Polygon] = []
    # Where the environment has credentials for S3, rasterio would open a session of boto3 at every call.
    with rasterio.Env(DummySession()):
        regions = rasterio.features.shapes(found.astype(np.uint8), mask=found, connectivity=4, transform=transform)
        for geometry, _ in regions:
            polygons += parts(shape(geometry))
    return polygons


def parts(geometry: BaseGeometry) -> list[Polygon]:
    """Return the polygons of a geometry, made valid; lines and points that this leaves are dropped."""
    if not geometry.is_valid:
        geometry = shapely.make_valid(geometry)
    if isinstance(geometry, Polygon):
        return [] if geometry.is_empty else [geometry]
    return [polygon for part in getattr(geometry, "geoms", ()) for polygon in parts(part)]


def finish(
    pieces: list[Polygon], tiles: set[Tile], grid: Grid, tolerance: float, min_area: float
) -> list[Feature]:
    """Join the pieces of a feature, simplify it, and bring it to the ground.

    Args:
        pieces: Polygons in pixels of the grid that touch along edges.
        tiles: The tiles in which they lie.
        grid: The grid.
        tolerance: How far, in pixels, the outline may move.
        min_area: What is smaller, in square metres, is dropped.

    Returns:
        The feature; none where it is too small; more than one only where joining leaves parts that touch in a
        point.
    """
    joined = parts(shapely.union_all(pieces)) if len(pieces) > 1 else pieces
    start = min(tiles, key=lambda tile: (tile.y, tile.x))
    features = []
    for polygon in joined:
        for placed in _placed(polygon, grid, tolerance):
            area = ground_area(placed)
            if area >= min_area:
                features.append(Feature(placed, area, start, len(tiles)))
    return features


def mask_features(
    mask: Mask,
    titles: Sequence[str],
    tile: Tile,
    *,
    tolerance: float = 1.0,
    min_area: float = 1.0,
    max_outline: int | None = None,
) -> Iterator[tuple[Polygon, dict[str, Any]]]:
    """Yield the features of a lone mask and their properties, class by class, as `rsp vectorize` writes them.

    Args:
        mask: Shape (height, width).
        titles: Of the classes. The first is the background, which has no features.
        tile: Where the mask lies.
        tolerance: How far, in pixels, outlines may move.
        min_area: What is smaller, in square metres, is left out.
        max_outline: How long, in pixels, the outlines of all classes may be together. The time that this takes
            follows them, and those of noise are as long as the mask is large.

    Raises:
        TileError: they are longer.
    """
    outline = sum(int(np.count_nonzero(np.diff(mask.astype(np.int16), axis=axis))) for axis in (0, 1))
    if max_outline is not None and outline > max_outline:
        raise TileError(f"the outlines of the mask have {outline} pixels, and the limit is {max_outline}")
    grid = Grid(tile.z, mask.shape[1])
    for value, title in enumerate(titles[1:], 1):
        found: list[Feature] = []
        for polygon in polygons_of(mask, value, tile, grid.size):
            found += finish([polygon], {tile}, grid, tolerance, min_area)
        for feature in sorted(found, key=lambda feature: feature.polygon.bounds):
            yield feature.polygon, feature.properties(title)


def _placed(polygon: Polygon, grid: Grid, tolerance: float) -> list[Polygon]:
    """Simplify a polygon and bring it to degrees; what would become invalid is simplified less."""
    turned = _from_a_corner(polygon)
    for allowed in (tolerance, tolerance / 2, 0.0):
        simple: Any = shapely.simplify(turned, allowed, preserve_topology=True)
        placed = shapely.transform(simple, lambda pixels: np.round(grid.to_lonlat(pixels), DECIMALS))
        if placed.is_valid and not placed.is_empty:
            return [orient(placed)]
    return [orient(part) for part in parts(placed)]


def _from_a_corner(polygon: Polygon) -> Polygon:
    """Return the same polygon whose rings start at the vertex farthest from their middle.

    Simplification keeps the first vertex of a ring: it had better be a corner than somewhere on an edge.
    """

    def turn(ring: Any) -> Floats:
        points: Floats = shapely.get_coordinates(ring)[:-1]
        first = int(np.argmax(((points - points.mean(axis=0)) ** 2).sum(axis=1)))
        return np.roll(points, -first, axis=0)

    return Polygon(turn(polygon.exterior), [turn(ring) for ring in polygon.interiors])


def ground_area(polygon: BaseGeometry) -> float:
    """Return the area of a polygon in degrees, in square metres of the WGS 84 ellipsoid.

    The plane area in the cylindrical equal-area projection of the ellipsoid (Snyder, Map Projections: A Working
    Manual, 1987, equations 3-12 and 10-13 to 10-16 with the equator as standard parallel).
    """

    def project(degrees: Floats) -> Floats:
        e, sine = ECCENTRICITY, np.sin(np.radians(degrees[:, 1]))
        q = (1 - e**2) * (sine / (1 - (e * sine) ** 2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))
        return np.column_stack([SEMI_MAJOR * np.radians(degrees[:, 0]), SEMI_MAJOR * q / 2])

    return float(shapely.area(shapely.transform(polygon, project)))
