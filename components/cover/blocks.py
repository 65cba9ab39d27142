"""Cuts a cover into blocks by quadkey, each with the ring of tiles around it, for areas beyond what one step does.

Tiles are whole numbers here; see `rsp.shared.tilekeys`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rsp.shared.atomic import write_bytes
from rsp.shared.covers import lines_of, read_tiles
from rsp.shared.dataroot import result_key, root_of, touch
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.locations import Location, exists, location, pinned
from rsp.shared.report import Result
from rsp.shared.tilekeys import Keys, among, around, columns

# Tiles of a block: at zoom 18 about 20 km square. Its ring of some 600 tiles is fetched once more.
SIZE = 20_000

# What stands behind a block's name: its own tiles, and these with the ring, which windows need.
OWN, SEEN = ".csv", ".seen.csv"


@dataclass(frozen=True)
class Block:
    """Tiles that are worked on together.

    Attributes:
        zoom: Their zoom.
        own: The tiles of the block, sorted; each tile of the cover is in one block.
        ring: The tiles of the cover beside them, of other blocks, sorted.
    """

    zoom: int
    own: Keys
    ring: Keys

    @property
    def name(self) -> str:
        """24 hexadecimal digits that follow from the tiles: the same block has the same name in every cover."""
        head = f"block 1 {self.zoom} {len(self.own)} {len(self.ring)}\n".encode()
        return result_key(b"".join([head, *(tiles.astype("<i8").tobytes() for tiles in (self.own, self.ring))]))


@dataclass(kw_only=True)
class BlocksResult(Result):
    """What `blocks` did.

    Attributes:
        tiles: How many tiles the cover has.
        blocks: How many blocks it was cut into.
        largest: Tiles of the largest block.
        written: Where the covers of the blocks are, without `.csv` and `.seen.csv`.
    """

    tiles: int
    blocks: int
    largest: int
    written: list[str]


def blocks(cover: Location, out: Location, *, size: int = SIZE) -> BlocksResult:
    """Cut a cover into blocks and write two covers for each: its own tiles, and these with its ring.

    Their names follow from their tiles. What is there already is left as it is, so that a block that another cover
    has too keeps its objects and their ETags.

    Args:
        cover: The cover, CSV, of one zoom.
        out: The folder or prefix that they go to.
        size: How many tiles a block may have.

    Raises:
        UsageError: a size below 1.
        CoverError: the cover cannot be read, or mixes zooms.
        StorageError: the blocks cannot be written.
    """
    zoom, keys = read_keys(cover)
    written, largest = [], 0
    for block in cut(keys, zoom, size):
        largest = max(largest, len(block.own))
        for suffix, tiles in ((OWN, block.own), (SEEN, np.union1d(block.own, block.ring))):
            target = out / f"{block.name}{suffix}"
            if not exists(target):
                write_bytes(target, lines_of(tiles, zoom))
        touch(out / block.name)
        written.append(str(out / block.name))
    return BlocksResult(tiles=len(keys), blocks=len(written), largest=largest, written=written)


def listed(cover: Location, data_root: str, *, size: int = SIZE, at_once: int = 1) -> list[dict[str, Any]]:
    """Cut a cover into blocks below a data root; see `blocks`.

    Args:
        cover: The cover.
        data_root: `s3://bucket/prefix`.
        size: How many tiles a block may have.
        at_once: How many blocks may be worked on at the same time.

    Returns:
        For each block the addresses of its covers, with their ETags, `own` and `seen`, and `at_once`, how many
        blocks are worked on at the same time: there may be fewer than are allowed.

    Raises:
        UsageError: the data root is no address in S3, or see `blocks`.
    """
    folder = root_of(data_root) / "blocks"
    result = blocks(cover, folder, size=size)
    print(f"{result.tiles} tiles in {result.blocks} blocks, the largest of {result.largest}")
    names = [location(block).name for block in result.written]
    return [
        {
            "own": str(pinned(folder / f"{name}{OWN}")),
            "seen": str(pinned(folder / f"{name}{SEEN}")),
            "at_once": min(at_once, len(names)),
        }
        for name in names
    ]


def read_keys(cover: Location) -> tuple[int, Keys]:
    """Return the zoom of a cover and its tiles, sorted, each once; raise `CoverError` as `read_cover` does."""
    tiles = read_tiles(cover)
    zoom = tiles.zoom(cover)
    return zoom, tiles.keys(zoom)


def cut(keys: Keys, zoom: int, size: int = SIZE) -> Iterator[Block]:
    """Yield blocks of at most `size` tiles, in the order of their quadkeys.

    The square of the world is quartered until a square holds few enough tiles; neighbouring quarters of one square
    that are few enough together stay together. So the blocks of one place do not follow from what the cover has
    elsewhere.

    Args:
        keys: The tiles, sorted, each once.
        zoom: Their zoom.
        size: The most tiles that a block may have.

    Raises:
        UsageError: a size below 1.
        CoverError: no tile.
    """
    if size < 1:
        raise UsageError(f"a block has at least 1 tile, got a size of {size}")
    if not len(keys):
        raise CoverError("there is no tile to cut into blocks")
    codes = quadkeys(keys)
    order = np.argsort(codes)
    codes, ordered = codes[order], keys[order]
    for first, last in _runs(codes, zoom, size):
        own = np.sort(ordered[first:last])
        yield Block(zoom, own, ring(own, keys, zoom))


def quadkeys(keys: Keys) -> Keys:
    """Return for each tile the number whose digits to the base of four are its quadkey."""
    x, y = columns(keys)
    return _spread(x) | _spread(y) << 1


def _spread(values: Keys) -> Keys:
    """Put a zero bit before each of 31 bits."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):  # fmt: skip
        values = (values | values << shift) & mask
    return values


def _runs(codes: Keys, zoom: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield first and last place (exclusive) of each block in the sorted quadkeys."""
    # (first, last, code of the square, levels below it), the next one at the end.
    stack = [(0, len(codes), 0, zoom)]
    while stack:
        first, last, code, below = stack.pop()
        if last - first <= size:
            yield first, last
            continue
        step = 1 << 2 * (below - 1)
        inner = first + np.searchsorted(codes[first:last], code + step * np.arange(1, 4))
        bounds = [first, *inner.tolist(), last]
        groups: list[tuple[int, int, int, int]] = []
        for quarter, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                continue
            before = groups[-1] if groups else None
            # A quarter that is too large keeps its code: nothing else joins it.
            if before is not None and end - before[0] <= size:
                groups[-1] = (before[0], end, before[2], below - 1)
            else:
                groups.append((start, end, code + quarter * step, below - 1))
        stack += reversed(groups)


def ring(own: Keys, cover: Keys, zoom: int) -> Keys:
    """Return the tiles of a cover that touch tiles of a block, in a corner too, and are not among them.

    The world is round: the first column of tiles is beside the last.

    Args:
        own: The tiles of the block, sorted.
        cover: All tiles, sorted.
        zoom: Their zoom.
    """
    near = around(own, zoom)
    return near[among(near, cover)]
