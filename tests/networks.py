"""Small networks, trained for a moment, so that their masks are neither constant nor noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from rsp.shared.config import Channel, ClassDef, ModelConfig
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from rsp.shared.learning.formats import write_model
from rsp.shared.learning.models import build_model

COLORS = [(255, 255, 255), (255, 20, 147), (0, 128, 255), (255, 200, 0)]
IMAGES = Channel("images", (1, 2, 3), (0.5, 0.5, 0.5), (0.29, 0.29, 0.29))
ELEVATION = Channel("elevation", (1,), (0.5,), (0.29,))


def make_card(
    nn: str = "unet",
    encoder: str = "tiny",
    *,
    channels: tuple[Channel, ...] = (IMAGES,),
    classes: int = 2,
    tile_size: int = 64,
    overlap: int = 16,
) -> ModelCard:
    titles = ["background", "building", "road", "water"]
    return ModelCard(
        nn=nn,
        encoder=encoder,
        num_filters=8,
        channels=channels,
        classes=tuple(ClassDef(titles[index], COLORS[index]) for index in range(classes)),
        tile_size=tile_size,
        overlap=overlap,
        epoch=1,
        epochs=1,
        versions={"torch": torch.__version__},
    )


class Gpu(str):
    """The CPU, as a device that stands for a GPU: a `Predictor` gives it batches."""

    type = "cuda"


def make_network(card: ModelCard, seed: int = 0, steps: int = 12) -> nn.Module:
    """Teach a network for a moment to find where the blurred first band is bright."""
    torch.manual_seed(seed)
    config = ModelConfig(nn=card.nn, encoder=card.encoder, pretrained=False, num_filters=card.num_filters)
    model = build_model(config, card.in_channels, card.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        images = torch.randn(4, card.in_channels, 64, 64)
        blurred = F.avg_pool2d(images[:, 0], 7, 1, 3) * 7
        limits = torch.linspace(-0.5, 0.8, card.num_classes - 1)
        labels = torch.bucketize(blurred, limits)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def make_checkpoint(path: Path, card: ModelCard | None = None, seed: int = 0) -> Path:
    card = card or make_card()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = make_network(card, seed)
        save_checkpoint(path, model, replace(card, uuid=fingerprint(model)))
    finally:
        torch.set_num_threads(threads)
    return path


def make_all(folder: Path, card: ModelCard | None = None, seed: int = 0) -> dict[str, Path]:
    """Write a checkpoint and its three exports; return them by form."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {"checkpoint": make_checkpoint(folder / "model.safetensors", card, seed)}
    model, card = load_checkpoint(models["checkpoint"])
    for kind in ("jit", "pt2", "onnx"):
        models[kind] = folder / f"model.{kind}"
        write_model(models[kind], kind, model, card)
    return models


def all_of(folder: Path) -> dict[str, Path]:
    """Return what `make_all` wrote into a folder, by form."""
    forms = {"checkpoint": folder / "model.safetensors"}
    return forms | {kind: folder / f"model.{kind}" for kind in ("jit", "pt2", "onnx")}


class Fickle(nn.Module):
    """A network that cannot be trusted: traced, it answers the opposite."""

    def __init__(self, config, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return -y if torch.jit.is_tracing() else y


class Branching(nn.Module):
    """A network whose path follows from the values of its input: no export can follow it."""

    def __init__(self, config, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(x) * 2


class Blurred(nn.Module):
    """A network of one layer that was not trained: class 1 is where the image, blurred, is bright.

    What it answers at the border of a tile depends on the neighbours, as with any network.
    """

    def __init__(self, config, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 7, padding=3)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()
            self.layer.weight[1] = 1 / self.layer.weight[1].numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def make_blurred(path: Path, **changes: object) -> Path:
    """Write a checkpoint of `Blurred` for tiles of 64 pixels, with changes of its card."""
    card = replace(make_card("tests.networks:Blurred", "none"), **changes)
    model = build_model(card.model_config(), card.in_channels, card.num_classes)
    save_checkpoint(path, model, replace(card, uuid=fingerprint(model)))
    return path
