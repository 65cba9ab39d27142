"""Seeded inputs of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import rasterio.features
import shapely

from rsp.shared.images import complementary, encode, encode_mask
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_writer

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


def outline(size: float = 1.0, levels: int = 12) -> shapely.Polygon:
    """Return the outline of a country, in degrees: 2**levels points, as ragged at every scale."""
    rng = np.random.default_rng(2)
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(0.8, 1, (8, 1))
    for _ in range(levels - 3):
        edges = np.roll(ring, -1, axis=0) - ring
        across = np.column_stack([-edges[:, 1], edges[:, 0]]) * rng.uniform(-0.22, 0.22, (len(ring), 1))
        ring = np.stack([ring, ring + edges / 2 + across], axis=1).reshape(-1, 2)
    return shapely.Polygon(ring * (5.5 * size, 4 * size) + (2.5, 46.5))


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


def write_tilesets(folder: Path, columns: int, rows: int, size: int = 512) -> list[Path]:
    """Write tile sets of images, labels and masks at zoom 18; 40 buildings, of which few touch, to 512 x 512 px.

    Masks hold the buildings, one in ten with a courtyard; labels the same, three pixels away.
    """
    rng = np.random.default_rng(1)
    width, height = columns * size, rows * size
    cell = 512 / 40**0.5
    across, down = int(width / cell), int(height / cell)
    places = np.stack(np.meshgrid(np.arange(across), np.arange(down)), axis=-1).reshape(-1, 2)
    centres = (places + 0.5 + rng.uniform(-0.2, 0.2, places.shape)) * cell
    halves, angles = rng.uniform(0.2, 0.42, places.shape) * cell, rng.uniform(0, np.pi / 2, len(places))
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * halves[:, np.newaxis]
    turn = np.array([[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    outlines = corners @ turn
    polygons = shapely.polygons(centres[:, np.newaxis] + outlines)
    yards = rng.random(len(places)) < 0.1
    holes = shapely.polygons(centres[:, np.newaxis] + outlines * 0.4)
    polygons[yards] = shapely.difference(polygons[yards], holes[yards])
    paths = [folder / name for name in ("images", "labels", "masks")]
    colors = [(255, 255, 255), (255, 20, 147)]
    noise = rng.integers(-20, 21, (size, size, 3))
    with open_writer(paths[0], "jpg") as images, open_writer(paths[1], "png") as labels, \
            open_writer(paths[2], "png") as masks:  # fmt: skip
        _, top, _, bottom = shapely.bounds(polygons).T
        for row in range(rows):
            # A row at a time: what this process takes at its peak, its children are said to take, too.
            near = polygons[(bottom > row * size - 9) & (top < (row + 1) * size + 9)]
            drawn = [
                rasterio.features.rasterize(
                    [(polygon, 1) for polygon in near], (size, width), dtype="uint8",
                    transform=rasterio.Affine.translation(away, row * size + away),
                )
                for away in (0, -3)
            ]  # fmt: skip
            for column in range(columns):
                tile = Tile(134600 + column, 93000 + row, 18)
                mask, label = (array[:, column * size : (column + 1) * size] for array in drawn)
                masks.write(tile, encode_mask(mask, colors))
                labels.write(tile, encode_mask(label, complementary(colors)))
                picture = np.roll(noise, (7 * row, 7 * column), (0, 1)) + 120 - 60 * mask[:, :, np.newaxis]
                images.write(tile, encode(picture.astype(np.uint8), "jpg"))
    return paths


def write_roads(folder: Path, columns: int, rows: int, size: int = 256) -> Path:
    """Write masks of roads at zoom 18: a network with bends, 6 to 16 pixels wide, with ragged edges."""
    rng = np.random.default_rng(3)
    block = 150
    across, down = columns * size // block + 2, rows * size // block + 2
    nodes = np.stack(np.meshgrid(np.arange(across), np.arange(down)), axis=-1) * float(block)
    nodes += rng.uniform(-50, 50, nodes.shape)
    pairs = np.concatenate([
        np.stack([nodes[:, :-1], nodes[:, 1:]], axis=2).reshape(-1, 2, 2),
        np.stack([nodes[:-1], nodes[1:]], axis=2).reshape(-1, 2, 2),
    ])  # fmt: skip
    pairs = pairs[rng.random(len(pairs)) < 0.85]
    bends = pairs.mean(axis=1) + rng.uniform(-12, 12, (len(pairs), 2))
    ways = shapely.linestrings(np.stack([pairs[:, 0], bends, pairs[:, 1]], axis=1))
    smooth = shapely.segmentize(shapely.buffer(ways, rng.uniform(3, 8, len(ways))), 4)
    roads = shapely.transform(smooth, lambda points: points + np.sin(1.7 * points[:, ::-1]))
    _, top, _, bottom = shapely.bounds(roads).T
    colors = [(255, 255, 255), (255, 20, 147)]
    with open_writer(folder / "masks", "png") as masks:
        for row in range(rows):
            near = roads[(bottom > row * size) & (top < (row + 1) * size)]
            drawn = rasterio.features.rasterize(
                [(road, 1) for road in near], (size, columns * size), dtype="uint8",
                transform=rasterio.Affine.translation(0, row * size),
            )  # fmt: skip
            for column in range(columns):
                mask = drawn[:, column * size : (column + 1) * size]
                masks.write(Tile(134600 + column, 93000 + row, 18), encode_mask(mask, colors))
    return folder / "masks"
