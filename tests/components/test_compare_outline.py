"""The outlines of `rsp compare --mode outline`, pixel by pixel, and the captions of `--mode side`."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from rsp.components.compare.naming import captions_of
from rsp.components.compare.outline import ALONE, DARK, colors_of, legend, line_width, outlined
from rsp.shared.config import ClassDef
from rsp.shared.errors import TileError
from rsp.shared.images import decode, encode_mask
from rsp.shared.locations import location
from rsp.shared.pictures import side
from rsp.shared.tileset import open_reader, open_writer
from tests.tilesets import BLOCK, COLORS, CONFIG, make_tileset

CLASSES = [ClassDef("background", (255, 255, 255)), ClassDef("building", (255, 20, 147))]

# A building of the label and one of the mask, five columns to the right of it. L and M are lines of one of them, B
# of both; l and m what one has alone inside of its line; # the casing, which has the tint below it.
DRAWN = """
..................
.###############..
#LLLLLBBBBBMMMMM#.
#L####M###L####M#.
#L#ll#M#.#L#mm#M#.
#L#ll#M#.#L#mm#M#.
#L#ll#M#.#L#mm#M#.
#L####M###L####M#.
#LLLLLBBBBBMMMMM#.
.###############..
..................
"""


def test_every_pixel_of_two_buildings():
    photograph = np.random.default_rng(0).integers(0, 256, (11, 18, 3), dtype=np.uint8)
    label, mask = np.zeros((11, 18), np.uint8), np.zeros((11, 18), np.uint8)
    label[2:9, 1:11] = 1
    mask[2:9, 6:16] = 1
    found = outlined(photograph, label, mask, CLASSES)
    of_label, of_mask = (np.array(color) for color in colors_of(CLASSES)[1])

    def mixed(below, color, opacity):
        return np.floor(below * (1 - opacity) + np.array(color) * opacity + 0.5)

    for row, line in enumerate(DRAWN.split()):
        for column, what in enumerate(line):
            below = photograph[row, column].astype(np.float32)
            alone = (label[row, column], mask[row, column])
            tint = of_label if alone == (1, 0) else of_mask if alone == (0, 1) else None
            tinted = below if tint is None else mixed(below, tint, ALONE)
            expected = {
                ".": below, "l": tinted, "m": tinted, "#": mixed(tinted, (0, 0, 0), DARK),
                "L": of_label, "M": of_mask, "B": np.array((255, 255, 255)),
            }[what]  # fmt: skip
            assert np.abs(found[row, column] - expected).max() <= 1, (row, column, what)


def test_the_edge_of_a_tile_is_no_outline():
    """What goes on in the next tile has a line at its sides only; lines grow with the tile."""
    for size, width in ((64, 1), (255, 1), (256, 2), (511, 2), (512, 3), (1024, 4)):
        assert line_width(size) == width
        label = np.zeros((size, size), np.uint8)
        label[:, 10:30] = 1
        found = outlined(np.full((size, size, 3), 90, np.uint8), label, label, CLASSES)
        row = (found == 255).all(2)
        expected = [*range(10, 10 + width), *range(30 - width, 30)]
        assert all(np.flatnonzero(each).tolist() == expected for each in row)
        assert (found[:, 10 + width + 1 : 30 - width - 1] == 90).all()  # both: no tint


def test_what_is_not_known_is_not_drawn():
    label, mask = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    photograph = np.full((16, 16, 3), 90, np.uint8)
    assert (outlined(photograph, label, mask, CLASSES) == photograph).all()
    label[4:12, 4:12], mask[4:12, 4:12] = 255, 1
    assert (outlined(photograph, label, mask, CLASSES) == photograph).all()
    ignored = [*CLASSES, ClassDef("unknown", (0, 0, 0), ignore=True)]
    assert (outlined(photograph, label, mask * 2, ignored) == photograph).all()
    with pytest.raises(TileError, match="image, label and mask differ in size: 16x16, 16x16, 8x16 pixels"):
        outlined(photograph, label, mask[:, :8], CLASSES)


def test_the_colours_of_classes_can_be_told_apart():
    names = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0), "red": (255, 0, 0),
             "navy": (0, 0, 128), "pale": (250, 200, 200), "pink": (255, 20, 147)}  # fmt: skip
    classes = [ClassDef("background", (255, 255, 255)), *(ClassDef(name, color) for name, color in names.items())]
    for colors in colors_of(classes)[1:]:
        ours, theirs = (np.array(each, int) for each in colors)
        assert np.abs(ours - theirs).sum() > 250
        for each in (ours, theirs):
            assert each @ (0.2126, 0.7152, 0.0722) >= 100 and each.max() - each.min() > 100
    # What has no hue gets one of its own.
    assert len({colors.mask for colors in colors_of(classes)[1:4]}) == 3
    # As in a stack: pink is predicted only, green is labelled only.
    of_label, of_mask = colors_of(CLASSES)[1]
    assert of_label[1] == max(of_label) == 255 and of_mask[0] == max(of_mask) == 255 and of_mask[1] < 80
    assert legend(CLASSES) == [
        ("#ffffff", "both"), ("#{:02x}{:02x}{:02x}".format(*of_label), "label only"),
        ("#{:02x}{:02x}{:02x}".format(*of_mask), "mask only"),
    ]  # fmt: skip
    assert [meaning for _, meaning in legend(classes)][1:3] == ["white, label only", "white, mask only"]


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    make_tileset(tmp_path / "images", draw=lambda tile: np.full((32, 32, 3), 100, np.uint8))
    for number, name in enumerate(("labels", "masks")):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8 + 2 * number : 20] = 1
        with open_writer(tmp_path / name, "png") as writer:
            for tile in BLOCK:
                writer.write(tile, encode_mask(mask, COLORS))
    return tmp_path


def flags(folder):
    return ["--labels", folder / "labels", "--masks", folder / "masks", "--config", folder / "config.toml"]


def test_a_tile_set_of_outlines_at_the_command_line(sets, rsp):
    """The images of a stack do as well: labels and masks are not drawn upon themselves."""
    for images in (["images"], ["images", "labels", "masks"]):
        out = sets / f"out{len(images)}"
        shown = [sets / name for name in images]
        ran = rsp(
            "compare", "--mode", "outline", "--images", *shown, *flags(sets), "--format", "png", "--out", out
        )
        assert ran.code == 0, ran.stderr
        with open_reader(out) as reader, open_reader(sets / "images") as photographs:
            label, mask = (np.zeros((32, 32), np.uint8) for _ in range(2))
            label[8:20, 8:20] = 1
            mask[8:20, 10:20] = 1
            expected = outlined(decode(photographs.read(BLOCK[0])), label, mask, CLASSES)
            assert reader.tiles() == sorted(BLOCK)
            assert all((decode(reader.read(tile)) == expected).all() for tile in BLOCK)
        page = (out / "index.html").read_text()
        data = json.loads(re.search(r"const page = (\{.*?\});?</script>", page)[1])
        assert [meaning for _, meaning in data["legend"]] == ["both", "label only", "mask only"]
        assert "L.map(" in page and data["notes"]


def test_outlines_need_one_photograph(sets, rsp):
    for images, told in ((["labels"], "got none but labels and masks"), (["images", "more"], "images, ")):
        shown = [sets / name for name in images]
        ran = rsp("compare", "--mode", "outline", "--images", *shown, *flags(sets), "--out", sets / "out")
        assert ran.code == 2 and "--mode outline draws over one tile set of --images" in ran.stderr
        assert told in ran.stderr
    make_tileset(sets / "large", draw=lambda tile: np.zeros((64, 64, 3), np.uint8))
    ran = rsp("compare", "--mode", "outline", "--images", sets / "large", *flags(sets), "--out", sets / "out")
    assert ran.code == 1 and "image, label and mask differ in size: 64x64, 32x32, 32x32 pixels" in ran.stderr


def test_captions_name_the_tile_sets():
    def named(*paths, labels="a/osm", masks="a/m.pmtiles"):
        places = [location(path) for path in paths]
        return captions_of(places, location(labels), location(masks))

    assert named("a/images", "a/osm", "a/m.pmtiles") == ("images", "label: osm", "mask: m")
    assert named("x/images", "y/images.pmtiles") == ("x/images", "y/images")
    assert named("a/Labels", "s3://b/masks.pmtiles", labels="a/Labels", masks="s3://b/masks.pmtiles") == (
        "Labels", "masks",
    )  # fmt: skip


def test_captions_fit_above_their_pictures():
    pictures = [np.full((256, 256, 3), value, np.uint8) for value in (0, 255)]
    plain, named = side(pictures), side(pictures, captions=["images", "a very long name " * 9])
    assert named.shape == (256 + 15, 256 * 2 + 2, 3) and (named[15:] == plain).all()
    assert (named[:15, 256:258] == 128).all()  # the line goes through
    bright = (named[:15] > 150).all(2)
    assert 20 < np.flatnonzero(bright[:, :256].any(0)).max() < 100
    assert 200 < np.flatnonzero(bright[:, 258:].any(0)).max() < 254  # cut, and dots at its end
    below = side(pictures, vertical=True, captions=["images", "labels"])
    assert (
        below.shape == (2 * (256 + 15) + 2, 256, 3) and (below[15:271] == 0).all() and (below[-256:] == 255).all()
    )


def test_pictures_without_captions(sets, rsp):
    shown = [sets / name for name in ("images", "masks")]
    ran = rsp("compare", "--images", *shown, "--no_captions", "--format", "png", "--out", sets / "out")
    assert ran.code == 0
    with open_reader(sets / "out") as reader:
        assert decode(reader.read(BLOCK[0])).shape == (32, 66, 3)
