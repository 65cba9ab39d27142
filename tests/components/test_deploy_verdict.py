"""rsp deploy --verdict: what a judge lets through is deployed, and nothing else; --list shows what was judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import rsp.components.deploy.golden
from rsp.components.deploy.tool import deploy
from rsp.components.deploy.verdict import read_verdict
from rsp.serving.manifest import MAX_MANIFEST, sha8
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import ConflictError, ReleaseError, ServingError, UsageError
from rsp.shared.learning.formats import read_model_card
from rsp.shared.locations import location
from rsp.shared.storage import open_storage
from tests.serving.judged import NOW, make_judgement, write_verdict
from tests.serving.releases import TILES, contents
from tests.serving.tiny import make_checkpoint

GOLDEN = cache(rsp.components.deploy.golden.golden_tiles)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same model has the same golden masks: each is loaded once."""
    monkeypatch.setattr(rsp.components.deploy.golden, "golden_tiles", GOLDEN)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A champion, and two that recorded less than it on the same tiles."""
    folder = tmp_path_factory.mktemp("models")
    return [
        make_checkpoint(folder / f"{seed}.safetensors", seed, metrics={"iou": iou}, validation=TILES)
        for seed, iou in enumerate((0.8, 0.7, 0.6))
    ]


@pytest.fixture(scope="module")
def other(tmp_path_factory, models):
    """A candidate for other bands."""
    folder = tmp_path_factory.mktemp("other")
    channel = read_model_card(models[0]).channels[0]
    return make_checkpoint(folder / "other.safetensors", 3, channels=(replace(channel, bands=(3, 2, 1)),))


def state(store: ReleaseStore) -> dict[str, bytes]:
    return contents(store.storage)


def test_what_a_judge_lets_through_is_deployed_whatever_was_recorded(tmp_path, new_store, models):
    """IoUs of two trainings say less than both models on the same held-out tiles."""
    place = new_store()
    store = ReleaseStore(open_storage(place))
    first, second = map(sha8, models[:2])
    none = write_verdict(tmp_path / "none.json", models[0], "", reason="there is no champion")
    assert deploy(models[0], store=place, verdict=none).version == first
    assert store.pointer("rsp").reason == "there is no champion"
    with pytest.raises(ServingError, match=r"its IoU is 0\.7000"):
        deploy(models[1], store=place)
    verdict = location(write_verdict(tmp_path / "verdict.json", models[1], first, reason="gain +0.1000"))
    if place.startswith("s3://"):
        open_storage(place).write("verdicts/v.json", Path(verdict).read_bytes())
        verdict = location(f"{place}/verdicts/v.json")
    result = deploy(models[1], store=place, verdict=verdict)
    assert (result.version, result.replaced, result.changed) == (second, first, True)
    assert store.pointer("rsp").reason == "gain +0.1000"
    # Stopped after the move and tried again, it is done.
    before = state(store)
    again = deploy(models[1], store=place, verdict=verdict)
    assert not again.changed and state(store) == before
    # The next one sees the reason in the history.
    third = write_verdict(tmp_path / "third.json", models[2], second, reason="")
    assert deploy(models[2], store=place, verdict=third).changed
    pointer = store.pointer("rsp")
    assert pointer.reason == "deployed by a verdict"
    assert [move.reason for move in pointer.history] == ["gain +0.1000", "there is no champion"]


def test_what_was_not_judged_or_not_against_this_is_refused(tmp_path, new_store, models):
    place = new_store()
    store = ReleaseStore(open_storage(place))
    first, second, third = map(sha8, models)
    path = tmp_path / "verdict.json"
    with pytest.raises(
        ConflictError, match=f"nothing is wanted as before: .* judged against {first}, and nothing is"
    ):
        deploy(models[1], store=place, verdict=write_verdict(path, models[1], first))
    deploy(models[0], store=place)
    before = state(store)
    cases: list[tuple[Path, str, dict[str, Any], type[Exception], str]] = [
        (models[2], first, {}, ServingError, "about another model: its SHA-256 digest is"),
        (models[1], first, {"verdict": "keep", "reason": "no gain"}, ServingError, "keeps the champion: no gain"),
        (models[1], third, {}, ConflictError, f"judged against {third}, and {first} is wanted now: somebody else"),
        (models[1], "", {}, ConflictError, f"judged against nothing, and {first} is wanted now"),
    ]
    for judged, champion, fields, error, message in cases:
        with pytest.raises(error, match=f"^not deployed, version {first} of rsp is wanted as before: .*{message}"):
            deploy(models[1], store=place, verdict=write_verdict(path, judged, champion, **fields))
        assert state(store) == before
    # The very model that serves is no exception.
    kept = write_verdict(path, models[0], second, verdict="keep")
    with pytest.raises(ServingError, match="keeps the champion"):
        deploy(models[0], store=place, verdict=kept)
    # Nor is a version of that name which is another model, or the model under another name.
    for version, champion in ((first, second), ("again", second)):
        judged, fields = (models[1], {}) if version == first else (models[0], {})
        with pytest.raises(ConflictError, match="judge it once more"):
            deploy(judged, store=place, version=version, verdict=write_verdict(path, judged, champion, **fields))
    assert state(store) == before


def test_a_verdict_for_a_pointer_to_nothing(tmp_path, models):
    """The champion's release is gone from the store, and the version still has to be the one that was judged."""
    place = str(tmp_path / "store")
    store = ReleaseStore(open_storage(place))
    first, second = map(sha8, models[:2])
    deploy(models[0], store=place)
    shutil.rmtree(tmp_path / "store" / "rsp" / "releases")
    with pytest.raises(ConflictError, match=f"judged against {second}, and {first} is wanted"):
        deploy(models[0], store=place, verdict=write_verdict(tmp_path / "v.json", models[0], second))
    assert deploy(models[1], store=place, verdict=write_verdict(tmp_path / "v.json", models[1], first)).changed
    assert store.pointer("rsp").version == second


def test_another_question_is_none_for_a_verdict(tmp_path, models, other):
    place = str(tmp_path / "store")
    deploy(models[0], store=place)
    verdict = write_verdict(tmp_path / "v.json", other, sha8(models[0]))
    with pytest.raises(ServingError, match=r"other bands \(images 3-2-1\)"):
        deploy(other, store=place, verdict=verdict)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "0" * 63}, "model: expected 64 hexadecimal digits"),
        ({"model": None}, "model: expected 64 hexadecimal digits"),
        ({"model": 7}, "model: expected 64 hexadecimal digits"),
        ({"more": 1}, "unknown key 'more'"),
        ({"time": "today"}, "time: 'today' is not a time"),
        ({"verdict": "maybe"}, "verdict: expected one of deploy, keep"),
        ({"champion": "../v1"}, "champion: '../v1'"),
        ({"gain": 1.5}, "gain: expected a number from -1 to 1"),
        ({"format": 2}, "upgrade rsp"),
    ],
)
def test_hostile_verdicts(tmp_path, models, fields, message):
    path = write_verdict(tmp_path / "v.json", models[0], "v1", **fields)
    with pytest.raises(ReleaseError, match=f"^the verdict {path}: .*{message}"):
        read_verdict(path)


def test_what_is_no_verdict_at_all(tmp_path, models, rsp):
    path = tmp_path / "v.json"
    for text, message in (
        (b"", "not JSON"), (b"[1]", "expected a table"), (b"{}", "'time' is missing"),
        (b'{"gain": NaN}', "not JSON"), (b" " * (MAX_MANIFEST + 1), "more than"), (b"\xff\xfe", "not JSON"),
    ):  # fmt: skip
        path.write_bytes(text)
        with pytest.raises(ReleaseError, match=message):
            read_verdict(path)
    with pytest.raises(ReleaseError, match=r"cannot read the verdict .*: Is a directory"):
        read_verdict(tmp_path)
    ran = rsp("deploy", "--model", models[0], "--store", tmp_path / "store", "--verdict", tmp_path / "none.json")
    assert ran.code == 1 and f"cannot read the verdict {tmp_path / 'none.json'}: No such file" in ran.stderr
    assert not (tmp_path / "store").exists()


def test_wrong_usage(tmp_path, models):
    store, verdict = str(tmp_path / "store"), write_verdict(tmp_path / "v.json", models[0], "")
    for flags in ({"listing": True}, {"rollback": ""}):
        with pytest.raises(UsageError, match="--verdict is about a --model"):
            deploy(store=store, verdict=verdict, **flags)
    with pytest.raises(UsageError, match="--verdict and --force contradict"):
        deploy(models[0], store=store, verdict=verdict, force=True)


def test_a_list_shows_what_was_judged(tmp_path, rsp, new_store, models):
    place = new_store()
    store = ReleaseStore(open_storage(place))
    for number in range(7):
        store.note("roofs", make_judgement(candidate=f"c{number}", reason=f"reason {number}", verdict="keep"))
    # Nothing was ever deployed, and yet the name is known.
    report = tmp_path / "report.json"
    ran = rsp("deploy", "--store", place, "--list", "--name", "roofs", "--report", report)
    assert ran.code == 0
    said = [line for line in ran.stdout.splitlines() if "kept out" in line]
    assert said == [f"roofs: c{number} kept out at {NOW}: reason {number}" for number in (6, 5, 4, 3, 2)]
    model = json.loads(report.read_text())["models"]["roofs"]
    assert [row["candidate"] for row in model["judgements"]] == [f"c{number}" for number in range(6, -1, -1)]
    assert model["pointer"] is None and model["judgements"][0]["iou"] == 0.8
    verdict = write_verdict(tmp_path / "v.json", models[0], "")
    store.note("roofs", make_judgement(champion="", candidate=sha8(models[0])))
    assert deploy(models[0], store=place, name="roofs", verdict=verdict, keep=1).changed
    assert len(store.judgements("roofs")) == 8, "old releases go, judgements stay"
    shown = rsp("deploy", "--store", place, "--list").stdout
    assert f"{sha8(models[0])} let through at" in shown and "c6 kept out" in shown
    store.storage.write("roofs/judgements.json", b"{")
    shown = rsp("deploy", "--store", place, "--list").stdout
    assert "judgements.json: it is not JSON" in shown and f"roofs  {sha8(models[0])}  wanted" in shown
