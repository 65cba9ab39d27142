"""The data set of training: tiles of images and labels, paired by their place in the grid.

`[model] loader` names ours (`tiles`), `module:attribute`, or an entry point of the group `rsp.loaders`. A loader
is made as `make(folder, channels, num_classes, tile_size)`, `folder` being `dataset/training` or
`dataset/validation`: a `Path`, or an `rsp.shared.locations.Address` in S3. It can be pickled, and has `tiles` (the
tiles, in a fixed order), `notes` (what a person should know of them) and `read(tile)`, which returns the image
(tile_size, tile_size, bands) and the label (tile_size, tile_size) uint8, or raises `TileError`. It may have
`channels`, those it was given with the value types and divisors of its tiles filled in, and `digest()`, as
`rsp.shared.tileset.tiles_digest`: both go into the model card.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from rsp.components.train.augmentation import augment, load_augmentation
from rsp.shared import plugins
from rsp.shared.config import Channel, Config
from rsp.shared.errors import PluginError, RspError, TileError, TileSetError
from rsp.shared.filecache import nearby
from rsp.shared.images import Array, Mask, decode, decode_mask, natural_divisor, value_type
from rsp.shared.learning.normalise import normalise, pick_bands, scale, stack_bands
from rsp.shared.locations import Location
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, find_tileset, open_reader, tiles_digest

# Which epoch, and which tile of the data set.
Key = tuple[int, int]
Item = tuple[torch.Tensor, torch.Tensor] | RspError


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

    def _typed(self, channel: Channel) -> Channel:
        """Return a channel with the value type of its first tile that can be decoded; all others must have it."""
        for tile in self.tiles:
            try:
                image = decode(self._reader(channel.name).read(tile))
                kind = value_type(image)
            except TileError:
                continue  # whoever reads that tile is told
            divisor = channel.divisor or natural_divisor(image.dtype)
            return replace(channel, value_type=kind, divisor=divisor)
        return channel

    def digest(self) -> str:
        """Return what identifies the tiles and their labels; see `tiles_digest`."""
        images = [self._reader(name) for name in self.paths if name != "labels"]
        return tiles_digest(images, self._reader("labels"), self.tiles)

    def __getstate__(self) -> dict[str, Any]:
        # An open memory map cannot travel to another process, nor be shared with it after a fork.
        return {**self.__dict__, "_readers": {}, "_owner": 0}

    def _reader(self, name: str) -> TileReader:
        if self._owner != os.getpid():
            self._readers, self._owner = {}, os.getpid()
        if name not in self._readers:
            self._readers[name] = open_reader(self._near[name])
        return self._readers[name]

    def read(self, tile: Tile) -> tuple[Array, Mask]:
        """Return image and label of a tile; see `Loader`."""
        images: dict[str, Array] = {}  # several channels may take bands of one tile set
        bands = []
        for channel in self.channels:
            if channel.name not in images:
                data = self._reader(channel.name).read(tile)
                images[channel.name] = self._guarded(channel.name, tile, lambda data=data: decode(data))
            picked = self._guarded(
                channel.name, tile, lambda channel=channel: pick_bands(images[channel.name], channel)
            )
            bands.append(resize_image(picked, self.tile_size, channel.divisor))
        data = self._reader("labels").read(tile)
        label = self._guarded("labels", tile, lambda: decode_mask(data))
        if label.size and int(label.max()) >= self.num_classes:
            raise TileError(
                f"{self._name('labels', tile)} holds class {int(label.max())}; the configuration has "
                f"{self.num_classes} classes (0 to {self.num_classes - 1})"
            )
        return stack_bands(bands, self.channels), resize_label(label, self.tile_size)

    def _name(self, name: str, tile: Tile) -> str:
        return f"{self.paths[name]}, tile {zxy(tile)}:"

    def _guarded(self, name: str, tile: Tile, work: Any) -> Any:
        """Do something with a tile; an error says with which."""
        try:
            return work()
        except RspError as error:
            raise TileError(f"{self._name(name, tile)} {error}") from error


def resize_image(image: Array, side: int, divisor: float | None = None) -> Array:
    """Bring an image to a side: by the mean of the area when it shrinks, bilinear when it grows.

    Args:
        image: Shape (height, width, bands). One of the right size stays as it is, type included.
        side: In pixels.
        divisor: See `scale`.

    Returns:
        Shape (side, side, bands); float32 as `scale` makes it where the size changed.
    """
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    tensor = torch.from_numpy(np.ascontiguousarray(scale(image, divisor).transpose(2, 0, 1)))[None]
    if height >= side and width >= side:
        tensor = F.interpolate(tensor, size=(side, side), mode="area")
    else:
        tensor = F.interpolate(tensor, size=(side, side), mode="bilinear", align_corners=False)
    resized: Array = tensor[0].permute(1, 2, 0).numpy()
    return resized


def resize_label(label: Mask, side: int) -> Mask:
    """Bring a label (height, width) to a side: each pixel takes the class that lies under its centre."""
    height, width = label.shape
    if (height, width) == (side, side):
        return label
    rows, columns = [((np.arange(side) + 0.5) * length / side).astype(np.intp) for length in (height, width)]
    return label[np.ix_(rows, columns)]


class TileDataset(Dataset[Item]):
    """Tiles with their labels: normalised and augmented for training, as they are decoded for validation.

    An item is asked for by epoch and index, so that what is done to a tile follows from seed, epoch and tile
    alone. For training it is (bands, side, side) float32 and (side, side) uint8; for validation the image stays
    (side, side, bands) of any type, since prediction normalises it. In place of either stands the error that
    reading raised, which so keeps its words on the way out of a worker process.
    """

    def __init__(self, config: Config, folder: Location, *, training: bool, seed: int = 0) -> None:
        self.loader = make_loader(config, folder)
        # With what the loader knows of the values of the tiles.
        known = getattr(self.loader, "channels", None)
        self.channels: tuple[Channel, ...] = config.channels
        if isinstance(known, list | tuple) and all(isinstance(channel, Channel) for channel in known):
            self.channels = tuple(known)
        self.config, self.training, self.seed = config, training, seed
        self.augmentation = load_augmentation(config.model.da) if training else None

    def __len__(self) -> int:
        return len(self.loader.tiles)

    def digest(self) -> str | None:
        """Return what identifies the tiles and their labels; None for a loader that cannot say."""
        digest = getattr(self.loader, "digest", None)
        return str(digest()) if callable(digest) else None

    def check_same_values(self, other: TileDataset) -> None:
        """Raise `TileSetError` where the tiles of another part of the data set have values of another type."""
        for ours, theirs in zip(self.channels, other.channels, strict=True):
            if None not in (ours.value_type, theirs.value_type) and ours.value_type != theirs.value_type:
                raise TileSetError(
                    f"the training tiles of {ours.name!r} hold {ours.value_type} values, the validation tiles "
                    f"{theirs.value_type}: make both the same way"
                )

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        tile = self.loader.tiles[index]
        try:
            image, label = read_tile(self.loader, self.config, tile)
        except RspError as error:
            return error
        if self.augmentation is None:
            return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(label))
        pixels = normalise(image, self.channels)
        rng = np.random.default_rng([self.seed, epoch, tile.z, tile.x, tile.y])
        if rng.random() < self.config.model.dap:
            try:
                pixels, label = augment(self.augmentation, self.config.model.da, pixels, label, rng)
            except RspError as error:
                return error
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(np.array(label))


# The later names are those of the seed's successors.
BUILTIN = {"tiles": TileLoader, "semseg": TileLoader, "semsegtiles": TileLoader}


def make_loader(config: Config, folder: Location) -> Loader:
    """Return the loader that the configuration names; raise `PluginError` where it is not one."""
    name = config.model.loader
    make = plugins.load(name, "rsp.loaders", BUILTIN)
    with plugins.guarded("loader", name):
        loader: Any = make(folder, config.channels, len(config.classes), config.model.ts)
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
    found: Loader = loader
    return found


def read_tile(loader: Loader, config: Config, tile: Tile) -> tuple[Array, Mask]:
    """Return image and label of a tile; raise `PluginError` where the loader gives something else."""
    name, side = config.model.loader, config.model.ts
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
    if int(label.max()) >= classes:
        raise PluginError(
            f"the loader {name!r} returned a label of tile {tile.z}/{tile.x}/{tile.y} that holds class "
            f"{int(label.max())}; the configuration has {classes} classes (0 to {classes - 1})"
        )
    return image, label


def collate(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor] | RspError:
    """Join items to a batch (N, C, H, W) and (N, H, W), or return the first error among them."""
    joined = collect(items)
    return joined if isinstance(joined, RspError) else (torch.stack(joined[0]), torch.stack(joined[1]))


def collect(items: list[Item]) -> tuple[list[torch.Tensor], list[torch.Tensor]] | RspError:
    """Return the images and the labels of items, or the first error among them."""
    images, labels = [], []
    for item in items:
        if isinstance(item, RspError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return images, labels


class Batches(Sampler[list[Key]]):
    """The batches of an epoch for one of several processes.

    For training, tiles are shuffled by seed and epoch; every process has the same number of batches of the same
    sizes, since they wait for each other, and none but a batch size of 1 leads to a batch of one tile, of which
    batch normalisation may find no variance: where tiles lack, the first ones of the shuffle come twice. For
    validation, each tile comes once.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffled: bool, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.batch_size, self.shuffled, self.seed = count, batch_size, shuffled, seed
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        mine = -(-self.count // self.world) if self.shuffled else len(range(self.rank, self.count, self.world))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = list(range(self.count))
        if self.shuffled:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist()
            each = -(-self.count // self.world)
            if each % self.batch_size == 1 and self.batch_size > 1:
                each += 1
            order = [order[place % self.count] for place in range(each * self.world)]
        mine = order[self.rank :: self.world]
        for start in range(0, len(mine), self.batch_size):
            yield [(self.epoch, index) for index in mine[start : start + self.batch_size]]


def make_batches(dataset: TileDataset, batches: Batches, *, workers: int, pinned: bool) -> DataLoader[Any]:
    """Return what loads the batches, by worker processes that live as long as it does (0: by this process)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate if dataset.training else collect,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=workers > 0,
        # Forking a process in which torch or GDAL runs threads can deadlock.
        multiprocessing_context="spawn" if workers else None,
    )
