"""Nothing that was started survives the one who started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

WATCHDOG = Path(__file__).parent.parent.parent / "serving" / "watchdog.py"

# Starts a watchdog as `TorchServe` does, and waits: a parent to be killed. Its command leaves a child of its own.
PARENT = """
import subprocess, sys, time
watchdog, folder = sys.argv[1:]
command = ["sh", "-c", "sleep 1000 & echo started; sleep 1000"]
process = subprocess.Popen(
    [sys.executable, watchdog, folder, *command], stdin=subprocess.PIPE, start_new_session=True
)
time.sleep(1000)
"""


def test_a_parent_that_is_killed(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WATCHDOG, folder], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3  # the watchdog, the shell, and what the shell left in the background
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]
    assert not folder.exists()


def test_a_command_that_ends_by_itself(tmp_path):
    command = ["sh", "-c", "sleep 1000 & exit 7"]
    watchdog = subprocess.Popen([sys.executable, WATCHDOG, tmp_path, *command], stdin=subprocess.PIPE)
    assert watchdog.wait(20) == 7
    # Its log may be wanted: the folder stays until the parent removes it.
    assert tmp_path.exists()
