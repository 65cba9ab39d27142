"""Windows upon tile sets: a tile with a border cut from its eight neighbours, mirrored where there is none."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rsp.shared.config import Channel
from rsp.shared.errors import ModelError, TileError, TileSetError
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
# Four rows of a strip, with its neighbours: the fourth is for the workers that are ahead.
KEPT_TILES = 4 * (STRIP + 2)
KEPT_BYTES = 512 << 20


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
    ) -> None:
        self._sources = [(readers[channel.name], channel) for channel in channels]
        self._side, self._named = side, named
        self._raw = raw and len(channels) == 1
        self._revision = revision
        # An error is kept as well, since its neighbours ask for a tile too.
        self._kept: Kept[Loaded | TileError] = Kept(
            lambda loaded: 0 if isinstance(loaded, TileError) else loaded.image.nbytes, keep, KEPT_TILES
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
            raise loaded
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


def in_strips(tiles: Iterable[Tile]) -> list[Tile]:
    """Order tiles so that neighbours come close to each other: strips of columns, each row by row."""
    return sorted(tiles, key=lambda tile: (tile.z, tile.x // STRIP, tile.y, tile.x))


class Decoded(Protocol):
    """What gives the pixels of tiles, all of one size."""

    def get(self, tile: Tile) -> Array:
        """Return the pixels of a tile, shape (height, width, bands); raise `TileError` where there are none."""
        ...


def read_window(images: Decoded, tile: Tile, overlap: int) -> Array:
    """Return a tile with `overlap` pixels of its eight neighbours around it.

    Where a neighbour is absent, cannot be decoded, or is of another size or type, what is there is mirrored.

    Returns:
        Array of shape (height + 2 * overlap, width + 2 * overlap, bands).

    Raises:
        TileError: the tile itself cannot be had, or is not larger than the overlap.
    """
    centre = images.get(tile)
    if overlap == 0:
        return centre
    height, width = centre.shape[:2]
    if overlap >= min(height, width):
        raise TileError(f"it has {width}x{height} pixels, too few for an overlap of {overlap}")
    around: dict[tuple[int, int], Array] = {}
    for offset, neighbour in neighbours(tile).items():
        try:
            image = images.get(neighbour)
        except TileError:
            continue
        if image.shape == centre.shape and image.dtype == centre.dtype:
            around[offset] = image
    window = np.pad(centre, ((overlap, overlap), (overlap, overlap), (0, 0)), mode="reflect")
    # Of a window's rows (and columns): before, in and behind the tile; and where a neighbour has those pixels.
    rows = {-1: slice(0, overlap), 0: slice(overlap, overlap + height), 1: slice(overlap + height, None)}
    columns = {-1: slice(0, overlap), 0: slice(overlap, overlap + width), 1: slice(overlap + width, None)}
    inside = {-1: slice(-overlap, None), 0: slice(None), 1: slice(0, overlap)}
    for (dx, dy), image in around.items():
        window[rows[dy], columns[dx]] = image[inside[dy], inside[dx]]
    for dx in (-1, 1):
        for dy in (-1, 1):
            if (dx, dy) in around:
                continue
            # A corner without a tile: go on from the edge beside it that has one, so that no seam is drawn.
            if (0, dy) in around:
                edge = around[0, dy][inside[dy]]
                window[rows[dy], columns[dx]] = (
                    edge[:, overlap:0:-1] if dx < 0 else edge[:, -2 : -overlap - 2 : -1]
                )
            elif (dx, 0) in around:
                edge = around[dx, 0][:, inside[dx]]
                window[rows[dy], columns[dx]] = edge[overlap:0:-1] if dy < 0 else edge[-2 : -overlap - 2 : -1]
    return window


class Windows:
    """The windows of tiles at one overlap.

    Args:
        images: The decoded tiles.
        overlap: Width of the border in pixels.
    """

    def __init__(self, images: TileImages, overlap: int) -> None:
        self._images, self._overlap = images, overlap

    def __call__(self, tile: Tile) -> Array:
        """Return the pixels of a tile with its border; raises as `read_window` does."""
        return read_window(self._images, tile, self._overlap)

    def shape(self, tile: Tile) -> tuple[int, int]:
        """Return (height, width) of a tile as it lies; raises as `TileImages.get` does."""
        return self._images.shape(tile)
