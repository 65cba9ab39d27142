"""What has to hold before a server answers with a new model: it is not a step back, and its masks are right."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsp.serving.client import TileClient
from rsp.shared.errors import ModelError, ServingError, TileError
from rsp.shared.images import decode_mask, encode
from rsp.shared.learning.inference import (
    load_predictor,
    predict_tiles,
    read_model_card,
    sent_bands,
    sent_tile,
)
from rsp.shared.tileset import open_reader

if TYPE_CHECKING:
    from rsp.shared.learning.card import ModelCard

# How many tiles of the golden tile set are predicted.
GOLDEN = 3
# How often the server is asked for the card of the model that it has: one that cannot answer is to be replaced.
ASKED = 3


def check_progress(model: Path, inference: str, name: str) -> None:
    """Refuse a model that is worse than the one that serves, or answers another question.

    IoUs can be compared only where they were measured on the same validation tiles and labels, as the digest in
    the model card tells. Where it is unknown or another, a warning says so.

    Raises:
        ServingError: another recorded IoU is higher, or classes or channels differ.
    """
    new = read_model_card(model)
    try:
        with TileClient(inference, name, attempts=ASKED) as client:
            served = client.card()
    except (ServingError, TileError, ModelError) as error:
        _warn(f"the model that serves cannot be asked for its metrics, so they are not compared: {error}")
        return
    if new.uuid and new.uuid == served.uuid:
        return
    for what, ours, theirs in (("classes", *map(_classes, (new, served))), ("bands", *map(_bands, (new, served)))):
        if ours != theirs:
            raise ServingError(
                f"it has other {what} ({', '.join(ours)}) than the model that serves ({', '.join(theirs)}), and "
                "whoever asks for predictions relies on these; give it another --name, or use --force"
            )
    if new.validation is None or served.validation is None:
        which = "the new model" if new.validation is None else "the model that serves"
        _warn(f"{which} does not say which tiles its metrics were measured on, so the two are not compared")
    elif new.validation != served.validation:
        _warn("the two models were validated on different tiles or labels, so their metrics are not compared")
    else:
        iou, best = (card.metrics.get("iou", math.nan) for card in (new, served))
        if iou < best:
            raise ServingError(
                f"its IoU is {iou:.4f} and the model that serves has {best:.4f} on the same validation tiles; "
                "use --force to deploy it all the same"
            )
        if not iou >= best:
            _warn("one of the two models has no IoU, so they are not compared")


def _classes(card: ModelCard) -> list[str]:
    return [entry.title for entry in card.classes]


def _bands(card: ModelCard) -> list[str]:
    return [f"{channel.name} {'-'.join(map(str, channel.bands))}" for channel in card.channels]


def _warn(message: str) -> None:
    print(f"deploy: warning: {message}", file=sys.stderr, flush=True)


def expected_masks(model: Path, golden: Path | None, *, trust_model: bool = False) -> list[tuple[bytes, bytes]]:
    """Return golden tiles, each with the mask that the model makes of it here."""
    predictor = load_predictor(model, device="cpu", threads=1, trust_model=trust_model)
    if golden is not None:
        with open_reader(golden) as reader:
            images = [reader.read(tile) for tile in reader.tiles()[:GOLDEN]]
        if not images:
            raise ServingError(f"the golden tile set {golden} is empty")
    else:
        side, bands = predictor.card.tile_size, sent_bands(predictor.card)
        images = [encode(sent_tile(predictor.card, np.random.default_rng(0).random((side, side, bands))), "tif")]
    pairs = []
    for image, mask in zip(images, predict_tiles(predictor, images), strict=True):
        if isinstance(mask, TileError):
            raise ServingError(f"the golden tiles {golden} do not fit this model: {mask}")
        pairs.append((image, mask))
    return pairs


def agreement(
    inference: str, name: str, version: str, expected: list[tuple[bytes, bytes]], timeout: float
) -> float:
    """Return the fraction of pixels in which the masks of the server are the expected ones."""
    equal = total = 0
    with TileClient(inference, name, timeout, version=version) as client:
        for image, mask in expected:
            here, there = decode_mask(mask), decode_mask(client.predict(image))
            if here.shape != there.shape:
                raise ServingError(f"the server's mask has the shape {there.shape}, a local one {here.shape}")
            equal += int(np.count_nonzero(here == there))
            total += here.size
    return equal / total
