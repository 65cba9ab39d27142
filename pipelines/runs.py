"""Runs on a cluster, and the state of their steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rsp.pipelines.connection import Cluster, Connection, connected, named
from rsp.shared.errors import UsageError

ENDED = ("succeeded", "failed", "skipped", "canceled", "error")

# KFP tells every node of the workflow. These hold steps together and are nobody's work: the drivers that start
# steps, the pods within them, and the groups of conditions, loops and exit handlers.
SCAFFOLD = re.compile(
    r"root|.+-driver|executor(\(\d+\))?|iteration-.+|(condition|condition-branches|for-loop|exit-handler)-\d+.*"
)


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        name: As the pipeline names it.
        state: pending, running, succeeded, skipped, failed, canceling, canceled or paused.
        seconds: How long it took, or has taken until now; None before it starts.
        nodes: The nodes of the workflow that ran it.
    """

    name: str
    state: str
    seconds: float | None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    Attributes:
        run_id: KFP's id.
        name: Its name.
        state: As that of a step.
        seconds: How long it took, or has taken until now.
        url: Its page in the UI.
        steps: Its steps in the order in which they started; one for each round of a loop.
        error: What KFP said went wrong.
    """

    run_id: str
    name: str
    state: str
    seconds: float | None
    url: str
    steps: tuple[Step, ...] = field(default=())
    error: str = ""

    @property
    def failed(self) -> list[Step]:
        """The steps that failed."""
        return [step for step in self.steps if step.state in ("failed", "error")]

    def lines(self) -> list[str]:
        """Return the status as lines of text; rounds of a loop are counted by state, each name once."""
        took = "" if self.seconds is None else f", {self.seconds:.0f} s"
        lines = [f"{self.name} ({self.run_id}): {self.state}{took}"]
        names = list(dict.fromkeys(step.name for step in self.steps))
        width = max(map(len, names), default=0)
        for name in names:
            same = [step for step in self.steps if step.name == name]
            states = list(dict.fromkeys(step.state for step in same))
            counted = ", ".join(
                state if len(same) == 1 else f"{sum(step.state == state for step in same)} {state}"
                for state in states
            )
            took = "".join(
                f"  {step.seconds:.0f} s" for step in same if len(same) == 1 and step.seconds is not None
            )
            lines.append(f"    {name:{width}}  {counted}{took}")
        return [*lines, *([self.error] if self.error else []), self.url]


def status(run: str, cluster: Cluster) -> Status:
    """Return how far a run has come.

    Args:
        run: Its id, or its name: the latest run of that name.
        cluster: Where it runs.

    Raises:
        UsageError: there is no such run, or no host is known.
        PipelineError: KFP cannot be reached, or refuses.
    """
    with connected(cluster) as connection:
        return read_status(connection, find(connection, run, cluster))


def find(connection: Connection, run: str, cluster: Cluster) -> Any:
    """Return a run as KFP's client gives it."""
    import kfp_server_api

    try:
        return connection.run(run)
    except kfp_server_api.ApiException as error:
        if error.status not in (400, 404):
            raise
    found = connection.client.list_runs(
        filter=named(run), sort_by="created_at desc", page_size=1, namespace=cluster.namespace
    )
    if not found.runs:
        raise UsageError(f"KFP at {connection.host} has no run {run!r}, neither by id nor by name")
    return connection.run(found.runs[0].run_id)


def read_status(connection: Connection, run: Any) -> Status:
    """Return how far a run has come, from what KFP's client gives."""
    tasks = list((run.run_details and run.run_details.task_details) or [])
    return Status(
        run.run_id,
        run.display_name,
        _state(run.state),
        _seconds(run.created_at, run.finished_at, run.state),
        connection.url(f"runs/details/{run.run_id}"),
        tuple(_steps(tasks)),
        run.error.message if run.error and run.error.message else "",
    )


def _steps(tasks: list[Any]) -> Iterator[Step]:
    by_hash = {_hash(task.pod_name): task for task in tasks if task.pod_name}
    # The first node is the workflow itself; its name begins those of the others.
    workflows = {child.rpartition("-")[0] for task in tasks for child in _children(task)}
    named_tasks = [task for task in tasks if not SCAFFOLD.fullmatch(task.display_name or "root")]
    for task in sorted(named_tasks, key=lambda task: _moment(task.start_time) or datetime.max.replace(tzinfo=UTC)):
        if task.display_name in workflows:
            continue
        nodes = [child for child in _children(task) if _within(by_hash.get(_hash(child)))]
        yield Step(
            task.display_name,
            _state(task.state),
            _seconds(task.start_time, task.end_time, task.state),
            tuple(nodes or ([task.pod_name] if task.pod_name else [])),
        )


def _children(task: Any) -> list[str]:
    return [child.pod_name for child in task.child_tasks or [] if child.pod_name]


def _within(task: Any | None) -> bool:
    """Tell whether a child of a step is its pod, and not the step that comes next."""
    return task is None or str(task.display_name).startswith("executor")


def _hash(node: str) -> str:
    return node.rpartition("-")[2]


def _state(state: str | None) -> str:
    text = (state or "").lower()
    return "pending" if text in ("", "runtime_state_unspecified") else text


def _moment(moment: datetime | None) -> datetime | None:
    """Return a time; None for the beginning of 1970, which stands for none."""
    return None if moment is None or moment.timestamp() <= 0 else moment


def _seconds(begin: datetime | None, end: datetime | None, state: str | None) -> float | None:
    """Return how long something took, or has taken until now."""
    first, last = _moment(begin), _moment(end)
    if first is None or (last is None and _state(state) in ENDED):
        return None
    return max(0.0, ((last or datetime.now(UTC)) - first).total_seconds())
