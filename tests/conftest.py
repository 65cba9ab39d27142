"""Fixtures that several rooms share."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rsp.shared.cli import main
from tests.browser import chromium
from tests.guides import Follower

if TYPE_CHECKING:
    from examples.town.generate import Scene
    from examples.town.server import SceneServer
    from tests.s3 import S3

ROOT = Path(__file__).parent.parent

# One thread a process: the suite runs in as many processes as there are processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RSP_CONFIG", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, then those of many: one that came last would leave others idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, item.path not in slow and -count[item.path]))


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Hold the garbage collector off: what is in a cycle stays, and shows."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Have something made by one process for all processes of the suite, which change nothing in it.

    `once(name, make)` returns the folder that `make(folder)` filled, here or in another process.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # what the workers have in common

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / name
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (made := folder.with_suffix(".made")).exists():
                make(folder)
                made.touch()
        return folder

    return shared


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery and extracts beside the checkout (or $RSP_TEST_DATA); skips if absent."""
    path = Path(os.environ.get("RSP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


@dataclass
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def rsp(capsys):
    """Run the command line in this process: `rsp("cover", ...)`, returning exit code, stdout and stderr."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of a file."""
    with chromium() as started:
        yield started


@pytest.fixture
def follow(rsp, tmp_path, monkeypatch) -> Follower:
    """Run commands of a page in `tmp_path`: `follow(commands(page("changes")))`; returns what each printed."""
    return Follower(tmp_path, rsp, monkeypatch)


@pytest.fixture(scope="session")
def rsp_process():
    """Run the command line as a process of its own (for imports, kills and environment)."""

    def run(*argv: object, **options: Any) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "rsp.shared.cli", *map(str, argv)], capture_output=True, text=True, **options
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@dataclass
class Step:
    """What a component wrote: its output artifacts (`path`, `metadata`), and its parameters."""

    artifacts: dict[str, Any]
    parameters: dict[str, Any]

    def path(self, name: str) -> Path:
        return Path(self.artifacts[name]["path"])


@pytest.fixture
def run_component(tmp_path):
    """Run one component with kfp's local runner: `run_component(component, {"tiles": path}, zoom=3)`.

    Artifact arguments are paths (or lists of paths are not supported); everything else is a parameter.
    """
    from kfp import dsl, local

    def run(component, artifacts: dict[str, tuple[Path, type] | Path] | None = None, **parameters: Any) -> Step:
        root = tmp_path / "kfp"
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))

        @dsl.pipeline(name="one")
        def one():
            inputs = {}
            for name, value in (artifacts or {}).items():
                path, kind = value if isinstance(value, tuple) else (value, dsl.Dataset)
                imported = dsl.importer(artifact_uri=str(path), artifact_class=kind, reimport=False)
                inputs[name] = imported.output
            component(**inputs, **parameters)

        before = set(root.glob("*/*/executor_output.json"))
        one()
        (written,) = set(root.glob("*/*/executor_output.json")) - before
        output = json.loads(written.read_text())
        found = {}
        for name, group in output.get("artifacts", {}).items():
            (artifact,) = group["artifacts"]
            found[name] = {"path": artifact["uri"], "metadata": artifact.get("metadata", {})}
        return Step(found, output.get("parameterValues", {}))

    return run


@pytest.fixture(scope="session")
def models(once) -> dict[str, Path]:
    """A small network as a checkpoint and in all exported forms, made once for all; change nothing in it."""
    from tests.networks import all_of, make_all

    return all_of(once("models", make_all))


@pytest.fixture(scope="session")
def scene(once) -> Scene:
    """A generated town of 20 tiles at zoom 19, drawn once for all processes of the suite; change nothing in it."""
    from examples.town.generate import generate, load_scene

    return load_scene(once("scene", partial(generate, tiles=20)))


@pytest.fixture(scope="session")
def scene_server(scene) -> Iterator[SceneServer]:
    """The generated town behind WMS, XYZ, TMS and WFS on 127.0.0.1; `.url` says where, `.wms` is a template."""
    from examples.town.server import SceneServer

    with SceneServer(scene.path) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """An S3 server on 127.0.0.1 that believes whoever asks (moto)."""
    from tests.s3 import moto

    with moto() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path_factory) -> S3:
    """The same, and the environment says how to reach it; `s3.bucket()` makes a new bucket."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MINIO_", "S3_", "RSP_S3_"))]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RSP_CACHE", str(tmp_path_factory.mktemp("cache")))
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def new_store(request, tmp_path) -> Callable[[], str]:
    """Make the address of an empty store: once in a folder, once on an S3 server."""
    if request.param == "folder":
        return lambda: str(tmp_path / "stores" / secrets.token_hex(4))
    server = request.getfixturevalue("s3")
    return lambda: f"s3://{server.bucket()}/models"
