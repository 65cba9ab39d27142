"""Commands of `rsp` that are killed at a moment that does not depend on the clock.

A command is a process, forked from one that has imported the tools already: a dozen kills of each tool would
spend most of their time on imports otherwise. It counts what it does to the files below a folder (opening one for
writing, renaming, linking, removing, making a folder), and gets SIGKILL just before the change that it was told.
So that it is also found half way through a file, it may be told to go on, but let no file grow past some size:
the write that would do so ends the process there, wherever it is made (GDAL, SQLite), with as little chance to
clean up as SIGKILL gives.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

# What the tools import, at once or when they need it.
TOOLS = [
    *("changes", "compare", "cover", "download", "extract", "info", "predict", "rasterize", "review", "subset"),
    "tile",
    "vectorize",
]
MODULES = [
    *(f"rsp.components.{tool}.tool" for tool in TOOLS),
    *("rsp.components.predict.answer", "rsp.shared.learning.models.unet", "rsp.shared.webmap", "rsp.shared.cli"),
    *("numpy", "orjson", "osmium", "PIL.Image", "pyogrio", "pyproj", "rasterio", "requests", "shapely", "torch"),
]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# For a command to end, in seconds.
PATIENCE = 120
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


def make_part(masks: str, cover: str, out: str) -> int:
    """Make the part of a block, as a pipeline does."""
    parts = import_module("rsp.components.vectorize.parts")
    parts.vectorize_block(
        Path(masks), Path(cover), Path(out), kind="building", config=Path(os.environ["RSP_CONFIG"]), workers=1
    )
    return 0


def join_parts(*paths: str) -> int:
    """Join parts, and write the result to the last path."""
    join, parts = (import_module(f"rsp.components.vectorize.{name}") for name in ("join", "parts"))
    join.join([parts.Part(Path(path)) for path in paths[:-1]], Path(paths[-1]))
    return 0


# What only pipelines do, and no tool.
CALLS: dict[str, Callable[..., int]] = {"make a part": make_part, "join parts": join_parts}


@dataclass(frozen=True)
class Moment:
    """When a command is killed.

    Attributes:
        change: Before which of its changes, counted from 0.
        size: Instead of being killed there it goes on, until a file would grow past so many bytes.
        alone: Only the process itself is killed; its workers are left to end by themselves.
    """

    change: int
    size: int | None = None
    alone: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (below 0: by a signal), what it said, its changes `(what, path)`."""

    status: int
    stderr: str
    changes: list[tuple[str, str]]


class Forge:
    """Starts commands, each as a process of its own; a context manager."""

    def __enter__(self) -> Forge:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def run(
        self, argv: list[object], root: Path, moment: Moment | None = None, env: Mapping[str, str] | None = None
    ) -> Ended:
        """Run `rsp` with these arguments until it ends or is killed, and its workers are gone.

        Args:
            argv: The arguments.
            root: The folder whose changes count; its `tmp` is where temporary files go.
            moment: When it is killed; else it runs undisturbed.
            env: What the environment has beside ours.
        """
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        order = {"argv": [str(word) for word in argv], "root": str(root), "env": dict(env or {})}
        if moment:
            order |= {"change": moment.change, "size": moment.size, "alone": moment.alone}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["status"], answer["stderr"], [(what, path) for what, path in answer["changes"]])


def _serve() -> None:
    """Do what `Forge` asks for, a line at a time."""
    for name in MODULES:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line))) + "\n")


def _run(order: dict[str, Any]) -> dict[str, Any]:
    said, saying = os.pipe()
    noted, noting = os.pipe()
    child = os.fork()
    if not child:
        os.close(said)
        os.close(noted)
        _command(order, saying, noting)
    os.close(saying)
    os.close(noting)
    # The first ends when the process and its workers have: it is stderr to each of them.
    texts = {said: b"", noted: b""}
    waiting, deadline = set(texts), time.monotonic() + PATIENCE
    while waiting and (ready := select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))[0]):
        for pipe in ready:
            data = os.read(pipe, 1 << 16)
            texts[pipe] += data
            if not data:
                waiting.remove(pipe)
    if waiting:
        texts[said] += b"\nIt, or a worker of it, did not end.\n"
        os.killpg(child, signal.SIGKILL)
    for pipe in texts:
        os.close(pipe)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {
        "status": 1 if waiting else status,
        "stderr": texts[said].decode("utf-8", "replace"),
        "changes": json.loads(texts[noted] or b"[]"),
    }


def _command(order: dict[str, Any], saying: int, noting: int) -> None:
    """Be the command; never return."""
    code = 1
    try:
        os.setsid()
        os.environ.update(order["env"], TMPDIR=f"{order['root']}/tmp")
        tempfile.tempdir = None
        os.chdir(order["root"])
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(saying, 2)
        os.close(saying)
        changes: list[tuple[str, str]] = []
        _watch(order, changes)
        try:
            name, *rest = order["argv"]
            code = CALLS[name](*rest) if name in CALLS else import_module("rsp.shared.cli").main([name, *rest])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        sys.stderr.flush()
        order["root"] = ""  # nothing counts any more
        os.close(2)
        with os.fdopen(noting, "w") as notes:
            json.dump(changes, notes)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
        raise
    finally:
        os._exit(code)


def _watch(order: dict[str, Any], changes: list[tuple[str, str]]) -> None:
    """Count what is done to files, and end the process when it is time."""
    size, alone = order.get("size"), order.get("alone")
    last = order.get("change")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not args[2] & WRITES:
                return
            path = args[0]
        elif event in ("os.rename", "os.link", "os.symlink"):
            path = args[1]
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            path = args[0]
        else:
            return
        if isinstance(path, int):
            return
        path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (called often)
        if not order["root"] or not path.startswith(order["root"] + "/"):
            return
        if len(changes) == last:
            if size is not None:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            elif alone:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                os.killpg(0, signal.SIGKILL)
        changes.append((event, path))

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
