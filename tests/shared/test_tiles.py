"""Tiles and covers."""

from __future__ import annotations

import mercantile
import pytest

from rsp.shared.errors import CoverError, UsageError
from rsp.shared.tiles import (
    MAX_ZOOM,
    Tile,
    bounds_lonlat,
    bounds_mercator,
    check_tile,
    neighbours,
    read_cover,
    tile_block,
    tiles_of_blocks,
    write_cover,
    zoom_of,
)


def test_a_cover_is_read_as_it_was_written(tmp_path):
    tiles = [Tile(5, 6, 7), Tile(0, 0, 0), Tile(2**30 - 1, 0, MAX_ZOOM)]
    assert write_cover(tmp_path / "cover", iter(tiles)) == 3
    assert read_cover(tmp_path / "cover") == tiles
    assert (tmp_path / "cover").read_bytes() == b"5,6,7\n0,0,0\n1073741823,0,30\n"


def test_covers_of_others_are_read(tmp_path):
    (tmp_path / "c").write_bytes(b"\n 1, 2,3\r\n1\t3\t3\t42\n\n1,2,3\n[1, 2, 3]\n")
    assert read_cover(tmp_path / "c") == [Tile(1, 2, 3), Tile(1, 3, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\nx,y,z\n", "line 2: expected `x,y,z`, got 'x,y,z'"),
        ("1,2\n", "line 1: expected `x,y,z`"),
        ("1.0,2,3\n", "line 1: expected"),
        ("8,0,3\n", r"line 1: tile x=8 y=0 does not exist at zoom 3 \(0..7\)"),
        ("0,-1,3\n", "y=-1 does not exist"),
        ("0,0,31\n", "zoom 31 is outside 0..30"),
        ("0,0,-1\n", "zoom -1 is outside"),
        ("", "lists no tile"),
        ("\n \n", "lists no tile"),
        ("\udcff\udcfe", "cannot read the cover"),
    ],
)
def test_a_bad_cover_says_where_and_why(tmp_path, text, message):
    (tmp_path / "c").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CoverError, match=message):
        read_cover(tmp_path / "c")


def test_no_cover_and_a_directory_are_said(tmp_path):
    with pytest.raises(CoverError, match="No such file"):
        read_cover(tmp_path / "none")
    with pytest.raises(CoverError, match="Is a directory"):
        read_cover(tmp_path)


def test_one_zoom():
    assert zoom_of([Tile(0, 0, 4), Tile(1, 0, 4)]) == 4
    with pytest.raises(CoverError, match="mixes the zooms 3, 4"):
        zoom_of([Tile(0, 0, 4), Tile(1, 0, 3)])
    with pytest.raises(CoverError, match="images lists no tile"):
        zoom_of([], "images")


def test_bounds_are_those_of_the_grid():
    tile = Tile(529, 359, 10)
    assert bounds_lonlat(tile) == tuple(mercantile.bounds(tile))
    assert bounds_mercator(tile) == tuple(mercantile.xy_bounds(tile))
    with pytest.raises(CoverError):
        check_tile(1024, 0, 10)


def test_neighbours_wrap_around_the_earth_and_end_at_the_poles():
    around = neighbours(Tile(0, 0, 3))
    assert around == {
        (-1, 0): Tile(7, 0, 3), (-1, 1): Tile(7, 1, 3), (0, 1): Tile(0, 1, 3), (1, 0): Tile(1, 0, 3),
        (1, 1): Tile(1, 1, 3),
    }  # fmt: skip
    assert len(neighbours(Tile(3, 3, 3))) == 8
    assert neighbours(Tile(0, 0, 0)) == {(-1, 0): Tile(0, 0, 0), (1, 0): Tile(0, 0, 0)}


def test_blocks_of_tiles():
    first = (Tile(2, 1, 3), Tile(3, 2, 3))
    assert tiles_of_blocks([first], 4, "it") == {Tile(x, y, 3) for x in (2, 3) for y in (1, 2)}
    # Of blocks that overlap, no more are counted than lie in the box around them.
    assert tiles_of_blocks([first, first], 4, "it") == tiles_of_blocks([first], 4, "it")
    apart = (Tile(7, 7, 3), Tile(7, 7, 3))
    assert len(tiles_of_blocks([first, apart], 5, "it")) == 5
    with pytest.raises(UsageError, match="it would be 5 tiles, and the limit is 4"):
        tiles_of_blocks([first, apart], 4, "it")


def test_the_block_of_a_box():
    assert tile_block(-180, -90, 180, 90, 2) == (Tile(0, 0, 2), Tile(3, 3, 2))
    assert tile_block(*bounds_lonlat(Tile(5, 3, 3)), 3) == (Tile(5, 3, 3), Tile(5, 3, 3))
    assert tile_block(1, 1, 1, 1, 3) == (Tile(4, 3, 3), Tile(4, 3, 3))
