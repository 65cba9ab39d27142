"""rsp evaluate: every measure beside one that is worked out from one stitched image, and what it writes."""

from __future__ import annotations

import csv
import json
import math
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rsp.components.evaluate.boundary import Width
from rsp.components.evaluate.calibration import brier, brier_of_class, levels_of
from rsp.components.evaluate.component import evaluate as evaluate_component
from rsp.components.evaluate.tool import EvaluateResult, evaluate
from rsp.components.evaluate.work import Evaluator, Job
from rsp.components.predict.tool import predict
from rsp.shared.bootstrap import Gathering, draws
from rsp.shared.config import ClassDef
from rsp.shared.covers import Cover
from rsp.shared.errors import ConfigError, CoverError, ModelError, RspError, TileError, TileSetError, UsageError
from rsp.shared.images import Mask, encode, encode_mask
from rsp.shared.learning.encoded import probability_bytes
from rsp.shared.learning.inference import load_predictor
from rsp.shared.learning.windows import TileImages, read_window
from rsp.shared.metrics import IGNORE, confusion
from rsp.shared.page import PAGE_BYTES
from rsp.shared.tiles import Tile, neighbours, write_cover
from rsp.shared.tileset import classes_metadata, open_reader, open_writer
from tests.browser import chromium
from tests.networks import COLORS, IMAGES, make_blurred
from tests.tilesets import CONFIG, make_tileset, noise

SIDE, ZOOM = 32, 15
COLUMNS, ROWS = range(100, 106), range(200, 208)
# Two of the block have no tile, so that an edge of the area runs through its middle.
HOLE = [Tile(102, 203, ZOOM), Tile(105, 207, ZOOM)]
AREA = [Tile(x, y, ZOOM) for x in COLUMNS for y in ROWS if Tile(x, y, ZOOM) not in HOLE]
SHAPE = (len(ROWS) * SIDE, len(COLUMNS) * SIDE)
CLASSES = [ClassDef(title, COLORS[index]) for index, title in enumerate(("background", "building", "road"))]


def blobs(seed: int) -> Mask:
    """Three classes in blobs that know no tiles."""
    rng = np.random.default_rng(seed)
    found = np.zeros(SHAPE, np.uint8)
    for _ in range(60):
        top, left = rng.integers(0, SHAPE[0]), rng.integers(0, SHAPE[1])
        height, width = rng.integers(4, 30, 2)
        found[top : top + height, left : left + width] = rng.integers(0, 3)
    return found


def cut(whole: np.ndarray, tile: Tile) -> np.ndarray:
    top, left = (tile.y - ROWS[0]) * SIDE, (tile.x - COLUMNS[0]) * SIDE
    return whole[top : top + SIDE, left : left + SIDE]


def write(path: Path, whole: np.ndarray, tiles=AREA, classes=CLASSES, **more) -> Path:
    """Write one image as tiles: class indices as labels or masks are, anything else as TIFF."""
    flat = whole.ndim == 2
    with open_writer(path, "png" if flat else "tif") as writer:
        writer.describe(({"classes": classes_metadata(classes)} if flat and classes else {}) | more)
        for tile in tiles:
            image = cut(whole, tile)
            if flat and image.max() >= len(COLORS):
                writer.write(tile, encode(image[:, :, np.newaxis], "png"))
            else:
                writer.write(tile, encode_mask(image, COLORS) if flat else encode(image, "tif"))
    return path


def shares(mask: Mask, seed: int = 5) -> np.ndarray:
    """Probabilities whose highest is that of the mask, as bytes."""
    rng = np.random.default_rng(seed)
    raw = rng.random((*mask.shape, 3)) ** 3 + 0.01
    top = raw.argmax(2)
    rows, columns = np.indices(mask.shape)
    ours, highest = raw[rows, columns, mask].copy(), raw[rows, columns, top].copy()
    raw[rows, columns, mask], raw[rows, columns, top] = highest, ours
    return np.rint(raw / raw.sum(2, keepdims=True) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("evaluate")
    label, mask = blobs(1), blobs(1)
    noisy = np.random.default_rng(2).random(SHAPE) < 0.03
    mask[noisy] = blobs(2)[noisy]
    mask = np.roll(mask, 2, axis=1)
    label[40:60, 10:70] = IGNORE  # across a border of tiles
    label[150:170, 120:] = IGNORE
    found = SimpleNamespace(root=root, label=label, mask=mask, shares=shares(mask))
    found.labels, found.masks = write(root / "labels", label), write(root / "masks.pmtiles", mask)
    found.probabilities = write(root / "probabilities.pmtiles", found.shares)
    found.images = make_tileset(root / "images.pmtiles", AREA, draw=lambda tile: noise(tile, SIDE))
    return found


def run(made, out: Path, **more) -> EvaluateResult:
    return evaluate(made.labels, [out], **{"masks": made.masks, "workers": 1} | more)


@pytest.fixture(scope="module")
def result(made) -> EvaluateResult:
    out = made.root / "out"
    return run(made, out, probabilities=made.probabilities, images=made.images, block=2)


# --- the measures, from one image ----------------------------------------------------------------------


def known(label: Mask, tiles=AREA) -> np.ndarray:
    inside = np.zeros(SHAPE, bool)
    for tile in tiles:
        cut(inside, tile)[:] = True
    return inside & (label != IGNORE)


def near(plane: np.ndarray, distance: int) -> np.ndarray:
    """Whether anything is set within a distance, straight or diagonal; looks at every pixel of the square."""
    height, width = plane.shape
    padded = np.pad(plane, distance)
    found = np.zeros_like(plane)
    for dy in range(2 * distance + 1):
        for dx in range(2 * distance + 1):
            found |= padded[dy : dy + height, dx : dx + width]
    return found


def boundary_iou(label: Mask, mask: Mask, seen: np.ndarray, index: int, distance: int) -> float:
    edges = [seen & (each == index) & near(seen & (each != index), distance) for each in (label, mask)]
    return (edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum()


def mean(values) -> float:
    return sum(values) / len(values)


def test_the_measures_of_one_image(made, result):
    seen = known(made.label)
    truth, found = made.label[seen].tolist(), made.mask[seen].tolist()
    pairs = [[0] * 3 for _ in range(3)]
    for ours, theirs in zip(truth, found, strict=True):
        pairs[ours][theirs] += 1
    assert result.confusion == pairs and result.pixels == len(truth)
    assert (result.tiles, result.ignored) == (len(AREA), len(AREA) * SIDE**2 - len(truth))
    each = []
    for k in range(3):
        hit = sum(a == b == k for a, b in zip(truth, found, strict=True))
        missed = sum(a == k != b for a, b in zip(truth, found, strict=True))
        wrong = sum(b == k != a for a, b in zip(truth, found, strict=True))
        right = len(truth) - hit - missed - wrong
        root = math.sqrt((hit + wrong) * (hit + missed) * (right + wrong) * (right + missed))
        each.append(
            {
                "iou": hit / (hit + missed + wrong), "f1": 2 * hit / (2 * hit + missed + wrong),
                "precision": hit / (hit + wrong), "recall": hit / (hit + missed),
                "mcc": (hit * right - wrong * missed) / root, "accuracy": (hit + right) / len(truth),
                "boundary_iou": boundary_iou(made.label, made.mask, seen, k, 1),
            }
        )  # fmt: skip
    for expected, row, title in zip(each, result.classes, ("background", "building", "road"), strict=True):
        assert row["title"] == title and not row["ignored"]
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12), title
    for name in ("iou", "f1", "precision", "recall", "boundary_iou"):
        assert getattr(result, name) == pytest.approx(mean([row[name] for row in each[1:]]), rel=1e-12), name
    assert result.miou == pytest.approx(mean([row["iou"] for row in each]))
    assert result.accuracy == sum(a == b for a, b in zip(truth, found, strict=True)) / len(truth)
    # Gorodkin's R_K is Pearson's coefficient of the two sets of indicators.
    x, y = (np.eye(3)[values] - np.eye(3)[values].mean(0) for values in (truth, found))
    assert result.mcc == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


@pytest.mark.parametrize("distance", [1, 3, 8, 31])
def test_boundaries_go_on_across_the_borders_of_tiles(made, tmp_path, distance):
    """As in one image of which the rest is unknown; with eight pixels seen from each neighbour, corners too."""
    found = run(made, tmp_path / "m.json", boundary=str(distance))
    assert found.boundary_pixels == [distance, distance]
    for index, row in enumerate(found.classes):
        expected = boundary_iou(made.label, made.mask, known(made.label), index, distance)
        assert row["boundary_iou"] == pytest.approx(expected, rel=1e-12), row["title"]


def test_a_tile_that_cannot_be_read_keeps_nothing(made, tmp_path, uncollected):
    """Its error is kept, and raised anew for each neighbour: with its traceback it would keep what these saw."""
    labels, corrupt = write(tmp_path / "labels", made.label), Tile(103, 202, ZOOM)
    (labels / f"{ZOOM}/{corrupt.x}/{corrupt.y}.png").write_bytes(b"corrupt")
    evaluator = Evaluator(Job(labels, made.masks, None, Cover.of(AREA), 3, (), Width(1, "px")))
    beside = [tile for tile in neighbours(corrupt).values() if tile in AREA]
    seen = [weakref.ref(evaluator._around(tile, 1).label) for tile in beside]
    evaluator.close()
    assert len(seen) > 4 and [each() for each in seen] == [None] * len(seen)


def test_how_wide_a_boundary_is():
    tile = Tile(17000, 11000, ZOOM)  # 50 degrees north: a metre is 1.56 of EPSG:3857
    size = 40075016.686 / 2**ZOOM * math.cos(math.radians(50.9)) / 256
    for text, expected in (
        ("7", 7), ("7px", 7), ("2%", 7), ("2.1%", 8), ("0.1%", 1), ("20m", round(20 / size)), ("0.1m", 1)
    ):  # fmt: skip
        assert Width.parse(text).pixels(tile, 256, 256) == expected, text
    assert Width.parse("2%").pixels(tile, 512, 512) == 14
    assert str(Width.parse("0.5m")) == "0.5m" and str(Width.parse("7")) == "7px"
    for text in ("", "0", "1.5", "-2", "3 km", "60%", "x", "nan"):
        with pytest.raises(UsageError, match="--boundary is a number of pixels"):
            Width.parse(text)
    with pytest.raises(TileError, match="a boundary of 256 pixels is as wide as the tile, which has 256x256"):
        Width.parse("256").pixels(tile, 256, 256)


def test_calibration(made, result):
    """In 15 bins with their upper ends, from fractions, pixel by pixel."""
    seen = known(made.label)
    truth, found, shares = made.label[seen], made.mask[seen], made.shares[seen] / 255
    edges = [number / 15 for number in range(16)]

    def bins(confidence, right):
        rows = []
        for low, high in pairwise(edges):
            inside = (confidence > low + 1e-12) & (confidence <= high + 1e-12)
            if low == 0:
                inside |= confidence == 0
            count = int(inside.sum())
            rows.append((count, confidence[inside].mean(), right[inside].mean()) if count else (0, None, None))
        return rows

    def ece(rows):
        return sum(n * abs(share - right) for n, share, right in rows if n) / len(truth)

    confidence = shares[np.arange(len(found)), found]
    expected = {"predicted class": bins(confidence, truth == found)}
    for index, entry in enumerate(CLASSES):
        expected[entry.title] = bins(shares[:, index], truth == index)
    for title, rows in expected.items():
        ours = result.reliability[title]
        assert [each["pixels"] for each in ours] == [count for count, *_ in rows]
        for each, (count, share, right) in zip(ours, rows, strict=True):
            if count:
                assert (each["confidence"], each["accuracy"]) == pytest.approx((share, right))
            else:
                assert math.isnan(each["confidence"])
    assert result.ece == pytest.approx(ece(expected["predicted class"]))
    assert result.brier == pytest.approx(((shares - np.eye(3)[truth]) ** 2).sum(1).mean())
    for index, row in enumerate(result.classes):
        assert row["ece"] == pytest.approx(ece(expected[row["title"]]))
        assert row["brier"] == pytest.approx(((shares[:, index] - (truth == index)) ** 2).mean())


def test_the_brier_score_of_two_classes_is_that_of_either():
    label, share = np.array([[0, 1, 1, IGNORE]], np.uint8), np.array([[51, 255, 102, 0]], np.uint8)
    mask, both = (share > 127).astype(np.uint8), np.stack([255 - share, share])
    levels = levels_of(label, mask, both)
    assert brier(levels) == pytest.approx((0.2**2 + 0 + 0.6**2) / 3) == brier_of_class(levels[1])
    assert levels.sum((1, 2)).tolist() == [3 + 1, 3 + 2, 3 + 2]


def test_intervals_are_those_of_draws_of_blocks(made, result):
    """Beside a bootstrap in loops, with dice of its own."""
    rng, blocks = np.random.default_rng(9), {}
    for tile in AREA:
        label, mask = cut(made.label, tile).ravel(), cut(made.mask, tile).ravel()
        matrix = np.zeros((3, 3), int)
        np.add.at(matrix, (label[label != IGNORE], mask[label != IGNORE]), 1)
        blocks.setdefault((tile.x // 2, tile.y // 2), []).append(matrix)
    sums = [sum(each) for each in blocks.values()]
    assert result.blocks == len(sums) == 12
    drawn = []
    for _ in range(2000):
        total = sum(sums[index] for index in rng.integers(0, len(sums), len(sums)))
        ious = [total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in (1, 2)]
        drawn.append((mean(ious), ious[0], np.trace(total) / total.sum()))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    near = float(np.std(drawn)) / 4
    ours = [result.intervals["iou"], [result.classes[1][key] for key in ("iou_low", "iou_high")]]
    for (lower, upper), column in zip([*ours, result.intervals["accuracy"]], range(3), strict=True):
        assert (lower, upper) == (pytest.approx(low[column], abs=near), pytest.approx(high[column], abs=near))
    assert set(result.intervals) == set(result.measures()) - {"ece", "brier"} - {
        f"{name}_{entry.title}" for name in ("iou", "boundary_iou") for entry in CLASSES
    }


def test_draws_are_those_of_the_seed_and_the_blocks(made, result, tmp_path):
    same = run(made, tmp_path / "a.json", block=2)
    assert same.intervals == result.intervals
    blocks = Gathering(2)
    for tile in AREA:
        blocks.add(tile, confusion(cut(made.label, tile), cut(made.mask, tile), 3))
    shares = [np.trace(total) / total.sum() for (total,) in draws(blocks.blocks().counts, seed=0)]
    assert result.intervals["accuracy"] == np.quantile(shares, (0.025, 0.975)).tolist()
    assert run(made, tmp_path / "b.json", block=2, seed=1).intervals != same.intervals
    larger = run(made, tmp_path / "c.json")
    assert larger.blocks == 4 and larger.intervals == {} and math.isnan(larger.classes[1]["iou_low"])
    assert larger.iou == same.iou and run(made, tmp_path / "d.json", block=3).blocks > 4


# --- what is not looked at ----------------------------------------------------------------------


def test_what_is_ignored_says_nothing(made, tmp_path):
    """What is predicted there, and how surely, changes no byte; nor does what was labelled as such a class."""
    hidden = ~known(made.label)
    mask, shares = made.mask.copy(), made.shares.copy()
    mask[hidden], shares[hidden] = 2 - mask[hidden], 255 - shares[hidden]
    other = write(tmp_path / "masks", mask), write(tmp_path / "probabilities", shares)
    for name, (masks, probabilities) in {"a": (made.masks, made.probabilities), "b": other}.items():
        run(made, tmp_path / f"{name}.json", masks=masks, probabilities=probabilities)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    everything = write(tmp_path / "unknown", np.full(SHAPE, IGNORE, np.uint8))
    with pytest.raises(TileSetError, match="no pixel of the labels of 46 tiles counts"):
        evaluate(everything, [tmp_path / "c.json"], masks=made.masks, workers=1)
    assert not (tmp_path / "c.json").exists()


def ignoring(index: int) -> list[ClassDef]:
    return [replace(entry, ignore=number == index) for number, entry in enumerate(CLASSES)]


def test_a_class_to_ignore_is_the_label_255(made, tmp_path):
    """By the labels, by the masks, or by a configuration; what it would have counted for is in no mean."""
    unknown = np.where(made.label == 2, IGNORE, made.label).astype(np.uint8)
    labels = write(tmp_path / "unknown", unknown)
    plain = evaluate(labels, [tmp_path / "a.json"], masks=made.masks, workers=1)
    sets = {
        "labels": (write(tmp_path / "labels", made.label, classes=ignoring(2)), made.masks, None),
        "masks": (made.labels, write(tmp_path / "masks", made.mask, classes=ignoring(2)), None),
        "configuration": (made.labels, made.masks, tmp_path / "config.toml"),
    }
    tables = [f'[[classes]]\ntitle = "{each.title}"\ncolor = "red"\n' for each in CLASSES]
    head = '[[channels]]\nname = "images"\nbands = [1, 2, 3]\n'
    (tmp_path / "config.toml").write_text(head + "".join(tables) + "ignore = true\n")
    for who, (labels, masks, config) in sets.items():
        out = [tmp_path / f"{who}.json", tmp_path / f"{who}.html"]
        found = evaluate(labels, out, masks=masks, config=config, workers=1)
        assert found.confusion == plain.confusion and found.ignored == plain.ignored > 0, who
        assert [row["ignored"] for row in found.classes] == [False, False, True]
        building = found.classes[1]
        assert (found.iou, found.f1, found.boundary_iou) == (
            building["iou"], building["f1"], building["boundary_iou"]
        ), who  # fmt: skip
        assert found.miou == pytest.approx(mean([row["iou"] for row in found.classes[:2]]))
        assert "iou_road" not in found.measures()
        assert "pixels labelled road are not looked at" in out[1].read_text(), who
    (tmp_path / "config.toml").write_text(head + "".join(tables))
    heard = evaluate(sets["labels"][0], out[:1], masks=made.masks, config=tmp_path / "config.toml", workers=1)
    assert not any(row["ignored"] for row in heard.classes), "a configuration that is given has the last word"


def test_without_a_background_every_class_counts(made, tmp_path):
    masks = write(tmp_path / "masks", made.mask, background=False)
    found = run(made, tmp_path / "a.json", masks=masks)
    assert found.iou == found.miou == pytest.approx(mean([row["iou"] for row in found.classes]))
    assert (found.f1, found.boundary_iou) != (
        run(made, tmp_path / "b.json").f1,
        run(made, tmp_path / "c.json").boundary_iou,
    )


# --- from a checkpoint ----------------------------------------------------------------------

BLOCK = [Tile(x, y, ZOOM) for x in range(100, 104) for y in range(200, 204)]
LABELLED = [*BLOCK[:6], *BLOCK[7:]]


def bright(tile: Tile) -> Mask:
    return (noise(tile)[:, :, 0] > 120).astype(np.uint8)


@pytest.fixture(scope="module")
def modelled(tmp_path_factory) -> SimpleNamespace:
    """A model, images, labels of all of them but one, and what `predict` makes of them."""
    root = tmp_path_factory.mktemp("modelled")
    images = make_tileset(root / "images", BLOCK)
    labels = make_tileset(
        root / "labels", LABELLED, draw=lambda tile: (noise(tile)[:, :, 0] > 120).astype(np.uint8)
    )
    write_cover(root / "cover", LABELLED)
    model = make_blurred(root / "model.safetensors")
    predict(images, root / "masks", checkpoint=model, cover=root / "cover", web_ui=False)
    predictor = load_predictor(model, device="cpu")
    with open_reader(images) as reader, open_writer(root / "shares.pmtiles", "tif") as writer:
        tiles = TileImages({"images": reader}, [IMAGES])
        for tile in LABELLED:
            (scores,) = predictor.probabilities([read_window(tiles, tile, 16)], 16)
            writer.write(tile, encode(np.moveaxis(probability_bytes(scores), 0, 2), "tif"))
    return SimpleNamespace(root=root, images=images, labels=labels, model=model, cover=root / "cover")


def test_a_checkpoint_is_its_masks_and_probabilities(modelled, tmp_path):
    """To the last byte, whatever the number of workers: the page has the same pictures."""
    m = modelled
    more = {"images": m.images, "cover": m.cover, "block": 1}
    for workers in (0, 3):
        out = [tmp_path / str(workers)]
        evaluate(m.labels, out, checkpoint=m.model, workers=workers, **more)
        assert list(tmp_path.iterdir()) == [*out], "nothing is left of the masks"
        out[0].rename(m.root / f"out{workers}")
    evaluate(m.labels, [tmp_path / "x"], masks=m.root / "masks", probabilities=m.root / "shares.pmtiles", **more)
    names = {"metrics.json", "tiles.csv", "classes.csv", "confusion.csv", "reliability.csv", "index.html"}
    for folder in (m.root / "out0", m.root / "out3"):
        assert {path.name for path in folder.iterdir()} == names
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / "x" / path.name).read_bytes(), path


def test_tiles_that_are_too_small_for_a_boundary(modelled, tmp_path):
    """They count in no number, the calibration of a model among them."""
    m = modelled

    def side(tile: Tile) -> int:
        return 64 if tile.x < 103 else 16

    images = make_tileset(tmp_path / "images", LABELLED, draw=lambda tile: noise(tile, side(tile)))
    labels = make_tileset(
        tmp_path / "labels", LABELLED, draw=lambda tile: bright(tile)[: side(tile), : side(tile)]
    )
    found = evaluate(labels, [tmp_path / "m.json"], checkpoint=m.model, images=images, boundary="20", workers=0)
    assert len(found.failed) == 4 and "as wide as the tile" in min(found.failed.values())
    bins = found.reliability["predicted class"]
    assert sum(each["pixels"] for each in bins) == found.pixels == 64 * 64 * (len(LABELLED) - 4)


def test_a_model_without_a_background_says_so_in_its_masks(modelled, tmp_path):
    model = make_blurred(tmp_path / "model.safetensors", background=False)
    predict(modelled.images, tmp_path / "masks", checkpoint=model, web_ui=False)
    more = {"cover": modelled.cover, "workers": 0}
    ours = evaluate(modelled.labels, [tmp_path / "a"], checkpoint=model, images=modelled.images, **more)
    theirs = evaluate(modelled.labels, [tmp_path / "b"], masks=tmp_path / "masks", **more)
    assert ours.iou == ours.miou == theirs.iou


def test_the_options_of_a_prediction_are_heard(modelled, tmp_path, monkeypatch):
    m, seen = modelled, {}
    from rsp.shared.learning import local

    class Spy(local.Local):
        def __init__(self, path, **options):
            seen.update(options)
            super().__init__(path, **options)

    monkeypatch.setattr(local, "Local", Spy)
    plain = evaluate(m.labels, [tmp_path / "a.json"], checkpoint=m.model, images=m.images, cover=m.cover)
    assert (seen["batch_size"], seen["trust_model"], seen["precision"]) == (None, False, "float32")
    more = {"batch_size": 3, "trust_model": True, "tile_overlap": 0, "device": "cpu"}
    other = evaluate(m.labels, [tmp_path / "b.json"], checkpoint=m.model, images=m.images, cover=m.cover, **more)
    assert (seen["batch_size"], seen["trust_model"], seen["device"]) == (3, True, "cpu")
    predict(m.images, tmp_path / "masks", checkpoint=m.model, cover=m.cover, tile_overlap=0, web_ui=False)
    beside = evaluate(m.labels, [tmp_path / "c.json"], masks=tmp_path / "masks", cover=m.cover)
    assert other.confusion == beside.confusion != plain.confusion
    with pytest.raises(ModelError, match="no device 'cuda:7'"):
        evaluate(m.labels, [tmp_path / "d.json"], checkpoint=m.model, images=m.images, device="cuda:7")
    with pytest.raises(RspError):  # a processor without bfloat16 says so, another one computes in it
        found = evaluate(
            m.labels, [tmp_path / "e.json"], checkpoint=m.model, images=m.images, cover=m.cover,
            precision="bfloat16",
        )  # fmt: skip
        assert seen["precision"] == "bfloat16" and found.confusion
        raise RspError


def test_a_model_of_other_classes(modelled, tmp_path):
    other = write(tmp_path / "labels", np.zeros(SHAPE, np.uint8), BLOCK, CLASSES)
    with pytest.raises(UsageError, match=r"labels has the classes background, building, road, and the model has"):
        evaluate(other, [tmp_path / "m.json"], checkpoint=modelled.model, images=modelled.images)


def test_tiles_that_cannot_be_predicted(modelled, tmp_path, rsp):
    """They are listed, and the others are evaluated as if these were not there."""
    m = modelled
    images = make_tileset(tmp_path / "images", BLOCK)
    (images / "15/101/201.png").write_bytes(b"rubbish")
    ran = rsp("evaluate", "--checkpoint", m.model, "--cover", m.cover, m.labels, images, tmp_path / "out")
    assert ran.code == 3 and "failed: 1" in ran.stderr
    assert (tmp_path / "out.failed.csv").read_text() == "101,201,15\n"
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["tiles"] == len(LABELLED) - 1 and len(found["failed"]) == 1
    assert "tiles that failed" in (tmp_path / "out/index.html").read_text()


# --- what is refused ----------------------------------------------------------------------


def test_what_does_not_belong_together(made, tmp_path, rsp):
    far = write(tmp_path / "far", made.mask, AREA, CLASSES)
    small = make_tileset(tmp_path / "small", AREA, draw=lambda tile: np.zeros((16, 16), np.uint8))
    fewer = write(tmp_path / "fewer", made.mask, AREA[:-3])
    other = write(tmp_path / "other", made.mask, AREA, [*CLASSES[:2], ClassDef("water", COLORS[3])])
    many = write(tmp_path / "many", np.full(SHAPE, 3, np.uint8))
    zoomed = make_tileset(tmp_path / "zoomed", [Tile(1, 1, 3)], draw=lambda tile: np.zeros((16, 16), np.uint8))
    two = make_tileset(tmp_path / "two", AREA, draw=lambda tile: noise(tile, SIDE, 3))
    wide = make_tileset(tmp_path / "wide", AREA, "tif", draw=lambda tile: noise(tile, SIDE, 2))
    out = tmp_path / "out"
    sets = made.labels, made.masks
    cases = {
        (made.labels, small): (
            1,
            "the label has 32x32 pixels, the mask 16x16: make the labels as large as the masks",
        ),
        (made.labels, fewer): (1, "fewer lacks 3 of the 46 tiles of"),
        (fewer, made.masks): (1, "fewer lacks 3 of the 46 tiles of"),
        (made.labels, other): (2, "background, building, water"),
        (made.labels, many): (1, "the mask holds class 3; there are 3 classes"),
        (many, made.masks): (1, "the label holds class 3; there are 3 classes"),
        (made.labels, zoomed): (1, "has tiles of zoom 15, "),
        (made.labels, two): (1, "a mask is a single-band image"),
        ("--probabilities", wide, *sets): (1, "expected probabilities of 32x32 pixels with 3 bands of uint8"),
        ("--boundary", "3 km", *sets): (2, "--boundary is a number of pixels"),
        ("--boundary", 40, *sets): (1, "a boundary of 40 pixels is as wide as the tile"),
        ("--block", 0, *sets): (2, "--block must be at least 1"),
        ("--device", "cpu", *sets): (2, "--device is for --checkpoint"),
        ("--precision", "bfloat16", *sets): (2, "--precision is for --checkpoint"),
        ("--masks", far, "--checkpoint", far, "--images", far, "--labels", far): (2, "exactly one of"),
        ("--checkpoint", far, "--probabilities", far, *sets): (2, "a checkpoint has its own"),
        ("--labels", made.labels, "--masks", far, far): (2, "expected no further place, got"),
    }
    for words, (code, text) in cases.items():
        ran = rsp("evaluate", "--workers", 0, *words, "--out", out)
        assert (ran.code, text in ran.stderr) == (code, True), ran.stderr
        assert not any(path.is_file() for path in out.rglob("*")) and "Traceback" not in ran.stderr
    for words, text in (
        (("a", "b"), "expected LABELS MASKS OUT, got a b"),
        (("--checkpoint", "c", "a"), "expected LABELS IMAGES OUT, got a"),
        (("--checkpoint", "c", "--labels", "a", "b"), "expected IMAGES OUT, got b"),
        (
            ("a", "b", "out.png"),
            "cannot write out.png: the output is an evaluation (.json, .csv, .html or no suffix",
        ),
        ((made.labels, made.masks, made.labels), "is the input"),
    ):
        ran = rsp("evaluate", *words)
        assert ran.code == 2 and text in ran.stderr, ran.stderr


def test_mixed_zooms(made, tmp_path):
    both = make_tileset(
        tmp_path / "both", [AREA[0], Tile(1, 1, 3)], draw=lambda tile: np.zeros((16, 16), np.uint8)
    )
    with pytest.raises(CoverError, match="zoom"):
        evaluate(both, [tmp_path / "m.json"], masks=made.masks)


def test_a_part_by_a_cover(made, tmp_path):
    """Its neighbours are not looked at, even where they are there."""
    write_cover(tmp_path / "cover", AREA[:9])
    found = run(made, tmp_path / "m.json", cover=tmp_path / "cover", boundary="12")
    seen = known(made.label, AREA[:9])
    assert found.tiles == 9 and found.pixels == int(seen.sum())
    for index, row in enumerate(found.classes):
        assert row["boundary_iou"] == pytest.approx(boundary_iou(made.label, made.mask, seen, index, 12)), index


def test_classes_of_a_configuration(made, tmp_path, monkeypatch):
    monkeypatch.delenv("RSP_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    sets = [write(tmp_path / name, whole, AREA[:4], None) for name, whole in (("l", made.label), ("m", made.mask))]
    with pytest.raises(ConfigError, match="do not say which classes they hold"):
        evaluate(sets[0], [tmp_path / "m.json"], masks=sets[1])
    tables = [f'[[classes]]\ntitle = "{title}"\ncolor = "red"\n' for title in ("background", "house", "way")]
    head = '[[channels]]\nname = "images"\nbands = [1, 2, 3]\n'
    (tmp_path / "config.toml").write_text(head + "".join(tables))
    found = evaluate(sets[0], [tmp_path / "m.json"], masks=sets[1], config=tmp_path / "config.toml")
    assert [row["title"] for row in found.classes] == ["background", "house", "way"]


# --- what is written ----------------------------------------------------------------------


def test_everything_in_a_folder(made, result):
    out = made.root / "out"
    found = json.loads((out / "metrics.json").read_text())
    assert found == json.loads(json.dumps(result.as_dict()))
    rows = list(csv.DictReader((out / "tiles.csv").open()))
    assert {(int(row["x"]), int(row["y"])) for row in rows} == {(tile.x, tile.y) for tile in AREA}
    assert len(rows) == len(AREA) and sum(int(row["pixels"]) for row in rows) == result.pixels
    (row,) = [row for row in rows if (row["x"], row["y"]) == ("103", "204")]
    label, mask = (cut(each, Tile(103, 204, ZOOM)) for each in (made.label, made.mask))
    seen = label != IGNORE
    assert int(row["ignored"]) == (~seen).sum() > 0
    assert float(row["accuracy"]) == pytest.approx((label[seen] == mask[seen]).mean(), abs=1e-6)
    for index, entry in enumerate(CLASSES):
        ours, theirs = (each[seen] == index for each in (label, mask))
        text = row[f"iou_{entry.title}"]
        expected = (ours & theirs).sum() / (ours | theirs).sum() if (ours | theirs).any() else None
        assert (float(text) if text else None) == pytest.approx(expected, abs=1e-6)
    confidence = cut(made.shares, Tile(103, 204, ZOOM))[seen] / 255
    expected = ((confidence - np.eye(3)[label[seen]]) ** 2).sum(1).mean()
    assert float(row["brier"]) == pytest.approx(expected, abs=1e-6)
    classes = list(csv.DictReader((out / "classes.csv").open()))
    assert [row["title"] for row in classes] == ["background", "building", "road"]
    assert float(classes[1]["iou"]) == pytest.approx(result.classes[1]["iou"], abs=1e-6)
    head, *matrix = csv.reader((out / "confusion.csv").open())
    assert head == ["label", "background", "building", "road"]
    assert [[int(cell) for cell in row[1:]] for row in matrix] == result.confusion
    bins = list(csv.DictReader((out / "reliability.csv").open()))
    assert len(bins) == 4 * 15 and sum(int(row["pixels"]) for row in bins) == 4 * result.pixels


def test_files_by_their_suffix(made, rsp, tmp_path):
    """The same bytes as in a folder, by any number of processes; nothing beside them."""
    sets = ["--images", made.images, "--probabilities", made.probabilities, "--block", 2, made.labels, made.masks]
    names = {"a.json": "metrics.json", "b.csv": "tiles.csv", "c.html": "index.html"}
    assert rsp("evaluate", *sets, *(tmp_path / name for name in names)).code == 0
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for name, part in names.items():
        assert (tmp_path / name).read_bytes() == (made.root / "out" / part).read_bytes(), name


def test_several_processes(made, tmp_path, monkeypatch):
    from rsp.components.evaluate import work

    monkeypatch.setattr(work, "TILES_A_PROCESS", 1)
    monkeypatch.setattr(work, "BATCH", 7)
    run(made, tmp_path / "out", probabilities=made.probabilities, images=made.images, block=2, workers=2)
    for path in (made.root / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path


def test_an_earlier_evaluation_leaves_nothing(made, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/reliability.csv").write_text("old")
    (tmp_path / "out/notes.txt").write_text("mine")
    run(made, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json", "tiles.csv", "classes.csv", "confusion.csv", "index.html", "notes.txt"
    }  # fmt: skip
    assert "ece" not in (tmp_path / "out/tiles.csv").read_text()
    assert "Calibration" not in (tmp_path / "out/index.html").read_text()


def test_the_worst_tiles(made, result):
    text = (made.root / "out/index.html").read_text()
    wrong = {}
    for tile in AREA:
        seen = cut(made.label, tile) != IGNORE
        if seen.any():
            wrong[tile] = (cut(made.label, tile)[seen] != cut(made.mask, tile)[seen]).mean()
    worst = sorted(AREA, key=lambda tile: (-wrong.get(tile, 0), tile))[:24]
    places = [text.index(f"{ZOOM}/{tile.x}/{tile.y}: {wrong[tile]:.1%} of the pixels wrong") for tile in worst]
    assert places == sorted(places) and text.count("<img ") == 24
    assert "From left to right: image, label and mask." in text and len(text) < PAGE_BYTES


def test_a_page_stays_small(made, tmp_path):
    """Noise of other sizes than the labels takes the most room: as many tiles are shown as there is room for."""
    images = make_tileset(tmp_path / "images", AREA, "jpg", draw=lambda tile: noise(tile, 192))
    large = [
        make_tileset(tmp_path / name, AREA, draw=lambda tile, seed=seed: noise(tile, 192)[:, :, seed] & 1)
        for seed, name in enumerate(("labels", "masks"))
    ]
    (tmp_path / "config.toml").write_text(CONFIG)
    evaluate(
        large[0],
        [tmp_path / "page.html"],
        masks=large[1],
        images=images,
        config=tmp_path / "config.toml",
        workers=1,
    )
    text = (tmp_path / "page.html").read_text()
    assert PAGE_BYTES * 0.8 < len(text) < PAGE_BYTES and 5 < text.count("<img ") < 24


def test_pictures_that_are_not_there(made, tmp_path):
    images = make_tileset(tmp_path / "images", [Tile(1, 1, ZOOM)])
    with pytest.raises(TileSetError, match=r"none of the 24 worst tiles can be shown; 15/"):
        run(made, tmp_path / "page.html", images=images)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.browser
def test_the_page_in_a_browser(made, result):
    """It asks nobody for anything, its pictures are seen, and each has a text."""
    with chromium() as browser:
        tab = browser.new_page()
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto((made.root / "out/index.html").as_uri())
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and said == []
        seen = tab.evaluate("[...document.images].map(each => [each.naturalWidth > 0, each.alt])")
        assert len(seen) == 24 and all(width and text for width, text in seen)
        assert tab.evaluate("document.documentElement.lang") == "en"
        plots = tab.evaluate("[...document.querySelectorAll('svg')].map(each => each.getAttribute('aria-label'))")
        assert plots[:4] == [
            f"reliability: {each}" for each in ("predicted class", "background", "building", "road")
        ]


def test_the_component(made, result, run_component):
    sets = {"labels": made.labels, "masks": made.masks, "probabilities": made.probabilities, "images": made.images}
    step = run_component(evaluate_component, sets, block=2)
    metrics = step.artifacts["metrics"]["metadata"]
    assert {name: metrics[name] for name in result.measures()} == pytest.approx(result.measures())
    matrix = step.artifacts["confusion"]["metadata"]["confusionMatrix"]
    assert [row["row"] for row in matrix["rows"]] == result.confusion
    for name, part in (("evaluation", "metrics.json"), ("tiles", "tiles.csv"), ("page", "index.html")):
        assert step.path(name).read_bytes() == (made.root / "out" / part).read_bytes(), name
    for name in ("metrics", "confusion"):
        assert step.path(name).is_file()
