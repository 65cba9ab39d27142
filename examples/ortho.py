"""Rasters and labels as they come from elsewhere, out of the generated town: what docs/own-data.md works on.

python -m examples.ortho OUT [--tiles 24]

OUT gets `ortho/west.tif` and `ortho/east.tif`, which overlap and have a CRS each and no data at their corners;
`satellite.tif`, four bands of 16 bits in metres; `buildings.gpkg` in a metric CRS; `country.osm.pbf`,
and `config.toml`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.windows import Window, bounds

from examples.town.generate import UTM, Scene, generate
from examples.town.server import CONFIG
from rsp.shared.features import feature_writer, read_batches

# Pixels that both rasters have.
SHARED = 80
# Of a satellite: the pixels of the photograph that one of its is wide, and the values of twelve bits.
COARSER, DEPTH = 3, 12


def make(out: Path, tiles: int = 24, seed: int = 7) -> Scene:
    """Write the files into a folder, and return the scene that they show.

    Args:
        out: The folder.
        tiles: Of the town, at zoom 19.
        seed: Of the town.
    """
    scene = generate(out / "town", seed, tiles)
    cut(scene.raster, out / "ortho")
    satellite(scene.raster, out / "satellite.tif")
    to_utm = Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
    with feature_writer(out / "buildings.gpkg", crs=int(UTM.partition(":")[2])) as writer:
        for batch in read_batches(scene.features, properties=True):
            metres = shapely.transform(
                batch.geometries, lambda points: np.column_stack(to_utm.transform(*points.T))
            )
            writer.write_batch(metres, batch.properties)
    shutil.copyfile(scene.pbf, out / "country.osm.pbf")
    # As one begins with it: without the side of the tiles, which training finds out.
    (out / "config.toml").write_text(CONFIG.read_text("utf-8").replace("ts = 256\n", ""), "utf-8")
    return scene


def cut(town: Path, folder: Path) -> None:
    """Cut a raster into a western and an eastern one, each in a CRS of its own, without data at the corners."""
    folder.mkdir()
    with rasterio.open(town) as file:
        pixels, crs, middle = file.read(), file.crs, file.width // 2
        for name, window, target in (
            ("west", Window(0, 0, middle + SHARED, file.height), "EPSG:32632"),
            ("east", Window(middle, 0, file.width - middle, file.height), "EPSG:3857"),
        ):
            part = pixels[:, :, window.col_off : window.col_off + window.width]
            grid, width, height = calculate_default_transform(
                crs, target, part.shape[2], part.shape[1], *bounds(window, file.transform)
            )
            out = np.zeros((3, height, width), np.uint8)
            reproject(
                part, out, src_transform=file.window_transform(window), src_crs=crs,
                dst_transform=grid, dst_crs=target, resampling=Resampling.bilinear,
            )  # fmt: skip
            profile = {"count": 3, "dtype": "uint8", "photometric": "RGB", "nodata": 0, "crs": target}
            with rasterio.open(
                folder / f"{name}.tif", "w", driver="GTiff", width=width, height=height, transform=grid, **profile
            ) as made:
                made.write(out)


def satellite(town: Path, out: Path) -> None:
    """Write a coarser raster of red, green, blue and near infrared, of which greenery has most, in 16 bits."""
    with rasterio.open(town) as file:
        shape = file.height // COARSER, file.width // COARSER
        colours = file.read(out_shape=(3, *shape), resampling=Resampling.average).astype(np.float32)
        grid = file.transform @ file.transform.scale(file.width / shape[1], file.height / shape[0])
        crs = file.crs
    green = np.clip(2 * colours[1] - colours[0] - colours[2], 0, 255)
    values = (np.stack([*colours, np.maximum(colours[0], green)]) / 255 * (1 << DEPTH - 1) + 200).astype(np.uint16)
    with rasterio.open(
        out, "w", driver="GTiff", width=shape[1], height=shape[0], count=4, dtype="uint16", crs=crs,
        transform=grid, photometric="RGB", alpha="NO",
    ) as made:  # fmt: skip
        made.write(values)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiles", type=int, default=24)
    args = parser.parse_args()
    scene = make(args.out, args.tiles)
    print(f"{args.out}: two rasters, a satellite image, {scene.buildings} buildings")


if __name__ == "__main__":
    main()
