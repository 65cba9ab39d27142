"""docs/training.md and docs/evaluation.md: the commands run, one after the other, on a small data set."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from rsp.components.train.history import best_row
from rsp.shared.config import load_config
from rsp.shared.recipe import Recipe
from tests.guides import blocks, commands, page
from tests.tilesets import make_tileset, squares
from tests.toy import TRAINING as FIRST
from tests.toy import VALIDATION as LAST
from tests.toy import photo

DOCS = Path(__file__).parent.parent / "docs"
TRAINING, EVALUATION = page("training"), page("evaluation")
FEWER = [(r"--epochs \d+", "--epochs 2")]


# For tiles of 64 pixels, which are learned in seconds.
SMALL = """
[model]
ts = 64
bs = 8

[train]
crop = 32
passes = 1
"""


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(follow):
    example, *_ = blocks(TRAINING, "toml")
    Path("config.toml").write_text(example)
    load_config("config.toml")
    Path("config.toml").write_text(example + SMALL)
    for part, tiles in (("training", FIRST[:8]), ("validation", LAST[:2])):
        make_tileset(Path("dataset") / part / "images", tiles, "png", photo)
        make_tileset(Path("dataset") / part / "labels", tiles, "png", squares)
    lines = commands(TRAINING)
    asking = next(nth for nth, line in enumerate(lines) if line.startswith("rsp predict"))
    follow(lines[:asking], FEWER)
    # What the reader has by then, under the names of the page.
    shutil.copy("models/best.safetensors", "a.safetensors")
    shutil.copy("tuned/best.safetensors", "b.safetensors")
    for name in ("images", "labels"):
        shutil.copytree(f"dataset/validation/{name}", name)
    follow(lines[asking:])
    found = json.loads(Path("evaluation/metrics.json").read_text())
    best = best_row(json.loads(Path("models/history.json").read_text()), 1)["validation"]
    assert (found["confusion"], found["iou"]) == (best["confusion"], best["iou"])
    follow(commands(EVALUATION))
    # What the page says of the folder, and of single files.
    rows = re.findall(r"^\| (`.*?) \|.*\| (`\.\w+`)? ?\|$", EVALUATION, re.M)
    said = {name for cell, _ in rows for name in re.findall(r"`([\w.]+)`", cell)}
    assert said == {path.name for path in Path("evaluation").iterdir()}
    assert {suffix.strip("`") for _, suffix in rows if suffix} == {".json", ".csv", ".html"}
    assert Path("evaluation/index.html").stat().st_size < 1_000_000


def test_what_the_table_of_settings_names_are_keys():
    known = set(re.findall(r"^\| `(\w+)`", (DOCS / "config.md").read_text("utf-8"), re.M))
    table = TRAINING.split("## What each setting does")[1].split("\n\n")[1]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)", row.split("|")[1])}
    recipe = {each.name for each in fields(Recipe)}
    assert recipe <= named <= known
