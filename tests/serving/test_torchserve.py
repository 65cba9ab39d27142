"""TorchServe itself: what it answers, when it is ready, how it starts and how it ends."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from rsp.components.export.tool import export
from rsp.serving.archive import build_archive, sha8
from rsp.serving.client import TileClient
from rsp.serving.host import free_ports
from rsp.serving.management import Management, ready_workers
from rsp.serving.server import Server
from rsp.serving.store import current_archives, set_current
from rsp.shared.errors import ServingError, TileError
from rsp.shared.images import decode, decode_mask, encode
from rsp.shared.learning.inference import load_predictor, predict_tiles, probability_bytes
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import open_reader
from tests.serving.bad_inputs import BAD, RAW, fault, send, send_raw
from tests.serving.load import Load
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, make_tileset, noise

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.java,
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java: install openjdk-17-jre-headless"),
    pytest.mark.xdist_group("torchserve"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def model(checkpoint):
    """The form that is served unless somebody says otherwise."""
    out = checkpoint.with_name("model.pt2")
    export(checkpoint, out, kind="pt2")
    return out


@pytest.fixture(scope="module")
def predictor(model):
    return load_predictor(model, device="cpu", threads=1)


class Watched(Server):
    """Notes at each look what the management API and a tile client say of its readiness."""

    def ready(self) -> bool:
        with TileClient(self.inference, attempts=1) as probe:
            self.seen = [*getattr(self, "seen", []), (super().ready(), probe.ready())]
        return self.seen[-1][0]


@pytest.fixture(scope="module")
def server(model):
    with Watched(model) as running:
        yield running


@pytest.fixture
def client(server):
    with TileClient(server.inference) as made:
        yield made


@pytest.mark.parametrize("fmt", ["png", "jpg", "webp", "tif"])
def test_a_tile_in_every_format_answers_as_a_local_prediction(client, predictor, fmt):
    image = encode(noise(BLOCK[0]), fmt)
    answer = client.predict(image)
    assert [answer] == predict_tiles(predictor, [image])
    assert Image.open(io.BytesIO(answer)).mode == "P"
    assert decode_mask(answer).shape == (64, 64) and 0 < decode_mask(answer).mean() < 1


def test_a_border_that_was_sent_is_cut_off(client, predictor):
    wide = encode(noise(BLOCK[0], 64 + 2 * 16), "png")
    answer = client.predict(wide, overlap=16)
    assert [answer] == predict_tiles(predictor, [wide], 16)
    assert decode_mask(answer).shape == (64, 64)
    with pytest.raises(TileError, match="96"):
        client.predict(wide)


def test_every_form_of_a_model_answers_the_same_pixels(tmp_path, checkpoint, client):
    """One server with the checkpoint, ONNX and TorchScript, beside the one that has the pt2."""
    images = [encode(noise(tile), "png") for tile in BLOCK]
    store = tmp_path / "store"
    set_current(store, "checkpoint", build_archive(checkpoint, store, name="checkpoint"))
    for kind in ("onnx", "jit"):
        out = tmp_path / f"model.{kind}"
        export(checkpoint, out, kind=kind)
        set_current(store, kind, build_archive(out, store, name=kind))
    expected = predict_tiles(load_predictor(checkpoint, device="cpu"), images)
    assert [client.predict(image) for image in images] == expected
    with Server(model_store=store) as several:
        for name in ("checkpoint", "onnx", "jit"):
            with TileClient(several.inference, name) as other:
                assert [other.predict(image) for image in images] == expected, name


def test_rsp_predict_by_the_endpoint_and_by_the_checkpoint(tmp_path, rsp, server, checkpoint):
    images = make_tileset(tmp_path / "images.pmtiles", fmt="webp")
    for out, flags in (("local", ("--checkpoint", checkpoint)), ("served", ("--endpoint", server.inference))):
        ran = rsp("predict", *flags, "--no_web_ui", images, tmp_path / out)
        assert ran.code == 0, ran.stderr
    with open_reader(tmp_path / "local") as local, open_reader(tmp_path / "served") as served:
        assert local.tiles() == served.tiles() == sorted(BLOCK)
        assert [local.read(tile) for tile in BLOCK] == [served.read(tile) for tile in BLOCK]


def workers_of(server: Server) -> list[psutil.Process]:
    return [
        each for each in psutil.Process().children(recursive=True)
        if any(part.endswith("model_service_worker.py") for part in each.cmdline())
        and each.environ().get("TEMP") == str(server.log.parent)
    ]  # fmt: skip


def test_a_worker_that_dies_costs_no_tile(tmp_path, rsp, server, checkpoint):
    """C2: `predict --endpoint` lost the tile that the worker had in hand."""
    tiles = [Tile(x, y, 15) for x in range(100, 110) for y in range(200, 206)]
    images = make_tileset(tmp_path / "images.pmtiles", tiles, fmt="png")
    (worker,) = workers_of(server)
    asked = threading.Semaphore(0)
    plain = TileClient.predict

    def counted(self: TileClient, image: bytes, *, overlap: int = 0) -> bytes:
        asked.release()
        return plain(self, image, overlap=overlap)

    def kill() -> None:
        for _ in range(10):
            assert asked.acquire(timeout=60)
        worker.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileClient, "predict", counted)
        ran = rsp("predict", "--endpoint", server.inference, "--workers", 4, "--no_web_ui", images, tmp_path / "m")
    killer.join()
    assert not worker.is_running()
    assert ran.code == 0, ran.stderr
    rsp("predict", "--checkpoint", checkpoint, "--no_web_ui", images, tmp_path / "local")
    with open_reader(tmp_path / "local") as local, open_reader(tmp_path / "m") as served:
        assert served.tiles() == sorted(tiles)
        assert [local.read(tile) for tile in tiles] == [served.read(tile) for tile in tiles]


def test_bad_inputs_of_all_kinds_among_good_ones(server, predictor):
    """Each is refused with its reason, no good one is hurt, no worker dies, and the log stays short (C5, C8)."""
    url, images = f"{server.inference}/predictions/rsp", [encode(noise(tile), "png") for tile in BLOCK]
    expected = predict_tiles(predictor, images)
    before, written = workers_of(server), server.log.stat().st_size

    def ask(number: int) -> str | None:
        bad, at = BAD[number], number % len(images)
        refused = send(url, bad)
        answer = requests.post(url, images[at], headers={"Content-Type": "image/png"}, timeout=60)
        if answer.content != expected[at]:
            return f"a good tile beside {bad.name}: {answer.status_code}"
        told = refused.headers
        if (told.get("X-Model-Version"), told.get("X-Precision")) != (sha8(server.model), "float32"):
            return f"{bad.name}: {told}"
        return fault(bad, refused.status_code, refused.json())

    with ThreadPoolExecutor(8) as pool:
        faults = [fault for fault in pool.map(ask, range(len(BAD))) if fault]
    assert faults == []
    for name, (data, statuses) in RAW.items():
        assert send_raw(url, data) in statuses, name
    assert workers_of(server) == before
    said = server.log.read_bytes()[written:].decode()
    assert "Traceback" not in said and said.count("\n") <= 2 * len(BAD), said


def test_answers_in_every_form(client, predictor, server):
    image, tile = encode(noise(BLOCK[1]), "png"), BLOCK[1]
    (mask,), (planes,) = predictor.masks([decode(image)]), predictor.probabilities([decode(image)])

    def ask(accept: str, **headers: str) -> requests.Response:
        answer = client.ask(image, {"Accept": accept, **headers})
        assert answer.headers["Content-Type"] == accept and answer.headers["X-Model-Version"] == sha8(server.model)
        assert re.fullmatch(r"predict;dur=[0-9.]+, batch;dur=1", answer.headers["Server-Timing"])
        return answer

    assert np.array_equal(decode_mask(ask("image/png").content), mask)
    assert np.array_equal(decode_mask(ask("image/webp").content), mask)
    answer = ask("application/octet-stream")
    assert answer.headers["X-Shape"] == "2,64,64" and answer.content == probability_bytes(planes).tobytes()
    assert np.array_equal(client.probabilities(image), probability_bytes(planes))
    features = ask("application/geo+json", **{"X-Tile": zxy(tile)}).json()
    assert features == client.features(image, tile) and features["type"] == "FeatureCollection"
    assert {feature["properties"]["x"] for feature in features["features"]} == {tile.x}
    # What a client sends to a server that is near: pixels as they are.
    assert client.near and decode_mask(client.predict(client.encode(decode(image)))).tolist() == mask.tolist()


def test_a_client_holds_on_to_a_version(server, predictor):
    with TileClient(server.inference) as client:
        assert client.pin() == predictor.card and client.url.endswith(f"/predictions/rsp/{sha8(server.model)}")
        assert client.predict(encode(noise(BLOCK[0]), "png"))
        client._url, client.url = client._url, client._url("gone")
        with pytest.raises(ServingError, match=r"is not served any more.* again with --resume"):
            client.predict(b"x")


def test_status_and_headers(server):
    url = f"{server.inference}/predictions/rsp"
    good = requests.post(url, encode(noise(BLOCK[0]), "png"), headers={"Content-Type": "image/png"}, timeout=30)
    assert good.status_code == 200 and good.headers["content-type"] == "image/png"
    assert good.headers["X-Model-Version"] == sha8(server.model)
    bad = requests.post(url, b"junk", headers={"Content-Type": "image/png"}, timeout=30)
    assert bad.status_code == 400 and bad.headers["content-type"] == "application/json"
    assert bad.json() == {"error": "bad tile", "detail": "not an image (expected PNG, JPEG, WebP or GeoTIFF)"}
    strange = requests.post(url, b"junk", headers={"X-Overlap": "-3", "Content-Type": "image/png"}, timeout=30)
    assert strange.status_code == 400 and "X-Overlap" in strange.json()["detail"]


def test_forms_and_missing_content_types(server, predictor):
    url, image = f"{server.inference}/predictions/rsp", encode(noise(BLOCK[1]), "png")
    (expected,) = predict_tiles(predictor, [image])
    assert requests.post(url, files={"data": image}, timeout=30).content == expected
    assert requests.post(url, image, timeout=30).content == expected  # no content type at all
    # What curl sends where it is not told: the frontend takes the image apart as a form, or fails to (500).
    mangled = requests.post(url, image, headers={"Content-Type": "application/x-www-form-urlencoded"}, timeout=30)
    assert mangled.status_code in (400, 500) and mangled.headers["content-type"] == "application/json"


def test_an_image_that_is_too_large(client):
    with pytest.raises(TileError, match="a request may have 16777216 bytes"):
        client.predict(os.urandom(20 << 20))
    with pytest.raises(TileError):
        client.predict(encode(np.zeros((5000, 5000, 1), np.uint8), "png"))


def test_the_model_card_is_served(client, server, predictor):
    assert client.card() == predictor.card
    assert client.served_version() == sha8(server.model)
    described = requests.get(f"{server.management}/models/rsp?customized=true", timeout=30).json()
    assert described[0]["customizedMetadata"]["uuid"] == predictor.card.uuid


def test_ready_and_not(server, client):
    assert client.ready()
    assert ready_workers(server.management, "rsp") == 1
    for other in (TileClient(server.inference, "nobody"), TileClient("http://127.0.0.1:9")):
        assert not other.ready()
    with pytest.raises(ServingError, match="no model 'nobody' is served there"):
        TileClient(server.inference, "nobody").predict(b"x")


def test_probe(server):
    environment = {**os.environ, "TS_MANAGEMENT_ADDRESS": server.management}
    command = [sys.executable, "-m", "rsp.serving.ready"]
    for name, code in (("rsp", 0), ("nobody", 1)):
        environment["RSP_MODEL_NAME"] = name
        assert subprocess.run(command, env=environment, cwd=ROOT, capture_output=True).returncode == code


def test_models_cannot_be_registered_unless_that_was_asked_for(server):
    answer = requests.post(
        f"{server.management}/models", params={"url": "http://127.0.0.1:9/evil.mar"}, timeout=30
    )
    assert answer.status_code == 405


def test_not_ready_before_the_worker_is(server):
    assert server.seen[0] == (False, False) and not any(management for management, _ in server.seen[:-1])
    assert server.ready() and server.seen[-1] == (True, True)


def test_a_model_that_does_not_load_says_why(tmp_path, model):
    archive = build_archive(model, tmp_path, name="rsp")
    broken = tmp_path / "rsp-broken.mar"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:5000] if name == "model.pt2" else data)
    set_current(tmp_path, "rsp", broken)
    assert current_archives(tmp_path) == {"rsp": "rsp-broken.mar"}
    with pytest.raises(ServingError, match=r"cannot load the model: .*ModelError") as caught:
        Server(model_store=tmp_path).start()
    assert "model.pt2" in str(caught.value)


def test_a_model_of_another_torch_is_refused(tmp_path):
    model = make_checkpoint(tmp_path / "old.safetensors", versions={"torch": "1.13.1"})
    with pytest.raises(ServingError, match=r"exported by torch 1\.13\.1, this server has"):
        Server(model).start()


def test_a_port_that_is_taken(model, server):
    with pytest.raises(ServingError, match="choose another port"):
        Server(model, port=int(server.inference.rsplit(":", 1)[1])).start()


def start_foreground(model: Path, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start `rsp serve` in a folder, and return it with its URL for predictions, when it serves."""
    ports = free_ports((0, 0, 0))
    command = [sys.executable, "-m", "rsp.shared.cli", "serve", "--model", model, "--workers", 1]
    for flag, port in zip(("--port", "--management_port", "--metrics_port"), ports, strict=True):
        command += [flag, port]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"serving http://127.0.0.1:{ports[0]}/predictions/rsp"), line
    assert process.stdout.readline().startswith(
        "  curl -T tile.webp -X POST -H 'Content-Type: image/webp' http://"
    )
    return process, f"http://127.0.0.1:{ports[0]}"


def started_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_in_the_foreground_until_sigterm(tmp_path, model):
    """C3: under load, every request that was accepted is answered, and no connection is reset."""
    process, url = start_foreground(model, tmp_path)
    family = started_by(process)
    assert any("java" in child.name() for child in family) and len(family) >= 4  # watchdog, launcher, java, worker
    (folder,) = {child.environ()["TEMP"] for child in family if child.name() == "java"}
    with Load(url) as load:
        load.wait_for(10)
        process.terminate()
        assert process.wait(60) == 0
        for thread in load.threads:
            thread.join(60)
        assert load.faults == [] and not any(thread.is_alive() for thread in load.threads)
    assert not [child for child in family if child.is_running()]
    assert not Path(folder).exists()


def test_the_entrypoint_of_the_image_drains(tmp_path, model):
    """SIGTERM: not ready at once, serving until the drain is over, and not one request is lost in the end."""
    store, temp = tmp_path / "models", tmp_path / "t"
    temp.mkdir()
    set_current(store, "rsp", build_archive(model, store, name="rsp"))
    ports = free_ports((0, 0, 0, 0, 0, 0))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RSP_MODEL_STORE": str(store),
        "RSP_DRAIN": "600",
        "RSP_WORKERS": "2",
        "RSP_PORT": str(ports[0]),
        "RSP_BACKEND_PORT": str(ports[5]),
        "TEMP": str(temp),
        "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{ports[1]}",
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{ports[2]}",
        "TS_GRPC_INFERENCE_PORT": str(ports[3]),
        "TS_GRPC_MANAGEMENT_PORT": str(ports[4]),
    }
    environment.pop("TMPDIR", None)
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen([ROOT / "serving" / "entrypoint.sh"], env=environment, stdout=log, stderr=log)
    probe = [sys.executable, "-m", "rsp.serving.ready"]

    def probed() -> int:
        return subprocess.run(probe, env=environment, cwd=ROOT, capture_output=True).returncode

    try:
        management = environment["TS_MANAGEMENT_ADDRESS"]
        for _ in range(1200):
            assert process.poll() is None, (tmp_path / "log").read_text()
            if ready_workers(management, "rsp") == 2:
                break
            time.sleep(0.1)
        assert probed() == 0
        assert Management(management, "rsp").describe()[0]["minWorkers"] == 2
        unknown = requests.post(f"{management}/models", params={"url": "no.mar"}, timeout=30)
        assert unknown.status_code == 404  # so that registering is allowed
        family = started_by(process)
        with Load(f"http://127.0.0.1:{ports[0]}") as load:
            load.wait_for(5)
            process.send_signal(signal.SIGTERM)
            while not (temp / "draining").exists():
                time.sleep(0.01)
            load.wait_for(max(map(len, load.moments)) + 5)
            assert probed() == 1 and process.poll() is None
            (pause,) = [child for child in started_by(process) if child.name() == "sleep"]
            pause.kill()  # the ten minutes are over
            assert process.wait(60) == 0, (tmp_path / "log").read_text()
            for thread in load.threads:
                thread.join(60)
            assert load.faults == [] and not any(thread.is_alive() for thread in load.threads)
        assert not psutil.wait_procs(family, timeout=5)[1]
    finally:
        for child in (*started_by(process), process) if process.poll() is None else ():
            child.kill()
