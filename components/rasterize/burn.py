"""Burns polygons into the tiles of a block, class upon class, and encodes the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.components.rasterize.blocks import Blocks
from rsp.components.rasterize.coverage import edges_of, runs_of
from rsp.components.rasterize.layers import Layer
from rsp.components.rasterize.shelf import Group, Shelf, Stack
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError
from rsp.shared.images import Mask, Rgb, decode_mask, encode_mask
from rsp.shared.jobs import Failure, attempt
from rsp.shared.locations import Location
from rsp.shared.mercator import HALF
from rsp.shared.png import depth_of, encode_rows
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader

# A bit a pixel, as `Runs.bits` has them.
Bits = npt.NDArray[np.uint8]


class Block(NamedTuple):
    """Tiles to burn.

    Attributes:
        number: Of the block.
        tiles: Some of its tiles.
        groups: The polygons; None where they are on the disk.
    """

    number: int
    tiles: list[Tile]
    groups: list[Group] | None


def blocks_to_burn(blocks: Blocks, shelf: Shelf, on_disk: bool, keep: Cover) -> Iterator[Block]:
    """Yield the blocks that have tiles to burn.

    Args:
        blocks: All of them.
        shelf: Where their polygons are.
        on_disk: They are on the disk, where they are read by who burns them.
        keep: Tiles that stay as they are.
    """
    kept = keep.keys(blocks.zoom)
    for number in range(len(blocks)):
        if tiles := blocks.tiles(number, kept):
            yield Block(number, tiles, None if on_disk else shelf.held(number))


class Burnt(NamedTuple):
    """A label: its PNG (None: all background), and how many of its pixels are of each class that it has."""

    data: bytes | None
    pixels: dict[int, int]


@dataclass(frozen=True)
class Job:
    """What is to be burnt.

    Attributes:
        size: Side of a tile in pixels.
        side: The same in metres of EPSG:3857.
        levels: Zooms between blocks and tiles.
        layers: From the lowest to the highest.
        rank: For each class index its place in the order of classes.
        colors: The palette of the labels, one colour a class.
        touched: Burn all pixels of which a polygon has a part.
        present: Labels that are there already, into which the new ones are merged.
        folder: Where the polygons are on the disk, if they are.
    """

    size: int
    side: float
    levels: int
    layers: tuple[Layer, ...]
    rank: tuple[int, ...]
    colors: tuple[Rgb, ...]
    touched: bool = False
    present: Location | None = None
    folder: Path | None = None

    def open(self) -> Burner:
        """Open the labels and the polygons that are there."""
        return Burner(self)

    def empty(self) -> bytes:
        """Return the label of a tile that is all background."""
        return encode_mask(np.zeros((self.size, self.size), np.uint8), self.colors)


class Burner:
    """Burns blocks of tiles."""

    def __init__(self, job: Job) -> None:
        self.job, self.size = job, job.size
        self._present = open_reader(job.present) if job.present else None
        self._stack = Stack(job.folder) if job.folder else None
        # A class that the configuration does not have stays above all.
        self._rank = np.arange(256, dtype=np.uint8)
        self._rank[: len(job.rank)] = job.rank
        self._plain = depth_of(len(job.colors)) == 1 and job.size % 8 == 0

    def close(self) -> None:
        """Close the labels and the polygons that are there."""
        if self._present:
            self._present.close()
        if self._stack:
            self._stack.close()

    def __call__(self, block: Block) -> list[Burnt | Failure]:
        """Return the label of each tile, or why it has none."""
        found = self.cover(block)
        return [attempt(self._tile, (tile, planes)) for tile, planes in zip(block.tiles, found, strict=True)]

    def cover(self, block: Block) -> list[dict[int, Bits]]:
        """Return which pixels of each tile are of which layer; layers of which a tile has none are left out."""
        size, levels = self.size, self.job.levels
        first = block.tiles[0]
        column, row = first.x >> levels << levels, first.y >> levels << levels
        west, north = column * self.job.side - HALF, HALF - row * self.job.side
        places = [((tile.x - column) * size, (tile.y - row) * size) for tile in block.tiles]
        once: list[dict[int, Bits]] = [{} for _ in block.tiles]
        twice: list[dict[int, Bits]] = [{} for _ in block.tiles]
        groups = self._stack.groups(block.number) if self._stack else block.groups or ()
        for group in groups:
            for layer in np.unique(group.layer).tolist():
                least = self.job.layers[layer].least
                touched = self.job.touched and least == 1
                edges = edges_of(
                    group.polygons[group.layer == layer], west, north, self.job.side / size, touched=touched
                )
                for place, ones, twos in zip(places, once, twice, strict=True):
                    runs = runs_of(edges, *place, size, touched=touched)
                    if not len(runs.starts):
                        continue
                    bits, before = runs.bits(size), ones.get(layer)
                    if least == 2:
                        both = runs_of(edges, *place, size, least=2).bits(size)
                        if before is not None:
                            both |= before & bits | twos[layer]
                        twos[layer] = both
                    ones[layer] = bits if before is None else before | bits
        return [
            {layer: twos.get(layer, bits) for layer, bits in sorted(ones.items())}
            for ones, twos in zip(once, twice, strict=True)
        ]

    def _tile(self, item: tuple[Tile, dict[int, Bits]]) -> Burnt:
        tile, planes = item
        below = self._present.read(tile) if self._present and tile in self._present else None
        if below is None and self._plain and len(planes) == 1:
            ((layer, bits),) = planes.items()
            if self.job.layers[layer].value == 1:
                return self._plain_label(bits)
        mask = self.burn(planes)
        if below is not None:
            mask = self._merged(mask, decode_mask(below))
        if not mask.any():
            return Burnt(None, {})
        data = encode_mask(mask, self.job.colors)
        count = np.bincount(mask.ravel(), minlength=len(self.job.colors)).tolist()
        return Burnt(data, {value: pixels for value, pixels in enumerate(count) if value and pixels})

    def _plain_label(self, bits: Bits) -> Burnt:
        """Return the label of one class: its bits are those of the PNG."""
        pixels = int(np.bitwise_count(bits).sum())
        rows = bits.reshape(self.size, -1)
        return Burnt(encode_rows(rows, self.size, 1, self.job.colors) if pixels else None, {1: pixels})

    def burn(self, planes: dict[int, Bits]) -> Mask:
        """Return the class of each pixel: that of the highest layer that has it, else 0."""
        pixels = self.size * self.size
        mask: Mask = np.zeros(pixels, np.uint8)
        for layer, bits in planes.items():
            value = np.uint8(self.job.layers[layer].value)
            chosen = np.unpackbits(bits, count=pixels)
            # Without a branch for each pixel: what differs from the value is changed where the pixel is chosen.
            mask ^= (mask ^ value) & -chosen
        return mask.reshape(self.size, self.size)

    def _merged(self, mask: Mask, below: Mask) -> Mask:
        """Return the higher class of each pixel."""
        if below.shape != mask.shape:
            raise TileError(
                f"the label there has {below.shape[1]}x{below.shape[0]} pixels, the new one "
                f"{self.size}x{self.size}"
            )
        merged: Mask = np.where(self._rank[below] > self._rank[mask], below, mask)
        return merged
