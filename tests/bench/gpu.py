"""Measure training on a GPU beside a bare loop over the same network, by the clock: the CPU only hands on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tests.bench.harness import Line
from tests.bench.train import TILES, image, label, larger, run
from tests.tilesets import make_tileset

# Encoders and batches, and steps that the bare loop is measured with.
SIZES = [("tiny", 8), ("tiny", 32), ("resnet50", 8), ("resnet50", 32)]
STEPS = 100
# Of the time of an epoch, training may wait for batches so long.
WAITING = 0.05


def rows(folder: Path, device: str = "cuda") -> Iterator[Line]:
    if device == "cuda" and not torch.cuda.is_available():
        yield Line("training on a GPU", "", "there is none here")
        return
    # Each epoch is some hundred batches of the larger size: their number follows from that of the tiles.
    for part, tiles in (("training", [tile._replace(x=tile.x + 8 * at) for at in range(16) for tile in TILES]),
                        ("validation", TILES[:4])):  # fmt: skip
        for name, draw, kind in (("images", image, "webp"), ("labels", label, "png")):
            make_tileset(folder / part / name, tiles, kind, lambda tile, draw=draw: larger(draw(tile)))
    for encoder, batch in SIZES:
        yield row(folder, device, encoder, batch, STEPS)


def row(folder: Path, device: str, encoder: str, batch: int, steps: int) -> Line:
    """Return the row of an encoder and a batch size."""
    found = run(folder, device, encoder, batch, steps, script="train_gpu")
    compiled = found["compiled"]
    rivals = f"{found['bare']:.0f}" + (f", compiled {compiled:.0f}" if compiled else "")
    return Line(
        f"crops of 256 px a second in training on {device}, {encoder}, batches of {batch}, {found['precision']}",
        f"{found['ours']:.0f}, waiting {found['waiting']:.1%}",
        "a bare loop, its batches on the device",
        rivals,
        f"{found['bare'] / found['ours']:.2f}",
        f"waiting <= {WAITING:.0%}",
        fault=f"{found['waiting']:.0%} of the time is waited for batches" if found["waiting"] > WAITING else "",
    )
