"""Splits of covers: nothing lost, the shares met, and the same parts as tile by tile."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsp.shared.covers import Cover
from rsp.shared.errors import UsageError
from rsp.shared.splits import split_cover
from rsp.shared.tiles import Tile


def one_by_one(tiles, shares, *, seed, block, stable):
    """Split tile by tile: the same in plain words."""
    blocks: dict[tuple[int, int, int], list[Tile]] = {}
    low = min(tile.z for tile in tiles)
    for tile in sorted(tiles):
        above = 2 ** (tile.z - low)
        place = low, tile.x // above // block, tile.y // above // block
        blocks.setdefault(place, []).append(tile)
    parts: list[list[Tile]] = [[] for _ in shares]
    bounds = list(accumulate(shares))
    if stable:
        for (zoom, column, row), members in blocks.items():
            digest = hashlib.sha256(f"split {seed} {zoom}/{column}/{row}".encode()).digest()
            share = (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53) * 100
            parts[bisect_right(bounds, share)].extend(members)
        return list(map(set, parts))
    shuffled = list(blocks.values())
    random.Random(seed).shuffle(shuffled)
    done = part = 0
    for members in shuffled:
        while part < len(shares) - 1 and (done + len(members) / 2) * 100 > bounds[part] * len(tiles):
            part += 1
        parts[part].extend(members)
        done += len(members)
    return list(map(set, parts))


@given(
    tiles=st.sets(st.builds(Tile, st.integers(0, 15), st.integers(0, 15), st.integers(4, 6)), min_size=1),
    shares=st.sampled_from([[70, 30], [50, 25, 25], [100], [0, 100], [1, 98, 1]]),
    block=st.integers(1, 5),
    seed=st.integers(0, 3),
    stable=st.booleans(),
)
def test_the_same_parts_as_tile_by_tile(tiles, shares, block, seed, stable):
    options = {"seed": seed, "block": block, "stable": stable}
    found = split_cover(Cover.of(tiles), shares, **options)
    assert [set(part) for part in found] == one_by_one(tiles, shares, **options)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("stable", [True, False])
def test_h7_no_part_sees_the_ground_of_another_at_another_zoom(block, stable):
    """Once all validation tiles lay on training ground, at another zoom."""
    tiles = [Tile(x + 400 * 2**k, y + 300 * 2**k, 9 + k) for k in range(3) for x in range(12) for y in range(12)]
    parts = split_cover(Cover.of(tiles), [50, 30, 20], block=block, stable=stable)
    assert sorted(tile for part in parts for tile in part) == sorted(tiles) and all(parts)
    ground = [{(tile.x >> tile.z - 9, tile.y >> tile.z - 9) for tile in part} for part in parts]
    assert not ground[0] & ground[1] and not (ground[0] | ground[1]) & ground[2]


@pytest.mark.parametrize("block", [1, 2, 5])
@pytest.mark.parametrize("shares", [[70, 30], [100], [0, 100], [33, 33, 34], [98, 1, 1]])
def test_splits_lose_nothing_and_follow_the_shares(shares, block):
    """Bug 6: 506 tiles split 70,30 came to 503."""
    tiles = [Tile(x, y, 15) for x in range(22) for y in range(23)]
    parts = split_cover(Cover.of(tiles), shares, block=block)
    assert sorted(tile for part in parts for tile in part) == sorted(tiles)
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - len(tiles) * share / 100) <= block * block
        assert list(part) == sorted(part)


def test_splits_do_not_depend_on_the_order():
    tiles = [Tile(x, y, 15) for x in range(10) for y in range(10)]
    shuffled = random.Random(1).sample(tiles, len(tiles))
    assert split_cover(Cover.of(tiles), [50, 50]) == split_cover(Cover.of([*shuffled, shuffled[0]]), [50, 50])
    assert split_cover(Cover.of(tiles), [50, 50], seed=1) != split_cover(Cover.of(tiles), [50, 50])


def test_a_stable_split_follows_the_shares_on_average():
    tiles = [Tile(x, y, 15) for x in range(150) for y in range(150)]
    parts = split_cover(Cover.of(tiles), [70, 0, 20, 10], seed=3, block=2, stable=True)
    assert sorted(tile for part in parts for tile in part) == sorted(tiles)
    # 5,625 blocks: three standard deviations of a share are 0.018 of them.
    for part, share in zip(parts, (0.7, 0, 0.2, 0.1), strict=True):
        assert abs(len(part) / len(tiles) - share) < 0.02 and list(part) == sorted(part)
    assert not parts[1]
    assert parts != split_cover(Cover.of(tiles), [70, 0, 20, 10], seed=4, block=2, stable=True)
    # What is decided once holds for good, on every machine.
    few = split_cover(Cover.of(Tile(x, 0, 15) for x in range(8)), [50, 50], stable=True)
    assert [tile.x for tile in few[0]] == [0, 1, 5]


@given(
    shares=st.sampled_from([[70, 30], [50, 25, 25], [100]]),
    block=st.integers(1, 5),
    seed=st.integers(0, 9),
    before=st.sets(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1),
    later=st.sets(st.tuples(st.integers(0, 30), st.integers(0, 30))),
)
def test_new_tiles_move_none_in_a_stable_split(shares, block, seed, before, later):
    def parts(places):
        found = split_cover(
            Cover.of(Tile(x, y, 9) for x, y in places), shares, seed=seed, block=block, stable=True
        )
        return {tile: number for number, part in enumerate(found) for tile in part}

    first, second = parts(before), parts(before | later)
    assert all(second[tile] == part for tile, part in first.items()) and len(second) == len(before | later)
    together: dict = {}
    for tile, part in second.items():
        assert together.setdefault((tile.x // block, tile.y // block), part) == part


@pytest.mark.parametrize("shares", [[], [70, 20], [110, -10], [101]])
def test_shares_must_sum_to_100(shares):
    with pytest.raises(UsageError, match="sum to 100"):
        split_cover(Cover.of([Tile(0, 0, 0)]), shares)
    with pytest.raises(UsageError, match="block"):
        split_cover(Cover.of([Tile(0, 0, 0)]), [100], block=0)
