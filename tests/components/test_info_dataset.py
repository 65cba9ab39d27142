"""rsp info --dataset: what stops a training, and what leaks between its parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rsp.components.info.dataset import check_dataset
from rsp.shared.config import ClassDef, load_config
from rsp.shared.errors import UsageError
from rsp.shared.images import encode, encode_mask
from rsp.shared.locations import location
from rsp.shared.tiles import Tile
from rsp.shared.tileset import classes_metadata, open_writer
from tests.tilesets import COLORS, CONFIG, noise, squares

TRAINING = [Tile(x, y, 15) for x in range(100, 104) for y in range(200, 203)]
VALIDATION = [Tile(x, y, 15) for x in range(110, 113) for y in range(200, 202)]
CLASSES = [ClassDef("background", COLORS[0]), ClassDef("building", COLORS[1])]


def write(path, tiles, form="png", draw=noise, classes=None, instead=None):
    """Write a tile set; `instead` has the bytes of some tiles."""
    with open_writer(path, form) as writer:
        if classes:
            writer.describe({"classes": classes_metadata(classes)})
        for tile in tiles:
            image = draw(tile)
            data = encode(image, form) if image.ndim == 3 else encode_mask(image, [*COLORS, (1, 2, 3)])
            writer.write(tile, (instead or {}).get(tile, data))


@pytest.fixture
def folder(tmp_path) -> Path:
    for part, tiles in (("training", TRAINING), ("validation", VALIDATION)):
        write(tmp_path / "data" / part / "images.pmtiles", tiles)
        write(tmp_path / "data" / part / "labels", tiles, draw=squares, classes=CLASSES)
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "data"


def again(path, tiles, **options):
    """Write a tile set in the place of one that is there."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    Path(path).unlink(missing_ok=True)
    write(path, tiles, **options)


def checked(folder, config=True):
    return check_dataset(folder, load_config(folder.parent / "config.toml") if config else None)


@pytest.mark.parametrize("config", [True, False])
def test_a_data_set_that_is_well(folder, rsp, config):
    more = ("--config", folder.parent / "config.toml") if config else ()
    ran = rsp("info", "--json", "--dataset", folder, *more)
    found = json.loads(ran.stdout)
    assert ran.code == 0 and found["problems"] == found["warnings"] == []
    share = sum(int(squares(tile).sum()) for tile in TRAINING) / (12 * 64 * 64)
    assert found["found"][0]["parts"]["training"] == {
        "tiles": {"images": 12, "labels": 12}, "pairs": 12, "zooms": {"15": 12},
        "sizes": {"images": {"64x64": 12}, "labels": {"64x64": 12}}, "values": {"images": {"3 of uint8": 12}},
        "empty_labels": 0, "classes": {"background": round(1 - share, 6), "building": round(share, 6)},
    }  # fmt: skip
    assert found["found"][0]["leaks"] == {
        "the same tile": 0, "a tile of another zoom at the same place": 0,
        "an image of the same bytes elsewhere": 0, "a tile that touches it": 0,
    }  # fmt: skip


def test_a_configuration_that_does_not_fit(folder, rsp):
    path = folder.parent / "config.toml"
    path.write_text(CONFIG.replace("ts = 64", "ts = 128"))
    said = "to the 128 of the configuration"
    assert said in rsp("info", "--dataset", folder, "--config", path).stdout
    assert said not in rsp("info", "--dataset", folder).stdout


def test_in_words(folder, rsp):
    again(folder / "validation/images.pmtiles", VALIDATION[1:])
    ran = rsp("info", "--dataset", folder)
    assert ran.code == 0
    assert ran.stdout.endswith(
        "warning: validation/labels: 1 tiles have no partner and are left out: 15/110/200\n"
    )
    again(folder / "validation/labels", VALIDATION, draw=lambda tile: squares(tile) * 0, classes=CLASSES)
    ran = rsp("info", "--dataset", folder, "--html", folder.parent / "page.html")
    said = "validation/labels: there is nothing but background, and so nothing to learn"
    assert ran.code == 1 and f"problem: {said}\n" in ran.stdout
    assert f"rsp info: error: {folder} cannot be trained on: {said}" in ran.stderr
    assert said in (folder.parent / "page.html").read_text()


# --- leaks --------------------------------------------------------------------------------------------------


def test_the_same_tile_in_both_parts(folder):
    for name, draw, classes in (("images.pmtiles", noise, None), ("labels", squares, CLASSES)):
        again(folder / "validation" / name, [*VALIDATION, TRAINING[0]], draw=draw, classes=classes)
    found = checked(folder)
    assert found.problems == [] and found.leaks["the same tile"] == 1
    assert found.warnings == ["1 validation tiles leak: training has the same tile: 15/100/200"]


def test_tiles_that_touch(folder):
    near = [Tile(104, 203, 15), Tile(104, 204, 15)]  # the first at a corner, the second not at all
    for name, draw, classes in (("images.pmtiles", noise, None), ("labels", squares, CLASSES)):
        again(folder / "validation" / name, near, draw=draw, classes=classes)
    found = checked(folder)
    assert found.leaks["a tile that touches it"] == 1 and len(found.warnings) == 1
    assert found.warnings[0].startswith("1 validation tiles touch tiles of training: 15/104/203; split by blocks")


def test_tiles_touch_across_the_antimeridian(folder):
    side = 1 << 15
    for part, x in (("training", 0), ("validation", side - 1)):
        for name, draw, classes in (("images.pmtiles", noise, None), ("labels", squares, CLASSES)):
            again(folder / part / name, [Tile(x, 9, 15)], draw=draw, classes=classes)
    assert checked(folder).leaks["a tile that touches it"] == 1


@pytest.mark.parametrize("tile", [Tile(50, 100, 14), Tile(201, 401, 16)])
def test_tiles_of_other_zooms_at_the_same_place(folder, tile):
    for name, draw, classes in (("images.pmtiles", noise, None), ("labels", squares, CLASSES)):
        again(folder / "validation" / name, [tile, Tile(0, 0, tile.z)], draw=draw, classes=classes)
    found = checked(folder)
    assert found.leaks["a tile of another zoom at the same place"] == 1
    assert (
        f"training has a tile of another zoom at the same place: {tile.z}/{tile.x}/{tile.y}" in found.warnings[0]
    )


def test_the_same_bytes_elsewhere(folder):
    copied = {VALIDATION[2]: encode(noise(TRAINING[3]), "png")}
    again(folder / "validation/images.pmtiles", VALIDATION, instead=copied)
    found = checked(folder)
    assert found.leaks["an image of the same bytes elsewhere"] == 1
    assert found.warnings == [
        "1 validation tiles leak: training has an image of the same bytes elsewhere: 15/111/200"
    ]


# --- what stops a training ----------------------------------------------------------------------------------


def test_parts_that_lack(folder, rsp):
    import shutil

    shutil.rmtree(folder / "validation/labels")
    found = checked(folder, config=False)
    assert found.problems == [f"no tile set labels (nor labels.pmtiles) in {folder / 'validation'}"]
    shutil.rmtree(folder / "validation")
    assert len(checked(folder, config=False).problems) == 2
    with pytest.raises(UsageError, match="there is no folder"):
        check_dataset(folder / "none", None)


def test_parts_without_a_pair(folder):
    again(folder / "training/images.pmtiles", VALIDATION)
    found = checked(folder)
    assert found.problems == ["training: images, labels have no tile in common; are they of the same zoom?"]
    assert "training/labels: 12 tiles have no partner and are left out: 15/100/200, " in found.warnings[1]


def test_tiles_that_cannot_be_read(folder):
    broken = dict.fromkeys(TRAINING[:7], b"no image")
    again(folder / "training/images.pmtiles", TRAINING, instead=broken)
    found = checked(folder)
    assert len(found.problems) == 6 and found.problems[-1] == "training: 2 more tiles cannot be read"
    assert found.problems[0] == (
        "training, tile 15/100/200: images: not an image (expected PNG, JPEG, WebP or GeoTIFF)"
    )
    assert found.leaks["an image of the same bytes elsewhere"] == 0


def test_tiles_that_cannot_be_read_in_both_parts(folder):
    for part, tiles in (("training", TRAINING), ("validation", VALIDATION)):
        (folder / part / "images.pmtiles").unlink()
        write(folder / part / "images", tiles)
        file = folder / part / f"images/15/{tiles[0].x}/{tiles[0].y}.png"
        file.unlink()
        file.mkdir()  # as good as a file that may not be read, to an account that may read all
    found = checked(folder)
    assert len(found.problems) == 2 and "cannot read the tile" in found.problems[0]
    assert found.leaks["an image of the same bytes elsewhere"] == 0


def test_what_the_configuration_does_not_know(folder):
    text = (folder.parent / "config.toml").read_text()
    (folder.parent / "config.toml").write_text(text.replace("bands = [1, 2, 3]", "bands = [1, 2, 4]"))
    again(folder / "training/labels", TRAINING, draw=lambda tile: squares(tile) * 2)
    found = checked(folder)
    assert found.problems == [
        "training/labels: 12 tiles hold classes beyond the 2 that there are: 15/100/200, 15/100/201, 15/100/202, "
        "15/101/200, 15/101/201, ...",
        "training/images: tiles have 3 bands, the configuration takes band 4",
        "validation/images: tiles have 3 bands, the configuration takes band 4",
    ]
    assert found.parts["training"]["classes"]["class 2"] > 0
    (folder.parent / "config.toml").write_text(text.replace('"building"', '"road"'))
    again(folder / "training/labels", TRAINING, draw=squares)  # of no class that they name
    assert checked(folder).problems == [
        "validation/labels are of the classes background, building, the configuration has background, road"
    ]


def test_pixels_of_which_nothing_is_known_are_no_class(folder):
    def label(tile):
        return np.where(squares(tile) == 1, 1, np.where(np.arange(64) < 8, 255, 0)).astype(np.uint8)[
            :, :, np.newaxis
        ]

    import shutil

    before = checked(folder).problems
    shutil.rmtree(folder / "training/labels")
    with open_writer(folder / "training/labels", "png") as writer:
        writer.describe({"classes": classes_metadata(load_config(folder.parent / "config.toml").classes)})
        for tile in TRAINING:
            writer.write(tile, encode(label(tile), "png"))
    found = checked(folder)
    assert found.problems == before
    counted = sum(int((label(tile) == 255).sum()) for tile in TRAINING)
    assert found.parts["training"]["unknown_pixels"] == counted > 0
    assert set(found.parts["training"]["classes"]) == {"background", "building"}


def test_values_and_sizes(folder):
    again(folder / "training/images.pmtiles", TRAINING, form="tif", draw=lambda t: noise(t).astype(
        np.uint16 if t.x == 103 else np.uint8))  # fmt: skip
    found = checked(folder)
    assert found.problems == [
        "training/images: tiles differ in their values: 3 of 3 bands of uint16, 9 of 3 bands of uint8"
    ]
    again(folder / "training/images.pmtiles", TRAINING, draw=lambda t: noise(t, 32 if t.x == 103 else 64))
    found = checked(folder)
    differ = "training: tiles differ in size and are resized: images 3 of 32x32, 9 of 64x64; labels 12 of 64x64"
    advice = (
        "training: masks are as large as the images, and are evaluated on labels of that size alone: "
        "`rsp rasterize --like` makes them"
    )
    assert found.warnings == [differ, advice]
    again(folder / "training/labels", TRAINING, draw=lambda t: squares(t, 32 if t.x == 103 else 64))
    assert checked(folder).warnings == [differ.replace("labels 12", "labels 3 of 32x32, 9")]
    again(folder / "training/labels", TRAINING, draw=squares)
    again(folder / "training/images.pmtiles", TRAINING, draw=lambda t: noise(t)[:32])
    assert checked(folder).problems == ["training: tiles are not square: 12 of 64x32, 12 of 64x64"]
    text = (folder.parent / "config.toml").read_text()
    (folder.parent / "config.toml").write_text(text.replace("ts = 64", "ts = 128"))
    again(folder / "training/images.pmtiles", TRAINING)
    assert checked(folder).warnings == [
        "training: tiles are 24 of 64x64, and resized to the 128 of the configuration",
        "validation: tiles are 12 of 64x64, and resized to the 128 of the configuration",
    ]


def test_labels_that_are_empty(folder):
    again(folder / "training/labels", TRAINING, classes=[*CLASSES, ClassDef("road", (1, 2, 3))],
          draw=lambda tile: squares(tile) * (tile.x > 100))  # fmt: skip
    found = checked(folder, config=False)
    assert found.problems == [] and found.parts["training"]["empty_labels"] == 3
    assert found.warnings == [
        "training/labels: 3 of 12 are empty (25%)", "training/labels: no pixel of road",
    ]  # fmt: skip


def test_several_zooms_are_said(folder):
    for name, draw, classes in (("images.pmtiles", noise, None), ("labels", squares, CLASSES)):
        again(folder / "training" / name, [*TRAINING, Tile(1, 1, 9)], draw=draw, classes=classes)
    assert checked(folder).warnings == ["training: tiles of the zooms 9, 15 are mixed"]


def test_validation_of_another_zoom_is_said(folder):
    for zooms, said in (((9, 15), ["9"]), ((8, 9), ["8, 9"]), ((15,), [])):
        tiles = [Tile(110, 200, zoom) for zoom in zooms]
        for name, draw, classes in (("images.pmtiles", noise, None), ("labels", squares, CLASSES)):
            again(folder / "validation" / name, tiles, draw=draw, classes=classes)
        warned = [each for each in checked(folder).warnings if "no training tile is of the zoom" in each]
        assert [each.partition("(")[2].partition(")")[0] for each in warned] == said


def test_a_data_set_in_a_store(s3, tmp_path, rsp, monkeypatch):
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    root = location(f"s3://{s3.bucket()}/data")
    for part, tiles in (("training", TRAINING), ("validation", VALIDATION)):
        write(root / part / "images.pmtiles", tiles)
        write(root / part / "labels.pmtiles", tiles, draw=squares, classes=CLASSES)
    found = json.loads(rsp("info", "--json", "--dataset", root).stdout)
    assert found["problems"] == found["warnings"] == [] and found["found"][0]["parts"]["training"]["pairs"] == 12
