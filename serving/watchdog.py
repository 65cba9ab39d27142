"""Run a command as long as whoever started this holds our standard input open, then end all that it started.

    python watchdog.py FOLDER COMMAND...

TorchServe is a launcher, a Java process and Python workers, and a signal to one of them leaves the others. Here
the command has a process group of its own, which is killed, and FOLDER removed, when the input ends: that
happens when the parent closes it, and also when the parent is killed and can do nothing any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(folder: str, command: list[str]) -> int:
    """Run the command and return its exit code, or 0 where it was ended as asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # What loses its parent becomes our child, so that we can wait until it has really gone.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_the_parent() -> None:
        # The descriptor, not sys.stdin: a lock of the buffered object must not hold up the interpreter's exit.
        while os.read(0, 1):
            pass
        kill(child.pid)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    code = child.wait()
    kill(child.pid)  # what an end of its own has left behind
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    if code < 0:
        shutil.rmtree(folder, ignore_errors=True)
    return max(code, 0)


def kill(group: int) -> None:
    """Kill a process group; nothing happens where it has gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
