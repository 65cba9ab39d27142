"""Augmentations: image and label together, seeded by the tile, so the same on any number of workers.

`[model] da` names one of ours, `module:attribute`, or an entry point of the group `rsp.augmentations`; `dap` is
the probability that a tile is augmented. An augmentation is a function `(image, label, rng)`: image (bands,
height, width) float32 normalised, label (height, width) uint8, rng a `numpy.random.Generator`, which must be its
only source of chance; it returns image and label of the same shapes. `height` equals `width`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rsp.shared import plugins
from rsp.shared.errors import PluginError
from rsp.shared.images import Mask

Floats = npt.NDArray[np.float32]
Augmentation = Callable[[Floats, Mask, np.random.Generator], tuple[Floats, Mask]]


def none(image: Floats, label: Mask, rng: np.random.Generator) -> tuple[Floats, Mask]:
    """Leave all as it is."""
    return image, label


def flip(image: Floats, label: Mask, rng: np.random.Generator) -> tuple[Floats, Mask]:
    """Turn by a multiple of 90 degrees and mirror: one of the seven moves of the square that change it."""
    move = int(rng.integers(1, 8))
    image, label = np.rot90(image, move % 4, axes=(1, 2)), np.rot90(label, move % 4)
    return (image[:, :, ::-1], label[:, ::-1]) if move >= 4 else (image, label)


def strong(image: Floats, label: Mask, rng: np.random.Generator) -> tuple[Floats, Mask]:
    """As `flip`, and change brightness, contrast, the balance of the bands, sharpness and noise of the image.

    The amounts are in standard deviations of the band: the image is normalised.
    """
    image, label = flip(image, label, rng)
    bands = image.shape[0]
    contrast = rng.uniform(0.75, 1.25)
    brightness = rng.uniform(-0.3, 0.3)
    balance = rng.uniform(-0.15, 0.15, (bands, 1, 1))
    center = image.mean(axis=(1, 2), keepdims=True)
    image = (image - center) * np.float32(contrast) + center + (brightness + balance).astype(np.float32)
    if rng.random() < 0.3:
        image = _blur(image)
    if rng.random() < 0.5:
        sigma = np.float32(rng.uniform(0.02, 0.15))
        image = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return image.astype(np.float32, copy=False), label


def _blur(image: Floats) -> Floats:
    """Blur with the binomial filter 1 2 1 in both directions."""
    for axis in (1, 2):
        padded = np.pad(image, [(0, 0) if other != axis else (1, 1) for other in range(3)], mode="edge")
        before, after = [np.take(padded, range(start, start + image.shape[axis]), axis) for start in (0, 2)]
        image = (before + 2 * image + after) / np.float32(4)
    return image


# `simple` and `rgb` are names of the seed's successors.
BUILTIN: dict[str, Augmentation] = {"none": none, "flip": flip, "strong": strong, "simple": flip, "rgb": strong}


def load_augmentation(name: str) -> Augmentation:
    """Return the augmentation of a name; raise `PluginError` where there is none."""
    found: Augmentation = plugins.load(name, "rsp.augmentations", BUILTIN)
    if not callable(found):
        raise PluginError(f"the augmentation {name!r} is {plugins.describe(found)}, not a function")
    return found


def augment(
    augmentation: Augmentation, name: str, image: Floats, label: Mask, rng: np.random.Generator
) -> tuple[Floats, Mask]:
    """Augment a tile; raise `PluginError` where that fails or does not give a tile of this kind."""
    if name.lower() in BUILTIN:
        return augmentation(image, label, rng)
    with plugins.guarded("augmentation", name):
        pair: Any = augmentation(image, label, rng)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise plugins.unexpected("augmentation", name, pair, "a pair: image and label")
    for what, got, given, kind in (("image", pair[0], image, np.float32), ("label", pair[1], label, np.uint8)):
        if not isinstance(got, np.ndarray) or got.shape != given.shape or got.dtype != kind:
            wanted = f"as its {what} an array of {np.dtype(kind)} and shape {given.shape}, as it was given"
            raise plugins.unexpected("augmentation", name, got, wanted)
    if not np.isfinite(pair[0]).all():
        raise PluginError(f"the augmentation {name!r} returned an image that holds NaN or infinity")
    return pair[0], pair[1]
