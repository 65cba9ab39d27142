"""What a network is given of a data set: items and batches, once they are on the device."""

from __future__ import annotations

import torch

from rsp.components.train.batches import Batch, collate
from rsp.components.train.data import TileDataset
from rsp.components.train.tones import prepare


def prepared(batch: Batch, data: TileDataset) -> tuple[torch.Tensor, ...]:
    """Return the images (N, bands, H, W) float32 of a batch, its labels, and the weights of its pixels, if any."""
    images = prepare(batch.images, batch.tones, data.channels, torch.device("cpu"))
    return (images, batch.labels) if batch.weights is None else (images, batch.labels, batch.weights)


def learned(data: TileDataset, epoch: int, index: int) -> tuple[torch.Tensor, ...]:
    """Return the same of one item, or raise the error that stands in its place."""
    batch = collate([data[epoch, index]])
    if isinstance(batch, Exception):
        raise batch
    return tuple(each[0] for each in prepared(batch, data))
