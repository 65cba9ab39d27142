"""What tile sets say of themselves: the same in an archive and in a directory, validated, carried along."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer

from rsp.components.subset.tool import subset
from rsp.shared.config import ClassDef
from rsp.shared.errors import TileSetError
from rsp.shared.images import encode
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import SIDECAR, TileSetInfo, classes_metadata, open_reader, open_writer
from rsp.shared.tileset.metadata import MAX_BYTES
from tests.tilesets import BLOCK, make_tileset, noise, squares

CLASSES = (ClassDef("background", (255, 255, 255)), ClassDef("dåch", (255, 20, 147)))
LABELS = {"classes": classes_metadata(CLASSES)}
FORMS = ["t", "t.pmtiles"]


def write(path, metadata, tiles=BLOCK[:2], *, resume=False, draw=squares):
    with open_writer(path, "png", resume=resume) as writer:
        writer.describe(metadata)
        for tile in tiles:
            writer.write(tile, encode(draw(tile)[:, :, None] if draw is squares else draw(tile), "png"))
    return path


def metadata_of(path):
    with open_reader(path) as reader:
        return reader.metadata


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_say_what_was_noted_and_what_follows_from_the_tiles(tmp_path, form):
    path = write(tmp_path / form, {**LABELS, "model": "m"})
    with open_reader(path) as reader:
        assert reader.info == TileSetInfo(classes=CLASSES, tile_size=64, zoom=15, model="m")
        assert reader.metadata["model"] == "m" and reader.metadata["format"] == "png"
    images = make_tileset(tmp_path / f"images{form}", fmt="tif", draw=lambda tile: noise(tile).astype(np.uint16))
    with open_reader(images) as reader:
        assert reader.info == TileSetInfo(tile_size=64, zoom=15, value_type="uint16", divisor=65535.0)


def test_a_directory_without_a_sidecar_is_read_as_before(tmp_path):
    path = make_tileset(tmp_path / "t")
    assert set(open_reader(path).tiles()) == set(BLOCK)  # it is not taken for a tile
    (path / SIDECAR).unlink()
    with open_reader(path) as reader:
        assert len(reader) == 12 and reader.metadata == {} and reader.info == TileSetInfo()


@pytest.mark.parametrize("form", FORMS)
def test_tiles_of_several_zooms_have_none(tmp_path, form):
    path = write(tmp_path / form, {})
    assert metadata_of(path)["zoom"] == 15
    write(path, {}, [Tile(0, 0, 3)], resume=True)
    assert "zoom" not in metadata_of(path)


@pytest.mark.parametrize("form", FORMS)
def test_tiles_that_are_added_must_be_of_the_same_classes_and_values(tmp_path, form):
    path = write(tmp_path / form, LABELS)
    road = ClassDef("road", (0, 0, 0))
    before = metadata_of(path)
    for other in (
        {"classes": classes_metadata((CLASSES[0], road))}, {"classes": classes_metadata((CLASSES[1], CLASSES[0]))},
        {"tile_size": 32},
    ):  # fmt: skip
        with pytest.raises(TileSetError, match="choose another output"):
            write(path, other, resume=True)
    assert metadata_of(path) == before
    # A further class at the end changes nothing of what is there.
    write(path, {"classes": classes_metadata((*CLASSES, road))}, resume=True)
    assert len(metadata_of(path)["classes"]) == 3
    write(path, {}, resume=True)
    assert len(metadata_of(path)["classes"]) == 3


def test_tiles_that_are_replaced_take_nothing_over_but_notes_of_others(tmp_path):
    path = write(tmp_path / "t", LABELS)
    (path / SIDECAR).write_text(json.dumps({**metadata_of(path), "attribution": "© somebody"}))
    write(path, {}, draw=noise)
    found = metadata_of(path)
    assert "classes" not in found and found["attribution"] == "© somebody" and found["value_type"] == "uint8"


def test_a_tile_that_is_gone_when_the_last_is_written(tmp_path):
    with open_writer(tmp_path / "t", "png") as writer:
        for tile in BLOCK[:2]:
            writer.write(tile, b"x")
        (tmp_path / "t/15/100/200.png").unlink()
    assert metadata_of(tmp_path / "t") == {"format": "png", "zoom": 15}


def test_a_failed_run_leaves_the_sidecar_as_it_was(tmp_path):
    path = write(tmp_path / "t", LABELS)
    before = (path / SIDECAR).read_bytes()
    with pytest.raises(RuntimeError), open_writer(path, "png") as writer:
        writer.describe({"note": 1})
        raise RuntimeError
    assert (path / SIDECAR).read_bytes() == before


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in FORMS for b in ("o", "o.pmtiles")])
def test_a_subset_carries_it_over(tmp_path, source, target):
    write(tmp_path / source, {**LABELS, "note": "n"}, BLOCK)
    write_cover(tmp_path / "cover", BLOCK[:3])
    subset(tmp_path / source, tmp_path / "cover", tmp_path / target, web_ui=False)
    assert metadata_of(tmp_path / target) == metadata_of(tmp_path / source)


WRONG = {
    "a list": ([], "JSON object"),
    "classes that are no list": ({"classes": {"title": "x"}}, "classes"),
    "one class": ({"classes": LABELS["classes"][:1]}, "1 classes"),
    "a class without a colour": ({"classes": [{"title": "a"}, {"title": "b"}]}, "'color' is missing"),
    "a colour that is none": ({"classes": [{"title": t, "color": "#12"} for t in "ab"]}, "not a colour"),
    "two of one title": ({"classes": [{"title": "a", "color": "red"}] * 2}, "same title"),
    "too many": ({"classes": [{"title": str(n), "color": "red"} for n in range(256)]}, "256 classes"),
    "a size as text": ({"tile_size": "512"}, "tile_size"),
    "a huge size": ({"tile_size": 1 << 40}, "tile_size"),
    "a zoom": ({"zoom": 99}, "zoom"),
    "a value type": ({"value_type": "complex64"}, "value_type"),
    "a divisor": ({"divisor": 0}, "divisor"),
    "a range": ({"value_range": [1]}, "value_range"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_strangers_write_is_validated(tmp_path, form, wrong):
    metadata, message = WRONG[wrong]
    path = make_tileset(tmp_path / form)
    if form == "t":
        (path / SIDECAR).write_text(json.dumps(metadata))
    else:
        with path.open("wb") as file:
            writer = Writer(file)
            writer.write_tile(zxy_to_tileid(0, 0, 0), b"x")
            writer.finalize({"tile_type": TileType.PNG, "tile_compression": Compression.NONE}, metadata)
    with open_reader(path) as reader, pytest.raises(TileSetError, match=message) as raised:
        _ = reader.info
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff", b'"' + b"x" * MAX_BYTES + b'"'])
def test_a_damaged_sidecar_is_said_and_never_overwritten(tmp_path, text):
    path = make_tileset(tmp_path / "t")
    (path / SIDECAR).write_bytes(text)
    with open_reader(path) as reader, pytest.raises(TileSetError, match=SIDECAR):
        _ = reader.metadata
    with pytest.raises(TileSetError, match=SIDECAR):
        open_writer(path, "png")
    assert (path / SIDECAR).read_bytes() == text


def test_metadata_that_unpack_to_gigabytes_are_refused(tmp_path):
    path = tmp_path / "t.pmtiles"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.write_tile(zxy_to_tileid(0, 0, 0), b"x")
        writer.finalize(
            {"tile_type": TileType.PNG, "tile_compression": Compression.NONE}, {"x": "y" * (2 * MAX_BYTES)}
        )
    with open_reader(path) as reader, pytest.raises(TileSetError, match=f"would have more than {MAX_BYTES} bytes"):
        _ = reader.metadata
