"""Sharded prediction at full scale, killed ten times: `make test-scale` (TILES=20000 for less).

100,000 tiles of 64 pixels with a network of one layer: what is measured is how tiles are moved and kept, not a
network. The suite has a small version (`tests/test_shards.py`). The servers are in this process, on the same
processors; what they take is not in the table.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from tests.shards import Kill, Run, check, crossing, gaps, shards, square

TOOLS = ("blocks", "download", "predict", "vectorize", "join")


def kills_of(size: int) -> list[tuple[str, int]]:
    """Return the tools of the kills, each with the last request that may be hit, for blocks of a size."""
    download, predict, vectorize = ("download", 3 * size), ("predict", size // 6), ("vectorize", 24)
    return [
        ("blocks", 20), download, predict, vectorize, download, predict, vectorize, download, predict,
        ("join", 20),
    ]  # fmt: skip


def table(runs: list[Run]) -> str:
    """Return what the steps took and asked for, over all runs, as Markdown."""
    rows = [
        "| step | processes | s | CPU s | largest, MB | tiles asked for | reads | writes | MB read | written |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ended, sums = defaultdict(list), defaultdict(Counter)
    for run in runs:
        for step in run.ended:
            ended[step["step"].partition("-")[0]].append(step)
        for name, asked in run.asked.items():
            sums[name.partition("-")[0]].update(
                tiles=asked.tiles.total(), reads=asked.reads.total(), writes=asked.writes.total(),
                got=asked.got, sent=asked.sent,
            )  # fmt: skip
    for tool in TOOLS:
        steps, asked = ended[tool], sums[tool]
        rows.append(
            f"| {tool} | {len(steps)} | {sum(step['seconds'] for step in steps):.0f} "
            f"| {sum(step['cpu'] for step in steps):.0f} | {max(step['mb'] for step in steps):.0f} "
            f"| {asked['tiles']} | {asked['reads']} | {asked['writes']} "
            f"| {asked['got'] / 1e6:.0f} | {asked['sent'] / 1e6:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", type=int, nargs="?", default=100_000, help="how many tiles (default: 100000)")
    parser.add_argument(
        "--blocks", type=int, default=20, help="tiles / blocks is the size of a block (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    args = parser.parse_args()
    side = math.isqrt(args.tiles)
    tiles = square(131072 - side // 3, 65536 - side // 2, -(-args.tiles // side), side)
    size = len(tiles) // args.blocks
    began = time.monotonic()

    def ran(kill: Kill | None, run: Run) -> None:
        what = f"killed in {kill.tool}" if kill and run.killed else f"ended with {run.status}"
        done = Counter(name.partition("-")[0] for name in run.done)
        print(f"{time.monotonic() - began:6.0f} s: {what}; steps done: {dict(done)}", flush=True)

    with tempfile.TemporaryDirectory(prefix="rsp-scale-") as name, shards(Path(name), gaps) as town:
        print(
            f"{len(tiles)} tiles, blocks of at most {size}, {len(os.sched_getaffinity(0))} processors", flush=True
        )
        expected = town.whole(tiles)
        print(f"{time.monotonic() - began:6.0f} s: undisturbed on local files, {expected.ended}", flush=True)
        crossed = crossing(expected.features, tiles, size, Path(name))
        kills = kills_of(size)
        runs = town.killed(tiles, size, kills, seed=args.seed, longest=len(tiles) / 10_000, ran=ran)
        print(f"\n{table(runs)}\n")
        check(runs, expected, len(kills))
        assert not town.journals(), town.journals()
        assert crossed >= 10
        data = runs[-1].features.read_bytes()
        count, digest = data.count(b'"Feature"'), hashlib.sha256(data).hexdigest()[:16]
        print(
            f"{sum(run.killed for run in runs)} kills; {count} features, {crossed} of them in several blocks; "
            f"SHA-256 {digest}, that of the undisturbed run"
        )


if __name__ == "__main__":
    main()
