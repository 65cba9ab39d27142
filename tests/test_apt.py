"""`make test` waits for the lock of apt (A15): the real apt-get, in a tree of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "apt.sh"

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt on this system")


@pytest.fixture
def apt(tmp_path):
    """Start the script with apt's folders below `tmp_path`, so that neither root nor a network is needed."""
    for folder in ("etc/sources.list.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "status").touch()
    settings = {
        "Dir::Etc": tmp_path / "etc", "Dir::State": tmp_path / "state", "Dir::Cache": tmp_path / "cache",
        "Dir::State::status": tmp_path / "status", "Dir::Etc::sourceparts": tmp_path / "etc/sources.list.d",
    }  # fmt: skip
    (tmp_path / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))

    def start(*argv: str, wait: int = 600) -> subprocess.Popen[str]:
        env = {**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf"), "RSP_APT_WAIT": str(wait)}
        return subprocess.Popen(
            [SCRIPT, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # as apt does
        yield


def test_nobody_holds_it(apt):
    process = apt("update", "-qq")
    _, said = process.communicate()
    assert process.returncode == 0, said


def test_it_waits_until_the_lock_is_free(apt, tmp_path):
    with locked(tmp_path / "state/lists/lock"):
        process = apt("update", "-qq")
        assert "waiting for the process that holds the lock" in process.stderr.readline()
        assert process.poll() is None
    _, said = process.communicate()
    assert process.returncode == 0, said


def test_it_does_not_wait_for_ever(apt, tmp_path):
    with locked(tmp_path / "state/lists/lock"):
        process = apt("update", "-qq", wait=0)
        _, said = process.communicate()
    assert process.returncode == 1 and "still locked after 0 s" in said


def test_another_error_is_said_at_once(apt):
    process = apt("install", "-y", "no-such-package-at-all")
    _, said = process.communicate()
    assert process.returncode == 1 and "no-such-package-at-all" in said and "lock" not in said
