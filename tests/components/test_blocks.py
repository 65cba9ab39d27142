"""Covers cut into blocks by quadkey, and the rings around them."""

from __future__ import annotations

from itertools import pairwise

import mercantile
import numpy as np
import pytest

from rsp.components.cover.blocks import OWN, SEEN, Block, blocks, cut, quadkeys, read_keys, ring
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.tiles import Tile, neighbours, read_cover, write_cover


def keys_of(tiles):
    return np.unique(np.array([tile.x << 32 | tile.y for tile in tiles], np.int64))


def tiles_of(keys, zoom):
    return [Tile(key >> 32, key & 0xFFFFFFFF, zoom) for key in keys.tolist()]


def scattered(rng, zoom, count):
    """Tiles in clusters, some at the edges of the world."""
    side = 1 << zoom
    centres = rng.integers(0, side, (5, 2))
    centres[0] = 0, side - 1
    spread = centres[rng.integers(0, 5, count)] + rng.integers(-6, 7, (count, 2))
    return sorted({Tile(int(x) % side, int(y), zoom) for x, y in spread if 0 <= y < side})


@pytest.mark.parametrize("zoom", [4, 12, 30])
def test_quadkeys_are_those_of_mercantile(zoom):
    tiles = scattered(np.random.default_rng(zoom), zoom, 200)
    digits = [int(mercantile.quadkey(tile), 4) for tile in tiles]
    assert quadkeys(keys_of(tiles)).tolist() == digits


@pytest.mark.parametrize(("seed", "size"), [(0, 1), (1, 7), (2, 50), (3, 10_000)])
def test_each_tile_is_in_one_block_and_its_neighbours_are_seen(seed, size):
    zoom = [5, 9, 18, 30][seed]
    tiles = scattered(np.random.default_rng(seed), zoom, 300)
    cover = set(tiles)
    found = list(cut(keys_of(tiles), zoom, size))
    own = [tiles_of(block.own, zoom) for block in found]
    assert sorted(tile for block in own for tile in block) == tiles
    for block, mine in zip(found, own, strict=True):
        assert 0 < len(mine) <= size
        around = {near for tile in mine for near in neighbours(tile).values()}
        assert set(tiles_of(block.ring, zoom)) == (around & cover) - set(mine)
    # By quadkey: the blocks follow each other along the curve.
    ends = [(min(codes), max(codes)) for codes in (quadkeys(block.own).tolist() for block in found)]
    assert all(last < first for (_, last), (first, _) in pairwise(ends))


def test_blocks_are_about_as_large_as_they_may_be():
    x, y = np.meshgrid(np.arange(131_000, 131_200), np.arange(90_123, 90_323))
    found = list(cut(np.sort((x << 32 | y).ravel()), 18, 1000))
    assert len(found) <= 2 * 40 and max(len(block.own) for block in found) > 500


def test_a_million_tiles_and_what_they_take():
    x, y = np.meshgrid(np.arange(131_000, 132_000), np.arange(90_000, 91_000))
    found = [(len(block.own), len(block.ring)) for block in cut(np.sort((x << 32 | y).ravel()), 18)]
    assert sum(own for own, _ in found) == 1_000_000 and max(found) <= (20_000, 700) and len(found) < 100


def test_what_is_far_away_leaves_a_block_as_it_is():
    near = {Tile(x, y, 18) for x in range(1000, 1040) for y in range(2000, 2040)}
    far = {Tile(x, y, 18) for x in range(200_000, 200_050) for y in range(100_000, 100_040)}
    alone, both = ({block.name for block in cut(keys_of(tiles), 18, 200)} for tiles in (near, near | far))
    assert alone < both
    # Another tile in the ring is another block: windows see it.
    missing = near - {Tile(1020, 2020, 18)}
    changed = {block.name for block in cut(keys_of(missing), 18, 200)} - alone
    assert 0 < len(changed) < 8


def test_the_name_tells_rings_of_equal_length_apart():
    own, one, other = keys_of([Tile(5, 5, 9)]), keys_of([Tile(5, 6, 9)]), keys_of([Tile(6, 5, 9)])
    assert Block(9, own, one).name == Block(9, own, one.copy()).name != Block(9, own, other).name
    assert Block(9, own, one).name != Block(8, own, one).name


def test_a_ring_of_one_tile_and_of_all():
    tiles = [Tile(x, y, 3) for x in range(8) for y in range(8)]
    cover = keys_of(tiles)
    assert tiles_of(ring(keys_of([Tile(0, 0, 3)]), cover, 3), 3) == [
        Tile(0, 1, 3), Tile(1, 0, 3), Tile(1, 1, 3), Tile(7, 0, 3), Tile(7, 1, 3)
    ]  # fmt: skip
    assert not len(ring(cover, cover, 3))
    assert next(cut(keys_of([Tile(0, 0, 0)]), 0)).own.tolist() == [0]


def test_what_is_written(tmp_path):
    tiles = [Tile(x, y, 15) for x in range(100, 110) for y in range(200, 203)]
    write_cover(tmp_path / "cover.csv", reversed(tiles))
    result = blocks(tmp_path / "cover.csv", tmp_path / "blocks", size=8)
    assert (result.tiles, result.blocks, result.largest) == (30, len(result.written), 8)
    own = [read_cover(name + OWN) for name in result.written]
    assert sorted(tile for block in own for tile in block) == tiles
    for name, block in zip(result.written, own, strict=True):
        seen = read_cover(name + SEEN)
        assert set(block) < set(seen) and seen == sorted(seen)
    assert {path.name for path in (tmp_path / "blocks").iterdir()} == {
        name.rpartition("/")[2] + suffix for name in result.written for suffix in (OWN, SEEN)
    }
    # A second run leaves what is there.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    assert blocks(tmp_path / "cover.csv", tmp_path / "blocks", size=8) == result
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()} == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1,2,3\n1,2\n", "line 2: expected `x,y,z`"), ("1,2,3\n1,2,4\n", "mixes the zooms 3, 4"),
     ("8,0,3\n", "line 1: tile x=8 y=0 does not exist"), ("0,-1,3\n", "line 1: tile x=0 y=-1"),
     ("0,0,31\n", "zoom 31 is outside"), ("\n", "lists no tile"), (f"0,{1 << 70},3\n", "does not exist")],
)  # fmt: skip
def test_covers_that_cannot_be_cut(tmp_path, text, reason):
    (tmp_path / "cover.csv").write_text(text)
    with pytest.raises(CoverError, match=reason):
        blocks(tmp_path / "cover.csv", tmp_path / "blocks")
    assert not (tmp_path / "blocks").exists()


def test_covers_in_other_spellings(tmp_path):
    (tmp_path / "cover.csv").write_text("1\t2\t3\textra\n\n0,5,3\n1,2,3\n")
    zoom, keys = read_keys(tmp_path / "cover.csv")
    assert zoom == 3 and tiles_of(keys, 3) == [Tile(0, 5, 3), Tile(1, 2, 3)]
    (tmp_path / "cover.csv").write_text("1,2,3,0.7\r\n\r\n0,5,3,#\r\n")
    assert tiles_of(read_keys(tmp_path / "cover.csv")[1], 3) == [Tile(0, 5, 3), Tile(1, 2, 3)]


def test_a_block_has_a_tile(tmp_path):
    write_cover(tmp_path / "cover.csv", [Tile(0, 0, 1)])
    with pytest.raises(UsageError, match="at least 1 tile, got a size of 0"):
        blocks(tmp_path / "cover.csv", tmp_path / "blocks", size=0)
