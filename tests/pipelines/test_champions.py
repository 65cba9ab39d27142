"""What retraining asks the release store, and how it judges: small networks, real predictions."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from rsp.components.predict.tool import predict
from rsp.pipelines import champions
from rsp.pipelines.champions import (
    Change,
    Judged,
    find_champion,
    fingerprint_of,
    judge_candidate,
    look_for_change,
)
from rsp.pipelines.resolve import resolve
from rsp.serving.judgements import Judgement
from rsp.serving.manifest import measured, noted, sha8
from rsp.serving.releases import ReleaseStore
from rsp.shared.config import parse_config
from rsp.shared.errors import ReleaseError, TileError
from rsp.shared.images import decode_mask
from rsp.shared.learning.formats import read_model_card
from rsp.shared.locations import location
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader
from tests.serving.releases import contents, flip, publish
from tests.serving.tiny import make_checkpoint
from tests.tilesets import CONFIG, make_tileset, noise, squares

# Nine blocks of 2 x 2.
TILES = [Tile(x, y, 15) for x in range(100, 106) for y in range(200, 206)]
DATA = "d" * 64
SETTINGS = {"config": tomllib.loads(CONFIG), "epochs": 2, "threshold": 0.5}
OTHER_CLASSES = parse_config(tomllib.loads(CONFIG.replace('"building"', '"roof"'))).classes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images, two networks, what they make of the images, and labels that agree with the first."""
    root = tmp_path_factory.mktemp("data")
    make_tileset(root / "images.pmtiles", TILES)
    for seed, name in enumerate(("good", "bad")):
        make_checkpoint(root / f"{name}.safetensors", seed)
        predict(root / "images.pmtiles", root / f"{name}.pmtiles", checkpoint=root / f"{name}.safetensors",
                workers=0, web_ui=False)  # fmt: skip

    def label(tile: Tile) -> np.ndarray:
        mask = masks[tile].copy()
        mask[:8] ^= 1
        return mask

    with open_reader(root / "good.pmtiles") as reader:
        masks = {tile: decode_mask(reader.read(tile)) for tile in TILES}
    make_tileset(root / "labels.pmtiles", TILES, "png", label)
    return root


def deploy(store: ReleaseStore, model: Path, *, name: str = "rsp", checkpoint: bool = True) -> str:
    """Publish a checkpoint as what is wanted; returns the version."""
    version, files = sha8(model), {"model.safetensors": model}
    if checkpoint:
        files["checkpoint.safetensors"] = model
    store.publish(
        name, version, files, card=read_model_card(model), model="model.safetensors", torch="2.13.0",
        checkpoint="checkpoint.safetensors" if checkpoint else None,
    )  # fmt: skip
    store.move(name, version, expected=store.pointer(name), reason="deployed")
    return version


def a_judgement(**fields) -> Judgement:
    known = {
        "time": "2026-11-25T03:00:00Z", "data": DATA, "champion": "", "candidate": "1a2b3c4d", "verdict": "keep",
        "reason": "it is worse", "iou": 0.7, "champion_iou": None, "gain": None, "low": None, "high": None,
        "tiles": 36, "blocks": 9,
    }  # fmt: skip
    return Judgement(**{**known, **fields})


@pytest.fixture
def store(tmp_path) -> ReleaseStore:
    return ReleaseStore(open_storage(tmp_path / "store"))


# What has changed.


def test_the_fingerprint_is_of_contents_and_settings(data, tmp_path):
    images, labels = data / "images.pmtiles", data / "labels.pmtiles"
    first = fingerprint_of(images, labels, SETTINGS)
    assert len(first) == 64 and set(first) <= set("0123456789abcdef")
    folder = make_tileset(tmp_path / "a folder", TILES)
    assert fingerprint_of(folder, labels, {**SETTINGS, "epochs": 2.0}) == first, "names and forms say nothing"

    def touched(tile: Tile) -> np.ndarray:
        image = noise(tile)
        image[3, 5, 1] ^= tile == TILES[7]
        return image

    odd = make_tileset(tmp_path / "odd.pmtiles", TILES, "png", touched)
    fewer = make_tileset(tmp_path / "fewer.pmtiles", TILES[1:])
    relabelled = make_tileset(tmp_path / "labels.pmtiles", TILES, "png", squares)
    changed = [
        fingerprint_of(odd, labels, SETTINGS),
        fingerprint_of(fewer, labels, SETTINGS),
        fingerprint_of(images, relabelled, SETTINGS),
        fingerprint_of(images, labels, {**SETTINGS, "threshold": 0.6}),
    ]
    assert len({first, *changed}) == 5
    with pytest.raises(TileError):
        fingerprint_of(images, make_tileset(tmp_path / "few.pmtiles", TILES[1:], "png", squares), SETTINGS)


def look(data: Path, store: ReleaseStore | None, **options) -> Change:
    address = store.address if store else ""
    return look_for_change(
        data / "images.pmtiles", data / "labels.pmtiles", SETTINGS, store=address, name="rsp", **options
    )


def test_what_was_judged_last_is_not_trained_on_again(data, store):
    assert look(data, None).verdict == "train" and "no store" in look(data, None).reason
    first = look(data, store)
    assert first.verdict == "train" and "nothing was judged yet" in first.reason
    store.note("rsp", a_judgement(data=first.fingerprint))
    found = look(data, store)
    assert found.verdict == "unchanged" and found.fingerprint == first.fingerprint
    assert "when 1a2b3c4d was judged (keep: it is worse)" in found.reason
    assert look(data, store, force=True).verdict == "train"
    store.note("rsp", a_judgement(time="2026-11-26T03:00:00Z"))
    found = look(data, store)
    assert found.verdict == "train" and "have changed since 2026-11-26T03:00:00Z" in found.reason


def test_a_rollback_stays_and_a_deployment_that_failed_is_made_good(data, store):
    judgement = a_judgement(verdict="deploy", candidate="v2", data=look(data, store).fingerprint)
    store.note("rsp", judgement)
    for version in ("v1", "v2"):
        publish(store, version, name="rsp")
    assert look(data, store).verdict == "train", "nothing is wanted at all"
    store.move("rsp", "v1", expected=None, reason="deployed")
    found = look(data, store)
    assert found.verdict == "train" and "v2 was to be deployed at 2026-11-25T03:00:00Z" in found.reason
    store.move("rsp", "v2", expected=store.pointer("rsp"), reason="deployed")
    assert look(data, store).verdict == "unchanged"
    store.move("rsp", "v1", expected=store.pointer("rsp"), reason="rolled back from v2")
    assert look(data, store).verdict == "unchanged", "somebody had a reason"


def test_an_empty_refresh_is_the_day():
    days = {f"{datetime.now(UTC):%Y-%m-%d}"}
    found = resolve.python_func()[-1]
    assert found in days | {f"{datetime.now(UTC):%Y-%m-%d}"}
    assert resolve.python_func(refresh="again")[-1] == "again"


# What serves.


def test_the_champion_is_what_is_wanted_now(data, new_store):
    assert find_champion("", "rsp").version == ""
    store = ReleaseStore(open_storage(new_store()))
    assert find_champion(store.address, "rsp", warm_start=True).version == ""
    version = deploy(store, data / "bad.safetensors")
    found = find_champion(store.address, "rsp")
    assert (found.version, found.checkpoint) == (version, "")
    found = find_champion(store.address, "rsp", warm_start=True, config=SETTINGS["config"])
    assert found.version == version and found.note == ""
    where = location(found.checkpoint)
    data_there = where.read_bytes() if isinstance(where, Path) else where.open()[0].read(where.name)[0]
    assert data_there == (data / "bad.safetensors").read_bytes()
    assert isinstance(where, Path) or where.etag, "a cache has to see contents"


def test_a_champion_that_is_nothing_to_start_from(data, store):
    version = deploy(store, data / "bad.safetensors", checkpoint=False)
    found = find_champion(store.address, "rsp", warm_start=True, config=SETTINGS["config"])
    assert (found.version, found.checkpoint) == (version, "") and "without its checkpoint" in found.note
    version = deploy(store, data / "good.safetensors")
    wider = tomllib.loads(CONFIG.replace("ms = 16", "num_filters = 8"))
    found = find_champion(store.address, "rsp", warm_start=True, config=wider)
    assert (found.version, found.checkpoint) == (version, "") and "its num_filters is" in found.note
    (card,) = [key for key in contents(store.storage) if version in key and key.endswith("card.json")]
    flip(store.storage, card)
    with pytest.raises(ReleaseError, match="damaged"):
        find_champion(store.address, "rsp", warm_start=True, config=wider)


# Which one is better.


def judged(data: Path, store: ReleaseStore | None, candidate: str, folder: Path, **options) -> Judged:
    folder.mkdir(exist_ok=True)
    return judge_candidate(
        data / "images.pmtiles", data / "labels.pmtiles", data / f"{candidate}.pmtiles",
        data / f"{candidate}.safetensors", store=store.address if store else "", name="rsp", fingerprint=DATA,
        folder=folder, **{"block": 2, **options},
    )  # fmt: skip


def test_the_better_one_is_deployed_and_the_worse_one_kept_out(data, store, tmp_path):
    first = judged(data, store, "bad", tmp_path / "1", bar=0.1)
    assert first.verdict.deploy and "there is no champion" in first.verdict.reason
    bad = deploy(store, data / "bad.safetensors")
    better = judged(data, store, "good", tmp_path / "2", margin=0.1)
    assert better.verdict.deploy and better.verdict.low > 0.1
    assert better.verdict.champion_iou == pytest.approx(first.verdict.iou), "predicted here as it was before"
    good = deploy(store, data / "good.safetensors")
    worse = judged(data, store, "bad", tmp_path / "3")
    assert not worse.verdict.deploy and worse.verdict.high < 0
    known = store.judgements("rsp")
    assert [(each.champion, each.candidate, each.verdict) for each in known] == [
        ("", bad, "deploy"), (bad, good, "deploy"), (good, bad, "keep"),
    ]  # fmt: skip
    assert known[-1].reason == worse.verdict.reason and "kept the champion" in known[-1].reason
    assert known[0].gain is None and known[1].gain == pytest.approx(better.verdict.gain)
    assert worse.order == {**known[-1].as_dict(), "model": measured(data / "bad.safetensors").sha256}
    json.dumps(worse.order, allow_nan=False)
    assert good in worse.page and bad in worse.page and "keep what serves" in worse.page


def test_a_step_that_is_tried_again_says_it_once(data, store, tmp_path, monkeypatch):
    moments = count(1_700_000_000, 60)  # another attempt comes later
    monkeypatch.setattr(champions, "noted", lambda _: noted(next(moments)))
    judged(data, store, "bad", tmp_path / "1")
    judged(data, store, "bad", tmp_path / "2")
    assert len(store.judgements("rsp")) == 1
    judged(data, store, "bad", tmp_path / "3", bar=0.9)
    assert len(store.judgements("rsp")) == 2


def test_nothing_is_deployed_to_nowhere(data, tmp_path):
    found = judged(data, None, "good", tmp_path)
    assert not found.verdict.deploy and found.verdict.reason.endswith("; no store was named")
    assert found.order == {} and found.verdict.iou > 0.5


def test_too_few_blocks_are_not_judged(data, store, tmp_path):
    deploy(store, data / "bad.safetensors")
    found = judged(data, store, "good", tmp_path, block=6)
    assert not found.verdict.deploy and "4 blocks of held-out tiles are too few" in found.verdict.reason
    assert store.judgements("rsp")[-1].verdict == "keep"


def test_another_question_is_not_compared(data, store, tmp_path):
    other = make_checkpoint(tmp_path / "roofs.safetensors", classes=OTHER_CLASSES)
    version = deploy(store, other)
    found = judged(data, store, "good", tmp_path / "1")
    assert not found.verdict.deploy and np.isnan(found.verdict.champion_iou)
    assert f"kept release {version}: it has other classes (background, building)" in found.verdict.reason
    assert not list((tmp_path / "1").iterdir()), "nothing was predicted"


def test_the_model_that_serves_is_no_candidate(data, store, tmp_path):
    version = deploy(store, data / "good.safetensors")
    found = judged(data, store, "good", tmp_path / "1")
    assert found.verdict.reason == f"kept release {version}: the candidate is that very model"
    assert not found.verdict.deploy and found.verdict.iou > 0.5


def test_a_damaged_champion_is_no_reason_to_replace_it(data, store, tmp_path):
    deploy(store, data / "bad.safetensors")
    flip(store.storage, next(key for key in contents(store.storage) if key.endswith("checkpoint.safetensors")))
    with pytest.raises(ReleaseError, match="damaged"):
        judged(data, store, "good", tmp_path / "1")
    assert store.judgements("rsp") == []


def test_masks_of_the_champion_below_a_data_root_are_made_once(data, store, s3, tmp_path, capsys):
    deploy(store, data / "bad.safetensors")
    root = f"s3://{s3.bucket()}/data"
    first = judged(data, store, "good", tmp_path / "1", data_root=root)
    made = contents(location(root).storage())
    assert [key for key in made if key.endswith(".pmtiles")] and "there already" not in capsys.readouterr().out
    again = judged(data, store, "good", tmp_path / "2", data_root=root)
    assert "there already" in capsys.readouterr().out
    assert again.verdict == first.verdict == judged(data, store, "good", tmp_path / "3").verdict
