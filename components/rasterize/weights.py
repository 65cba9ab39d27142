"""Weights of pixels between near instances, as U-Net is trained with to keep what nearly touches apart.

O. Ronneberger, P. Fischer, T. Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015, eq. 2:

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

A tile of weights is the exponential in a grey PNG of 8 bits, 255 for 1; w_c, which balances the classes, and w0
(10 there) are the training's. d1 and d2 are the distances of a pixel's centre from the nearest and the second
nearest instance of a class, 0 within one; of several classes the greatest weight counts. They are metres on the
ground, measured in EPSG:3857 at the scale of the pixel's latitude, and no more than 0.4 % off.

A pixel's weight follows from its place on the grid alone, so there is no seam between tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from rsp.components.rasterize.blocks import LARGE, Blocks, Indices, Polygons
from rsp.components.rasterize.burn import Block, blocks_to_burn
from rsp.components.rasterize.coverage import edges_of, runs_of
from rsp.components.rasterize.ground import buffer, turned
from rsp.components.rasterize.shelf import Shelf, Stack
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError, UsageError
from rsp.shared.ground import scale
from rsp.shared.images import encode
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import open_writer

Floats = npt.NDArray[np.float64]
Near = npt.NDArray[np.float32]
Weights = npt.NDArray[np.uint8]

# How many sigmas d1 + d2 may be: beyond, 255 exp(-REACH^2 / 2) is below a half.
REACH = math.sqrt(2 * math.log(2 * 255))

# How much more than the scale at its edge a polygon's surroundings may have.
MORE = 1.01


def weight(distance: Floats | Near, sigma: float) -> Weights:
    """Return what d1 + d2 weighs, 0 to 255; both in one unit."""
    part = np.exp(-(np.asarray(distance, np.float64) ** 2) / (2 * sigma**2))
    found: Weights = np.rint(255 * part).astype(np.uint8)
    return found


class Instances:
    """Puts instances by for the blocks that they lie in or near.

    Args:
        blocks: The tiles.
        shelf: Where they go; their layer is the class index.
        sigma: Metres on the ground.

    Raises:
        UsageError: weights would reach beyond the next tile.
    """

    def __init__(self, blocks: Blocks, shelf: Shelf, sigma: float) -> None:
        self.reach = REACH * sigma
        self._blocks, self._shelf = blocks, shelf
        north = max(abs(blocks.bounds[1]), abs(blocks.bounds[3]))
        longest = self.reach * float(scale(np.array([north])).max()) * MORE
        if longest > blocks.side:
            raise UsageError(
                f"--weight_sigma {sigma:g} reaches {self.reach:.1f} m, and a tile of zoom {blocks.zoom} has only "
                f"{self.reach * blocks.side / longest:.1f} m there"
            )

    def put(self, polygons: Polygons, value: npt.NDArray[np.uint8]) -> None:
        """Put polygons by, given their class index."""
        for turns in (0, -1, 1):
            some = turned(polygons, turns) if turns else polygons
            bounds = shapely.bounds(some)
            highest = np.abs(bounds[:, 1::2]).max(axis=1, initial=0.0)
            reach = self.reach * scale(highest).max(axis=1) * MORE
            there = (bounds[:, 0] - reach < HALF) & (bounds[:, 2] + reach > -HALF)
            self._put(some[there], value[there], bounds[there], reach[there])

    def _put(self, polygons: Polygons, value: npt.NDArray[np.uint8], bounds: Floats, reach: Floats) -> None:
        west, south, east, north = bounds.T
        boxes = np.asarray(
            shapely.box(
                np.maximum(west - reach, -HALF), south - reach, np.minimum(east + reach, HALF), north + reach
            )
        )
        large = shapely.get_num_coordinates(polygons) > LARGE
        if large.any():
            boxes[large] = shapely.intersection(
                buffer(polygons[large], self.reach * MORE), shapely.box(-HALF, -AROUND, HALF, AROUND)
            )
        met = self._blocks.meet(boxes)
        block, piece_of = met.block, met.piece_of
        pieces = polygons[piece_of]
        cut = np.flatnonzero(large[piece_of])
        # A tile more on each side: no cut is within reach of a pixel.
        pieces[cut] = shapely.intersection(pieces[cut], self._blocks.around(block[cut]))
        left = ~shapely.is_empty(pieces)
        if left.any():
            self._shelf.put(block[left], pieces[left], value[piece_of[left]].astype(np.uint16))


@dataclass(frozen=True)
class WeightJob:
    """What weights are to be made.

    Attributes:
        size: Side of a tile in pixels.
        side: The same in metres of EPSG:3857.
        sigma: Metres on the ground.
        folder: Where the instances are on the disk, if they are.
    """

    size: int
    side: float
    sigma: float
    folder: Path | None = None

    def open(self) -> Weigher:
        """Open the instances that are there."""
        return Weigher(self)

    def empty(self) -> bytes:
        """Return the tile that nothing is near to."""
        return encode(np.zeros((self.size, self.size, 1), np.uint8), "png")


class Weigher:
    """Makes the weights of blocks of tiles."""

    def __init__(self, job: WeightJob) -> None:
        self.job = job
        self._stack = Stack(job.folder) if job.folder else None

    def close(self) -> None:
        """Close what is open."""
        if self._stack:
            self._stack.close()

    def __call__(self, block: Block) -> list[bytes | None]:
        """Return the tiles of a block, None for those that are 0 throughout."""
        groups = self._stack.groups(block.number) if self._stack else block.groups or ()
        polygons, value = [], []
        for group in groups:
            polygons.append(group.polygons)
            value.append(group.layer)
        instances = _near_others(np.concatenate(polygons), np.concatenate(value), self._most()) if polygons else {}
        return [self._tile(tile, instances) for tile in block.tiles]

    def _most(self) -> float:
        """Return how far apart two instances may be, in sigmas of a metre of EPSG:3857 at their place."""
        return REACH * self.job.sigma * MORE

    def _tile(self, tile: Tile, instances: dict[int, Polygons]) -> bytes | None:
        weights = np.zeros((self.job.size, self.job.size), np.uint8)
        for polygons in instances.values():
            np.maximum(weights, self._of_class(tile, polygons), out=weights)
        return encode(weights[:, :, np.newaxis], "png") if weights.any() else None

    def _of_class(self, tile: Tile, polygons: Polygons) -> Weights:
        """Return the weights of a tile between the instances of a class."""
        size, resolution = self.job.size, self.job.side / self.job.size
        rows = tile.y * size + np.arange(size) + 0.5
        # Pixels a metre on the ground, of each row.
        pixels = np.sqrt(scale(HALF - rows * resolution).prod(axis=1)) / resolution
        reach = REACH * self.job.sigma * float(pixels.max())
        first: Near = np.full((size, size), np.inf, np.float32)
        second = first.copy()
        corner = np.array([tile.x, tile.y]) * size
        for polygon in polygons:
            west, south, east, north = polygon.bounds
            # In pixels of the grid from a whole one near the polygon: the same wherever the tile is.
            origin = np.floor([(west + HALF) / resolution, (HALF - north) / resolution])
            begin = np.floor(np.maximum(origin - reach, corner) - corner).astype(int)
            end = np.ceil([(east + HALF) / resolution + reach, (HALF - south) / resolution + reach] - corner)
            end = np.minimum(end, size).astype(int)
            if (begin >= end).any():
                continue
            found = distances(polygon, origin, corner + begin, end - begin, resolution, reach)
            part = np.s_[begin[1] : end[1], begin[0] : end[0]]
            second[part] = np.minimum(second[part], np.maximum(first[part], found))
            first[part] = np.minimum(first[part], found)
        return weight((first + second) / pixels[:, np.newaxis], self.job.sigma)


def _near_others(polygons: Polygons, value: npt.NDArray[np.uint16], metres: float) -> dict[int, Polygons]:
    """Return the instances of each class that are near to another one of it: alone, none has any weight."""
    found = {}
    for each in np.unique(value).tolist():
        some = polygons[value == each]
        highest = np.abs(shapely.bounds(some)[:, 1::2]).max(axis=1, initial=0.0)
        tree = shapely.STRtree(some)
        one, other = tree.query(some, predicate="dwithin", distance=metres * scale(highest).max(axis=1))
        near = np.unique(one[one != other])
        if len(near):
            found[each] = some[near]
    return found


def distances(
    polygon: shapely.Geometry,
    origin: Floats,
    corner: Indices,
    shape: Sequence[int],
    resolution: float,
    reach: float,
) -> Near:
    """Return how far the centres of pixels are from a polygon, 0 within it, in pixels; infinite beyond the reach.

    Args:
        polygon: In metres of EPSG:3857.
        origin: From where pixels are counted, in pixels of the grid.
        corner: The first pixel, column and row of the grid.
        shape: How many columns and rows.
        resolution: Metres of EPSG:3857 a pixel.
        reach: In pixels.
    """
    columns, rows = shape
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts([polygon])), return_index=True)
    x = (points[:, 0] + HALF) / resolution - origin[0]
    y = (HALF - points[:, 1]) / resolution - origin[1]
    left, top = corner - origin
    across, down = left + 0.5 + np.arange(columns), top + 0.5 + np.arange(rows)
    within = np.flatnonzero(ring[1:] == ring[:-1])
    x1, y1, x2, y2 = x[within], y[within], x[within + 1], y[within + 1]
    west, east = np.minimum(x1, x2) - reach - left, np.maximum(x1, x2) + reach - left
    north, south = np.minimum(y1, y2) - reach - top, np.maximum(y1, y2) + reach - top
    spans = np.floor(np.stack([west, east + 1, north, south + 1])).astype(int)
    spans = np.clip(spans, 0, np.array([columns, columns, rows, rows])[:, np.newaxis])
    squared = np.full((rows, columns), np.inf)
    for edge in np.flatnonzero((spans[0] < spans[1]) & (spans[2] < spans[3])).tolist():
        a, b, c, d = spans[:, edge].tolist()
        dx, dy = x2[edge] - x1[edge], y2[edge] - y1[edge]
        from_x, from_y = across[a:b] - x1[edge], (down[c:d] - y1[edge])[:, np.newaxis]
        length = dx * dx + dy * dy
        along = np.clip((from_x * dx + from_y * dy) / length, 0, 1) if length else np.zeros((d - c, b - a))
        away = (from_x - along * dx) ** 2 + (from_y - along * dy) ** 2
        np.minimum(squared[c:d, a:b], away, out=squared[c:d, a:b])
    # What lies within, by the rule of labels.
    side = max(columns, rows)
    edges = edges_of(np.array([polygon]), origin[0] * resolution - HALF, HALF - origin[1] * resolution, resolution)
    inside = np.unpackbits(runs_of(edges, int(left), int(top), side).bits(side), count=side * side)
    squared[inside.reshape(side, side)[:rows, :columns] != 0] = 0
    found: Near = np.sqrt(squared).astype(np.float32)
    found[found > reach] = np.inf
    return found


def write_weights(
    out: Location, blocks: Blocks, shelf: Shelf, tiles: Cover, size: int, sigma: float, *,
    workers: int | None, worth: int, resume: bool,
) -> int:  # fmt: skip
    """Write a tile of weights for each tile of a cover, and return how many are not 0 throughout.

    Args:
        out: The tile set.
        blocks: The tiles of the cover.
        shelf: The instances.
        tiles: The cover.
        size: Side of a tile in pixels.
        sigma: Metres on the ground.
        workers: Processes; None for one a processor.
        worth: How many tiles make a further process worth its start.
        resume: Keep tiles that are there.
    """
    folder = shelf.finish()
    job = WeightJob(size, blocks.side, sigma, folder)
    empty, count = job.empty(), 0
    with open_writer(out, "png", resume=resume) as writer:
        writer.describe({"tile_size": size})
        keep = writer.done & tiles if resume else Cover()
        todo = len(tiles) - len(keep)
        work = blocks_to_burn(blocks, shelf, folder is not None, keep)
        with closing(run_job(job, work, todo, workers, worth=worth)) as made:
            for tile, data in progress(_each_tile(made), "rasterize: weights", total=todo):
                writer.write(tile, data or empty)
                count += data is not None
    return count


def _each_tile(
    made: Iterable[tuple[Block, list[bytes | None] | Failure]],
) -> Iterator[tuple[Tile, bytes | None]]:
    for block, found in made:
        if isinstance(found, Failure):
            raise TileError(f"no weights of the tiles around {zxy(block.tiles[0])}: {found.reason}")
        yield from zip(block.tiles, found, strict=True)
