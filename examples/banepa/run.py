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
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsp.shared.atomic import atomic_text
from rsp.shared.parallel import cpu_count
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader

CONFIG = Path(__file__).with_name("config.toml")
SEEDS = (0, 1, 2)
# The last rows that are trained on: of all labelled tiles, and where settings are chosen.
LAST, LAST_INNER = 220246, 220244


def rsp(*words: object, output: Path | None = None) -> float:
    """Run a command of rsp with one thread, which takes the least CPU time; return how many seconds of it.

    What it says goes to a file where there is one.
    """
    command = [str(Path(sys.executable).with_name("rsp")), *map(str, words)]
    with output.open("ab") if output else nullcontext() as file:
        child = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file and subprocess.STDOUT
        )
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}{f'; see {output}' if output else ''}")
    return used.ru_utime + used.ru_stime


def train(out: Path, seed: int, epochs: int, *options: object, checkpoint: Path | None = None) -> float:
    """Train with a seed, or go on; return the CPU seconds of the runs that ended.

    Args:
        out: Where `dataset` lies, and where what is trained goes.
        seed: Of the training.
        epochs: How many.
        options: More of `rsp train`.
        checkpoint: The weights to begin with.
    """
    folder = out / f"seed{seed}"
    begins = checkpoint is not None and not (folder / "state.pt").exists()
    words = (
        "--config", CONFIG, "--dataset", out / "dataset", "--epochs", epochs, "--seed", seed, *options,
        *(("--checkpoint", checkpoint) if begins else ("--resume",)),
    )  # fmt: skip
    used = out / f"seed{seed}.seconds"
    before = float(used.read_text()) if used.exists() else 0.0
    history = folder / "history.json"
    if history.exists() and json.loads(history.read_text())[-1]["epoch"] >= epochs:
        return before
    seconds = before + rsp("train", *words, folder, output=out / f"seed{seed}.log")
    with atomic_text(used) as file:
        file.write(f"{seconds}")
    return seconds


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
        label(images, data / "buildings.geojson", out / f"{name}.csv", out / "dataset" / name)


def label(images: Path, mapped: Path, cover: Path, out: Path) -> None:
    """Make a part of a data set: images of the tiles of a cover, and labels of a map."""
    rsp("rasterize", "--config", CONFIG, "--geojson", mapped, "--type", "building", "--no_web_ui",
        "--tile_size", 512, cover, out / "labels.pmtiles")  # fmt: skip
    rsp("subset", "--dir", images, "--cover", cover, out / "images.pmtiles", "--no_web_ui")


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
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--inner", action="store_true")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "test.csv").exists():
        prepare(args.data, out, args.inner)
    print(
        f"training with the seeds {', '.join(map(str, SEEDS))}; {out}/seed*.log say how far they are", flush=True
    )
    with ThreadPoolExecutor(cpu_count()) as pool:
        minutes = [seconds / 60 for seconds in pool.map(lambda seed: train(out, seed, args.epochs), SEEDS)]
    models = [out / f"seed{seed}" / "last.safetensors" for seed in SEEDS]
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
