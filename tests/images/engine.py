"""A Docker engine for the tests: the one that runs already, or one of our own that leaves nothing behind.

    python -m tests.images.engine

says why there is none and fails where that is so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START = 60  # seconds; it takes 5 where nothing else runs


def docker(*argv: object, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
    """Run the client; the end of what it said is in the error."""
    options = {"capture_output": True, "text": True, **options}
    done = subprocess.run(["docker", *map(str, argv)], **options)
    if check and done.returncode:
        said = f"{done.stdout or ''}\n{done.stderr or ''}"[-4000:]
        raise AssertionError(f"docker {' '.join(map(str, argv))} ended with {done.returncode}\n{said}")
    return done


def builds_quickly(client: str) -> bool:
    """Whether a client builds with BuildKit: one with buildx, or one of the years that had it within."""
    if subprocess.run([client, "buildx", "version"], capture_output=True).returncode == 0:
        return True
    said = subprocess.run([client, "--version"], capture_output=True, text=True).stdout
    return bool(re.match(r"Docker version (19|20)\.", said))


def use_client(folder: Path) -> None:
    """Let `docker` be the first client of this machine that builds with BuildKit; if there is none, it stays.

    Args:
        folder: Where a link to it may stand that no other program is beside.
    """
    first, *others = [path for part in os.get_exec_path() if (path := shutil.which("docker", path=part))]
    better = next(filter(builds_quickly, (first, *others)), first)
    if better != first:
        (folder / "docker").symlink_to(better)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


@contextmanager
def engine() -> Iterator[None]:
    """Let `docker` have an engine, for as long as the block runs.

    One that we start has its data, its socket and no network of its own in a temporary folder, which needs about
    6 GB. It ends with this process, even if that is killed.

    Raises:
        RuntimeError: it did not start; its log is in the message.
    """
    if docker("info", check=False).returncode == 0:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="rsp-engine-"))
    log = folder / "log"
    address = f"unix://{folder}/docker.sock"
    command = [
        "setpriv", "--pdeathsig", "TERM", "dockerd", "--host", address, "--pidfile", folder / "pid",
        "--data-root", folder / "data", "--exec-root", folder / "exec",
        # Containers have no network or that of the machine: no bridge, and not a rule in its firewall.
        "--bridge", "none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    before = os.environ.get("DOCKER_HOST")
    with log.open("wb") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    os.environ["DOCKER_HOST"] = address
    try:
        _wait(process, log)
        yield
    finally:
        _stop(process)
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
        _unmount(folder)
        shutil.rmtree(folder)


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START
    while docker("info", check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the Docker engine did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the containers, then the engine."""
    if process.poll() is None:
        running = docker("ps", "--quiet", "--all", check=False).stdout.split()
        if running:
            docker("rm", "--force", "--volumes", *running, check=False)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unmount(folder: Path) -> None:
    """Unmount what an engine that was killed left mounted; inner mounts first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((path for path in mounts if path.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)


if __name__ == "__main__":
    try:
        with engine():
            pass
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))
