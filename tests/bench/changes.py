"""A map against a prediction, object by object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from rsp.shared.featurewriter import feature_writer
from tests.bench.harness import Growth, Row, rival, rsp

WEST, SOUTH, METRE = 5.2, 46.8, 9e-6  # degrees; a metre of a meridian is as long
COUNT = 100_000


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp changes`."""
    ours, theirs = folder / "ours.geojson", folder / "theirs.geojson"

    def same() -> None:
        mine = {
            (int(each["mapped"]), int(each["predicted"])): each["iou"]
            for each in (feature["properties"] for feature in json.loads(ours.read_text())["features"])
            if each["status"] == "matched"
        }
        other = {
            (each["mapped"], each["predicted"]): each["iou"]
            for each in (feature["properties"] for feature in json.loads(theirs.read_text())["features"])
            if each["iou"] >= 0.5
        }
        assert mine.keys() == other.keys(), f"{len(mine.keys() ^ other.keys())} of {len(other)} pairs are others"
        assert max(abs(iou - other[pair]) for pair, iou in mine.items()) < 1e-4

    def compared(places: list[Path]) -> list[object]:
        return rsp("changes", "--workers", 1, "--mapped", places[0], "--predicted", places[1], ours)

    places = write_houses(folder / "many", COUNT)
    yield Row(
        "changes: 100,000 features against 100,000",
        compared(places),
        rival("match_features", *places, theirs),
        "shapely's STRtree, feature by feature",
        0.6,
        same,
        runs=1,
    )
    few = write_houses(folder / "few", COUNT // 10)
    yield Growth(
        "changes: memory and time of ten times the features", compared(few), compared(places), slack=800 << 20
    )


def write_houses(folder: Path, count: int) -> list[Path]:
    """Write a map of so many houses, and the same as a model sees them: each lacks a few of the other's."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    side = int(count**0.5) + 1
    corners = np.stack([np.arange(count) % side * 30.0, np.arange(count) // side * 30.0], axis=1)
    width, depth = rng.uniform(9, 20, (2, count))
    steps = np.array([(0, 0), (1, 0), (1, 0.6), (0.5, 0.6), (0.5, 1), (0, 1)])
    found = []
    for number, noise in enumerate((0.0, 0.5)):
        points = corners[:, np.newaxis] + steps * np.stack([width, depth], axis=1)[:, np.newaxis]
        points += rng.normal(0, noise, points.shape)
        degrees = np.concatenate([points, points[:, :1]], axis=1) * METRE + [WEST, SOUTH]
        houses = np.asarray(shapely.polygons(degrees))
        houses = houses[shapely.is_valid(houses) & (rng.random(count) > 0.03)]
        found.append(folder / f"{number}.geojson")
        with feature_writer(found[-1]) as writer:
            writer.write_batch(houses, [{}] * len(houses))
    return found
