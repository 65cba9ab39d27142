"""What the borders of tiles cost in accuracy: masks of tiles against those of one whole image, by the overlap.

A network that has seen the town of `make demo` for a few epochs answers the town as one image, and tile by tile
with borders of several widths, each as a model with that overlap would. What differs inside is a seam. The rows
say, too, how often the class changes across a border of two tiles, by how often it does on the eight pixels
beside it; both for the tiles and for the whole image, where there is no border.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import torch

from examples.town.generate import generate
from rsp.components.rasterize.tool import rasterize
from rsp.components.subset.tool import subset
from rsp.components.tile.tool import tile
from rsp.components.train.tool import train
from rsp.shared.config import ModelConfig
from rsp.shared.images import Array, Mask
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.learning.windows import SPANS
from rsp.shared.tiles import read_cover, write_cover
from tests.bench.harness import ROOT, Line

SIDES, OVERLAPS = (512, 256), (0, 32, 64, 96, 128, 160)
# Of the pixels of inner tiles.
BAR = 0.0001
# How much more often, or less, classes may change across borders, by how often they do there in the whole image.
ACROSS = 0.02
# Pixels beside a border, on either side of it.
BESIDE = 8
TILES, EPOCHS = 120, 2


class Seams(NamedTuple):
    """How masks of tiles differ from that of one whole image, on tiles whose neighbours are all there.

    Attributes:
        differing: The share of the pixels.
        across: How often the class changes from one tile to the next, by how often it does beside.
        whole: The same of the whole image, at the same places.
    """

    differing: float
    across: float
    whole: float


def seams(predictor: Predictor, image: Array, whole: Mask, side: int, overlap: int, margin: int) -> Seams:
    """Measure the seams of tiles.

    Args:
        predictor: The network. Its card is not looked at: windows are those of `side` and `overlap`.
        image: The image, shape (height, width, bands).
        whole: What it answers the image as one.
        side: Of a tile, in pixels.
        overlap: Of the tiles.
        margin: Pixels at the edges of the image that are left out, at least the overlap.
    """
    tiles, _ = _tiles(predictor, image, side, overlap, margin)
    inner = whole[margin : margin + tiles.shape[0], margin : margin + tiles.shape[1]]
    return Seams(float((tiles != inner).mean()), _across(tiles, side), _across(inner, side))


def _tiles(predictor: Predictor, image: Array, side: int, overlap: int, margin: int) -> tuple[Mask, float]:
    """Return the classes of an image without its margins, answered tile by tile, and the CPU seconds it took."""
    model = Predictor(
        predictor._network, replace(predictor.card, tile_size=side, overlap=overlap), kind=predictor.kind
    )
    height, width = ((length - 2 * margin) // side * side for length in image.shape[:2])
    tiles = np.zeros((height, width), np.uint8)
    began = time.process_time()
    for y in range(0, tiles.shape[0], side):
        for x in range(0, tiles.shape[1], side):
            top, left = y + margin - overlap, x + margin - overlap
            window = image[top : top + side + 2 * overlap, left : left + side + 2 * overlap]
            (tiles[y : y + side, x : x + side],) = model.masks([window], overlap)
    return tiles, time.process_time() - began


def _across(mask: Mask, side: int) -> float:
    """Return how often the class changes across the borders of tiles, by how often beside them."""
    at, near = [], []
    for turned in (mask, mask.T):
        changes = (turned[:, 1:] != turned[:, :-1]).mean(axis=0)
        for border in range(side - 1, turned.shape[1] - 1, side):
            at.append(changes[border])
            near += [changes[border - step] for step in range(1, BESIDE + 1)]
            near += [changes[border + step] for step in range(1, BESIDE + 1)]
    return float(np.mean(at) / np.mean(near))


def town(folder: Path) -> tuple[Path, Path]:
    """Make the town and teach a network; return its tiles and the checkpoint."""
    scene = generate(folder / "town", tiles=TILES)
    tiles = read_cover(scene.cover)
    config = ROOT / "examples/town/config.toml"
    tile(
        [str(scene.raster)], folder / "images", zoom=tiles[0].z, tile_size=256, cover=scene.cover, web_ui=False
    )  # fmt: skip
    rasterize(
        scene.cover, folder / "labels", config=config, geojson=f"building={scene.features}", tile_size=256,
        web_ui=False,
    )  # fmt: skip
    parts = {"training": tiles[len(tiles) // 6 :], "validation": tiles[: len(tiles) // 6]}
    for part, chosen in parts.items():
        write_cover(folder / f"{part}.csv", chosen)
        for name in ("images", "labels"):
            subset(folder / name, folder / f"{part}.csv", folder / "dataset" / part / name, web_ui=False)
    train(folder / "out", config=config, dataset=folder / "dataset", epochs=EPOCHS, workers=0, device="cpu")
    return folder / "images", folder / "out" / "best.safetensors"


def blocks(predictor: Predictor, image: Array) -> Iterator[Line]:
    """Yield the rows of windows that hold a block of tiles, against those of one tile."""
    side = 256
    overlap = ModelConfig(encoder=predictor.card.encoder, ts=side).overlap
    margin, largest = 2 * side, SPANS[-1] * side
    height, width = ((length - 2 * margin) // largest * largest + 2 * margin for length in image.shape[:2])
    image = image[:height, :width]  # of whole blocks
    one, spent = _tiles(predictor, image, side, overlap, margin)
    for span in SPANS[1:]:
        many, less = _tiles(predictor, image, span * side, overlap, margin)
        differing = float((many != one).mean())
        yield Line(
            f"seams: windows of {span} x {span} tiles of {side} px", f"{less:.1f} s, {differing:.4%} differ",
            "windows of one tile", f"{spent:.1f} s", f"{less / spent:.2f}", f"< {BAR:.2%} differ",
            fault=f"{differing:.4%} of the pixels differ from windows of one tile" if differing >= BAR else "",
        )  # fmt: skip


def rows(folder: Path) -> Iterator[Line]:
    """Yield the rows, measured one after the other."""
    torch.set_num_threads(1)
    images, checkpoint = town(folder)
    tile([str(images)], folder / "whole.tif", web_ui=False)
    with rasterio.open(folder / "whole.tif") as source:
        image = np.moveaxis(source.read([1, 2, 3]), 0, 2)
    image = image[: image.shape[0] // 512 * 512, : image.shape[1] // 512 * 512]
    predictor = load_predictor(checkpoint, device="cpu")
    (whole,) = predictor.masks([image])
    for side in SIDES:
        default = ModelConfig(encoder=predictor.card.encoder, ts=side).overlap
        for overlap in OVERLAPS:
            found = seams(predictor, image, whole, side, overlap, 512)
            faults = []
            if overlap == default and found.differing >= BAR:
                faults.append(f"{found.differing:.4%} of the pixels differ from one whole image")
            if overlap == default and abs(found.across / found.whole - 1) > ACROSS:
                faults.append(f"classes change {found.across:.2f} times as often across borders as beside them")
            yield Line(
                f"seams: tiles of {side} px, overlap {overlap}{' (the default)' if overlap == default else ''}",
                f"{found.differing:.4%} differ",
                "one whole image",
                "",
                f"class changes across borders {found.across:.2f} times those beside (whole: {found.whole:.2f})",
                f"< {BAR:.2%}" if overlap == default else "",
                fault="; ".join(faults),
            )
    yield from blocks(predictor, image)
