"""Augmentations: image and label together, seeded by what they are of, so the same on any number of workers.

`[model] da` names one of ours, `module:attribute`, or an entry point of the group `rsp.augmentations`; `dap` is
the probability that a tile is augmented. An augmentation is a function `(image, label, rng)`: image (bands,
height, width) float32 normalised, label (height, width) uint8, rng a `numpy.random.Generator`, which must be its
only source of chance; it returns image and label of the same shapes. `height` equals `width`. Where pixels have
weights, it is called again with the same source of chance and the weights as the label.

They are of numpy, on the processors that load: kornia takes longer there (`make bench WORDS=train` compares
them), and what it would take on a GPU was not measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsp.shared import plugins
from rsp.shared.errors import PluginError
from rsp.shared.images import Mask

Floats = npt.NDArray[np.float32]
Augmentation = Callable[..., tuple[Floats, Mask]]
# The bands that are of images, and not planes of classes; None: all of them.
Bands = Sequence[int] | None
# Image, label, and the weights of its pixels where there are some.
Item = tuple[Floats, Mask, Mask | None]


def none(image: Floats, label: Mask, rng: np.random.Generator, bands: Bands = None) -> tuple[Floats, Mask]:
    """Leave all as it is."""
    return image, label


def flip(image: Floats, label: Mask, rng: np.random.Generator, bands: Bands = None) -> tuple[Floats, Mask]:
    """Turn by a multiple of 90 degrees and mirror: one of the seven moves of the square that change it."""
    move = int(rng.integers(1, 8))
    return _moved(image, move), _moved(label, move)


def color(image: Floats, label: Mask, rng: np.random.Generator, bands: Bands = None) -> tuple[Floats, Mask]:
    """As `flip`, or unturned, and change contrast, brightness and the balance of the bands of the image.

    The amounts are in standard deviations of the band: the image is normalised. Larger ones, as those of `strong`,
    were worse on small data sets.
    """
    move = int(rng.integers(8))
    image = np.array(_moved(image, move))
    _change(image, bands, lambda part: _recolor(part, rng, contrast=0.1, brightness=0.1, balance=0.05))
    return image, _moved(label, move)


def strong(image: Floats, label: Mask, rng: np.random.Generator, bands: Bands = None) -> tuple[Floats, Mask]:
    """As `flip`, and change brightness, contrast, the balance of the bands, sharpness and noise of the image."""
    image, label = flip(image, label, rng)
    image = np.array(image)

    def change(part: Floats) -> None:
        _recolor(part, rng, contrast=0.25, brightness=0.3, balance=0.15)
        if rng.random() < 0.3:
            part[:] = _blur(part)
        if rng.random() < 0.5:
            part += np.float32(rng.uniform(0.02, 0.15)) * rng.standard_normal(part.shape, dtype=np.float32)

    _change(image, bands, change)
    return image, label


def _moved(sheet: npt.NDArray[Any], move: int) -> npt.NDArray[Any]:
    """Turn the last two axes by 90 degrees, so many times, and mirror from the fourth move on."""
    sheet = np.rot90(sheet, move % 4, axes=(-2, -1))
    return sheet[..., ::-1] if move >= 4 else sheet


def _change(image: Floats, bands: Bands, change: Callable[[Floats], None]) -> None:
    """Change some bands in place: planes of classes have no colour."""
    if bands is None:
        change(image)
    elif bands:
        part = image[list(bands)]
        change(part)
        image[list(bands)] = part


def _recolor(
    image: Floats, rng: np.random.Generator, *, contrast: float, brightness: float, balance: float
) -> None:
    """Change contrast, brightness and the balance of the bands in place, each by up to so much."""
    factor = np.float32(rng.uniform(1 - contrast, 1 + contrast))
    shift = rng.uniform(-brightness, brightness) + rng.uniform(-balance, balance, (len(image), 1, 1))
    shift = shift.astype(np.float32)
    # The mean of each band stays where it is.
    shift += image.mean(axis=(1, 2), keepdims=True) * (1 - factor)
    image *= factor
    image += shift


def _blur(image: Floats) -> Floats:
    """Blur with the binomial filter 1 2 1 in both directions."""
    for axis in (1, 2):
        padded = np.pad(image, [(0, 0) if other != axis else (1, 1) for other in range(3)], mode="edge")
        before, after = [np.take(padded, range(start, start + image.shape[axis]), axis) for start in (0, 2)]
        image = (before + 2 * image + after) / np.float32(4)
    return image


# `simple` and `rgb` are names of the seed's successors.
BUILTIN: dict[str, Any] = {
    "none": none,
    "flip": flip,
    "color": color,
    "strong": strong,
    "simple": flip,
    "rgb": strong,
}


def load_augmentation(name: str) -> Augmentation:
    """Return the augmentation of a name; raise `PluginError` where there is none."""
    found: Augmentation = plugins.load(name, "rsp.augmentations", BUILTIN)
    if not callable(found):
        raise PluginError(f"the augmentation {name!r} is {plugins.describe(found)}, not a function")
    return found


def augment(
    augmentation: Augmentation,
    name: str,
    image: Floats,
    label: Mask,
    weights: Mask | None,
    rng: np.random.Generator,
    bands: Bands = None,
) -> Item:
    """Augment a tile.

    Args:
        augmentation: What `load_augmentation` returned.
        name: What the configuration calls it.
        image: (bands, height, width) float32, normalised.
        label: (height, width) uint8.
        weights: Likewise, the weights of the pixels if there are some; moved as the label is.
        rng: Its source of chance.
        bands: See `Bands`; ours change the colours of no others.

    Raises:
        PluginError: that fails, or does not give a tile of this kind.
    """
    if name.lower() in BUILTIN:
        if weights is None:
            return *augmentation(image, label, rng, bands), None
        image, sheets = augmentation(image, np.stack([label, weights]), rng, bands)
        return image, sheets[0], sheets[1]
    if weights is not None:  # moved by the same draws
        weights = _called(augmentation, name, image.copy(), weights.copy(), copy.deepcopy(rng))[1]
    # Copies, as the label may be that of a tile which is kept.
    return *_called(augmentation, name, image, label.copy(), rng), weights


def _called(
    augmentation: Augmentation, name: str, image: Floats, label: Mask, rng: np.random.Generator
) -> tuple[Floats, Mask]:
    """Call an augmentation of someone else's, and check what it returns."""
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


def mix(item: Item, other: Item, rng: np.random.Generator) -> Item:
    """Put a part of one tile into another, of the same size: CutMix (Yun et al., 2019, arxiv.org/abs/1905.04899).

    The part is a rectangle of 0.3 to 0.7 times the side in each direction.

    Args:
        item: What it is put into.
        other: Where it comes from: the same place in it.
        rng: The source of chance.
    """
    height, width = item[1].shape
    rows, columns = (round(side * rng.uniform(0.3, 0.7)) for side in (height, width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))

    def mixed(sheet: npt.NDArray[Any], part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        sheet = np.array(sheet)  # it may be that of a tile which is kept
        sheet[..., top : top + rows, left : left + columns] = part[..., top : top + rows, left : left + columns]
        return sheet

    weights = None if item[2] is None or other[2] is None else mixed(item[2], other[2])
    return mixed(item[0], other[0]), mixed(item[1], other[1]), weights
