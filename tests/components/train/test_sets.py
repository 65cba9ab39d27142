"""The data set of a training in a pipeline: one tile set of images, whose bands all channels take."""

from __future__ import annotations

import pytest

from rsp.components.train.nodes import train_on_nodes
from rsp.components.train.sets import link_sets
from rsp.components.train.trainjob import Nodes
from rsp.shared.config import load_config
from rsp.shared.errors import ConfigError
from rsp.shared.tileset import find_tileset, open_reader
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares

ROADS = '[[channels]]\nname = "roads"\nbands = [1]\nkind = "classes"\n'
HEIGHTS = '[[channels]]\nname = "heights"\nbands = [1]\n'
INFRARED = '[[channels]]\nname = "images"\nbands = [4]\n'


@pytest.fixture
def sets(tmp_path):
    places = {
        "images": make_tileset(tmp_path / "aerial.pmtiles"),
        "labels": make_tileset(tmp_path / "roofs", draw=squares),
    }
    return {"training": places, "validation": places}


def config_of(tmp_path, text):
    (tmp_path / "config.toml").write_text(text)
    return load_config(tmp_path / "config.toml")


@pytest.mark.parametrize("name", ["images", "aerial"])
def test_several_channels_of_one_tile_set(tmp_path, sets, name):
    config = config_of(tmp_path, (INFRARED + CONFIG).replace('"images"', f'"{name}"'))
    assert [channel.name for channel in config.channels] == [name] * 2
    folder = link_sets(tmp_path / "data", config, sets)
    assert sorted(path.name for path in (folder / "training").iterdir()) == sorted([name, "labels"])
    for link, source in ((name, "aerial.pmtiles"), ("labels", "roofs")):
        found = find_tileset(folder / "validation", link)
        assert found.resolve() == tmp_path / source
        with open_reader(found) as reader:
            assert len(reader.cover()) == len(BLOCK)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (ROADS + CONFIG, r"'roads' \(classes\)"),
        (HEIGHTS + CONFIG, r"'heights' \(another name than 'images'\)"),
        (ROADS.replace("roads", "images") + CONFIG, r"'images' \(classes\)"),
        ((HEIGHTS + CONFIG).replace('"images"', '"aerial"'), r"'aerial' \(another name than 'heights'\)"),
    ],
)
def test_a_channel_of_another_tile_set_is_refused(tmp_path, sets, text, named):
    """It would be trained on the bands of the images."""
    config = config_of(tmp_path, text)
    said = f"one tile set of images, and the channel {named} is not of it.*`rsp train`"
    with pytest.raises(ConfigError, match=said):
        link_sets(tmp_path / "data", config, sets)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match=said):
        train_on_nodes(sets, config, "s3://bucket/root", Nodes(2), epochs=1, seed=0)
