"""Burn polygons into labels: python burn_labels.py FEATURES.json COVER.csv SIZE OUT.

GEOS reads the features, all points are projected at once, one query of the tree finds the polygons of all tiles,
and the PNG have a palette of two colours and level 1.
"""

import math
import sys
from pathlib import Path

import numpy as np
import rasterio
import shapely
from PIL import Image
from rasterio.features import rasterize

source, cover, size, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
RADIUS = 6378137.0


def mercator(points: np.ndarray) -> np.ndarray:
    """Project degrees."""
    radians = np.radians(points)
    return RADIUS * np.column_stack([radians[:, 0], np.log(np.tan(np.pi / 4 + radians[:, 1] / 2))])


polygons = shapely.transform(shapely.get_parts(shapely.from_geojson(Path(source).read_text())), mercator)
tiles = np.loadtxt(cover, np.int64, delimiter=",", ndmin=2)
half = math.pi * RADIUS
side = 2 * half / (1 << int(tiles[0, 2]))
west, north = tiles[:, 0] * side - half, half - tiles[:, 1] * side
tile, polygon = shapely.STRtree(polygons).query(shapely.box(west, north - side, west + side, north))
ends = np.searchsorted(tile, np.arange(len(tiles) + 1))
for number, (x, y, zoom) in enumerate(tiles.tolist()):
    mask = np.zeros((size, size), np.uint8)
    met = polygons[polygon[ends[number] : ends[number + 1]]]
    if len(met):
        grid = rasterio.Affine(side / size, 0, west[number], 0, -side / size, north[number])
        mask = rasterize(met.tolist(), out=mask, transform=grid)
    picture = Image.fromarray(mask)
    picture.putpalette([255, 255, 255, 0, 128, 0])
    folder = out / str(zoom) / str(x)
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{y}.png", compress_level=1)
