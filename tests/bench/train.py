"""Measure what a training image costs, against a bare loop over the same network and against the first landing."""

from __future__ import annotations

import json
import statistics
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia import augmentation

from rsp.components.train.batches import Batch, collate
from rsp.components.train.data import TileDataset
from rsp.components.train.tones import prepare
from rsp.shared.config import parse_config
from rsp.shared.images import Array
from rsp.shared.learning.inference import has_bfloat16
from rsp.shared.tiles import Tile
from tests.bench.harness import ROOT, Line, compared, cost, rival
from tests.bench.predict import make_areas
from tests.tilesets import CONFIG, make_tileset

SIDE = 256
TILES = [Tile(x, y, 18) for x in range(8) for y in range(6)]
# Crops that are made, of tiles twice as large: their side, how many at once and how often.
CROP, BATCH, BATCHES = 256, 8, 25
# What a weight may differ by after an epoch from the same start; bfloat16 rounds to three digits.
CLOSE = {"float32": 1e-5, "bfloat16": 1e-2}
# Of the time of the first landing's loop: 1.5 and 2.3 times as quick.
BARS = {"float32": 1 / 1.5, "bfloat16": 1 / 2.3}


def rows(folder: Path) -> Iterator[Line]:
    for part, tiles in (("training", TILES), ("validation", TILES[:4])):
        make_tileset(folder / part / "images", tiles, "webp", image)
        make_tileset(folder / part / "labels", tiles, "png", label)
    yield bench_crops(folder)
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


def bench_crops(folder: Path) -> Line:
    """From decoded tiles to what a network takes, by the usual recipe, beside the nearest that kornia has."""
    for name, draw, kind in (("images", image, "webp"), ("labels", label, "png")):
        make_tileset(folder / "large" / name, TILES[:BATCH], kind, lambda tile, draw=draw: larger(draw(tile)))
    tables = tomllib.loads(CONFIG)
    data = TileDataset(parse_config({**tables, "model": {"ts": 2 * SIDE}}), folder / "large", training=True)
    read = zip(*map(data.read, data.loader.tiles), strict=True)
    tiles, labels = (torch.from_numpy(np.stack(sheets)) for sheets in read)
    channel = data.channels[0]
    cut = augmentation.RandomResizedCrop((CROP, CROP), scale=((0.5 / 1.33) ** 2, (0.5 / 0.75) ** 2))
    flips = augmentation.RandomHorizontalFlip(), augmentation.RandomVerticalFlip()
    colors = augmentation.RandomBrightness((0.9, 1.1), clip_output=False), augmentation.RandomContrast((0.9, 1.1))
    norm = augmentation.Normalize(torch.tensor(channel.mean), torch.tensor(channel.std))
    theirs = augmentation.AugmentationSequential(cut, *flips, norm, *colors, data_keys=["input", "mask"])

    def ours(epoch: int) -> None:
        batch = collate([data[epoch, number] for number in range(BATCH)])
        assert isinstance(batch, Batch) and batch.images.shape == (BATCH, CROP, CROP, 3)
        prepare(batch.images, batch.tones, data.channels, torch.device("cpu"))

    def rivals() -> None:
        theirs(tiles.permute(0, 3, 1, 2).float() / 255, labels[:, None].float())

    torch.set_num_threads(1)
    for number in range(len(data)):
        data[0, number]  # decoded once, and kept
    pairs = [
        [cost(side).seconds * 1000 / BATCH for side in (partial(ours, epoch), rivals)] for epoch in range(BATCHES)
    ]
    what = f"a crop of {CROP} px cut, scaled, flipped, coloured and normalised, in batches of {BATCH}"
    return compared(what, "kornia's crops, flips, brightness, contrast, normalisation", pairs)


def run(*words: object, script: str = "train_step") -> Any:
    """Return what a script that measures prints."""
    command = list(map(str, rival(script, *words)))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def image(tile: Tile) -> Array:
    """Return an image."""
    return make_areas(tile.x * 10 + tile.y, SIDE)


def label(tile: Tile) -> Array:
    """Return where it is bright."""
    return (image(tile)[:, :, 0] > 128).astype(np.uint8)


def larger(sheet: Array) -> Array:
    """Return an image or a label in twice its size."""
    return sheet.repeat(2, axis=0).repeat(2, axis=1)
