"""Models of older versions are read for ever, newer ones are refused; imagery of another type is told apart."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rsp import __version__
from rsp.shared.errors import ModelError, TileError
from rsp.shared.images import decode_mask, encode
from rsp.shared.learning.card import VERSION, ModelCard
from rsp.shared.learning.encoded import predict_tiles, sent_tile
from rsp.shared.learning.formats import read_model_card
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.learning.normalise import normalise, stack_bands, stacked_type
from rsp.shared.learning.windows import TileImages
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, tiles_digest
from tests.networks import ELEVATION, IMAGES, make_card, make_checkpoint, make_network
from tests.tilesets import BLOCK, make_tileset, noise, squares

FIXTURES = Path(__file__).parent.parent / "fixtures"
DIGEST = "0123456789abcdef" * 4
BYTES = replace(IMAGES, value_type="uint8", divisor=255.0)
CARD = make_card(channels=(BYTES,))


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> dict[int, Path]:
    """Models that were written with each older version of the card."""
    folders = {}
    for version in range(VERSION):
        folders[version] = tmp_path_factory.mktemp(f"card_v{version}")
        with tarfile.open(FIXTURES / f"card_v{version}" / "models.tar.xz") as archive:
            archive.extractall(folders[version], filter="data")
    return folders


# What the cards of the fixtures say, or do not know; all that came with a later version is as it was then.
KNOWN = {
    0: {"zoom": None, "validation": None, "source_size": None, "background": True, "precision": None},
    1: {"zoom": 18, "validation": "0" * 64, "source_size": None, "background": True, "precision": None},
    2: {"zoom": 18, "validation": "0" * 64, "source_size": 64, "background": False, "precision": "float32"},
}


@pytest.mark.parametrize("version", KNOWN)
@pytest.mark.parametrize("form", ["safetensors", "jit", "pt2", "onnx"])
def test_models_of_older_card_versions_give_the_mask_that_they_gave(old, form, version):
    predictor = load_predictor(old[version] / f"model.{form}")
    folder = FIXTURES / f"card_v{version}"
    (mask,) = predict_tiles(predictor, [(folder / "image.png").read_bytes()])
    pixels = decode_mask(mask)
    np.testing.assert_array_equal(pixels, decode_mask((folder / "mask.png").read_bytes()))
    assert len(np.unique(pixels)) == 2
    card = predictor.card
    assert {name: getattr(card, name) for name in KNOWN[version]} == KNOWN[version]
    assert (card.version, card.norm, card.metrics["iou"]) == (VERSION, "batch", 0.5)
    values = ("uint8", 255.0) if version else (None, None)
    assert [(channel.value_type, channel.divisor) for channel in card.channels] == [values]
    assert [entry.ignore for entry in card.classes] == ([False, False, True] if version == 2 else [False, False])


def test_a_model_of_card_version_0_takes_what_it_took(old):
    """Its card does not know what it was trained on; complex numbers fit none."""
    predictor = load_predictor(old[0] / "model.safetensors")
    ramp = np.linspace(0, 65535, 64 * 64 * 3).reshape(64, 64, 3)
    for kind in (np.uint16, np.float32):
        assert isinstance(predict_tiles(predictor, [encode(ramp.astype(kind), "tif")])[0], bytes)
    (answer,) = predict_tiles(predictor, [encode(ramp.astype(np.complex64), "tif")])
    assert isinstance(answer, TileError) and "complex64" in str(answer)


def test_card_says_its_version_and_all_that_is_new():
    card = replace(CARD, zoom=18, validation=DIGEST, norm="group")
    data = json.loads(card.to_json())
    assert data["version"] == VERSION == 3 and data["zoom"] == 18 and data["validation"] == DIGEST
    assert (
        data["norm"] == "group"
        and data["channels"][0]["value_type"] == "uint8"
        and data["channels"][0]["divisor"] == 255
    )
    assert ModelCard.from_json(card.to_json()) == card


def test_newer_card_is_refused_and_says_what_to_do(tmp_path):
    path = make_checkpoint(tmp_path / "a.safetensors", replace(CARD, version=VERSION + 1))
    with pytest.raises(
        ModelError, match=r"a.safetensors: .* has version 4, .* up to version 3: upgrade"
    ) as raised:
        read_model_card(path)
    assert f"rsp ({__version__})" in str(raised.value)
    data = json.loads(CARD.to_json()) | {"version": 9, "what": "is new"}  # the version is told first
    with pytest.raises(ModelError, match="upgrade rsp"):
        ModelCard.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(version="1"), "version"),
        (lambda card: card.update(version=True), "version"),
        (lambda card: card.update(version=-1), "version"),
        (lambda card: card.update(zoom=31), "zoom"),
        (lambda card: card.update(zoom=1.5), "zoom"),
        (lambda card: card.update(validation="x"), "validation"),
        (lambda card: card.update(validation=DIGEST + "\n"), "validation"),
        (lambda card: card["channels"][0].update(value_type="complex64"), "value_type"),
        (lambda card: card["channels"][0].update(value_type=["uint8"]), "value_type"),
        (lambda card: card["channels"][0].update(divisor=None), "go together"),
        (lambda card: card["channels"][0].update(divisor=0), "divisor"),
        (lambda card: card["channels"][0].update(divisor="255"), "divisor"),
        (lambda card: card["channels"][0].update(value_type="float32"), "1 for float32"),
    ],
)
def test_new_fields_that_are_wrong(change, message):
    data = json.loads(CARD.to_json())
    change(data)
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(json.dumps(data))


# --- imagery of another type --------------------------------------------------------------------------------

WRONG = {
    "uint16": noise(BLOCK[0]).astype(np.uint16) * 257,
    "float32": noise(BLOCK[0]).astype(np.float32),
    "nan": np.full((64, 64, 3), np.nan, np.float32),
    "complex64": noise(BLOCK[0]).astype(np.complex64),
}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(make_network(CARD, steps=0), CARD)


@pytest.mark.parametrize("kind", WRONG)
def test_b3_a_tile_of_another_type_is_refused_and_not_answered_with_a_blank_mask(predictor, kind):
    good, bad = encode(noise(BLOCK[0]), "png"), encode(WRONG[kind], "tif")
    answers = predict_tiles(predictor, [good, bad])
    assert isinstance(answers[0], bytes)
    assert isinstance(answers[1], TileError)
    assert ("float32" if kind == "nan" else kind) in str(answers[1])


@pytest.mark.parametrize("raw", [False, True])
def test_b3_predict_refuses_tiles_of_another_type(tmp_path, raw):
    path = make_tileset(tmp_path / "images", BLOCK[:1], "tif", lambda tile: WRONG["uint16"])
    with open_reader(path) as reader:
        images = TileImages({"images": reader}, [BYTES], raw=raw)
        with pytest.raises(
            TileError, match="the tile holds uint16 values, and the model takes uint8 for 'images'"
        ):
            images.get(BLOCK[0])


def test_stacked_channels_are_checked_too():
    heights = replace(ELEVATION, value_type="float32", divisor=1.0)
    card = make_card(channels=(BYTES, heights))
    predictor = Predictor(make_network(card, steps=0), card)
    stack = sent_tile(card, np.full((64, 64, 4), 0.5))
    assert stack.dtype == np.float32
    answers = predict_tiles(predictor, [encode(stack, "tif"), encode(stack.astype(np.uint8), "tif")])
    assert isinstance(answers[0], bytes)
    assert isinstance(answers[1], TileError) and "as float32, the tile holds uint8" in str(answers[1])


def test_divisors_are_those_of_the_card():
    """12 bits in 16 bits: what a network was trained on with 4095 must not be divided by 65535."""
    twelve = replace(ELEVATION, value_type="uint16", divisor=4095.0, mean=(0.0,), std=(1.0,))
    sixteen = replace(twelve, divisor=65535.0)
    image = np.full((2, 2, 1), 4095, np.uint16)
    assert normalise(image, [twelve]).max() == 1
    both = normalise(stack_bands([image, image], [twelve, sixteen]), [twelve, sixteen])
    np.testing.assert_allclose(both[:, 0, 0], [1, 4095 / 65535])
    # Of different types they are divided before they are joined, and not once more after.
    mixed = [replace(BYTES, mean=(0.0,) * 3, std=(1.0,) * 3), twelve]
    stacked = stack_bands([np.full((2, 2, 3), 255, np.uint8), image], mixed)
    assert stacked_type(mixed) == "float32" and normalise(stacked, mixed).tolist() == np.ones((4, 2, 2)).tolist()


def test_a_tile_to_try_a_model_with_is_of_its_type():
    wide = replace(ELEVATION, value_type="uint16", divisor=4095.0)
    fractions = np.linspace(0, 1, 12).reshape(2, 6, 1)
    assert sent_tile(make_card(), fractions).dtype == sent_tile(CARD, fractions).dtype == np.uint8
    sent = sent_tile(make_card(channels=(wide,)), fractions)
    assert sent.dtype == np.uint16 and (sent.min(), sent.max()) == (0, 4095)


# --- the digest of tiles and labels -------------------------------------------------------------------------


def test_digest_is_what_its_text_says_and_the_same_in_both_forms(tmp_path):
    tiles = [Tile(3, 1, 2), Tile(0, 2, 2)]
    lines = []
    for suffix in ("", ".pmtiles"):
        make_tileset(tmp_path / f"images{suffix}", tiles, "png", noise)
        make_tileset(tmp_path / f"labels{suffix}", tiles, "png", squares)
    for name in ("2/0/2", "2/3/1"):
        parts = [(tmp_path / kind / f"{name}.png").read_bytes() for kind in ("images", "labels")]
        lines.append(" ".join([name, *(hashlib.sha256(part).hexdigest() for part in parts)]) + "\n")
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    for suffix in ("", ".pmtiles"):
        with (
            open_reader(tmp_path / f"images{suffix}") as images,
            open_reader(tmp_path / f"labels{suffix}") as labels,
        ):
            assert tiles_digest([images], labels, reversed(tiles)) == expected
            assert tiles_digest([images, images], labels, tiles) == expected  # two channels of one tile set
            assert tiles_digest([images], labels, tiles[:1]) != expected
            assert tiles_digest([images], images, tiles) != expected
