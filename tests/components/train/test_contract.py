"""One data contract: what training says of its validation tiles is what predict and evaluate find."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import Polygon, box

from rsp.components.evaluate.tool import evaluate
from rsp.components.export.tool import export
from rsp.components.predict.tool import predict
from rsp.components.rasterize.tool import rasterize
from rsp.components.train.history import read_state
from rsp.components.train.tool import train
from rsp.shared.images import decode_mask, encode
from rsp.shared.learning.checkpoint import read_card
from rsp.shared.tiles import Tile, bounds_mercator, write_cover
from rsp.shared.tileset import classes_metadata, open_writer
from tests.components.test_rasterize_weights import write as write_polygons
from tests.components.train.crashes import end_of, killed
from tests.tilesets import content, squares
from tests.toy import TRAINING, VALIDATION, photo

BINARY = """
[[channels]]
name = "images"
bands = [1, 2, 3]
[[classes]]
title = "background"
color = "white"
[[classes]]
title = "building"
color = "deeppink"
"""
FUSED = BINARY.replace("[[classes]]", '[[channels]]\nname = "roads"\nbands = [1]\n[[classes]]', 1)
MANY = """
[[channels]]
name = "images"
bands = [5, 1, 2, 3, 4]
[[classes]]
title = "background"
color = "white"
[[classes]]
title = "building"
color = "deeppink"
[[classes]]
title = "water"
color = "blue"
[[classes]]
title = "cloud"
color = "grey"
ignore = true
"""
MODEL = """
[model]
nn = "unet"
encoder = "tiny"
pretrained = false
num_filters = 8
loss = "cross_entropy"
ts = {side}
bs = 3
lr = 0.005
dap = 0.75
ms = 16
"""
PLACES = {"training": TRAINING, "validation": VALIDATION}


def roads(tile: Tile) -> np.ndarray:
    """Class 1 where the label has it, in tiles of twice the side; the images show nothing of it."""
    return np.kron(squares(tile), np.ones((2, 2), np.uint8))


def field(tile: Tile) -> Polygon:
    """Return the square of `squares` as a polygon, in metres of EPSG:3857."""
    west, _, east, north = bounds_mercator(tile)
    pixel = (east - west) / 64
    rows, columns = (found * pixel for found in np.nonzero(squares(tile)))
    return box(west + columns.min(), north - rows.max() - pixel, west + columns.max() + pixel, north - rows.min())


def deep(tile: Tile) -> np.ndarray:
    """Five bands of 12 bits in 16."""
    rng = np.random.default_rng([tile.x, tile.y])
    image = rng.integers(300, 700, (64, 64, 5)).astype(np.uint16)
    kinds = many(tile)
    image[kinds == 1] += np.array([900, 0, 0, 400, 0], np.uint16)
    image[kinds == 2] += np.array([0, 0, 700, 0, 900], np.uint16)
    image[kinds == 3] += 2500
    return image


def many(tile: Tile) -> np.ndarray:
    """A square of class 1, water below, a cloud in the last rows, and four columns of which nothing is known."""
    label = squares(tile)
    label[40:52][label[40:52] == 0] = 2
    label[56:] = 3
    label[:, :4] = 255
    return label


def write(root: Path, name: str, draw, fmt: str = "png", classes=None) -> None:
    for part, tiles in PLACES.items():
        with open_writer(root / part / f"{name}.pmtiles", fmt) as writer:
            if classes:
                writer.describe({"classes": classes})
            for tile in tiles:
                image = draw(tile)
                writer.write(tile, encode(image[:, :, np.newaxis] if image.ndim == 2 else image, fmt))


def configured(path: Path, text: str, side: int = 64) -> Path:
    path.write_text(text + MODEL.format(side=side))
    return path


def agrees(root: Path, out: Path, images: Path, result, tmp_path: Path, *forms: str) -> None:
    """Predict and evaluate as a user would, and compare with what training said of the best epoch."""
    checkpoint, labels = out / "best.safetensors", root / "validation" / "labels.pmtiles"
    config = tmp_path / "config.toml"
    predict(images, tmp_path / "masks", checkpoint=checkpoint, web_ui=False)
    found = evaluate(labels, [tmp_path / "e"], masks=tmp_path / "masks", config=config)
    straight = evaluate(labels, [tmp_path / "f"], checkpoint=checkpoint, images=images, config=config)
    assert found.confusion == straight.confusion
    kept = [index for index, each in enumerate(found.classes) if not each["ignored"]]
    counts = np.array(found.confusion)[np.ix_(kept, kept)]
    assert counts.tolist() == result.confusion and counts.sum() > 0
    assert found.iou == pytest.approx(result.iou, abs=1e-12)
    for kind in forms:
        export(checkpoint, tmp_path / f"model.{kind}", kind=kind)
        predict(images, tmp_path / kind, checkpoint=tmp_path / f"model.{kind}", web_ui=False)
        assert content(tmp_path / kind) == content(tmp_path / "masks")


@pytest.mark.parametrize(("side", "form"), [(64, "pt2"), (32, "jit")])
def test_b_h3_a_model_of_tiles_of_another_size(tmp_path, side, form):
    """Once such a model scored 0.609 in training and 0.431 after predict, in silence."""
    write(tmp_path / "d", "images", photo)
    write(tmp_path / "d", "labels", squares)
    config = configured(tmp_path / "config.toml", BINARY, side)
    result = train(tmp_path / "out", config=config, dataset=tmp_path / "d", epochs=3)
    card = read_card(tmp_path / "out" / "best.safetensors")
    assert (card.tile_size, card.source_size, card.overlap, card.zoom) == (side, 64, 16, 15)
    assert result.iou > 0.4
    agrees(tmp_path / "d", tmp_path / "out", tmp_path / "d/validation/images.pmtiles", result, tmp_path, form)
    for data in content(tmp_path / "masks").values():
        assert decode_mask(data).shape == (64, 64)


def test_h4_imagery_fused_with_rasterized_roads(tmp_path):
    """A rasterized layer is classes, not colours of a palette: here it is all that there is to learn from.

    The roads, and the weights of the pixels between them, are what `rsp rasterize` makes of polygons.
    """
    from tests.tilesets import make_tileset, noise

    config = configured(tmp_path / "config.toml", FUSED)
    config.write_text(config.read_text() + '[train]\nweights = "near"\ncrop = 0\npasses = 1\n')
    for part, tiles in PLACES.items():
        make_tileset(tmp_path / "d" / part / "images", tiles, "webp", lambda tile: noise(tile) // 16)
        polygons = write_polygons(tmp_path / "roads.geojson", map(field, tiles))
        write_cover(tmp_path / "cover", tiles)
        burnt = rasterize(
            tmp_path / "cover", tmp_path / "d" / part / "roads", geojson=str(polygons), config=config,
            tile_size=128, weights=tmp_path / "d" / part / "near", weight_sigma=20.0, workers=1, web_ui=False,
        )  # fmt: skip
        assert burnt.features == len(tiles) and burnt.weighted > len(tiles) / 2
        for tile, data in content(tmp_path / "d" / part / "roads").items():
            np.testing.assert_array_equal(decode_mask(data), roads(tile))
        make_tileset(tmp_path / "d" / part / "labels.pmtiles", tiles, "png", squares)
    result = train(tmp_path / "out", config=config, dataset=tmp_path / "d", epochs=6)
    layer = read_card(tmp_path / "out" / "best.safetensors").channels[1]
    assert (layer.kind, layer.bands, layer.value_type, layer.divisor) == ("classes", (1,), "uint8", 1.0)
    share = np.mean([squares(tile) for tile in TRAINING])
    assert layer.mean[0] == pytest.approx(share, rel=0.1)
    assert result.iou > 0.8
    config.write_text(config.read_text() + "weight_scale = 0.0\n")
    even = train(tmp_path / "even", config=config, dataset=tmp_path / "d", epochs=6)
    assert even.history[0]["training"]["loss"] != result.history[0]["training"]["loss"]
    agrees(tmp_path / "d", tmp_path / "out", tmp_path / "d/validation", result, tmp_path, "jit")


def test_b2_h10_five_bands_of_12_bits_three_classes_and_one_to_ignore(tmp_path):
    write(tmp_path / "d", "images", deep, "tif")
    write(tmp_path / "d", "labels", many)
    config = configured(tmp_path / "config.toml", MANY)
    result = train(tmp_path / "out", config=config, dataset=tmp_path / "d", epochs=16)
    assert result.classes == ["background", "building", "water"] and len(result.confusion) == 3
    known = sum(int(np.isin(many(tile), (0, 1, 2)).sum()) for tile in VALIDATION)
    assert np.sum(result.confusion) == known
    assert result.miou > 0.8
    agrees(tmp_path / "d", tmp_path / "out", tmp_path / "d/validation/images.pmtiles", result, tmp_path, "onnx")
    classes = read_card(tmp_path / "out" / "best.safetensors").classes
    assert [entry.ignore for entry in classes] == [False, False, False, True]
    assert classes_metadata(classes)[3]["ignore"] is True
    for data in content(tmp_path / "masks").values():
        assert decode_mask(data).max() <= 2  # where the cloud is, too


@pytest.mark.parametrize(("kind", "form"), [("fused", "jit"), ("many", "jit"), ("fine-tuned", "pt2")])
def test_killed_and_resumed_is_as_never_killed(tmp_path, kind, form):
    """With several channels, weights measured from labels, and weights fitted to other classes and bands.

    The means and deviations are those of the weights, where these are used to others than would be measured.
    """
    root, config, start = tmp_path / "d", tmp_path / "config.toml", None
    if kind == "fused":
        write(root, "images", photo)
        write(root, "roads", roads)
        write(root, "labels", squares)
        configured(config, FUSED)
    else:
        write(root, "images", deep, "tif")
        write(root, "labels", many)
        if kind == "fine-tuned":
            bands = MANY.replace("[5, 1, 2, 3, 4]", "[2, 5, 1]\nmean = [0.1, 0.1, 0.1]\nstd = [0.2, 0.2, 0.2]")
            configured(
                config,
                bands.partition('[[classes]]\ntitle = "water"')[0]
                + MANY[MANY.index('[[classes]]\ntitle = "cloud') :],
            )
            write(root, "labels", squares)
            start = train(tmp_path / "start", config=config, dataset=root, epochs=1).checkpoint
            write(root, "labels", many)
        configured(config, MANY)
    recipe = '[train]\nclasses_weights = "auto"\nbalance = 0.5\ncrop = 32\npasses = 1\nema = 0.9\n'
    config.write_text(config.read_text() + recipe)
    options = {"config": config, "dataset": root, "epochs": 4, "gpus": 0}
    train(tmp_path / "whole", **options, checkpoint=start)
    out = tmp_path / "out"
    assert end_of(killed, config, root, out, 1, "write_state", start) == -signal.SIGKILL
    assert read_state(out).epoch == 1
    result = train(out, **options, resume=True)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    for name in ("last.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    if kind == "fine-tuned":
        (channel,) = read_card(out / "last.safetensors").channels
        assert [round(mean, 6) == 0.1 for mean in channel.mean] == [True, True, True, False, False]
    agrees(root, out, root / "validation" / ("" if kind == "fused" else "images.pmtiles"), result, tmp_path, form)


def test_h10_every_class_counts_where_there_is_no_background(tmp_path):
    write(tmp_path / "d", "images", photo)
    write(tmp_path / "d", "labels", squares)
    path = configured(tmp_path / "config.toml", BINARY)
    path.write_text(path.read_text().replace('title = "background"', 'title = "ground"') + "background = false\n")
    result = train(tmp_path / "out", config=path, dataset=tmp_path / "d", epochs=1)
    assert result.iou == result.miou
    assert read_card(tmp_path / "out" / "best.safetensors").background is False
    assert result.classes == ["ground", "building"]  # none is put before them
    assert "ground IoU" in (tmp_path / "out" / "log").read_text()
