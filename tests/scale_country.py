"""A country of a million buildings: extract, cover, and rasterize of a part: `make test-scale` runs this, too.

    python -m tests.scale_country [BUILDINGS]

Each tool runs in processes of its own on the whole and on a tenth. Ten times the work may take 10.5 times the
time, no process a gigabyte, and what the tools count has to be what was generated.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

from tests.bench.data import CONFIG
from tests.bench.harness import cost, rsp
from tests.country import COURTYARD, TOWN, make_country

# Tiles that are rasterized, of the whole as of the tenth.
PART = 500

# What ten times the work may take, in times of the time, and what a process may take, in bytes.
GROWTH, MEMORY = 10.5, 10**9


def run(folder: Path, count: int) -> dict[str, tuple[float, int]]:
    """Take a country of `count` buildings through the tools; return the CPU seconds and bytes of each step."""
    began = time.monotonic()
    pbf, buildings = folder / "country.osm.pbf", folder / "buildings.json"
    country = make_country(pbf, count)
    size = pbf.stat().st_size
    print(f"{count}: {country}, {size / 1e6:.0f} MB, made in {time.monotonic() - began:.0f} s", flush=True)
    (folder / "config.toml").write_text(CONFIG)
    kept = 4 * country.buildings // 5  # every fifth is under construction
    steps = {}

    def step(name: str, *words: object) -> dict:
        report = folder / f"{name}.report.json"
        used = cost(rsp(*words, "--report", report))
        steps[name] = used.seconds, used.memory
        print(f"{count}: {name}: {used.seconds:.1f} CPU s, {used.memory / 1e6:.0f} MB", flush=True)
        assert used.memory < MEMORY, f"{name} took {used.memory / 1e6:.0f} MB"
        return json.loads(report.read_text())

    found = step("extract", "extract", "--type", "building", pbf, buildings)
    assert (found["features"], found["left_out"], found["repaired"]) == (kept, 0, 0), found
    in_file = "--index", "sparse_file_array"
    step("extract, index in a file", "extract", "--type", "building", *in_file, pbf, folder / "b.json")
    assert filecmp.cmp(folder / "b.json", buildings, shallow=False)
    (folder / "b.json").unlink()
    found = step("extract both", "extract", "--type", "building", "road", pbf, folder / "both.json")
    assert found["classes"] == {"building": kept, "road": country.roads}, found
    (folder / "both.json").unlink()
    step("cover", "cover", "--zoom", 18, buildings, folder / "cover.csv")
    with (folder / "cover.csv").open() as cover, (folder / "part.csv").open("w") as part:
        part.writelines(islice(cover, PART))
        assert PART + sum(1 for _ in cover) > count / TOWN
    found = step(
        "rasterize a part", "rasterize", "--config", folder / "config.toml", "--type", "building", "--geojson",
        buildings, folder / "part.csv", folder / "labels", "--workers", 1,
    )  # fmt: skip
    assert found["tiles"] == PART, found
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("buildings", type=int, nargs="?", default=10**6, help="how many (default: a million)")
    count = parser.parse_args().buildings
    assert count >= 10 * COURTYARD
    with tempfile.TemporaryDirectory(prefix="rsp-country-") as name:
        results = []
        for part in (count // 10, count):
            folder = Path(name) / str(part)
            folder.mkdir()
            results.append(run(folder, part))
    print(f"\n| step | {count // 10} buildings, CPU s | {count} | times | MB | MB |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    faults = []
    for step, (seconds, memory) in results[1].items():
        before, little = results[0][step]
        print(
            f"| {step} | {before:.2f} | {seconds:.1f} | {seconds / before:.1f} | {little / 1e6:.0f} "
            f"| {memory / 1e6:.0f} |"
        )
        if seconds > GROWTH * before:
            faults.append(f"{step} took {seconds / before:.1f} times the time for ten times the work")
    assert not faults, faults


if __name__ == "__main__":
    main()
