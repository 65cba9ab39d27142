"""Covers as arrays: the same tiles, files and errors as tile by tile."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsp.shared import covers
from rsp.shared.covers import Cover, cover_text, parse_tiles, read_tiles, write_cover
from rsp.shared.errors import CoverError
from rsp.shared.tilekeys import keys_of
from rsp.shared.tiles import MAX_ZOOM, Tile, read_cover


def tiles(last=MAX_ZOOM):
    """Strategy: tiles that are on the grid, of zooms up to the last."""

    def of(zoom):
        side = st.integers(0, (1 << zoom) - 1)
        return st.builds(Tile, side, side, st.just(zoom))

    return st.integers(0, last).flatmap(of)


def by_zoom(tile: Tile):
    return tile.z, tile.x, tile.y


@given(st.lists(tiles(), max_size=30))
def test_a_cover_is_the_set_of_its_tiles(some):
    cover = Cover.of(some)
    assert list(cover) == sorted(set(some), key=by_zoom)
    assert len(cover) == len(set(some)) and bool(cover) == bool(some)
    assert all(tile in cover for tile in some)
    assert cover.zooms == tuple(sorted({tile.z for tile in some}))
    assert b"".join(cover_text(cover)).decode() == "".join(f"{x},{y},{z}\n" for x, y, z in cover)
    assert parse_tiles(io.BytesIO(b"".join(cover_text(cover))), "it") == cover


few = st.sets(tiles(3), max_size=30)


@given(few, few)
def test_sets_of_tiles(one, other):
    first, second = Cover.of(one), Cover.of(other)
    assert set(first | second) == one | other
    assert set(first & second) == one & other
    assert set(first - second) == one - other
    assert (first == second) == (one == other)
    assert all((tile in first) == (tile in one) for tile in other)


def test_what_is_no_tile_is_in_no_cover():
    cover = Cover.of([Tile(1, 2, 3)])
    assert (1, 2, 3) in cover
    assert all(other not in cover for other in [(1, 2), (1, 2, 4), (1, -1, 3), (1, 1 << 32, 3), "1,2,3", None])
    assert cover != [Tile(1, 2, 3)]
    assert repr(cover) == "<Cover of 1 tiles, zooms 3>"


def test_one_zoom_or_an_error():
    assert Cover.of([(1, 2, 3)]).zoom() == 3
    with pytest.raises(CoverError, match="the cover lists no tile"):
        Cover().zoom()
    with pytest.raises(CoverError, match="mine mixes the zooms 3, 4; this tool needs a single one"):
        Cover.of([(1, 2, 4), (1, 2, 3)]).zoom("mine")


def test_keys_in_any_order():
    keys = np.array([5 << 32 | 1, 2 << 32 | 7, 5 << 32 | 1])
    assert list(Cover.from_keys(keys, 4)) == [Tile(2, 7, 4), Tile(5, 1, 4)]
    assert Cover.from_keys(keys, 4).keys(4).tolist() == keys_of([(5, 1, 4), (2, 7, 4)]).tolist()
    assert Cover.from_keys(keys, 4).keys(9).tolist() == []


@given(
    some=st.lists(tiles(18), min_size=1, max_size=40),
    joint=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
    comma=st.sampled_from([",", "\t", ", ", ",+"]),
    more=st.sampled_from(["", ",0.5", "\t\tx"]),
    start=st.sampled_from(["", "\ufeff", "\n"]),
    end=st.booleans(),
    block=st.integers(1, 80),
)
def test_covers_of_others_are_read_as_tile_by_tile(tmp_path_factory, some, joint, comma, more, start, end, block):
    lines = [comma.join(map(str, tile)) + more for tile in some]
    text = start + joint.join(lines) + (joint if end else "")
    path = tmp_path_factory.getbasetemp() / "some-cover"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covers, "BLOCK", max(block, 80))
        assert read_tiles(path) == Cover.of(read_cover(path)) == Cover.of(some)


@pytest.mark.parametrize("before", ["", "1,2,3\n" * 40, "1, 2,3\n" * 40])
@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\nx,y,z\n", "1,2\n", "1.0,2,3\n", "8,0,3\n", "0,-1,3\n", "0,0,31\n", "0,0,-1\n", "1,,3,4\n",
        ",1,2,3\n", "1,,3\n",
        "1,2,3\n4,5\n6,7,8,9\n", "99999999999999999999,1,3\n", "0,0,99999999999999999999", "1,2,3;\n", "\x00",
        "1,2,3\n1 2 3\n", "0x1,2,3",
    ],
)  # fmt: skip
def test_a_bad_cover_says_the_same_as_tile_by_tile(tmp_path, monkeypatch, before, text):
    monkeypatch.setattr(covers, "BLOCK", 100)
    (tmp_path / "c").write_text(before + text)
    with pytest.raises(CoverError) as slow:
        read_cover(tmp_path / "c")
    with pytest.raises(CoverError) as quick:
        read_tiles(tmp_path / "c")
    assert str(quick.value) == str(slow.value)


def test_no_cover_a_directory_an_empty_one_and_no_text(tmp_path, monkeypatch):
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "text").write_bytes(b"1,2,3\n1,2,4\n\xff\n")
    (tmp_path / "long").write_bytes(b"1,2,3\n" + b"1" * 300)
    monkeypatch.setattr(covers, "BLOCK", 8)
    for name, message in [
        ("none", "cannot read the cover .*none: .*No such file"), ("", "Is a directory"),
        ("empty", "empty lists no tile; make one with `rsp cover`"), ("text", "text: line 3 is not UTF-8"),
        ("long", "long, line 2: expected `x,y,z`, got a line of more than 8 bytes"),
    ]:  # fmt: skip
        with pytest.raises(CoverError, match=message):
            read_tiles(tmp_path / name)


def test_an_object(s3):
    from rsp.shared.locations import location

    where = location(f"s3://{s3.bucket()}/some.csv")
    assert write_cover(where, Cover.of([Tile(1, 2, 3), Tile(0, 1, 3)])) == 2
    assert list(read_tiles(where)) == [Tile(0, 1, 3), Tile(1, 2, 3)]
    with pytest.raises(CoverError, match="cannot read the cover"):
        read_tiles(where.with_name("other.csv"))


def test_many_tiles_are_written_and_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(covers, "ROWS", 7)
    monkeypatch.setattr(covers, "BLOCK", 64)
    some = [Tile(x, y, 11) for x in range(5, 105, 9) for y in range(990, 1010)]
    assert write_cover(tmp_path / "c", Cover.of(reversed(some))) == len(some)
    assert (tmp_path / "c").read_text() == "".join(f"{x},{y},{z}\n" for x, y, z in some)
    assert list(read_tiles(tmp_path / "c")) == some
    # Of anything else, the order stays.
    assert write_cover(tmp_path / "c", reversed(some)) == len(some)
    assert read_cover(tmp_path / "c") == some[::-1]


def test_what_loses_no_tile_is_no_copy():
    """A copy of an archive asks often for what is among what is there: that is all of it, mostly."""
    some, more = Cover.from_keys(np.arange(9), 9), Cover.from_keys(np.arange(12), 9)
    assert (some & more).keys(9) is some.keys(9)
    assert (some - Cover.from_keys(np.array([10]), 9)).keys(9) is some.keys(9)
