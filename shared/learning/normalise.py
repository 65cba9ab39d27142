"""From decoded tiles to the input of a network: pick bands, scale, normalise. Training and inference share it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsp.shared.config import Channel
from rsp.shared.errors import ModelError, TileError
from rsp.shared.images import Array, natural_divisor, value_type

if TYPE_CHECKING:
    import torch


def pick_bands(image: Array, channel: Channel) -> Array:
    """Return the bands that a channel takes from its tile, in its order.

    Args:
        image: Shape (height, width, bands), as decoded; of a channel of classes their indices, in one band.
        channel: Its `bands` count from 1, or are indices of classes: each becomes a band of 0 and 1.

    Raises:
        ModelError: the tile has fewer bands than the channel wants.
        TileError: its values are of another type than those that the model was trained on.
    """
    check_type(image, channel)
    if channel.kind == "classes":
        if image.shape[2] != 1:
            raise TileError(
                f"the channel {channel.name!r} holds classes, in one band; the tile has {image.shape[2]}"
            )
        return (image == np.array(channel.bands)).astype(np.uint8)
    wanted = max(channel.bands)
    if image.shape[2] < wanted:
        raise ModelError(
            f"the model wants {_bands(wanted)} of {channel.name!r}, the tile has {image.shape[2]}"
            if wanted == len(channel.bands)
            else f"the model wants band {wanted} of {channel.name!r}, the tile has {_bands(image.shape[2])}"
        )
    if channel.bands == tuple(range(1, image.shape[2] + 1)):
        return image
    return image[:, :, [band - 1 for band in channel.bands]]


def check_type(image: Array, channel: Channel) -> None:
    """Raise `TileError` where the values of a tile are not of the type that a channel was trained on.

    Values of another type would be scaled differently than in training, and nearly always answered with one class.
    """
    found = value_type(image)
    if channel.value_type is not None and found != channel.value_type:
        raise TileError(
            f"the tile holds {found} values, and the model takes {channel.value_type} for {channel.name!r}: make "
            "the tiles as those of the training were made (`rsp tile --range` scales values to bytes)"
        )


def stack_bands(images: Sequence[Array], channels: Sequence[Channel]) -> Array:
    """Join the picked bands of several channels of the same size, in order.

    The type stays where all have the same; else each is scaled first (to float32 in 0..1), since 255 in a byte and
    in an elevation model are not alike.
    """
    if len({image.dtype for image in images}) > 1:
        images = [scale(image, channel.divisor) for image, channel in zip(images, channels, strict=True)]
    return images[0] if len(images) == 1 else np.concatenate(images, axis=2)


def stacked_type(channels: Sequence[Channel]) -> str | None:
    """Return the value type of the stacked bands of channels (see `stack_bands`); None where it is not known."""
    kinds = {channel.value_type for channel in channels}
    return kinds.pop() if len(kinds) == 1 else None if None in kinds else "float32"


def scale(image: Array, divisor: float | None = None) -> npt.NDArray[np.float32]:
    """Return the values as float32: integers divided, floats as they are.

    Args:
        image: Of any shape.
        divisor: What integers are divided by; None: the largest of their type.
    """
    if not np.issubdtype(image.dtype, np.integer):
        return image.astype(np.float32, copy=False)
    return image.astype(np.float32) / np.float32(natural_divisor(image.dtype) if divisor is None else divisor)


def normalise(image: Array, channels: Sequence[Channel]) -> npt.NDArray[np.float32]:
    """Return what `normalise_pixels` does as a contiguous array of shape (bands, height, width)."""
    return np.ascontiguousarray(np.moveaxis(normalise_pixels(image, channels), 2, 0))


def normalise_pixels(image: Array, channels: Sequence[Channel]) -> npt.NDArray[np.float32]:
    """Make the input of a network from an image that holds the picked bands of all channels, in order.

    Integers are divided by the divisors of the channels; then each band is `(value - mean) / std`. Values that
    are not finite (no data in a float raster) become the mean: one NaN would spread over its whole surroundings.

    Args:
        image: Shape (height, width, bands).
        channels: The channels of the model.

    Returns:
        Contiguous array of shape (height, width, bands).

    Raises:
        ModelError: the number of bands is not the model's.
    """
    check_bands(image, channels)
    mean, std = _statistics(channels)
    height, width, bands = image.shape
    # The bands of a row in one line, in place: numpy is slow where the last axis is short.
    values = image.astype(np.float32, order="C").reshape(height, width * bands)
    if np.issubdtype(image.dtype, np.integer):
        values /= np.tile(_divisors(image.dtype, channels), width)
    values -= np.tile(mean, width)
    values /= np.tile(std, width)
    if np.issubdtype(image.dtype, np.floating):
        values[~np.isfinite(values)] = 0.0
    return values.reshape(height, width, bands)


def normalise_batch(images: torch.Tensor, channels: Sequence[Channel]) -> torch.Tensor:
    """Make the input of a network as `normalise_pixels` does, to the bit, on the device where the images are.

    A byte takes a fourth of the way to a GPU that a float does, and there the arithmetic costs nothing.

    Args:
        images: Shape (N, height, width, bands), of any type that `decode` gives; its number of bands is checked by
            `check_bands`.
        channels: The channels of the model.

    Returns:
        Shape (N, height, width, bands), float32.
    """
    import torch  # here: what only cuts windows does without it

    count, height, width, bands = images.shape
    divisors, mean, std = (each.repeat(width) for each in _on_device(tuple(channels), images.dtype, images.device))
    # The bands of a row in one line, in place: a CPU is slow where the last axis is short.
    values = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format).view(
        count, height, width * bands
    )
    if not images.dtype.is_floating_point:
        values /= divisors
    values -= mean
    values /= std
    if images.dtype.is_floating_point:
        values.masked_fill_(~torch.isfinite(values), 0.0)
    return values.view(images.shape)


@lru_cache(64)
def _on_device(
    channels: tuple[Channel, ...], kind: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return divisors, means and deviations of the bands: sent once, not with each batch."""
    import torch

    divisors = _divisors(np.dtype(str(kind).removeprefix("torch.")), channels)
    with torch.inference_mode(False):  # training may be the next that wants them
        divided, mean, std = (torch.from_numpy(each).to(device) for each in (divisors, *_statistics(channels)))
    return divided, mean, std


def check_bands(image: Array, channels: Sequence[Channel]) -> None:
    """Raise `ModelError` where an image has not as many bands as the channels of a model."""
    wanted = sum(len(channel.bands) for channel in channels)
    if image.ndim != 3 or image.shape[2] != wanted:
        has = image.shape[2] if image.ndim == 3 else 1
        raise ModelError(f"the model wants {_bands(wanted)}, the tile has {has}")


def _statistics(channels: Sequence[Channel]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation of each band."""
    mean = np.array([value for channel in channels for value in channel.mean], np.float32)
    std = np.array([value for channel in channels for value in channel.std], np.float32)
    return mean, std


def _divisors(kind: np.dtype[Any], channels: Sequence[Channel]) -> npt.NDArray[np.float32]:
    """Return what the integers of each band are divided by."""
    natural = natural_divisor(kind)
    return np.array([channel.divisor or natural for channel in channels for _ in channel.bands], np.float32)


def _bands(count: int) -> str:
    return f"{count} band{'' if count == 1 else 's'}"
