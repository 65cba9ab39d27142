"""Burns polygons into tiles: which polygon meets which tile, chunks of neighbouring tiles, and the pixels."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from pmtiles.tile import zxy_to_tileid
from rasterio import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from rsp.components.rasterize.source import Bounds
from rsp.shared.errors import TileError
from rsp.shared.images import Mask, Rgb, decode_mask, encode_mask
from rsp.shared.jobs import Failure, attempt
from rsp.shared.locations import Location
from rsp.shared.mercator import AROUND
from rsp.shared.tiles import Tile, bounds_mercator
from rsp.shared.tileset import open_reader

Indices = npt.NDArray[np.intp]

# Tiles that are burnt together, by one process; their polygons travel with them.
CHUNK = 64

# Polygons of more points than this are cut to the tiles of a chunk before they are burnt.
LARGE = 500

BATCH = 10_000


class TileIndex:
    """Knows which polygons meet which tiles of a cover. It holds those that meet one, and no other.

    Attributes:
        tiles: The tiles, neighbours near each other (in the order of a Hilbert curve).
        bounds: What the tiles span, in metres of EPSG:3857.
        used: How many polygons meet the cover.
        outside: How many do not.
    """

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.tiles = sorted(tiles, key=lambda tile: zxy_to_tileid(tile.z, tile.x, tile.y))
        boxes = np.array([bounds_mercator(tile) for tile in self.tiles])
        self._tree = shapely.STRtree(shapely.box(*boxes.T))
        west, south = boxes[:, :2].min(axis=0)
        east, north = boxes[:, 2:].max(axis=0)
        self.bounds: Bounds = (float(west), float(south), float(east), float(north))
        self._boxes = boxes
        self._polygons: npt.NDArray[np.object_] = np.empty(0, dtype=object)
        self._members: Indices = np.empty(0, dtype=np.intp)  # polygons, tile after tile
        self._starts: Indices = np.zeros(len(self.tiles) + 1, dtype=np.intp)
        self.used = self.outside = 0

    def fill(self, polygons: Iterable[BaseGeometry]) -> None:
        """Take the polygons (metres of EPSG:3857), each one tested against all tiles at once."""
        kept: list[npt.NDArray[np.object_]] = []
        pairs: list[Indices] = []
        count = 0
        polygons = iter(polygons)
        while batch := list(islice(polygons, BATCH)):
            array = np.array(batch, dtype=object)
            # Polygons over the antimeridian go on beyond the edge of the grid: look for them on its other side.
            number, tile = np.hstack(
                [self._tree.query(_shifted(array, shift), predicate="intersects") for shift in (0, -1, 1)]
            )
            met = np.unique(number)
            self.used += len(met)
            self.outside += len(batch) - len(met)
            kept.append(array[met])
            pairs.append(np.stack([np.searchsorted(met, number) + count, tile]))
            count += len(met)
        if not kept:
            return
        self._polygons = np.concatenate(kept)
        joined = np.hstack(pairs)
        order = np.lexsort(joined)  # by tile, then by polygon
        self._members = joined[0][order]
        self._starts = np.searchsorted(joined[1][order], np.arange(len(self.tiles) + 1))

    def chunks(self, skip: Container[Tile] = ()) -> Iterator[Chunk]:
        """Yield the work, some tiles at a time with the polygons that they need."""
        for start in range(0, len(self.tiles), CHUNK):
            numbers = [n for n in range(start, min(start + CHUNK, len(self.tiles))) if self.tiles[n] not in skip]
            if not numbers:
                continue
            members = [np.unique(self._members[self._starts[n] : self._starts[n + 1]]) for n in numbers]
            needed = np.unique(np.concatenate(members))
            yield Chunk(
                [self.tiles[n] for n in numbers],
                self._cut(needed, self._boxes[numbers]),
                [np.searchsorted(needed, each) for each in members],
            )

    def _cut(self, numbers: Indices, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
        """Return polygons, the large ones cut to the surroundings of a chunk."""
        polygons = self._polygons[numbers]
        large = shapely.get_num_coordinates(polygons) > LARGE
        if large.any():
            margin = boxes[0, 2] - boxes[0, 0]  # a tile: the cuts must not touch any pixel
            west, south = boxes[:, :2].min(axis=0) - margin
            east, north = boxes[:, 2:].max(axis=0) + margin
            around = shapely.box(
                [west, west - AROUND, west + AROUND], south, [east, east - AROUND, east + AROUND], north
            )
            polygons[large] = shapely.intersection(polygons[large], shapely.union_all(around))
        return polygons


def _shifted(polygons: npt.NDArray[np.object_], turns: int) -> npt.NDArray[np.object_]:
    """Return polygons a turn around the Earth further east; empty ones where that brings none onto the grid."""
    if turns == 0:
        return polygons
    bounds = shapely.bounds(polygons)
    beyond = bounds[:, 2] > AROUND / 2 if turns < 0 else bounds[:, 0] < -AROUND / 2
    shifted = np.full(len(polygons), shapely.Polygon(), dtype=object)
    if beyond.any():
        shifted[beyond] = shapely.transform(
            polygons[beyond], lambda points: points + np.array([turns * AROUND, 0])
        )
    return shifted


class Chunk(NamedTuple):
    """Tiles to burn.

    Attributes:
        tiles: The tiles.
        polygons: All polygons that meet any of them.
        members: For each tile, the places in `polygons` of those that meet it.
    """

    tiles: list[Tile]
    polygons: npt.NDArray[np.object_]
    members: list[Indices]


class Burnt(NamedTuple):
    """A label: its PNG (None: all background), and how many of its pixels are of the class."""

    data: bytes | None
    foreground: int


@dataclass(frozen=True)
class Job:
    """What is to be burnt.

    Attributes:
        size: Side of a tile in pixels.
        value: Class index of the polygons.
        colors: The palette of the labels, one colour a class.
        present: Labels that are there already and stay below the new ones.
    """

    size: int
    value: int
    colors: tuple[Rgb, ...]
    present: Location | None = None

    def open(self) -> Burner:
        """Open the labels that are there."""
        return Burner(self)

    def empty(self) -> bytes:
        """Return the label of a tile that is all background."""
        return encode_mask(np.zeros((self.size, self.size), np.uint8), self.colors)


class Burner:
    """Burns chunks of tiles."""

    def __init__(self, job: Job) -> None:
        self.job, self.size, self.value = job, job.size, job.value
        self._present = open_reader(job.present) if job.present else None

    def close(self) -> None:
        """Close the labels that are there."""
        if self._present:
            self._present.close()

    def __call__(self, chunk: Chunk) -> list[Burnt | Failure]:
        """Return the label of each tile, or why it has none."""
        return [
            attempt(self._tile, (tile, chunk.polygons[members]))
            for tile, members in zip(chunk.tiles, chunk.members, strict=True)
        ]

    def _tile(self, item: tuple[Tile, npt.NDArray[np.object_]]) -> Burnt:
        tile, polygons = item
        mask = self.burn(tile, polygons)
        if self._present and tile in self._present:
            below = decode_mask(self._present.read(tile))
            if below.shape != mask.shape:
                raise TileError(
                    f"the label there has {below.shape[1]}x{below.shape[0]} pixels, the new one "
                    f"{self.size}x{self.size}"
                )
            mask = np.maximum(mask, below)
        data = encode_mask(mask, self.job.colors) if mask.any() else None
        return Burnt(data, int(np.count_nonzero(mask == self.value)))

    def burn(self, tile: Tile, polygons: npt.NDArray[np.object_]) -> Mask:
        """Return the class of each pixel: that of the polygons where its centre lies in one, else 0."""
        if not len(polygons):
            return np.zeros((self.size, self.size), np.uint8)
        west, south, east, north = bounds_mercator(tile)
        shapes: list[Any] = []
        for shift in (0, -1, 1):
            moved = _shifted(polygons, shift)
            shapes += moved[~shapely.is_empty(moved)].tolist()
        mask: Mask = rasterize(
            shapes,
            out_shape=(self.size, self.size),
            transform=Affine((east - west) / self.size, 0, west, 0, (south - north) / self.size, north),
            default_value=self.value,
            fill=0,
            dtype="uint8",  # the default is int64, whose buffer makes stripes of a PNG
        )
        assert mask.dtype == np.uint8
        return mask
