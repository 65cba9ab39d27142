"""compare, rasterize and vectorize without a configuration: labels and masks tell their classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rsp.components.rasterize.tool import rasterize
from rsp.components.vectorize.tool import vectorize
from rsp.shared.classes import find_classes
from rsp.shared.errors import ConfigError, UsageError
from rsp.shared.images import decode_mask, encode_mask
from rsp.shared.tiles import Tile, bounds_lonlat, write_cover
from rsp.shared.tileset import SIDECAR, open_reader, open_writer
from tests.tilesets import BLOCK, COLORS, CONFIG, make_tileset, noise, squares

TILES = BLOCK[:2]
ROADS = CONFIG.replace('title = "building"', 'title = "road"')
MORE = CONFIG.replace("[model]", '[[classes]]\ntitle = "road"\ncolor = "blue"\n\n[model]')
CLASSES = [{"title": "background", "color": "white"}, {"title": "building", "color": "deeppink"}]


def write_masks(path, draw=squares, classes=CLASSES):
    with open_writer(path, "png") as writer:
        writer.describe({"classes": classes} if classes else {})
        for tile in TILES:
            writer.write(tile, encode_mask(draw(tile), [*COLORS, *[(0, 0, 0)] * 8]))
    return path


def write_square(path, tile=TILES[0]):
    west, south, east, north = bounds_lonlat(tile)
    middle = (west + east) / 2
    ring = [[west, south], [middle, south], [middle, north], [west, north], [west, south]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


@pytest.fixture(autouse=True)
def no_config(monkeypatch, tmp_path):
    """No configuration in any of its places."""
    monkeypatch.delenv("RSP_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def configs(tmp_path):
    for name, text in (("config.toml", CONFIG), ("roads.toml", ROADS), ("more.toml", MORE)):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_a14_the_whole_way_from_labels_to_features_needs_one_configuration(configs, rsp, suffix):
    write_cover(configs / "cover", TILES)
    labels, masks = configs / f"labels{suffix}", write_masks(configs / f"masks{suffix}")
    rasterize(
        configs / "cover", labels, geojson=str(write_square(configs / "f.json")), config=configs / "config.toml",
        web_ui=False,
    )  # fmt: skip
    ran = rsp("compare", "--mode", "list", "--labels", labels, "--masks", masks, configs / "list")
    assert ran.code == 0, ran.stderr
    ran = rsp("vectorize", "--type", "building", masks, configs / "out.json")
    assert ran.code == 0, ran.stderr
    assert len(json.loads((configs / "out.json").read_text())["features"]) == 2
    ran = rsp("vectorize", "--type", "road", masks, configs / "out.json")
    assert ran.code == 1 and "no class 'road'; the classes are background, building" in ran.stderr
    # More labels of the same classes and size, in the colours of those that are there.
    source = write_square(configs / "g.json", TILES[1])
    ran = rsp("rasterize", "--geojson", source, "--append", configs / "cover", labels, "--no_web_ui")
    assert ran.code == 0, ran.stderr
    with open_reader(labels) as reader:
        found = [decode_mask(reader.read(tile)) for tile in TILES]
        assert [mask.sum() for mask in found] == [64 * 32] * 2 and found[0].shape == (64, 64)
        assert [entry.title for entry in reader.info.classes] == ["background", "building"]


def test_a_new_set_of_labels_needs_a_configuration(configs, rsp):
    write_cover(configs / "cover", TILES)
    source = write_square(configs / "f.json")
    for flags in ([], ["--append"]):
        ran = rsp("rasterize", "--geojson", source, *flags, configs / "cover", configs / "labels")
        assert ran.code == 1 and "no configuration file" in ran.stderr


def test_masks_that_tell_nothing_need_a_configuration(configs, rsp, monkeypatch):
    masks = write_masks(configs / "masks", classes=None)
    ran = rsp("vectorize", "--type", "building", masks, configs / "out.json")
    assert ran.code == 1 and f"{masks} do not say which classes they hold, and there is no config" in ran.stderr
    (masks / SIDECAR).unlink()
    assert vectorize(masks, configs / "out.json", kind="building", config=configs / "config.toml").features == 2
    monkeypatch.setenv("RSP_CONFIG", str(configs / "config.toml"))
    assert vectorize(masks, configs / "out.json", kind="building").features == 2


def test_configuration_and_tile_set_that_contradict_each_other(configs, rsp, monkeypatch):
    masks = write_masks(configs / "masks.pmtiles")
    ran = rsp("vectorize", "--type", "road", "--config", configs / "roads.toml", masks, configs / "out.json")
    assert ran.code == 2 and not (configs / "out.json").exists()
    assert f"{configs / 'roads.toml'} has the classes background, road" in ran.stderr
    assert f"{masks} has background, building" in ran.stderr
    labels = write_masks(configs / "labels", classes=[CLASSES[0], {"title": "roof", "color": "red"}])
    with pytest.raises(UsageError, match=r"labels has the classes background, roof, and .*masks.pmtiles has"):
        find_classes(None, [labels, masks])
    # A configuration that nobody named does not contradict: it is for sets that tell nothing.
    monkeypatch.setenv("RSP_CONFIG", str(configs / "roads.toml"))
    assert vectorize(masks, configs / "out.json", kind="building").features == 2
    monkeypatch.setenv("RSP_CONFIG", str(configs / "nothing"))
    assert len(find_classes(None, [masks])) == 2
    with pytest.raises(ConfigError):
        find_classes(configs / "nothing", [masks])


def test_appending_may_add_classes_at_the_end(configs, rsp):
    write_cover(configs / "cover", TILES)
    source, labels = write_square(configs / "f.json"), configs / "labels"
    append = ["rasterize", "--geojson", source, "--append", configs / "cover", labels, "--no_web_ui"]
    assert rsp(*append, "--config", configs / "config.toml").code == 0
    ran = rsp(*append, "--config", configs / "roads.toml")
    assert ran.code == 2 and "roads.toml has the classes background, road, and" in ran.stderr
    assert rsp(*append, "--config", configs / "more.toml", "--type", "road").code == 0
    with open_reader(labels) as reader:
        assert [entry.title for entry in reader.info.classes] == ["background", "building", "road"]
        assert set(np.unique(decode_mask(reader.read(TILES[0])))) == {0, 2}
    ran = rsp(*append, "--config", configs / "config.toml")  # it lacks the road
    assert ran.code == 2 and "labels has background, building, road" in ran.stderr


def test_a9_a_mask_of_an_unknown_class_is_a_failed_tile(configs, rsp):
    def nines(tile: Tile) -> np.ndarray:
        return squares(tile) * 9 if tile == TILES[1] else squares(tile)

    masks = write_masks(configs / "masks", nines)
    ran = rsp("vectorize", "--type", "building", masks, configs / "out.json")
    assert ran.code == 3 and "holds class 9; there are 2 classes (0 to 1)" in ran.stderr
    assert len(json.loads((configs / "out.json").read_text())["features"]) == 1
    labels = write_masks(configs / "labels")
    ran = rsp("compare", "--mode", "list", "--labels", labels, "--masks", masks, configs / "list")
    assert ran.code == 3 and "holds class 9; there are 2 classes (0 to 1)" in ran.stderr


def test_components_without_a_configuration(configs, run_component):
    from rsp.components.compare.component import compare
    from rsp.components.vectorize.component import vectorize as vectorize_component

    sets = {"labels": write_masks(configs / "l.pmtiles"), "masks": write_masks(configs / "m.pmtiles")}
    sets["images"] = make_tileset(configs / "i.pmtiles", TILES, draw=noise)
    done = run_component(compare, sets)
    assert done.artifacts["metrics"]["metadata"]["iou"] == 1
    done = run_component(vectorize_component, {"masks": sets["masks"]}, kind="building")
    assert done.artifacts["features"]["metadata"]["features"] == 2
