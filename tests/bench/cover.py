"""Covers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rsp.shared.covers import read_tiles
from tests.bench.data import buildings, outline, write_geojson
from tests.bench.harness import Growth, Measurable, Row, rival, rsp

# The outline whose cover at zoom 16 has 10^6 tiles, to the one of a country.
MILLION = 0.6586


def rows(folder: Path) -> Iterator[Measurable]:
    """Yield the rows of `rsp cover`."""
    ours, theirs = folder / "ours.csv", folder / "theirs.csv"

    def same() -> None:
        mine, other = read_tiles(ours), read_tiles(theirs)
        # Where an edge lies on that of a tile, burn takes the next tile too.
        more, less = len(other - mine), len(mine - other)
        assert not less and more < len(mine) / 1000, f"{more} tiles more and {less} less"

    def row(what: str, features: Path, zoom: int, before: str = "") -> Row:
        return Row(
            f"cover: {what}",
            rsp("cover", features, "--zoom", zoom, "--out", ours),
            rival("burn", features, zoom, theirs),
            "supermercado 0.3 burn",
            1,
            same,
            needs=("python:supermercado",),
            before=before,
        )

    def growth(what: str, small: list[object], large: list[object], tiles: int = 0) -> Growth:
        return Growth(f"cover: {what}", rsp("cover", *small), rsp("cover", *large), tiles=tiles)

    features = write_geojson(folder / "buildings.json", buildings(20_000))
    yield row("20,000 buildings at zoom 18", features, 18, "8.8 s")
    country = write_geojson(folder / "country.json", [outline()])
    for zoom, count in ((14, "145,000"), (15, "578,000"), (16, "2,300,000")):
        yield row(f"outline of a country of 4,096 points, zoom {zoom}, {count} tiles", country, zoom)
    million = write_geojson(folder / "million.json", [outline(MILLION)])
    yield row("10^6 tiles", million, 16)
    part = write_geojson(folder / "part.json", [outline(MILLION / 10**0.5)])
    to = ["--zoom", 16, "--out", ours]
    yield growth("10^6 tiles", [part, *to], [million, *to], tiles=900_000)
    more = write_geojson(folder / "more.json", buildings(200_000, 0.04 * 10**0.5))
    yield growth("200,000 buildings at zoom 18", [features, "--zoom", 18, *to[2:]], [more, "--zoom", 18, *to[2:]])
