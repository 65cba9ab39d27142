"""Release stores with models that a server can load, and waiting for what a server says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsp.serving.manifest import Golden, Precision, Release
from rsp.serving.releases import ReleaseStore
from rsp.serving.server import Server
from rsp.shared.images import encode, encode_mask
from rsp.shared.learning.encoded import predict_tiles
from rsp.shared.learning.formats import read_model_card
from rsp.shared.learning.inference import load_predictor
from tests.tilesets import BLOCK, COLORS, noise

ZEROS = encode_mask(np.zeros((64, 64), np.uint8), COLORS)


def publish(
    store: ReleaseStore,
    model: Path,
    version: str,
    *,
    name: str = "rsp",
    wrong: bool = False,
    instead: Path | None = None,
    **fields: Any,
) -> Release:
    """Publish a model with two golden tiles.

    Args:
        store: Where to.
        model: The model.
        version: Its version.
        name: Its name.
        wrong: Let a golden mask be another one than the model answers.
        instead: Is stored in the place of the model.
        fields: Stand over those of `ReleaseStore.publish`.
    """
    images = [encode(noise(tile), "tif") for tile in BLOCK[:2]]
    predictor = load_predictor(model, device="cpu", threads=1)
    files: dict[str, Path | bytes] = {"model" + model.suffix: instead or model}
    golden = []
    for number, (image, mask) in enumerate(zip(images, predict_tiles(predictor, images), strict=True)):
        assert isinstance(mask, bytes)
        pair = Golden(f"golden/{number}.tif", f"golden/{number}.png")
        files |= {pair.image: image, pair.mask: mask if not wrong else ZEROS}
        golden.append(pair)
    options: dict[str, Any] = {
        "card": read_model_card(model), "model": "model" + model.suffix, "torch": torch.__version__,
        "golden": golden, "precision": Precision("float32", "cpu", torch.backends.cpu.get_cpu_capability()),
    }  # fmt: skip
    return store.publish(name, version, files, **{**options, **fields})


def move(store: ReleaseStore, version: str, name: str = "rsp") -> None:
    """Let a name want a version."""
    store.move(name, version, expected=store.pointer(name), reason="a test")


def wait_until(server: Server, condition: Callable[[dict[str, Any]], bool], name: str = "rsp") -> dict[str, Any]:
    """Return the status of a name when it fulfils a condition."""
    deadline = time.monotonic() + 120
    while True:
        found: dict[str, Any] = server.status()["models"][name]
        if condition(found):
            return found
        server.check()
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def arrives(server: Server, version: str, name: str = "rsp") -> dict[str, Any]:
    """Return the status of a name when it serves a version and no other is kept."""
    return wait_until(
        server, lambda each: (each["serving"], each["state"], each["kept"]) == (version, "serving", []), name
    )
