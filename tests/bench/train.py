"""Measure what a training image costs, against a bare loop over the same network and against the first landing."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia import augmentation

from rsp.components.train.augmentation import color
from rsp.shared.images import Array
from rsp.shared.learning.inference import has_bfloat16
from rsp.shared.tiles import Tile
from tests.bench.harness import ROOT, Line, compared, cost, rival
from tests.bench.predict import make_areas
from tests.tilesets import make_tileset

SIDE = 256
TILES = [Tile(x, y, 18) for x in range(8) for y in range(6)]
# Crops that are augmented.
CROPS = 200
# What a weight may differ by after an epoch from the same start; bfloat16 rounds to three digits.
CLOSE = {"float32": 1e-5, "bfloat16": 1e-2}
# Of the time of the first landing's loop: 1.5 and 2.3 times as quick.
BARS = {"float32": 1 / 1.5, "bfloat16": 1 / 2.3}


def rows(folder: Path) -> Iterator[Line]:
    for part, tiles in (("training", TILES), ("validation", TILES[:4])):
        make_tileset(folder / part / "images", tiles, "webp", lambda tile: make_areas(tile.x * 10 + tile.y, SIDE))
        make_tileset(folder / part / "labels", tiles, "png", label)
    yield bench_augmentation()
    for precision in ("float32", "bfloat16"):
        what = f"an image of 256 px in training, tiny encoder, {precision}"
        if precision == "bfloat16" and not has_bfloat16(torch.device("cpu")):
            yield Line(what, "", "this processor does not compute in it")
            continue
        found = run(precision, folder)
        first = run("first", folder)
        pairs, alone = found["pairs"], found["validation"]
        loops = compared(what, "a bare loop over the same network", pairs, 1 / 0.97)
        if found["difference"] > CLOSE[precision]:
            loops = replace(loops, fault=f"a weight differs by {found['difference']:.1e} after an epoch")
        yield loops
        slow = statistics.median(first)
        yield compared(what, "the first landing's loop", [(ours, slow) for ours, _ in pairs], BARS[precision])
        what = f"a tile of 256 px in validation, overlap included, {precision}"
        yield compared(what, "the bare network in float32, forward only", alone, 1.1)


def bench_augmentation() -> Line:
    """Flips and colours of a crop, beside the nearest that kornia has."""
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((3, SIDE, SIDE), np.float32))
    mask = (image[0] > 0).to(torch.uint8)
    rng = np.random.default_rng(0)
    steps = augmentation.RandomHorizontalFlip(), augmentation.RandomVerticalFlip()
    colors = augmentation.RandomBrightness((0.9, 1.1), clip_output=False), augmentation.RandomContrast((0.9, 1.1))
    theirs = augmentation.AugmentationSequential(*steps, *colors, data_keys=["input", "mask"])
    torch.set_num_threads(1)
    pairs = []
    for _ in range(CROPS):
        costs = (
            cost(lambda: color(image.numpy(), mask.numpy(), rng)),
            cost(lambda: theirs(image[None], mask[None, None].float())),
        )
        pairs.append([each.seconds * 1000 for each in costs])
    return compared("the flips and colours of a crop of 256 px", "kornia's flips, brightness, contrast", pairs)


def run(*words: object) -> Any:
    """Return what the script that measures prints."""
    done = subprocess.run(
        list(map(str, rival("train_step", *words))), capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def label(tile: Tile) -> Array:
    """Return where an image is bright."""
    return (make_areas(tile.x * 10 + tile.y, SIDE)[:, :, 0] > 128).astype(np.uint8)
