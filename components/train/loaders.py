"""Loaders: what gives the tiles of a part of the data set, paired by their place in the grid.

`[model] loader` names ours (`tiles`), `module:attribute`, or an entry point of the group `rsp.loaders`. A loader
is made as `make(folder, channels, num_classes, tile_size)`, `folder` being `dataset/training` or
`dataset/validation`: a `Path`, or an `rsp.shared.locations.Address` in S3. It can be pickled, and has `tiles` (the
tiles, in a fixed order), `notes` (what a person should know of them) and `read(tile)`, which returns the image
(tile_size, tile_size, bands) and the label (tile_size, tile_size) uint8, or raises `TileError`; 255 in a label is
a pixel of which nothing is known. It may have `channels`, those it was given with the kinds, value types and
divisors of its tiles filled in, and `digest()`, as `rsp.shared.tileset.tiles_digest`: both go into the model card.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any, Protocol

import numpy as np

from rsp.shared import plugins
from rsp.shared.config import Channel, Config
from rsp.shared.errors import PluginError, RspError, TileError, TileSetError
from rsp.shared.filecache import nearby
from rsp.shared.images import Array, Mask, decode, decode_mask, natural_divisor, palette_of, value_type
from rsp.shared.learning.resize import resize_mask
from rsp.shared.learning.windows import TileImages
from rsp.shared.locations import Location
from rsp.shared.metrics import IGNORE
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, find_tileset, open_reader, tiles_digest


class Loader(Protocol):
    """What gives the tiles of a part of the data set."""

    tiles: Sequence[Tile]
    notes: Sequence[str]

    def read(self, tile: Tile) -> tuple[Array, Mask]:
        """Return image and label of a tile."""


class TileLoader:
    """Reads tile sets `<folder>/<channel>` and `<folder>/labels`, directories or archives (`.pmtiles`).

    Tiles that some of the sets lack are left out, and `notes` says how many.

    Raises:
        TileSetError: a tile set is missing, or they have no tile in common.
    """

    def __init__(self, folder: Location, channels: Sequence[Channel], num_classes: int, tile_size: int) -> None:
        self.channels, self.num_classes, self.tile_size = tuple(channels), num_classes, tile_size
        self.paths = {name: find_tileset(folder, name) for name in [*(c.name for c in channels), "labels"]}
        self._near = {name: nearby(path) for name, path in self.paths.items()}
        self.notes: list[str] = []
        self._readers: dict[str, TileReader] = {}
        self._owner = 0
        self._images: tuple[int, TileImages] | None = None  # by which process it was made
        sets = {name: self._reader(name).cover() for name in self.paths}
        common = reduce(and_, sets.values())
        for name, tiles in sets.items():
            if left := tiles - common:
                first = min(left)
                self.notes.append(
                    f"{self.paths[name]}: {len(left)} of {len(tiles)} tiles are left out, as another of "
                    f"{', '.join(sets)} lacks them; the first is {zxy(first)}"
                )
        if not common:
            raise TileSetError(
                f"{', '.join(sets)} in {folder} have no tile in common; are they of the same cover and zoom?"
            )
        self.tiles: list[Tile] = sorted(common)
        self.channels = tuple(self._typed(channel) for channel in channels)
        self.source_size = self._source_size()

    def _source_size(self) -> int | None:
        """Return the side of the tiles as they lie; None where they are not square, or none can be decoded."""
        for tile in self.tiles:
            try:
                height, width = self.images().shape(tile)
            except TileError:
                continue
            return height if height == width else None
        return None

    def _typed(self, channel: Channel) -> Channel:
        """Return a channel with kind and value type of its first tile that can be decoded; all must have them."""
        for tile in self.tiles:
            try:
                data = self._reader(channel.name).read(tile)
                if channel.kind == "classes" or (channel.kind == "auto" and holds_classes(data, channel)):
                    decode_mask(data)
                    return replace(channel, kind="classes", value_type="uint8", divisor=1.0)
                image = decode(data)
                kind = value_type(image)
            except TileError:
                continue  # whoever reads that tile is told
            divisor = channel.divisor or natural_divisor(image.dtype)
            return replace(channel, kind="image", value_type=kind, divisor=divisor)
        return channel

    def resize(self, side: int) -> None:
        """Bring tiles to another side from now on."""
        self.tile_size, self._images = side, None

    def images(self) -> TileImages:
        """Return the decoded tiles of the channels, at the side of the network; the last ones are kept."""
        if self._images is None or self._images[0] != os.getpid():
            readers = {channel.name: self._reader(channel.name) for channel in self.channels}
            self._images = os.getpid(), TileImages(readers, self.channels, self.tile_size, named=True)
        return self._images[1]

    def label(self, tile: Tile) -> Mask:
        """Return the label of a tile as it lies, (height, width) uint8; raise `TileError`."""
        data = self._reader("labels").read(tile)
        try:
            label = decode_mask(data)
        except RspError as error:
            raise TileError(f"{self._name('labels', tile)} {error}") from error
        check_label(label, self.num_classes, self._name("labels", tile))
        return label

    def digest(self) -> str:
        """Return what identifies the tiles and their labels; see `tiles_digest`."""
        images = [self._reader(name) for name in self.paths if name != "labels"]
        return tiles_digest(images, self._reader("labels"), self.tiles)

    def __getstate__(self) -> dict[str, Any]:
        # An open memory map cannot travel to another process, nor be shared with it after a fork.
        return {**self.__dict__, "_readers": {}, "_owner": 0, "_images": None}

    def _reader(self, name: str) -> TileReader:
        if self._owner != os.getpid():
            self._readers, self._owner = {}, os.getpid()
        if name not in self._readers:
            self._readers[name] = open_reader(self._near[name])
        return self._readers[name]

    def read(self, tile: Tile) -> tuple[Array, Mask]:
        """Return image and label of a tile; see `Loader`."""
        return self.images().get(tile), resize_mask(self.label(tile), self.tile_size, self.tile_size)

    def _name(self, name: str, tile: Tile) -> str:
        return f"{self.paths[name]}, tile {zxy(tile)}:"


def holds_classes(data: bytes, channel: Channel) -> bool:
    """Tell whether a tile is taken for one of classes where the configuration does not say: if it has a palette.

    Three bands 1, 2, 3 are colours: of imagery, too, some programs write such tiles.
    """
    return channel.bands != (1, 2, 3) and bool(palette_of(data))


def check_label(label: Mask, num_classes: int, where: str) -> None:
    """Raise `TileError` where a label holds a class that there is not."""
    known = label[label != IGNORE] if label.size and int(label.max()) == IGNORE else label
    if known.size and int(known.max()) >= num_classes:
        raise TileError(
            f"{where} holds class {int(known.max())}; the configuration has {num_classes} classes "
            f"(0 to {num_classes - 1}, and {IGNORE} where nothing is known)"
        )


# The later names are those of the seed's successors.
BUILTIN = {"tiles": TileLoader, "semseg": TileLoader, "semsegtiles": TileLoader}


def make_loader(config: Config, folder: Location) -> Loader:
    """Return the loader that the configuration names; raise `PluginError` where it is not one."""
    name = config.model.loader
    make = plugins.load(name, "rsp.loaders", BUILTIN)
    with plugins.guarded("loader", name):
        loader: Any = make(folder, config.channels, len(config.classes), config.model.side)
        tiles = getattr(loader, "tiles", None)
        known = isinstance(tiles, Sequence) and len(tiles) and all(isinstance(tile, Tile) for tile in tiles)
    if not known or not callable(getattr(loader, "read", None)):
        raise plugins.unexpected(
            "loader",
            name,
            loader,
            "an object with `tiles` (a list of one Tile or more), `notes` and `read(tile)`",
        )
    if not hasattr(loader, "notes"):
        loader.notes = []
    channels = getattr(loader, "channels", config.channels)
    for what, value, kind in (("notes", loader.notes, str), ("channels", channels, Channel)):
        if not isinstance(value, list | tuple) or not all(isinstance(each, kind) for each in value):
            raise plugins.unexpected("loader", name, value, f"as `{what}` a list of {kind.__name__}")
    ours, theirs = [[(each.name, each.bands) for each in every] for every in (config.channels, channels)]
    if ours != theirs:
        raise PluginError(f"the loader {name!r} has the channels {theirs}; the configuration has {ours}")
    found: Loader = loader
    return found


def read_tile(loader: Loader, config: Config, tile: Tile) -> tuple[Array, Mask]:
    """Return image and label of a tile; raise `PluginError` where the loader gives something else."""
    name, side = config.model.loader, config.model.side
    if name.lower() in BUILTIN:
        return loader.read(tile)
    with plugins.guarded("loader", name):
        pair: Any = loader.read(tile)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise plugins.unexpected("loader", name, pair, "a pair: image and label")
    image, label = pair
    bands, classes = sum(len(channel.bands) for channel in config.channels), len(config.classes)
    if not isinstance(image, np.ndarray) or image.shape != (side, side, bands) or image.dtype.kind not in "uif":
        raise plugins.unexpected("loader", name, image, f"as the image an array of shape {(side, side, bands)}")
    if not isinstance(label, np.ndarray) or label.shape != (side, side) or label.dtype != np.uint8:
        raise plugins.unexpected("loader", name, label, f"as the label an array of uint8 and shape {(side, side)}")
    try:
        check_label(label, classes, f"the loader {name!r} returned a label of tile {zxy(tile)} that")
    except TileError as error:
        raise PluginError(str(error)) from error
    return image, label
