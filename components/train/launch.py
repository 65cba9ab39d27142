"""Training in several processes: torchrun starts them, each runs the tool, the first one tells how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rsp.shared import errors
from rsp.shared.parallel import cpu_count

if TYPE_CHECKING:
    from rsp.components.train.tool import TrainResult

ARGUMENTS, RESULT = "arguments.json", "result.json"
PATHS = ("out", "config", "dataset", "checkpoint")


def launch(arguments: dict[str, Any], processes: int) -> TrainResult:
    """Train in several processes on this machine and return the result of the first.

    Args:
        arguments: Those of `train`.
        processes: How many, one for each GPU.

    Raises:
        RspError: what a process raised.
    """
    from rsp.components.train.tool import TrainResult

    with TemporaryDirectory() as name:
        folder = Path(name)
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
        (folder / ARGUMENTS).write_text(json.dumps(plain), "utf-8")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
            "--module", "rsp.components.train.launch", str(folder),
        ]  # fmt: skip
        # torchrun would give each process one thread.
        threads = str(max(1, cpu_count() // processes))
        environment = {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **os.environ}
        # A `torch/` in the current folder is not PyTorch; plug-ins there are found by shared/plugins.py.
        environment["PYTHONSAFEPATH"] = "1"
        with subprocess.Popen(command, env=environment) as running:
            try:
                code = running.wait()
            except BaseException:
                running.terminate()  # torchrun ends its processes on SIGTERM
                raise
        for rank in range(processes):
            path = folder / f"error-{rank}.json"
            if path.exists():
                error = json.loads(path.read_text("utf-8"))
                raise getattr(errors, error["kind"])(error["message"])
        if code or not (folder / RESULT).exists():
            raise errors.ModelError(f"training in {processes} processes ended with exit code {code}; see above")
        data = json.loads((folder / RESULT).read_text("utf-8"))
        return TrainResult(**{**data, "checkpoint": Path(data["checkpoint"])})


def worker(folder: Path) -> int:
    """Train as one of several processes, and leave the result or the error in the folder."""
    from dataclasses import fields

    from rsp.components.train.tool import TrainResult, train

    arguments = json.loads((folder / ARGUMENTS).read_text("utf-8"))
    for key in PATHS:
        arguments[key] = None if arguments[key] is None else Path(arguments[key])
    rank = os.environ["RANK"]
    try:
        result = train(**arguments)
    except errors.RspError as error:
        data = {"kind": type(error).__name__, "message": str(error)}
        (folder / f"error-{rank}.json").write_text(json.dumps(data), "utf-8")
        return error.exit_code
    if rank == "0":
        values = {
            entry.name: getattr(result, entry.name) for entry in fields(TrainResult) if entry.name != "failed"
        }
        # Python's JSON keeps NaN, which the result may hold; nobody else reads it.
        (folder / RESULT).write_text(json.dumps(values, default=str), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(worker(Path(sys.argv[1])))
