"""Features of masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from tests.bench.data import write_config, write_tilesets
from tests.bench.harness import Growth, Row, rival, rsp


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp vectorize`."""
    config = write_config(folder)
    ours, theirs = folder / "ours.json", folder / "theirs.json"

    def traced(masks: Path, out: Path) -> list[object]:
        return rsp("vectorize", "--type", "building", "--workers", 1, "--config", config, masks, out)

    def same() -> None:
        mine, other = (
            set(shapely.to_wkt(shapely.normalize(read(path)), rounding_precision=7)) for path in (ours, theirs)
        )
        assert mine == other, f"{len(mine - other)} outlines of {len(mine)} are ours alone"
        assert read(ours).size == read(theirs).size, "one has a feature twice"

    _, _, masks = write_tilesets(folder / "tiles", 23, 22)
    yield Row(
        "vectorize: 506 tiles of 512 px, 20,000 buildings",
        traced(masks, ours),
        rival("shapes", masks, 512, theirs),
        "rasterio's shapes and shapely on the mosaic",
        0.8,
        same,
        runs=3,
    )
    *_, few = write_tilesets(folder / "few", 40, 8, size=256)
    *_, many = write_tilesets(folder / "many", 40, 80, size=256)
    yield Growth("vectorize: 3,200 tiles of 256 px", traced(few, ours), traced(many, ours), tiles=2880)


def read(path: Path) -> np.ndarray:
    """Return the polygons of a file."""
    features = json.loads(path.read_text())["features"]
    return shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
