"""Items to batches: which of them an epoch has for each of several processes, and what loads them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from rsp.components.train.data import Item, Key, Sample, TileDataset
from rsp.components.train.tones import Tones
from rsp.shared.errors import RspError


class Batch(NamedTuple):
    """Tiles to learn from.

    Attributes:
        images: (N, height, width, bands), as decoded, or as the network takes them where there are no tones.
        labels: (N, height, width) uint8.
        weights: (N, height, width) uint8, those of the pixels, or None.
        tones: How the values of the images are to be changed.
    """

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None
    tones: Tones | None


def collate(items: list[Item]) -> Batch | RspError:
    """Join items to a batch, or return the first error among them."""
    samples = _samples(items)
    if isinstance(samples, RspError):
        return samples
    # By numpy, since for each thread that computes torch starts more of its own; and band by band, as copying a
    # view that is turned is slow where its last axis is short.
    first = samples[0].image
    images = np.empty((len(samples), *first.shape), first.dtype)
    for image, sample in zip(images, samples, strict=True):
        for band in range(first.shape[2]):
            image[..., band] = sample.image[..., band]
    labels = torch.from_numpy(np.stack([sample.label for sample in samples]))
    weights = [sample.weights for sample in samples if sample.weights is not None]
    tones = [sample.tone for sample in samples if sample.tone is not None]
    return Batch(
        torch.from_numpy(images),
        labels,
        torch.from_numpy(np.stack(weights)) if weights else None,
        Tones.of(tones) if tones else None,
    )


def collect(items: list[Item]) -> tuple[list[torch.Tensor], list[torch.Tensor]] | RspError:
    """Return the images and the labels of items, which may differ in size, or the first error among them."""
    samples = _samples(items)
    if isinstance(samples, RspError):
        return samples
    images, labels = ([np.array(sample[at]) for sample in samples] for at in (0, 1))
    return [*map(torch.from_numpy, images)], [*map(torch.from_numpy, labels)]


def _samples(items: list[Item]) -> list[Sample] | RspError:
    """Return items, or the first error among them."""
    samples = []
    for item in items:
        if isinstance(item, RspError):
            return item
        samples.append(item)
    return samples


class Batches(Sampler[list[Key]]):
    """The batches of an epoch for one of several processes.

    For training, tiles are shuffled by seed and epoch; every process has the same number of batches of the same
    sizes, since they wait for each other, and together they have the tiles that one process with larger batches
    would have. None but a batch size of 1 leads to a batch of one tile in all, of which batch normalisation may
    find no variance: where tiles lack, the first ones of the shuffle come twice. For validation, each tile comes
    once.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffled: bool, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.batch_size, self.shuffled, self.seed = count, batch_size, shuffled, seed
        self.rank, self.world, self.epoch = rank, world, 0
        self.first = 0  # of an epoch that was interrupted, the batch that it goes on with

    def __len__(self) -> int:
        mine = -(-self.count // self.world) if self.shuffled else len(range(self.rank, self.count, self.world))
        return -(-mine // self.batch_size) - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        order = list(range(self.count))
        if self.shuffled:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist()
            each = -(-self.count // self.world)
            # Several processes normalise over the batches of all of them: theirs are those that one would have.
            if each % self.batch_size == 1 and self.batch_size > 1 and self.world == 1:
                each += 1
            order = [order[place % self.count] for place in range(each * self.world)]
        mine = order[self.rank :: self.world]
        for start in range(self.first * self.batch_size, len(mine), self.batch_size):
            yield [(self.epoch, index) for index in mine[start : start + self.batch_size]]


def ahead(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """Yield the batches of a loader, the next of them made by a thread while one is learned from.

    That pays where a step has several threads, which do not have something to do all of the time. With one, or
    where worker processes make the batches, it is the loader alone. An error comes in place of its batch. Once it
    is closed, the thread has ended.
    """
    if loader.num_workers or torch.get_num_threads() == 1:
        yield from loader
        return
    batches = iter(loader)  # in this thread: it draws from the source of chance that the network draws from
    end = object()
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = thread.submit(next, batches, end)
            yield batch


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
