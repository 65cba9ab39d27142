"""Small models whose masks are not constant, made on the spot."""

from __future__ import annotations

import tomllib
from pathlib import Path

import torch
from torch import nn

from rsp.shared.config import parse_config
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from rsp.shared.learning.formats import write_model
from rsp.shared.learning.models import build_model
from tests.tilesets import BLOCK, CONFIG, noise


def make_checkpoint(path: Path, seed: int = 0, **fields: object) -> Path:
    """Write the checkpoint of an untrained network of 64 px tiles; `fields` stand over those of its card."""
    config = parse_config(tomllib.loads(CONFIG))
    torch.manual_seed(seed)
    network = build_model(config.model, 3, 2).eval()
    channel = config.channels[0]
    image = (noise(BLOCK[0]) / 255 - channel.mean) / channel.std
    with torch.inference_mode():
        logits = network(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0]
        # An untrained network answers one class everywhere; this way half of the pixels get the other.
        last = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None][
            -1
        ]
        assert last.bias is not None and last.bias.shape == (2,)
        last.bias[0] += (logits[1] - logits[0]).median()
    card = ModelCard(
        nn=config.model.nn,
        encoder=config.model.encoder,
        num_filters=config.model.num_filters,
        channels=config.channels,
        classes=config.classes,
        tile_size=64,
        overlap=16,
        versions={"torch": torch.__version__},
        uuid=fingerprint(network),
    )
    save_checkpoint(path, network, ModelCard(**{**vars(card), **fields}))  # type: ignore[arg-type]
    return path


def make_model(path: Path, seed: int = 0, kind: str = "jit", **fields: object) -> Path:
    """Export the network of `make_checkpoint`.

    For what starts servers: a worker loads it in a tenth of a second.
    """
    checkpoint = make_checkpoint(path.with_suffix(".safetensors"), seed, **fields)
    write_model(path, kind, *load_checkpoint(checkpoint))
    return path
