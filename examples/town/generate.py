"""Draw a small imaginary town from above, with the truth about its buildings.

python -m examples.town.generate OUT [--seed 7] [--tiles 150]

OUT gets `town.tif` (aerial photograph, RGB, UTM), `buildings.geojson` (the truth, EPSG:4326), `town.osm.pbf`
(the same buildings, roads, and what real extracts have: odd tags, missing nodes and members), `cover.csv` and
`scene.json`. The same seed and size give the same town.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.transform import from_origin
from shapely.geometry import mapping

from examples.town.osm import OsmCounts, write_osm
from examples.town.paint import Canvas
from examples.town.plan import plan_town
from examples.town.town import Town
from rsp.shared.atomic import atomic_path
from rsp.shared.tiles import Tile, write_cover

# Fields in the Bresse: nothing of the place is in the picture.
LON, LAT, UTM = 5.21, 46.87, "EPSG:32631"
ZOOM = 19  # a tile of 256 px is 52 m of ground here
RESOLUTION = 0.2  # metres a pixel, as the tiles have it
MARGIN = 6.0  # metres around the tiles


@dataclass(frozen=True)
class Scene:
    """A generated scene: where its files lie and what is in them."""

    path: Path
    seed: int
    zoom: int
    bbox: tuple[float, float, float, float]  # west, south, east, north in degrees, just inside the tiles
    tiles: list[Tile]
    buildings: int
    osm: OsmCounts

    @property
    def raster(self) -> Path:
        """The aerial photograph."""
        return self.path / "town.tif"

    @property
    def features(self) -> Path:
        """The truth: GeoJSON, EPSG:4326."""
        return self.path / "buildings.geojson"

    @property
    def pbf(self) -> Path:
        """The OpenStreetMap extract."""
        return self.path / "town.osm.pbf"

    @property
    def cover(self) -> Path:
        """The tiles that the photograph covers wholly."""
        return self.path / "cover.csv"

    @property
    def bbox_text(self) -> str:
        """The box as `rsp cover --type bbox` takes it."""
        return ",".join(f"{value:.7f}" for value in self.bbox)


def load_scene(path: Path) -> Scene:
    """Return the scene that was generated into a folder."""
    data = json.loads((path / "scene.json").read_text("utf-8"))
    tiles = [Tile(*tile) for tile in data["tiles"]]
    osm = OsmCounts(**data["osm"])
    return Scene(path, data["seed"], data["zoom"], tuple(data["bbox"]), tiles, data["buildings"], osm)


def generate(out: Path, seed: int = 7, tiles: int = 150, resolution: float = RESOLUTION) -> Scene:
    """Draw a scene of about so many tiles.

    Args:
        out: The folder that gets the files.
        seed: The same seed and number of tiles give the same town.
        tiles: How many tiles of 256 px the photograph covers wholly, about.
        resolution: Metres a pixel.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = max(1, round(math.sqrt(tiles)))
    rows = math.ceil(tiles / columns)
    middle = mercantile.tile(LON, LAT, ZOOM)
    left, top = middle.x - columns // 2, middle.y - rows // 2
    cover = [Tile(x, y, ZOOM) for x in range(left, left + columns) for y in range(top, top + rows)]
    boxes = [mercantile.bounds(cover[0]), mercantile.bounds(cover[-1])]
    west, south, east, north = boxes[0].west, boxes[1].south, boxes[1].east, boxes[0].north
    inset = (boxes[0].east - west) / 50
    bbox = (west + inset, south + inset, east - inset, north - inset)

    to_utm = Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
    xs, ys = to_utm.transform([west, east, east, west], [south, south, north, north])
    x0, y0 = (math.floor(min(values) - MARGIN) for values in (xs, ys))
    width, height = (math.ceil((max(v) + MARGIN - o) / resolution) for v, o in ((xs, x0), (ys, y0)))
    size = (width * resolution, height * resolution)
    origin = (x0 + size[0] / 2, y0 + size[1] / 2)

    town = plan_town(size, seed)
    write_raster(out / "town.tif", town, resolution, origin, seed)
    to_lonlat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)

    def lonlat(points: np.ndarray) -> np.ndarray:
        return np.column_stack(to_lonlat.transform(points[:, 0] + origin[0], points[:, 1] + origin[1])).round(8)

    write_truth(out / "buildings.geojson", town, lonlat)
    osm = write_osm(out / "town.osm.pbf", town, lonlat)
    write_cover(out / "cover.csv", cover)
    scene = Scene(out, seed, ZOOM, bbox, cover, len(town.buildings), osm)
    facts = {**asdict(scene), "tiles": [list(tile) for tile in cover], "resolution": resolution, "crs": UTM}
    facts.pop("path")
    with atomic_path(out / "scene.json") as path:
        path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return scene


def write_raster(path: Path, town: Town, resolution: float, origin: tuple[float, float], seed: int) -> None:
    """Paint the town into a tiled GeoTIFF."""
    picture = Canvas(town, resolution, np.random.default_rng([seed, 1])).paint()
    height, width, bands = picture.shape
    corner = from_origin(
        origin[0] - width * resolution / 2, origin[1] + height * resolution / 2, resolution, resolution
    )
    options = {"compress": "deflate", "zlevel": 1, "predictor": 2, "tiled": True, "num_threads": "all_cpus"}
    with atomic_path(path) as temporary, rasterio.open(
        temporary, "w", driver="GTiff", width=width, height=height, count=bands, dtype="uint8", crs=UTM,
        transform=corner, photometric="rgb", blockxsize=256, blockysize=256, **options,
    ) as raster:  # fmt: skip
        raster.write(np.moveaxis(picture, 2, 0))


def write_truth(path: Path, town: Town, lonlat: Callable[[Any], Any]) -> None:
    """Write the outlines of all buildings."""
    features = [
        {
            "type": "Feature",
            "properties": {"building": building.kind, "roof": building.roof},
            "geometry": mapping(shapely.transform(building.footprint, lonlat)),
        }
        for building in town.buildings
    ]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        file.write(",\n".join(json.dumps(feature, separators=(",", ":")) for feature in features))
        file.write("\n]}\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tiles", type=int, default=150)
    args = parser.parse_args()
    start = time.monotonic()
    scene = generate(args.out, args.seed, args.tiles)
    seconds = time.monotonic() - start
    what = f"{len(scene.tiles)} tiles at zoom {scene.zoom}, {scene.buildings} buildings"
    print(f"{args.out}: {what}, {seconds:.1f} s")


if __name__ == "__main__":
    main()
