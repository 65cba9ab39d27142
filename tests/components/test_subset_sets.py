"""rsp subset on several tile sets: links, what is joined and left out, zooms, formats, and places elsewhere."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsp.components.subset.component import subset as subset_component
from rsp.components.subset.tool import subset
from rsp.shared.config import ClassDef
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.images import decode, decode_mask, encode, encode_mask, sniff
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import ArchiveReader, classes_metadata, open_reader, open_writer
from tests.ranges import RangeServer
from tests.tilesets import BLOCK, COLORS, make_tileset, noise, squares

SOME = BLOCK[2:7]


def content(path) -> dict[Tile, bytes]:
    with open_reader(path) as reader:
        return {tile: reader.read(tile) for tile in reader.tiles()}


def fill(path, tiles: dict[Tile, bytes], fmt: str = "png", **metadata):
    with open_writer(path, fmt) as writer:
        writer.describe(metadata)
        for tile, data in tiles.items():
            writer.write(tile, data)
    return path


@pytest.fixture
def cover(tmp_path) -> Path:
    write_cover(tmp_path / "cover", SOME)
    return tmp_path / "cover"


# --- links --------------------------------------------------------------------------------------------------


def test_symbolic_links_are_relative_and_survive_a_move_of_both(tmp_path, cover, rsp):
    tiles = content(make_tileset(tmp_path / "here/in", fmt="webp"))
    out = tmp_path / "here/parts/out"
    ran = rsp("subset", "--mode", "link", "--dir", tmp_path / "here/in", "--filter", cover, out, "--no_web_ui")
    assert ran.code == 0 and "rsp subset: tiles: 5, skipped: 0" in ran.stderr
    assert content(out) == {tile: tiles[tile] for tile in SOME}
    assert str((out / "15/100/202.webp").readlink()) == "../../../../in/15/100/202.webp"
    assert all(path.is_symlink() for path in out.glob("15/*/*")) and (out / "metadata.json").is_file()
    (tmp_path / "here").rename(tmp_path / "there")
    assert content(tmp_path / "there/parts/out") == {tile: tiles[tile] for tile in SOME}


def test_links_lead_through_links_of_folders(tmp_path, cover):
    """Relative to where a folder really is: by its name, `..` would lead elsewhere."""
    tiles = content(make_tileset(tmp_path / "disk/deep/in"))
    (tmp_path / "in").symlink_to(tmp_path / "disk/deep/in")
    (tmp_path / "disk/out").mkdir()
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/out").symlink_to(tmp_path / "disk/out")
    subset(tmp_path / "in", cover, tmp_path / "a/b/out", mode="link", web_ui=False)
    assert content(tmp_path / "disk/out") == {tile: tiles[tile] for tile in SOME}


def test_hard_links_are_the_files_themselves(tmp_path, cover, rsp):
    make_tileset(tmp_path / "in")
    for flags in (["--hardlink"], ["--mode", "hardlink"]):  # the second time upon what is there
        ran = rsp("subset", *flags, "--dir", tmp_path / "in", "--filter", cover, tmp_path / "out", "--no_web_ui")
        assert ran.code == 0
        for tile in SOME:
            name = f"15/{tile.x}/{tile.y}.png"
            assert (tmp_path / "out" / name).samefile(tmp_path / "in" / name)
            assert (tmp_path / "in" / name).stat().st_nlink == 2
        assert not list(tmp_path.rglob(".rsp-*"))


@pytest.mark.parametrize("mode", ["link", "hardlink"])
def test_who_writes_over_a_link_leaves_what_it_led_to(tmp_path, cover, mode):
    before = content(make_tileset(tmp_path / "in"))
    subset(tmp_path / "in", cover, tmp_path / "out", mode=mode, web_ui=False)
    make_tileset(tmp_path / "out", SOME, draw=squares)
    assert content(tmp_path / "in") == before and content(tmp_path / "out")[SOME[0]] != before[SOME[0]]
    subset(tmp_path / "in", cover, tmp_path / "more", mode=mode, web_ui=False)
    subset(tmp_path / "more", cover, mode="delete")
    assert content(tmp_path / "in") == before


def test_links_keep_what_is_there_when_resumed_and_replace_it_otherwise(tmp_path, cover):
    make_tileset(tmp_path / "in")
    make_tileset(tmp_path / "out", SOME[:2], draw=squares)
    result = subset(tmp_path / "in", cover, tmp_path / "out", mode="link", resume=True, web_ui=False)
    assert (result.tiles, result.skipped) == (3, 2) and not (tmp_path / "out/15/100/202.png").is_symlink()
    assert subset(tmp_path / "in", cover, tmp_path / "out", mode="link", web_ui=False).tiles == 5
    assert (tmp_path / "out/15/100/202.png").is_symlink()


@pytest.mark.parametrize("mode", ["link", "hardlink"])
def test_links_that_cannot_be(tmp_path, cover, mode):
    make_tileset(tmp_path / "in")
    make_tileset(tmp_path / "in.pmtiles")
    for source, target in (("in", "out.pmtiles"), ("in.pmtiles", "out")):
        with pytest.raises(UsageError, match="from a directory to a directory"):
            subset(tmp_path / source, cover, tmp_path / target, mode=mode)
    with pytest.raises(UsageError, match="leave out --format"):
        subset(tmp_path / "in", cover, tmp_path / "out", mode=mode, tile_format="webp")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.pmtiles", "cover"}


# --- joined, left out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", ".pmtiles"])
def test_of_tiles_that_several_have_that_of_the_first_counts(tmp_path, rsp, form):
    names = {"a": range(4), "b": range(2, 8), "c": range(6, 12)}
    sets = {
        name: fill(tmp_path / f"{name}{form}", {BLOCK[n]: f"{name}{n}".encode() for n in numbers})
        for name, numbers in names.items()
    }
    expected = [f"{'a' if n < 4 else 'b' if n < 8 else 'c'}{n}".encode() for n in range(12)]
    for out in ("out", "out.pmtiles"):
        ran = rsp(
            "subset", "--dir", sets["a"], "--union", sets["b"], "--union", sets["c"], tmp_path / out, "--no_web_ui"
        )
        assert ran.code == 0, ran.stderr
        assert content(tmp_path / out) == dict(zip(BLOCK, expected, strict=True))


def test_intersection_and_difference_are_of_covers_or_tile_sets(tmp_path, rsp, cover):
    tiles = content(make_tileset(tmp_path / "in.pmtiles"))
    make_tileset(tmp_path / "few", BLOCK[4:10])
    write_cover(tmp_path / "bad.csv", BLOCK[:6])

    def chosen(*flags) -> set[Tile]:
        ran = rsp("subset", "--dir", tmp_path / "in.pmtiles", *flags, tmp_path / "out.pmtiles", "--no_web_ui")
        assert ran.code == 0, ran.stderr
        found = content(tmp_path / "out.pmtiles")
        assert found == {tile: tiles[tile] for tile in found}
        return set(found)

    assert chosen() == set(BLOCK)
    assert chosen("--difference", tmp_path / "bad.csv") == set(BLOCK[6:])
    assert chosen("--difference", tmp_path / "few") == set(BLOCK[:4] + BLOCK[10:])
    assert chosen("--intersection", tmp_path / "few") == set(BLOCK[4:10])
    assert chosen("--intersection", cover, "--intersection", tmp_path / "few") == set(BLOCK[4:7])
    few_and_bad = ("--difference", tmp_path / "few", "--difference", tmp_path / "bad.csv")
    assert chosen(*few_and_bad) == set(BLOCK[10:])
    assert chosen("--filter", cover, "--filter", tmp_path / "bad.csv") == set(BLOCK[:7])
    assert chosen("--intersection", tmp_path / "few", "--difference", tmp_path / "bad.csv") == set(BLOCK[6:10])


def test_what_is_left_out_by_a_cover_is_no_failure_and_what_is_nowhere_is_one(tmp_path, rsp, cover):
    make_tileset(tmp_path / "in", BLOCK[:5])
    write_cover(tmp_path / "bad", BLOCK[:3])
    ran = rsp(
        "subset", "--dir", tmp_path / "in", "--filter", cover, "--difference", tmp_path / "bad", tmp_path / "out"
    )
    assert ran.code == 3 and set(content(tmp_path / "out")) == set(BLOCK[3:5])
    assert set(read_cover(tmp_path / "out.failed.csv")) == set(BLOCK[5:7])


def test_nothing_that_is_left_is_an_error(tmp_path, rsp, cover):
    make_tileset(tmp_path / "in")
    ran = rsp("subset", "--dir", tmp_path / "in", "--difference", tmp_path / "in", tmp_path / "out")
    assert ran.code == 1 and "no tile of" in ran.stderr and "is left by --zoom" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_delete_by_a_difference_but_never_all_for_want_of_a_cover(tmp_path, rsp, cover):
    make_tileset(tmp_path / "in.pmtiles")
    ran = rsp("subset", "--delete", "--dir", tmp_path / "in.pmtiles")
    assert (
        ran.code == 2 and "say which with --filter" in ran.stderr and len(content(tmp_path / "in.pmtiles")) == 12
    )
    assert rsp("subset", "--delete", "--dir", tmp_path / "in.pmtiles", "--difference", cover).code == 0
    assert set(content(tmp_path / "in.pmtiles")) == set(SOME)
    for mode in ("move", "delete"):
        with pytest.raises(UsageError, match="leave out --union"):
            subset(tmp_path / "in.pmtiles", cover, mode=mode, union=[tmp_path / "x"])


@pytest.mark.parametrize(("text", "zooms"), [("3", {3}), ("2,4", {2, 4}), ("2-3", {2, 3}), ("0-30", {2, 3, 4})])
def test_zooms_are_chosen(tmp_path, text, zooms):
    for form in ("in", "in.pmtiles"):
        fill(tmp_path / form, {Tile(z, z, z): f"{z}".encode() for z in (2, 3, 4)})
        subset(tmp_path / form, out=tmp_path / f"out-{form}", zoom=text, web_ui=False)
        assert content(tmp_path / f"out-{form}") == {Tile(z, z, z): f"{z}".encode() for z in zooms}


@pytest.mark.parametrize("text", ["x", "4-2", "31", "1-", "-1", "2,,3"])
def test_zooms_that_are_none(tmp_path, text):
    make_tileset(tmp_path / "in")
    with pytest.raises(UsageError, match="--zoom"):
        subset(tmp_path / "in", out=tmp_path / "out", zoom=text)


def test_sets_that_contradict_each_other_are_not_joined(tmp_path):
    one, other = ([ClassDef("a", (0, 0, 0)), ClassDef(name, (1, 1, 1))] for name in "bc")
    fill(tmp_path / "1.pmtiles", {BLOCK[0]: b"1"}, classes=classes_metadata(one), note="1", only="1")
    fill(tmp_path / "2.pmtiles", {BLOCK[1]: b"2"}, classes=classes_metadata(other))
    fill(tmp_path / "3.pmtiles", {BLOCK[1]: b"3"}, classes=classes_metadata(one), note="3", more="3")
    with pytest.raises(TileSetError, match="tiles of the classes a, b, and those to add are of a, c"):
        subset(tmp_path / "1.pmtiles", out=tmp_path / "out.pmtiles", union=[tmp_path / "2.pmtiles"])
    subset(tmp_path / "1.pmtiles", out=tmp_path / "out.pmtiles", union=[tmp_path / "3.pmtiles"], web_ui=False)
    with open_reader(tmp_path / "out.pmtiles") as reader:
        found = reader.metadata
    assert (found["note"], found["only"], found["more"]) == ("1", "1", "3") and len(found["classes"]) == 2


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["in", "in.pmtiles"])
@pytest.mark.parametrize("fmt", ["png", "jpg", "webp", "tif", "jpeg"])
def test_imagery_is_converted_as_it_would_have_been_encoded(tmp_path, form, fmt, rsp):
    make_tileset(tmp_path / form, BLOCK[:3])
    ran = rsp("subset", "--dir", tmp_path / form, "--format", fmt, tmp_path / "out.pmtiles", "--no_web_ui")
    assert ran.code == 0, ran.stderr
    fmt = {"jpeg": "jpg"}.get(fmt, fmt)
    assert content(tmp_path / "out.pmtiles") == {tile: encode(noise(tile), fmt) for tile in BLOCK[:3]}
    with open_reader(tmp_path / "out.pmtiles") as reader:
        assert reader.format == fmt and reader.metadata["format"] == fmt


def test_a_tile_that_has_the_format_keeps_its_bytes_unless_a_quality_is_given(tmp_path):
    make_tileset(tmp_path / "in", BLOCK[:2])
    odd = encode(noise(BLOCK[2]), "jpg") + b"odd"
    (tmp_path / "in/15/100/202.jpg").write_bytes(odd)
    with pytest.raises(TileSetError, match="mixes jpg and png tiles; a subset has one format: choose it"):
        subset(tmp_path / "in", out=tmp_path / "out")
    subset(tmp_path / "in", out=tmp_path / "out", tile_format="jpg", web_ui=False)
    assert content(tmp_path / "out")[BLOCK[2]] == odd and sniff(content(tmp_path / "out")[BLOCK[0]]) == "jpg"
    subset(tmp_path / "out", out=tmp_path / "small", quality=5, web_ui=False)
    before, small = content(tmp_path / "out"), content(tmp_path / "small")
    assert all(len(small[tile]) < len(before[tile]) / 2 for tile in BLOCK[:3])
    assert small[BLOCK[0]] == encode(decode(before[BLOCK[0]]), "jpg", quality=5)


def test_joined_sets_of_two_formats_become_one(tmp_path):
    make_tileset(tmp_path / "a", BLOCK[:2])
    make_tileset(tmp_path / "b.pmtiles", BLOCK[1:4], "webp")
    with pytest.raises(TileSetError, match="these tile sets have png and webp tiles"):
        subset(tmp_path / "a", out=tmp_path / "out", union=[tmp_path / "b.pmtiles"])
    subset(tmp_path / "a", out=tmp_path / "out", union=[tmp_path / "b.pmtiles"], tile_format="webp", web_ui=False)
    joined = content(tmp_path / "out")
    assert joined[BLOCK[1]] == encode(noise(BLOCK[1]), "webp")
    assert joined[BLOCK[3]] == content(tmp_path / "b.pmtiles")[BLOCK[3]]


@pytest.mark.parametrize("with_classes", [True, False])
def test_labels_keep_values_and_colours(tmp_path, rsp, with_classes):
    """By the classes that the set lists, or by the palette of each tile: there and back is the same file."""
    colors = [*COLORS, (0, 0, 0)]
    masks = {tile: encode_mask(squares(tile), colors) for tile in BLOCK[:3]}
    classes = [ClassDef(f"c{n}", color) for n, color in enumerate(colors)]
    metadata = {"classes": classes_metadata(classes)} if with_classes else {}
    fill(tmp_path / "in", masks, **metadata)
    for fmt in ("webp", "jpg"):
        ran = rsp("subset", "--dir", tmp_path / "in", "--format", fmt, tmp_path / "no")
        assert ran.code == (2 if with_classes else 1) and "png" in ran.stderr and not (tmp_path / "no").exists()
    subset(tmp_path / "in", out=tmp_path / "tif.pmtiles", tile_format="tif", web_ui=False)
    for tile, data in content(tmp_path / "tif.pmtiles").items():
        assert sniff(data) == "tif" and np.array_equal(decode_mask(data), squares(tile))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), decode(masks[tile]))
    subset(tmp_path / "tif.pmtiles", out=tmp_path / "png", tile_format="png", web_ui=False)
    back = content(tmp_path / "png")
    # A TIFF has 256 colours: black ones at the end cannot be told from those that are none.
    assert back == (masks if with_classes else {tile: encode_mask(squares(tile), COLORS) for tile in masks})


def test_pictures_with_a_palette_are_pictures_if_one_says_so_and_greys_labels(tmp_path):
    mask = encode_mask(squares(BLOCK[0]), COLORS)
    fill(tmp_path / "in", {BLOCK[0]: mask})
    subset(tmp_path / "in", out=tmp_path / "webp", tile_format="webp", kind="image", web_ui=False)
    assert content(tmp_path / "webp") == {BLOCK[0]: encode(decode(mask), "webp")}
    grey = encode(squares(BLOCK[0])[:, :, np.newaxis], "png")
    fill(tmp_path / "grey", {BLOCK[0]: grey})
    with pytest.raises(UsageError, match="holds labels: png and tif keep"):
        subset(tmp_path / "grey", out=tmp_path / "no", tile_format="jpg", kind="label")
    subset(tmp_path / "grey", out=tmp_path / "jpg", tile_format="jpg", web_ui=False)


def test_transparency_stays_where_the_format_has_it(tmp_path):
    image = np.dstack([noise(BLOCK[0]), np.full((64, 64, 1), 7, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    fill(tmp_path / "in", {BLOCK[0]: buffer.getvalue()})
    for fmt, mode in (("webp", "RGBA"), ("jpg", "RGB")):
        subset(tmp_path / "in", out=tmp_path / fmt, tile_format=fmt, web_ui=False)
        assert Image.open(io.BytesIO(content(tmp_path / fmt)[BLOCK[0]])).mode == mode


def test_a_colour_that_is_transparent_stays_so(tmp_path):
    """PNG has one in pictures without an alpha band."""
    colour = Image.new("RGB", (64, 64), (1, 2, 3))
    colour.paste((200, 100, 50), (0, 0, 32, 64))
    buffer = io.BytesIO()
    colour.save(buffer, "PNG", transparency=(1, 2, 3))
    fill(tmp_path / "in", {BLOCK[0]: buffer.getvalue()})
    subset(tmp_path / "in", out=tmp_path / "out", tile_format="webp", web_ui=False)
    alpha = np.asarray(Image.open(io.BytesIO(content(tmp_path / "out")[BLOCK[0]])).getchannel("A"))
    assert (alpha[:, :32] == 255).all() and (alpha[:, 32:] == 0).all()


@pytest.mark.parametrize("mode", ["link", "hardlink", "delete"])
@pytest.mark.parametrize("options", [{"tile_format": "png"}, {"quality": 50}])
def test_what_takes_tiles_as_they_are_converts_none(tmp_path, cover, mode, options):
    make_tileset(tmp_path / "in", fmt="webp")
    with pytest.raises(UsageError, match=f"`--mode {mode}` leaves tiles as they are"):
        subset(tmp_path / "in", cover, None if mode == "delete" else tmp_path / "out", mode=mode, **options)
    assert len(content(tmp_path / "in")) == len(BLOCK) and not (tmp_path / "out").exists()


def test_a_palette_keeps_colours_of_which_a_tile_has_none(tmp_path):
    colors = [*COLORS, (9, 9, 9), (1, 0, 0)]
    fill(tmp_path / "in", {BLOCK[0]: encode_mask(squares(BLOCK[0]), colors)})
    subset(tmp_path / "in", out=tmp_path / "tif", tile_format="tif", web_ui=False)
    subset(tmp_path / "tif", out=tmp_path / "png", tile_format="png", web_ui=False)
    assert content(tmp_path / "png") == content(tmp_path / "in")


def test_tiles_that_cannot_be_converted_are_listed(tmp_path, rsp):
    make_tileset(tmp_path / "in", BLOCK[:3])
    (tmp_path / "in/15/100/201.png").write_bytes(b"no image")
    out = tmp_path / "out.pmtiles"
    ran = rsp("subset", "--dir", tmp_path / "in", "--format", "webp", "--workers", 2, out, "--no_web_ui")
    assert ran.code == 3 and "15/100/201: not an image" in ran.stderr and len(content(out)) == 2
    assert read_cover(tmp_path / "out.pmtiles.failed.csv") == [BLOCK[1]]
    fill(tmp_path / "wide", {BLOCK[0]: encode(np.zeros((8, 8, 5), np.float32), "tif")}, "tif")
    ran = rsp("subset", "--dir", tmp_path / "wide", "--format", "png", tmp_path / "none")
    assert ran.code == 1 and "png cannot hold 5 bands of float32" in ran.stderr


def test_a_move_may_convert(tmp_path, cover):
    make_tileset(tmp_path / "in")
    subset(tmp_path / "in", cover, tmp_path / "out", mode="move", tile_format="webp", web_ui=False)
    assert content(tmp_path / "out") == {tile: encode(noise(tile), "webp") for tile in SOME}
    assert set(content(tmp_path / "in")) == set(BLOCK) - set(SOME)


@pytest.mark.parametrize(("fmt", "quality"), [("png", 80), ("tif", 80)])
def test_a_quality_is_of_formats_that_have_one(tmp_path, fmt, quality, rsp):
    make_tileset(tmp_path / "in")
    with pytest.raises(UsageError, match=f"{fmt} does not"):
        subset(tmp_path / "in", out=tmp_path / "out", tile_format=fmt, quality=quality)
    assert rsp("subset", "--dir", tmp_path / "in", "--quality", 0, tmp_path / "out").code == 2
    assert rsp("subset", "--dir", tmp_path / "in", "--format", "gif", tmp_path / "out").code == 2


# --- elsewhere ----------------------------------------------------------------------------------------------


def test_in_every_direction(tmp_path, s3, cover):
    tiles = content(make_tileset(tmp_path / "in"))
    bucket = s3.bucket()
    open_storage(f"s3://{bucket}").upload("in.pmtiles", make_tileset(tmp_path / "in.pmtiles"))
    subset(tmp_path / "in", out=f"s3://{bucket}/folder", web_ui=False)
    with RangeServer(tmp_path) as server:
        sources = [tmp_path / "in", tmp_path / "in.pmtiles", f"s3://{bucket}/folder", f"s3://{bucket}/in.pmtiles",
                   f"{server.url}/in.pmtiles"]  # fmt: skip
        for number, source in enumerate(sources):
            for target in (tmp_path / f"out{number}", tmp_path / f"out{number}.pmtiles", f"s3://{bucket}/{number}",
                           f"s3://{bucket}/{number}.pmtiles"):  # fmt: skip
                assert subset(source, cover, target, web_ui=False).tiles == 5
                assert content(target) == {tile: tiles[tile] for tile in SOME}


def test_an_archive_elsewhere_is_read_in_few_requests_and_only_where_tiles_are_wanted(tmp_path, monkeypatch):
    for name, value in (("entries.ROOT_SIZE", 1000), ("entries.LEAF_ENTRIES", 256), ("ranges.HEAD", 200)):
        monkeypatch.setattr(f"rsp.shared.tileset.{name}", value)
    tiles = {Tile(x, y, 12): os.urandom(200 + x * y % 191) for x in range(100) for y in range(100)}
    fill(tmp_path / "in.pmtiles", tiles)
    some = [tile for tile in tiles if tile.x < 16 and tile.y < 16]
    write_cover(tmp_path / "cover", some)
    with RangeServer(tmp_path) as server:
        subset(f"{server.url}/in.pmtiles", tmp_path / "cover", tmp_path / "out.pmtiles", web_ui=False)
        assert content(tmp_path / "out.pmtiles") == {tile: tiles[tile] for tile in some}
        assert len(server.asked) < 12, "the head, the root, a leaf, and squares of tiles"
        assert sum(last - first for first, last in server.asked) < 200_000, "not all tiles"
        with ArchiveReader(tmp_path / "in.pmtiles") as reader:
            start, length = (reader._header[f"leaf_directory_{name}"] for name in ("offset", "length"))
        leaves = [(first, last) for first, last in server.asked if start <= first < start + length]
        assert leaves and sum(last - first for first, last in leaves) < length / 4, "not the other leaves"


def test_component(run_component, tmp_path, cover):
    make_tileset(tmp_path / "in.pmtiles")
    make_tileset(tmp_path / "bad.pmtiles", BLOCK[:3])
    given = {"tiles": tmp_path / "in.pmtiles", "difference": tmp_path / "bad.pmtiles"}
    step = run_component(subset_component, given, tile_format="webp", zoom="15")
    assert content(step.path("subset")) == {tile: encode(noise(tile), "webp") for tile in BLOCK[3:]}
