"""Real imagery and real polygons through the command line, against an independent rasterization."""

from __future__ import annotations

import json
from pathlib import Path

import mercantile
import numpy as np
import pytest
import rasterio.features
from rasterio.transform import from_bounds
from rasterio.warp import transform_geom
from shapely.geometry import box, shape

from examples.banepa import quality
from examples.banepa import run as banepa
from rsp.shared.images import decode, decode_mask
from rsp.shared.tiles import read_cover, write_cover
from rsp.shared.tileset import open_reader

# Spatial: the north trains, the south tests.
LAST_TRAINING_ROW = 220246

CONFIG = """
[[channels]]
name = "images"
bands = [1, 2, 3]

[[classes]]
title = "background"
color = "white"

[[classes]]
title = "building"
color = "deeppink"

[model]
nn = "unet"
encoder = "tiny"
pretrained = false
num_filters = 16
loss = "lovasz"
ts = 128
bs = 4
lr = 0.002
dap = 0.75
ms = 16
"""


@pytest.mark.slow
def test_banepa(shared_data, tmp_path, rsp, monkeypatch):
    banepa = shared_data / "banepa"
    before = sorted(path for path in banepa.rglob("*"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("config.toml").write_text(CONFIG)
    monkeypatch.setenv("RSP_CONFIG", "config.toml")

    def run(*argv: object) -> None:
        ran = rsp(*argv)
        assert ran.code == 0, ran.stderr

    run("cover", "--type", "dir", banepa / "images", "cover")
    tiles = read_cover("cover")
    assert len(tiles) == 48
    run("rasterize", "--geojson", banepa / "buildings.geojson", "--tile_size", 512, "cover", "labels")
    assert agreement(Path("labels"), banepa / "buildings.geojson") > 0.9995

    parts = {
        "training": [tile for tile in tiles if tile.y <= LAST_TRAINING_ROW],
        "validation": [tile for tile in tiles if tile.y > LAST_TRAINING_ROW],
    }
    assert [len(part) for part in parts.values()] == [36, 12]
    for name, part in parts.items():
        write_cover(f"dataset/{name}/cover", part)
        for kind, source in (("images", banepa / "images"), ("labels", "labels")):
            run("subset", "--dir", source, "--filter", f"dataset/{name}/cover", f"dataset/{name}/{kind}")
    run("train", "--dataset", "dataset", "--epochs", 1, "models")
    checkpoint = Path("models/checkpoint-00001-of-00001.pth")
    assert checkpoint.exists()

    test = parts["validation"]
    run("predict", "--checkpoint", checkpoint, "dataset/validation/images", "masks")
    with open_reader("masks") as masks:
        assert masks.tiles() == sorted(test)
        assert {decode_mask(masks.read(tile)).max() for tile in test} <= {0, 1}
        size = decode_mask(masks.read(test[0])).shape
    with open_reader("dataset/validation/images") as images:
        assert decode(images.read(test[0])).shape[:2] in (size, (512, 512))

    run("compare", "--mode", "list", "--labels", "dataset/validation/labels", "--masks", "masks", "list.csv")
    assert len(Path("list.csv").read_text().splitlines()) == 12
    # The labels stand in for masks of a longer training: vectorize gets real outlines to follow.
    for source, out in (("masks", "found.json"), ("dataset/validation/labels", "truth.json")):
        run("vectorize", "--type", "building", source, out)
    features = [shape(feature["geometry"]) for feature in json.loads(Path("truth.json").read_text())["features"]]
    features += [shape(feature["geometry"]) for feature in json.loads(Path("found.json").read_text())["features"]]
    bounds = [mercantile.bounds(tile) for tile in test]
    block = box(
        min(b.west for b in bounds), min(b.south for b in bounds), max(b.east for b in bounds),
        max(b.north for b in bounds),
    ).buffer(1e-6)  # fmt: skip
    assert len(features) > 100
    assert all(one.is_valid and one.geom_type in ("Polygon", "MultiPolygon") for one in features)
    assert all(block.contains(one) for one in features)

    # Nothing was written beside what was read.
    assert sorted(path for path in banepa.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "home"}


@pytest.mark.slow
def test_the_quality_loop_sees_no_row_that_is_held_out(shared_data, tmp_path, monkeypatch):
    small = tmp_path / "config.toml"
    text = banepa.CONFIG.read_text()
    for line, less in (("passes = 10", "passes = 1"), ("num_filters = 32", "num_filters = 8")):
        assert line in text
        text = text.replace(line, less)
    small.write_text(text)
    monkeypatch.setattr(banepa, "CONFIG", small)
    data, out = shared_data / "banepa", tmp_path / "out"
    found = quality.run(data, out, seed=0, epochs=2, errors=4)
    assert found["planted"] == 4 and 0 <= found["found"] <= 4
    assert found["looked_at"] == pytest.approx(0.15 * found["objects"], abs=1) and found["objects"] > 300
    assert 0 < found["iou_before"] < 1 and 0 < found["iou_after"] < 1
    assert json.loads((out / "result.json").read_text()) == found
    rows = {name: {tile.y for tile in read_cover(out / f"{name}.csv")} for name in ("training", "test")}
    assert max(rows["training"]) < min(rows["test"]) <= max(rows["test"]) <= LAST_TRAINING_ROW
    with open_reader(out / "masks.pmtiles") as masks:
        assert {tile.y for tile in masks.tiles()} == rows["training"]
    # It learns from the map with errors first, then from one in which some were corrected.
    labels = [out / name / "dataset" / "training" / "labels.pmtiles" for name in ("damaged", "corrected")]
    maps = [out / f"{name}.geojson" for name in ("map", "corrected")]
    assert agreement(labels[0], maps[0]) > 0.9995 < agreement(labels[1], maps[1])
    assert agreement(labels[0], data / "buildings.geojson") < agreement(labels[0], maps[0])
    # What is there already is not trained again.
    trained = sorted(out.rglob("last.safetensors"))
    times = [path.stat().st_mtime_ns for path in trained]
    assert len(trained) == 2 and quality.run(data, out, seed=0, epochs=2, errors=4) == found
    assert [path.stat().st_mtime_ns for path in trained] == times


def agreement(labels: Path, features: Path) -> float:
    """The share of pixels in which labels equal polygons that rasterio alone burns, tile by tile."""
    polygons = [
        transform_geom("EPSG:4326", "EPSG:3857", feature["geometry"])
        for feature in json.loads(features.read_text())["features"]
    ]
    equal = total = 0
    with open_reader(labels) as reader:
        for tile in reader.tiles():
            mask = decode_mask(reader.read(tile))
            place = from_bounds(*mercantile.xy_bounds(tile), mask.shape[1], mask.shape[0])
            expected = rasterio.features.rasterize(polygons, mask.shape, transform=place, dtype="uint8")
            equal += np.count_nonzero(mask == expected)
            total += mask.size
    return equal / total
