"""`dataset` of rasters and OpenStreetMap data: by artifacts, and by addresses while S3 fails every tenth time."""

from __future__ import annotations

import numpy as np
import pytest

from rsp.pipelines.local import LocalRun, run_local
from rsp.shared.images import decode
from rsp.shared.locations import location
from rsp.shared.tiles import read_cover
from rsp.shared.tileset import open_reader, read_info
from tests.faults import FAULTS, FaultyProxy, OneInTen
from tests.tilesets import CONFIG

pytestmark = pytest.mark.slow

# Smaller than the tiles that rasters are cut into where nothing else is said.
SETTINGS = CONFIG.replace("ts = 64", "ts = 128")


@pytest.fixture(scope="module")
def by_artifact(scene, tmp_path_factory) -> LocalRun:
    given = {"raster": str(scene.raster), "pbf": str(scene.pbf), "config": SETTINGS}
    return dataset(scene, tmp_path_factory.mktemp("artifacts"), source=scene.bbox_text, **given)


@pytest.fixture(scope="module")
def faults() -> OneInTen:
    return OneInTen()


@pytest.fixture(scope="module")
def by_address(scene, s3, bucket, faults, tmp_path_factory) -> LocalRun:
    storage = location(f"{bucket}/in").storage()
    storage.upload("town.tif", scene.raster)
    storage.upload("town.osm.pbf", scene.pbf)
    storage.write("config.toml", SETTINGS.encode())
    given = {name: f"{bucket}/in/{key}" for name, key in (("raster", "*.tif"), ("pbf", "town.osm.pbf"))}
    given |= {"config_uri": f"{bucket}/in/config.toml", "data_root": f"{bucket}/data"}
    with FaultyProxy(s3.host, faults) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        return dataset(scene, tmp_path_factory.mktemp("addresses"), source=scene.bbox_text, **given)


def dataset(scene, root, **given) -> LocalRun:
    return run_local("dataset", {"zoom": scene.zoom, "block": 2, **given}, root)


def named(run: LocalRun, step: str):
    return next(each for name, each in run.steps.items() if name.removesuffix("-s3") == step)


def pixels(place) -> dict:
    with open_reader(place) as reader:
        return {tile: decode(reader.read(tile)) for tile in reader.tiles()}


OUTPUTS = [
    ("tile", "tiles"),
    ("rasterize-osm", "labels"),
    *((f"subset-{part}-{kind}", "subset") for part in ("training", "validation") for kind in ("images", "labels")),
]


def test_by_artifacts_all_that_was_asked_for_is_there(by_artifact, scene):
    assert {"download", "rasterize"} <= set(by_artifact.skipped)
    for step, output in OUTPUTS[:2]:
        with open_reader(by_artifact.path(step, output)) as reader:
            assert sorted(reader.tiles()) == sorted(scene.tiles)


def test_tiles_are_as_large_as_the_configuration_says(by_artifact):
    sizes = {read_info(by_artifact.path(*each)).tile_size for each in OUTPUTS}
    assert sizes == {128}
    assert {image.shape[:2] for image in pixels(by_artifact.path("tile", "tiles")).values()} == {(128, 128)}


def test_pixels_are_those_of_artifacts_though_a_tenth_of_all_calls_failed(by_address, by_artifact, faults):
    assert {fault for _, fault in faults.done} == set(FAULTS), "every kind of fault"
    assert "FAILURE" not in by_address.log.read_text(), "no step had to be tried again"
    for step, output in OUTPUTS:
        address = named(by_address, step).outputs[output].metadata["address"]
        ours, theirs = pixels(address), pixels(by_artifact.path(step, output))
        assert list(ours) == list(theirs), step
        assert all(np.array_equal(ours[tile], theirs[tile]) for tile in ours), step
    for part in ("training", "validation"):
        ours, theirs = (read_cover(named(run, "split").outputs[part].path) for run in (by_address, by_artifact))
        assert ours == theirs


def test_nothing_is_left_half_written(by_address, s3, bucket):
    name = location(bucket).bucket
    keys = {found.object_name for found in s3.client().list_objects(name, "data/", recursive=True)}
    archives = {key for key in keys if key.endswith(".pmtiles")}
    assert len(archives) == len(OUTPUTS)
    assert keys == archives | {key.replace(".pmtiles", ".json") for key in archives}
    assert not s3.client()._list_multipart_uploads(name).uploads
