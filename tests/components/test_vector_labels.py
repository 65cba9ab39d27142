"""Labels from GeoPackage and Shapefile, end to end: a cover of them, label tiles, a network that learns them."""

from __future__ import annotations

import json
import shutil
import tomllib
import zipfile

import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely
from kfp import dsl
from rasterio.warp import transform

from rsp.components.cover.component import cover as cover_component
from rsp.components.rasterize.component import rasterize as rasterize_component
from rsp.shared.images import decode_mask
from rsp.shared.tiles import bounds_mercator, read_cover
from rsp.shared.tileset import open_reader
from tests.tilesets import CONFIG, squares
from tests.toy import TRAINING, VALIDATION, make_config, make_dataset

# Polar, as the tiles are: with a code, and with none.
POLAR = "EPSG:3995"
ODD = (
    'PROJCS["of our own",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Azimuthal_Equal_Area"],'
    'PARAMETER["latitude_of_center",90],PARAMETER["longitude_of_center",-170],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
)


def ground(tile, size=64):
    """The square of a tile, in metres of EPSG:3857."""
    rows, columns = np.nonzero(squares(tile, size))
    west, _, east, north = bounds_mercator(tile)
    step = (east - west) / size
    return shapely.box(
        west + columns.min() * step, north - (rows.max() + 1) * step, west + (columns.max() + 1) * step,
        north - rows.min() * step,
    )  # fmt: skip


def write(path, crs, layer=None, append=False):
    """Write the squares of all tiles as another program does, with heights."""

    def project(points):
        return np.column_stack(transform("EPSG:3857", crs, *points.T))

    shapes = shapely.transform(np.array([ground(tile) for tile in [*TRAINING, *VALIDATION]]), project)
    data = shapely.to_wkb(shapely.force_3d(shapes, 3.0))
    table = pa.table({"kind": ["building"] * len(shapes), "geometry": pa.array(list(data), pa.binary())})
    pyogrio.write_arrow(
        table, str(path), layer=layer or path.stem, geometry_name="geometry", geometry_type="Polygon Z", crs=crs,
        append=append,
    )  # fmt: skip
    return path


def zipped(path):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for each in path.parent.glob(f"{path.stem}.*"):
            if each.suffix != ".zip":
                archive.write(each, each.name)
    return path.with_suffix(".zip")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels")
    several = write(root / "several.gpkg", POLAR, layer="roofs")
    write(several, POLAR, layer="others", append=True)
    return {
        "gpkg": (write(root / "a.gpkg", POLAR), []),
        "layer": (several, ["--layer", "roofs"]),
        "shp": (write(root / "b.shp", ODD), []),
        "zip": (zipped(write(root / "c.shp", ODD)), []),
        "fgb": (write(root / "d.fgb", POLAR), []),
    }


@pytest.mark.parametrize("name", ["gpkg", "layer", "shp", "zip", "fgb"])
def test_labels_are_those_that_were_drawn(sources, tmp_path, rsp, name):
    source, flags = sources[name]
    config = make_config(tmp_path / "config.toml")
    ran = rsp("cover", "--zoom", 15, "--features", source, *flags, "--out", tmp_path / "cover")
    assert ran.code == 0, ran.stderr
    assert read_cover(tmp_path / "cover") == sorted([*TRAINING, *VALIDATION])
    ran = rsp(
        "rasterize", "--features", source, *flags, "--type_field", "kind", "--config", config, "--no_web_ui",
        tmp_path / "cover", tmp_path / "labels.pmtiles",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    with open_reader(tmp_path / "labels.pmtiles") as reader:
        for tile in [*TRAINING, *VALIDATION]:
            assert np.array_equal(decode_mask(reader.read(tile)), squares(tile))


def test_a_layer_is_asked_for_where_there_are_several(sources, tmp_path, rsp):
    source, _ = sources["layer"]
    ran = rsp("cover", "--zoom", 15, source, tmp_path / "cover")
    assert ran.code == 1 and "choose one with --layer: roofs, others" in ran.stderr
    ran = rsp("cover", "--layer", "roofs", "--bbox", "1,2,3,4", "--zoom", 3, tmp_path / "cover")
    assert ran.code == 2 and "--layer goes with files of features" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpkg", "zip"])
def test_a_network_learns_them(sources, tmp_path, rsp, name):
    source, _ = sources[name]
    config = make_config(tmp_path / "config.toml")
    toy = make_dataset(tmp_path / "toy")
    for part in ("training", "validation"):
        (toy / part / "labels.pmtiles").unlink()
        images = toy / part / "images.pmtiles"
        assert rsp("cover", "--type", "dir", images, tmp_path / part).code == 0
        ran = rsp(
            "rasterize", "--geojson", source, "--config", config, "--no_web_ui", tmp_path / part,
            toy / part / "labels.pmtiles",
        )  # fmt: skip
        assert ran.code == 0, ran.stderr
    report = tmp_path / "report.json"
    ran = rsp(
        "train", "--config", config, "--dataset", toy, "--epochs", 1, "--out", tmp_path / "out", "--report", report
    )
    assert ran.code == 0, ran.stderr
    confusion = np.array(json.loads(report.read_text())["confusion"])
    assert confusion[1].sum() == sum(int(squares(tile).sum()) for tile in VALIDATION)


def test_components_take_every_format(sources, tmp_path):
    source, _ = sources["layer"]
    cover = dsl.Dataset(uri=str(tmp_path / "cover"))
    cover_component.python_func(cover, str(source), kind="geojson", zoom=15, layer="roofs")
    assert len(read_cover(cover.path)) == len([*TRAINING, *VALIDATION])
    features = dsl.Dataset(uri=str(tmp_path / "features"))
    shutil.copy(sources["zip"][0], features.path)
    labels = dsl.Dataset(uri=str(tmp_path / "labels"))
    config = tomllib.loads(CONFIG)
    rasterize_component.python_func(labels, str(tmp_path / "at"), cover, features=features, config=config)
    with open_reader(labels.path) as reader:
        assert np.array_equal(decode_mask(reader.read(TRAINING[0])), squares(TRAINING[0]))
