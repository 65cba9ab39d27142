"""The generated town: the same for the same seed, true to its own truth, and served as tile servers do."""

from __future__ import annotations

import io
import json
from urllib.request import urlopen

import mercantile
import numpy as np
import osmium
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.features import rasterize
from shapely.geometry import shape

from examples.town.generate import generate
from rsp.shared.tiles import Tile, bounds_mercator, read_cover


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        generate(tmp_path / name, tiles=2)
    generate(tmp_path / "c", seed=8, tiles=2)
    for name in ("town.tif", "buildings.geojson", "town.osm.pbf", "cover.csv", "scene.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a" / "town.tif").read_bytes() != (tmp_path / "c" / "town.tif").read_bytes()


def test_the_box_covers_the_tiles(scene):
    covered = sorted(mercantile.tiles(*scene.bbox, scene.zoom))
    assert covered == sorted(scene.tiles) == sorted(read_cover(scene.cover))
    assert len(covered) == 20


def test_the_truth_is_valid_and_lies_on_roofs(scene):
    shapes = [shape(feature["geometry"]) for feature in json.loads(scene.features.read_text())["features"]]
    assert len(shapes) == scene.buildings > 40
    assert all(one.is_valid and one.geom_type == "Polygon" for one in shapes)
    assert any(one.interiors for one in shapes)
    with rasterio.open(scene.raster) as raster:
        assert (raster.crs.to_epsg(), raster.count, raster.dtypes[0]) == (32631, 3, "uint8")
        from rasterio.warp import transform_geom

        local = [transform_geom("EPSG:4326", raster.crs, one.__geo_interface__) for one in shapes]
        mask = rasterize(local, raster.shape, transform=raster.transform, dtype="uint8").astype(bool)
        picture = raster.read().astype(float)
    assert 0.08 < mask.mean() < 0.4
    # Roofs differ from what is around them by hue, but no threshold tells them.
    redness = picture[0] - picture[1]
    assert redness[mask].mean() > redness[~mask].mean() + 15
    best = max(np.sum(mask & (redness > t)) / np.sum(mask | (redness > t)) for t in range(-40, 80, 4))
    assert best < 0.6


def test_the_extract_is_the_truth(scene):
    areas = [
        item.id
        for item in osmium.FileProcessor(str(scene.pbf)).with_areas(osmium.filter.KeyFilter("building"))
        if item.is_area() and "building" in item.tags
    ]
    counts = scene.osm
    assert len(areas) == counts.ways + counts.relations + counts.excluded
    assert counts.ways + counts.relations == scene.buildings and counts.relations >= 1


def test_wms_xyz_and_tms_are_one_picture(scene, scene_server):
    tile = scene.tiles[7]
    west, south, east, north = bounds_mercator(tile)
    flipped = (1 << tile.z) - 1 - tile.y
    wms = scene_server.wms.format(xmin=west, ymin=south, xmax=east, ymax=north).replace("jpeg", "png")
    tiles = [f"{scene_server.url}/{kind}/19/{tile.x}/{y}.png" for kind, y in (("xyz", tile.y), ("tms", flipped))]
    first, *others = [Image.open(io.BytesIO(urlopen(url).read())).convert("RGB") for url in (wms, *tiles)]
    first, *others = map(np.asarray, (first, *others))
    assert first.shape == (256, 256, 3) and first.std() > 20
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("LAYERS=town", "LAYERS=sea"), "LayerNotDefined"),
        (("CRS=EPSG:3857", "CRS=EPSG:2154"), "InvalidCRS"),
        (("FORMAT=image/jpeg", "FORMAT=image/gif"), "InvalidFormat"),
        (("WIDTH=256&", ""), "MissingParameterValue"),
        (("WIDTH=256", "WIDTH=99999"), "InvalidParameterValue"),
        (("REQUEST=GetMap", "REQUEST=GetFeatureInfo"), "OperationNotSupported"),
    ],
)
def test_a_wrong_request_gets_a_service_exception(scene, scene_server, change, code):
    west, south, east, north = bounds_mercator(scene.tiles[0])
    url = scene_server.wms.format(xmin=west, ymin=south, xmax=east, ymax=north).replace(*change)
    with urlopen(url) as answer:
        assert answer.headers["Content-Type"].startswith("text/xml")
        assert f'code="{code}"' in answer.read().decode()


def test_beyond_the_photograph(scene, scene_server):
    from urllib.error import HTTPError

    far = Tile(scene.tiles[0].x - 500, scene.tiles[0].y, 19)
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{scene_server.url}/xyz/19/{far.x}/{far.y}.png")
    west, south, east, north = bounds_mercator(far)
    url = scene_server.wms.format(xmin=west, ymin=south, xmax=east, ymax=north).replace("jpeg", "png")
    assert np.asarray(Image.open(io.BytesIO(urlopen(url).read()))).min() == 255


def test_roofs_do_not_leave_the_picture(scene):
    box = shapely.box(*scene.bbox).buffer(0.01)
    shapes = [shape(feature["geometry"]) for feature in json.loads(scene.features.read_text())["features"]]
    assert all(box.contains(one) for one in shapes)
