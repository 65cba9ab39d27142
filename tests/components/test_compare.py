"""rsp compare: its pictures, its numbers, its filters, and its component."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from kfp import dsl
from PIL import Image

from rsp.components.compare.component import compare as compare_component
from rsp.components.compare.component import review as review_component
from rsp.components.compare.overview import MAP_TILES, overview, write_pages
from rsp.components.compare.scores import RAMP, Scores
from rsp.components.compare.tool import CompareResult, compare
from rsp.components.compare.work import Job
from rsp.shared.config import ClassDef, parse_tables
from rsp.shared.errors import ConfigError, CoverError, TileError, TileSetError
from rsp.shared.features import read_features
from rsp.shared.images import complementary, decode, encode, encode_mask
from rsp.shared.indexed import Indexed
from rsp.shared.metrics import qod
from rsp.shared.page import MATRIX_CLASSES, PAGE_BYTES
from rsp.shared.pictures import side, stack, to_rgb
from rsp.shared.tiles import Tile, bounds_lonlat, read_cover, write_cover
from rsp.shared.tileset import open_reader, open_writer
from tests.tilesets import BLOCK, COLORS, CONFIG, make_tileset, noise, squares


def shifted(tile: Tile) -> np.ndarray:
    """A mask that agrees with `squares` in part: moved by x mod 4 times 4 pixels."""
    return np.roll(squares(tile), (tile.x % 4) * 4, axis=1)


def make_labels(path, tiles=BLOCK, draw=squares, fmt="png"):
    with open_writer(path, fmt) as writer:
        for tile in tiles:
            writer.write(tile, encode_mask(draw(tile), complementary(COLORS)))
    return path


@pytest.fixture
def sets(tmp_path):
    """Images, labels and masks of the same tiles, and the configuration."""
    (tmp_path / "config.toml").write_text(CONFIG)
    make_tileset(tmp_path / "images")
    make_labels(tmp_path / "labels")
    make_tileset(tmp_path / "masks", draw=shifted)
    return tmp_path


def scored(folder, **more):
    return {"labels": folder / "labels", "masks": folder / "masks", "config": folder / "config.toml", **more}


def test_side_by_side_at_the_command_line(sets, rsp):
    """Bugs 25, 26: `side` wrote no file and exited with 0; red and blue changed places."""
    flags = ["--images", sets / "images", sets / "labels", sets / "masks"]
    ran = rsp("compare", *flags, "--format", "png", sets / "side")
    assert ran.code == 0
    with open_reader(sets / "side") as reader, open_reader(sets / "labels") as labels:
        assert reader.tiles() == sorted(BLOCK)
        for tile in BLOCK:
            found = decode(reader.read(tile))
            assert found.shape == (15 + 64, 3 * 64 + 2 * 2, 3)
            strip, found = found[:15], found[15:]
            assert (found[:, :64] == noise(tile)).all()
            assert (found[:, 66:130] == decode(labels.read(tile))).all()
            assert (found[:, 132:] == np.array(COLORS, np.uint8)[shifted(tile)]).all()
            # A grey line tells a white label from a white mask.
            assert (found[:, [64, 65, 130, 131]] == 128).all() and (strip[:, [64, 65, 130, 131]] == 128).all()
            # Above each picture stands its name: three different texts, light on dark.
            names = [strip[:, left : left + 64] for left in (0, 66, 132)]
            assert all(name.max() > 200 and np.median(name) < 60 for name in names)
            assert len({name.tobytes() for name in names}) == 3
    page = (sets / "side" / "index.html").read_text()
    assert 'id="dialog"' in page and (sets / "side" / "tiles.json").exists()
    assert rsp("compare", *flags, "--vertical", "--no_web_ui", "--out", sets / "below").code == 0
    with open_reader(sets / "below") as reader:
        assert reader.format == "webp" and decode(reader.read(BLOCK[0])).shape == (196 + 3 * 15, 64, 3)
    assert not (sets / "below" / "index.html").exists()


def test_the_line_grows_with_the_pictures():
    for side_of, width in ((64, 2), (256, 2), (512, 4)):
        joined = side([np.zeros((side_of, side_of, 3), np.uint8)] * 2)
        assert joined.shape[1] == 2 * side_of + width
    assert side([np.zeros((512, 256, 3), np.uint8)] * 2).shape[1] == 2 * 256 + 2  # the lesser side counts


@pytest.mark.parametrize("tile_format", ["png", "jpg", "webp", "tif"])
def test_formats_hold_the_same_picture(sets, tile_format):
    compare(sets / "out", [sets / "images", sets / "masks"], tile_format=tile_format, web_ui=False)
    with open_reader(sets / "out") as reader:
        for tile in BLOCK:
            drawn = [noise(tile), np.array(COLORS, np.uint8)[shifted(tile)]]
            expected = side(drawn, captions=["images", "masks"])
            assert reader.read(tile) == encode(expected, tile_format)
        assert reader.format == tile_format


def test_an_output_after_images(sets, rsp):
    """`--images a b OUT` is clear where OUT is not there yet; a tile set that exists is never written into."""
    images, labels, masks = (sets / name for name in ("images", "labels", "masks"))
    ran = rsp("compare", "--mode", "side", "--images", images, labels, masks, sets / "new")
    assert ran.code == 0
    with open_reader(sets / "new") as reader, open_reader(masks) as untouched:
        assert decode(reader.read(BLOCK[0])).shape == (79, 196, 3)
        assert untouched.tiles() == sorted(BLOCK)
    before = sorted(path.name for path in masks.rglob("*"))
    ran = rsp("compare", "--mode", "side", "--images", images, labels, masks)
    assert ran.code == 2 and "Traceback" not in ran.stderr
    assert f"`out` is missing: {masks} exists" in ran.stderr and f"--out {masks}" in ran.stderr
    assert sorted(path.name for path in masks.rglob("*")) == before
    ran = rsp("compare", "--images", images)
    assert ran.code == 2 and "`out` is missing; give it as an argument, or as --out" in ran.stderr


def test_the_colours_of_a_stack(tmp_path):
    """Pink is predicted only, green labelled only, grey both: on grey imagery, exactly."""
    label = np.array([[0, 0], [1, 1]], np.uint8)
    mask = np.array([[0, 1], [0, 1]], np.uint8)
    make_tileset(tmp_path / "images", draw=lambda tile: np.full((2, 2, 3), 120, np.uint8))
    make_labels(tmp_path / "labels", draw=lambda tile: label)
    make_tileset(tmp_path / "masks", draw=lambda tile: mask)
    paths = [tmp_path / name for name in ("images", "labels", "masks")]
    compare(tmp_path / "out", paths, mode="stack", tile_format="png")
    pink, green, white = (255, 20, 147), complementary(COLORS)[1], (255, 255, 255)
    assert green == (20, 255, 128)

    def mean(*colors):
        return [math.floor((120 + sum(values)) / 3 + 0.5) for values in zip(*colors, strict=True)]

    with open_reader(tmp_path / "out") as reader:
        found = decode(reader.read(BLOCK[0])).tolist()
    assert found == [[mean(white, white), mean(white, pink)], [mean(green, white), mean(green, pink)]]
    assert found[0][1] == [210, 132, 174]  # pink
    assert found[1][0] == [132, 210, 168]  # green
    assert found[1][1] == [132, 132, 132]  # grey
    assert "L.map(" in (tmp_path / "out" / "index.html").read_text()


def test_stack_is_exact_in_integers():
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(3)]
    assert (stack(images) == np.floor(np.mean(images, axis=0) + 0.5)).all()
    assert (stack([np.full((1, 1, 3), 255, np.uint8)] * 300) == 255).all()
    with pytest.raises(TileError, match="32x32, 64x32"):
        stack([Indexed(np.zeros((32, 64), np.uint8), bytes(3)), np.zeros((32, 32, 3), np.uint8)])
    with pytest.raises(TileError, match="64x32, 32x32"):
        stack([np.zeros((32, 64, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)])


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (2, 3, 5), (17, 16), (256, 256, 2), (2, 200, 3), (2,) * 300])
@pytest.mark.parametrize("plain", [0, 1, 2])
def test_palettes_are_stacked_as_their_colours(sizes, plain):
    rng = np.random.default_rng(len(sizes))
    images = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(plain)]
    for size in sizes:
        indices, palette = rng.integers(0, size, (5, 7), dtype=np.uint8), rng.bytes(3 * size)
        images.append(Indexed(indices, palette))
    colours = [image.colors[image.indices] if isinstance(image, Indexed) else image for image in images]
    assert (stack(images)[:, :, :3] == stack(colours)).all()
    assert (stack(images[::-1])[:, :, :3] == np.floor(np.mean(colours, axis=0) + 0.5)).all()


def test_many_bands_and_many_bits_can_be_looked_at():
    ramp = np.linspace(0, 4000, 100).reshape(10, 10, 1).astype(np.uint16)
    shown = to_rgb(np.repeat(ramp, 5, axis=2))
    assert shown.shape == (10, 10, 3) and shown.dtype == np.uint8 and shown.min() == 0 and shown.max() == 255
    assert (to_rgb(np.full((4, 4, 1), np.nan, np.float32)) == 0).all()
    assert (to_rgb(np.arange(16, dtype=np.uint8).reshape(4, 4, 1))[:, :, 1].ravel() == np.arange(16)).all()


def test_list_at_the_command_line(sets, rsp, monkeypatch):
    """Bug 25: `list` without --config wrote an empty file where RSP_CONFIG was set."""
    monkeypatch.setenv("RSP_CONFIG", str(sets / "config.toml"))
    ran = rsp("compare", "--mode", "list", "--labels", sets / "labels", "--masks", sets / "masks", sets / "list")
    assert ran.code == 0
    rows = []
    for tile in BLOCK:
        fg, quality = qod(squares(tile), shifted(tile))
        rows.append((quality, -fg, tile, f"{tile.x},{tile.y},{tile.z}\t\t{fg:.1f}\t\t{quality:.1f}"))
    # The worst come first; of equals those with more in them, then by their place.
    assert (sets / "list").read_text().splitlines() == [line for *_, line in sorted(rows)]
    assert len({quality for quality, *_ in rows}) > 3
    assert sorted(read_cover(sets / "list")) == sorted(BLOCK)


def test_a_class_to_ignore_counts_nowhere(sets):
    """As the label 255: its pixels are as if they were not there, whatever is predicted."""
    (sets / "two.toml").write_text(f'{CONFIG}\n[[classes]]\ntitle = "unknown"\ncolor = "red"\nignore = true\n')
    for name, value in (("as a class", 2), ("as 255", 255)):

        def draw(tile: Tile, value=value) -> np.ndarray:
            label = squares(tile)
            label[:20] = value
            return label[:, :, np.newaxis]

        make_tileset(sets / name, draw=draw)
    found = [
        compare(
            sets / f"{name}.txt", mode="list", labels=sets / name, masks=sets / "masks", config=sets / "two.toml"
        )
        for name in ("as a class", "as 255")
    ]
    labels, masks = (np.concatenate([draw(tile)[20:] for tile in BLOCK]) for draw in (squares, shifted))
    assert found[0].iou == found[1].iou == (labels & masks).sum() / (labels | masks).sum()
    assert found[0].confusion == found[1].confusion and np.sum(found[0].confusion) == labels.size
    assert "iou_unknown" not in found[0].measures() and found[0].miou == found[1].miou > found[0].iou


def test_list_as_geojson_over_the_tiles_of_a_map(sets, rsp):
    paths = [sets / name for name in ("images", "labels", "masks")]
    compare(sets / "stack", paths, mode="stack")
    flags = ["--labels", sets / "labels", "--masks", sets / "masks", "--config", sets / "config.toml"]
    out = sets / "stack" / "tiles.json"
    ran = rsp("compare", "--mode", "list", "--geojson", "--maximum_qod", 90, "--minimum_fg", 1, *flags, out)
    assert ran.code == 0
    features = json.loads(out.read_text())["features"]
    expected = {}
    for tile in BLOCK:
        fg, quality = qod(squares(tile), shifted(tile))
        if quality <= 90 and fg >= 1:
            expected[tile] = (round(fg, 1), round(quality, 1))
    found = {
        Tile(p["x"], p["y"], p["z"]): (p["fg"], p["qod"]) for p in (feature["properties"] for feature in features)
    }
    assert found == expected and 0 < len(found) < len(BLOCK)
    assert len(features[0]["geometry"]["coordinates"][0]) == 5


@pytest.mark.parametrize("suffix", [".geojsonl", ".fgb", ".gpkg", ".parquet"])
@pytest.mark.parametrize("flag", [[], ["--geojson"]], ids=["by its suffix", "--geojson"])
def test_list_as_features_of_a_suffix(sets, rsp, suffix, flag):
    flags = ["--labels", sets / "labels", "--masks", sets / "masks", "--config", sets / "config.toml", *flag]
    ran = rsp("compare", "--mode", "list", "--maximum_qod", 90, *flags, sets / f"list{suffix}")
    assert ran.code == 0, ran.stderr
    found = {}
    for feature in read_features(sets / f"list{suffix}"):
        told = feature.properties
        tile = Tile(told["x"], told["y"], told["z"])
        assert feature.geometry.bounds == pytest.approx(bounds_lonlat(tile), abs=1e-7)
        found[tile] = (told["fg"], told["qod"])
    scores = {tile: qod(squares(tile), shifted(tile)) for tile in BLOCK}
    expected = {tile: (round(fg, 1), round(q, 1)) for tile, (fg, q) in scores.items() if q <= 90}
    assert found == expected and 0 < len(found) < 12


def test_filters_choose_the_pictures(sets):
    """Bug 25: the filters were silently off without --config."""
    full = compare(sets / "all", [sets / "images"], **scored(sets))
    some = compare(sets / "some", [sets / "images"], maximum_qod=90, **scored(sets))
    assert (full.written, full.tiles) == (12, 12) and 0 < some.written < 12
    assert (some.iou, some.confusion) == (full.iou, full.confusion)  # the numbers are of all tiles
    with open_reader(sets / "some") as reader:
        chosen = reader.tiles()
    assert chosen == sorted(tile for tile in BLOCK if qod(squares(tile), shifted(tile))[1] <= 90)
    with pytest.raises(CoverError, match="none of the 12 tiles passes"):
        compare(sets / "none", [sets / "images"], maximum_fg=0, **scored(sets))


@pytest.mark.parametrize("flag", ["minimum_fg", "maximum_fg", "minimum_qod", "maximum_qod"])
def test_filters_hold_at_their_very_bounds(tmp_path, flag):
    """Tiles of which less than a hundredth differs: what is as the bound says stays, its neighbours tell which."""
    (tmp_path / "config.toml").write_text(CONFIG)

    def drawn(number: int, step: int) -> np.ndarray:
        mask = np.zeros(64 * 64, np.uint8)
        mask[: 2000 + number * step] = 1
        return mask.reshape(64, 64)

    labels = {tile: drawn(number, 32) for number, tile in enumerate(BLOCK)}
    masks = {tile: drawn(number, 40) for number, tile in enumerate(BLOCK)}
    make_labels(tmp_path / "labels", draw=labels.__getitem__)
    make_tileset(tmp_path / "masks", draw=masks.__getitem__)
    values = {tile: qod(labels[tile], masks[tile])[flag.endswith("qod")] for tile in BLOCK}
    low, bound, high = sorted(values.values())[5:8]
    assert bound - 1 < low < bound < high < bound + 1
    compare(tmp_path / "list", mode="list", **scored(tmp_path, **{flag: bound}))
    kept = {tile for tile in BLOCK if (values[tile] >= bound if flag.startswith("min") else values[tile] <= bound)}
    assert sorted(read_cover(tmp_path / "list")) == sorted(kept)


def test_the_numbers(sets):
    result = compare(sets / "list", mode="list", **scored(sets))
    labels = np.stack([squares(tile) for tile in BLOCK])
    masks = np.stack([shifted(tile) for tile in BLOCK])
    counts = [[int(((labels == a) & (masks == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    (tn, fp), (fn, tp) = counts
    assert result.confusion == counts
    assert result.iou == pytest.approx(tp / (tp + fp + fn))
    assert result.classes == pytest.approx({"background": tn / (tn + fp + fn), "building": tp / (tp + fp + fn)})
    assert result.miou == pytest.approx(sum(result.classes.values()) / 2)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert result.mcc == pytest.approx((tp * tn - fp * fn) / root)
    assert result.qod == pytest.approx(np.mean([qod(squares(tile), shifted(tile))[1] for tile in BLOCK]))


def test_many_classes(tmp_path):
    road = '[[classes]]\ntitle="road"\ncolor="grey"\n[model]'
    (tmp_path / "config.toml").write_text(CONFIG.replace("[model]", road))
    label = np.array([[0, 1], [2, 2]], np.uint8)
    mask = np.array([[0, 2], [2, 1]], np.uint8)
    for name, drawn in (("labels", label), ("masks", mask)):
        with open_writer(tmp_path / name, "png") as writer:
            for tile in BLOCK[:2]:
                writer.write(tile, encode_mask(drawn, [*COLORS, (9, 9, 9)]))
    result = compare(tmp_path / "list", mode="list", **scored(tmp_path))
    assert result.confusion == [[2, 0, 0], [0, 0, 2], [0, 2, 2]]
    assert result.classes == pytest.approx({"background": 1, "building": 0, "road": 1 / 3})
    assert result.iou == pytest.approx(1 / 6)


def test_undefined_measures_are_not_measures(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    make_labels(tmp_path / "labels", draw=lambda tile: np.zeros((8, 8), np.uint8))
    make_tileset(tmp_path / "masks", draw=lambda tile: np.zeros((8, 8), np.uint8))
    result = compare(tmp_path / "list", mode="list", **scored(tmp_path))
    assert result.measures() == {"miou": 1.0, "qod": 100.0, "iou_background": 1.0}
    assert result.as_dict()["iou"] is None


def test_the_same_bytes_from_any_number_of_processes(tmp_path):
    """Bug 25: the order was that of the threads."""
    tiles = [Tile(x, y, 15) for x in range(100, 110) for y in range(200, 207)]
    (tmp_path / "config.toml").write_text(CONFIG)
    make_tileset(tmp_path / "images", tiles, draw=lambda tile: noise(tile, 16))
    make_labels(tmp_path / "labels", tiles, draw=lambda tile: squares(tile, 16))
    make_tileset(tmp_path / "masks.pmtiles", tiles, draw=lambda tile: squares(Tile(tile.x + 1, tile.y, 15), 16))
    flags = {**scored(tmp_path), "masks": tmp_path / "masks.pmtiles"}
    for workers in (1, 3):
        compare(tmp_path / f"list{workers}", mode="list", workers=workers, **flags)
        compare(tmp_path / f"{workers}.pmtiles", [tmp_path / "images"], workers=workers, **flags)
    assert (tmp_path / "list1").read_bytes() == (tmp_path / "list3").read_bytes()
    assert (tmp_path / "1.pmtiles").read_bytes() == (tmp_path / "3.pmtiles").read_bytes()
    assert (tmp_path / "3.pmtiles.html").exists()


def test_tiles_of_one_set_only_are_said(sets, rsp):
    """Bug 3, here: sets are paired by tile. What they have in common is compared; what differs is named."""
    lost, own = sorted(BLOCK)[-2:], [Tile(x, 300, 15) for x in range(100, 112)]
    make_tileset(sets / "other", [*sorted(BLOCK)[:-2], *own])
    report = sets / "report.json"
    flags = ["--images", sets / "images", sets / "other", "--report", report]
    ran = rsp("compare", *flags, "--out", sets / "out")
    assert ran.code == 0
    assert f"not compared: 2 tiles that {sets / 'other'} lacks: 15/103/201, 15/103/202\n" in ran.stderr
    assert f"not compared: 12 tiles that {sets / 'images'} lacks: 15/100/300, " in ran.stderr
    assert "15/109/300 and 2 more\n" in ran.stderr
    told = json.loads(report.read_text())
    assert (told["tiles"], told["not_compared"]) == (10, 14)
    assert told["lacking"] == {
        str(sets / "other"): {"tiles": 2, "first": [list(tile) for tile in lost]},
        str(sets / "images"): {"tiles": 12, "first": [list(tile) for tile in own[:10]]},
    }
    with open_reader(sets / "out") as reader:
        assert reader.tiles() == sorted(BLOCK)[:-2]
    same = compare(sets / "same", [sets / "images", sets / "masks"])
    assert (same.tiles, same.not_compared, same.lacking) == (12, 0, {})


def test_a_cover_names_tiles_that_all_sets_have(sets):
    make_tileset(sets / "fewer", BLOCK[:-2])
    write_cover(sets / "cover", BLOCK[:3])
    result = compare(sets / "out", [sets / "images", sets / "fewer"], cover=sets / "cover")
    assert (result.tiles, result.not_compared) == (3, 0)
    write_cover(sets / "cover", BLOCK)
    with pytest.raises(
        TileSetError, match=r"fewer lacks 2 of the 12 tiles of .*cover, .*; leave them out of the cover"
    ):
        compare(sets / "out", [sets / "images", sets / "fewer"], cover=sets / "cover")


def test_sets_that_have_nothing_in_common(sets):
    make_tileset(sets / "farther", [Tile(tile.x, tile.y, 16) for tile in BLOCK])
    with pytest.raises(CoverError, match=r"images has tiles of zoom 15, .*farther of zoom 16"):
        compare(sets / "out", [sets / "images", sets / "farther"])
    make_tileset(sets / "elsewhere", [Tile(tile.x + 50, tile.y, 15) for tile in BLOCK])
    with pytest.raises(
        TileSetError, match=r"no tile in common: .*images has 12, as 15/100/200, .*elsewhere has 12, as 15/150/200"
    ):
        compare(sets / "out", [sets / "images", sets / "elsewhere"])
    assert not (sets / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode", "list"],
        ["--mode", "list", "--labels", "l"],
        ["--images", "i", "--minimum_fg", "5"],
        ["--images", "i", "--maximum_qod", "5", "--masks", "m"],
        ["--mode", "stack", "--images", "i", "--vertical"],
        ["--images", "i", "--geojson"],
        ["--images", "i", "--maximum_qod", "101"],
        ["--labels", "l", "--masks", "m"],
        ["--images", "i", "--format", "bmp"],
        ["--images", "i", "--min", "building", "iou", "0.5"],
        ["--images", "i", "--metrics", "m.csv", "--labels", "l"],
        ["--mode", "outline", "--images", "i", "--masks", "m"],
        ["--mode", "stack", "--images", "i", "--no_captions"],
    ],
)
def test_wrong_usage(sets, rsp, flags):
    assert rsp("compare", *flags, "--out", sets / "out").code == 2
    assert not (sets / "out").exists()


def test_no_output(rsp):
    assert rsp("compare", "--images", "i").code == 2


def test_without_a_configuration(sets, monkeypatch):
    """Bug 25: scores need the classes, and a missing configuration is said."""
    monkeypatch.setenv("HOME", str(sets))
    with pytest.raises(ConfigError, match="no configuration file"):
        compare(sets / "list", mode="list", labels=sets / "labels", masks=sets / "masks")


def test_damaged_tiles_fail_alone(sets, rsp):
    """Bug 25: exceptions in the pool were never collected."""
    corrupt, large, strange = sorted(BLOCK)[1:4]
    with open_writer(sets / "masks", "png") as writer:
        writer.write(corrupt, b"no image")
        writer.write(large, encode_mask(np.zeros((128, 128), np.uint8), COLORS))
        writer.write(strange, encode_mask(np.full((64, 64), 7, np.uint8), [(0, 0, 0)] * 8))
    flags = ["--labels", sets / "labels", "--masks", sets / "masks", "--config", sets / "config.toml"]
    report = sets / "report.json"
    ran = rsp("compare", "--mode", "list", *flags, sets / "list", "--report", report)
    assert ran.code == 3
    assert sorted(read_cover(sets / "list")) == sorted(set(BLOCK) - {corrupt, large, strange})
    assert read_cover(sets / "list.failed.csv") == [corrupt, large, strange]
    reasons = [entry["reason"] for entry in json.loads(report.read_text())["failed"]]
    assert "not an image" in reasons[0] and "differ in size" in reasons[1] and "class 7" in reasons[2]
    images = ["--images", sets / "images", sets / "masks"]
    ran = rsp("compare", *images, "--mode", "stack", sets / "stack")
    assert ran.code == 3 and "128x128" in ran.stderr
    with open_reader(sets / "stack") as reader:
        assert len(reader) == 10
    with open_writer(sets / "bad", "png") as writer:
        for tile in BLOCK:
            writer.write(tile, b"no image")
    ran = rsp("compare", "--images", sets / "images", sets / "bad", "--out", sets / "out.pmtiles")
    assert ran.code == 1 and "none of the 12 tiles can be compared" in ran.stderr
    assert not (sets / "out.pmtiles").exists()


def test_resume_keeps_pictures_and_counts_all(sets):
    first = compare(sets / "out", [sets / "images"], **scored(sets))
    kept, lost = sorted(BLOCK)[:2]
    mark = encode(np.zeros((1, 1, 3), np.uint8), "webp")
    (sets / "out" / f"15/{kept.x}/{kept.y}.webp").write_bytes(mark)
    (sets / "out" / f"15/{lost.x}/{lost.y}.webp").unlink()
    again = compare(sets / "out", [sets / "images"], resume=True, **scored(sets))
    assert again == first
    with open_reader(sets / "out") as reader:
        assert reader.read(kept) == mark and len(reader) == len(BLOCK)


def test_images_may_be_larger_than_labels_on_the_pages(sets):
    make_tileset(sets / "large", draw=lambda tile: noise(tile, 128))
    pages = {"webmap": sets / "map.html", "side_by_side": sets / "worst.html"}
    overview(sets / "large", sets / "labels", sets / "masks", config=sets / "config.toml", **pages)
    assert pages["webmap"].read_text().count("data:image/webp;base64,") == len(BLOCK)
    assert pages["side_by_side"].read_text().count("<img ") == len(BLOCK)


def test_a_map_of_images_of_which_none_can_be_read_says_why(sets):
    with open_writer(sets / "bad", "png") as writer:
        for tile in BLOCK:
            writer.write(tile, b"no image")
    pages = {"webmap": sets / "map.html", "side_by_side": sets / "worst.html"}
    with pytest.raises(TileSetError, match=r"none of the 12 worst tiles can be shown; 15/.*bad: .*not an image"):
        overview(sets / "bad", sets / "labels", sets / "masks", config=sets / "config.toml", **pages)


def test_component(run_component, sets):
    artifacts = {name: sets / name for name in ("images", "labels", "masks")}
    step = run_component(compare_component, artifacts, config=parse_tables(CONFIG))
    result = compare(sets / "list", mode="list", **scored(sets))
    metrics = step.artifacts["metrics"]["metadata"]
    for name in ("iou", "miou", "mcc", "qod"):
        assert metrics[name] == pytest.approx(getattr(result, name))
    assert metrics["iou_building"] == pytest.approx(result.iou)
    matrix = step.artifacts["confusion"]["metadata"]["confusionMatrix"]
    assert [row["displayName"] for row in matrix["annotationSpecs"]] == ["background", "building"]
    assert [row["row"] for row in matrix["rows"]] == result.confusion
    page = step.path("map").read_text()
    assert page.count("data:image/webp;base64,") == len(BLOCK) and '"qod":' in page
    assert "http://" not in page.replace("http://www.w3.org", "").split("<body>")[1]
    text = step.path("side_by_side").read_text()
    # D5: the KFP UI up to 2.16.1 drops the pictures of Markdown.
    assert text.count("<img ") == text.count("src='data:image/webp;base64,") == len(BLOCK)
    assert "<td>building</td>" in text and "http" not in text
    worst = min(BLOCK, key=lambda tile: (qod(squares(tile), shifted(tile))[1], tile))
    assert text.index(f"{worst.x},{worst.y},15:") == min(text.index(f"{t.x},{t.y},15:") for t in BLOCK)
    for name in ("metrics", "confusion"):
        assert step.path(name).is_file()
    table = pq.read_table(step.path("table")).to_pylist()
    assert [row["class"] for row in table] == ["background", "building"] * len(BLOCK)
    assert (table[0]["x"], table[0]["y"]) == worst[:2]
    assert sum(row["agreed"] for row in table[1::2]) == result.confusion[1][1]


def test_the_component_says_which_tiles_are_in_one_set_only(run_component, sets):
    tiles = sorted(BLOCK)
    make_tileset(sets / "fewer", tiles[2:], draw=shifted)
    step = run_component(
        compare_component,
        {"images": sets / "images", "labels": sets / "labels", "masks": sets / "fewer"},
        config=parse_tables(CONFIG),
    )
    page = step.path("side_by_side").read_text()
    assert "10 tiles; 2 are not in all tile sets: masks lack 2 (15/100/200, 15/100/201)." in page
    assert step.artifacts["table"]["metadata"]["not_compared"] == 2


def test_review_filters_by_measures_of_classes(run_component, sets):
    limits = {"minimum": [["building", "recall", 0.2]], "maximum": [["building", "iou", 0.6]]}
    artifacts = {name: sets / name for name in ("labels", "masks")}
    step = run_component(review_component, artifacts, config=parse_tables(CONFIG), **limits)
    found = {}
    for tile in BLOCK:
        label, mask = squares(tile), shifted(tile)
        both = (label & mask).sum()
        if both / label.sum() >= 0.2 and both / (label | mask).sum() <= 0.6:
            found[tile] = qod(label, mask)[1]
    assert 0 < len(found) < len(BLOCK)
    features = json.loads(step.path("listing").read_text())["features"]
    listed = [Tile(*(each["properties"][name] for name in "xyz")) for each in features]
    assert set(listed) == set(found) == set(read_cover(step.path("cover")))
    assert [found[tile] for tile in listed] == sorted(found.values())


def test_pages_stay_small_whatever_the_area(tmp_path):
    """10^5 tiles, of which the worst have pictures of noise, which compresses worst; 60 classes."""
    tiles = [Tile(x, y, 18) for x in range(21) for y in range(20)]
    random = np.random.default_rng(0)
    pictures = [encode(random.integers(0, 256, (192, 192, 3), np.uint8), "png") for _ in range(8)]
    mask = encode_mask(random.integers(0, 2, (192, 192), np.uint8), COLORS)
    sets = tuple(tmp_path / f"{name}.pmtiles" for name in ("images", "labels", "masks"))
    for path in sets:
        with open_writer(path, "png") as writer:
            for index, tile in enumerate(tiles):
                writer.write(tile, pictures[index % 8] if path.stem == "images" else mask)
    x, y = (axis.ravel() for axis in np.mgrid[:400, :250])
    worst = (x < 21) & (y < 20)
    quality = np.where(worst, 10.0, random.uniform(20, 100, x.size))
    scores = Scores(np.stack([x, y, np.full_like(x, 18)], axis=1), np.full(x.size, 50.0), quality)
    titles = [f"class {number}" for number in range(60)]
    result = CompareResult(
        tiles=x.size, written=x.size, iou=0.5, miou=0.5, mcc=0.5, qod=60.0, classes=dict.fromkeys(titles, 0.5),
        confusion=random.integers(0, 10**9, (60, 60)).tolist(),
    )  # fmt: skip
    job = Job("stack", sets, sets[1], sets[2], 0)
    pages = {"webmap": tmp_path / "map.html", "side_by_side": tmp_path / "worst.html"}
    write_pages(job, scores, result, [ClassDef("building", (255, 0, 0))], **pages)
    assert max(path.stat().st_size for path in pages.values()) < PAGE_BYTES <= 1_000_000
    map_page, report = (path.read_text() for path in pages.values())
    assert 200 < map_page.count("data:image/webp") <= MAP_TILES
    assert '"total":100000' in map_page and '"underlay":"data:image/png' in map_page and "QoD 50" in map_page
    assert report.count("data:image/webp") >= 9
    assert report.count("<td>class") == 60 + MATRIX_CLASSES - 1 and "37 others" in report
    assert "100,000 tiles" in report and "http" not in report.replace("http-equiv", "")


def test_a_picture_of_all_tiles():
    """Across 180 degrees; a pixel is two tiles a side, where more than 512 lie beside each other."""
    side, y = 1 << 12, 1001
    columns = [*range(side - 300, side), *range(400)]
    tiles = np.array([(x, row, 12) for x in columns for row in (y, y + 3)])
    empty = tiles[:, 0] == 0
    scores = Scores(tiles, np.where(empty, 0.0, 5.0), np.where(tiles[:, 0] > 2000, 0.0, 100.0))
    box, data = scores.picture()
    found = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert found.shape == (3, 350, 4)
    assert [tuple(found[row, 0]) for row in range(3)] == [(*RAMP[0], 255), (0, 0, 0, 0), (*RAMP[0], 255)]
    # The square with an empty tile has the quality of the other.
    assert [tuple(found[0, column]) for column in (149, 150, 349)] == [(*RAMP[0], 255), *2 * [(*RAMP[-1], 255)]]
    west, south, east, north = box
    assert (west, east) == pytest.approx((180 - 300 * 360 / side, 180 + 400 * 360 / side))
    assert (north, south) == pytest.approx(
        (bounds_lonlat(Tile(0, 1000, 12))[3], bounds_lonlat(Tile(0, 1005, 12))[1])
    )
    assert scores.histogram(2) == ([600, 798], [0.0, 50.0, 100.0], 2)
    assert list(scores.worst(2)) == [Tile(side - 300, y, 12), Tile(side - 300, y + 3, 12)]


def test_titles_of_classes_are_text_on_the_page(run_component, sets):
    config = CONFIG.replace('"building"', '"<b>&building"')
    artifacts = {name: sets / name for name in ("images", "labels", "masks")}
    text = (
        run_component(compare_component, artifacts, config=parse_tables(config)).path("side_by_side").read_text()
    )
    assert "<td>&lt;b&gt;&amp;building</td>" in text and "<b>" not in text


def test_component_compiles_with_typed_outputs():
    outputs = compare_component.component_spec.outputs
    assert {name: spec.type for name, spec in outputs.items()} == {
        "metrics": "system.Metrics@0.0.1",
        "confusion": "system.ClassificationMetrics@0.0.1",
        "map": "system.HTML@0.0.1",
        "side_by_side": "system.HTML@0.0.1",
        "table": "system.Dataset@0.0.1",
    }
    assert dsl.HTML.schema_title == "system.HTML"
