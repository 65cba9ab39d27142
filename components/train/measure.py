"""What is measured on the training tiles where the configuration says `auto`: bands, and weights of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rsp.components.train.data import TileDataset
from rsp.shared.config import Channel
from rsp.shared.errors import TileError, TileSetError
from rsp.shared.images import natural_divisor
from rsp.shared.learning.statistics import Sums, sums_of
from rsp.shared.tiles import Tile

# Tiles that are looked at, evenly spread: more change the third digit, and their decoding takes its time.
SAMPLE = 500


def count_labels(dataset: TileDataset) -> list[int]:
    """Return how many pixels of the labels each class has, of the same sample of tiles.

    Raises:
        TileSetError: none of them has a pixel of a class.
    """
    classes = len(dataset.config.classes)
    counts = np.zeros(256, np.int64)
    for tile in sample_of(dataset):
        try:
            counts += np.bincount(dataset.label(tile).ravel(), minlength=256)
        except TileError:
            continue  # whoever trains on that tile is told
    if not counts[:classes].any():
        raise TileSetError("no class is in the training labels: there is nothing to weigh classes by")
    return [int(count) for count in counts[:classes]]


def sample_of(dataset: TileDataset) -> Sequence[Tile]:
    """Return the tiles that are looked at."""
    tiles = dataset.loader.tiles
    return tiles[:: max(1, -(-len(tiles) // SAMPLE))]


def measure_channels(dataset: TileDataset) -> tuple[tuple[Channel, ...], list[str]]:
    """Return the channels of a data set, means and deviations filled in, and notes on what was found.

    A band whose values are all the same gets the deviation 1, and a note.

    Raises:
        TileSetError: no tile can be read.
    """
    channels = dataset.channels
    if all(channel.mean for channel in channels):
        return channels, []
    total: Sums | None = None
    reason: TileError | None = None
    images = dataset.decoded()
    for tile in sample_of(dataset):
        try:
            image = images.get(tile)
        except TileError as error:
            reason = reason or error
            continue
        # Bands of several types are float32 here, and scaled.
        found = sums_of(image)
        total = found if total is None else total + found
    if total is None:
        raise TileSetError(f"no training tile can be read to measure its bands; the first: {reason}")
    filled: list[Channel] = []
    notes: list[str] = []
    at = 0
    for channel in channels:
        end = at + len(channel.bands)
        part = Sums(total.kind, *(values[at:end] for values in total[1:]))
        at = end
        if channel.mean:
            filled.append(channel)
            continue
        scaled = not np.issubdtype(np.dtype(total.kind), np.integer)
        mean, std = part.rounded(1.0 if scaled else channel.divisor or natural_divisor(total.kind))
        for band, value in zip(channel.bands, std, strict=True):
            if not value:
                notes.append(
                    f"band {band} of {channel.name!r} has one value in all training tiles: it tells nothing"
                )
        filled.append(
            replace(
                channel,
                mean=tuple(mean),
                std=tuple(value or 1.0 for value in std),
            )
        )
    return tuple(filled), notes
