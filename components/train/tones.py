"""Values as a network learns from them: drawn where tiles are loaded, changed where it computes.

A batch travels to the device as its tiles were decoded, mostly in bytes, a fourth of what a network takes. There
it is normalised, and contrast, brightness, sharpness and noise are changed: for all its tiles at once, and while
the processes that load cut the next ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rsp.shared.config import Channel
from rsp.shared.learning.normalise import normalise_batch


class Tone(NamedTuple):
    """How the values of a tile are changed, in standard deviations of their bands: they are normalised.

    Attributes:
        contrast: (bands,) float32, by what the distance of a value from the mean of its band is multiplied.
        shift: (bands,) float32, what is added then.
        blurred: Whether the image is blurred, once it has its colours.
        noise: The deviation of the noise that is added last.
        seed: Of the noise.
    """

    contrast: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]
    blurred: bool = False
    noise: float = 0.0
    seed: int = 0

    def among(self, places: Sequence[int], bands: int) -> Tone:
        """Return it for an input of more bands: its own are at some places, all others stay as they are."""
        found = plain(bands)
        found.contrast[places], found.shift[places] = self.contrast, self.shift
        return self._replace(contrast=found.contrast, shift=found.shift)


class Tones(NamedTuple):
    """Those of a batch. No tensors, since each of those goes from process to process by a file of its own.

    Attributes:
        contrast: (N, bands) float32.
        shift: (N, bands) float32.
        blurred: Of each tile.
        noise: Likewise.
        seeds: Likewise.
    """

    contrast: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]
    blurred: Sequence[bool]
    noise: Sequence[float]
    seeds: Sequence[int]

    @classmethod
    def of(cls, tones: Sequence[Tone]) -> Tones:
        """Join the tones of tiles."""
        contrast, shift, blurred, noise, seeds = zip(*tones, strict=True)
        return cls(np.stack(contrast), np.stack(shift), blurred, noise, seeds)


def plain(bands: int) -> Tone:
    """Return the tone that changes nothing."""
    return Tone(np.ones(bands, np.float32), np.zeros(bands, np.float32))


def image_bands(channels: Sequence[Channel]) -> list[int]:
    """Return which bands of the input are of images, and not planes of classes, which have no colour."""
    kinds = [channel.kind for channel in channels for _ in channel.bands]
    return [at for at, kind in enumerate(kinds) if kind != "classes"]


def prepare(
    images: torch.Tensor, tones: Tones | None, channels: Sequence[Channel], device: torch.device
) -> torch.Tensor:
    """Make the input of a network from the images of a batch.

    Args:
        images: (N, height, width, bands), as they were decoded, with the bands that the channels pick.
        tones: How their values are changed; None where they are what the network takes already.
        channels: Of the model.
        device: Where the network is.

    Returns:
        (N, bands, height, width) float32 on the device, channels last.
    """
    values = images.to(device, non_blocking=True)
    if tones is not None:
        values = normalise_batch(values, channels)
        _change(values, tones, image_bands(channels))
    return values.permute(0, 3, 1, 2)


def _change(values: torch.Tensor, tones: Tones, bands: list[int]) -> None:
    """Change normalised values in place."""
    count, height, width, depth = values.shape
    if (tones.contrast != 1).any() or (tones.shift != 0).any():
        both = map(torch.from_numpy, (tones.contrast, tones.shift))
        contrast, shift = (each.to(values.device, non_blocking=True) for each in both)
        # The bands of a row in one line: a CPU is slow where the last axis is short.
        rows = values.view(count, height, width * depth)
        # The mean of each band stays where it is.
        mean = rows.mean(1).view(count, width, depth).mean(1)
        shift = shift + mean * (1 - contrast)
        rows.mul_(contrast.repeat(1, width)[:, None])
        rows.add_(shift.repeat(1, width)[:, None])
    for image, blurred, noise, seed in zip(values, tones.blurred, tones.noise, tones.seeds, strict=True):
        if blurred:
            image[..., bands] = _blur(image[..., bands])
        if noise:
            source = torch.Generator(values.device).manual_seed(seed)
            shape = height, width, len(bands)
            image[..., bands] += noise * torch.randn(shape, generator=source, device=values.device)


def _blur(image: torch.Tensor) -> torch.Tensor:
    """Blur (height, width, bands) with the binomial filter 1 2 1 in both directions."""
    planes = functional.pad(image.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = (planes[:, :-2] + 2 * planes[:, 1:-1] + planes[:, 2:]) / 4
    return ((rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4).permute(1, 2, 0)
