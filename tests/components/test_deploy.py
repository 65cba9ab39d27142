"""rsp deploy: the switch that loses nothing, and every way in which it must not happen."""

from __future__ import annotations

import json
import shutil
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from kfp import dsl

import rsp.serving.archive
from rsp.components.deploy.checks import check_progress
from rsp.components.deploy.component import deploy as deploy_component
from rsp.components.deploy.tool import deploy
from rsp.serving.archive import build_archive, sha8
from rsp.serving.client import TileClient
from rsp.serving.direct import DirectServer
from rsp.serving.management import Management
from rsp.serving.store import current_archives, previous_archive
from rsp.shared.errors import ServingError, UsageError
from rsp.shared.images import encode
from rsp.shared.learning.inference import load_predictor, predict_tiles
from tests.serving.load import Load
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, make_tileset, noise

java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java: install openjdk-17-jre-headless")
pytestmark = [pytest.mark.java, pytest.mark.xdist_group("torchserve")]

IMAGE = encode(noise(BLOCK[0]), "png")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [make_checkpoint(folder / f"{seed}.safetensors", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def masks(models):
    """The mask of IMAGE by each model."""
    found = [predict_tiles(load_predictor(model, device="cpu"), [IMAGE])[0] for model in models]
    assert found[0] != found[1]
    return found


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return make_tileset(tmp_path_factory.mktemp("golden") / "golden.pmtiles")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(store):
    with DirectServer(model_store=store, model_api=True) as running:
        yield running


@pytest.fixture
def place(server, store, golden):
    """Where to deploy to, as keyword arguments of `deploy`."""
    return {
        "management": server.management, "inference": server.inference, "model_store": store, "golden": golden,
        "drain": 1.0, "tolerance": 0.0,
    }  # fmt: skip


def registered(server: DirectServer, name: str = "rsp") -> list[str]:
    return list(Management(server.management, name).versions())


def archives(store: Path, name: str = "rsp") -> list[str]:
    return sorted(path.name for path in store.glob(f"{name}-*.mar"))


@java
def test_the_first_model_and_the_same_once_more(tmp_path, rsp, server, store, golden, models, masks):
    flags = ("deploy", "--model", models[0], "--management", server.management, "--inference", server.inference,
             "--model_store", store, "--golden", golden, "--report", tmp_path / "report.json")  # fmt: skip
    for first in (True, False):
        ran = rsp(*flags)
        assert ran.code == 0, ran.stderr
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["changed"], report["agreement"]) == (first, 1.0)
        assert report["version"] == sha8(models[0]) and report["previous"] == ("" if first else report["version"])
        assert list(report["seconds"]) == [
            "compare", "archive", "expect", "register", "smoke test", "switch", "drain", "remove",
        ]  # fmt: skip
        assert registered(server) == [sha8(models[0])]
        assert archives(store) == [f"rsp-{sha8(models[0])}.mar"] == list(current_archives(store).values())
        assert TileClient(report["endpoint"]).predict(IMAGE) == masks[0]


@java
def test_registering_does_not_stop_the_others(place, server, store, models):
    """C1: half of the open connections stood still until the new workers were there."""
    deploy(models[0], **place)
    api = Management(server.management, "rsp")
    archive = build_archive(models[1], store, name="rsp")
    with Load(server.inference, clients=8) as load:
        load.wait_for(2)
        began = time.monotonic()
        api.register(archive.name, None)
        api.wait_ready(sha8(models[1]))
        ended = time.monotonic()
    assert load.faults == []
    # Each connection asked and was answered while the new worker loaded: not one event loop waited for it.
    for moments in load.moments:
        assert [asked for asked, answered in moments if began < asked and answered < ended]
    api.unregister(sha8(models[1]))
    archive.unlink()


@java
def test_a_new_version_under_load_loses_no_request(place, server, store, models, masks):
    deploy(models[0], **place)
    answers: list[bytes | Exception] = []
    stop = threading.Event()

    def ask(client: TileClient) -> None:
        while not stop.is_set():
            try:
                answers.append(client.predict(IMAGE))
            except Exception as error:  # noqa: BLE001 (whatever it is, it is counted)
                answers.append(error)

    # One attempt: a retry would hide a lost request.
    with TileClient(server.inference, attempts=1, timeout=20) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        result = deploy(models[1], **place)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert client.served_version() == result.version == sha8(models[1])
    assert result.changed and result.previous == sha8(models[0])
    assert set(answers) == set(masks) and len(answers) > 20
    assert answers[0] == masks[0] and answers[-1] == masks[1]
    assert registered(server) == [sha8(models[1])]
    assert current_archives(store)["rsp"] == f"rsp-{sha8(models[1])}.mar"
    assert archives(store) == sorted(f"rsp-{sha8(model)}.mar" for model in models)  # one to roll back to


def with_other_model(monkeypatch, data: bytes) -> None:
    """Let the archive hold another model than the one that was given."""
    build = rsp.serving.archive.build_archive

    def tampered(model: Path, out: Path, *, name: str, version: str = "", trust_model: bool = False) -> Path:
        path = build(model, out, name=name, version=version, trust_model=trust_model)
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, data if member.startswith("model.") else content)
        return path

    monkeypatch.setattr(rsp.serving.archive, "build_archive", tampered)


@java
@pytest.mark.parametrize("fault", ["does not load", "answers otherwise"])
def test_a_bad_version_leaves_the_old_one_serving(place, server, store, models, masks, monkeypatch, fault):
    deploy(models[0], **place)
    before = (registered(server), archives(store), current_archives(store))
    data = models[0].read_bytes()
    with_other_model(monkeypatch, data[:5000] if fault == "does not load" else data)
    step = "register" if fault == "does not load" else "smoke test"
    with pytest.raises(ServingError, match=f"version {sha8(models[0])} still serves: step `{step}`: ") as caught:
        deploy(models[1], **place)
    assert (
        "cannot load the model: ModelError: " if step == "register" else "differ from those of a local prediction"
    ) in str(caught.value)
    assert (registered(server), archives(store), current_archives(store)) == before
    assert TileClient(server.inference).predict(IMAGE) == masks[0]


@java
def test_what_cannot_be_deployed(place, server, store, models, tmp_path, rsp):
    deploy(models[0], **place)
    before = (registered(server), archives(store), current_archives(store))
    (tmp_path / "text.pt2").write_text("no model")
    with pytest.raises(ServingError, match=r"still serves: step `compare`: .*text\.pt2"):
        deploy(tmp_path / "text.pt2", **place)
    with pytest.raises(ServingError, match=r"step `register`: .*--model_store must be the folder"):
        deploy(make_checkpoint(tmp_path / "new", 9), **{**place, "model_store": tmp_path})
    assert not list(tmp_path.glob("*.mar")) and not list(tmp_path.glob("*.current"))
    big = make_tileset(tmp_path / "big", BLOCK[:1], draw=lambda tile: noise(tile, 80))
    with pytest.raises(ServingError, match=r"step `expect`: .*80x80"):
        deploy(models[1], **{**place, "golden": big})
    with pytest.raises(ServingError, match=r"version .* is another model"):
        deploy(models[1], version=sha8(models[0]), **place)
    assert (registered(server), archives(store), current_archives(store)) == before


@java
def test_a_named_version_of_another_name_without_golden_tiles(place, server, models, masks, store):
    result = deploy(models[1], name="roofs", version="2026.1", keep_archives=True, **{**place, "golden": None})
    assert result.endpoint == f"{server.inference}/predictions/roofs" and result.agreement == 1.0
    deploy(models[0], name="roofs", keep_archives=True, **place)
    assert TileClient(result.endpoint).predict(IMAGE) == masks[0]
    # The archive stays, the version does not; and it can be had again.
    assert (store / f"roofs-2026.1-{sha8(models[1])}.mar").exists()
    assert registered(server, "roofs") == [sha8(models[0])]


@java
def test_component_and_restart(run_component, server, store, golden, models, masks):
    run_component(
        deploy_component, {"model": (models[1], dsl.Model), "golden": golden},
        management=server.management, inference=server.inference, model_store=str(store),
    )  # fmt: skip
    assert TileClient(server.inference).predict(IMAGE) == masks[1]
    # TorchServe forgets what its management API was told; the store remembers.
    with DirectServer(model_store=store) as again:
        assert TileClient(again.inference).predict(IMAGE) == masks[1]


def test_nobody_at_the_management_api(tmp_path, rsp, models):
    ran = rsp("deploy", "--model", models[0], "--model_store", tmp_path, "--management", "http://127.0.0.1:9")
    assert ran.code == 1 and "is TorchServe running there?" in ran.stderr
    assert not list(tmp_path.iterdir())


TILES = "a" * 64


@java
def test_a_worse_model_does_not_take_the_place_of_a_better_one(place, server, store, tmp_path, capsys):
    """D1: IoU 0.265 took the place of 0.797, and the old archive was deleted."""
    place |= {"name": "judged", "drain": 0.1}

    def make(file: str, seed: int, iou: float | None, tiles: str | None = TILES, **fields: object) -> Path:
        metrics = {} if iou is None else {"iou": iou}
        return make_checkpoint(tmp_path / file, seed, metrics=metrics, validation=tiles, **fields)

    good = make("good", 0, 0.8)
    assert deploy(good, **place).changed
    before = archives(store, "judged"), current_archives(store), registered(server, "judged")
    with pytest.raises(
        ServingError, match=r"still serves: step `compare`: its IoU is 0\.7900 .* 0\.8000 .*--force"
    ):
        deploy(make("worse", 1, 0.79), **place)
    other = load_predictor(good, device="cpu").card.classes
    with pytest.raises(ServingError, match=r"other classes \(background, roof\) than .* \(background, building\)"):
        deploy(make("roofs", 1, 0.9, classes=(other[0], replace(other[1], title="roof"))), **place)
    with pytest.raises(ServingError, match=r"other bands \(images 3-2-1\) than .* \(images 1-2-3\)"):
        channel = load_predictor(good, device="cpu").card.channels[0]
        check_progress(
            make("bgr", 1, 0.9, channels=(replace(channel, bands=(3, 2, 1)),)), server.inference, "judged"
        )
    assert (archives(store, "judged"), current_archives(store), registered(server, "judged")) == before
    for model, warning in (
        (make("equal", 2, 0.8), ""),
        (make("good again", 0, 0.1), ""),  # the same weights: the same model
        (make("elsewhere", 3, 0.1, "b" * 64), "validated on different tiles or labels"),
        (make("unknown", 4, 0.1, None), "the new model does not say which tiles"),
        (make("unmeasured", 5, None), "has no IoU"),
    ):
        capsys.readouterr()
        check_progress(model, server.inference, "judged")
        said = capsys.readouterr().err
        assert warning in said and bool(said) == bool(warning)
    # Nobody there to ask is a reason to deploy, not to refuse.
    check_progress(good, server.inference, "nobody")
    assert "cannot be asked for its metrics" in capsys.readouterr().err
    # The one before is kept, whatever it was; older ones go.
    kept = [before[0][0]]
    for model, force in ((make("worse", 1, 0.79), True), (make("elsewhere", 3, 0.1, "b" * 64), False)):
        result = deploy(model, force=force, **place)
        kept = [*kept[-1:], f"judged-{result.version}.mar"]
        assert archives(store, "judged") == sorted(kept) and previous_archive(store, "judged") == kept[0]
        assert registered(server, "judged") == [result.version]
    Management(server.management, "judged").unregister(result.version)


def test_wrong_arguments(tmp_path, rsp, models):
    assert rsp("deploy", "--model", models[0], "--model_store", tmp_path / "none").code == 2
    assert rsp("deploy", "--model", models[0], "--model_store", tmp_path, "--workers", 0).code == 2
    assert rsp("deploy", "--model", models[0]).code == 2
    with pytest.raises(UsageError, match="--workers"):
        deploy(models[0], model_store=tmp_path, workers=0)
