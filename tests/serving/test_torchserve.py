"""TorchServe itself: what it answers, when it is ready, how it starts and how it ends."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import torch
from PIL import Image

from rsp.components.export.tool import export
from rsp.serving.client import TileClient
from rsp.serving.host import free_ports
from rsp.serving.loading import Settings
from rsp.serving.management import Management
from rsp.serving.releases import ReleaseStore
from rsp.serving.server import Server
from rsp.shared.errors import ServingError, TileError
from rsp.shared.images import decode, decode_mask, encode
from rsp.shared.learning.encoded import predict_tiles, probability_bytes
from rsp.shared.learning.inference import BFLOAT16_CPU, load_predictor
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import open_reader
from tests.serving.bad_inputs import BAD, RAW, fault, send, send_raw
from tests.serving.load import Load
from tests.serving.stores import move, publish
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, make_tileset, noise

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.java,
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java: install openjdk-17-jre-headless"),
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


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    publish(ReleaseStore(open_storage(folder / "store")), model, "v1")
    move(ReleaseStore(open_storage(folder / "store")), "v1")
    with Server(folder / "store", ["rsp"], cache=folder / "cache", settings=Settings(poll=0.1)) as running:
        with TileClient(running.inference, attempts=1) as early:
            seen = early.ready(), health(running).status_code
        assert seen == (False, 503)
        running.wait()
        yield running


def health(server: Server) -> requests.Response:
    return requests.get(f"{server.inference}/healthz", timeout=30)


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
    store = ReleaseStore(open_storage(tmp_path / "store"))
    names = ("checkpoint", "onnx", "jit")
    for kind in names:
        out = checkpoint
        if kind != "checkpoint":
            out = tmp_path / f"model.{kind}"
            export(checkpoint, out, kind=kind)
        publish(store, out, "v1", name=kind)
        move(store, "v1", kind)
    expected = predict_tiles(load_predictor(checkpoint, device="cpu"), images)
    assert [client.predict(image) for image in images] == expected
    with Server(tmp_path / "store", names, cache=tmp_path / "cache", settings=Settings(poll=0.1)) as several:
        several.wait()
        for name in names:
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
        and each.environ().get("TEMP") == str(server.torchserve.folder)
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
    before, written = workers_of(server), server.torchserve.tail(500)

    def ask(number: int) -> str | None:
        bad, at = BAD[number], number % len(images)
        refused = send(url, bad)
        answer = requests.post(url, images[at], headers={"Content-Type": "image/png"}, timeout=60)
        if answer.content != expected[at]:
            return f"a good tile beside {bad.name}: {answer.status_code}"
        told = refused.headers
        if (told.get("X-Model-Version"), told.get("X-Precision")) != ("v1", "float32"):
            return f"{bad.name}: {told}"
        return fault(bad, refused.status_code, refused.json())

    with ThreadPoolExecutor(8) as pool:
        faults = [fault for fault in pool.map(ask, range(len(BAD))) if fault]
    assert faults == []
    for name, (data, statuses) in RAW.items():
        assert send_raw(url, data) in statuses, name
    assert workers_of(server) == before
    said = server.torchserve.tail(500)[len(written) :]
    assert said.count("\n") <= 2, said  # nothing of a bad request; the proxy writes its line


def test_answers_in_every_form(client, predictor, server):
    image, tile = encode(noise(BLOCK[1]), "png"), BLOCK[1]
    (mask,), (planes,) = predictor.masks([decode(image)]), predictor.probabilities([decode(image)])

    def ask(accept: str, **headers: str) -> requests.Response:
        answer = client.ask(image, {"Accept": accept, **headers})
        assert answer.headers["Content-Type"] == accept and answer.headers["X-Model-Version"] == "v1"
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
        assert client.pin() == predictor.card and client.url.endswith("/predictions/rsp/v1")
        assert client.predict(encode(noise(BLOCK[0]), "png"))
        client._url, client.url = client._url, client._url("gone")
        with pytest.raises(ServingError, match=r"is not served any more.* without --resume"):
            client.predict(b"x")


def test_status_and_headers(server):
    url = f"{server.inference}/predictions/rsp"
    good = requests.post(url, encode(noise(BLOCK[0]), "png"), headers={"Content-Type": "image/png"}, timeout=30)
    assert good.status_code == 200 and good.headers["content-type"] == "image/png"
    assert good.headers["X-Model-Version"] == "v1"
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
    assert client.served_version() == "v1"


def test_ready_and_not(server, client):
    assert client.ready() and health(server).json() == {"ready": True}
    assert Management(server.torchserve.management, "rsp").ready_workers() == 1
    for other in (TileClient(server.inference, "nobody"), TileClient("http://127.0.0.1:9")):
        assert not other.ready()
    with pytest.raises(ServingError, match="no model 'nobody' is served there"):
        TileClient(server.inference, "nobody").predict(b"x")


def test_nobody_else_manages_models(server):
    """The management API is on the loopback, and the port for predictions does not lead to it."""
    for path in ("models", "models/rsp", "predictions/../models"):
        answer = requests.get(f"{server.inference}/{path}", timeout=30)
        assert answer.status_code == 404 and "/predictions/NAME" in answer.json()["detail"]
    folder = str(server.torchserve.folder)
    (java,) = (each for each in psutil.Process().children(recursive=True)
               if each.name() == "java" and each.environ()["TEMP"] == folder)  # fmt: skip
    listening = [each.laddr.ip for each in java.net_connections() if each.status == psutil.CONN_LISTEN]
    assert listening and all(ip in ("127.0.0.1", "::ffff:127.0.0.1") for ip in listening)


def test_a_port_that_is_taken(tmp_path, server):
    with pytest.raises(ServingError, match="choose another port"):
        Server(tmp_path, ["rsp"], port=int(server.inference.rsplit(":", 1)[1]))


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """A test that fails half way must not leave its server behind."""
    yield
    while STARTED:
        STARTED.pop().kill()


def start_foreground(folder: Path, *flags: object, **environ: str) -> tuple[subprocess.Popen[str], str]:
    """Start `rsp serve` in a folder, and return it with its URL for predictions, when it has told that."""
    port, metrics_port = free_ports((0, 0))
    command = [sys.executable, "-m", "rsp.shared.cli", "serve", "--cache", folder / "cache", *flags]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=(folder / "log").open("wb"), text=True, cwd=folder,
        env={**os.environ, "RSP_PORT": str(port), "RSP_METRICS_PORT": str(metrics_port), **environ},
    )  # fmt: skip
    STARTED.append(process)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[0] == f"serving http://127.0.0.1:{port}/predictions/rsp\n", (folder / "log").read_text()
    assert lines[1].startswith("  curl -T tile.png http://")
    return process, f"http://127.0.0.1:{port}"


def started_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_in_the_foreground_until_sigterm(tmp_path, model):
    """C3: not ready at once, serving until the drain is over; then no request is lost, and no connection reset."""
    quick = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_CPU)
    precision = "bfloat16" if quick else "float32"
    process, url = start_foreground(
        tmp_path, "--model", model, RSP_WORKERS="1", RSP_DRAIN="1", RSP_PRECISION=precision
    )
    family = started_by(process)
    assert any("java" in child.name() for child in family) and len(family) >= 4  # watchdog, launcher, java, worker
    (folder,) = {child.environ()["TEMP"] for child in family if child.name() == "java"}
    with Load(url) as load:
        load.wait_for(10)
        assert requests.get(f"{url}/healthz", timeout=30).status_code == 200
        card = requests.get(f"{url}/predictions/rsp", headers={"Describe": "true"}, timeout=30)
        assert card.headers["X-Precision"] == precision
        process.terminate()
        while (answer := requests.get(f"{url}/healthz", timeout=30)).status_code == 200:
            pass
        assert answer.json() == {"ready": False, "reason": "this server is about to end"}
        assert requests.get(f"{url}/livez", timeout=30).status_code == 200
        load.wait_for(max(map(len, load.moments)) + 5)
        assert process.wait(60) == 0
        for thread in load.threads:
            thread.join(60)
        assert load.faults == [] and not any(thread.is_alive() for thread in load.threads)
    assert not [child for child in family if child.is_running()]
    assert not Path(folder).exists()


def test_a_second_sigterm_ends_it_at_once(tmp_path):
    """And a server that has nothing to serve yet runs, and says so."""
    process, url = start_foreground(tmp_path, "--store", tmp_path / "store", "--drain", 600)
    answer = requests.get(f"{url}/healthz", timeout=30)
    assert answer.status_code == 503
    while "no pointer of rsp" not in answer.json()["reason"]:
        assert process.poll() is None
        time.sleep(0.05)
        answer = requests.get(f"{url}/healthz", timeout=30)
    family = started_by(process)
    process.terminate()
    while "about to end" not in requests.get(f"{url}/healthz", timeout=30).json()["reason"]:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    assert not psutil.wait_procs(family, timeout=5)[1]
