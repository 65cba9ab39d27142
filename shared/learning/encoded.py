"""Answers encoded tiles, as they are sent to a server: TorchServe's handler and `rsp deploy` stand on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import ModelError, TileError
from rsp.shared.images import Array, Mask, decode, decode_mask, encode_mask, natural_divisor, value_type
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.formats import window_side
from rsp.shared.learning.inference import Predictor, Scores
from rsp.shared.learning.normalise import pick_bands, stacked_type
from rsp.shared.learning.resize import resize_mask, resize_planes, size_bands


def sent_bands(card: ModelCard) -> int:
    """Return how many bands an encoded tile must have for `predict_tiles`.

    A model of one channel picks its bands from the tile as it is; the tile may have more. For several channels the
    sender stacks the picked bands of all, in order.
    """
    return max(card.channels[0].bands) if len(card.channels) == 1 else card.in_channels


def sent_tile(card: ModelCard, fractions: npt.NDArray[Any]) -> Array:
    """Return an image of the value type that `predict_tiles` takes; uint8 where the card does not say.

    Args:
        card: Of the model.
        fractions: Shape (height, width, bands), from 0 (black) to 1 (the divisor of the channels).
    """
    kind = stacked_type(card.channels) or "uint8"
    if kind == "float32":
        return fractions.astype(np.float32)
    divisor = min(channel.divisor or natural_divisor(kind) for channel in card.channels)
    return np.clip(fractions * divisor, 0, natural_divisor(kind)).astype(kind)


def probability_bytes(probabilities: Scores) -> npt.NDArray[np.uint8]:
    """Return probabilities as bytes, the form in which they are sent and stored: `round(p * 255)`, halves to even.

    A byte is within 1/510 of its probability; those of a pixel may sum to a little more or less than 255.

    Args:
        probabilities: From 0 to 1, as `Predictor.probabilities` gives them: shape (classes, height, width).
    """
    return np.rint(probabilities * np.float32(255)).astype(np.uint8)


def predict_arrays(
    predictor: Predictor,
    encoded: Sequence[bytes],
    overlap: int | None = None,
    *,
    probabilities: bool = False,
    assumed: str | None = None,
) -> list[Array | TileError]:
    """Answer encoded tiles with arrays; see `predict_tiles`.

    Args:
        predictor: The model.
        encoded: The tiles.
        overlap: Width of the border that each image carries on each side.
        probabilities: Answer with `probability_bytes`, not with classes.
        assumed: The value type that tiles must have where the card, an old one, does not say; any where None.

    Returns:
        For each tile the class of each pixel, shape (height, width) uint8, or the probability of each class, shape
        (classes, height, width) uint8, or the reason why there is none.
    """
    answers: list[Array | TileError] = [TileError("not predicted")] * len(encoded)
    images: dict[int, Array] = {}
    for index, data in enumerate(encoded):
        try:
            images[index] = _decode_sent(data, predictor.card, overlap or 0, assumed)
        except (TileError, ModelError) as error:
            answers[index] = TileError(str(error))
    card = predictor.card
    shapes = [image.shape[:2] for image in images.values()]
    decoded, border = [_sized(image, card, overlap or 0) for image in images.values()], overlap or 0
    arrays: list[Mask]
    if probabilities:
        arrays = [probability_bytes(found) for found in predictor.probabilities(decoded, border)]
    else:
        arrays = predictor.masks(decoded, border)
    for index, array, (height, width) in zip(images, arrays, shapes, strict=True):
        if not border:
            array = resize_mask(array, height, width) if array.ndim == 2 else resize_planes(array, height, width)
        answers[index] = array
    return answers


def _sized(image: Array, card: ModelCard, overlap: int) -> Array:
    """Bring a tile without a border to the side of the model."""
    if overlap or image.shape[0] == card.tile_size:
        return image
    return size_bands(image, card.channels[0], card.tile_size)


def predict_tiles(
    predictor: Predictor, encoded: Sequence[bytes], overlap: int | None = None
) -> list[bytes | TileError]:
    """Answer encoded tiles with encoded masks.

    Args:
        predictor: The model.
        encoded: PNG, JPEG, WebP or TIFF images: tiles of the model's size, with the bands that `sent_bands` says.
            A model of one channel also takes tiles of the size that those of its training had, without a border:
            they are resized as in the training, and their masks have their size.
        overlap: Width of the border that each image carries on each side, cut from the neighbouring tiles; at most
            the model's. None or 0: they carry none, and are mirrored instead.

    Returns:
        For each tile a paletted PNG, or the reason why there is none. One bad tile does not hurt others.
    """
    return [
        answer if isinstance(answer, TileError) else encode_mask(answer, predictor.card.colors)
        for answer in predict_arrays(predictor, encoded, overlap)
    ]


def _decode_sent(data: bytes, card: ModelCard, overlap: int, assumed: str | None) -> Array:
    """Decode a tile and check that it is one for this model."""
    if not 0 <= overlap <= card.overlap:
        raise TileError(f"the border is {overlap} pixels wide, the model takes up to {card.overlap}")
    side = card.tile_size + 2 * overlap
    source = card.source_size if len(card.channels) == 1 and card.source_size else side
    limit = max(side, window_side(card), source) ** 2
    if len(card.channels) == 1 and card.channels[0].kind == "classes":
        image = decode_mask(data, limit)[:, :, np.newaxis]
    else:
        image = decode(data, limit)
    height, width, bands = image.shape
    if (height, width) != (side, side) and (overlap or (height, width) != (source, source)):
        border = f" with a border of {overlap}" if overlap else ""
        raise TileError(f"the image has {width}x{height} pixels, expected {side}x{side}{border}")
    if assumed is not None and stacked_type(card.channels) is None and value_type(image) != assumed:
        raise TileError(
            f"the tile holds {value_type(image)} values, and the card of this model, which an older rsp wrote, "
            f"does not say what it was trained on, so only {assumed} is taken here"
        )
    if len(card.channels) == 1:
        return pick_bands(image, card.channels[0])
    if bands != card.in_channels:
        raise TileError(
            f"the model wants {card.in_channels} bands (of all channels, in order), the tile has {bands}"
        )
    wanted = stacked_type(card.channels)
    if wanted is not None and value_type(image) != wanted:
        raise TileError(
            f"the model wants the stacked bands of its channels as {wanted}, the tile holds {value_type(image)}"
        )
    return image
