"""Vectorize a mosaic of masks: rasterio's `shapes`, shapely's simplification: `shapes.py MASKS SIZE OUT`.

Everything is in memory at once, and what shapely can do for all polygons in one call it does so.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from PIL import Image
from rasterio.session import DummySession
from shapely.geometry import shape


def from_a_corner(polygons: np.ndarray) -> np.ndarray:
    """Let rings start at the vertex farthest from their middle, which simplification keeps."""
    rings, of = shapely.get_rings(polygons, return_index=True)
    lengths = shapely.get_num_points(rings) - 1
    points = np.delete(shapely.get_coordinates(rings), np.cumsum(lengths + 1) - 1, axis=0)
    starts = np.cumsum(lengths) - lengths
    # All times the number of vertices, and so whole: rounding does not choose between those that are as far.
    sums = np.repeat(np.add.reduceat(points, starts, axis=0), lengths, axis=0)
    away = ((points * np.repeat(lengths, lengths)[:, np.newaxis] - sums) ** 2).sum(axis=1)
    farthest = np.flatnonzero(away == np.repeat(np.maximum.reduceat(away, starts), lengths))
    first = farthest[np.searchsorted(farthest, starts)] - starts
    steps = np.arange(len(points)) - np.repeat(starts, lengths)
    turned = (steps + np.repeat(first, lengths)) % np.repeat(lengths, lengths) + np.repeat(starts, lengths)
    return shapely.polygons(
        shapely.linearrings(points[turned], indices=np.repeat(np.arange(len(rings)), lengths)), indices=of
    )


def main(masks: Path, size: int, out: Path) -> None:
    found = [(int(p.parent.name), int(p.stem), p) for p in masks.glob("*/*/*.png")]
    west, north = min(x for x, _, _ in found), min(y for _, y, _ in found)
    zoom = int(found[0][2].parent.parent.name)
    width, height = (max(place[axis] for place in found) + 1 - corner for axis, corner in ((0, west), (1, north)))
    mosaic = np.zeros((height * size, width * size), np.uint8)
    for x, y, path in found:
        row, column = (y - north) * size, (x - west) * size
        mosaic[row : row + size, column : column + size] = np.asarray(Image.open(path))
    with rasterio.Env(DummySession()):
        regions = rasterio.features.shapes(mosaic, mask=mosaic == 1, connectivity=4)
        polygons = np.array([shape(geometry) for geometry, _ in regions])

    def to_lonlat(pixels: np.ndarray) -> np.ndarray:
        turns = (pixels + np.array([west * size, north * size])) / (size << zoom)
        latitude = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * turns[:, 1]))))
        return np.round(np.column_stack([turns[:, 0] * 360 - 180, latitude]), 7)

    simple = shapely.simplify(from_a_corner(polygons), 1, preserve_topology=True)
    placed = shapely.orient_polygons(shapely.transform(simple, to_lonlat))
    texts = shapely.to_geojson(placed)
    with out.open("w") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        file.write(",\n".join(f'{{"type":"Feature","properties":{{}},"geometry":{text}}}' for text in texts))
        file.write("\n]}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
