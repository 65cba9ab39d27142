"""The data set of a training in a pipeline: images, whose bands all channels take, labels, weights of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from rsp.components.train.nodes import train_on_nodes
from rsp.components.train.sets import link_sets
from rsp.components.train.tool import train
from rsp.components.train.trainjob import Nodes
from rsp.pipelines.local import run_local
from rsp.shared.config import load_config
from rsp.shared.errors import ConfigError
from rsp.shared.tileset import find_tileset, open_reader
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares
from tests.toy import TRAINING, VALIDATION, photo

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


# --- weights of pixels --------------------------------------------------------------------------------------


def weighing(text=CONFIG, name="near"):
    return f'{text}\n[train]\nweights = "{name}"\nema = 0.0\n'


def heavy(tile, size=64):
    """Weights of 255 in the left half of a tile."""
    image = np.zeros((size, size, 1), np.uint8)
    image[:, : size // 2] = 255
    return image


def test_weights_of_pixels_are_linked_under_their_name(tmp_path, sets):
    config = config_of(tmp_path, weighing())
    near = make_tileset(tmp_path / "weights.pmtiles", draw=heavy)
    folder = link_sets(tmp_path / "data", config, sets | {"training": sets["training"] | {"weights": near}})
    assert find_tileset(folder / "training", "near").resolve() == near
    assert not (folder / "validation" / "near").exists()


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        (weighing(), False, r"weights: 'near': no weights of pixels were given.*parameter `weights`.*`training`"),
        (
            CONFIG,
            True,
            'weights of pixels were given, and the configuration does not use them.*weights = "weights"',
        ),
        (weighing(name="labels"), True, "weights: 'labels': expected a name of its own"),
        (weighing(name="images"), True, "weights: 'images': expected a name of its own"),
        (weighing(name="../near"), True, "weights: '../near': expected a name of its own"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(tmp_path, sets, text, given, said):
    config = config_of(tmp_path, text)
    training = sets["training"] | ({"weights": tmp_path / "aerial.pmtiles"} if given else {})
    with pytest.raises(ConfigError, match=said):
        link_sets(tmp_path / "data", config, sets | {"training": training})
    assert not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match=said):
        train_on_nodes(sets | {"training": training}, config, "s3://bucket/root", Nodes(2), epochs=1, seed=0)


@pytest.mark.slow
def test_a_pipeline_trains_with_weights_of_pixels(tmp_path):
    """What it learns is what `rsp train` learns on a folder that holds them, and something else without."""
    places = {
        name: str(make_tileset(tmp_path / f"{name}.pmtiles", TRAINING + VALIDATION, "png", draw))
        for name, draw in (("images", photo), ("labels", squares), ("weights", heavy))
    }
    (tmp_path / "near.toml").write_text(weighing())
    (tmp_path / "none.toml").write_text(weighing().replace("weights =", "# weights ="))
    run = run_local("training", places | {"config": weighing(), "epochs": 1}, tmp_path / "runs")
    dataset = tmp_path / "dataset"
    for part in ("training", "validation"):
        (dataset / part).mkdir(parents=True)
        for name in ("images", "labels"):
            (dataset / part / f"{name}.pmtiles").symlink_to(run.path(f"subset-{part}-{name}", "subset"))
    (dataset / "training" / "near.pmtiles").symlink_to(places["weights"])
    alone = {
        name: train(tmp_path / name, config=tmp_path / f"{name}.toml", dataset=dataset, epochs=1, gpus=0)
        for name in ("near", "none")
    }
    learnt = run.path("train", "checkpoint").read_bytes()
    assert learnt == alone["near"].checkpoint.read_bytes() != alone["none"].checkpoint.read_bytes()
