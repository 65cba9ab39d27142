"""Pipelines whose data are in S3, on a real server: the same pixels, nothing twice, replaced inputs noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rsp.pipelines.local import LocalRun, run_local
from rsp.shared.config import parse_tables
from rsp.shared.images import decode_mask
from rsp.shared.locations import location
from rsp.shared.tiles import read_cover
from rsp.shared.tileset import open_reader
from tests.pipelines.test_hello_world import parameters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(scene, scene_server, bucket):
    storage = location(f"{bucket}/in").storage()
    storage.upload("features.geojson", scene.features)
    url = f"{scene_server.url}/xyz/{{z}}/{{x}}/{{y}}.jpg"
    found = parameters(scene, url, threshold=2.0)
    # As a form gives it: a table, whose whole numbers are floats.
    config = parse_tables(found["config"].replace("ts = 256", "ts = 256.0"))
    changes = {"features": f"{bucket}/in/features.geojson", "config": config, "store": f"{bucket}/store"}
    return found | changes


@pytest.fixture(scope="module")
def by_reference(given, bucket, tmp_path_factory) -> LocalRun:
    root = tmp_path_factory.mktemp("references")
    return run_local("hello_world", given | {"data_root": f"{bucket}/data"}, root)


def named(run: LocalRun, step: str):
    return next(each for name, each in run.steps.items() if name.removesuffix("-s3") == step)


def at(run: LocalRun, step: str, output: str) -> str:
    return named(run, step).outputs[output].metadata["address"]


def pixels(place) -> dict:
    with open_reader(place) as reader:
        return {tile: decode_mask(reader.read(tile)) for tile in reader.tiles()}


def test_tile_sets_travel_as_addresses(by_reference, bucket):
    for step, output in (("download", "tiles"), ("rasterize", "labels"), ("predict", "masks")):
        artifact, address = named(by_reference, step).outputs[output], at(by_reference, step, output)
        assert address.startswith(f"{bucket}/data/{step}/") and "#" in address
        reference = json.loads(artifact.path.read_text())
        assert artifact.path.stat().st_size < 1000 and not list(artifact.path.parent.glob("*.pmtiles"))
        with open_reader(address) as reader:
            assert (len(reader), reader.zoom()) == (reference["tiles"], reference["zoom"])


def test_pixels_and_numbers_are_those_of_artifacts(by_reference, hello_world_run):
    for step, output in (("rasterize", "labels"), ("predict", "masks")):
        ours, theirs = pixels(at(by_reference, step, output)), pixels(hello_world_run.path(step, output))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[tile], theirs[tile]) for tile in ours)
    assert named(by_reference, "compare").outputs["metrics"].metadata == hello_world_run.metrics("compare")
    features = named(by_reference, "vectorize").outputs["features"].path
    assert features.read_bytes() == hello_world_run.path("vectorize", "features").read_bytes()


def make_dataset(given, bucket, root) -> LocalRun:
    """A shorter pipeline, whose first steps are those of HelloWorld."""
    names = ("source", "zoom", "url", "rate", "features", "config", "block")
    return run_local("dataset", {name: given[name] for name in names} | {"data_root": f"{bucket}/data"}, root)


def test_what_is_finished_is_not_done_again(given, bucket, by_reference, tmp_path):
    again = make_dataset(given, bucket, tmp_path)
    for step, output in (("download", "tiles"), ("rasterize", "labels")):
        assert at(again, step, output) == at(by_reference, step, output)
        assert named(again, step).outputs[output].metadata["reused"], step


def test_an_input_that_was_replaced_under_its_name_is_noticed(given, bucket, by_reference, scene, tmp_path):
    data = json.loads(scene.features.read_text())
    data["features"] = data["features"][::2]
    location(f"{bucket}/in").storage().write("features.geojson", json.dumps(data).encode())
    again = make_dataset(given, bucket, tmp_path)
    assert named(again, "download").outputs["tiles"].metadata["reused"], "imagery is as it was"
    assert "reused" not in named(again, "rasterize").outputs["labels"].metadata
    before, now = (pixels(at(each, "rasterize", "labels")) for each in (by_reference, again))
    assert any(not np.array_equal(before[tile], now[tile]) for tile in before)


def upload(given, bucket, run: LocalRun, **sets: tuple[str, str]) -> dict:
    """Put tile sets of a run by artifacts into S3, and the configuration; return the parameters that name them."""
    storage = location(f"{bucket}/in").storage()
    for name, output in sets.items():
        storage.upload(f"{name}.pmtiles", run.path(*output))
    storage.write("config.json", json.dumps(given["config"]).encode())
    found = {name: f"{bucket}/in/{name}.pmtiles" for name in sets}
    return found | {"config_uri": f"{bucket}/in/config.json", "data_root": f"{bucket}/data"}


def test_training_by_addresses_gives_the_same_model(given, bucket, hello_world_run, tmp_path):
    sets = {"images": ("download", "tiles"), "labels": ("rasterize", "labels")}
    values = upload(given, bucket, hello_world_run, **sets) | {name: given[name] for name in ("epochs", "block")}
    run = run_local("training", values, tmp_path)
    for step, output in (("train", "checkpoint"), ("export", "model")):
        ours, theirs = named(run, step).outputs[output], hello_world_run.steps[step].outputs[output]
        assert ours.path.read_bytes() == theirs.path.read_bytes(), step
    validation = read_cover(named(run, "split").outputs["validation"].path)
    assert validation == read_cover(hello_world_run.path("split", "validation"))
    assert sorted(pixels(at(run, "predict", "masks"))) == sorted(validation)
    assert named(run, "compare").outputs["metrics"].metadata["iou"] >= 0


def test_quality_by_addresses_measures_and_shows_the_same(given, bucket, hello_world_run, tmp_path):
    sets = {name: (f"subset-validation-{name}", "subset") for name in ("images", "labels", "masks")}
    run = run_local("quality", upload(given, bucket, hello_world_run, **sets), tmp_path)
    outputs = named(run, "compare").outputs
    assert outputs["metrics"].metadata == hello_world_run.metrics("compare")
    for name in ("map", "side_by_side"):
        assert outputs[name].path.read_bytes() == hello_world_run.path("compare", name).read_bytes(), name
    reviewed = set(read_cover(named(run, "review").outputs["cover"].path))
    assert reviewed <= set(read_cover(hello_world_run.path("split", "validation")))
