"""docs/serving.md: its tables name what there is, its laptop part runs; parts of docs/kubeflow.md likewise."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rsp.components.export.tool import export
from rsp.pipelines.compiler import COMPILED, parameters
from rsp.serving.host import free_ports
from rsp.serving.logs import FIELDS
from rsp.serving.metrics import Metrics
from rsp.shared.images import encode
from tests import guides
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, make_tileset, noise

ROOT = Path(__file__).parent.parent
TEXT = guides.page("serving")


blocks = partial(guides.blocks, TEXT)
COMMANDS = [*guides.commands(TEXT), *guides.commands(guides.page("kubeflow"))]


def test_every_other_command_is_one_that_is_checked_here():
    for line in COMMANDS:
        if overlay := re.search(r"OVERLAY=(\w+)", line):
            assert (ROOT / "k8s" / "overlays" / overlay[1]).is_dir()
        assert re.match(r"(\w+=\S+ )*(rsp|curl|kubectl|make|echo|chmod|kind|export|git) ", line), line
        assert " #" not in line  # zsh takes no comments at its prompt


def test_secrets_have_the_names_that_the_manifests_mount():
    made = set(re.findall(r"kubectl create secret generic (\S+)", TEXT))
    manifests = "\n".join(path.read_text("utf-8") for path in (ROOT / "k8s").rglob("*.yaml"))
    assert made and made <= set(re.findall(r"(?:secretName|secretKeyRef: \{name): ([\w-]+)", manifests))


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests; not installed")
def test_the_overlay_of_the_guide_is_one(tmp_path):
    (overlay,) = blocks("yaml")
    base = os.path.relpath(ROOT / "k8s" / "base", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(overlay.replace("../k8s/base", base))
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (settings,) = (each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "ConfigMap")
    assert settings["data"]["RSP_STORE"] == "s3://my-bucket/releases" and len(settings["data"]) == 3


def test_the_form_that_is_filled_in_has_these_fields():
    """The table of docs/kubeflow.md, against the compiled pipeline."""
    text = (ROOT / "docs" / "kubeflow.md").read_text("utf-8")
    (table,) = re.findall(r"^\| field \| value \|\n(.*?)\n\n", text, re.S | re.M)
    fields = {name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert {"source", "config", "data_root"} <= fields
    assert fields <= set(parameters((COMPILED / "hello_world.yaml").read_text("utf-8")))


def test_the_overlays_are_those_that_there_are():
    named = set(re.findall(r"`((?:overlays|options)/[\w-]+)`", TEXT)) | {"base"}
    folders = {path.parent.relative_to(ROOT / "k8s") for path in (ROOT / "k8s").rglob("kustomization.yaml")}
    # Parts that overlays are made of are no choice of a reader's.
    assert named == {str(folder) for folder in folders if folder.parts[0] in ("base", "overlays", "options")}


def test_the_metrics_are_those_that_there_are():
    (section,) = re.findall(r"^## Metrics and alerts$(.*?)^## ", TEXT, re.S | re.M)
    told = {
        name for row in re.findall(r"^\| (`rsp_.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)
    }
    families = {metric.name: metric.type for metric in Metrics().registry.collect()}
    assert told == {
        f"{name}_total" if kind == "counter" else name
        for name, kind in families.items()
        if name.startswith("rsp_")
    }


def test_examples_of_json_are_what_the_program_writes():
    logged, status = {}, {}
    for block in blocks("json"):
        found = json.loads(block)
        logged, status = (found, status) if "level" in found else (logged, found)
    assert set(logged) <= {"time", "level", "logger", "message", *FIELDS}
    assert set(status) == {"format", "server", "ready", "draining", "reason", "store", "models"}


def test_variables_are_those_that_the_program_reads():
    settings = re.search(r"^## Settings$(.*?)^## ", TEXT, re.S | re.M)[1]
    sources = [*(ROOT / "serving").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]
    read = "\n".join(path.read_text("utf-8") for path in sources)
    for name in re.findall(r"`((?:RSP|TS)_[A-Z_]*[A-Z])`", settings):
        assert re.search(rf"\b{name}\b", read), name


@pytest.fixture
def folder(tmp_path):
    """What the guide begins with: two exported models, and tiles."""
    checkpoint = make_checkpoint(tmp_path / "model.safetensors")
    export(checkpoint, tmp_path / "model.pt2", kind="pt2")
    shutil.copyfile(tmp_path / "model.pt2", tmp_path / "better.pt2")
    make_tileset(tmp_path / "images")
    make_tileset(tmp_path / "images.pmtiles")
    (tmp_path / "tile.png").write_bytes(encode(noise(BLOCK[0]), "png"))
    return tmp_path


class Shell:
    """Runs commands of the guide in a folder, with another port and one worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.metrics = free_ports((0, 0))
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder / "home"),
            "RSP_PORT": str(self.port), "RSP_METRICS_PORT": str(self.metrics), "RSP_WORKERS": "1",
            "no_proxy": "127.0.0.1",
        }  # fmt: skip

    def run(self, script: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c", script.replace(":8080", f":{self.port}")]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, command: str) -> Iterator[Path]:
        """Run `rsp serve` until it is ready, and end it; yields its log."""
        log = self.folder / "log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                shlex.split(command), cwd=self.folder, env=self.environment, stdout=file, stderr=file
            )
        try:
            deadline = time.monotonic() + 120
            while not self.answers("/healthz"):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            assert self.answers("/livez")
            yield log
        finally:
            server.terminate()
            code = server.wait(120)
        assert code == 0, log.read_text()

    def answers(self, path: str) -> bool:
        with suppress(OSError), self.get(path):
            return True
        return False

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        return urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        )

    def shown(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as answer:
            return answer.read().decode()


@pytest.mark.slow
@pytest.mark.java
@pytest.mark.skipif(not shutil.which("java"), reason="TorchServe needs Java")
def test_the_guide_runs_as_it_stands(folder):
    shell = Shell(folder)
    start, asking, changing = blocks("bash", "On a laptop")
    (forms,) = blocks("bash", "Asking for predictions")
    deploy, serve = start.splitlines()
    shell.run(deploy)
    with shell.serving(serve) as log:
        status = json.loads(shell.run(asking).splitlines()[-1])
        assert status["models"]["roofs"]["serving"] == "v1"
        (example,) = (found for found in map(json.loads, blocks("json")) if "models" in found)
        assert example.keys() == status.keys() and example["store"].keys() == status["store"].keys()
        assert example["models"]["roofs"].keys() == status["models"]["roofs"].keys()
        assert Image.open(folder / "mask.png").mode == "P"
        masks = [path.relative_to(folder / "masks") for path in (folder / "masks").rglob("*.png")]
        assert len(masks) == len(BLOCK)
        told = shell.run(forms)
        assert "X-Request-Id: tile-7" in told and "X-Model-Version: v1" in told
        collection, _ = json.JSONDecoder().raw_decode(told)
        assert collection["type"] == "FeatureCollection" and collection["features"]
        assert (folder / "probabilities").stat().st_size == 2 * 64 * 64
        listed = shell.run(changing)
        assert "v1" in listed and "v2" in listed
        with shell.get("/status") as answer:
            assert json.load(answer)["models"]["roofs"]["serving"] == "v1"
        text = shell.shown()
        assert re.search(r'^rsp_predict_seconds_count\{model="roofs",version="v1"\} [1-9]', text, re.M)
        assert 'rsp_release_info{model="roofs",torch="2.13.0' in text and "\nrsp_ready 1.0" in text
    states = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [each["version"] for each in states if each.get("state") == "switching"] == ["v1", "v2", "v1"]

    # The live map before the same store, with tokens.
    *secret, _ = blocks("bash", "Tokens, TLS and CORS")[0].splitlines()
    shell.run("\n".join(secret))
    shell.environment["RSP_TOKENS_FILE"] = "tokens"
    bearer = f"Bearer {(folder / 'tokens').read_text().strip().partition(':')[2]}"
    with shell.serving(blocks("bash", "The live map")[0]):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            shell.get(f"/imagery/roofs/{masks[0]}")
        for path in masks:
            with shell.get(f"/imagery/roofs/{path}", Authorization=bearer) as answer:
                assert answer.read() == (folder / "masks" / path).read_bytes()
        with shell.get("/status") as answer:
            assert json.load(answer)["models"]["roofs"]["serving"] == "v1"
        ask = f"curl --fail -H 'Authorization: {bearer}' -T tile.png http://127.0.0.1:8080/predictions/roofs"
        shell.run(f"{ask} --output again.png")
        assert (folder / "again.png").read_bytes() == (folder / "mask.png").read_bytes()
        text = shell.shown()
        assert 'rsp_live_requests_total{model="roofs",source="imagery",status="200"} 12.0' in text
        assert 'rsp_requests_total{model="roofs",status="200",version="v1"} 1' in text
