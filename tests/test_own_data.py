"""docs/own-data.md: its commands run, one after the other, on rasters in two CRS and a GeoPackage."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.windows import Window, bounds

from examples.town.generate import generate
from rsp.shared.tileset import open_reader

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "own-data.md").read_text("utf-8")
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.S | re.M) for line in block.splitlines()
]

# Pixels that both rasters have.
SHARED = 80


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


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("ogr2ogr") or not shutil.which("osmium"), reason="needs gdal-bin, osmium-tool"
)
def test_the_commands_run_one_after_the_other(tmp_path):
    scene = generate(tmp_path / "town", seed=7, tiles=24)
    cut(scene.raster, tmp_path / "ortho")
    (tmp_path / "country.osm.pbf").write_bytes((tmp_path / "town" / "town.osm.pbf").read_bytes())
    (tmp_path / "config.toml").write_bytes((ROOT / "examples" / "town" / "config.toml").read_bytes())
    convert = ["ogr2ogr", "-t_srs", "EPSG:32631", "buildings.gpkg", "town/buildings.geojson"]
    subprocess.run(convert, cwd=tmp_path, check=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = {}
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout
    assert "EPSG:32632" in said["rsp info ortho/west.tif"]
    with open_reader(tmp_path / "images.pmtiles") as images, open_reader(tmp_path / "masks.pmtiles") as masks:
        assert len(images) == len(masks) >= len(scene.tiles)
    with rasterio.open(tmp_path / "masks.tif") as raster:
        assert raster.crs == "EPSG:3857" and raster.colormap(1)[1][:3] == (255, 20, 147)
    found = subprocess.run(["ogrinfo", "-so", "-al", "found.gpkg"], cwd=tmp_path, capture_output=True, text=True)
    assert "Polygon" in found.stdout and int(re.search(r"Feature Count: (\d+)", found.stdout)[1]) > 0, found.stderr
