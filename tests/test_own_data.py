"""docs/own-data.md: its commands run, one after the other, on rasters in two CRS and a GeoPackage."""

from __future__ import annotations

import math
import re
import shutil

import pytest
import rasterio

from rsp.shared.features import read_crs, read_features
from rsp.shared.tiles import read_cover
from rsp.shared.tileset import open_reader
from tests.guides import commands, page


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("osmium"), reason="needs osmium-tool")
def test_the_commands_run_one_after_the_other(follow, tmp_path):
    said = follow(commands(page("own-data")), [("--epochs 2", "--epochs 1"), ("^python .*", r"\g<0> --tiles 12")])
    own = tmp_path / "demo" / "own"
    assert "EPSG:32632" in said["rsp info ortho/west.tif"]
    assert read_crs(own / "buildings.gpkg") == 32631
    tiles = read_cover(own / "town" / "cover.csv")
    with open_reader(own / "images.pmtiles") as images, open_reader(own / "masks.pmtiles") as masks:
        assert len(images) == len(masks) >= len(tiles)
        assert set(tiles) <= set(images.tiles())
    with open_reader(own / "colours.pmtiles") as colours, open_reader(own / "values.pmtiles") as values:
        tile = colours.tiles()[len(colours) // 2]
        assert (str(colours.image(tile).dtype), colours.image(tile).shape) == ("uint8", (256, 256, 3))
        assert (str(values.image(tile).dtype), values.image(tile).shape) == ("uint16", (256, 256, 4))
    assert "bands = [1, 2, 3, 4]" in said["rsp info --channels values.pmtiles"]
    with rasterio.open(own / "masks.tif") as raster:
        assert raster.crs == "EPSG:3857" and raster.colormap(1)[1][:3] == (255, 20, 147)
    found = [each.geometry.geom_type for each in read_features(own / "found.gpkg")]
    assert found and set(found) <= {"Polygon", "MultiPolygon"}


def test_metres_a_pixel():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page("own-data"), re.M)
    assert len(rows) == 7
    for zoom, *cells in rows:
        equator = 2 * math.pi * 6_378_137 / 256 / 2 ** int(zoom)
        north = equator * math.cos(math.radians(45))
        assert cells == [f"{value:.2f}" for value in (equator, north, equator / 2, north / 2)]
