"""Every tool with every place in S3: the same bytes as with paths, and nothing beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from rsp.components.train.tool import train
from rsp.shared.features import feature_collection
from rsp.shared.filecache import folder
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.formats import read_model_card
from rsp.shared.locations import exists, fetched, location
from rsp.shared.storage import open_storage
from rsp.shared.tiles import bounds_lonlat, bounds_mercator, write_cover
from rsp.shared.tileset import open_reader
from tests.faults import Fault, FaultyProxy
from tests.networks import make_checkpoint
from tests.osm import Scene, square
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares
from tests.toy import make_dataset

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


CASES = {
    "cover": ("cover --type geojson {root}/in/houses.json --zoom 15 {root}/out/cover", ["cover"]),
    "cover of files by a pattern": ("cover --geojson {root}/in/h*.json --zoom 15 {root}/out/cover", ["cover"]),
    "cover of an archive": ("cover --dir {root}/in/images.pmtiles {root}/out/cover", ["cover"]),
    "cover of tiles, split": (
        "cover --dir {root}/in/images --splits 70,30 {root}/out/a.csv {root}/out/b.csv",
        ["a.csv", "b.csv"],
    ),
    "extract": ("extract --type building {root}/in/map.osm.pbf {root}/out/found.json", ["found.json"]),
    "vectorize": (
        "vectorize --type building --config {root}/in/config.toml {root}/in/labels.pmtiles {root}/out/found.json",
        ["found.json"],
    ),
    "changes": (
        "changes --config {root}/in/config.toml --mapped {root}/in/houses.json "
        "--predicted {root}/in/labels.pmtiles --suspects {root}/out/s.csv --metrics {root}/out/m.json "
        "{root}/out/found.json",
        ["found.json", "s.csv", "m.json"],
    ),
    "review": (
        "review --changes {root}/in/changes.json --mapped {root}/in/houses.json --accept_worst 100 "
        "--corrected {root}/out/c.json --accepted {root}/out/a.json --doubtful {root}/out/d.csv --zoom 15 "
        "--masks {root}/in/labels.pmtiles --embed 1 {root}/out/page.html",
        ["c.json", "a.json", "d.csv", "page.html"],
    ),
    "compare list": (
        "compare --mode list --labels {root}/in/labels.pmtiles --masks {root}/in/labels.pmtiles "
        "--cover {root}/in/cover.csv --config {root}/in/config.toml --out {root}/out/list",
        ["list"],
    ),
    "rasterize": (
        "rasterize --geojson {root}/in/houses.json --config {root}/in/config.toml {root}/in/cover.csv "
        "{root}/out/labels.pmtiles",
        ["labels.pmtiles", "labels.pmtiles.html"],
    ),
    "tile": (
        "tile --zoom 15 --ts 64 {root}/in/ortho.tif --cover {root}/in/cover.csv --out {root}/out/tiles",
        ["tiles", "tiles/index.html", "tiles/tiles.json"],
    ),
    "subset": (
        "subset --dir {root}/in/images --cover {root}/in/cover.csv --out {root}/out/part.pmtiles "
        "--web_ui_template {root}/in/page.html",
        ["part.pmtiles", "part.pmtiles.html"],
    ),
    "predict": (
        "predict --checkpoint {root}/in/model.safetensors --cover {root}/in/cover.csv {root}/in/images.pmtiles "
        "{root}/out/masks.pmtiles",
        ["masks.pmtiles", "masks.pmtiles.html"],
    ),
    "evaluate": (
        "evaluate --checkpoint {root}/in/model.safetensors --cover {root}/in/cover.csv --block 1 "
        "{root}/in/labels.pmtiles {root}/in/images.pmtiles {root}/out/found {root}/out/tiles.csv",
        ["found/metrics.json", "found/index.html", "found/reliability.csv", "tiles.csv"],
    ),
    "compare": (
        "compare --images {root}/in/images.pmtiles {root}/in/labels.pmtiles --cover {root}/in/cover.csv "
        "--out {root}/out/side.pmtiles",
        ["side.pmtiles"],
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Everything that tools read, small, in a folder `in`."""
    root = tmp_path_factory.mktemp("data")
    where = root / "in"
    make_tileset(where / "images.pmtiles")
    make_tileset(where / "images")
    make_tileset(where / "labels.pmtiles", draw=squares)
    write_cover(where / "cover.csv", BLOCK[:5])
    (where / "config.toml").write_text(CONFIG)
    (where / "page.html").write_text("<html>{{tiles}} {{zoom}}</html>")
    boxes = [shapely.box(*bounds_lonlat(tile)).centroid.buffer(0.0001) for tile in BLOCK]
    (where / "houses.json").write_text(feature_collection((box, {}) for box in boxes))
    told = ({"status": "reshaped", "score": 0.5, "mapped": str(number)} for number in range(len(boxes)))
    (where / "changes.json").write_text(feature_collection(zip(boxes, told, strict=True)))
    scene = Scene(where / "map.osm.pbf")
    scene.way(square(2.0, 48.0), building="yes")
    scene.write()
    make_checkpoint(where / "model.safetensors")
    west, _, _, north = bounds_mercator(BLOCK[0])
    side = bounds_mercator(BLOCK[0])[2] - west
    pixels = np.random.default_rng(0).integers(0, 256, (3, 192, 256), dtype=np.uint8)
    with rasterio.open(
        where / "ortho.tif", "w", driver="GTiff", width=256, height=192, count=3, dtype="uint8", crs="EPSG:3857",
        transform=from_origin(west, north, side / 64, side / 64),
    ) as raster:  # fmt: skip
        raster.write(pixels)
    return root


@pytest.fixture
def place(s3, data, tmp_path, monkeypatch):
    """The same below a prefix of a bucket; the current folder and that for temporary files are empty."""
    store = open_storage(f"s3://{s3.bucket()}/town")
    for path in sorted((data / "in").rglob("*")):
        if path.is_file():
            store.upload(path.relative_to(data).as_posix(), path)
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield location(store.address)
    # Nothing became a folder called `s3:`, and no temporary file is left.
    assert [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()] == []


def read(root, name):
    """What a tool wrote: bytes of a file or an object, or those of all tiles of a tile set."""
    where = root / "out" / name
    if (isinstance(where, Path) and where.is_dir()) or (where.suffix == ".pmtiles") or name == "tiles":
        with open_reader(where) as reader:
            return {tile: reader.read(tile) for tile in reader.tiles()}
    return fetched(where).read_bytes()


def run(rsp, line, root):
    """Run a command line in which `{root}` stands for a place."""
    words = [word.format(root=root) for word in line.split()]
    ran = rsp(*words, "--report", f"{root}/out/report.json")
    if "cannot be written to s3" in ran.stderr and "yet" in ran.stderr:
        pytest.skip(ran.stderr)
    assert ran.code == 0, ran.stderr
    return json.loads(fetched(root / "out" / "report.json").read_text())


@pytest.fixture
def local(data, tmp_path):
    """The folder with the data, and room for outputs of this test."""
    root = tmp_path / "local"
    root.mkdir()
    (root / "in").symlink_to(data / "in")
    return root


@pytest.mark.parametrize("case", CASES)
def test_each_tool_reads_and_writes_places_in_s3(case, rsp, place, local):
    line, outputs = CASES[case]
    ours, theirs = run(rsp, line, local), run(rsp, line, place)
    assert theirs.keys() == ours.keys()
    assert theirs["failed"] == []
    for name in outputs:
        assert read(place, name) == read(local, name)
    # Failures of an earlier run are forgotten there as here.
    assert not [found.key for found in (place / "out").storage().list() if found.key.endswith(".failed.csv")]


def test_a_second_use_downloads_nothing_and_a_new_object_is_seen(rsp, place, monkeypatch):
    line = ("cover", "--geojson", place / "in/houses.json", "--zoom", 15, "--out")
    assert rsp(*line, place / "out/a").code == 0
    before = sorted(folder().iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(
            "rsp.shared.storage.s3.S3Storage.download", lambda *_, **__: pytest.fail("downloaded again")
        )
        assert rsp(*line, place / "out/b").code == 0
    assert sorted(folder().iterdir()) == before
    storage, key = (place / "in/houses.json").open()
    storage.write(key, feature_collection([(shapely.box(2, 48, 2.001, 48.001), {})]).encode())
    assert rsp(*line, place / "out/c").code == 0
    assert fetched(place / "out/a").read_bytes() == fetched(place / "out/b").read_bytes()
    assert fetched(place / "out/c").read_bytes() != fetched(place / "out/a").read_bytes()


def test_failed_tiles_are_listed_in_s3_and_forgotten_when_they_are_there(rsp, place, local):
    broken = make_tileset(local / "masks", BLOCK[:3], draw=squares)
    tile = BLOCK[1]
    (broken / f"{tile.z}/{tile.x}/{tile.y}.png").write_bytes(b"broken")
    line = ("vectorize", "--type", "building", "--config", place / "in/config.toml", local / "masks")
    assert rsp(*line, place / "out.json").code == 3
    assert fetched(place / "out.json.failed.csv").read_text() == f"{tile.x},{tile.y},{tile.z}\n"
    shutil.rmtree(broken)
    make_tileset(local / "masks", BLOCK[:3], draw=squares)
    assert rsp(*line, place / "out.json").code == 0
    assert not exists(place / "out.json.failed.csv")


def test_what_cannot_be_meant_is_refused_and_nothing_written(rsp, place):
    houses, images, cover = (place / "in" / name for name in ("houses.json", "images", "cover.csv"))
    geojson = ("cover", "--zoom", 15, "--geojson")
    for line, words in {
        ("extract", "--type", "building", houses, houses): "is the input",
        ("extract", "--type", "building", place / "in/*.json", houses): "is the input",
        ("subset", "--dir", images, "--cover", cover, images / "a"): "lies inside the input",
        (*geojson, houses, location("s3://bucket")): "is a whole bucket",
        (*geojson, houses, f"{place}/cover#1f"): "no ETag",
        (*geojson, houses, "--out", place / "cover.pmtiles"): "the output is a cover",
        (*geojson, "s3://key:hush@bucket/houses.json", place / "x"): "no credentials",
    }.items():
        ran = rsp(*line)
        assert ran.code == 2 and words in ran.stderr, (line, ran.stderr)
        assert "hush" not in ran.stderr
    labels = place / "in/labels.pmtiles"
    for line, words in {
        (*geojson, place / "none.json", place / "x"): "there is no s3://",
        (*geojson, place / "*.none", place / "x"): "no file matches s3://",
        ("predict", "--checkpoint", cover, images, "x"): f"{cover} is not",
        ("vectorize", "--type", "a", "--config", place / "none", labels, "x"): "there is no s3://",
        ("serve", "--model", place / "none.pt2"): "there is no s3://",
    }.items():
        ran = rsp(*line)
        assert ran.code == 1 and words in ran.stderr, (line, ran.stderr)
        assert "objects/" not in ran.stderr  # the file in the cache is nobody's concern
    assert not exists(place / "x")


def test_a_wrong_key_is_explained_without_it(rsp, s3, place, monkeypatch):
    body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>Check your key</Message></Error>"
    refusal = Fault(forward=False, status=403, body=body, headers=(("Content-Type", "application/xml"),))
    with FaultyProxy(s3.host, lambda *_: refusal) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        for line in (
            ("cover", "--geojson", place / "in/houses.json", "--zoom", 15, "x"),
            ("tile", "--zoom", 15, place / "in/ortho.tif", "x"),
            ("cover", "--bbox", "2,48,2.1,48.1", "--zoom", 12, place / "x"),
        ):
            ran = rsp(*line)
            assert ran.code == 1 and "does not accept the credentials from AWS_ACCESS_KEY_ID" in ran.stderr
            assert "very-secret-key" not in ran.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{s3.host}")


def test_training_writes_to_s3_and_goes_on_from_there(place, local, monkeypatch, tmp_path):
    dataset = make_dataset(local / "dataset")
    storage = place.storage()
    for path in dataset.rglob("*.pmtiles"):
        storage.upload(f"dataset/{path.relative_to(dataset).as_posix()}", path)
    config = local / "in/config.toml"
    options = {"gpus": 0, "workers": 0}
    for epochs in (1, 2):
        train(local / "out", config=config, dataset=dataset, epochs=epochs, resume=True, **options)
    result = train(place / "out", config=place / "in/config.toml", dataset=place / "dataset", epochs=1, **options)
    assert result.checkpoint == place / "out" / "best.safetensors"
    names = {found.key for found in (place / "out").storage().list()}
    assert names >= {
        "best.safetensors",
        "last.safetensors",
        "last.safetensors.json",
        "state.pt",
        "log",
        "history.csv",
    }
    # As another pod would, with nothing on its disk.
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "another"))
    train(place / "out", config=config, dataset=place / "dataset", epochs=2, resume=True, **options)
    ours, theirs = ((root / "out" / "last.safetensors") for root in (local, place))
    assert fetched(theirs).read_bytes() == ours.read_bytes()
    assert fetched(place / "out" / "log").read_text().count("Epoch 1/1") == 1
    assert "after epoch 1" in fetched(place / "out" / "log").read_text()


def test_a_model_is_deployed_from_s3_to_s3(rsp, place):
    model, golden = place / "in/model.safetensors", place / "in/images.pmtiles"
    ran = rsp(
        "deploy", "--model", model, "--checkpoint", model, "--golden", golden, "--store", place / "store",
        "--name", "roofs", "--report", place / "report.json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    kept = {found.key.rpartition("/")[2] for found in (place / "store").storage().list()}
    assert {"model.safetensors", "checkpoint.safetensors"} <= kept
    assert json.loads(fetched(place / "report.json").read_text())["tool"] == "deploy"


def test_a_model_is_exported_from_s3_to_s3(rsp, place):
    model, out = place / "in/model.safetensors", place / "out/model.pt"
    ran = rsp("export", "--checkpoint", model, "--tiles", place / "in/images", "--type", "jit", out)
    assert ran.code == 0, ran.stderr
    assert read_model_card(out) == ModelCard.from_json(fetched(out.with_name("model.pt.json")).read_text())
    assert read_model_card(out).uuid == read_model_card(model).uuid


def test_tiles_are_taken_out_of_a_prefix(rsp, place):
    images = place / "in/images"
    assert rsp("subset", "--mode", "delete", "--dir", images, "--cover", place / "in/cover.csv").code == 0
    with open_reader(images) as reader:
        assert reader.tiles() == sorted(BLOCK[5:])
    write_cover(place / "in/rest.csv", BLOCK[5:])
    assert rsp("subset", "--mode", "delete", "--dir", images, "--cover", place / "in/rest.csv").code == 0
    assert not exists(images)
