"""The quality loop on the tiles of Banepa: plant errors in their map, train on it, and see where they are ranked.

    python -m examples.banepa.quality --data DIR --out DIR

As docs/tutorial-quality.md does it on the generated town, on the part of the training rows by which settings are
chosen: errors are planted where is learned, and what their correction gains is measured on the rows after. The map
lacks some roofs, and nobody knows which: they are ranked with the errors, and the stand-in for a person, who knows
no more than the map, rejects them. The second training goes on from the first, for half as many epochs. The
held-out rows are not looked at.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from examples.banepa.run import evaluate, label, prepare, rsp, train
from examples.quality import judge, plant, summary, write_json

# Of the data sets; the last of the rows that are trained on are those to look at, too.
PARTS = ("training", "validation")
# The rate at which the second training goes on from the first: half of what the configuration says.
AGAIN = 0.0025


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m examples.banepa.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--errors", type=int, default=20)
    args = parser.parse_args()
    print(json.dumps(run(args.data, args.out, args.seed, args.epochs, args.errors), indent=2))


def run(data: Path, out: Path, seed: int, epochs: int, errors: int) -> dict[str, Any]:
    """Run the loop, or go on with it; return what it came to."""
    out.mkdir(parents=True, exist_ok=True)
    truth, cover = data / "buildings.geojson", out / "training.csv"
    mapped, planted, changes = out / "map.geojson", out / "planted.json", out / "changes.geojson"
    if not (out / "test.csv").exists():
        prepare(data, out, inner=True)
    plant(truth, cover, mapped, planted, errors=errors, seed=seed)
    for part in PARTS:
        label(data / "images", mapped, out / f"{part}.csv", out / "damaged" / "dataset" / part)
    train(out / "damaged", seed, epochs)
    first = out / "damaged" / f"seed{seed}" / "last.safetensors"
    masks, probabilities = out / "masks.pmtiles", out / "probabilities.pmtiles"
    rsp("predict", "--checkpoint", first, "--cover", cover, "--probabilities", probabilities, "--no_web_ui",
        data / "images", masks)  # fmt: skip
    rsp("changes", "--mapped", mapped, "--predicted", masks, "--probabilities", probabilities, changes)
    rsp("review", "--changes", changes, "--mapped", mapped, "--images", data / "images", "--masks", masks,
        "--embed", 50, out / "review.html")  # fmt: skip
    judge(changes, mapped, truth, out / "decisions.json")
    rsp("review", "--changes", changes, "--mapped", mapped, "--decisions", out / "decisions.json",
        "--corrected", out / "corrected.geojson")  # fmt: skip
    for part in PARTS:
        label(
            data / "images", out / "corrected.geojson", out / f"{part}.csv", out / "corrected" / "dataset" / part
        )
    train(out / "corrected", seed, max(1, epochs // 2), "--lr", AGAIN, checkpoint=first)
    second = out / "corrected" / f"seed{seed}" / "last.safetensors"
    for name, model in (("first", first), ("second", second)):
        evaluate(out, data, name, [model])
    result = summary(out, seed)
    write_json(out / "result.json", result)
    return result


if __name__ == "__main__":
    main()
