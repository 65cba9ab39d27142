"""A configuration that only lists channels and classes: what it is settled to, and that it learns."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from examples.town.paint import Canvas
from examples.town.plan import plan_town
from examples.town.town import ROUNDABOUT
from rsp.components.train.data import TileDataset
from rsp.components.train.history import read_state
from rsp.shared.config import load_config, parse_config
from rsp.shared.images import encode
from rsp.shared.learning.checkpoint import read_card
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_writer
from tests.components.train.learned import learned
from tests.tilesets import make_tileset, noise, squares

PLAIN = """
[[channels]]
name = "images"
bands = [1, 2, 3]
[[classes]]
title = "background"
color = "white"
[[classes]]
title = "building"
color = "deeppink"
"""
TOWN = """
[[channels]]
name = "images"
bands = [1, 2, 3, 4, 5]
[[classes]]
title = "background"
color = "white"
[[classes]]
title = "building"
color = "deeppink"
[[classes]]
title = "road"
color = "grey"
[[classes]]
title = "cloud"
color = "blue"
ignore = true
"""


@pytest.fixture
def plain(tmp_path):
    (tmp_path / "config.toml").write_text(
        PLAIN.replace("[[classes]]", "mean = [0, 0, 0]\nstd = [1, 1, 1]\n[[classes]]", 1)
    )
    return load_config(tmp_path / "config.toml")


def sized(root, side, tiles):
    """A data set of tiles of some side."""
    for part in ("training", "validation"):
        make_tileset(root / part / "images", tiles, "png", lambda tile: noise(tile, side))
        make_tileset(root / part / "labels", tiles, "png", lambda tile: squares(tile, 64))
    return root


def test_the_guide_says_the_defaults():
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    start, rest = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[:2]
    plain, said = parse_config(tomllib.loads(start)), parse_config(tomllib.loads(start + rest))
    known = {"side": 512, "tiles": 30, "batch": 8}
    assert said.recipe.settled(**known) == plain.recipe.settled(**known)
    assert replace(said.model, optimizer_options={}) == plain.model
    assert said.model.optimizer_options == {"weight_decay": 0.01}  # what an optimizer has by itself


@pytest.mark.parametrize(
    ("side", "given", "ts", "crop"),
    [(256, "auto", 256, 256), (40, "auto", 32, 32), (8, "auto", 32, 32), (288, "auto", 288, 256),
     (1100, "auto", 1024, 256), (64, 96, 96, 96)],
)  # fmt: skip
def test_tiles_are_learned_from_as_they_lie(tmp_path, plain, side, given, ts, crop):
    tiles = [Tile(5, 6, 7), Tile(6, 6, 7)]
    config = replace(plain, model=replace(plain.model, ts=given))
    data = TileDataset(config, sized(tmp_path, side, tiles) / "training", training=True)
    assert (data.config.model.ts, data.recipe.crop, data.source_size) == (ts, crop, side)
    image, label = learned(data, 1, 0)
    assert image.shape == (3, crop, crop) and label.shape == (crop, crop)
    other = TileDataset(data.config, tmp_path / "validation", training=False)
    border = data.config.model.overlap
    assert other[1, 0].image.shape == (ts + 2 * border, ts + 2 * border, 3)
    # Two processes with half of the batch go through the tiles as often.
    half = replace(config, model=replace(config.model, bs=4))
    both = TileDataset(half, tmp_path / "training", training=True, processes=2)
    assert (both.recipe, len(both)) == (data.recipe, len(data)) and len(data) > 99 * 8


def test_what_was_settled_is_kept_and_held_to(tmp_path, rsp):
    """Also more in a batch than there are crops."""
    sized(tmp_path / "d", 32, [Tile(5, 6, 7), Tile(6, 6, 7), Tile(8, 6, 7)])
    config = tmp_path / "config.toml"
    arguments = ("train", "--config", config, "--dataset", tmp_path / "d")
    lines = PLAIN + "[model]\nnum_filters = 4\nbs = {}\n[train]\n{}\n"
    config.write_text(lines.format(2, "patience = 9"))
    ran = rsp(*arguments, "--epochs", 1, tmp_path / "out")
    assert ran.code == 0, ran.stderr
    assert "validation tiles of 32 px; 2 in a batch" in ran.stdout and "201 crops of 32 px" in ran.stdout
    settings = read_state(tmp_path / "out").settings
    assert (settings["--ts"], settings["[train] crop"], settings["[train] passes"]) == (32, 32, 67)
    assert settings["[train] scale"] == [0.75, 1.33] and settings["[train] encoder_rate"] == 1
    assert read_card(tmp_path / "out" / "last.safetensors").tile_size == 32
    config.write_text(lines.format(2, "passes = 66"))
    ran = rsp(*arguments, "--epochs", 2, "--resume", tmp_path / "out")
    assert ran.code == 1 and "[train] passes was 67, is 66. Set it back" in ran.stderr
    config.write_text(lines.format(8, "passes = 1"))
    ran = rsp(*arguments, "--epochs", 1, tmp_path / "few")
    assert ran.code == 0, ran.stderr
    assert "3 crops of 32 px in an epoch" in ran.stdout
    config.write_text(lines.format(8, "passes = 1\ncrop = 32\nscale = [0.75, 1.33]\nencoder_rate = 1"))
    ran = rsp(*arguments, "--epochs", 2, "--resume", tmp_path / "few")
    assert ran.code == 0, ran.stderr  # the same, in words


# --- the town ---------------------------------------------------------------------------------------------------


def town(columns: int, rows: int, side: int, resolution: float = 0.5, seed: int = 7):
    """Return five bands of 12 bits in 16 (blue, green, red, two infrared), and labels; clouds are class 3."""
    scene = plan_town((columns * side * resolution, rows * side * resolution), seed)
    rng = np.random.default_rng([seed, 5])
    canvas = Canvas(scene, resolution, rng)
    drawn = Image.new("L", (canvas.width, canvas.height))
    draw = ImageDraw.Draw(drawn)
    for road in scene.roads:
        draw.line(canvas.pixels(road.axis), fill=2, width=max(1, round(road.width / resolution)), joint="curve")

    def circle(x: float, y: float, radius: float, fill: int) -> None:
        ((column, row),), reach = canvas.pixels([(x, y)]), radius / resolution
        draw.ellipse((column - reach, row - reach, column + reach, row + reach), fill=fill)

    circle(0, 0, ROUNDABOUT, 2)
    circle(0, 0, 8.4, 0)
    for building in scene.buildings:
        draw.polygon(canvas.pixels(building.footprint.exterior.coords), fill=1)
        for court in building.footprint.interiors:
            draw.polygon(canvas.pixels(court.coords), fill=0)
    for x, y, radius, _ in scene.trees:
        circle(x, y, radius, 0)  # what is under a crown is not seen
    label = np.array(drawn)
    red, green, blue = np.moveaxis(canvas.paint().astype(np.float32), 2, 0)
    leaves = np.clip(green - (red + blue) / 2, 0, None)
    bands = [3 * blue, 3.5 * green, 4 * red, 2.5 * red + 20 * leaves, 2.4 * red + 2 * blue - 4 * leaves]
    image = np.stack(bands, 2) + 300 + 12 * rng.standard_normal((*label.shape, 5), np.float32)
    south, east = np.mgrid[: canvas.height, : canvas.width]
    for _ in range(columns * rows // 6):
        y, x, radius = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width), rng.uniform(0.15, 0.4) * side
        thick = np.clip(1.5 * (1 - np.hypot(south - y, east - x) / radius), 0, 1)
        image += thick[:, :, None] * (3600 - image)
        label[thick > 0.1] = 3
    return np.clip(image, 0, 4095).astype(np.uint16), label


def write_town(root, columns: int = 8, rows: int = 12, held: int = 3, side: int = 64) -> None:
    """Write a data set and a configuration that only says what the data are; the last rows are held out."""
    image, label = town(columns, rows, side)
    for part, chosen in (("training", range(rows - held)), ("validation", range(rows - held, rows))):
        for name, sheet, fmt in (("images", image, "tif"), ("labels", label[:, :, None], "png")):
            with open_writer(root / part / f"{name}.pmtiles", fmt) as writer:
                for row in chosen:
                    for column in range(columns):
                        part_of = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
                        writer.write(Tile(1000 + column, 2000 + row, 18), encode(part_of, fmt))
    (root / "config.toml").write_text(TOWN)


@pytest.mark.slow
def test_five_bands_of_12_bits_three_classes_and_one_to_ignore_by_defaults_alone(tmp_path, rsp):
    write_town(tmp_path)
    config, labels = tmp_path / "config.toml", tmp_path / "validation" / "labels.pmtiles"
    for command in (
        ("train", "--config", config, "--dataset", tmp_path, "--epochs", 4, tmp_path / "models"),
        ("predict", "--checkpoint", tmp_path / "models" / "last.safetensors", "--no_web_ui",
         tmp_path / "validation" / "images.pmtiles", tmp_path / "masks.pmtiles"),
        ("evaluate", "--config", config, labels, tmp_path / "masks.pmtiles", tmp_path / "found.json"),
    ):  # fmt: skip
        ran = rsp(*command)
        assert ran.code == 0, ran.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["miou"] >= 0.8
    card = read_card(tmp_path / "models" / "last.safetensors")
    assert (card.tile_size, card.channels[0].value_type, len(card.channels[0].mean)) == (64, "uint16", 5)
    known = np.isin(town(8, 12, 64)[1][9 * 64 :], (0, 1, 2)).sum()
    assert np.sum(found["confusion"]) == known
