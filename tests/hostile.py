"""Plug-ins that do not do what they should; each is named by a test."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rsp.shared.config import Channel
from rsp.shared.tiles import Tile


class Thin(nn.Module):
    """A network that is one, to be spoilt below."""

    def __init__(self, model, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 3, padding=1)

    def forward(self, x):
        return self.layer(x)


class AsDict(Thin):
    def forward(self, x):
        return {"out": self.layer(x)}


class Smaller(Thin):
    def forward(self, x):
        return self.layer(x)[..., ::2, ::2]


class OneClass(Thin):
    def forward(self, x):
        return self.layer(x)[:, :1]


class Whole(Thin):
    def forward(self, x):
        return self.layer(x).argmax(1, keepdim=True).repeat(1, self.layer.out_channels, 1, 1)


class NotANumber(Thin):
    def forward(self, x):
        return self.layer(x) * float("nan")


class Raising(Thin):
    def forward(self, x):
        raise KeyError("features")


def no_network(model, in_channels, num_classes):
    return {"layer": 1}


def loss_without_factory(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def loss_of_a_number(weights):
    return 3.0


def loss_per_pixel(weights):
    return lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none")


def loss_as_float(weights):
    return lambda logits, labels: 0.5


def loss_detached(weights):
    return lambda logits, labels: nn.functional.cross_entropy(logits, labels).detach()


def loss_raising(weights):
    return lambda logits, labels: logits.gather(1, labels)


def augment_to_one(image, label, rng):
    return image


def augment_smaller(image, label, rng):
    return image[:, ::2, ::2], label[::2, ::2]


def augment_to_double(image, label, rng):
    return image.astype(np.float64), label


def augment_to_nan(image, label, rng):
    return image / np.float32(0), label


def augment_label(image, label, rng):
    return image, label.astype(np.int64)


def augment_raising(image, label, rng):
    return image[5, 5, 5, 5], label


def metric_as_dict(confusion):
    return {"iou": 1.0}


def metric_raising(confusion):
    return confusion[7, 7]


def no_loader(folder, channels, num_classes, tile_size):
    return [Tile(1, 2, 3)]


class Loader:
    """A loader that is one, to be spoilt below."""

    def __init__(self, folder, channels, num_classes, tile_size) -> None:
        self.tiles, self.side = [Tile(x, 0, 5) for x in range(4)], tile_size

    def image(self):
        return np.zeros((self.side, self.side, 3), np.uint8)

    def label(self):
        return np.zeros((self.side, self.side), np.uint8)

    def read(self, tile):
        return self.image(), self.label()


class LoaderOfChannelsFirst(Loader):
    def image(self):
        return np.zeros((3, self.side, self.side), np.uint8)


class LoaderOfLongs(Loader):
    def label(self):
        return np.zeros((self.side, self.side), np.int64)


class LoaderOfManyClasses(Loader):
    def label(self):
        return np.full((self.side, self.side), 9, np.uint8)


class LoaderOfImages(Loader):
    def read(self, tile):
        return self.image()


class LoaderWithoutTiles(Loader):
    def __init__(self, folder, channels, num_classes, tile_size) -> None:
        self.tiles, self.notes = [], []


class LoaderOfOneNote(Loader):
    notes = "all is well"


class LoaderOfOtherChannels(Loader):
    channels = (Channel("images", (1,), (), ()),)


class LoaderOfNames(Loader):
    channels = ("images",)


class LoaderOfADigest(Loader):
    def digest(self):
        return "today"  # a card could not hold it


class LoaderOfNoDigest(Loader):
    def digest(self):
        raise KeyError("labels")


class LoaderRaising(Loader):
    def read(self, tile):
        return torch.load("nothing.pt")
