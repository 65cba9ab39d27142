"""A server that follows a release store on S3: switches, roll-backs, and what it refuses, under load."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time

import psutil
import pytest
import requests

from rsp.serving.client import TileClient
from rsp.serving.loading import Settings
from rsp.serving.management import Management
from rsp.serving.manifest import Pointer
from rsp.serving.releases import ReleaseStore
from rsp.serving.server import Server
from rsp.shared.images import encode
from rsp.shared.learning.encoded import predict_tiles
from rsp.shared.learning.inference import load_predictor
from rsp.shared.storage import open_storage
from tests.relay import Relay
from tests.s3 import moto
from tests.serving.load import Load
from tests.serving.releases import flip
from tests.serving.stores import arrives, move, publish, wait_until
from tests.serving.tiny import make_model
from tests.tilesets import BLOCK, noise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.java,
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java: install openjdk-17-jre-headless"),
]

QUICK = Settings(poll=0.1, linger=0.5, hold=60.0, timeout=60.0)


@pytest.fixture(scope="module")
def cable():
    """An S3 server, behind something that can be pulled."""
    with moto() as s3, pytest.MonkeyPatch.context() as patch:
        relay = Relay(int(s3.host.rpartition(":")[2]))
        for key, value in {**s3.environ, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{relay.port}"}.items():
            patch.setenv(key, value)
        s3.client().make_bucket("follower")
        yield relay
        relay.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {f"v{seed}": make_model(folder / f"v{seed}.pt", seed) for seed in (1, 2, 3)}


@pytest.fixture(scope="module")
def masks(models):
    """What each model answers to the tile that the load sends."""
    image = encode(noise(BLOCK[0]), "png")
    return {
        version: predict_tiles(load_predictor(model, device="cpu"), [image])[0]
        for version, model in models.items()
    }


@pytest.fixture(scope="module")
def store(cable, models):
    made = ReleaseStore(open_storage("s3://follower/models"))
    for version, model in models.items():
        publish(made, model, version)
    return made


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    move(store, "v1")
    with Server(
        "s3://follower/models", ["rsp"], cache=tmp_path_factory.mktemp("cache"), settings=QUICK
    ) as running:
        assert requests.get(f"{running.inference}/healthz", timeout=30).status_code == 503
        running.wait()
        yield running


@pytest.fixture
def following(server, store):
    """The server, which serves v1 and has nothing else."""
    if store.pointer("rsp").version != "v1":
        move(store, "v1")
    arrives(server, "v1")
    return server


@pytest.fixture
def states(caplog):
    """The states that are logged."""
    caplog.set_level(logging.INFO, "rsp.serving.switch")
    return lambda: [record.state for record in caplog.records if hasattr(record, "state")]


def registered(server: Server) -> list[str]:
    return sorted(Management(server.torchserve.management, "rsp").versions())


def family(server: Server) -> list[psutil.Process]:
    """The processes of its TorchServe."""
    folder = str(server.torchserve.folder)
    return [each for each in psutil.Process().children(recursive=True) if each.environ().get("TEMP") == folder]


def test_what_a_server_says_of_itself(following):
    status = requests.get(following.status_url, timeout=30).json()
    assert (status["format"], status["ready"], status["draining"], status["reason"]) == (1, True, False, None)
    assert status["store"] == {"address": "s3://follower/models", "reachable": True, "reason": None}
    model = status["models"]["rsp"]
    assert (model["wanted"], model["serving"], model["state"], model["reason"]) == ("v1", "v1", "serving", None)
    assert model["since"].endswith("Z") and model["torch"].startswith("2.")
    for path in ("healthz", "livez"):
        assert requests.get(f"{following.inference}/{path}", timeout=30).status_code == 200
    text = requests.get(following.metrics_url, timeout=30).text
    assert "rsp_ready 1.0" in text and 'rsp_release_info{model="rsp"' in text
    assert requests.get(f"{following.inference}/models", timeout=30).status_code == 404  # nobody else manages it
    # How to open the store is not for models, which are programs.
    assert "AWS_SECRET_ACCESS_KEY" in os.environ
    assert not [key for each in family(following) for key in each.environ() if key.startswith("AWS_")]


def test_the_newest_wins_and_a_client_keeps_its_version(following, store, states):
    """A switch that is overtaken, a switch, and a roll-back, under load: no request fails."""
    with Load(following.inference, 2, pause=0.1) as load:
        with Load(following.inference, 1, "rsp/v1", pause=0.1) as pinned:
            load.wait_for(3)
            move(store, "v2")
            wait_until(following, lambda each: (each["wanted"], each["state"]) == ("v2", "loading"))
            move(store, "v3")
            found = wait_until(following, lambda each: (each["serving"], each["state"]) == ("v3", "draining"))
            time.sleep(3 * QUICK.linger)  # longer than the old one lingers where nobody asks for it
            assert found["kept"] == ["v1"] and registered(following) == ["v1", "v3"]
            load.wait_for(max(map(len, load.moments)) + 3)
            before = len(states())
            move(store, "v1")  # it is still there: nothing is loaded
            wait_until(following, lambda each: each["serving"] == "v1")
            assert states()[before : before + 2] == ["fetching", "switching"]
        load.wait_for(max(map(len, load.moments)) + 3)
        arrives(following, "v1")  # and v3 goes, as nobody asks for it
    assert pinned.faults == load.faults == []
    assert (pinned.versions, load.versions) == ({"v1"}, {"v1", "v3"})
    assert registered(following) == ["v1"]
    assert "registering loading fetching verifying archiving registering loading comparing switching draining" in (
        " ".join(states())
    )
    assert states()[-2:] == ["removing", "serving"]


def test_a_release_that_answers_other_masks_is_refused_under_load(following, store, models, states):
    publish(store, models["v2"], "wrong", wrong=True)
    with Load(following.inference, 2, pause=0.1) as load:
        load.wait_for(3)
        move(store, "wrong")
        found = wait_until(following, lambda each: each["state"] == "refused")
        load.wait_for(max(map(len, load.moments)) + 3)
    assert (found["wanted"], found["serving"]) == ("wrong", "v1")
    assert "version wrong: its masks differ from those of the release in" in found["reason"]
    assert load.faults == [] and load.versions == {"v1"} and "comparing" in states()
    assert registered(following) == ["v1"]
    assert requests.get(f"{following.inference}/healthz", timeout=30).status_code == 200  # the old one answers
    assert requests.post(f"{following.inference}/predictions/rsp/wrong", b"x", timeout=30).status_code == 404


def test_a_model_that_does_not_load_is_refused_with_the_reason(following, store, tmp_path, models):
    text = tmp_path / "model.pt2"
    text.write_bytes(b"this is no model")
    publish(store, models["v1"], "text", instead=text)
    move(store, "text")
    found = wait_until(following, lambda each: each["state"] == "refused")
    assert "version text: a worker cannot load the model: ModelError" in found["reason"]
    assert found["serving"] == "v1" and registered(following) == ["v1"]


@pytest.mark.parametrize("file", ["model.pt", "card.json", "golden/0.tif", "golden/1.png", "release.json"])
def test_a_flipped_bit_in_any_file_of_a_release(following, store, models, file):
    version = f"flipped-{file.replace('/', '-')}"
    release = publish(store, models["v2"], version)
    folder = f"rsp/releases/{version}"
    flip(store.storage, f"{folder}/{file}" if file == "release.json" else f"{folder}/{release.folder}/{file}")
    # `move` looks at the release, too.
    swap(store, version)
    found = wait_until(following, lambda each: each["state"] == "refused")
    assert found["wanted"] == version and file in found["reason"] and found["serving"] == "v1"
    assert registered(following) == ["v1"]


def swap(store: ReleaseStore, version: str) -> None:
    """Let the name want a version that may not be there."""
    pointer = store.pointer("rsp")
    text = json.loads(pointer.to_json())
    text |= {"version": version, "serial": pointer.serial + 1}
    store.storage.write("rsp/pointer.json", json.dumps(text).encode())


def test_a_pointer_to_nothing(following, store):
    swap(store, "nobody")
    found = wait_until(following, lambda each: each["state"] == "refused")
    assert "there is no release nobody of rsp" in found["reason"] and found["serving"] == "v1"
    for data, reason in ((b"{", "pointer.json: it is not JSON"), (None, "has no pointer of rsp")):
        move(store, "v1")
        arrives(following, "v1")
        if data is None:
            store.storage.delete("rsp/pointer.json")
        else:
            store.storage.write("rsp/pointer.json", data)
        found = wait_until(following, lambda each, reason=reason: reason in (each["reason"] or ""))
        assert (found["state"], found["serving"]) == ("serving", "v1")
        store.storage.write(
            "rsp/pointer.json", Pointer("rsp", "v1", 99, "2026-01-01T00:00:00Z", "again").to_json()
        )
    arrives(following, "v1")


def test_another_torch_is_refused_at_once(following, store, models, states):
    publish(store, models["v2"], "old", torch="1.13.1")
    move(store, "old")
    found = wait_until(following, lambda each: each["state"] == "refused")
    assert "made with torch 1.13.1, this server has 2." in found["reason"] and found["serving"] == "v1"
    assert set(states()) <= {"fetching", "refused", "serving"}  # nothing was loaded


def test_nothing_is_wanted(following, store):
    before = store.pointer("rsp")
    moved = store.move("rsp", "v1", expected=before, reason="a first deploy")
    store.move_back(moved, None, "it failed")
    # Before it first looked at the pointer it waits, too, and cannot say for what.
    found = wait_until(following, lambda each: each["reason"] and (each["state"], each["kept"]) == ("waiting", []))
    assert (found["serving"], found["reason"]) == (None, "nothing is wanted: it failed")
    answer = requests.post(f"{following.inference}/predictions/rsp", b"x", timeout=30)
    assert answer.status_code == 503 and "no verified release of rsp" in answer.json()["detail"]
    health = requests.get(f"{following.inference}/healthz", timeout=30)
    assert health.status_code == 503 and "nothing is wanted" in health.json()["reason"]


def test_java_is_killed_while_the_store_is_away(following, cable, masks):
    """What served serves again, from this machine's disk; and the store is followed again when it is back."""
    (java,) = (each for each in family(following) if each.name() == "java")
    cable.unplug()
    try:
        java.kill()
        wait_until(following, lambda each: each["serving"] is None)
        wait_until(following, lambda each: each["serving"] == "v1" and each["state"] == "serving")
        with TileClient(following.inference) as client:
            assert client.predict(encode(noise(BLOCK[0]), "png")) == masks["v1"]
        wait_until(following, lambda _: not following.status()["store"]["reachable"])
        assert "follower" in following.status()["store"]["reason"]
    finally:
        cable.plug()
    wait_until(following, lambda _: following.status()["store"]["reachable"])
    arrives(following, "v1")


def test_a_restart_without_the_store_and_a_replica(following, cable, store, tmp_path, masks):
    """A server that finds a release on its disk starts without the store, and follows it when it is there."""
    shutil.copytree(following._follower._switches["rsp"]._shared.cache.folder, tmp_path / "cache")
    cable.unplug()
    with Server("s3://follower/models", ["rsp"], cache=tmp_path / "cache", settings=QUICK) as second:
        found = wait_until(second, lambda each: each["serving"] == "v1")
        assert found["wanted"] is None and second.problem() is None
        cable.plug()
        move(store, "v2")
        for each in (second, following):
            arrives(each, "v2")
            with TileClient(each.inference) as client:
                assert client.predict(encode(noise(BLOCK[0]), "png")) == masks["v2"]
