"""The quality loop on the generated town: plant errors in its map, train on it, correct them, train again.

python -m examples.quality run --out quality                  all of docs/tutorial-quality.md, and what it came to
python -m examples.quality plant TRUTH COVER MAP PLANTED      a map with errors, and which they are
python -m examples.quality judge CHANGES MAP TRUTH DECISIONS  what a person decides who looks at the photograph

The tools see the map and the photograph; only `judge` and the count at the end know the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import shapely
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from examples.town import generate as town
from examples.town.server import CONFIG
from rsp.components.review.decisions import Decision, write_decisions
from rsp.components.review.suspects import GONE, MISSING, Suspect, read_suspects
from rsp.shared.atomic import atomic_text
from rsp.shared.cli import main as rsp
from rsp.shared.errors import PipelineError, RspError, UsageError
from rsp.shared.tiles import read_cover

KINDS = ("missing", "moved", "extra", "misshapen")
# Which share of all objects a person looks at, in percent.
WORST = 15.0
# What docs/tutorial-quality.md says, line by line; a test holds them together. Run in a folder of its own.
COMMANDS = """
python -m examples.town.generate scene
rsp tile --zoom 19 --tile_size 256 --cover scene/cover.csv scene/town.tif images
rsp cover --cover scene/cover.csv --splits 60,10,30 --block 2 --seed 0 training.csv validation.csv heldout.csv
rsp cover --cover training.csv --cover validation.csv mapped.csv
python -m examples.quality plant --seed 0 scene/buildings.geojson mapped.csv map.geojson planted.json
rsp subset --dir images --filter training.csv dataset/training/images
rsp subset --dir images --filter validation.csv dataset/validation/images
rsp rasterize --config config.toml --geojson map.geojson --like images training.csv dataset/training/labels
rsp rasterize --config config.toml --geojson map.geojson --like images validation.csv dataset/validation/labels
rsp train --config config.toml --dataset dataset --epochs 5 --seed 0 first
rsp predict --checkpoint first/last.safetensors --cover mapped.csv --probabilities probabilities.pmtiles images masks.pmtiles
rsp changes --mapped map.geojson --predicted masks.pmtiles --probabilities probabilities.pmtiles changes.geojson
rsp review --changes changes.geojson --mapped map.geojson --images images --masks masks.pmtiles --embed 20 review.html
python -m examples.quality judge changes.geojson map.geojson scene/buildings.geojson decisions.json
rsp review --changes changes.geojson --mapped map.geojson --decisions decisions.json --corrected corrected.geojson
rsp rasterize --config config.toml --geojson corrected.geojson --like images training.csv corrected/training/labels
rsp rasterize --config config.toml --geojson corrected.geojson --like images validation.csv corrected/validation/labels
rsp subset --dir images --filter training.csv corrected/training/images
rsp subset --dir images --filter validation.csv corrected/validation/images
rsp train --config config.toml --dataset corrected --checkpoint first/last.safetensors --lr 0.003 --epochs 5 --seed 0 second
rsp rasterize --config config.toml --geojson scene/buildings.geojson --like images heldout.csv heldout
rsp evaluate --checkpoint first/last.safetensors --cover heldout.csv heldout images first.json
rsp evaluate --checkpoint second/last.safetensors --cover heldout.csv heldout images second.json
""".strip().splitlines()  # noqa: E501


def read_geometries(path: Path) -> list[BaseGeometry]:
    """Return the geometries of a GeoJSON file, in degrees, in its order."""
    features = json.loads(path.read_text("utf-8"))["features"]
    return [shapely.geometry.shape(feature["geometry"]) for feature in features]


def plant(truth: Path, cover: Path, out: Path, planted: Path, *, errors: int = 20, seed: int = 0) -> None:
    """Write a map with errors, as many of each of `KINDS` as of the others.

    Buildings are left out, moved by 5 to 8 m, cut in half; and others are mapped where there is none.

    Args:
        truth: All buildings, GeoJSON in degrees.
        cover: The tiles in which errors are planted, a margin left out.
        out: The map, GeoJSON.
        planted: What the errors are: `kind`, the `number` in the map where there is one, and the `geometry` that
            the map lacks.
        errors: How many, a multiple of four.
        seed: Of their choice.

    Raises:
        UsageError: there are too few buildings for so many errors.
    """
    rng = np.random.default_rng(seed)
    buildings = read_geometries(truth)
    area = shapely.unary_union([shapely.box(*mercantile.bounds(*tile)) for tile in read_cover(cover)])
    latitude = area.centroid.y
    metre = np.array([1 / (111_320 * math.cos(math.radians(latitude))), 1 / 110_574])
    inside = area.buffer(-12 * metre[1])
    large = [
        nth for nth, each in enumerate(buildings)
        if inside.contains(each) and each.area > 60 * metre.prod()
    ]  # fmt: skip
    each_kind = errors // len(KINDS)
    if errors % len(KINDS) or len(large) < errors:
        raise UsageError(f"--errors {errors}: expected a multiple of 4, and at most {len(large)} on these tiles")
    chosen = rng.permutation(large)[: 4 * each_kind].reshape(4, each_kind)
    everything = shapely.STRtree(buildings)
    found: list[dict[str, Any]] = []
    changed = dict(enumerate(buildings))
    for nth in chosen[0]:
        found.append({"kind": "missing", "geometry": shapely.geometry.mapping(changed.pop(int(nth)))})

    def lacking(nth: int) -> dict[str, Any]:
        """Return what of a building its place in the map no longer covers."""
        return {"geometry": shapely.geometry.mapping(shapely.difference(buildings[nth], changed[nth]))}

    for nth in chosen[1]:
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(5, 8)
        step = np.array([math.cos(angle), math.sin(angle)]) * far * metre
        changed[int(nth)] = affinity.translate(buildings[nth], *step)
    for nth in chosen[2]:
        west, south, east, north = buildings[nth].bounds
        half = shapely.box(west, south, (west + east) / 2, north)
        changed[int(nth)] = shapely.intersection(buildings[nth], half)
    extra: list[BaseGeometry] = []
    while len(extra) < each_kind:
        shape = buildings[int(rng.choice(large))]
        west, south, east, north = inside.bounds
        goal = np.array([rng.uniform(west, east), rng.uniform(south, north)])
        made = affinity.translate(shape, *(goal - [shape.centroid.x, shape.centroid.y]))
        near = made.buffer(2 * metre[1])
        if inside.contains(made) and not len(everything.query(near, "intersects")):
            extra.append(made)
    numbers = {old: new for new, old in enumerate(changed)}
    for kind, some in (("moved", chosen[1]), ("misshapen", chosen[2])):
        found += [{"kind": kind, "number": numbers[nth], **lacking(nth)} for nth in some.tolist()]
    found += [{"kind": "extra", "number": len(changed) + nth} for nth in range(each_kind)]
    features = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(each)}
        for each in [*changed.values(), *extra]
    ]
    write_json(out, {"type": "FeatureCollection", "features": features})
    write_json(planted, found)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    with atomic_text(path) as file:
        json.dump(value, file)
        file.write("\n")


def overlap(geometry: BaseGeometry, tree: shapely.STRtree) -> float:
    """Return the highest IoU of a polygon with one of others."""
    others = tree.geometries[tree.query(geometry, "intersects")]
    shared = shapely.area(shapely.intersection(geometry, others))
    return float(np.max(shared / (geometry.area + shapely.area(others) - shared), initial=0.0))


def judge(changes: Path, mapped: Path, truth: Path, out: Path) -> None:
    """Decide on the worst objects as a person does who sees what is there.

    Args:
        changes: What `rsp changes` wrote.
        mapped: The map.
        truth: What is there.
        out: The decisions, for `rsp review`.
    """
    suspects, features, true = read_suspects(str(changes)), read_geometries(mapped), read_geometries(truth)
    tree = shapely.STRtree(true)
    lacking = shapely.difference(true, shapely.union_all(features))
    unmapped = shapely.STRtree(shapely.get_parts(lacking[shapely.area(lacking) > 0]))
    decisions: dict[int, Decision] = {}
    for each in suspects.worst(WORST):
        before = max((overlap(features[nth], tree) for nth in each.mapped), default=0.0)
        if each.status == GONE:
            right = before < 0.3
        elif each.status == MISSING:
            right = overlap(each.geometry, unmapped) >= 0.5
        else:
            right = overlap(each.geometry, tree) > before
        decisions[each.number] = "accept" if right else "reject"
    write_decisions(out, suspects, decisions)


def count_found(planted: Sequence[dict[str, Any]], worst: Sequence[Suspect]) -> dict[str, int]:
    """Return how many errors of each kind the worst objects lead to: by their number, or by what the map lacks."""
    numbers = {number for each in worst for number in each.mapped}
    tree = shapely.STRtree([each.geometry for each in worst if each.status != GONE])
    found = dict.fromkeys(KINDS, 0)
    for error in planted:
        lacking = shapely.geometry.shape(error["geometry"]) if "geometry" in error else shapely.Polygon()
        found[error["kind"]] += error.get("number") in numbers or overlap(lacking, tree) > 0.3
    return found


def run(out: Path, *, seed: int = 0, tiles: int = 150, epochs: int = 5, errors: int = 20) -> dict[str, Any]:
    """Run the tutorial in a folder, and return what it came to.

    Args:
        out: The folder, which must be empty, or not exist.
        seed: Of the split, the errors and the trainings.
        tiles: Of the town.
        epochs: Of each training.
        errors: How many are planted.

    Raises:
        UsageError: the folder holds something.
        PipelineError: a command failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"{out} holds something; give --out an empty folder, or one that does not exist")
    shutil.copyfile(CONFIG, out / "config.toml")
    begin = Path.cwd()
    os.chdir(out)
    try:
        for line in COMMANDS:
            code = 0
            words = shlex.split(
                line.replace("--seed 0", f"--seed {seed}").replace("--epochs 5", f"--epochs {epochs}")
            )
            print(f"$ {shlex.join(words)}", flush=True)
            if words[2:3] == ["examples.town.generate"]:
                town.generate(Path("scene"), tiles=tiles)
            elif words[2:3] == ["examples.quality"]:
                code = main([*words[3:], *(["--errors", str(errors)] if words[3] == "plant" else [])])
            else:
                code = rsp(words[1:])
            if code:
                raise PipelineError(f"{line}: ended with exit code {code}")
        return summary(Path(), seed)
    finally:
        os.chdir(begin)


def summary(folder: Path, seed: int) -> dict[str, Any]:
    """Return what a run came to: errors among the worst objects, and the IoU before and after."""
    suspects = read_suspects(str(folder / "changes.geojson"))
    planted = json.loads((folder / "planted.json").read_text("utf-8"))
    worst = suspects.worst(WORST)
    iou = [json.loads((folder / f"{name}.json").read_text("utf-8"))["iou"] for name in ("first", "second")]
    found = count_found(planted, worst)
    return {
        "seed": seed, "objects": len(suspects.objects), "looked_at": len(worst), "planted": len(planted),
        "found": sum(found.values()), "found_by_kind": found, "iou_before": iou[0], "iou_after": iou[1],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.quality",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("run")
    whole.add_argument("--out", type=Path, default=Path("quality"))
    whole.add_argument("--seed", type=int, default=0)
    planting = commands.add_parser("plant")
    planting.add_argument("--seed", type=int, default=0)
    planting.add_argument("--errors", type=int, default=20)
    for name in ("truth", "cover", "out", "planted"):
        planting.add_argument(name, type=Path)
    judging = commands.add_parser("judge")
    for name in ("changes", "mapped", "truth", "out"):
        judging.add_argument(name, type=Path)
    given = vars(parser.parse_args(argv))
    does: dict[str, Any] = {"run": run, "plant": plant, "judge": judge}
    try:
        if (found := does[given.pop("command")](**given)) is not None:
            print(json.dumps(found))
    except RspError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
