"""Containers as the tests run them: as steps of a cluster with restricted pod security, without a network."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rsp.components.container import with_images
from rsp.pipelines.compiler import check_parameters, compile_pipeline
from tests.images.engine import docker

A = TypeVar("A")
B = TypeVar("B")

ROOT = Path(__file__).parents[2]
REGISTRY = "localhost/rsp-tools"
USER = "10001:10001"
# Sums of another number of threads are other sums.
THREADS = {"OMP_NUM_THREADS": "1"}
TMPFS = "rw,exec,nosuid,nodev,mode=1777"
LOCKED = [
    "--user", USER, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--tmpfs", f"/tmp:{TMPFS}", "--env", "OMP_NUM_THREADS=1",
]  # fmt: skip


@dataclass(frozen=True)
class Images:
    """The images that were built.

    Attributes:
        tag: Their tag.
        bases: That of the two bases.
        below: The image that the bases stand on.
        revision: The commit that they are of.
        sbom: The folder of their SBOMs.
    """

    tag: str
    bases: str
    below: str
    revision: str
    sbom: Path

    def __getitem__(self, name: str) -> str:
        return f"{REGISTRY}/rsp-{name}:{self.bases if name in ('data', 'torch') else self.tag}"


def open_up(folder: Path) -> Path:
    """Let the user of the images reach and write a folder, which pytest makes for root alone."""
    for parent in folder.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
    return folder


def at_once(one: Callable[[], A], other: Callable[[], B]) -> tuple[A, B]:
    """Do two things that wait for other processes at once; returns what both return."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(one), pool.submit(other)
        return first.result(), second.result()


# An S3 server with a bucket, in a container that has this machine's packages for Python.
STORE = """
import signal
from tests.s3 import moto
with moto() as server:
    server.client().make_bucket("town")
    print(*(f"{name}={value}" for name, value in server.environ.items()), flush=True)
    signal.pause()
"""


@contextlib.contextmanager
def s3_server(image: str, network: str) -> Iterator[dict[str, str]]:
    """Run an S3 server in the network of another container; yields the environment of its clients."""
    packages = sysconfig.get_path("purelib")
    options = [
        "--volume", f"{ROOT / 'tests'}:/code/tests:ro", "--volume", f"{packages}:/packages:ro",
        "--env", "PYTHONPATH=/code:/packages", "--network", network, "--entrypoint", "python3",
    ]  # fmt: skip
    with started(image, "-c", STORE, options=options) as name:
        with subprocess.Popen(
            ["docker", "logs", "--follow", name], stdout=subprocess.PIPE, text=True
        ) as following:
            said = following.stdout.readline()
            following.terminate()
        assert said, logs(name)
        yield dict(word.split("=", 1) for word in said.split())


def logs(name: str) -> str:
    """Return what a container has printed."""
    done = docker("logs", name)
    return f"{done.stdout}{done.stderr}"


@contextlib.contextmanager
def started(image: str, *argv: object, options: list[object]) -> Iterator[str]:
    """Run a container in the background; yields its name."""
    name = docker("run", "--detach", *LOCKED, *options, image, *argv).stdout.strip()[:12]
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name, check=False)


def run_in_images(
    name: Any,
    images: Images,
    root: Path,
    parameters: dict,
    network: str,
    mounts: dict[Path, str] | None = None,
    env: dict[str, str] | None = None,
) -> tuple[int, str, Path]:
    """Run a pipeline with kfp's DockerRunner in the images of this commit.

    Returns the exit code, what it printed, and where its outputs are.
    """
    text = with_images(compile_pipeline(name), images.tag, REGISTRY).replace("registry/toy:1", images["cover"])
    assert text.count(f"image: {REGISTRY}/") == text.count("image: ") > 0
    folder, outputs = root / "run", root / "outputs"
    folder.mkdir(parents=True)
    outputs.mkdir()
    open_up(root)
    options = {
        "user": USER, "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
        "tmpfs": {"/tmp": TMPFS}, "network_mode": network,
        "environment": {**THREADS, **(env or {})},
    }  # fmt: skip
    run = {
        "root": str(outputs), "parameters": check_parameters(text, parameters), "options": options,
        "volumes": {str(path): {"bind": str(path), "mode": mode} for path, mode in (mounts or {}).items()},
    }  # fmt: skip
    (folder / "pipeline.yaml").write_text(text)
    (folder / "run.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "tests.images.docker_runner", folder]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout, outputs
