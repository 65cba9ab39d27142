"""Whether a candidate is better than the champion, by the masks of both on the same held-out tiles.

The gain is the candidate's IoU less the champion's. Whether it is more than chance is asked of draws of blocks of
tiles, the same ones for both; see `rsp.shared.bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.components.compare.work import Job, compare_tiles
from rsp.shared.bootstrap import DRAWS, LEAST_BLOCKS, Blocks, blocks_of, draws
from rsp.shared.classes import find_classes, ignored_classes
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.jobs import Failure
from rsp.shared.locations import Location, location
from rsp.shared.metrics import Counts, foreground_iou
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import open_reader
from rsp.shared.tileset.common import common_tiles

# The lower bound of the gain is that which 90 % of the draws reach.
CONFIDENCE = 0.9


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether to deploy the candidate, and why.

    Attributes:
        deploy: Whether the candidate takes the champion's place.
        reason: Why, or why not.
        iou: The candidate's IoU of the classes but the background on the held-out tiles, 0 to 1; NaN where
            labels and masks hold none of them.
        champion_iou: The champion's; NaN where there is no champion.
        gain: `iou - champion_iou`.
        low: The gain that 90 % of the draws reach.
        high: The gain that 10 % of the draws reach.
        tiles: How many tiles were looked at.
        blocks: How many blocks they make.
    """

    deploy: bool
    reason: str
    iou: float
    champion_iou: float = math.nan
    gain: float = math.nan
    low: float = math.nan
    high: float = math.nan
    tiles: int = 0
    blocks: int = 0

    def measures(self) -> dict[str, float]:
        """Return the numbers that are known, for metrics."""
        return {
            name: float(value)
            for name, value in asdict(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }


class Evidence(NamedTuple):
    """What a verdict rests on.

    Attributes:
        tiles: How many tiles there are.
        candidate: The blocks of the candidate.
        champion: Those of the champion, the same ones; None where nothing serves yet.
    """

    tiles: int
    candidate: Blocks
    champion: Blocks | None = None


def measure(
    labels: str | Location,
    candidate: str | Location,
    champion: str | Location | None = None,
    *,
    config: Location | None = None,
    block: int = 4,
    workers: int | None = None,
) -> Evidence:
    """Compare the masks of two models with the labels of the same tiles.

    Args:
        labels: Tile set of the labels of held-out tiles.
        candidate: Tile set of the candidate's masks of them.
        champion: Tile set of the champion's masks; None where nothing serves yet.
        config: The configuration; None where the tile sets tell their classes.
        block: Side in tiles of the blocks.
        workers: How many processes; None for one a processor.

    Raises:
        UsageError: the side of a block is no number of tiles.
        TileSetError: the sets hold different tiles, or a tile cannot be compared.
    """
    if block < 1:
        raise UsageError(f"block is at least 1 tile, got {block}")
    masks = [candidate] if champion is None else [candidate, champion]
    # Each set has to hold the tiles of the labels, so both hold the same ones.
    ours, *theirs = (blocks_of(_counts(labels, each, config, workers), block) for each in masks)
    with open_reader(labels) as reader:
        return Evidence(len(reader), ours, theirs[0] if theirs else None)


def judge(evidence: Evidence, *, bar: float = 0.0, margin: float = 0.0, seed: int = 0) -> Verdict:
    """Decide whether the candidate takes the champion's place.

    It does if its IoU reaches the bar and, where there is a champion, gains at least the margin, and if the
    (one-sided) lower 90 % bound of the gain is not negative. One that does just as well is kept out, so that no
    night deploys what changes nothing. Without a champion the bar alone decides.

    Args:
        evidence: From `measure`.
        bar: The least IoU, 0 to 1.
        margin: The least gain, 0 to 1.
        seed: Of the draws.

    Raises:
        UsageError: a number makes no sense.
    """
    for name, value in (("bar", bar), ("margin", margin)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is 0 to 1, got {value}")
    champion = None if evidence.champion is None else evidence.champion.counts
    return decide(evidence.candidate.counts, champion, bar=bar, margin=margin, seed=seed, tiles=evidence.tiles)


def _counts(
    labels: str | Location, masks: str | Location, config: Location | None, workers: int | None
) -> Iterator[tuple[Tile, Counts]]:
    """Yield the confusion matrix of each tile."""
    pair = location(labels), location(masks)
    classes = find_classes(config, pair)
    job = Job("list", (), *pair, len(classes), ignored=ignored_classes(classes))
    tiles = common_tiles(pair)
    for (tile, _), done in compare_tiles(job, ((tile, False) for tile in tiles), len(tiles), workers):
        if isinstance(done, Failure):
            raise TileSetError(f"the tile {zxy(tile)} cannot be judged: {done.reason}")
        assert done.counts is not None
        yield tile, done.counts


def decide(
    candidate: Counts, champion: Counts | None, *, bar: float, margin: float, seed: int = 0, tiles: int = 0
) -> Verdict:
    """Decide by the matrices of the same blocks, shape (blocks, K, K).

    Args:
        candidate: The candidate's.
        champion: The champion's; None where there is none.
        bar: The least IoU.
        margin: The least gain.
        seed: Of the draws.
        tiles: How many tiles the blocks have, for the verdict.

    Raises:
        UsageError: the two have other classes, or other blocks.
    """
    iou, blocks = foreground_iou(candidate.sum(0)), len(candidate)
    if champion is None:
        passed = iou >= bar
        reason = f"IoU {iou:.4f}, the bar is {bar:g}; there is no champion"
        return Verdict(deploy=passed, reason=reason, iou=iou, tiles=tiles, blocks=blocks)
    if champion.shape != candidate.shape:
        raise UsageError(
            f"the candidate has {candidate.shape[1]} classes in {blocks} blocks, the champion "
            f"{champion.shape[1]} in {len(champion)}: they cannot be compared"
        )
    before = foreground_iou(champion.sum(0))
    gain = iou - before
    if blocks < LEAST_BLOCKS:
        reason = (
            f"{blocks} blocks of held-out tiles are too few to judge, {LEAST_BLOCKS} are needed: hold out "
            "more, or let blocks be smaller"
        )
        return Verdict(
            deploy=False, reason=reason, iou=iou, champion_iou=before, gain=gain, tiles=tiles, blocks=blocks
        )
    gains = draw_gains(candidate, champion, seed)
    low, high = (float(each) for each in np.quantile(gains, (1 - CONFIDENCE, CONFIDENCE)))
    against = []
    # A NaN reaches nothing.
    if not iou >= bar:
        against.append(f"the bar is {bar:g}")
    if gain == 0:
        against.append("it does as well as the champion")
    elif not gain >= margin:
        against.append(f"the gain of {gain:+.4f} is below the margin of {margin:g}")
    if not low >= 0:
        against.append(f"the gain may be chance: {1 - CONFIDENCE:.0%} of the draws gain less than {low:+.4f}")
    reason = f"IoU {iou:.4f}, the champion has {before:.4f}: gain {gain:+.4f} ({low:+.4f} to {high:+.4f})"
    if against:
        reason += f"; kept the champion: {'; '.join(against)}"
    return Verdict(
        deploy=not against, reason=reason, iou=iou, champion_iou=before, gain=gain, low=low, high=high,
        tiles=tiles, blocks=blocks,
    )  # fmt: skip


def draw_gains(candidate: Counts, champion: Counts, seed: int, number: int = DRAWS) -> npt.NDArray[np.float64]:
    """Return the gain of each draw, shape (draws,); see `rsp.shared.bootstrap.draws`.

    A draw in which one of the two has no IoU, since no class but the background is in it, says nothing and is NaN
    as long as other draws do; where all are, the quantiles are NaN, too.
    """
    pairs = draws(candidate, champion, seed=seed, number=number)
    found = np.array([foreground_iou(ours) - foreground_iou(theirs) for ours, theirs in pairs])
    known = found[~np.isnan(found)]
    return known if known.size else found
