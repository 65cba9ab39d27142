"""Augmentations: image and label together, seeded by what they are of, so the same on any number of workers.

`[model] da` names one of ours, `module:attribute`, or an entry point of the group `rsp.augmentations`; `dap` is
the probability that a tile is augmented.

Ours draw a `Change`: a move of the square, which is made where the tile is loaded, and a tone, which changes its
values on the device (`rsp.components.train.tones`). Kornia takes longer for the same (`make bench WORDS=train`
compares them).

One of somebody else is a function `(image, label, rng)`: image (bands, height, width) float32 normalised, label
(height, width) uint8, rng a `numpy.random.Generator`, which must be its only source of chance; it returns image
and label of the same shapes. `height` equals `width`. Where pixels have weights, it is called again with the same
source of chance and the weights as the label.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rsp.components.train.tones import Tone
from rsp.shared import plugins
from rsp.shared.errors import PluginError
from rsp.shared.images import Mask

Floats = npt.NDArray[np.float32]
Augmentation = Callable[..., tuple[Floats, Mask]]
# Image, label, and the weights of its pixels where there are some.
Item = tuple[Floats, Mask, Mask | None]

Sheet = TypeVar("Sheet", bound=npt.NDArray[Any])


class Change(NamedTuple):
    """What is done to a tile.

    Attributes:
        move: One of the eight moves of the square, see `moved`.
        tone: How its values are changed, of the bands that are of images; None for not at all.
    """

    move: int = 0
    tone: Tone | None = None


def none(rng: np.random.Generator, bands: int) -> Change:
    """Leave all as it is."""
    return Change()


def flip(rng: np.random.Generator, bands: int) -> Change:
    """Turn by a multiple of 90 degrees and mirror: one of the seven moves of the square that change it."""
    return Change(int(rng.integers(1, 8)))


def color(rng: np.random.Generator, bands: int) -> Change:
    """As `flip`, or unturned, and change contrast, brightness and the balance of the bands of the image.

    The amounts are in standard deviations of the band: the image is normalised. Larger ones, as those of `strong`,
    were worse on small data sets.
    """
    return Change(int(rng.integers(8)), _tone(rng, bands, contrast=0.1, brightness=0.1, balance=0.05))


def strong(rng: np.random.Generator, bands: int) -> Change:
    """As `flip`, and change brightness, contrast, the balance of the bands, sharpness and noise of the image."""
    move = flip(rng, bands).move
    tone = _tone(rng, bands, contrast=0.25, brightness=0.3, balance=0.15)
    blurred = rng.random() < 0.3
    noise = rng.uniform(0.02, 0.15) if rng.random() < 0.5 else 0.0
    return Change(move, tone._replace(blurred=blurred, noise=noise, seed=int(rng.integers(2**63))))


def _tone(rng: np.random.Generator, bands: int, *, contrast: float, brightness: float, balance: float) -> Tone:
    """Draw contrast, brightness and the balance of the bands, each by up to so much."""
    factor = rng.uniform(1 - contrast, 1 + contrast)
    shift = rng.uniform(-brightness, brightness) + rng.uniform(-balance, balance, bands)
    return Tone(np.full(bands, factor, np.float32), shift.astype(np.float32))


def moved(sheet: Sheet, move: int) -> Sheet:
    """Turn the first two axes by 90 degrees, so many times, and mirror from the fourth move on: a view."""
    sheet = np.rot90(sheet, move % 4)
    return sheet[:, ::-1] if move >= 4 else sheet  # type: ignore[return-value]


# `simple` and `rgb` are names of the seed's successors.
BUILTIN: dict[str, Any] = {
    "none": none,
    "flip": flip,
    "color": color,
    "strong": strong,
    "simple": flip,
    "rgb": strong,
}


def load_augmentation(name: str) -> Callable[..., Any]:
    """Return the augmentation of a name, of ours one that draws; raise `PluginError` where there is none."""
    found: Callable[..., Any] = plugins.load(name, "rsp.augmentations", BUILTIN)
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
) -> Item:
    """Augment a tile by an augmentation of somebody else.

    Args:
        augmentation: What `load_augmentation` returned.
        name: What the configuration calls it.
        image: (bands, height, width) float32, normalised.
        label: (height, width) uint8.
        weights: Likewise, the weights of the pixels if there are some; moved as the label is.
        rng: Its source of chance.

    Raises:
        PluginError: it fails, or does not give a tile of this kind.
    """
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
        item: What it is put into: image (height, width, bands), label and weights (height, width).
        other: Where it comes from: the same place in it.
        rng: The source of chance.
    """
    height, width = item[1].shape
    rows, columns = (round(side * rng.uniform(0.3, 0.7)) for side in (height, width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))

    def mixed(sheet: npt.NDArray[Any], part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        sheet = np.array(sheet)  # it may be that of a tile which is kept
        sheet[top : top + rows, left : left + columns] = part[top : top + rows, left : left + columns]
        return sheet

    weights = None if item[2] is None or other[2] is None else mixed(item[2], other[2])
    return mixed(item[0], other[0]), mixed(item[1], other[1]), weights
