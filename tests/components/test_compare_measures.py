"""The measures of `rsp compare`: by tile and class, as tables, as filters, and what comes first."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from rsp.components.compare.records import Records
from rsp.components.compare.tool import compare
from rsp.components.compare.work import Compared
from rsp.shared.errors import ConfigError, CoverError, UsageError
from rsp.shared.images import encode_mask
from rsp.shared.metrics import qod
from rsp.shared.tiles import Tile, read_cover
from rsp.shared.tileset import open_reader, open_writer
from tests.tilesets import BLOCK, CONFIG, make_tileset

TITLES = ["background", "building", "road", "unknown"]
MORE = """
[[classes]]
title = "road"
color = "grey"

[[classes]]
title = "unknown"
color = "black"
ignore = true
"""
SIZE = 16
# Of no tile are all classes there, and one has nothing at all.
EMPTY = BLOCK[5]


def drawn(tile: Tile, what: int) -> np.ndarray:
    rng = np.random.default_rng([tile.x, tile.y, what])
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if tile == EMPTY:
        return mask
    mask[: rng.integers(3, 12), : rng.integers(3, 12)] = 1
    if tile.x % 2:
        mask[12:, rng.integers(0, 8) :] = 2
    if what == 0:
        mask[0, :5] = 3  # unknown in the label
        mask[1, 0] = 255
    return mask


@pytest.fixture
def made(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG.replace("[model]", f"{MORE}\n[model]"))
    for what, name in enumerate(("labels", "masks")):
        with open_writer(tmp_path / name, "png") as writer:
            for tile in BLOCK:
                writer.write(tile, encode_mask(drawn(tile, what), [(0, 0, index) for index in range(256)]))
    return tmp_path


def scored(folder, **more):
    return {"labels": folder / "labels", "masks": folder / "masks", "config": folder / "config.toml", **more}


def by_hand(tiles, index: int) -> dict[str, float]:
    """The measures of a class on some tiles, from pixels: what the label does not know counts nowhere."""
    label, mask = (np.concatenate([drawn(tile, what).ravel() for tile in tiles]) for what in (0, 1))
    known = (label != 3) & (label != 255)
    ours, theirs = label[known] == index, mask[known] == index
    tp, fp, fn = (ours & theirs).sum(), (~ours & theirs).sum(), (ours & ~theirs).sum()
    tn = (~ours & ~theirs).sum()

    def ratio(a, b):
        return float(a / b) if b else math.nan

    fg, quality = qod(ours, theirs)
    return {
        "pixels": int(known.sum()), "labelled": int(tp + fn), "predicted": int(tp + fp), "agreed": int(tp),
        "iou": ratio(tp, tp + fp + fn), "precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": ratio(tp * tn - fp * fn, math.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        "fg": fg, "qod": quality,
    }  # fmt: skip


def of_tile(tile: Tile) -> tuple[float, float]:
    """Foreground and quality of a tile, of all classes but the background as one."""
    label, mask = drawn(tile, 0), drawn(tile, 1)
    known = (label != 3) & (label != 255)
    return qod(label[known] != 0, mask[known] != 0)


def ranked() -> list[Tile]:
    return sorted(BLOCK, key=lambda tile: (of_tile(tile)[1], -of_tile(tile)[0], tile))


def close(found, expected) -> bool:
    return (math.isnan(found) and math.isnan(expected)) or found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_of_tiles_and_classes(made, rsp, suffix):
    out = made / f"measures{suffix}"
    flags = ["--labels", made / "labels", "--masks", made / "masks", "--config", made / "config.toml"]
    ran = rsp("compare", "--mode", "list", *flags, "--metrics", out, made / "list")
    assert ran.code == 0, ran.stderr
    if suffix == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for name in row.keys() - {"class"}:
                row[name] = float(row[name]) if row[name] else math.nan
    else:
        table = pq.read_table(out)
        assert {str(table.schema.field(name).type) for name in ("x", "labelled", "agreed")} == {"int64"}
        assert {str(table.schema.field(name).type) for name in ("iou", "tile_qod")} == {"double"}
        values = [value for row in table.to_pylist() for value in row.values()]
        assert None in values and not any(value != value for value in values)  # undefined is null, not NaN
        rows = [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in table.to_pylist()
        ]
    # The worst tile first; of each a row for each class, but for the one to ignore.
    assert [(Tile(int(row["x"]), int(row["y"]), int(row["z"])), row["class"]) for row in rows] == [
        (tile, title) for tile in ranked() for title in TITLES[:3]
    ]
    undefined = 0
    for row in rows:
        tile = Tile(int(row["x"]), int(row["y"]), int(row["z"]))
        for name, expected in by_hand([tile], TITLES.index(row["class"])).items():
            assert close(row[name], expected), (tile, row["class"], name)
            undefined += math.isnan(expected)
        assert (row["tile_fg"], row["tile_qod"]) == pytest.approx(of_tile(tile), abs=1e-6)
    assert undefined > 10


def test_a_folder_has_everything(made):
    listed = [made / "folder", made / "all.json"]
    result = compare(made / "list", mode="list", metrics=listed, **scored(made))
    names = ["classes.csv", "classes.parquet", "metrics.json", "tiles.csv", "tiles.parquet"]
    assert sorted(path.name for path in (made / "folder").iterdir()) == names
    with (made / "folder" / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(made / "folder" / "classes.parquet").to_pylist()
    assert [row["class"] for row in rows] == [row["class"] for row in table] == TITLES[:3]
    for index, (row, other) in enumerate(zip(rows, table, strict=True)):
        expected = by_hand(BLOCK, index)
        for name in row.keys() - {"class"}:
            assert close(float(row[name]), expected[name]) and close(other[name], expected[name])
            assert close(result.by_class[TITLES[index]][name], expected[name])
    for name in ("iou", "precision", "recall", "f1"):
        mean = np.mean([by_hand(BLOCK, index)[name] for index in (1, 2)])
        assert getattr(result, name) == result.measures()[name] == pytest.approx(mean)
    told = json.loads((made / "all.json").read_text())
    assert told == json.loads((made / "folder" / "metrics.json").read_text()) == result.as_dict()
    assert told["by_class"]["road"]["f1"] == pytest.approx(by_hand(BLOCK, 2)["f1"])


@pytest.mark.parametrize("metric", ["iou", "precision", "recall", "f1", "mcc", "fg", "qod"])
@pytest.mark.parametrize("title", ["building", "road"])
def test_filters_by_a_measure_of_a_class(made, metric, title):
    """What is as the bound says passes, and what is undefined does not, from below as from above."""
    values = {tile: by_hand([tile], TITLES.index(title))[metric] for tile in BLOCK}
    defined = sorted(value for value in values.values() if not math.isnan(value))
    bound = sorted(set(defined))[len(set(defined)) // 2]
    if metric not in ("fg", "qod"):  # 0/0 is a number for none of the others
        assert len(defined) < len(BLOCK)
    for flag in ("minimum", "maximum"):
        chosen = {t for t, v in values.items() if (v >= bound if flag == "minimum" else v <= bound)}
        assert 0 < len(chosen) < len(BLOCK)
        limits = [(title.upper(), metric.upper(), bound)]
        result = compare(made / flag, mode="list", metrics=[made / "m.csv"], **scored(made, **{flag: limits}))
        near = {t for t, v in values.items() if abs(v - bound) < 1e-9}  # by another order of sums
        assert set(read_cover(made / flag)) - near == chosen - near
        assert result.tiles == 12 and result.written == len(read_cover(made / flag))
        rows = (made / "m.csv").read_text().splitlines()[1:]
        assert {Tile(*map(int, row.split(",")[:3])) for row in rows} == set(read_cover(made / flag))


def test_filters_add_up_at_the_command_line(made, rsp):
    make_tileset(made / "images", draw=lambda tile: np.zeros((SIZE, SIZE, 3), np.uint8))
    flags = ["--labels", made / "labels", "--masks", made / "masks", "--config", made / "config.toml"]
    bounds = [
        "--min",
        "building",
        "recall",
        0.3,
        "--min",
        "building",
        "mcc",
        -0.5,
        "--max",
        "building",
        "iou",
        0.8,
    ]
    ran = rsp("compare", "--images", made / "images", *flags, *bounds, "--maximum_fg", 60, "--out", made / "out")
    assert ran.code == 0, ran.stderr
    values = {tile: by_hand([tile], 1) for tile in BLOCK}
    chosen = [
        tile for tile, each in values.items()
        if each["recall"] >= 0.3 and each["mcc"] >= -0.5 and each["iou"] <= 0.8 and of_tile(tile)[0] <= 60
    ]  # fmt: skip
    assert 1 < len(chosen) < 10
    with open_reader(made / "out") as reader:
        assert reader.tiles() == sorted(chosen)
    # The list of the page has the worst first.
    features = json.loads((made / "out" / "tiles.json").read_text())["features"]
    listed = [Tile(*(each["properties"][name] for name in "xyz")) for each in features]
    assert listed == [tile for tile in ranked() if tile in chosen] != sorted(chosen)
    with pytest.raises(CoverError, match="none of the 12 tiles passes"):
        compare(made / "no", [made / "images"], **scored(made, minimum=[("building", "iou", 1)]))


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (("house", "iou", 0.5), ConfigError, r"no class 'house'; the classes are .*building"),
        (
            ("building", "dice", 0.5),
            UsageError,
            r"--min building dice 0.5: no metric 'dice'; the metrics are iou, ",
        ),
        (("building", "iou", 50), UsageError, r"--min building iou 50: iou is a number from 0 to 1"),
        (("building", "qod", -1), UsageError, r"qod is a number from 0 to 100"),
        (("building", "mcc", "x"), UsageError, r"mcc is a number from -1 to 1"),
        (("building", "iou", "nan"), UsageError, r"iou is a number from 0 to 1"),
        (("unknown", "iou", 0.5), UsageError, r"the pixels of unknown are ignored"),
        (("building", "iou"), UsageError, r"--min takes CLASS METRIC VALUE, as building iou 0.5, got"),
        ("abc", UsageError, r"--min takes CLASS METRIC VALUE"),
    ],
)
def test_filters_that_mean_nothing(made, limit, error, message):
    with pytest.raises(error, match=message):
        compare(made / "list", mode="list", metrics=[made / "m.csv"], **scored(made, minimum=[limit]))
    assert not (made / "list").exists() and not (made / "m.csv").exists()


def test_measures_go_where_nothing_is_lost(made, rsp):
    flags = ["--labels", made / "labels", "--masks", made / "masks", "--config", made / "config.toml"]
    before = sorted((made / "labels").rglob("*"))
    for target, message in (
        (made / "labels", "is the input"), (made / "list", "would be written twice"),
        (made / "m.gpkg", "the output is measures (.csv, .parquet, .json or no suffix for a folder)"),
    ):  # fmt: skip
        ran = rsp("compare", "--mode", "list", *flags, "--metrics", target, "--out", made / "list")
        assert ran.code == 2 and message in ran.stderr
    assert sorted((made / "labels").rglob("*")) == before


def test_records_come_the_worst_first_in_bounded_batches(monkeypatch):
    """Of 30 classes, with batches of some tiles; nothing of the counts is lost on the way."""
    monkeypatch.setattr("rsp.components.compare.records.BATCH", 5000)
    rng = np.random.default_rng(3)
    given = {}
    with Records(30) as records:
        assert list(records.worst_first()) == []
        for number in range(100):
            tile = Tile(number * 7 % 100, number % 3, 12)
            counts = rng.integers(0, 1000, (30, 30))
            given[tile] = (float(rng.integers(0, 3)), float(rng.integers(0, 4)), counts)
            records.add(Compared(tile, *given[tile]))
        batches = list(records.worst_first())
    assert len(batches) > 10
    tiles = [tile for batch in batches for tile, _, _ in batch]
    assert tiles == sorted(given, key=lambda tile: (given[tile][1], -given[tile][0], tile))
    for batch in batches:
        for place, (tile, fg, quality) in enumerate(batch):
            assert (fg, quality) == given[tile][:2]
            counts = given[tile][2]
            assert (batch.counts.hits[place] == np.diag(counts)).all()
            assert (batch.counts.labelled[place] == counts.sum(1)).all()
            assert (batch.counts.masked[place] == counts.sum(0)).all()
            assert (batch.counts.total[place] == counts.sum()).all()
