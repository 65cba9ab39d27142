"""Containers as the tests run them: as steps of a cluster with restricted pod security, without a network."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
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


@contextlib.contextmanager
def started(image: str, *argv: object, options: list[object]) -> Iterator[str]:
    """Run a container in the background; yields its name."""
    name = docker("run", "--detach", *LOCKED, *options, image, *argv).stdout.strip()[:12]
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name, check=False)


def run_in_images(
    name: Any, images: Images, root: Path, parameters: dict, network: str, mounts: dict[Path, str] | None = None
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
        "environment": THREADS,
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
