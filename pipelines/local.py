"""Run a pipeline on this machine: kfp's own local runner, no cluster, no Docker, no network, no pip.

What is run is the compiled YAML, the same that a cluster gets; each step is a process of this Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from rsp.pipelines.compiler import check_parameters, compile_pipeline, require_kfp, specification
from rsp.shared.atomic import atomic_text
from rsp.shared.errors import PipelineError, UsageError
from rsp.shared.parallel import OPENMP

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

# How much of the log of a step that failed is shown.
TAIL = 25

# What the steps get where the environment says nothing else.
DEFAULTS = {
    # kfp orders independent steps as Python orders sets of texts: the same at every run with a fixed seed.
    "PYTHONHASHSEED": "0",
    **OPENMP,
}

# What the names of steps end in that pass tile sets on as addresses.
REMOTE = "-s3"

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_START = re.compile(r"Executing task '(?P<step>[^']+)'$")
_END = re.compile(r"Task '(?P<step>[^']+)' finished with status (?P<status>SUCCESS|FAILURE)$")


@dataclass(frozen=True)
class Artifact:
    """What a step wrote.

    Attributes:
        path: A file or folder; of metrics it is empty, since KFP keeps their numbers in the metadata.
        metadata: What is noted about it.
        schema: Its type, as `system.Dataset`.
    """

    path: Path
    metadata: dict[str, Any]
    schema: str = ""


@dataclass
class Step:
    """One step of a run.

    Attributes:
        name: Its name in the pipeline, as `subset-training-images`.
        seconds: How long it took, all attempts together.
        ok: Whether it ended well.
        outputs: Its artifacts, by name.
        parameters: Its output parameters, by name; an unnamed one is `Output`.
    """

    name: str
    seconds: float = 0.0
    ok: bool = False
    outputs: dict[str, Artifact] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class LocalRun:
    """A run that ended well.

    Attributes:
        folder: Where all of it lies.
        log: All that they printed.
        seconds: How long the run took.
        steps: The steps that ran, in order, by name.
        skipped: The names of those that a condition left out.
    """

    folder: Path
    log: Path
    seconds: float
    steps: dict[str, Step]
    skipped: list[str]

    def path(self, step: str, output: str) -> Path:
        """Return where an output of a step lies."""
        return self.steps[step].outputs[output].path

    def metrics(self, step: str, output: str = "metrics") -> dict[str, Any]:
        """Return the metrics that a step logged."""
        return self.steps[step].outputs[output].metadata

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return a run of another process, from the `run.json` that it left in its folder."""
        data = json.loads((folder / "run.json").read_text("utf-8"))
        steps = {
            name: Step(
                name,
                step["seconds"],
                True,
                {
                    key: Artifact(Path(item["path"]), item["metadata"], item.get("schema", ""))
                    for key, item in step["outputs"].items()
                },
                step["parameters"],
            )
            for name, step in data["steps"].items()
        }
        return cls(folder, Path(data["log"]), data["seconds"], steps, data["skipped"])

    def as_dict(self) -> dict[str, Any]:
        """Return the run in types of JSON."""
        return {
            "folder": str(self.folder),
            "log": str(self.log),
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
            "steps": {
                step.name: {
                    "seconds": round(step.seconds, 3),
                    "parameters": step.parameters,
                    "outputs": {
                        name: {
                            "path": str(artifact.path),
                            "metadata": artifact.metadata,
                            "schema": artifact.schema,
                        }
                        for name, artifact in step.outputs.items()
                    },
                }
                for step in self.steps.values()
            },
        }


# Called when a step starts (seconds is None) and when it has ended.
Watch = Callable[[str, float | None], None]


def run_local(
    pipeline: str | BaseComponent,
    parameters: dict[str, Any],
    root: Path,
    *,
    watch: Watch | None = None,
    echo: IO[str] | None = None,
    env: dict[str, str] | None = None,
) -> LocalRun:
    """Run a pipeline with kfp's SubprocessRunner, in a process of its own.

    Accelerators, resources and volumes are the cluster's business and ignored here; independent steps run one
    after the other; conditions, retries and metrics work as on a cluster.

    Args:
        pipeline: A pipeline, or the name of one of ours.
        parameters: Its parameters; text stands for any type.
        root: The folder for outputs; each run makes a folder of its own in it.
        watch: Called at the start and the end of every step.
        echo: Where to show what the steps print, as they print it; the log has it in any case.
        env: Environment variables for the steps, added to ours.

    Raises:
        UsageError: a parameter that is unknown, missing or of another type, or a path that kfp cannot handle.
        PipelineError: a step failed (it is named, and the end of its log shown), or kfp itself.
    """
    text = compile_pipeline(pipeline)
    values = check_parameters(text, parameters)
    root = root.resolve()
    _refuse_python3({"root": str(root), **values})
    folder = _new_folder(root, _name(text))
    log = folder / "run.log"
    # What kfp leaks goes here: a temporary folder for each step, and a workspace, which it removes at the end
    # of a run whatever was in it.
    scratch = Path(tempfile.mkdtemp(prefix="rsp-"))
    try:
        (scratch / "pipeline.yaml").write_text(text, "utf-8")
        (scratch / "run.json").write_text(json.dumps({"root": str(folder), "parameters": values}), "utf-8")
        begun = time.monotonic()
        steps, tail, code = _supervise(scratch, log, watch, echo, env or {})
        seconds = time.monotonic() - begun
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    failed = [step.name for step in steps.values() if not step.ok]
    if code or failed:
        what = f"the step {failed[0]} failed" if failed else "the pipeline cannot be run"
        reason = f": {tail[-1].strip()}" if tail else ""
        raise PipelineError(f"{what}{reason}\nthe end of its log:\n{_indent(tail)}\nthe whole log is {log}")
    schemas = _schemas(text)
    for step in steps.values():
        _collect(folder, step, schemas)
    run = LocalRun(folder, log, seconds, steps, _skipped(list(_executed(text)), steps))
    with atomic_text(folder / "run.json") as file:
        json.dump(run.as_dict(), file, indent=2)
    return run


def _new_folder(root: Path, name: str) -> Path:
    """Make the folder of a run: the first of `name-1`, `name-2`, ... that is not there."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (root / f"{name}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return root / f"{name}-{number}"


def _refuse_python3(values: dict[str, Any]) -> None:
    """Raise `UsageError` for values that kfp's local runner would change.

    It puts the path of the interpreter in the place of `python3` in the whole command of a step, in its
    parameters too (kfp/local/subprocess_task_handler.py, replace_python_executable).
    """
    for name, value in values.items():
        if "python3" in json.dumps(value):
            raise UsageError(
                f"{name} holds the word `python3`, which kfp's local runner replaces by the path of the "
                "interpreter; rename it or choose another folder (a cluster has no such limit)"
            )


def _supervise(
    scratch: Path, log: Path, watch: Watch | None, echo: IO[str] | None, env: dict[str, str]
) -> tuple[dict[str, Step], list[str], int]:
    """Run the child, write its log, and follow its steps; returns them, the end of the last log, the exit code."""
    steps: dict[str, Step] = {}
    started = 0.0
    tail: deque[str] = deque(maxlen=TAIL)
    failure: list[str] = []
    # PYTHONSAFEPATH: with -m, a `json.py` or a `torch/` of the current folder would be taken for the real one.
    # Plug-ins there are found all the same: shared/plugins.py looks for them after what is installed.
    fixed = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)}
    environment = {**DEFAULTS, **os.environ, **env, **fixed}
    with (
        log.open("w", encoding="utf-8") as file,
        _Child([sys.executable, "-m", "rsp.pipelines.local", str(scratch)], environment) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            plain = _COLOUR.sub("", line).rstrip()
            file.write(plain + "\n")
            file.flush()
            if echo is not None:
                print(plain, file=echo, flush=True)
            if start := _START.search(plain):
                step = steps.setdefault(start["step"], Step(start["step"]))
                started = time.monotonic()
                tail.clear()
                if watch:
                    watch(step.name, None)
            elif end := _END.search(plain):
                step = steps[end["step"]]
                took = time.monotonic() - started
                step.seconds += took
                step.ok = end["status"] == "SUCCESS"
                # A step that is tried again and succeeds has not failed.
                failure = [] if step.ok else list(tail)
                if watch:
                    watch(step.name, took)
            elif plain.strip() and "Streamed logs:" not in plain:
                tail.append(plain)
        code = process.wait()
    return steps, failure or list(tail), code


class _Child:
    """Start a process in a session of its own, and leave none of its processes behind."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            # We were interrupted: so are the steps.
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()


def _schemas(text: str) -> dict[tuple[str, str], str]:
    """Return the types of the artifacts of a compiled pipeline, by step and output: no step notes them."""
    return {
        (component.removeprefix("comp-"), name): output["artifactType"]["schemaTitle"]
        for component, spec in specification(text)["components"].items()
        for name, output in spec.get("outputDefinitions", {}).get("artifacts", {}).items()
    }


def _skipped(executed: list[str], steps: dict[str, Step]) -> list[str]:
    """Return the steps that a condition left out. Our pipelines have most steps twice, of which one may run."""
    names = dict.fromkeys(name.removesuffix(REMOTE) for name in executed)
    return [name for name in names if not {name, f"{name}{REMOTE}"} & set(steps)]


def _collect(folder: Path, step: Step, schemas: dict[tuple[str, str], str]) -> None:
    """Read what a step noted about its outputs."""
    # A condition or a loop adds a folder of its own in between.
    found = sorted(folder.glob(f"**/{step.name}/executor_output.json"))
    if not found:
        return  # as an importer, which runs nothing
    output = json.loads(found[-1].read_text("utf-8"))
    step.parameters = output.get("parameterValues", {})
    for name, group in sorted(output.get("artifacts", {}).items()):  # kfp's order changes from run to run
        for artifact in group.get("artifacts", []):
            step.outputs[name] = Artifact(
                Path(artifact["uri"]),
                artifact.get("metadata", {}),
                schemas.get((step.name, name), ""),
            )


def _name(text: str) -> str:
    return str(specification(text)["pipelineInfo"]["name"])


def _executed(text: str) -> Iterator[str]:
    """Yield the names of the steps of a compiled pipeline that run something."""
    document = specification(text)
    for name, component in document["components"].items():
        executor = document["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
        if "container" in executor:
            yield name.removeprefix("comp-")


def _indent(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _run(scratch: Path) -> None:
    """Run the compiled pipeline in `scratch`; this is the child."""
    warnings.simplefilter("ignore")  # that images have no "python" in their name, that resources are ignored
    require_kfp()
    from kfp import components, local

    from rsp.pipelines.oneof import choose_artifacts

    choose_artifacts()
    run = json.loads((scratch / "run.json").read_text("utf-8"))
    # kfp rewrites any path that holds `/kfp-workspace`, the name it would choose itself.
    workspace = scratch / "workspace"
    workspace.mkdir()
    local.init(
        runner=local.SubprocessRunner(use_venv=False), pipeline_root=run["root"], workspace_root=str(workspace)
    )
    component = components.load_component_from_file(str(scratch / "pipeline.yaml"))
    try:
        component(**run["parameters"])
    except RuntimeError as error:
        # kfp has said on which step; a traceback through kfp explains nothing.
        sys.exit(f"{error}")


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
