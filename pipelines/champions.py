"""What retraining asks: has anything changed, what serves now, and is the candidate better. It imports no kfp.

The release store remembers what was judged (`rsp.serving.judgements`): data that were judged already are not
trained on every night, whatever the verdict was, and a roll-back by hand is not undone the night after.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from rsp.components.compare.judge import Verdict, judge, measure
from rsp.components.compare.verdict_page import verdict_page
from rsp.components.deploy.checks import another_question
from rsp.components.reference import Target, identity, resolved
from rsp.serving.judgements import Judgement
from rsp.serving.manifest import File, Pointer, Release, measured, noted, sha8
from rsp.serving.reader import ReleaseReader
from rsp.serving.releases import ReleaseStore, cut
from rsp.shared.locations import Location
from rsp.shared.storage import open_storage
from rsp.shared.tileset import open_reader, tiles_digest

# Raise it where a training comes out another way by the same data and settings: all is trained once more then.
FORMAT = 1


@dataclass(frozen=True)
class Change:
    """Whether there is anything to train on.

    Attributes:
        verdict: `train`, or `unchanged`.
        reason: Why.
        fingerprint: 64 hexadecimal digits that change with the tiles and the settings.
    """

    verdict: Literal["train", "unchanged"]
    reason: str
    fingerprint: str


@dataclass(frozen=True)
class Champion:
    """What a release store wants now.

    Attributes:
        version: Empty where nothing is wanted.
        checkpoint: Where its checkpoint is, to start a training from; empty where there is none to start from.
        note: What somebody should know about it; may be empty.
    """

    version: str = ""
    checkpoint: str = ""
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """What was found out about a candidate.

    Attributes:
        verdict: Whether it is to be deployed, and why.
        page: The same as a page.
        order: What `rsp deploy --verdict` takes; empty where there is no store.
    """

    verdict: Verdict
    page: str
    order: dict[str, Any]


def fingerprint_of(images: Location, labels: Location, settings: Mapping[str, Any]) -> str:
    """Return what changes whenever a training would see something else.

    It follows from the bytes of the tiles and not from the names, sizes or ETags of what holds them.

    Args:
        images: Tile set of the images.
        labels: Tile set of the labels; has all tiles that the images have.
        settings: All else that decides what is trained and how it is judged; the champion is not part of it.

    Raises:
        TileError: a tile has no label, or cannot be read.
    """
    with open_reader(images) as shown, open_reader(labels) as labelled:
        tiles = tiles_digest([shown], labelled, shown.tiles())
    what = {"format": FORMAT, "tiles": tiles, "settings": identity(settings)}
    return hashlib.sha256(json.dumps(what, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def look_for_change(
    images: Location, labels: Location, settings: Mapping[str, Any], *, store: str, name: str, force: bool = False
) -> Change:
    """Tell whether tiles and settings are others than those that were judged last.

    Args:
        images: Tile set of the images.
        labels: Tile set of their labels.
        settings: See `fingerprint_of`.
        store: The release store; where it is empty there is always something to train.
        name: Name of the model in it.
        force: Train whatever was judged.

    Raises:
        ReleaseError: what the store remembers is damaged.
        StorageError: the store or a tile set cannot be read.
    """
    found = fingerprint_of(images, labels, settings)
    if force:
        return Change("train", "a training was asked for, whatever has changed", found)
    if not store:
        return Change("train", "no store was named that would remember what was judged", found)
    releases = ReleaseReader(open_storage(store))
    known = releases.judgements(name)
    if not known:
        return Change("train", f"nothing was judged yet for {name} in {releases.address}", found)
    last = known[-1]
    if last.data != found:
        return Change("train", f"images, labels or settings have changed since {last.time}", found)
    if last.verdict == "deploy" and last.candidate not in _wanted_once(releases.pointer(name)):
        reason = f"{last.candidate} was to be deployed at {last.time}, and never was"
        return Change("train", reason, found)
    reason = (
        f"images, labels and settings are those of {last.time}, when {last.candidate} was judged "
        f"({last.verdict}: {last.reason})"
    )
    return Change("unchanged", reason, found)


def _wanted_once(pointer: Pointer | None) -> set[str | None]:
    """Return the versions that a pointer names and has named."""
    return set() if pointer is None else {pointer.version, *(move.version for move in pointer.history)}


def find_champion(
    store: str, name: str, *, warm_start: bool = False, config: Mapping[str, Any] | None = None
) -> Champion:
    """Return what a store wants now, and where a training may start from.

    Args:
        store: The release store; may be empty.
        name: Name of the model.
        warm_start: Whether the training is to start from the champion's checkpoint.
        config: The configuration of the training. A champion of another network, other bands or other classes is
            nothing to start from.

    Raises:
        ReleaseError: the current release is damaged, or is not there.
        StorageError: the store cannot be reached.
        ConfigError: the configuration is wrong.
    """
    if not store:
        return Champion(note="no store was named")
    releases = ReleaseReader(open_storage(store))
    current = releases.current(name)
    if current is None:
        return Champion(note=f"nothing is wanted of {name} in {releases.address}")
    if not warm_start:
        return Champion(current.version)
    from_scratch = "so the training starts from the weights of the configuration"
    if current.checkpoint is None:
        note = f"release {current.version} was deployed without its checkpoint, {from_scratch}"
        return Champion(current.version, note=note)
    from rsp.shared.config import parse_config
    from rsp.shared.learning.card import ModelCard

    card = ModelCard.from_json(releases.read(current, current.card))
    other = card.other_network(parse_config(dict(config or {})))
    if other:
        note = f"release {current.version} is of another network ({other}), {from_scratch}"
        return Champion(current.version, note=note)
    return Champion(current.version, resolved(releases.where(current, current.checkpoint)))


def judge_candidate(
    images: Location,
    labels: Location,
    masks: Location,
    model: Path,
    *,
    store: str,
    name: str,
    fingerprint: str,
    folder: Path,
    bar: float = 0.0,
    margin: float = 0.0,
    block: int = 4,
    seed: int = 0,
    data_root: str = "",
    refresh: str = "",
) -> Judged:
    """Judge a candidate against what the store wants at this moment, and let the store remember it.

    The champion predicts the same tiles, here and now: what it once reached on other tiles says nothing.

    Args:
        images: Tile set of the held-out images.
        labels: Their labels.
        masks: The candidate's masks of them.
        model: The candidate, exported.
        store: The release store; where it is empty the verdict is `keep`.
        name: Name of the model in it.
        fingerprint: Of what it was trained on; see `fingerprint_of`.
        folder: Room for the champion and its masks.
        bar: The least IoU, 0 to 1.
        margin: The least gain, 0 to 1.
        block: Side in tiles of the blocks that are drawn.
        seed: Of the draws.
        data_root: Where the champion's masks go, so that an attempt goes on where the last one stopped; empty for
            `folder`.
        refresh: As for every other tile set below `data_root`.

    Raises:
        ReleaseError: the current release, or what the store remembers, is damaged.
        StorageError: the store cannot be reached, or refuses.
        PartialError: the champion cannot predict a tile.
        TileSetError: the tile sets do not belong together.
    """
    releases = ReleaseStore(open_storage(store)) if store else None
    current = releases.current(name) if releases else None
    file = measured(model)
    objection = _objection(model, file, current) if current else None
    theirs = None
    if releases and current and not objection:
        theirs = _predicted(releases, current, images, folder, data_root, refresh)
    evidence = measure(labels, masks, theirs, block=block)
    verdict = judge(evidence, bar=bar, margin=margin, seed=seed)
    if objection:
        verdict = replace(verdict, deploy=False, reason=f"kept release {current and current.version}: {objection}")
    if releases is None:
        verdict = replace(verdict, deploy=False, reason=f"{verdict.reason}; no store was named")
    judgement = _judgement(verdict, fingerprint, current.version if current else "", sha8(model))
    if releases:
        _remember(releases, name, judgement)
    names = {
        "model": name,
        "candidate": judgement.candidate,
        "champion": judgement.champion,
        "store": releases.address if releases else "",
        "data": fingerprint[:12],
    }
    order = {**judgement.as_dict(), "model": file.sha256} if releases else {}
    return Judged(verdict, verdict_page(verdict, evidence, names=names, seed=seed), order)


def _objection(model: Path, file: File, current: Release) -> str | None:
    """Return why a candidate cannot be compared with the current release; None where it can."""
    if file == current.files[current.model]:
        return "the candidate is that very model"
    # Only now: it takes torch.
    from rsp.shared.learning.formats import read_model_card

    return another_question(read_model_card(model), current)


def _predicted(
    releases: ReleaseReader, current: Release, images: Location, folder: Path, data_root: str, refresh: str
) -> Location:
    """Return the masks that the current release makes of images."""
    from rsp.components.predict.tool import predict

    releases.fetch(current.name, current.version, folder / "champion")
    # The checkpoint has the weights of the model, which `deploy` has looked at, and runs no code of its own.
    weights = folder / "champion" / (current.checkpoint or current.model)
    artifact = SimpleNamespace(path=str(folder / "masks"), metadata={})
    what = {"images": images, "model": weights, "of": "champion"}
    target = Target("predict", artifact, str(folder / "masks_at"), data_root, refresh, what)
    if not target.finished():
        result = predict(images, target.out, checkpoint=weights, resume=target.remote, web_ui=False)
        target.finish("masks", result)
    return target.out


def _judgement(verdict: Verdict, fingerprint: str, champion: str, candidate: str) -> Judgement:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return Judgement(
        time=noted(time.time()),
        data=fingerprint,
        champion=champion,
        candidate=candidate,
        verdict="deploy" if verdict.deploy else "keep",
        reason=cut(verdict.reason),
        iou=known(verdict.iou),
        champion_iou=known(verdict.champion_iou),
        gain=known(verdict.gain),
        low=known(verdict.low),
        high=known(verdict.high),
        tiles=verdict.tiles,
        blocks=verdict.blocks,
    )


def _remember(releases: ReleaseStore, name: str, judgement: Judgement) -> None:
    """Note a judgement, unless it is the last one: a step that is tried again says the same once more."""
    known = releases.judgements(name)
    if not known or replace(known[-1], time=judgement.time) != judgement:
        releases.note(name, judgement)
