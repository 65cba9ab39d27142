"""Which polygons meet which tiles of a cover, and the blocks of neighbouring tiles that are burnt together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.components.rasterize.ground import turned
from rsp.shared.covers import Cover
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.tilekeys import among, columns, tiles_of
from rsp.shared.tiles import Tile
from rsp.shared.tileset.hilbert import columns_at, id_of, ids_at

Indices = npt.NDArray[np.int64]
Polygons = npt.NDArray[np.object_]

# Zooms between a block and its tiles, at most (a block has 8 x 8 tiles), and pixels a side of a block, at most.
LEVELS, PIXELS = 3, 4096

# A polygon that lies in more tiles than this, or in several blocks with more points, is cut to the blocks.
FEW, LARGE = 64, 500

# Pixels by which a polygon reaches into a tile without being in it: rounding.
ROUNDING = 1e-6


class Met(NamedTuple):
    """Which polygons meet the cover.

    Attributes:
        number: For each pair of a polygon and a tile that it meets, the polygon's place among those asked for.
        tile: The tile's place in the cover.
        pieces: Polygons, or what of them lies in and around a block.
        piece_of: For each piece, the polygon's place among those asked for.
        block: For each piece, the number of its block.
    """

    number: Indices
    tile: Indices
    pieces: Polygons
    piece_of: Indices
    block: Indices


class Blocks:
    """The tiles of a cover along a Hilbert curve, and the blocks that they lie in: squares of neighbours.

    Attributes:
        zoom: The zoom of the tiles.
        levels: Zooms between blocks and tiles.
        side: Of a tile, in metres of EPSG:3857.
        bounds: West, south, east, north of all tiles, in the same metres.
    """

    def __init__(self, cover: Cover, zoom: int, size: int) -> None:
        self.zoom = zoom
        self.levels = max(0, min(LEVELS, zoom, (PIXELS // size).bit_length() - 1))
        self.side = AROUND / (1 << zoom)
        x, y = columns(cover.keys(zoom))
        # In whole tiles: the first column and row, and the last.
        self._extent = int(x.min()), int(y.min()), int(x.max()), int(y.max())
        west, north, east, south = self._extent
        self.bounds = (
            west * self.side - HALF, HALF - (south + 1) * self.side,
            (east + 1) * self.side - HALF, HALF - north * self.side,
        )  # fmt: skip
        self._rounding = ROUNDING / size
        self._along = np.sort(ids_at(zoom, x, y))
        quads = self._along >> 2 * self.levels
        self._starts = np.flatnonzero(np.diff(quads, prepend=-1))
        self._quads = quads[self._starts]

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def tile_count(self) -> int:
        """How many tiles there are."""
        return len(self._along)

    def places(self, block: int) -> slice:
        """Return which tiles of the cover lie in a block."""
        last = self._starts[block + 1] if block + 1 < len(self._starts) else len(self._along)
        return slice(int(self._starts[block]), int(last))

    def tiles(self, block: int, but: Indices | None = None) -> list[Tile]:
        """Return the tiles of a block, without some that are given as sorted keys (see `rsp.shared.tilekeys`)."""
        keys = self.keys(self.places(block))
        return tiles_of(keys if but is None else keys[~among(keys, but)], self.zoom)

    def keys(self, places: Indices | slice) -> Indices:
        """Return the keys of tiles, given their places in the cover."""
        x, y = columns_at(self.zoom, self._along[places])
        return x << 32 | y

    def around(self, block: Indices) -> Polygons:
        """Return the squares of blocks with a tile more on each side, in metres of EPSG:3857."""
        x, y = columns_at(self.zoom - self.levels, self._quads[block])
        squares: Polygons = self._squares(x, y, 1 / (1 << self.levels), self.levels)
        return squares

    def meet(self, polygons: Polygons) -> Met:
        """Find the tiles that polygons meet with more than rounding, and the pieces to burn in each block.

        Args:
            polygons: Valid, in metres of EPSG:3857. Those over the antimeridian go on beyond the edge of the grid,
                and are looked for on its other side too.
        """
        bounds = shapely.bounds(polygons)
        every = np.arange(len(polygons))
        found = [self._met(polygons, bounds, every)]
        for turns, beyond in ((-1, bounds[:, 2] > HALF), (1, bounds[:, 0] < -HALF)):
            if beyond.any():
                moved = turned(polygons[beyond], turns)
                found.append(self._met(moved, shapely.bounds(moved), every[beyond]))
        number, tile, pieces, piece_of, block = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if len(found) > 1:  # all around the world and on
            number, tile = _pairs(number, tile, self.tile_count)
        return Met(number, tile, pieces, piece_of, block)

    def _met(self, polygons: Polygons, bounds: npt.NDArray[np.float64], every: Indices) -> Met:
        edge = self._rounding
        west, north = (bounds[:, 0] + HALF) / self.side, (HALF - bounds[:, 3]) / self.side
        east, south = (bounds[:, 2] + HALF) / self.side, (HALF - bounds[:, 1]) / self.side
        first = np.floor(np.stack([west, north]) + edge).astype(np.int64)
        last = np.maximum(first, np.ceil(np.stack([east, south]) - edge).astype(np.int64) - 1)
        low, high = np.array(self._extent).reshape(2, 2, 1)
        near = ((last >= low) & (first <= high)).all(axis=0)
        polygons, every = polygons[near], every[near]
        first, last = first[:, near], last[:, near]
        # What is in one piece meets each tile of the row, or of the column, that its bounds lie in.
        sure = (first == last).any(axis=0) & (shapely.get_type_id(polygons) == _POLYGON)
        first, last = np.maximum(first, low), np.minimum(last, high)
        spans = last - first + 1
        count = spans[0] * spans[1]
        blocks = (last >> self.levels) > (first >> self.levels)
        wide = (count > FEW) | (blocks.any(axis=0) & (shapely.get_num_coordinates(polygons) > LARGE))
        found = [self._narrow(polygons[~wide], every[~wide], first[:, ~wide], spans[:, ~wide], sure[~wide])]
        for number in np.flatnonzero(wide):
            found += self._wide(polygons[number], int(every[number]), first[:, number], last[:, number])
        return Met(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _narrow(
        self, polygons: Polygons, every: Indices, first: Indices, spans: Indices, sure: npt.NDArray[np.bool_]
    ) -> Met:
        """Look at each tile that bounds meet; of some it is sure that the polygon meets it, too."""
        count = spans[0] * spans[1]
        number = np.repeat(np.arange(len(polygons)), count)
        step = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)
        x, y = first[0][number] + step % spans[0][number], first[1][number] + step // spans[0][number]
        along = ids_at(self.zoom, x, y)
        tile = np.minimum(np.searchsorted(self._along, along), len(self._along) - 1)
        met = self._along[tile] == along
        doubtful = np.flatnonzero(met & ~sure[number])
        squares = self._squares(x[doubtful], y[doubtful], -self._rounding)
        met[doubtful] = shapely.intersects(polygons[number[doubtful]], squares)
        number, tile = number[met], tile[met]
        block = np.searchsorted(self._starts, tile, "right") - 1
        piece_of, block = _pairs(number, block, len(self))
        return Met(every[number], tile, polygons[piece_of], every[piece_of], block)

    def _wide(self, polygon: BaseGeometry, number: int, first: Indices, last: Indices) -> Iterator[Met]:
        """Cut a polygon to quarters, and these to quarters, down to the blocks; pass over what has no tiles."""
        level = max(self.levels, int(np.max(first ^ last)).bit_length())
        quads = [(polygon, level, int(first[0]) >> level, int(first[1]) >> level)]
        while quads:
            whole, level, x, y = quads.pop()
            along = id_of(Tile(x, y, self.zoom - level)) - id_of(Tile(0, 0, self.zoom - level))
            start, end = np.searchsorted(self._along, [along << 2 * level, along + 1 << 2 * level])
            if start == end:
                continue
            # A tile more on each side: no cut touches a pixel.
            around = self._squares(x, y, 1 / (1 << level), level)
            piece = _polygonal(shapely.intersection(whole, around))
            if piece is None:
                continue
            tiles = np.arange(start, end)
            block = np.unique(np.searchsorted(self._starts, tiles, "right") - 1)
            if piece.geom_type == "Polygon" and shapely.get_num_coordinates(piece) == 5 and piece.equals(around):
                quad_x, quad_y = columns_at(self.zoom - self.levels, self._quads[block])
                margin = 1 / (1 << self.levels)
                pieces = np.atleast_1d(self._squares(quad_x, quad_y, margin, self.levels))
            elif level > self.levels:
                level -= 1
                quads += [(piece, level, 2 * x + dx, 2 * y + dy) for dx in (0, 1) for dy in (0, 1)]
                continue
            else:
                squares = self._squares(*columns_at(self.zoom, self._along[tiles]), -self._rounding)
                shapely.prepare(piece)
                tiles = tiles[shapely.intersects(piece, squares)]
                if not len(tiles):
                    continue
                pieces = np.array([piece], dtype=object)
            yield Met(np.full(len(tiles), number), tiles, pieces, np.full(len(pieces), number), block)

    def _squares(self, x: Indices | int, y: Indices | int, margin: float, level: int = 0) -> Any:
        """Return the squares of tiles of a zoom so many levels above, with a margin in sides of such a tile."""
        side = self.side * (1 << level)
        west, north = x * side - HALF, HALF - y * side
        reach = margin * side
        box: Callable[..., Any] = shapely.box  # of one square it returns a geometry
        return box(west - reach, north - side - reach, west + side + reach, north + reach)


_POLYGON = 3


def _pairs(number: Indices, other: Indices, count: int) -> tuple[Indices, Indices]:
    """Return pairs of numbers, the second below `count`, sorted, each once."""
    first, second = np.divmod(np.unique(number * count + other), count)
    return first, second


def _polygonal(geometry: BaseGeometry) -> BaseGeometry | None:
    """Return the polygons of what a cut has left."""
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        return None if geometry.is_empty else geometry
    parts = shapely.get_parts(geometry)
    parts = parts[shapely.get_dimensions(parts) == 2]
    return shapely.MultiPolygon(shapely.get_parts(parts).tolist()) if len(parts) else None
