"""Prediction in blocks, killed again and again: the features are those of a run that nothing disturbed."""

from __future__ import annotations

import pytest

from tests.shards import check, crossing, faulty, gaps, shards, square

pytestmark = pytest.mark.slow

# At a corner of four large quadkeys, so that there are blocks of many sizes.
TILES = square(131072 - 19, 65536 - 18, 32, 32)
FEW = square(131072 - 6, 65536 - 4, 14, 10)
# Bytes of a journal's part: about ten images.
SEGMENT = 20_000
KILLS = [
    ("blocks", 20), ("download", 200), ("predict", 30), ("vectorize", 10), ("download", 200), ("predict", 30),
    ("vectorize", 10), ("download", 200), ("join", 10), ("join", 10),
]  # fmt: skip

KILLS_FEW = [("predict", 20), ("download", 60)]


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    with shards(tmp_path_factory.mktemp("shards"), gaps) as found:
        yield found


def test_a_thousand_tiles_killed_ten_times(town, tmp_path):
    expected = town.whole(TILES, workers=1)
    assert crossing(expected.features, TILES, 128, tmp_path) >= 10
    runs = town.killed(TILES, 128, KILLS, segment=SEGMENT)
    check(runs, expected, len(KILLS))
    assert not town.journals()
    # What a killed download had stored was not fetched again.
    whole = {name: len(asked.tiles) for name, asked in expected.asked.items()}
    assert whole == {"whole-0": len(TILES)}
    fetched: dict[str, list[set[str]]] = {}
    for run in runs:
        for name, asked in run.asked.items():
            if asked.tiles:
                fetched.setdefault(name, []).append(set(asked.tiles))
    again = [parts for parts in fetched.values() if len(parts) > 1]
    assert again and any(len(parts[-1]) < len(set().union(*parts)) - 10 for parts in again)
    # The last run found all blocks finished, as a second run of the pipeline does.
    assert not any(asked.tiles for asked in runs[-1].asked.values())


def test_a_store_that_fails_each_tenth_time_and_kills(town):
    expected = town.whole(FEW, workers=1)
    with faulty(town.s3.host, 0.1) as proxy:
        runs = town.killed(FEW, 48, KILLS_FEW, segment=SEGMENT, endpoint=proxy.url)
        check(runs, expected, len(KILLS_FEW))
        assert len(proxy.asked) > 100
    assert not town.journals()
