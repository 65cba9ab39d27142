"""The data set of training: tiles or crops with their labels, drawn and augmented by a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from rsp.components.train.augmentation import BUILTIN as AUGMENTATIONS
from rsp.components.train.augmentation import Change, augment, load_augmentation, mix, moved
from rsp.components.train.crops import KEPT_BYTES, Crops, Sheets
from rsp.components.train.loaders import TileLoader, make_loader, read_tile
from rsp.components.train.pixelweights import PixelWeights
from rsp.components.train.sampler import Sampler, read_tile_weights
from rsp.components.train.tones import Tone, Tones, image_bands, plain, prepare
from rsp.shared import plugins
from rsp.shared.config import SIDE, Channel, Config
from rsp.shared.errors import RspError, TileError, TileSetError
from rsp.shared.images import Array, Mask
from rsp.shared.learning.card import DIGEST
from rsp.shared.learning.normalise import normalise
from rsp.shared.learning.resize import resize_mask
from rsp.shared.learning.windows import Decoded, read_window
from rsp.shared.locations import Location
from rsp.shared.metrics import leave_out
from rsp.shared.tiles import Tile, zxy

# Which epoch, and which item of it.
Key = tuple[int, int]
# Larger tiles are made smaller where nothing says another: the memory for one with its neighbours has to be there.
LARGEST_SIDE = 1024

# Sets the draws of what is mixed into an item apart from its other ones, [seed, epoch, index].
MIXES = 2


class Sample(NamedTuple):
    """A tile or crop as it is loaded; arrays may be views, and of kept tiles: they are not to be written to.

    Attributes:
        image: (height, width, bands), as decoded; what the network takes, float32, where there is no tone.
        label: (height, width) uint8, 255 where nothing is known.
        weights: (height, width) uint8, those of the pixels if the recipe names some.
        tone: How the values of the image are changed once it is on the device.
    """

    image: Array
    label: Mask
    weights: Mask | None = None
    tone: Tone | None = None


Item = Sample | RspError


class TileDataset(Dataset[Item]):
    """Tiles with their labels: augmented for training, as prediction sees them for validation.

    An item is asked for by epoch and index, so that what is done to it follows from the seed and these alone. For
    training it is a tile, or a crop if the recipe says so, which is normalised on the device, but where a plug-in
    augments it, or it is mixed with another. For validation the image is the tile with a border cut from its
    neighbours, (side + 2 * overlap, side + 2 * overlap, bands), since prediction normalises it, and the label has
    the size in which it lies. Classes to ignore are 255 in labels. In place of an item stands the error that
    reading raised, which so keeps its words on the way out of a worker process.

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
        self._is_ours = config.model.da.lower() in AUGMENTATIONS
        # Values of one type make a batch; those of a loader of one's own may be of several.
        self._is_raw = isinstance(self.loader, TileLoader) and not self.recipe.cutmix
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
                return Sample(*self.window(self.loader.tiles[index]))
            found = self._learned(self.sampler, epoch, index)
            if self.recipe.cutmix:
                rng = np.random.default_rng([self.seed, epoch, index, MIXES])
                if rng.random() < self.recipe.cutmix:
                    other = self._learned(self.sampler, epoch, int(rng.integers(len(self))))
                    return Sample(*mix(found[:3], other[:3], rng))
            return found
        except RspError as error:
            return error

    def _learned(self, sampler: Sampler, epoch: int, index: int) -> Sample:
        """Return a tile or a crop, augmented."""
        images = image_bands(self.channels)
        bands = sum(len(channel.bands) for channel in self.channels)
        if self.recipe.crop:
            rng = np.random.default_rng([self.seed, epoch, index])
            crops = self._cutter()
            place = sampler.place(epoch, index, rng, lambda tile: crops.tile(tile).label)
            image, label, weights = crops.cut(place, sorted({*range(bands)} - {*images}))
        elif sampler.weights is None and self.recipe.passes == 1:
            tile = self.loader.tiles[index]
            rng = np.random.default_rng([self.seed, epoch, tile.z, tile.x, tile.y])
            image, label, weights = self._cutter().tile(tile)
        else:  # the same tile may come twice
            rng = np.random.default_rng([self.seed, epoch, index])
            image, label, weights = self._cutter().tile(self.loader.tiles[sampler.tile(epoch, index)])
        assert self.augmentation is not None
        augmented = rng.random() < self.config.model.dap
        if augmented and not self._is_ours:
            item = augment(
                self.augmentation, self.config.model.da, normalise(image, self.channels), label, weights, rng
            )
            return Sample(np.moveaxis(item[0], 0, 2), *item[1:])
        change: Change = self.augmentation(rng, len(images)) if augmented else Change()
        tone = plain(bands) if change.tone is None else change.tone.among(images, bands)
        image, label = moved(image, change.move), moved(label, change.move)
        if weights is not None:
            weights = moved(weights, change.move)
        if self._is_raw and self._is_ours:
            return Sample(image, label, weights, tone)
        (values,) = prepare(
            torch.from_numpy(image[None].copy()), Tones.of([tone]), self.channels, torch.device("cpu")
        )
        return Sample(values.permute(1, 2, 0).numpy(), label, weights)

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
