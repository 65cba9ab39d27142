"""Training in several processes: torchrun starts them, each reads the plan, the first one tells how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from rsp.components.train.plan import Plan
from rsp.components.train.result import TrainResult
from rsp.shared import errors
from rsp.shared.parallel import cpu_count

PLAN, RESULT = "plan.json", "result.json"


def launch(plan: Plan, device: str, processes: int) -> TrainResult:
    """Train in several processes on this machine and return the result of the first.

    Args:
        plan: What to train.
        device: As `join` takes it.
        processes: How many, one for each GPU.

    Raises:
        RspError: what a process raised.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / PLAN).write_text(plan.to_json(), "utf-8")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
            "--module", "rsp.components.train.launch", str(folder), device,
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
                raise read_error(path)
        if code or not (folder / RESULT).exists():
            raise errors.ModelError(f"training in {processes} processes ended with exit code {code}; see above")
        return TrainResult.from_json((folder / RESULT).read_text("utf-8"))


def text_of(error: errors.RspError) -> dict[str, str]:
    """Return an error as JSON has it, for `error_of`."""
    kind = type(error)
    return {"module": kind.__module__, "name": kind.__qualname__, "message": str(error)}


def error_of(data: Mapping[str, str]) -> errors.RspError:
    """Return the error that a process left: itself if it is ours, else a `PluginError` that names it."""
    if data["module"] == errors.__name__:
        kind: type[errors.RspError] = getattr(errors, data["name"])
        return kind(data["message"])
    return errors.PluginError(f"{data['module']}.{data['name']}: {data['message']}")


def write_error(path: Path, error: errors.RspError) -> None:
    """Leave an error for the process that waits."""
    path.write_text(json.dumps(text_of(error)), "utf-8")


def read_error(path: Path) -> errors.RspError:
    """Return the error that a process left in a file; see `error_of`."""
    return error_of(json.loads(path.read_text("utf-8")))


def worker(folder: Path, device: str) -> int:
    """Train as one of several processes, and leave the result or the error in the folder."""
    from rsp.components.train.processes import join
    from rsp.components.train.signals import terminated
    from rsp.components.train.training import train_model

    plan = Plan.from_json((folder / PLAN).read_text("utf-8"))
    rank = os.environ["RANK"]
    try:
        with terminated(), join(device) as world:
            result = train_model(plan, world)
    except errors.RspError as error:
        write_error(folder / f"error-{rank}.json", error)
        return error.exit_code
    if rank == "0":
        (folder / RESULT).write_text(result.to_json(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(worker(Path(sys.argv[1]), sys.argv[2]))
