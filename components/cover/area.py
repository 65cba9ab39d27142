"""The tiles that features and bounding boxes cover, as sorted integers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.crs import parse_crs
from rsp.shared.errors import UsageError
from rsp.shared.features import expand, project, read_crs, read_features
from rsp.shared.mercator import HALF, MAX_LATITUDE
from rsp.shared.tilekeys import tiles_of
from rsp.shared.tiles import Tile, check_budget, tile_block, tiles_of_blocks

Cells = npt.NDArray[np.int64]

# A polygon whose edge lies on the edge of a tile does not cover the next one: tiles are tested this much
# smaller (in tiles; a micrometre at zoom 18).
MARGIN = 1e-8

# Features read before their tiles are worked out, and the side in tiles up to which they are so together.
CHUNK, SMALL = 4096, 8

# Squares that are tested at once: each is a geometry for the time being.
BATCH = 1 << 16

# Tiles found before duplicates among them are dropped.
FOLD = 1 << 21

# Type ids of shapely.
POLYGON, FIRST_COLLECTION = 3, 4


def cover_bbox(source: str, zoom: int, crs: str | None, max_tiles: int) -> list[Tile]:
    """Return the tiles that a bounding box meets, sorted.

    Raises:
        UsageError: not a bounding box, one that no tile meets, or one of too many tiles.
    """
    fields = source.split(",")
    try:
        west, south, east, north = map(float, fields[:4])
        if len(fields) > 5 or (len(fields) == 5 and not fields[4].strip().upper().startswith("EPSG:")):
            raise ValueError(source)
    except ValueError:
        raise UsageError(f"a bbox is west,south,east,north[,EPSG:code], got {source!r}") from None
    if len(fields) == 5 and crs is not None and parse_crs(crs) != parse_crs(fields[4]):
        raise UsageError(f"the bbox says {fields[4].strip()} and --crs {crs}: leave one out")
    epsg = parse_crs(fields[4] if len(fields) == 5 else crs or "EPSG:4326")
    if not np.isfinite([west, south, east, north]).all():
        raise UsageError(f"the bbox {source} is not finite")
    if south > north or (epsg != 4326 and west > east):
        raise UsageError(f"the bbox {source} is upside down: expected west,south,east,north, the lesser first")
    if epsg != 4326:
        west, south, east, north = _to_degrees(epsg, (west, south, east, north), source)
    if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
        hint = (
            "; for metres add the CRS, as ,EPSG:2154" if max(map(abs, (west, south, east, north))) > 1000 else ""
        )
        raise UsageError(f"the bbox {source} is not on Earth: degrees are expected, south below north{hint}")
    if south > MAX_LATITUDE or north < -MAX_LATITUDE:
        raise UsageError(
            f"the bbox {source} lies beyond {MAX_LATITUDE:.2f} degrees, where web mercator ends; are latitude and "
            "longitude swapped?"
        )
    spans = [(west, east)] if west <= east else [(-180.0, east), (west, 180.0)]
    blocks = [tile_block(low, south, high, north, zoom) for low, high in spans]
    return sorted(tiles_of_blocks(blocks, max_tiles, f"the bbox {source} at zoom {zoom}"))


def _to_degrees(epsg: int, bounds: tuple[float, ...], source: str) -> tuple[float, float, float, float]:
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    try:
        west, south, east, north = transform_bounds(f"EPSG:{epsg}", "EPSG:4326", *bounds)
    except (RasterioError, ValueError) as error:
        raise UsageError(f"the bbox {source} cannot be projected from EPSG:{epsg}: {error}") from error
    if not np.isfinite([west, south, east, north]).all():
        raise UsageError(f"the bbox {source} lies outside the area of EPSG:{epsg}")
    return west, south, east, north


def cover_features(source: str, zoom: int, crs: str | None, max_tiles: int) -> list[Tile]:
    """Return the tiles that the features of GeoJSON files meet, sorted.

    Raises:
        FeatureError: a file that cannot be read, or coordinates that cannot be meant.
        UsageError: too many tiles.
    """
    given = None if crs is None else parse_crs(crs)
    found: list[npt.NDArray[np.int64]] = []
    fresh = 0
    for path in expand(source):
        epsg = read_crs(path) if given is None else given
        features = (feature for feature in read_features(path) if feature.geometry is not None)
        while chunk := list(islice(features, CHUNK)):
            numbers = [feature.number for feature in chunk]
            mercator = project(
                np.array([feature.geometry for feature in chunk], dtype=object),
                epsg,
                lambda nth, path=path, numbers=numbers: f"{path}: feature {numbers[nth]}",  # type: ignore[misc]
            )
            for cells in _cover_geometries(mercator, zoom, max_tiles, source):
                found.append(cells)
                fresh += len(cells)
                if fresh > FOLD:
                    found = [np.unique(np.concatenate(found))]
                    fresh = 0
                    check_budget(len(found[0]), max_tiles, f"{source} at zoom {zoom}", at_least=True)
    if not found:
        return []
    keys = np.unique(np.concatenate(found))
    check_budget(len(keys), max_tiles, f"{source} at zoom {zoom}")
    return tiles_of(keys, zoom)


def _cover_geometries(
    mercator: npt.NDArray[np.object_], zoom: int, max_tiles: int, source: str
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the tiles that geometries meet, as x << 32 | y; some of them more than once."""
    side = 1 << zoom
    # In units of tiles, y down.
    parts = shapely.transform(mercator, lambda xy: (xy * (1, -1) + HALF) * (side / (2 * HALF)))
    while (shapely.get_type_id(parts) >= FIRST_COLLECTION).any():
        parts = shapely.get_parts(parts)
    parts = parts[~shapely.is_empty(parts)]
    first = np.floor(shapely.bounds(parts)).astype(np.int64)
    sizes = first[:, 2:] - first[:, :2] + 1
    small = sizes.max(axis=1, initial=0) <= SMALL
    cells = [_cells_of_small(parts[small], first[small, :2], sizes[small])]
    for part in parts[~small]:
        cells.append(_cells(part, side, max_tiles, f"{source} at zoom {zoom}"))
        if sum(map(len, cells)) > FOLD:
            yield _keys(cells, side)
            cells = []
    if cells:
        yield _keys(cells, side)


def _keys(cells: list[Cells], side: int) -> npt.NDArray[np.int64]:
    """Return cells as integers, without those beyond the poles; x turns around at the antimeridian."""
    joined = np.concatenate(cells)
    joined = joined[(joined[:, 1] >= 0) & (joined[:, 1] < side)]
    return np.unique((joined[:, 0] % side) << 32 | joined[:, 1])


def _margins(polygon: Any) -> Any:
    """Return how far from a cell's upper left corner the square begins that a geometry is tested with.

    A polygon must enter a cell; points and lines belong to the cell whose upper left edges they lie on.
    """
    return np.where(polygon, MARGIN, 0.0)


def _cells_of_small(parts: Any, first: Any, sizes: Any) -> Any:
    """Return the unit cells, shape (n, 2), that geometries of few cells each meet: all of them tested at once."""
    counts = sizes.prod(axis=1)
    owner = np.repeat(np.arange(len(parts)), counts)
    nth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    cells = first[owner] + np.column_stack([nth % sizes[owner, 0], nth // sizes[owner, 0]])
    low = _margins(shapely.get_type_id(parts) == POLYGON)[owner]
    x, y = cells[:, 0], cells[:, 1]
    met = shapely.intersects(parts[owner], shapely.box(x + low, y + low, x + 1 - MARGIN, y + 1 - MARGIN))
    # Where the bounds are one cell there is nothing to test (and an intersection could only be lost to rounding).
    return cells[met | (counts[owner] == 1)]


def _cells(geometry: BaseGeometry, side: int, max_tiles: int, what: str) -> Cells:
    """Return the unit cells, shape (n, 2), that a geometry meets, by quartering the square around it.

    A square wholly inside is taken without further tests, so the work follows the outline, not the area. Their
    number is known long before they are: a geometry of too many is refused before they are made.

    Raises:
        UsageError: more cells than allowed.
    """
    west, north, east, south = (int(edge) for edge in np.floor(geometry.bounds))
    north, south = max(north, 0), min(south, side - 1)
    if north > south:
        return np.empty((0, 2), np.int64)
    size = 1 << max(east - west, south - north).bit_length()
    polygon = geometry.geom_type == "Polygon"
    # Whatever is in one piece meets each column and each row between its bounds, and every cell of its area.
    least = max(east - west + 1, south - north + 1)
    if polygon and geometry.bounds[1] >= 0 and geometry.bounds[3] <= side:
        least = max(least, int(geometry.area))
    check_budget(least, max_tiles, what, at_least=True)
    low = float(_margins(polygon))
    shapely.prepare(geometry)
    squares = np.array([[west, north]])
    found: list[Cells] = []
    inside = 0
    while True:
        outline: list[Cells] = []
        for start in range(0, len(squares), BATCH):
            some = squares[start : start + BATCH]
            x, y = some[:, 0], some[:, 1]
            boxes = shapely.box(x + low, y + low, x + size - MARGIN, y + size - MARGIN)
            met = shapely.intersects(geometry, boxes)
            if polygon and size > 1:
                full = met.copy()
                full[met] = shapely.contains_properly(geometry, boxes[met])
                # Of a square that reaches beyond a pole, what is on the grid.
                tops, bottoms = np.maximum(y[full], 0), np.minimum(y[full] + size, side)
                inside += size * sum((bottoms - tops).tolist())
                check_budget(inside, max_tiles, what, at_least=True)
                whole = full & (y >= 0) & (y + size <= side)
                grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1) if whole.any() else squares
                found.append((some[whole][:, np.newaxis, :] + grid.reshape(-1, 2)).reshape(-1, 2))
                for column, top in some[full & ~whole].tolist():
                    rows = np.arange(max(top, 0), min(top + size, side))
                    found.append(np.stack(np.meshgrid(column + np.arange(size), rows), axis=-1).reshape(-1, 2))
                met &= ~full
            outline.append(some[met])
        squares = np.concatenate(outline)
        if size == 1:
            return np.concatenate([*found, squares])
        check_budget(inside + len(squares), max_tiles, what, at_least=True)
        size //= 2
        corners = np.array([[0, 0], [size, 0], [0, size], [size, size]])
        squares = (squares[:, np.newaxis, :] + corners).reshape(-1, 2)
        squares = squares[(squares[:, 1] < side) & (squares[:, 1] + size > 0)]
