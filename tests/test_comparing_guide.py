"""docs/comparing.md: its commands run on tile sets that tell their classes, and what it says of metrics is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from rsp.components.compare.bounds import RANGES
from rsp.shared.config import ClassDef
from rsp.shared.features import read_features
from rsp.shared.images import complementary, encode_mask
from rsp.shared.tileset import open_reader, open_writer
from rsp.shared.tileset.metadata import classes_metadata
from tests.guides import commands, page
from tests.tilesets import BLOCK, COLORS, make_tileset, squares

TEXT = page("comparing")


def test_the_commands_run_one_after_the_other(follow):
    make_tileset(Path("images"))
    classes = classes_metadata([ClassDef("background", COLORS[0]), ClassDef("building", COLORS[1])])
    for name, palette, shift in (("labels", complementary(COLORS), 0), ("masks", COLORS, 6)):
        with open_writer(Path(name), "png") as writer:
            writer.describe({"classes": classes})
            for tile in BLOCK:
                mask = squares(tile) | np.roll(squares(tile), 30, axis=0)
                writer.write(tile, encode_mask(np.roll(mask, shift * (tile.x % 4), axis=1), palette))
    assert len(follow(commands(TEXT))) == 9
    for name in ("outlines", "stack", "side", "outlines_below"):
        with open_reader(Path(name)) as reader:
            assert 0 < len(reader) <= len(BLOCK)
    assert len(Path("worst.txt").read_text().splitlines()) == len(BLOCK)
    assert 0 < len(list(read_features(Path("missed.gpkg")))) < len(BLOCK)
    listed = re.search(r"^\| a folder \| (.*) \|$", TEXT, re.M)[1]
    assert set(re.findall(r"`(.*?)`", listed)) == {path.name for path in Path("measures").iterdir()}


def test_the_metrics_are_those_that_there_are():
    told = {}
    for names, low, high in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (-?\d+), (\d+) \|", TEXT, re.M):
        told |= dict.fromkeys(re.findall(r"\w+", names), (int(low), int(high)))
    assert told == RANGES
