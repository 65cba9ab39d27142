"""A candidate against the champion: a paired bootstrap over blocks, held to one written out in loops."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from rsp.components.compare.judge import Evidence, Verdict, decide, draw_gains, judge, measure
from rsp.components.compare.verdict_page import verdict_page
from rsp.shared.bootstrap import DRAWS, LEAST_BLOCKS, Blocks, blocks_of
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.metrics import confusion, foreground_iou
from rsp.shared.page import PAGE_BYTES
from rsp.shared.tiles import Tile
from tests.tilesets import make_tileset

SIDE = 32
TILES = [
    Tile(x, y, 14) for x in range(100, 108) for y in range(200, 208)
]  # four blocks of 4 x 4, sixteen of 2 x 2


def label(tile: Tile) -> np.ndarray:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[4 : 12 + tile.x % 8, 6 : 20 + tile.y % 8] = 1
    return image


def wrong(share: float, seed: int, only=lambda tile: True):
    """Masks in which a share of the pixels is wrong."""

    def mask(tile: Tile) -> np.ndarray:
        image = label(tile)
        if only(tile):
            rng = np.random.default_rng([seed, tile.x, tile.y])
            image[rng.random(image.shape) < share] ^= 1
        return image

    return mask


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")

    def write(name: str, draw, tiles=TILES) -> str:
        return str(make_tileset(folder / f"{name}.pmtiles", tiles, "png", draw))

    return {
        "labels": write("labels", label),
        "good": write("good", wrong(0.05, 1)),
        "like good": write("like", wrong(0.05, 2)),
        "bad": write("bad", wrong(0.2, 3)),
        "some": write("some", wrong(0.05, 1), TILES[:60]),
        "uneven": write("uneven", wrong(0.5, 4, lambda tile: tile.x < 102 and tile.y < 202)),
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(
        '[[channels]]\nname = "images"\nbands = [1, 2, 3]\n[[classes]]\ntitle = "background"\ncolor = "white"\n'
        '[[classes]]\ntitle = "building"\ncolor = "pink"\n'
    )
    return path


def compare(sets, config, candidate: str, champion: str | None, block: int = 2, **options) -> Verdict:
    theirs = sets[champion] if champion else None
    found = measure(sets["labels"], sets[candidate], theirs, config=config, workers=1, block=block)
    return judge(found, **options)


def counts(masks) -> dict[Tile, np.ndarray]:
    return {tile: confusion(label(tile), masks(tile), 2) for tile in TILES}


def test_a_better_one_is_deployed_and_a_worse_one_is_not(sets, config):
    better = compare(sets, config, "good", "bad", bar=0.5, margin=0.1)
    worse = compare(sets, config, "bad", "good")
    assert better.deploy and better.low > 0.1 and (better.tiles, better.blocks) == (64, 16)
    assert not worse.deploy and worse.high < 0 and "kept the champion" in worse.reason
    assert (better.gain, better.iou, better.champion_iou) == pytest.approx(
        (-worse.gain, worse.champion_iou, worse.iou)
    )
    assert (better.low, better.high) == pytest.approx((-worse.high, -worse.low)), "the same draws, seen from there"
    assert better.iou == pytest.approx(foreground_iou(sum(counts(wrong(0.05, 1)).values())))


def test_against_a_bootstrap_in_loops(sets, config):
    found = compare(sets, config, "good", "like good")
    ours, theirs = counts(wrong(0.05, 1)), counts(wrong(0.05, 2))
    keys = sorted({(tile.x // 2, tile.y // 2) for tile in TILES})
    dice, gains = random.Random(5), []
    for _ in range(3000):
        a, b = np.zeros((2, 2), int), np.zeros((2, 2), int)
        for _ in keys:
            x, y = dice.choice(keys)
            for tile in TILES:
                if (tile.x // 2, tile.y // 2) == (x, y):
                    a, b = a + ours[tile], b + theirs[tile]
        gains.append(a[1, 1] / (a.sum() - a[0, 0]) - b[1, 1] / (b.sum() - b[0, 0]))
    spread = float(np.std(gains))
    assert found.low == pytest.approx(np.quantile(gains, 0.1), abs=spread / 8)
    assert found.high == pytest.approx(np.quantile(gains, 0.9), abs=spread / 8)


def test_a_class_to_ignore_counts_nowhere(sets, config, tmp_path):
    """Of the pixels that are left the masks are right."""
    path = tmp_path / "config.toml"
    path.write_text(f'{config.read_text()}[[classes]]\ntitle = "unknown"\ncolor = "red"\nignore = true\n')

    def hidden(tile: Tile) -> np.ndarray:
        truth, mask = label(tile), wrong(0.05, 1)(tile)
        return np.where(truth == mask, truth, 2).astype(np.uint8)[:, :, np.newaxis]

    labels = make_tileset(tmp_path / "labels", TILES, "png", hidden)
    assert judge(measure(labels, sets["good"], config=path, workers=1)).iou == 1


def test_the_same_masks_gain_nothing(sets, config):
    same = compare(sets, config, "good", "good")
    assert (same.gain, same.low, same.high) == (0, 0, 0)
    assert not same.deploy and "it does as well as the champion" in same.reason


def test_the_margin_counts(sets, config):
    found = compare(sets, config, "good", "bad", margin=0.9)
    assert not found.deploy and found.low > 0 and "is below the margin of 0.9" in found.reason


def test_other_classes_cannot_be_compared():
    with pytest.raises(UsageError, match="the candidate has 2 classes in 9 blocks, the champion 3 in 9"):
        decide(np.ones((9, 2, 2), int), np.ones((9, 3, 3), int), bar=0, margin=0)


def test_a_gain_that_one_block_makes_may_be_chance(sets, config):
    found = compare(sets, config, "labels", "uneven")
    assert found.gain > 0 and found.low == 0 and found.deploy
    # Seen from the other side one block loses, and most draws hold it.
    lost = compare(sets, config, "uneven", "labels")
    assert not lost.deploy and lost.low < 0 and "the gain may be chance: 10% of the draws" in lost.reason


def test_a_gain_on_average_that_is_a_loss_in_many_draws_is_kept_out(config):
    rng = np.random.default_rng(0)
    before = np.tile(np.array([[900, 10], [10, 80]]), (12, 1, 1))
    after = before.copy()
    after[:, 1, 1] += rng.integers(-3, 3, 12)
    after[0, 1, 1] += 15
    found = decide(after, before, bar=0.0, margin=0.0)
    assert found.gain > 0 > found.low
    assert not found.deploy and "may be chance" in found.reason and "margin" not in found.reason


def test_the_bar_counts_whatever_the_gain(sets, config):
    found = compare(sets, config, "good", "bad", bar=0.999)
    assert not found.deploy and "the bar is 0.999" in found.reason and found.low > 0


def test_without_a_champion_the_bar_alone_decides(sets, config):
    assert compare(sets, config, "good", None, bar=0.5).deploy
    found = compare(sets, config, "good", None, bar=0.999)
    assert not found.deploy and "there is no champion" in found.reason and math.isnan(found.gain)
    assert set(found.measures()) == {"iou", "tiles", "blocks"}


def test_too_few_blocks_are_not_judged(sets, config):
    found = compare(sets, config, "labels", "bad", block=4)
    assert found.blocks == 4 < LEAST_BLOCKS and not found.deploy
    assert "4 blocks of held-out tiles are too few to judge" in found.reason and found.gain > 0
    exactly = np.tile(np.array([[9, 0], [0, 1]]), (LEAST_BLOCKS, 1, 1))
    assert decide(exactly, exactly, bar=0, margin=0).low == 0, "as many as needed are judged"


def test_masks_without_the_class_pass_no_bar():
    empty = np.tile(np.array([[100, 0], [0, 0]]), (10, 1, 1))
    found = decide(empty, empty, bar=0.0, margin=0.0)
    assert not found.deploy and math.isnan(found.iou) and "the bar is 0" in found.reason


def test_the_order_of_tiles_and_the_seed():
    some = counts(wrong(0.1, 1))
    shuffled = dict(random.Random(0).sample(list(some.items()), len(some)))
    (first, ours), (again, same) = blocks_of(some.items(), 2), blocks_of(shuffled.items(), 2)
    assert first == again and first[:2] == [Tile(100, 200, 14), Tile(100, 202, 14)]
    assert np.array_equal(ours, same) and ours.sum() == 64 * SIDE * SIDE
    theirs = blocks_of(counts(wrong(0.1, 2)).items(), 2).counts
    assert np.array_equal(draw_gains(ours, theirs, 1), draw_gains(ours, theirs, 1))
    assert not np.array_equal(draw_gains(ours, theirs, 1), draw_gains(ours, theirs, 2))
    assert len(draw_gains(ours, theirs, 1)) == DRAWS


def test_what_is_refused(sets, config):
    with pytest.raises(TileSetError, match=r"lacks 4 of the 64 tiles"):
        measure(sets["labels"], sets["good"], sets["some"], config=config)
    with pytest.raises(UsageError, match="margin is 0 to 1, got 2"):
        compare(sets, config, "good", "bad", margin=2)
    with pytest.raises(UsageError, match="block is at least 1 tile"):
        compare(sets, config, "good", "bad", block=0)


def page(sets, config, candidate: str, champion: str | None, block: int = 2, **options) -> str:
    theirs = sets[champion] if champion else None
    found = measure(sets["labels"], sets[candidate], theirs, config=config, workers=1, block=block)
    names = {"candidate": "1a2b3c4d", "champion": "<b>"}
    return verdict_page(judge(found, **options), found, names=names)


def test_the_page_says_why(sets, config):
    text = page(sets, config, "uneven", "labels", bar=0.1)
    assert "Verdict: keep what serves." in text and "the gain may be chance" in text
    assert "&lt;b&gt;" in text and "<b>" not in text and len(text) < PAGE_BYTES / 20
    lost, gained = text.split("Blocks that lost most")[1].split("Blocks that gained most")
    # The one block that is wrong, by its first tile.
    assert lost.count("<tr><td>") == 1 and "<td>14/100/200</td><td>1.0000</td>" in lost and "None" not in lost
    assert "There are none." in gained
    assert sum(map(int, re.findall(r": (\d+)</title>", text.replace(",", "")))) == DRAWS


def test_the_page_without_a_champion_or_without_a_class(sets, config):
    text = page(sets, config, "good", None)
    assert "deploy the candidate" in text and "draws" not in text and "there is no champion" in text
    empty = np.tile(np.array([[100, 0], [0, 0]]), (10, 1, 1))
    found = Evidence(10, *[Blocks([Tile(x, 0, 14) for x in range(10)], empty)] * 2)
    text = verdict_page(judge(found), found, names={})
    assert "No draw has an IoU" in text and "10 more blocks have no IoU" in text
