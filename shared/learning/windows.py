"""Windows upon tile sets: a tile with a border cut from its eight neighbours, mirrored where there is none.

A window may hold a block of tiles instead (`Block`), so that less of what the network sees is border.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rsp.shared.config import Channel
from rsp.shared.errors import ModelError, TileError, TileSetError, untraced
from rsp.shared.images import Array, Mask
from rsp.shared.kept import Kept
from rsp.shared.learning.normalise import check_type, pick_bands, stack_bands
from rsp.shared.learning.resize import size_bands
from rsp.shared.locations import Location
from rsp.shared.tiles import Tile, neighbours, zxy
from rsp.shared.tileset import TileReader, find_tileset, is_archive, open_reader

# Tiles side by side that are worked through row by row (`in_strips`): the border columns of a strip are decoded
# twice, and three rows of it must be kept.
STRIP = 16
KEPT_BYTES = 512 << 20
# Tiles along a side of a block. They divide a strip.
SPANS = (1, 2, 4)


def kept_tiles(span: int = 1) -> int:
    """Return how many decoded tiles are kept: what a row of blocks and the next see of a strip, and around it."""
    return (2 * span + 2) * (STRIP + 2)


@contextmanager
def open_channels(
    path: Location, channels: Sequence[Channel], *, empty: bool = False
) -> Iterator[dict[str, TileReader]]:
    """Open the tile set of each channel of a model, by name.

    Args:
        path: A folder that holds a tile set for each channel (`images`, or `images.pmtiles`); or a tile set, for a
            model of one channel.
        channels: The channels.
        empty: A tile set may have no tile.

    Raises:
        TileSetError: no tile set, or not one for each channel.
    """
    names = sorted({channel.name for channel in channels})
    sources: dict[str, Location] = {}
    try:
        sources = {name: find_tileset(path, name) for name in names}
    except TileSetError:
        if len(names) == 1:
            sources = {names[0]: path}
        elif is_archive(path) or (isinstance(path, Path) and not path.is_dir()):
            raise TileSetError(
                f"the model has the channels {', '.join(names)}: {path} must be a folder that holds a tile "
                "set for each, under these names"
            ) from None
        else:
            raise
    with ExitStack() as stack:
        yield {name: stack.enter_context(open_reader(source, empty=empty)) for name, source in sources.items()}


class Tiles(Protocol):
    """What `TileImages` needs of a tile set, or of what stands for one."""

    @property
    def path(self) -> Location | str:
        """What messages call it."""
        ...

    def __contains__(self, tile: object) -> bool: ...

    def image(self, tile: Tile) -> Array:
        """Return the pixels of a tile; raise `TileError` where there are none."""
        ...

    def mask(self, tile: Tile) -> Mask:
        """Return the class indices of a tile; raise `TileError` where there are none."""
        ...


class Loaded(NamedTuple):
    """A tile of all channels: its pixels as the network sees them, and (height, width) of the tile as it lies."""

    image: Array
    shape: tuple[int, int]


class TileImages:
    """The decoded tiles of the channels of a model. It keeps the last ones, and may be shared by threads.

    Args:
        readers: A tile set for each channel, by name.
        channels: The channels of the model, in order.
        side: Every tile is brought to this side, that of the model; None leaves them as they lie.
        named: Errors begin with the tile set and the tile, for callers that have no list of what failed.
        raw: Leave the bands of the (only) channel as they are, for a reader that picks them itself.
        revision: Tells what a tile is now, for tiles that may change: one of another revision is read again.
        keep: Bytes of decoded tiles to keep.
        span: Tiles along a side of the blocks that windows will hold.
    """

    def __init__(
        self,
        readers: Mapping[str, Tiles],
        channels: Sequence[Channel],
        side: int | None = None,
        *,
        named: bool = False,
        raw: bool = False,
        revision: Callable[[Tile], Hashable] | None = None,
        keep: int = KEPT_BYTES,
        span: int = 1,
    ) -> None:
        self._sources = [(readers[channel.name], channel) for channel in channels]
        self._side, self._named = side, named
        self._raw = raw and len(channels) == 1
        self._revision = revision
        # An error is kept as well, since its neighbours ask for a tile too.
        self._kept: Kept[Loaded | TileError] = Kept(
            lambda loaded: 0 if isinstance(loaded, TileError) else loaded.image.nbytes,
            keep,
            kept_tiles(span),
        )

    def get(self, tile: Tile) -> Array:
        """Return the picked bands of all channels, shape (height, width, bands).

        Raises:
            TileError: a channel has no such tile, it cannot be decoded, or has too few bands.
        """
        return self._loaded(tile).image

    def shape(self, tile: Tile) -> tuple[int, int]:
        """Return height and width of a tile of the first channel as it lies; raises as `get` does."""
        return self._loaded(tile).shape

    def _loaded(self, tile: Tile) -> Loaded:
        key = tile if self._revision is None else (tile, self._revision(tile))
        loaded = self._kept.get(key, lambda: self._load(tile))
        if isinstance(loaded, TileError):
            raise untraced(loaded)
        return loaded

    def _load(self, tile: Tile) -> Loaded | TileError:
        """Return a decoded tile, or what is wrong with it."""
        images: list[Array] = []
        shape = (0, 0)
        whole: dict[tuple[int, bool], Array] = {}  # several channels may take bands of one tile set
        for reader, channel in self._sources:
            where = f"{reader.path}, tile {zxy(tile)}: " if self._named else ""
            if tile not in reader:
                return TileError(f"{where}the channel {channel.name!r} has no such tile in {reader.path}")
            try:
                key = id(reader), channel.kind == "classes"
                if key not in whole:
                    whole[key] = reader.mask(tile)[:, :, np.newaxis] if key[1] else reader.image(tile)
                image = whole[key]
                check_type(image, channel)
                shape = shape if images else (image.shape[0], image.shape[1])
                images.append(self._sized(image if self._raw else pick_bands(image, channel), channel))
            except TileError as error:
                return type(error)(f"{where}{error}")  # without its traceback, which would keep what it saw
            except ModelError as error:
                return TileError(f"{where}{error}")
        sizes = sorted({image.shape[:2] for image in images})
        if len(sizes) > 1:
            return TileError(f"its channels differ in size: {' and '.join(f'{w}x{h}' for h, w in sizes)} pixels")
        return Loaded(stack_bands(images, [channel for _, channel in self._sources]), shape)

    def _sized(self, image: Array, channel: Channel) -> Array:
        return image if self._side is None else size_bands(image, channel, self._side)


class Block(NamedTuple):
    """Tiles that one window holds: `span` by `span`, of which `tile` is the one in the upper left corner."""

    tile: Tile
    span: int = 1

    def places(self) -> Iterator[tuple[int, int, Tile]]:
        """Yield column, row and tile, row by row; both count from 0."""
        x, y, z = self.tile
        for row in range(self.span):
            for column in range(self.span):
                yield column, row, Tile(x + column, y + row, z)

    def tiles(self) -> list[Tile]:
        """Return the tiles, row by row."""
        return [tile for _, _, tile in self.places()]


def in_strips(tiles: Iterable[Tile]) -> list[Tile]:
    """Order tiles so that neighbours come close to each other: strips of columns, each row by row."""
    return sorted(tiles, key=lambda tile: (tile.z, tile.x // STRIP, tile.y, tile.x))


def in_blocks(tiles: Iterable[Tile], span: int = 1) -> list[Tile | Block]:
    """Join tiles to blocks, in strips; those of a block that is not whole come one by one.

    Which blocks there are follows from the tiles alone: their corners lie at multiples of `span`.
    """
    if span == 1:
        return [*in_strips(tiles)]
    members = set(tiles)
    found: list[Tile | Block] = []
    for corner in in_strips({Tile(tile.x - tile.x % span, tile.y - tile.y % span, tile.z) for tile in members}):
        block = Block(corner, span)
        there = [tile for tile in block.tiles() if tile in members]
        found += [block] if len(there) == span * span else there
    return found


def tiles_of(item: Tile | Block) -> list[Tile]:
    """Return the tiles of a block, or the one tile."""
    return item.tiles() if isinstance(item, Block) else [item]


class Decoded(Protocol):
    """What gives the pixels of tiles, all of one size."""

    def get(self, tile: Tile) -> Array:
        """Return the pixels of a tile, shape (height, width, bands); raise `TileError` where there are none."""
        ...


def read_window(images: Decoded, tile: Tile, overlap: int, span: int = 1) -> Array:
    """Return a tile, or a block of tiles, with `overlap` pixels of its neighbours around it.

    Where a neighbour is absent, cannot be decoded, or is of another size or type, what is there is mirrored.

    Args:
        images: The decoded tiles.
        tile: The tile; of a block the one in the upper left corner.
        overlap: Width of the border in pixels.
        span: Tiles along a side of the block.

    Returns:
        Array of shape (span * height + 2 * overlap, span * width + 2 * overlap, bands).

    Raises:
        TileError: a tile of the block cannot be had, is not larger than the overlap, or differs from the first in
            size or type.
    """
    centre = images.get(tile) if span == 1 else _joined(images, Block(tile, span))
    if overlap == 0:
        return centre
    height, width = (side // span for side in centre.shape[:2])
    if overlap >= min(height, width):
        raise TileError(f"it has {width}x{height} pixels, too few for an overlap of {overlap}")
    around: dict[tuple[int, int], Array] = {}
    for (column, row), neighbour in _ring(tile, span).items():
        try:
            image = images.get(neighbour)
        except TileError:
            continue
        if image.shape == (height, width, centre.shape[2]) and image.dtype == centre.dtype:
            around[column, row] = image
    if len(around) == 4 * span + 4:  # else something is mirrored
        sides = (side + 2 * overlap for side in centre.shape[:2])
        window = np.empty((*sides, centre.shape[2]), centre.dtype)
        window[overlap:-overlap, overlap:-overlap] = centre
    else:
        window = np.pad(centre, ((overlap, overlap), (overlap, overlap), (0, 0)), mode="reflect")
    # Of a window's rows (and columns): before, in and behind the block; and where a neighbour has those pixels.
    rows, columns = _parts(height, overlap, span), _parts(width, overlap, span)
    inside = {-1: slice(-overlap, None), span: slice(0, overlap)}
    whole = slice(None)
    for (column, row), image in around.items():
        window[rows[row], columns[column]] = image[inside.get(row, whole), inside.get(column, whole)]
    for column, beside in ((-1, 0), (span, span - 1)):
        for row, under in ((-1, 0), (span, span - 1)):
            if (column, row) in around:
                continue
            # A corner without a tile: go on from the edge beside it that has one, so that no seam is drawn.
            if (beside, row) in around:
                edge = around[beside, row][inside[row]]
                window[rows[row], columns[column]] = (
                    edge[:, overlap:0:-1] if column < 0 else edge[:, -2 : -overlap - 2 : -1]
                )
            elif (column, under) in around:
                edge = around[column, under][:, inside[column]]
                window[rows[row], columns[column]] = (
                    edge[overlap:0:-1] if row < 0 else edge[-2 : -overlap - 2 : -1]
                )
    return window


def _joined(images: Decoded, block: Block) -> Array:
    """Return the pixels of a block; raise `TileError` where its tiles are not all alike."""
    found = [images.get(tile) for tile in block.tiles()]
    if len({(image.shape, image.dtype) for image in found}) > 1:
        raise TileError("the tiles of its block differ in size or type")
    rows = [found[first : first + block.span] for first in range(0, len(found), block.span)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _ring(tile: Tile, span: int) -> dict[tuple[int, int], Tile]:
    """Return the tiles around a block, by column and row: those of the block count from 0 to `span` - 1."""
    found: dict[tuple[int, int], Tile] = {}
    for column, row, member in Block(tile, span).places():
        for (dx, dy), neighbour in neighbours(member).items():
            place = column + dx, row + dy
            if not all(0 <= each < span for each in place):
                found[place] = neighbour
    return found


def _parts(side: int, overlap: int, span: int) -> dict[int, slice]:
    """Return where in a window the tiles of a block and those beside it lie, along one axis."""
    end = overlap + span * side
    inner = {number: slice(overlap + number * side, overlap + (number + 1) * side) for number in range(span)}
    return {-1: slice(0, overlap), **inner, span: slice(end, end + overlap)}


class Windows:
    """The windows of tiles, and of blocks of them, at one overlap.

    Args:
        images: The decoded tiles.
        overlap: Width of the border in pixels.
    """

    def __init__(self, images: TileImages, overlap: int) -> None:
        self._images, self._overlap = images, overlap

    def __call__(self, tile: Tile, span: int = 1) -> Array:
        """Return the pixels of a tile, or of a block, with their border; raises as `read_window` does."""
        return read_window(self._images, tile, self._overlap, span)

    def shape(self, tile: Tile) -> tuple[int, int]:
        """Return (height, width) of a tile as it lies; raises as `TileImages.get` does."""
        return self._images.shape(tile)
