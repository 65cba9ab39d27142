"""rsp deploy: what is wanted, who is waited for, and every way in which it must not happen."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kfp import dsl

import rsp.components.deploy.golden
import rsp.components.deploy.replicas
import rsp.components.deploy.tool
from rsp.components.deploy.checks import another_question, worse, worse_than_current
from rsp.components.deploy.component import deploy as deploy_component
from rsp.components.deploy.replicas import Replicas
from rsp.serving.manifest import Precision, sha8
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import (
    ConflictError,
    ModelError,
    ReleaseError,
    RspError,
    ServingError,
    StorageError,
    UsageError,
)
from rsp.shared.learning.encoded import predict_tiles
from rsp.shared.learning.inference import load_predictor
from rsp.shared.storage import open_storage
from rsp.shared.tileset import open_reader
from tests.components.replicas import Follows
from tests.serving.judged import write_verdict
from tests.serving.releases import TILES, Killed, Watched, contents, make_card, publish
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, make_tileset, noise


def deploy(*args: Any, **options: Any) -> Any:
    """The tool; what hangs ends sooner than by itself."""
    return rsp.components.deploy.tool.deploy(*args, **{"timeout": 10.0, **options})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [make_checkpoint(folder / f"{seed}.safetensors", seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return make_tileset(tmp_path_factory.mktemp("golden") / "golden.pmtiles")


# The same tiles by the same model have the same masks: each is loaded once.
GOLDEN = cache(rsp.components.deploy.golden.golden_tiles)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look again at once; nothing here is a matter of seconds."""
    monkeypatch.setattr(rsp.components.deploy.golden, "golden_tiles", GOLDEN)
    monkeypatch.setattr(rsp.components.deploy.replicas, "POLL", 0.02)
    monkeypatch.setattr(rsp.components.deploy.replicas, "FIRST", 0.1)


@pytest.fixture
def place(tmp_path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def store(place) -> ReleaseStore:
    return ReleaseStore(open_storage(place))


def wanted(store: ReleaseStore, name: str = "rsp") -> str | None:
    pointer = store.pointer(name)
    return None if pointer is None else pointer.version


def test_the_first_the_same_again_and_the_next(tmp_path, rsp, new_store, models, golden):
    place = new_store()
    store = ReleaseStore(open_storage(place))
    report = tmp_path / "report.json"
    flags = ("deploy", "--golden", golden, "--store", place, "--name", "roofs", "--report", report)
    ran = rsp(*flags, "--model", models[0])
    assert ran.code == 0 and "nobody was waited for; --status URL" in ran.stderr
    said = json.loads(report.read_text())
    assert (said["version"], said["replaced"], said["changed"]) == (sha8(models[0]), "", True)
    assert list(said["seconds"]) == ["look", "compare", "golden tiles", "publish", "switch", "prune"]
    before = contents(store.storage)
    assert rsp(*flags, "--model", models[0]).code == 0
    said = json.loads(report.read_text())
    assert (said["version"], said["replaced"], said["changed"]) == (sha8(models[0]), "", False)
    assert contents(store.storage) == before, "the same model changes nothing"
    assert list(said["seconds"]) == ["look"], "nor is it loaded again"
    assert rsp(*flags, "--model", models[1], "--version", "2026.2").code == 0
    said = json.loads(report.read_text())
    assert (said["version"], said["replaced"], said["changed"]) == ("2026.2", sha8(models[0]), True)
    assert store.pointer("roofs").previous == sha8(models[0]) and store.pointer("roofs").serial == 2


@pytest.mark.parametrize("tiles", [True, False])
def test_what_a_release_holds(place, store, models, golden, tmp_path, tiles):
    exported = tmp_path / "exported.safetensors"
    shutil.copy(models[0], exported)
    result = deploy(exported, store=place, checkpoint=models[0], golden=golden if tiles else None)
    release = store.fetch("rsp", result.version, tmp_path / "release")
    assert (release.model, release.checkpoint, release.card) == (
        "model.safetensors", "checkpoint.safetensors", "card.json",
    )  # fmt: skip
    assert release.precision == Precision("float32", "cpu", torch.backends.cpu.get_cpu_capability())
    assert release.torch == torch.__version__.partition("+")[0]
    assert release.classes == ("background", "building") and release.bands == ("images 1-2-3",)
    images = [(tmp_path / "release" / each.image).read_bytes() for each in release.golden]
    masks = [(tmp_path / "release" / each.mask).read_bytes() for each in release.golden]
    assert masks == predict_tiles(load_predictor(models[0], device="cpu"), images)
    with open_reader(golden) as reader:
        assert len(images) == (3 if tiles else 1)
        assert not tiles or images == [reader.read(tile) for tile in reader.tiles()[:3]]
        assert release.golden[0].image == ("golden/0.png" if tiles else "golden/0.tif")


def test_two_names_in_one_store(place, store, models):
    deploy(models[0], store=place, name="roofs")
    deploy(models[1], store=place, name="roads")
    deploy(models[2], store=place, name="roads")
    assert wanted(store, "roofs") == sha8(models[0]) and wanted(store, "roads") == sha8(models[2])


def test_what_cannot_be_deployed(place, store, models, golden, tmp_path):
    deploy(models[0], store=place)
    before = contents(store.storage)
    (tmp_path / "text.pt2").write_text("no model")
    big = make_tileset(tmp_path / "big", BLOCK[:1], draw=lambda tile: noise(tile, 80))
    kept = f"not deployed, version {sha8(models[0])} of rsp is wanted as before: "
    for error, message, model, given in (
        (ModelError, r"text\.pt2 is not a model", tmp_path / "text.pt2", {}),
        (ModelError, "was not made of the checkpoint", models[1], {"checkpoint": models[2]}),
        (ModelError, "golden tiles .* do not fit this model: .*80x80", models[1], {"golden": big}),
        (ReleaseError, "is another model; give another --version", models[1], {"version": sha8(models[0])}),
    ):
        with pytest.raises(error, match=f"^{kept}.*{message}"):
            deploy(model, store=place, **given)
    with pytest.raises(ReleaseError, match="letters, digits"):
        deploy(models[1], store=place, name="../other")
    with pytest.raises(ReleaseError, match="letters, digits"):
        deploy(models[1], store=place, version="a/b")
    assert contents(store.storage) == before


def step_back(new: Any, current: Any) -> str | None:
    return another_question(new, current) or worse(new, current)


def test_a_step_back_is_refused(place, store, capsys):
    """D1: IoU 0.265 took the place of 0.797, and the old archive was deleted."""
    current = publish(store, "v1", metrics={"iou": 0.8})
    card = make_card()
    channel = card.channels[0]
    typed = replace(channel, value_type="uint16", divisor=65535.0)
    for fields, message in (
        ({"metrics": {"iou": 0.79}}, "its IoU is 0.7900 and release v1 has 0.8000 on the same validation tiles"),
        ({"classes": (card.classes[0], replace(card.classes[1], title="roof"))},
         "it has other classes (background, roof) than release v1 (background, building)"),
        ({"channels": (replace(channel, bands=(3, 2, 1)),)},
         "it has other bands (images 3-2-1) than release v1 (images 1-2-3)"),
        ({"tile_size": 128}, "it has another tile size (128 px) than release v1 (64 px)"),
        ({"tile_size": 128, "metrics": {"iou": 0.9}}, "another tile size"),
    ):  # fmt: skip
        said = step_back(make_card(**fields), current)
        assert (
            said
            and said.startswith(message.partition("another tile")[0])
            and message in said
            and "--force" in said
        )
    eight = publish(store, "v2", channels=(replace(channel, value_type="uint8", divisor=255.0),))
    assert "takes uint16 values and release v2 takes uint8" in (
        step_back(make_card(channels=(typed,)), eight) or ""
    )
    capsys.readouterr()
    for fields, warning in (
        ({"metrics": {"iou": 0.8}}, ""),
        ({"metrics": {"iou": 0.9}}, ""),
        ({"metrics": {"iou": 0.1}, "validation": "b" * 64}, "validated on different tiles or labels"),
        ({"metrics": {"iou": 0.1}, "validation": None}, "the new model does not say which tiles"),
        ({"metrics": {}}, "has no IoU"),
        ({"channels": (typed,)}, ""),
    ):
        assert step_back(make_card(**fields), current) is None
        said = capsys.readouterr().err
        assert warning in said and bool(said) == bool(warning)


def test_a_worse_model_does_not_take_the_place_of_a_better_one(place, store, tmp_path):
    good = make_checkpoint(tmp_path / "good", 0, metrics={"iou": 0.8}, validation=TILES)
    lower = make_checkpoint(tmp_path / "worse", 1, metrics={"iou": 0.79}, validation=TILES)
    deploy(good, store=place)
    before = contents(store.storage)
    with pytest.raises(ServingError, match=r"is wanted as before: its IoU is 0\.7900 .* 0\.8000 .*--force"):
        deploy(lower, store=place)
    assert contents(store.storage) == before
    # What a pipeline asks before it deploys.
    assert "its IoU is 0.7900" in (worse_than_current(lower, place, "rsp") or "")
    assert worse_than_current(good, place, "rsp") is worse_than_current(lower, place, "roads") is None
    assert deploy(lower, store=place, force=True).changed
    assert worse_than_current(lower, place, "rsp") is None
    # The same model under another version is no other model.
    assert deploy(lower, store=place, version="again").version == "again"


def test_it_waits_until_every_replica_serves(place, store, models, capsys):
    with Follows(store, looks=3) as first, Follows(store, looks=6, server="pod-1") as second:
        result = deploy(models[0], store=place, status=[first.url, second.url, first.url])
        assert first.serving == second.serving == result.version
        assert result.replicas == [f"pod-0 (127.0.0.1:{first.port})", f"pod-1 (127.0.0.1:{second.port})"]
        assert result.endpoint == f"http://127.0.0.1:{first.port}/predictions/rsp"
        assert "pod-1" in capsys.readouterr().err
        # The same model again: nothing moves, but who does not serve is told of.
        first.serving = None
        first.refuses = (result.version,)
        with pytest.raises(ServingError, match=r"has been wanted since .*, but pod-0 .* refuses it: 3 %"):
            deploy(models[0], store=place, status=[first.url])
        assert wanted(store) == result.version and store.pointer("rsp").serial == 1
        again = deploy(models[0], store=place, status=[second.url], endpoint="http://models.example/")
        assert not again.changed and again.endpoint == "http://models.example/predictions/rsp"


@pytest.mark.parametrize("first", [True, False])
def test_a_replica_that_refuses_moves_the_pointer_back(place, store, models, first):
    before = None
    if not first:
        deploy(models[0], store=place)
        before = store.pointer("rsp")
    bad = sha8(models[1])
    with Follows(store) as good, Follows(store, refuses=(bad,), server="pod-1") as other:
        kept = "nothing is wanted" if first else f"version {sha8(models[0])} of rsp is wanted again"
        with pytest.raises(ServingError, match=f"^not deployed, {kept}.*: pod-1 .* refuses it: 3 % of the pixels"):
            deploy(models[1], store=place, status=[good.url, other.url])
        pointer = store.pointer("rsp")
        assert pointer.version == (None if first else sha8(models[0]))
        assert pointer.history == (() if before is None else before.history)
        assert f"{bad} was not deployed: pod-1" in pointer.reason and "3 %" in pointer.reason
        # The next deploy goes on from there.
        assert deploy(models[2], store=place, status=[good.url, other.url]).replaced == (
            "" if first else sha8(models[0])
        )


def test_not_in_time(place, store, models):
    deploy(models[0], store=place)
    with (
        Follows(store, looks=1_000_000) as slow,
        pytest.raises(
            ServingError,
            match=r"wanted again: after 0\.2 s not every replica serves it: pod-0 .* serves nothing, was told",
        ),
    ):
        deploy(models[1], store=place, status=[slow.url], timeout=0.2)
    assert wanted(store) == sha8(models[0])


def test_nobody_answers(place, store, models):
    with pytest.raises(
        ServingError, match=r"nobody answers at http://127\.0\.0\.1:9/status \(127\.0\.0\.1:9 does not"
    ):
        deploy(models[0], store=place, status=["http://127.0.0.1:9/status"])
    with pytest.raises(ServingError, match=r"no-such-host\.invalid:80 does not answer: "):
        deploy(models[0], store=place, status=["http://no-such-host.invalid/status"])
    assert not contents(store.storage), "before anybody answers, nothing is written"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"hello", "is no status of a server of ours"),
        (b"[]", "is no status of a server of ours: status: expected a table"),
        (b'{"format": 1, "server": "x", "store": {}, "models": {"rsp": {"state": 7}}}', "state: expected a text"),
        (b"[" * 100_000, "is no status of a server of ours"),
    ],
)
def test_what_is_no_status(place, store, models, answer, message):
    with Follows(store) as odd:
        odd.answer = lambda: answer
        with pytest.raises(ServingError, match=message):
            deploy(models[0], store=place, status=[odd.url])
        with pytest.raises(ServingError, match="answered 404; is it the address of a status"):
            deploy(models[0], store=place, status=[odd.url.replace("/status", "/ping")])


def headless(monkeypatch, found: list[str]) -> None:
    """Let a host name resolve to the addresses that are in a list at the moment."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != "pods.example":
            return resolve(host, port, *args, **options)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(rsp.components.deploy.replicas.socket, "getaddrinfo", resolved)


def test_a_name_with_several_addresses_means_all_of_them(place, store, models, monkeypatch):
    """A headless service; pods come and go while it is waited."""
    addresses = ["127.0.0.1", "127.0.0.2"]
    headless(monkeypatch, addresses)
    with Follows(store, looks=2) as first:  # noqa: SIM117 (the others take its port)
        with Follows(store, looks=10_000, host="127.0.0.2", port=first.port, server="pod-1") as second:
            with Follows(store, looks=4, host="127.0.0.3", port=first.port, server="pod-2") as third:

                def change(number: int) -> None:
                    if number == 4:
                        addresses.remove("127.0.0.2")  # it would never serve it, and it goes
                        addresses.append("127.0.0.3")  # it has to serve it, too

                first.on_look = change
                result = deploy(models[0], store=place, status=[f"http://pods.example:{first.port}/status"])
                assert [title.partition(" ")[0] for title in result.replicas] == ["pod-0", "pod-2"]
                assert second.serving is None and third.serving == result.version
                # One that ends takes no more requests.
                second.draining = True
                addresses.append("127.0.0.2")
                again = deploy(models[0], store=place, status=[f"http://pods.example:{first.port}"])
                assert len(again.replicas) == 2
    assert result.endpoint == f"http://pods.example:{first.port}/predictions/rsp"


def test_an_address_that_does_not_answer_is_waited_for(place, store, models, monkeypatch):
    addresses = ["127.0.0.1", "127.0.0.2"]
    headless(monkeypatch, addresses)
    with (
        Follows(store) as only,
        pytest.raises(
            ServingError,
            match=r"not every replica serves it: 127\.0\.0\.2:\d+ does not answer: Connection refused",
        ),
    ):
        deploy(models[0], store=place, status=[f"http://pods.example:{only.port}/status"], timeout=0.2)


def test_a_status_behind_tls(place, store, models, monkeypatch, tmp_path):
    """Each address is asked, and all have to be the host that was named; the token is for it."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=DNS:pods.example"
    command = [*make.split(), "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem")]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    headless(monkeypatch, ["127.0.0.1"])
    monkeypatch.setenv("RSP_TORCHSERVE_TOKEN", "secret")
    with Follows(store, tls=context) as server:
        url = f"https://pods.example:{server.port}/status"
        with pytest.raises(ServingError, match=r"does not answer: .*certificate"):
            deploy(models[0], store=place, status=[url])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pem"))
        assert deploy(models[0], store=place, status=[url]).replicas
        assert server.headers["Authorization"] == "Bearer secret"
        assert server.headers["Host"] == f"pods.example:{server.port}"
        with pytest.raises(ServingError, match=r"does not answer: .*certificate"):
            deploy(models[0], store=place, status=[f"https://127.0.0.1:{server.port}/status"])


def test_two_deploys_at_once(new_store, models):
    """One wins, the other is told who did; threads here, processes below."""
    place = new_store()
    deploy(models[0], store=place)
    barrier = threading.Barrier(2)
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        watched = Watched(open_storage(place))
        watched.before_change = lambda what, key: barrier.wait() if key == "rsp/pointer.json" else None
        with_storage = {place: watched}
        try:
            results[number] = deploy_on(with_storage[place], models[number], place)
        except ConflictError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [result for result in results.values() if not isinstance(result, Exception)]
    (loser,) = [result for result in results.values() if isinstance(result, Exception)]
    assert wanted(ReleaseStore(open_storage(place))) == winner
    assert f"it is at {winner}" in str(loser)


def deploy_on(storage: Any, model: Path, place: str) -> str:
    """Deploy through a given storage."""
    from rsp.components.deploy.work import Deployment

    work = Deployment(ReleaseStore(storage), "rsp", Replicas([], "rsp"), 1)
    version = work.publish(model, "", None, None, force=False, trust=False)
    work.switch(version, "deployed")
    return version


class LastWords(io.StringIO):
    """Kills this process as soon as it says a line: who reads the line and kills then may come too late."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def write(self, text: str) -> int:
        if self.line and text.startswith(self.line):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(text)


def forked(run: Callable[[], None], line: str = "") -> int:
    """Run in a process of its own, which is killed when it says a line on stderr; returns its exit status."""
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.stderr = LastWords(line)
            run()
            code = 0
        except RspError:
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_processes_at_once(place, store, models):
    """Both have looked before either moves."""
    deploy(models[0], store=place)
    reading, writing = os.pipe()

    def run(model: Path) -> None:
        from rsp.components.deploy.work import Deployment

        work = Deployment(ReleaseStore(open_storage(place)), "rsp", Replicas([], "rsp"), 1)
        version = work.publish(model, "", None, None, force=False, trust=False)
        os.read(reading, 1)
        work.switch(version, "deployed")

    codes = []
    threads = [
        threading.Thread(target=lambda model=model: codes.append(forked(lambda: run(model))))
        for model in models[1:]
    ]
    for thread in threads:
        thread.start()
    # Both processes wait for a byte, or will.
    os.write(writing, b"..")
    for thread in threads:
        thread.join()
    assert sorted(codes) in ([0, 3], [0, 0]) and wanted(store) in (sha8(models[1]), sha8(models[2]))
    assert store.pointer("rsp").serial == 1 + codes.count(0)


STEPS = ["look", "compare", "golden tiles", "publish", "switch", "wait", "prune"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_each_step(place, store, models, step):
    """SIGKILL: the old or the new one is wanted, and the next deploy understands what it finds."""
    deploy(models[0], store=place)
    with Follows(store) as server:
        code = forked(lambda: deploy(models[1], store=place, status=[server.url]), f"deploy: {step}: ")
        assert code == -signal.SIGKILL
        late = STEPS.index(step) >= STEPS.index("switch")
        assert wanted(store) == sha8(models[1 if late else 0])
        result = deploy(models[1], store=place, status=[server.url])
        assert result.changed is not late and wanted(store) == sha8(models[1])
        assert deploy(store=place, rollback="", status=[server.url]).version == sha8(models[0])


def test_killed_before_each_change_of_the_store(new_store, models, monkeypatch):
    counted = Watched(open_storage(new_store()))
    deploy_on(counted, models[0], "")
    # The mark, model, card, tile, mask, release.json, the mark, the pointer.
    assert len(counted.changes) == 8
    for number in range(len(counted.changes)):
        place = new_store()
        plain = ReleaseStore(open_storage(place))
        deploy_on(plain.storage, models[2], place)
        with pytest.raises(Killed):
            deploy_on(Watched(open_storage(place), kill_at=number), models[0], place)
        assert wanted(plain) == sha8(models[2]) and plain.release("rsp", sha8(models[2]))
        assert deploy_on(plain.storage, models[0], place) == wanted(plain) == sha8(models[0])


def test_the_store_goes_away_while_servers_load(place, store, models, monkeypatch):
    """They have fetched it, maybe; and if not, the pointer cannot be moved back, which is said."""
    deploy(models[0], store=place)
    gone = Watched(store.storage)
    down = threading.Event()

    def refuse(what: str, key: str) -> None:
        if down.is_set():
            raise StorageError("the server of the store does not answer")

    gone.before_change = refuse
    monkeypatch.setattr(rsp.components.deploy.tool, "open_storage", lambda location: gone)
    with Follows(store, looks=3) as server:
        server.on_look = lambda number: down.set() if number == 3 else None
        read = gone.read
        gone.read = lambda key, **options: refuse("read", key) or read(key, **options)  # type: ignore[method-assign]
        result = deploy(models[1], store=place, status=[server.url])
        assert result.changed and result.removed == [] and wanted(store) == sha8(models[1])
        down.clear()
        server.asked, server.looks = 0, 10_000
        with pytest.raises(
            ServingError,
            match=r"is still wanted, since the pointer could not be moved back \(.*\); try --rollback",
        ):
            deploy(models[2], store=place, status=[server.url], timeout=0.3)
        assert wanted(store) == sha8(models[2])


def test_somebody_else_deploys_while_servers_load(place, store, models):
    deploy(models[0], store=place)
    publish(store, "theirs", name="rsp")
    with Follows(store, looks=10_000) as server:

        def interfere(number: int) -> None:
            if number == 4:
                store.move("rsp", "theirs", expected=store.pointer("rsp"), reason="deployed by others")

        server.on_look = interfere
        with pytest.raises(ConflictError, match=r"somebody else moved it to theirs \(deployed by others\)"):
            deploy(models[1], store=place, status=[server.url])
    assert wanted(store) == "theirs", "what they did is not undone"


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, even where these tests run in the background, to which shells send none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_while_it_waits(place, store, models, capsys):
    deploy(models[0], store=place)
    with Follows(store, looks=10_000) as server:

        def interrupt(number: int) -> None:
            if number == 4:
                os.kill(os.getpid(), signal.SIGINT)

        server.on_look = interrupt
        with pytest.raises(KeyboardInterrupt):
            deploy(models[1], store=place, status=[server.url])
    assert wanted(store) == sha8(models[0])
    assert f"version {sha8(models[0])} of rsp is wanted again" in capsys.readouterr().err


def test_roll_back(place, store, models, rsp):
    with pytest.raises(ReleaseError, match=r"there is no pointer of rsp in .* nothing to go back from"):
        deploy(store=place, rollback="")
    for model in models:
        deploy(model, store=place, keep=3)
    first, second, third = map(sha8, models)
    result = deploy(store=place, rollback="")
    assert (result.version, result.replaced, result.changed) == (second, third, True)
    assert store.pointer("rsp").reason == f"rolled back from {third}"
    # The one before is now the one that was left, as with `kubectl rollout undo`.
    assert deploy(store=place, rollback="").version == third
    assert deploy(store=place, rollback=first).version == first
    assert not deploy(store=place, rollback=first).changed
    with pytest.raises(ReleaseError, match=f"there is no release v9 of rsp in .*; there are .*{first}"):
        deploy(store=place, rollback="v9")
    with (
        Follows(store, refuses=(second,)) as server,
        pytest.raises(ServingError, match=f"version {first} of rsp is wanted again"),
    ):
        deploy(store=place, rollback=second, status=[server.url])
    assert wanted(store) == first
    assert rsp("deploy", "--store", place, "--rollback", "--name", "rsp").code == 0
    assert wanted(store) == third
    only = f"{place}-other"
    deploy(models[0], store=only)
    with pytest.raises(ReleaseError, match=f"rsp had no other version than {first} before"):
        deploy(store=only, rollback="")


def test_old_releases_go(place, store, models):
    versions = []
    for number, model in enumerate([*models, *models]):
        result = deploy(model, store=place, version=f"v{number}", keep=2)
        versions.append(result.version)
        assert result.removed == versions[-3:-2] if number >= 2 else not result.removed
    assert list(store.releases("rsp")) == ["v4", "v5"]


def test_a_list_of_what_there_is(place, store, models, rsp, tmp_path):
    ran = rsp("deploy", "--store", place, "--list")
    assert ran.code == 0 and ran.stdout.startswith("name")
    for model in models:
        deploy(model, store=place, name="roofs")
    deploy(models[0], store=place, name="roads")
    first, second, third = map(sha8, models)
    (tmp_path / "store" / "roofs" / "releases" / first / "release.json").write_text("{")
    report = tmp_path / "report.json"
    ran = rsp("deploy", "--store", place, "--list", "--report", report)
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert lines[0][:4] == ["name", "version", "state", "published"]
    # The latest first; of the same second, the last by version.
    created = {version: store.release("roofs", version).created for version in (second, third)}
    states = {second: "before", third: "wanted"}
    latest = sorted(states, key=lambda version: (created[version], version), reverse=True)
    assert [line[:3] for line in lines[1:5]] == [
        ["roads", first, "wanted"], *(["roofs", version, states[version]] for version in latest),
        ["roofs", first, "damaged"],
    ]  # fmt: skip
    assert f"roofs: {third} since" in ran.stdout and "release.json" in ran.stdout
    said = json.loads(report.read_text())
    assert set(said["models"]) == {"roofs", "roads"} and said["models"]["roofs"]["pointer"]["version"] == third
    assert said["models"]["roofs"]["pointer"]["previous"] == second
    only = rsp("deploy", "--store", place, "--list", "--name", "roads")
    assert "roofs" not in only.stdout and first in only.stdout
    assert "it has roads, roofs" in rsp("deploy", "--store", place, "--list", "--name", "streets").stderr
    # A pointer to nothing.
    shutil.rmtree(tmp_path / "store" / "roads" / "releases")
    assert f"roads  {first}  wanted, missing" in rsp("deploy", "--store", place, "--list").stdout


def test_a_pointer_to_nothing_can_be_deployed_over(place, store, models, capsys):
    deploy(models[0], store=place)
    shutil.rmtree(Path(place) / "rsp" / "releases")
    assert deploy(models[1], store=place).replaced == sha8(models[0])
    assert "not compared with the current release: there is no release" in capsys.readouterr().err
    # The same one is stored again.
    shutil.rmtree(Path(place) / "rsp" / "releases")
    again = deploy(models[1], store=place)
    assert not again.changed and store.release("rsp", again.version)


def test_a_store_that_ignores_conditions(place, models, monkeypatch):
    monkeypatch.setattr(
        rsp.components.deploy.tool, "open_storage", lambda location: Watched(open_storage(location), honours=False)
    )
    with pytest.raises(StorageError, match="--single_writer"):
        deploy(models[0], store=place)
    assert deploy(models[0], store=place, single_writer=True).changed


def test_wrong_usage(place, models, rsp):
    for flags in (
        ("--model", models[0], "--list"), ("--list", "--rollback"), (), ("--model", models[0], "--rollback", "v1"),
    ):  # fmt: skip
        ran = rsp("deploy", "--store", place, *flags)
        assert ran.code == 2 and "one of --model, --list and --rollback" in ran.stderr
    assert rsp("deploy", "--model", models[0]).code == 2
    assert rsp("deploy", "--model", models[0], "--store", place, "--keep", 0).code == 2
    for status in ("127.0.0.1:8080", "ftp://a/status", "http://", "http://a:99999/status"):
        ran = rsp("deploy", "--model", models[0], "--store", place, "--status", status)
        assert ran.code == 2 and "--status takes URLs" in ran.stderr
    with pytest.raises(UsageError, match="--store"):
        deploy(models[0], store="")
    assert not Path(place).exists()


def test_component(run_component, place, store, models, golden, tmp_path):
    verdict = write_verdict(tmp_path / "verdict.json", models[1], "", reason="IoU 0.8000, there is no champion")
    with Follows(store, "roofs") as server:
        step = run_component(
            deploy_component,
            {
                "model": (models[1], dsl.Model), "checkpoint": (models[1], dsl.Model), "golden": golden,
                "verdict": (verdict, dsl.Artifact),
            },
            store=place, name="roofs", status=f"{server.url} {server.url}", endpoint="",
        )  # fmt: skip
    assert step.parameters == {
        "version": sha8(models[1]), "replaced": "",
        "endpoint": f"http://127.0.0.1:{server.port}/predictions/roofs",
    }  # fmt: skip
    assert wanted(store, "roofs") == sha8(models[1])
    assert store.release("roofs", sha8(models[1])).checkpoint
    assert store.pointer("roofs").reason == "IoU 0.8000, there is no champion"
