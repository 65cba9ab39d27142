"""Seeded inputs of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import shapely

CONFIG = '[[channels]]\nname = "images"\nbands = [1, 2, 3]\n[[classes]]\ntitle = "building"\ncolor = "pink"\n'


def buildings(count: int, spread: float = 0.04) -> list[shapely.Polygon]:
    """Return turned rectangles of 10 to 30 m, in degrees, over a square whose side is `spread` degrees."""
    rng = np.random.default_rng(1)
    centres = rng.uniform((4.8, 45.7), (4.8 + spread, 45.7 + spread), (count, 2))
    sizes = rng.uniform(5, 15, (count, 2)) / (78000, 111000)
    return [
        shapely.affinity.rotate(shapely.box(x - w, y - h, x + w, y + h), angle)
        for (x, y), (w, h), angle in zip(centres, sizes, rng.uniform(0, 90, count), strict=True)
    ]


def write_geojson(path: Path, polygons: list[shapely.Polygon]) -> Path:
    """Write polygons as a FeatureCollection."""
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(p)} for p in polygons]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_config(folder: Path) -> Path:
    """Write a configuration of one class."""
    path = folder / "config.toml"
    path.write_text(CONFIG)
    return path
