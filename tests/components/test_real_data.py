"""The data tools on real imagery and maps, each beside an independent way to the same result.

The block of Banepa is 48 tiles in a whole rectangle, so that one array holds the labels of all of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import mercantile
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from rsp.components.compare.tool import compare
from rsp.components.cover.tool import cover
from rsp.components.evaluate.tool import evaluate
from rsp.components.extract.osm import Building
from rsp.components.extract.tool import extract
from rsp.components.info.tool import info
from rsp.components.rasterize.tool import rasterize
from rsp.components.tile.tool import tile
from rsp.components.vectorize.tool import vectorize
from rsp.shared.covers import read_tiles
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader
from tests.bench.harness import rival
from tests.tilesets import CONFIG

ZOOM, SIDE = 19, 512
COLUMNS, ROWS = range(386690, 386696), range(220241, 220249)
BLOCK = [Tile(x, y, ZOOM) for x in COLUMNS for y in ROWS]
SHAPE = (len(ROWS) * SIDE, len(COLUMNS) * SIDE)


@pytest.fixture(scope="module")
def banepa(shared_data) -> Path:
    return shared_data / "banepa"


@pytest.fixture(scope="module")
def made(banepa, tmp_path_factory) -> Path:
    """A folder with the configuration, the labels of the block, and masks that are somewhat wider."""
    folder = tmp_path_factory.mktemp("banepa")
    (folder / "config.toml").write_text(CONFIG)
    write_cover(folder / "cover", BLOCK)
    for name, buffer in (("labels", 0.0), ("masks", 0.7)):
        rasterize(
            folder / "cover", folder / name, geojson=str(banepa / "buildings.geojson"), buffer=buffer,
            config=folder / "config.toml", tile_size=SIDE, workers=1, web_ui=False,
        )  # fmt: skip
    return folder


def pasted(folder: Path) -> np.ndarray:
    """Return the tiles of a folder as one array, as Pillow reads them."""
    whole = np.zeros(SHAPE, np.uint8)
    for x, y, z in BLOCK:
        top, left = (y - ROWS[0]) * SIDE, (x - COLUMNS[0]) * SIDE
        whole[top : top + SIDE, left : left + SIDE] = Image.open(folder / f"{z}/{x}/{y}.png")
    return whole


def to_pixels(points: np.ndarray) -> np.ndarray:
    """Return columns and rows of the block of degrees."""
    west, _, _, north = mercantile.xy_bounds(COLUMNS[0], ROWS[0], ZOOM)
    _, south, east, _ = mercantile.xy_bounds(COLUMNS[-1], ROWS[-1], ZOOM)
    x, y = map(np.array, transform("EPSG:4326", "EPSG:3857", *points.T))
    return np.column_stack([(x - west) / (east - west) * SHAPE[1], (north - y) / (north - south) * SHAPE[0]])


def geometries(path: Path) -> np.ndarray:
    """Return the geometries of a file, as GEOS reads it, in degrees."""
    return shapely.get_parts(shapely.from_geojson(path.read_text()))


def outlines(polygons) -> list[bytes]:
    """Return polygons on the corners of pixels in a form of which there is one each."""
    corners = shapely.transform(np.array(polygons, object), lambda points: np.round(points) + 0.0)  # no -0
    return sorted(shapely.to_wkb(shapely.normalize(shapely.simplify(corners, 0))))


def test_cover_as_supermercado_burns_it(banepa, tmp_path):
    burntiles = pytest.importorskip("supermercado.burntiles")
    source = banepa / "buildings.geojson"
    features = json.loads(source.read_text())["features"]
    for zoom, count in ((16, 4), (19, 75), (22, 2791)):
        cover(str(source), [tmp_path / "cover"], zoom=zoom)
        ours = [(found.x, found.y, found.z) for found in read_tiles(tmp_path / "cover")]
        assert len(ours) == count and sorted(ours) == sorted(map(tuple, burntiles.burn(features, zoom).tolist()))


def test_labels_are_the_burn_of_the_whole_block(banepa, made):
    """All at once, projected by GDAL: each of the 12.6 million pixels is the same."""
    shapes = shapely.transform(geometries(banepa / "buildings.geojson"), to_pixels).tolist()
    expected = rasterio.features.rasterize(shapes, SHAPE, dtype="uint8")
    assert (pasted(made / "labels") == expected).all() and expected.sum() == 5_698_985


@pytest.mark.slow
def test_features_are_the_shapes_of_the_whole_block(made, tmp_path):
    vectorize(
        made / "labels", tmp_path / "out.json", kind="building", config=made / "config.toml", min_area=0,
        simplify=0, workers=1,
    )  # fmt: skip
    labels = pasted(made / "labels")
    shapes = rasterio.features.shapes(labels, mask=labels == 1, connectivity=4)
    expected = [shapely.geometry.shape(geometry) for geometry, _ in shapes]
    found = shapely.transform(geometries(tmp_path / "out.json"), to_pixels)
    assert outlines(found) == outlines(expected) and len(found) == 1025


def test_an_evaluation_is_that_of_the_arrays(made, tmp_path):
    """Of the rows that train (the last two are held out): as whole images, of which nothing is known beyond."""
    rows = [each for each in BLOCK if each.y <= 220246]
    write_cover(tmp_path / "cover", rows)
    result = evaluate(
        made / "labels", [tmp_path / "m.json"], masks=made / "masks", config=made / "config.toml",
        cover=tmp_path / "cover", workers=1,
    )  # fmt: skip
    labels, masks = (pasted(made / name)[: 6 * SIDE] == 1 for name in ("labels", "masks"))
    pairs = np.bincount(labels.ravel() * 2 + masks.ravel(), minlength=4).reshape(2, 2)
    assert result.confusion == pairs.tolist() and result.boundary_pixels == [14, 14]
    edges = []
    for plane in (labels, masks):
        deep = np.pad(plane, 1, constant_values=True)
        for _ in range(14):  # 3 x 3 pixels at a time
            lines = deep[:-2] & deep[1:-1] & deep[2:]
            deep[1:-1, 1:-1] = lines[:, :-2] & lines[:, 1:-1] & lines[:, 2:]
        edges.append(plane & ~deep[1:-1, 1:-1])
    assert result.boundary_iou == (edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum()
    assert 0.3 < result.boundary_iou < 0.5 < result.iou < 0.9


def test_scores_are_those_of_the_arrays(made, tmp_path):
    result = compare(
        tmp_path / "list", mode="list", labels=made / "labels", masks=made / "masks", config=made / "config.toml",
        workers=1,
    )  # fmt: skip
    labels, masks = pasted(made / "labels") == 1, pasted(made / "masks") == 1
    both, either = int((labels & masks).sum()), int((labels | masks).sum())
    assert result.iou == both / either and 0.7 < result.iou < 0.9
    assert result.confusion == [
        [labels.size - either, either - int(labels.sum())], [either - int(masks.sum()), both]
    ]  # fmt: skip


def test_channels_are_those_of_all_pixels(banepa, tmp_path):
    some = BLOCK[::8]
    for x, y, z in some:
        (tmp_path / f"{z}/{x}").mkdir(parents=True)
        shutil.copy(banepa / f"images/{z}/{x}/{y}.jpg", tmp_path / f"{z}/{x}/{y}.jpg")
    pixels = np.stack([np.asarray(Image.open(banepa / f"images/{z}/{x}/{y}.jpg")) for x, y, z in some]) / 255
    (found,) = info(channels=[tmp_path]).found
    assert found["mean"] == pixels.mean((0, 1, 2)).round(6).tolist()
    assert found["std"] == pixels.std((0, 1, 2)).round(6).tolist()


# --- imagery ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ortho(banepa, tmp_path_factory) -> Path:
    """Nine tiles of the block as one picture in UTM."""
    folder = tmp_path_factory.mktemp("ortho")
    tiles = [Tile(x, y, ZOOM) for x in COLUMNS[:3] for y in ROWS[:3]]
    write_cover(folder / "cover", tiles)
    tile([str(banepa / "images")], folder / "mercator.tif", cover=folder / "cover", tile_format="png", workers=1)
    with rasterio.open(folder / "mercator.tif") as file:
        pixels, grid = file.read(), file.transform
        corner = mercantile.xy_bounds(*tiles[0])
        assert (grid.c, grid.f) == pytest.approx((corner.left, corner.top)) and pixels.shape == (3, 1536, 1536)
        # Put together, they are what they were.
        for found in tiles:
            top, left = (found.y - ROWS[0]) * SIDE, (found.x - COLUMNS[0]) * SIDE
            image = np.asarray(Image.open(banepa / f"images/{ZOOM}/{found.x}/{found.y}.jpg"))
            assert (np.moveaxis(pixels[:, top : top + SIDE, left : left + SIDE], 0, 2) == image).all()
    with (
        rasterio.open(folder / "mercator.tif") as file,
        WarpedVRT(file, crs="EPSG:32645", resampling=Resampling.bilinear, add_alpha=False) as warped,
    ):
        profile = warped.profile | {"driver": "GTiff", "nodata": None}
        with rasterio.open(folder / "ortho.tif", "w", **profile) as out:
            out.write(warped.read())
    return folder / "ortho.tif"


@pytest.fixture(scope="module")
def cut(ortho) -> dict[Tile, np.ndarray]:
    """The tiles that are cut of it, as Pillow reads them."""
    out = ortho.with_name("cut")
    tile([str(ortho)], out, zoom=ZOOM, tile_format="png", workers=1, web_ui=False)
    with open_reader(out) as reader:
        return {found: np.asarray(Image.open(out / "{2}/{0}/{1}.png".format(*found))) for found in reader.tiles()}


def test_tiles_are_those_of_a_warped_raster(ortho, cut):
    assert len(cut) == 21
    with rasterio.open(ortho) as file:
        for found, image in cut.items():
            grid = from_bounds(*mercantile.xy_bounds(*found), SIDE, SIDE)
            options = {"crs": "EPSG:3857", "transform": grid, "width": SIDE, "height": SIDE}
            with WarpedVRT(file, resampling=Resampling.bilinear, **options) as warped:
                assert (np.moveaxis(warped.read(), 0, 2) == image).all()


def test_tiles_are_those_of_gdal_raster_tile(ortho, cut):
    theirs = ortho.with_name("theirs")
    command = [str(word) for word in rival("gdal_raster_tile", ortho, ZOOM, SIDE, "PNG", "ZLEVEL=1", theirs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "no `raster tile`" in done.stderr:
        pytest.skip("the GDAL of pyogrio's wheel has no `raster tile`")
    assert done.returncode == 0, done.stderr
    for found, image in cut.items():
        path = theirs / "{2}/{0}/{1}.png".format(*found)
        assert (np.asarray(Image.open(path).convert("RGB")) == image).all()


# --- a map --------------------------------------------------------------------------------------------------


def name_of(properties: dict[str, str]) -> tuple[str, int]:
    """Return the object that a feature of ours, or of ogr2ogr, stands for."""
    if "osm_type" in properties:
        return properties["osm_type"], int(properties["osm_id"])
    return (
        ("way", int(properties["osm_way_id"])) if properties.get("osm_way_id")
        else ("relation", int(properties["osm_id"]))
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ogr2ogr"), reason="no ogr2ogr")
def test_buildings_are_those_of_ogr2ogr(shared_data, tmp_path):
    """The same objects, and point for point the same outlines, whichever corner they begin at."""
    pbf = shared_data / "liechtenstein.osm.pbf"
    extract(pbf, tmp_path / "ours.json", kind="building")
    command = ["ogr2ogr", "-f", "GeoJSON", tmp_path / "theirs.json", pbf, "multipolygons"]
    subprocess.run([*command, "-where", "building is not null"], check=True, capture_output=True)
    ours, theirs = {}, {}
    for found, name in ((ours, "ours.json"), (theirs, "theirs.json")):
        features = json.loads((tmp_path / name).read_text())["features"]
        for feature, shape in zip(features, geometries(tmp_path / name), strict=True):
            if feature["properties"]["building"] not in Building.REFUSED:
                parts = shapely.get_parts(shape)  # theirs are all MultiPolygon
                found[name_of(feature["properties"])] = shapely.normalize(shape if len(parts) > 1 else parts[0])
    assert ours.keys() == theirs.keys() and len(ours) == 17_620
    different = {key for key, shape in ours.items() if not shapely.equals_exact(shape, theirs[key], 5e-8)}
    # The courtyard of this one has an edge in common with its outside: theirs is invalid, ours is mended.
    (touching,) = different
    assert touching == ("relation", 12473573) and ours[touching].is_valid and not theirs[touching].is_valid
    assert ours[touching].area == pytest.approx(theirs[touching].area, rel=1e-9)
