"""A seeded country as .osm.pbf: towns of buildings with courtyards, and roads through them.

    python -m tests.country 1000000 country.osm.pbf

Written by way of OPL, the text format of osmium, whose lines are made in arrays: a million buildings take about
ten seconds. The same count and seed give the same map.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import osmium

# Degrees: where the country begins, and the side of a cell with one building. Buildings along a town's side.
WEST, SOUTH, CELL, TOWN = 5.0, 45.0, 0.0004, 100

# Of this many buildings one is a multipolygon relation with a courtyard; every fifth is not built yet.
COURTYARD = 50


class Country(NamedTuple):
    """What a country has: `buildings` counts the relations too."""

    buildings: int
    relations: int
    roads: int
    nodes: int


def write_country(path: Path, count: int, seed: int = 0) -> Country:
    """Write a country of about `count` buildings; return what it has.

    Nodes of buildings come first, four each, then those of courtyards, then those of roads.
    """
    rng = np.random.default_rng(seed)
    towns = max(1, round(count / TOWN**2))
    side = int(np.ceil(np.sqrt(towns)))
    count = towns * TOWN**2 if count >= TOWN**2 else count
    number = np.arange(count)
    town, place = number // TOWN**2, number % TOWN**2
    # Towns lie beside each other with a gap of as many cells.
    x = (town % side) * 2 * TOWN + place % TOWN
    y = (town // side) * 2 * TOWN + place // TOWN
    centres = np.column_stack([WEST + x * CELL, SOUTH + y * CELL]) + rng.uniform(-0.1, 0.1, (count, 2)) * CELL
    halves = rng.uniform(0.15, 0.3, (count, 2)) * CELL
    angles = rng.uniform(0, np.pi / 2, count)
    yards = number[number % COURTYARD == 7]
    corners = np.concatenate([_corners(centres, halves, angles), _corners(centres, halves / 3, angles)[yards]])
    roads, lines = _roads(towns, side, rng)
    nodes = np.concatenate([corners.reshape(-1, 2), lines.reshape(-1, 2)])
    with osmium.SimpleWriter(osmium.io.File(str(path), "pbf"), header=_header()) as writer:
        for text in _texts(nodes, count, yards, roads, lines.shape[1]):
            with osmium.io.Reader(osmium.io.FileBuffer(text.encode(), "opl")) as reader:
                osmium.apply(reader, writer)
    return Country(count, len(yards), roads, len(nodes))


def make_country(path: Path, count: int) -> Country:
    """Have a country written by another process: what a process has used at most counts for its children, too."""
    command = [sys.executable, "-m", "tests.country", str(count), str(path)]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return Country(**json.loads(made.stdout))


def _header() -> osmium.io.Header:
    header = osmium.io.Header()
    header.set("sorting", "Type_then_ID")
    return header


def _corners(centres: np.ndarray, halves: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return the corners of turned rectangles, (rectangles, 4, 2)."""
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    flat = signs * halves[:, None]
    turn = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1).reshape(-1, 2, 2)
    return centres[:, None] + np.einsum("nij,nkj->nki", turn, flat)


def _roads(towns: int, side: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """Return how many roads there are, and their nodes: from west to east through each town, every tenth row."""
    rows = np.arange(0, TOWN, 10)
    town = np.repeat(np.arange(towns), len(rows))
    y = SOUTH + ((town // side) * 2 * TOWN + np.tile(rows, towns) + 0.5) * CELL
    x = WEST + ((town % side) * 2 * TOWN)[:, None] * CELL + np.linspace(0, TOWN * CELL, 12)
    wiggle = rng.uniform(-0.05, 0.05, x.shape) * CELL
    return len(town), np.stack([x, y[:, None] + wiggle], 2)


def _texts(nodes: np.ndarray, count: int, yards: np.ndarray, roads: int, bends: int) -> Iterator[str]:
    """Yield the map in OPL, in pieces: nodes, ways and relations by their ids, from 1."""
    scaled = np.round(nodes * 1e7).astype(np.int64)
    for start in range(0, len(nodes), 200_000):
        block = scaled[start : start + 200_000]
        degrees = [
            f"n{start + 1 + n} v1 x{x / 1e7:.7f} y{y / 1e7:.7f}\n" for n, (x, y) in enumerate(block.tolist())
        ]
        yield "".join(degrees)
    holes = set(yards.tolist())
    kinds = ("yes", "house", "residential", "garage", "construction")
    for start in range(0, count, 100_000):
        lines = []
        for number in range(start, min(start + 100_000, count)):
            first = 4 * number + 1
            tags = "" if number in holes else f" Tbuilding={kinds[number % 5]}"
            lines.append(f"w{number + 1} v1{tags} {_ring(first)}\n")
        yield "".join(lines)
    ways = [f"w{count + 1 + n} v1 {_ring(4 * (count + n) + 1)}\n" for n in range(len(yards))]
    first, way = 4 * (count + len(yards)) + 1, count + len(yards) + 1
    for road in range(roads):
        refs = ",".join(f"n{first + road * bends + bend}" for bend in range(bends))
        ways.append(f"w{way + road} v1 Thighway=residential N{refs}\n")
    yield "".join(ways)
    yield "".join(
        f"r{n + 1} v1 Ttype=multipolygon,building=apartments Mw{yard + 1}@outer,w{count + 1 + n}@inner\n"
        for n, yard in enumerate(yards.tolist())
    )


def _ring(first: int) -> str:
    return f"Nn{first},n{first + 1},n{first + 2},n{first + 3},n{first}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, help="buildings, in whole towns of 10,000 from there on")
    parser.add_argument("out", type=Path, help="the .osm.pbf to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(write_country(args.out, args.count, args.seed)._asdict()))


if __name__ == "__main__":
    main()
