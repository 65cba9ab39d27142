"""A map, what is predicted, and the changes between them: one object of each status, 100 m apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
from shapely.geometry import Polygon, box

from rsp.components.changes.tool import changes
from rsp.shared.config import ClassDef
from rsp.shared.features import feature_writer
from rsp.shared.images import encode, encode_mask
from rsp.shared.tiles import Tile
from rsp.shared.tileset import classes_metadata, open_writer

WEST, SOUTH, M = 5.2, 46.8, 1e-5  # degrees, and about a metre of them
ZOOM, SIDE = 18, 64


def house(x: float, y: float = 0.0, width: float = 10.0, height: float = 10.0) -> Polygon:
    """Return a house in metres from a corner on, in degrees."""
    return box(WEST + x * M, SOUTH + y * M, WEST + (x + width) * M, SOUTH + (y + height) * M)


MAPPED = [
    house(0), house(100), house(200), house(300, 0, 20, 10), house(400, 0, 10), house(410.5, 0, 10), house(500),
]  # fmt: skip
PREDICTED = [
    house(0), house(106), house(200, 0, 10, 4), house(300, 0, 9, 6), house(311, 0, 9, 6),
    house(400, 0, 20.5, 6), house(600),
]  # fmt: skip
NAMES = ["matched", "moved", "reshaped", "split", "merged", "merged too", "gone"]

TILES = sorted(mercantile.tiles(WEST - 20 * M, SOUTH - 20 * M, WEST + 620 * M, SOUTH + 30 * M, ZOOM))
CLASSES = (ClassDef("background", (255, 255, 255)), ClassDef("building", (255, 20, 147)))
RED, BLUE = (200, 40, 30), (20, 60, 220)


def write(path: Path, shapes: Sequence[Polygon], properties: Sequence[dict[str, Any]] | None = None) -> Path:
    """Write features."""
    with feature_writer(path) as writer:
        for number, each in enumerate(shapes):
            writer.write(each, properties[number] if properties else {})
    return path


def make_changes(root: Path, title: str = "building") -> None:
    """Write `mapped.geojson`, `predicted.geojson` and `changes.geojson`."""
    told = [
        {"name": name, "class": title, "levels": number, "area": 12.0, "osm_id": 2**53 + 1}
        for number, name in enumerate(NAMES)
    ]
    write(root / "mapped.geojson", MAPPED, told)
    write(root / "predicted.geojson", PREDICTED, [{"class": title}] * len(PREDICTED))
    places = {name: root / f"{name}.geojson" for name in ("mapped", "predicted")}
    changes(root / "changes.geojson", **places)


def make_tiles(path: Path, color: tuple[int, int, int], fmt: str = "png") -> Path:
    """Write imagery of one colour."""
    picture = np.full((SIDE, SIDE, 3), color, np.uint8)
    with open_writer(path, fmt) as writer:
        for tile in TILES:
            writer.write(tile, encode(picture, fmt))
    return path


def make_masks(path: Path, shapes: Sequence[Polygon]) -> Path:
    """Write masks of boxes, and what their classes are."""
    with open_writer(path, "png") as writer:
        writer.describe({"classes": classes_metadata(CLASSES)})
        for tile in TILES:
            writer.write(tile, encode_mask(_burnt(tile, shapes), [entry.color for entry in CLASSES]))
    return path


def _burnt(tile: Tile, shapes: Sequence[Polygon]) -> np.ndarray:
    west, south, east, north = mercantile.bounds(tile)
    x = west + (np.arange(SIDE) + 0.5) * (east - west) / SIDE
    y = north - (np.arange(SIDE) + 0.5) * (north - south) / SIDE
    found = np.zeros((SIDE, SIDE), np.uint8)
    for shape in shapes:
        left, low, right, high = shape.bounds
        found[np.ix_((y > low) & (y < high), (x > left) & (x < right))] = 1
    return found
