"""The data set of training: tiles of images and labels, paired by their place in the grid.

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
import torch
from torch.utils.data import Dataset, get_worker_info

from rsp.components.train.augmentation import Floats, augment, load_augmentation, mix
from rsp.components.train.crops import KEPT_BYTES, Crops, Sheets
from rsp.components.train.pixelweights import PixelWeights
from rsp.components.train.sampler import Sampler, read_tile_weights
from rsp.shared import plugins
from rsp.shared.config import SIDE, Channel, Config
from rsp.shared.errors import PluginError, RspError, TileError, TileSetError
from rsp.shared.filecache import nearby
from rsp.shared.images import Array, Mask, decode, decode_mask, natural_divisor, palette_of, value_type
from rsp.shared.learning.card import DIGEST
from rsp.shared.learning.normalise import normalise, normalise_pixels
from rsp.shared.learning.resize import resize_mask
from rsp.shared.learning.windows import Decoded, TileImages, read_window
from rsp.shared.locations import Location
from rsp.shared.metrics import IGNORE, leave_out
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, find_tileset, open_reader, tiles_digest

# Which epoch, and which item of it.
Key = tuple[int, int]
# Image, label, and the weights of its pixels where there are some.
Item = tuple[torch.Tensor, ...] | RspError

# Larger tiles are made smaller where nothing says another: the memory for one with its neighbours has to be there.
LARGEST_SIDE = 1024

# Sets the draws of what is mixed into an item apart from its other ones, [seed, epoch, index].
MIXES = 2


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


class TileDataset(Dataset[Item]):
    """Tiles with their labels: normalised and augmented for training, as prediction sees them for validation.

    An item is asked for by epoch and index, so that what is done to it follows from the seed and these alone. For
    training it is a tile, or a crop if the recipe says so: (bands, side, side) float32 and (side, side) uint8, and
    the weights of the pixels (side, side) uint8 if the recipe names some. For validation the image is the tile
    with a border cut from its neighbours, (side + 2 * overlap, side + 2 * overlap, bands) of any type, since
    prediction normalises it, and the label has the size in which it lies. Classes to ignore are 255 in labels. In
    place of either stands the error that reading raised, which so keeps its words on the way out of a worker
    process.

    Attributes:
        config: The configuration, with what was left to be settled by these tiles settled: their side, the recipe.
    """

    def __init__(
        self, config: Config, folder: Location, *, training: bool, seed: int = 0, processes: int = 1
    ) -> None:
        """Open the tiles.

        Args:
            config: The configuration.
            folder: `dataset/training` or `dataset/validation`.
            training: Which of them it is.
            seed: Of all that is drawn.
            processes: How many train together, each on batches of its own.
        """
        self.loader = make_loader(config, folder)
        if config.model.ts == "auto":
            config = replace(config, model=replace(config.model, ts=self._choose_side()))
        batch, count = config.model.bs * processes, len(self.loader.tiles)
        self.recipe = config.recipe.settled(side=config.model.side, tiles=count, batch=batch)
        config = replace(config, recipe=self.recipe)
        # With what the loader knows of the values of the tiles.
        self.channels: tuple[Channel, ...] = tuple(getattr(self.loader, "channels", config.channels))
        self.channels = tuple(replace(c, kind="image") if c.kind == "auto" else c for c in self.channels)
        self.config, self.training, self.seed = config, training, seed
        self.places = frozenset(self.loader.tiles)
        self.ignored = [index for index, entry in enumerate(config.classes) if entry.ignore]
        self.notes = list(self.loader.notes)
        self._crops: Crops | None = None
        self.augmentation = load_augmentation(config.model.da) if training else None
        name = config.recipe.weights if training else None
        self.weights = PixelWeights(folder, name, self.loader.tiles, config.model.side) if name else None
        self.sampler = self._make_sampler() if training else None

    def _choose_side(self) -> int:
        """Let the network see tiles as they lie, as far as it can; return their side."""
        if not isinstance(self.loader, TileLoader) or self.loader.source_size is None:
            return SIDE
        side = min(LARGEST_SIDE, max(1, round(self.loader.source_size / 32)) * 32)
        self.loader.resize(side)
        return side

    def _make_sampler(self) -> Sampler:
        recipe, side, tiles = self.recipe, self.config.model.side, self.loader.tiles
        weights = counts = None
        if recipe.tile_weights is not None:
            weights, notes = read_tile_weights(recipe.tile_weights, tiles)
            self.notes += notes
        if recipe.balance:
            counts = np.zeros((len(tiles), len(self.config.classes)), np.int64)
            for index, tile in enumerate(tiles):
                try:
                    label = resize_mask(self.label(tile), side, side)
                except TileError:
                    continue  # whoever trains on that tile is told
                counts[index] = np.bincount(label.ravel(), minlength=256)[: counts.shape[1]]
        return Sampler(tiles, side, recipe, self.seed, weights, counts)

    def __getstate__(self) -> dict[str, Any]:
        # Each process keeps tiles of its own.
        return {**self.__dict__, "_crops": None}

    def __len__(self) -> int:
        return len(self.loader.tiles) if self.sampler is None else self.sampler.count

    @property
    def source_size(self) -> int | None:
        """Side of the tiles as they lie; None where that is not known."""
        return self.loader.source_size if isinstance(self.loader, TileLoader) else self.config.model.side

    def digest(self) -> str | None:
        """Return what identifies the tiles and their labels; None for a loader that cannot say."""
        digest = getattr(self.loader, "digest", None)
        if not callable(digest):
            return None
        with plugins.guarded("loader", self.config.model.loader):
            found = digest()
        if not isinstance(found, str) or not DIGEST.fullmatch(found):
            # A card that held it could not be read.
            wanted = "by `digest()` a SHA-256 in 64 hexadecimal digits"
            raise plugins.unexpected("loader", self.config.model.loader, found, wanted)
        return found

    def check_same_values(self, other: TileDataset) -> None:
        """Raise `TileSetError` where the tiles of another part of the data set have values of another type."""
        for ours, theirs in zip(self.channels, other.channels, strict=True):
            for mine, other_one in ((ours.kind, theirs.kind), (ours.value_type, theirs.value_type)):
                if None not in (mine, other_one) and mine != other_one:
                    raise TileSetError(
                        f"the training tiles of {ours.name!r} hold {mine} values, the validation tiles "
                        f"{other_one}: make both the same way"
                    )

    def read(self, tile: Tile) -> tuple[Array, Mask]:
        """Return image and label of a tile at the side of the network, and 255 where a pixel is to be ignored."""
        image, label = read_tile(self.loader, self.config, tile)
        return image, leave_out(label, self.ignored)

    def label(self, tile: Tile) -> Mask:
        """Return the label of a tile, of whatever size, and 255 where a pixel is to be ignored."""
        if isinstance(self.loader, TileLoader):
            return leave_out(self.loader.label(tile), self.ignored)
        return self.read(tile)[1]

    def window(self, tile: Tile) -> tuple[Array, Mask]:
        """Return a tile as prediction sees it, and its label as it lies."""
        return read_window(self.decoded(), tile, self.config.model.overlap), self.label(tile)

    def decoded(self) -> Decoded:
        """Return what gives the images of tiles, at the side of the network."""
        return self.loader.images() if isinstance(self.loader, TileLoader) else _LoadedTiles(self)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        try:
            if self.sampler is None:
                image, label = self.window(self.loader.tiles[index])
                return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(label))
            pixels, label, weights = self._learned(self.sampler, epoch, index)
            if self.recipe.cutmix:
                rng = np.random.default_rng([self.seed, epoch, index, MIXES])
                if rng.random() < self.recipe.cutmix:
                    other = self._learned(self.sampler, epoch, int(rng.integers(len(self))))
                    pixels, label, weights = mix((pixels, label, weights), other, rng)
        except RspError as error:
            return error
        # Mirrored arrays run backwards, which tensors cannot.
        pixels = pixels if min(pixels.strides) > 0 else np.ascontiguousarray(pixels)
        item = torch.from_numpy(pixels), torch.from_numpy(np.array(label))
        return item if weights is None else (*item, torch.from_numpy(np.array(weights)))

    def _learned(self, sampler: Sampler, epoch: int, index: int) -> tuple[Floats, Mask, Mask | None]:
        """Return a tile or a crop, normalised and augmented: image, label and weights."""
        classes = [at for at, kind in enumerate(self._kinds()) if kind == "classes"]
        if self.recipe.crop:
            rng = np.random.default_rng([self.seed, epoch, index])
            crops = self._cutter()
            place = sampler.place(epoch, index, rng, lambda tile: crops.tile(tile).label)
            image, label, weights = crops.cut(place, classes)
        elif sampler.weights is None and self.recipe.passes == 1:
            tile = self.loader.tiles[index]
            rng = np.random.default_rng([self.seed, epoch, tile.z, tile.x, tile.y])
            image, label, weights = self._cutter().tile(tile)
        else:  # the same tile may come twice
            rng = np.random.default_rng([self.seed, epoch, index])
            image, label, weights = self._cutter().tile(self.loader.tiles[sampler.tile(epoch, index)])
        if self.augmentation is None or rng.random() >= self.config.model.dap:
            return np.moveaxis(normalise_pixels(image, self.channels), 2, 0), label, weights
        pixels = normalise(image, self.channels)
        bands = [at for at in range(len(pixels)) if at not in classes] if classes else None
        return augment(self.augmentation, self.config.model.da, pixels, label, weights, rng, bands)

    def _kinds(self) -> list[str]:
        """Return what each band is of."""
        return [channel.kind for channel in self.channels for _ in channel.bands]

    def _sheets(self, tile: Tile) -> Sheets:
        image, label = self.read(tile)
        return Sheets(image, label, None if self.weights is None else self.weights.read(tile))

    def _cutter(self) -> Crops:
        if self._crops is None:
            info = get_worker_info()
            keep = KEPT_BYTES // (2 if info else 1)  # workers are several
            self._crops = Crops(self.places, self.config.model.side, self.recipe.crop, self._sheets, keep=keep)
        return self._crops


class _LoadedTiles:
    """The images of the tiles of a loader of one's own: what lies beside a tile is looked up there, too."""

    def __init__(self, dataset: TileDataset) -> None:
        self._dataset = dataset

    def get(self, tile: Tile) -> Array:
        if tile not in self._dataset.places:
            raise TileError(f"the loader has no tile {zxy(tile)}")
        return read_tile(self._dataset.loader, self._dataset.config, tile)[0]


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
