"""Reproduce the figures of docs/training.md on the tiles of Banepa, as a user would run them.

    python -m examples.banepa.run --data DIR --out DIR            on the held-out rows
    python -m examples.banepa.run --data DIR --out DIR --inner    on a part of the training rows, to choose
    settings by

DIR holds `images/19/{x}/{y}.jpg` and `buildings.geojson`. Rows up to 220246 are trained on; the others are looked
at by this script alone, in its last step, and `runs.csv` in OUT says when.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsp.shared.atomic import atomic_text
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader

CONFIG = Path(__file__).with_name("config.toml")
SEEDS = (0, 1, 2)
# The last rows that are trained on: of all labelled tiles, and where settings are chosen.
LAST, LAST_INNER = 220246, 220244


def rsp(*words: object) -> float:
    """Run a command of rsp; return the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([Path(sys.executable).with_name("rsp"), *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(data: Path, out: Path, inner: bool) -> None:
    """Make the labels, and the data set: all training rows to learn from, the last of them to look at, too."""
    images = data / "images"
    with open_reader(images) as reader:
        tiles = reader.tiles()
    last = LAST_INNER if inner else LAST
    parts: dict[str, list[Tile]] = {
        "training": [tile for tile in tiles if tile.y <= last],
        "validation": [tile for tile in tiles if tile.y == last],
        "test": [tile for tile in tiles if last < tile.y <= (LAST if inner else tile.y)],
    }
    for name, some in parts.items():
        write_cover(out / f"{name}.csv", some)
        options = (
            "--config",
            CONFIG,
            "--geojson",
            data / "buildings.geojson",
            "--type",
            "building",
            "--no_web_ui",
        )
        labels = out / "dataset" / name / "labels.pmtiles"
        rsp("rasterize", *options, "--tile_size", 512, out / f"{name}.csv", labels)
        target = out / "dataset" / name / "images.pmtiles"
        rsp("subset", "--dir", images, "--cover", out / f"{name}.csv", target, "--no_web_ui")


def evaluate(out: Path, data: Path, name: str, checkpoints: list[Path], *options: object) -> float:
    """Predict the test tiles and evaluate the masks; return the IoU of buildings."""
    given = [word for path in checkpoints for word in ("--checkpoint", path)]
    masks = out / f"{name}.pmtiles"
    rsp("predict", *given, *options, "--cover", out / "test.csv", data / "images", masks, "--no_web_ui")
    labels = out / "dataset" / "test" / "labels.pmtiles"
    rsp("evaluate", "--config", CONFIG, labels, masks, out / f"{name}.json")
    measured: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return float(measured["iou"])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m examples.banepa.run", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=19)
    parser.add_argument("--inner", action="store_true")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "test.csv").exists():
        prepare(args.data, out, args.inner)
    minutes: list[float] = []
    models: list[Path] = []
    for seed in SEEDS:
        folder = out / f"seed{seed}"
        words = (
            "--config",
            CONFIG,
            "--dataset",
            out / "dataset",
            "--epochs",
            args.epochs,
            "--seed",
            seed,
            "--resume",
        )
        models.append(folder / "last.safetensors")
        if not models[-1].exists() or json.loads((folder / "history.json").read_text())[-1]["epoch"] < args.epochs:
            minutes.append(rsp("train", *words, folder) / 60)
    with (out / "runs.csv").open("a", newline="") as file:
        csv.writer(file).writerow([datetime.now(UTC).isoformat(timespec="seconds"), *map(os.fspath, models)])
    single = [evaluate(out, args.data, f"seed{seed}", [path]) for seed, path in zip(SEEDS, models, strict=True)]
    turned = [
        evaluate(out, args.data, f"seed{seed}_d4", [path], "--tta", "d4")
        for seed, path in zip(SEEDS, models, strict=True)
    ]
    table = {
        "cpu_minutes": minutes,
        "single": single,
        "single_mean": statistics.mean(single),
        "d4": turned,
        "d4_mean": statistics.mean(turned),
        "ensemble": evaluate(out, args.data, "ensemble", models),
        "ensemble_d4": evaluate(out, args.data, "ensemble_d4", models, "--tta", "d4"),
    }
    with atomic_text(out / "table.json") as file:
        json.dump(table, file, indent=2)
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
