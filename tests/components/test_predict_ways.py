"""rsp predict in more ways than one: probabilities, ensembles, test-time turns, thresholds, several devices."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from rsp.components.evaluate.tool import evaluate
from rsp.components.predict.tool import predict
from rsp.components.vectorize.tool import vectorize
from rsp.shared.config import ClassDef
from rsp.shared.errors import UsageError
from rsp.shared.images import decode, decode_mask
from rsp.shared.learning.encoded import probability_bytes
from rsp.shared.learning.ensemble import Ensemble, decide, join_cards, make_thresholds
from rsp.shared.learning.inference import load_predictor
from rsp.shared.learning.windows import TileImages, read_window
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader
from tests.networks import ELEVATION, IMAGES, make_card, make_checkpoint
from tests.tilesets import BLOCK, content, make_tileset, noise, squares

CHOSEN = BLOCK[4]


@pytest.fixture(scope="module")
def pair(models, tmp_path_factory):
    """Two models of different seeds, the second of a larger overlap."""
    card = make_card(overlap=32)
    return [
        models["checkpoint"],
        make_checkpoint(tmp_path_factory.mktemp("other") / "b.safetensors", card, seed=1),
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tileset(tmp_path_factory.mktemp("tiles") / "images")


def window(images, overlap: int = 16, tile: Tile = CHOSEN) -> np.ndarray:
    with open_reader(images) as reader:
        return read_window(TileImages({"images": reader}, [IMAGES]), tile, overlap)


def mask_of(path, tile: Tile = CHOSEN) -> np.ndarray:
    return decode_mask(content(path)[tile])


def test_probabilities_are_those_of_the_model_in_every_form(models, images, tmp_path, rsp):
    masks = {}
    for kind in ("checkpoint", "pt2", "jit"):
        out = tmp_path / f"{kind}.pmtiles"
        ran = rsp("predict", "--checkpoint", models[kind], images, tmp_path / kind, "--probabilities", out)
        assert ran.code == 0, ran.stderr
        masks[kind] = content(tmp_path / kind)
    assert len({(tmp_path / f"{kind}.pmtiles").read_bytes() for kind in masks}) == 1
    predict(images, tmp_path / "plain", checkpoint=models["checkpoint"], web_ui=False)
    assert masks["checkpoint"] == masks["pt2"] == masks["jit"] == content(tmp_path / "plain")
    found = content(tmp_path / "pt2.pmtiles")
    assert sorted(found) == sorted(BLOCK)
    (expected,) = load_predictor(models["checkpoint"]).probabilities([window(images)], 16)
    np.testing.assert_array_equal(decode(found[CHOSEN]), np.moveaxis(probability_bytes(expected), 0, 2))
    with open_reader(tmp_path / "pt2.pmtiles") as reader:
        assert reader.metadata["bands"] == ["background", "building"]
        assert (reader.info.value_type, reader.info.divisor, reader.info.classes) == ("uint8", 255, None)


def test_probabilities_of_a_directory_and_of_one_worker_are_the_same(models, images, tmp_path):
    for name, workers in (("one", 1), ("three.pmtiles", 3)):
        predict(
            images, tmp_path / f"masks-{name}", checkpoint=models["checkpoint"], workers=workers, web_ui=False,
            probabilities=tmp_path / name,
        )  # fmt: skip
    assert content(tmp_path / "one") == content(tmp_path / "three.pmtiles")


def test_evaluate_reads_them_and_tile_makes_a_raster_of_them(models, images, tmp_path, rsp):
    predict(images, tmp_path / "masks", checkpoint=models["pt2"], probabilities=tmp_path / "shares", web_ui=False)
    labels = make_tileset(tmp_path / "labels", draw=squares)
    found = evaluate(labels, [tmp_path / "a"], masks=tmp_path / "masks", probabilities=tmp_path / "shares")
    assert found.ece == evaluate(labels, [tmp_path / "b"], checkpoint=models["pt2"], images=images).ece
    ran = rsp("tile", tmp_path / "shares", tmp_path / "shares.tif")
    assert ran.code == 0, ran.stderr
    with rasterio.open(tmp_path / "shares.tif") as raster:
        assert (raster.count, raster.dtypes[0], raster.width) == (2, "uint8", 4 * 64)
        tile = decode(content(tmp_path / "shares")[BLOCK[0]])
        np.testing.assert_array_equal(np.moveaxis(raster.read()[:, :64, :64], 0, 2), tile)


def test_probabilities_are_resumed_with_their_masks(models, images, tmp_path, rsp):
    argv = ("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "masks", "--no_web_ui")
    assert rsp(*argv).code == 0
    report = tmp_path / "report.json"
    more = ("--probabilities", tmp_path / "shares", "--resume", "--report", report)
    (tmp_path / "masks" / "15" / "101" / "201.png").write_bytes(b"kept")
    assert rsp(*argv, *more).code == 0
    assert json.loads(report.read_text())["tiles"] == 12 and len(content(tmp_path / "shares")) == 12
    assert content(tmp_path / "masks")[Tile(101, 201, 15)] == b"kept"
    (tmp_path / "shares" / "15" / "101" / "201.tif").unlink()
    assert rsp(*argv, *more).code == 0
    assert json.loads(report.read_text())["kept"] == 11 and len(content(tmp_path / "shares")) == 12
    assert content(tmp_path / "masks")[Tile(101, 201, 15)] == b"kept"


def test_probabilities_of_tiles_of_another_size_have_it(models, tmp_path):
    tiles = make_tileset(tmp_path / "t", BLOCK[:2], draw=lambda tile: noise(tile, 128))
    predict(tiles, tmp_path / "m", checkpoint=models["jit"], probabilities=tmp_path / "p", web_ui=False)
    found = {tile: decode(data) for tile, data in content(tmp_path / "p").items()}
    assert {image.shape for image in found.values()} == {(128, 128, 2)}
    sure = found[BLOCK[0]].max(axis=2) > 128
    np.testing.assert_array_equal(found[BLOCK[0]].argmax(axis=2)[sure], mask_of(tmp_path / "m", BLOCK[0])[sure])


@pytest.mark.parametrize(("tta", "count"), [("flips", 4), ("d4", 8)])
def test_turns_are_the_mean_of_what_the_model_says_of_each(models, images, tmp_path, tta, count):
    """An independent mean: of the turned windows as one would write them, turned back."""
    seen = window(images)
    predictor, total = load_predictor(models["checkpoint"]), np.zeros((2, 64, 64))
    ways = [(flip, quarters) for flip in (False, True) for quarters in range(4)]
    ways = [way for way in ways if tta == "d4" or way[1] % 2 == 0]
    assert len(ways) == count
    for flip, quarters in ways:
        turned = np.rot90(np.flip(seen, 1) if flip else seen, quarters)
        (scores,) = predictor.probabilities([np.ascontiguousarray(turned)], 16)
        back = np.rot90(scores, -quarters, (1, 2))
        total += np.flip(back, 2) if flip else back
    for name, workers in (("a", 1), ("b", 3)):
        predict(
            images, tmp_path / f"{name}.pmtiles", checkpoint=models["checkpoint"], tta=tta, workers=workers,
            probabilities=tmp_path / f"{name}-shares.pmtiles", web_ui=False,
        )  # fmt: skip
    for name in ("", "-shares"):
        assert (tmp_path / f"a{name}.pmtiles").read_bytes() == (tmp_path / f"b{name}.pmtiles").read_bytes()
    shares = decode(content(tmp_path / "a-shares.pmtiles")[CHOSEN])
    np.testing.assert_allclose(shares, np.moveaxis(total / count * 255, 0, 2), atol=0.51)
    sure = abs(total[1] - total[0]) > 1e-4
    np.testing.assert_array_equal(mask_of(tmp_path / "a.pmtiles")[sure], (total[1] > total[0])[sure])
    with open_reader(tmp_path / "a.pmtiles") as reader:
        assert reader.metadata["tta"] == tta
    predict(images, tmp_path / "plain", checkpoint=models["checkpoint"], web_ui=False)
    assert (mask_of(tmp_path / "plain") != mask_of(tmp_path / "a.pmtiles")).any()


def test_an_ensemble_is_the_mean_of_its_models(pair, images, tmp_path, rsp):
    report = tmp_path / "report.json"
    argv = ("--no_web_ui", "--report", report, images)
    flags = [flag for path in pair for flag in ("--checkpoint", path)]
    ran = rsp("predict", *flags, *argv, tmp_path / "masks.pmtiles", "--probabilities", tmp_path / "shares")
    assert ran.code == 0, ran.stderr
    predictors = [load_predictor(path) for path in pair]
    scores = [predictor.probabilities([window(images, 32)], 32)[0].astype(float) for predictor in predictors]
    mean = sum(scores) / 2
    shares = np.moveaxis(decode(content(tmp_path / "shares")[CHOSEN]), 2, 0)
    np.testing.assert_allclose(shares, mean * 255, atol=0.51)
    sure = abs(mean[1] - mean[0]) > 1e-4
    np.testing.assert_array_equal(mask_of(tmp_path / "masks.pmtiles")[sure], (mean[1] > mean[0])[sure])
    for single in scores:
        assert ((single[1] > single[0]) != (mean[1] > mean[0])).any()
    uuids = ",".join(sorted(predictor.card.uuid for predictor in predictors))
    result = json.loads(report.read_text())
    assert (result["model"], result["overlap"]) == (uuids, 32)
    # Whichever is named first.
    predict(images, tmp_path / "turned.pmtiles", checkpoint=pair[::-1], web_ui=False)
    assert (tmp_path / "turned.pmtiles").read_bytes() == (tmp_path / "masks.pmtiles").read_bytes()
    with open_reader(tmp_path / "masks.pmtiles") as reader:
        assert reader.metadata["model"] == uuids


def test_features_say_which_models_made_them_and_how_likely_they_are(pair, images, tmp_path):
    """What `vectorize` reads of the masks and probabilities of a run, of one model and of several."""
    masks, shares = tmp_path / "masks.pmtiles", tmp_path / "shares.pmtiles"
    for models in (pair[:1], pair):
        made = predict(images, masks, checkpoint=models, probabilities=shares, web_ui=False).model
        assert made.count(",") == len(models) - 1
        vectorize(masks, tmp_path / "out.json", kind="building", probabilities=shares, min_area=0, workers=1)
        found = [each["properties"] for each in json.loads((tmp_path / "out.json").read_text())["features"]]
        assert found and {each["model"] for each in found} == {made}
        # A model of two classes answers the more likely one.
        assert all(0.5 <= each["probability"] <= 1 for each in found)


def test_evaluate_takes_an_ensemble_with_turns(pair, images, tmp_path):
    labels = make_tileset(tmp_path / "labels", draw=squares)
    how = {"tta": "flips", "threshold": {"building": 0.4}}
    predict(images, tmp_path / "masks", checkpoint=pair, probabilities=tmp_path / "shares", web_ui=False, **how)
    given = evaluate(labels, [tmp_path / "a"], masks=tmp_path / "masks", probabilities=tmp_path / "shares")
    found = evaluate(labels, [tmp_path / "b"], checkpoint=pair, images=images, **how)
    assert (found.confusion, found.ece, found.model) == (given.confusion, given.ece, given.model)
    for other in ({"tta": "flips"}, {"threshold": 0.4}):
        assert (
            evaluate(labels, [tmp_path / "c"], checkpoint=pair, images=images, **other).confusion
            != found.confusion
        )


def test_models_that_cannot_answer_together(models, images, tmp_path, rsp):
    card = make_card()
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(models["checkpoint"].read_bytes())
    others = {
        "classes": replace(card, classes=(card.classes[0], ClassDef("road", (0, 128, 255)))),
        "channels": replace(card, channels=(IMAGES, ELEVATION)),
        "types of values": replace(card, channels=(replace(IMAGES, value_type="uint8", divisor=255.0),)),
        "tile_size": replace(card, tile_size=128),
    }
    for what, other in others.items():
        with pytest.raises(UsageError, match=f"the first has the {what} .*, the second"):
            join_cards([("a", card), ("b", replace(other, uuid="b"))])
    ran = rsp("predict", "--checkpoint", models["jit"], "--checkpoint", copy, images, tmp_path / "m")
    assert ran.code == 2 and f"{copy} is the same model as" in ran.stderr
    assert join_cards([("a", card), ("b", replace(card, uuid="b", zoom=18, overlap=8))]).overlap == 16


def test_an_export_in_an_ensemble_keeps_to_its_window(models, pair, images, tmp_path):
    with pytest.raises(UsageError, match=r"--tile_overlap is 32, the model .* was exported for up to 16"):
        predict(images, tmp_path / "m", checkpoint=[models["jit"], pair[1]])
    predict(images, tmp_path / "m", checkpoint=[models["jit"], pair[1]], tile_overlap=16, web_ui=False)
    predict(images, tmp_path / "n", checkpoint=pair, tile_overlap=16, web_ui=False)
    assert content(tmp_path / "m") == content(tmp_path / "n")


def test_thresholds(models, images, tmp_path, rsp):
    (scores,) = load_predictor(models["checkpoint"]).probabilities([window(images)], 16)
    counts = []
    for least in (0.2, 0.5, 0.8):
        out = tmp_path / str(least)
        ran = rsp("predict", "--checkpoint", models["pt2"], "--threshold", f"building={least}", images, out)
        assert ran.code == 0, ran.stderr
        np.testing.assert_array_equal(mask_of(out), scores[1] >= np.float32(least))
        counts.append(int(mask_of(out).sum()))
        assert rsp("predict", "--checkpoint", models["pt2"], "--threshold", least, images, f"{out}-b").code == 0
        assert content(tmp_path / f"{least}-b") == content(out)
    assert counts[0] > counts[1] > counts[2] > 0


def test_the_class_of_several_thresholds():
    """By hand: background, building, road and water; building from 0.2, road from 0.4, water without."""
    pixels = [
        ([0.8, 0.1, 0.05, 0.05], 0),  # none reaches its own: the most probable without one
        ([0.7, 0.2, 0.05, 0.05], 1),  # at least means at least
        ([0.1, 0.25, 0.5, 0.15], 1),  # both do: 1.25 times are as many, and the first wins
        ([0.1, 0.2, 0.5, 0.2], 2),  # 1 time against 1.25
        ([0.3, 0.15, 0.15, 0.4], 3),
        ([0.1, 0.1, 0.39, 0.41], 3),
        ([0.05, 0.2, 0.05, 0.7], 1),  # more than what has none
        ([0.35, 0.19, 0.39, 0.07], 0),  # road is the most probable, and does not reach its own
    ]
    scores = np.array([values for values, _ in pixels], np.float32).T[:, None]
    mask = decide(scores, {1: 0.2, 2: 0.4})
    assert mask.dtype == np.uint8 and mask[0].tolist() == [wanted for _, wanted in pixels]
    assert decide(scores, {1: 0.2, 2: 0.4}, (3,))[0].tolist() == [0, 1, 1, 2, 0, 0, 1, 0]


def test_thresholds_that_mean_nothing(models, images, tmp_path, rsp):
    argv = ("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "m")
    for flags, code, reason in (
        (("--threshold", "house=0.3"), 1, "no class 'house'; the classes are background, building"),
        (("--threshold", "building=1"), 2, "--threshold building=1: expected a probability above 0 and below 1"),
        (("--threshold", "0"), 2, "above 0"),
        (("--threshold", "background=0.3"), 2, "the background takes what no other class reaches"),
        (("--threshold", "building"), 2, "CLASS=NUMBER"),
        (("--threshold", "=0.3"), 2, "CLASS=NUMBER"),
        (("--threshold", "0.3", "--threshold", "building=0.4"), 2, "one number, or each class once"),
        (("--threshold", "building=0.3", "--threshold", "building=0.4"), 2, "each class once"),
    ):
        ran = rsp(*argv, *flags)
        assert ran.code == code and reason in ran.stderr, ran.stderr
    assert not (tmp_path / "m").exists()
    card = make_card(classes=3)
    with pytest.raises(UsageError, match=r"--threshold building=0\.3|say of which"):
        make_thresholds(card, 0.3)
    everyone = replace(card, background=False)
    assert make_thresholds(everyone, {"background": 0.3}) == {0: 0.3}
    with pytest.raises(UsageError, match="one class at least has to be without"):
        make_thresholds(everyone, {entry.title: 0.3 for entry in card.classes})
    hidden = replace(card, classes=(*card.classes[:2], replace(card.classes[2], ignore=True)))
    with pytest.raises(UsageError, match="never answers"):
        make_thresholds(hidden, {"road": 0.3})
    assert make_thresholds(hidden, 0.3) == {1: 0.3}


def test_an_endpoint_answers_in_one_way(images, tmp_path, rsp):
    argv = ("predict", "--endpoint", "http://127.0.0.1:1", images, tmp_path / "m")
    for flags, reason in (
        (("--tta", "d4"), "--tta is for --checkpoint"),
        (("--threshold", "0.3"), "--threshold is for --checkpoint"),
        (("--source", "town", "--probabilities", tmp_path / "p"), "leave out --source"),
    ):
        ran = rsp(*argv, *flags)
        assert ran.code == 2 and reason in ran.stderr


def test_masks_made_in_another_way_are_not_resumed(models, images, tmp_path, rsp):
    argv = ("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "m", "--resume", "--no_web_ui")
    assert rsp(*argv).code == 0
    for flags, reason in (
        (("--tta", "flips"), "12 masks of another tta (none, this one is flips)"),
        (("--threshold", 0.4), "12 masks of another threshold (none, this one is {'building': 0.4})"),
    ):
        ran = rsp(*argv, *flags)
        assert ran.code == 1 and reason in ran.stderr, ran.stderr
        assert rsp(*argv[:-2], *flags).code == 0 and rsp(*argv, *flags).code == 0
        assert rsp(*argv[:-2]).code == 0
    (tmp_path / "m" / "metadata.json").write_text('{"format": "png"}')  # of a version that had no choice
    assert rsp(*argv).code == 0


def test_tiles_of_another_zoom_are_said(images, tmp_path, rsp):
    labels = make_tileset(tmp_path / "labels", draw=squares)
    for zoom, words in ((15, None), (16, "larger"), (14, "smaller")):
        model = make_checkpoint(tmp_path / f"{zoom}.safetensors", replace(make_card(), zoom=zoom))
        ran = rsp("predict", "--checkpoint", model, images, tmp_path / "m")
        also = rsp("evaluate", "--checkpoint", model, labels, images, tmp_path / "e")
        for each in (ran, also):
            assert each.code == 0
            warned = f"warning: {images} is of zoom 15, and the model was trained on zoom {zoom}" in each.stderr
            assert warned == (words is not None) and (words or "") in each.stderr


def test_several_devices_give_the_same_files(models, images, tmp_path):
    """Two of them, each with batches of its own; a CPU stands for a GPU."""
    for device, size in (("cpu", 1), ("cpu,cpu", 2), ("cpu,cpu,cpu", 5)):
        out = tmp_path / f"{device}.pmtiles"
        predict(images, out, checkpoint=models["pt2"], device=device, batch_size=size, web_ui=False)
    assert len({path.read_bytes() for path in tmp_path.glob("*.pmtiles")}) == 1


def test_each_device_takes_batches(models, images, tmp_path, monkeypatch):
    took, answers = set(), Ensemble.answers

    def noted(self, windows, overlap, **options):
        took.add(id(self))
        return answers(self, windows, overlap, **options)

    monkeypatch.setattr(Ensemble, "answers", noted)
    predict(images, tmp_path / "m", checkpoint=models["jit"], device="cpu, cpu", batch_size=1, web_ui=False)
    assert len(took) == 2
