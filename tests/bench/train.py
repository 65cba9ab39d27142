"""Measure what a training image costs, against a bare loop over the same network and against the first landing."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsp.shared.images import Array
from rsp.shared.learning.inference import has_bfloat16
from rsp.shared.tiles import Tile
from tests.bench.harness import ROOT, Line, rival
from tests.bench.predict import make_areas
from tests.tilesets import make_tileset

SIDE = 256
TILES = [Tile(x, y, 18) for x in range(8) for y in range(6)]
# What a weight may differ by after an epoch from the same start; bfloat16 rounds to three digits.
CLOSE = {"float32": 1e-5, "bfloat16": 1e-2}
# Of the time of the first landing's loop: 1.5 and 2.3 times as quick.
BARS = {"float32": 1 / 1.5, "bfloat16": 1 / 2.3}


def rows(folder: Path) -> Iterator[Line]:
    for part, tiles in (("training", TILES), ("validation", TILES[:4])):
        make_tileset(folder / part / "images", tiles, "webp", lambda tile: make_areas(tile.x * 10 + tile.y, SIDE))
        make_tileset(folder / part / "labels", tiles, "png", label)
    for precision in ("float32", "bfloat16"):
        what = f"an image of 256 px in training, tiny encoder, {precision}"
        if precision == "bfloat16" and not has_bfloat16(torch.device("cpu")):
            yield Line(what, "", "this processor does not compute in it")
            continue
        found = run(precision, folder)
        ours, bare = (statistics.median(column) for column in zip(*found["pairs"], strict=True))
        first = statistics.median(run("first", folder))
        for who, theirs, ratios, bar in (
            ("a bare loop over the same network", bare, [a / b for a, b in found["pairs"]], 1 / 0.97),
            ("the first landing's loop", first, [a / first for a, _ in found["pairs"]], BARS[precision]),
        ):
            ratio = statistics.median(ratios)
            fault = f"{ratio:.2f} times {who}" if ratio > bar else ""
            if found["difference"] > CLOSE[precision]:
                fault = f"a weight differs by {found['difference']:.1e} after an epoch"
            yield Line(
                what, f"{ours:.1f} ms", who, f"{theirs:.1f} ms",
                f"{ratio:.2f} ({min(ratios):.2f}..{max(ratios):.2f})", f"<= {bar:.2f}", fault=fault,
            )  # fmt: skip
        yield Line(
            f"a tile of 256 px in validation, overlap included ({precision})", f"{found['validation']:.1f} ms"
        )


def run(*words: object) -> Any:
    """Return what the script that measures prints."""
    done = subprocess.run(
        list(map(str, rival("train_step", *words))), capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def label(tile: Tile) -> Array:
    """Return where an image is bright."""
    return (make_areas(tile.x * 10 + tile.y, SIDE)[:, :, 0] > 128).astype(np.uint8)
