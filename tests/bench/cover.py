"""Covers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench.data import buildings, write_geojson
from tests.bench.harness import Row, rival, rsp


def rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of `rsp cover`."""
    ours, theirs = folder / "ours.csv", folder / "theirs.csv"

    def same() -> None:
        mine, other = (set(path.read_text().splitlines()) for path in (ours, theirs))
        # Where an edge lies on that of a tile, burn takes the next tile too.
        assert mine <= other and len(other - mine) < len(mine) / 1000, f"{len(mine ^ other)} tiles differ"

    features = write_geojson(folder / "buildings.json", buildings(20_000))
    yield Row(
        "cover: 20,000 buildings at zoom 18",
        rsp("cover", features, "--zoom", 18, "--out", ours),
        rival("burn", features, 18, theirs),
        "supermercado 0.3 burn",
        1,
        same,
        needs=("python:supermercado",),
    )
