"""The default overlap: masks of tiles are those of one whole image."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest

from rsp.shared.config import ModelConfig, parse_config
from rsp.shared.learning.inference import Predictor
from tests.bench.seams import BAR, seams
from tests.networks import make_card, make_network
from tests.tilesets import CONFIG

# Of the image. Along the borders of sixteen tiles the class changes so often that a pixel more is no hundredth.
SIDE = 1536


@pytest.fixture(scope="module")
def predictor():
    card = make_card(tile_size=256, overlap=ModelConfig(encoder="tiny", ts=256).overlap)
    return Predictor(make_network(card), card)


@pytest.fixture(scope="module")
def image():
    """Areas within areas, so that what is far away has a say."""
    rng = np.random.default_rng(0)
    areas = np.zeros((SIDE, SIDE, 3))
    for step in (4, 32, 128):
        areas += np.kron(rng.integers(0, 256, (SIDE // step, SIDE // step, 3)), np.ones((step, step, 1)))
    return (areas / 3).astype(np.uint8)


def test_tiles_of_the_default_overlap_have_no_seams(predictor, image):
    (whole,) = predictor.masks([image])
    assert 0.1 < whole.mean() < 0.9
    overlap = ModelConfig(encoder="tiny", ts=256).overlap
    default, narrower, none = (
        seams(predictor, image, whole, 256, each, 256) for each in (overlap, overlap - 32, 0)
    )
    assert default.differing < BAR and abs(default.across / default.whole - 1) < 0.01
    assert none.across / none.whole > 1.5
    # It is the smallest that does.
    assert narrower.differing > BAR


def test_an_overlap_is_at_most_half_a_tile():
    assert [ModelConfig(encoder="tiny", ts=side).overlap for side in (64, 256, 512)] == [32, 128, 128]
    assert replace(ModelConfig(ts=256), ms=32).overlap == 32
    assert ModelConfig(ts=256).overlap == ModelConfig(ts=256, ms=200).overlap == 128


def test_the_overlap_follows_from_the_encoder():
    """Deeper encoders see further; networks with attention see all of a window, and no overlap helps them."""
    found = {
        (nn, encoder): ModelConfig(nn=nn, encoder=encoder).overlap
        for nn, encoder in (
            ("unet", "tiny"), ("unet", "resnet18"), ("AlbUNet", "resnet50"), ("unet", "microsoft/resnet-34"),
            ("unet", "convnextv2-atto"), ("unet", "swin-tiny"), ("segformer", "mit-b0"), ("upernet", "resnet50"),
            ("my_nets:thin", "resnet50"), ("unet", "resnets/mine"),
        )
    }  # fmt: skip
    assert list(found.values()) == [128, 192, 192, 192, 192, 128, 128, 128, 128, 128]
    given = tomllib.loads(CONFIG.replace("ts = 64", "ts = 512"))
    assert parse_config(given).model.overlap == 16
    del given["model"]["ms"]
    assert parse_config(given).model.overlap == 128
