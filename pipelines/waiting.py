"""Wait until a run on a cluster has ended, and say why it failed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from rsp.pipelines.connection import Cluster, Connection, connected
from rsp.pipelines.logs import CHUNK, collected, logs_of
from rsp.pipelines.runs import ENDED, Status, Step, find, read_status
from rsp.shared.errors import PipelineError
from rsp.shared.http import lines_of

# How often a server may fail in a row while a run is waited for: it may be restarted in the hours that takes.
FAILURES = 10
POLL = 5.0
TAIL = 15


def wait(
    run: str,
    cluster: Cluster,
    *,
    timeout: float | None = None,
    poll: float = POLL,
    watch: Callable[[Step], None] = lambda step: None,
) -> Status:
    """Wait until a run has ended.

    Args:
        run: Its id, or its name: the latest run of that name.
        cluster: Where it runs.
        timeout: Seconds to wait at most; None without end.
        poll: Seconds between two looks.
        watch: Called with each step whose state has changed.

    Returns:
        The status of a run that succeeded.

    Raises:
        UsageError: there is no such run, or no host is known.
        PipelineError: it failed (the message names the steps and has the last lines of the first), it was still
            running at the end of the time, or KFP cannot be reached.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    known: dict[tuple[str, int], str] = {}
    with connected(cluster) as connection:
        run_id = find(connection, run, cluster).run_id
        while True:
            found = read_status(connection, _patiently(lambda: connection.run(run_id), poll))
            for key, step in _numbered(found.steps):
                if known.get(key) != step.state:
                    known[key] = step.state
                    watch(step)
            if found.state in ENDED:
                break
            left = poll if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise PipelineError(f"the run {found.name} ({run_id}) is {found.state} after {timeout:g} s")
            time.sleep(min(poll, left))
        if found.state == "succeeded":
            return found
        raise PipelineError(_failure(connection, found, cluster))


def _numbered(steps: tuple[Step, ...]) -> Iterator[tuple[tuple[str, int], Step]]:
    """Yield steps with what tells rounds of a loop apart."""
    count: dict[str, int] = {}
    for step in steps:
        count[step.name] = count.get(step.name, 0) + 1
        yield (step.name, count[step.name]), step


def _patiently(ask: Callable[[], Any], poll: float) -> Any:
    """Return an answer; a server that fails, or is away, is asked again."""
    import kfp_server_api
    import urllib3

    for left in reversed(range(FAILURES)):
        try:
            return ask()
        except kfp_server_api.ApiException as error:
            if left == 0 or (error.status or 0) < 500:
                raise
        except (urllib3.exceptions.HTTPError, OSError):
            if left == 0:
                raise
        time.sleep(poll)
    raise AssertionError("the last attempt returns or raises")


def _failure(connection: Connection, found: Status, cluster: Cluster) -> str:
    """Return what to say of a run that did not succeed."""
    text = f"the run {found.name} ({found.run_id}) {_ended(found.state)}"
    names = list(dict.fromkeys(step.name for step in found.failed))
    if names:
        text += f" in {'the step' if len(names) == 1 else 'the steps'} {', '.join(names)}"
    if found.error:
        text += f": {found.error}"
    text += f"; see {found.url}"
    for step in found.failed[:1]:
        with collected(connection) as reasons:
            lines: deque[str] = deque(maxlen=TAIL)
            for _, answer in logs_of(connection, found, step, cluster):
                lines.extend(lines_of(answer.stream(CHUNK)))
            text += "".join(f"\n    {line}" for line in [f"the last lines of {step.name}:", *lines])
        text += "".join(f"\n{reason}" for reason in reasons)
    return text


def _ended(state: str) -> str:
    return {"canceled": "was canceled", "skipped": "was skipped"}.get(state, "failed")
