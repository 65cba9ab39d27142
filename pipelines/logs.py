"""The logs of the steps of a run, as long as a cluster keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rsp.pipelines.connection import Cluster, Connection, connected, explained
from rsp.pipelines.runs import Status, Step, find, read_status
from rsp.shared.errors import PipelineError, UsageError
from rsp.shared.http import lines_of

# Names of pods: `<workflow>-<template>-<hash>`, where the nodes are `<workflow>-<hash>`.
TEMPLATES = ("system-container-impl", "retry-system-container-impl")
ATTEMPTS = 10
# Bytes of a log that are taken at a time.
CHUNK = 1 << 16


def logs(run: str, step: str | None, cluster: Cluster, out: TextIO) -> None:
    """Write the logs of a run, or of one of its steps, as long as the cluster keeps them.

    Args:
        run: Its id, or its name: the latest run of that name.
        step: Name of the step; None for all, each below a line with its name.
        cluster: Where it runs.
        out: Where they go.

    Raises:
        UsageError: there is no such run or step, or no host is known.
        PipelineError: there are no logs (any more), or KFP cannot be reached.
    """
    with connected(cluster) as connection:
        found = read_status(connection, find(connection, run, cluster))
        names = list(dict.fromkeys(each.name for each in found.steps))
        if step is not None and step not in names:
            raise UsageError(f"the run {found.name} has no step {step!r}; it has {', '.join(names) or 'none yet'}")
        chosen = [each for each in found.steps if step in (None, each.name)]
        reasons: list[str] = []
        for each in chosen:
            with collected(connection) as said:
                for pod, answer in logs_of(connection, found, each, cluster):
                    if step is None or len(chosen) > 1:
                        out.write(f"==> {each.name} ({pod}) <==\n")
                    for line in lines_of(answer.stream(CHUNK)):
                        out.write(f"{line}\n")
            reasons += said
        if reasons and (step is not None or len(reasons) == len(chosen)):
            raise PipelineError(reasons[0])
        for reason in reasons:
            out.write(f"{reason}\n")


def logs_of(connection: Connection, found: Status, step: Step, cluster: Cluster) -> Iterator[tuple[str, Any]]:
    """Yield each pod that ran a step with its log.

    Raises:
        PipelineError: none of its pods has a log.
    """
    some = False
    for node in step.nodes:
        for pod in _pods(node):
            answer = _log(connection, found.run_id, pod, cluster)
            if answer is not None:
                some = True
                yield pod, answer
                break
        else:
            for attempt in range(ATTEMPTS):
                name = _attempt(node, attempt)
                answer = _log(connection, found.run_id, name, cluster) if name else None
                if name is None or answer is None:
                    break
                some = True
                yield name, answer
    if not some:
        within = f" -n {cluster.namespace}" if cluster.namespace else ""
        raise PipelineError(
            f"no log of the step {step.name} can be had from {connection.host}"
            + (": it has not started" if step.state in ("pending", "skipped") else "")
            + f"; try kubectl logs{within} -l pipeline/runid={found.run_id} -c main --prefix"
        )


def _pods(node: str) -> list[str]:
    """Return how the pod of a node may be called: older servers tell the name of the node."""
    parts = re.fullmatch(r"(.+)-(\d+)", node)
    if not parts or TEMPLATES[0] in node:
        return [node]
    return [node, f"{parts[1]}-{TEMPLATES[0]}-{parts[2]}"]


def _attempt(node: str, number: int) -> str | None:
    """Return the pod of an attempt at a step that may be tried again.

    Argo names a node by the FNV-1a hash of its path, and an attempt `<path>(0)`: its hash goes on where that of
    the node ends.
    """
    parts = re.fullmatch(r"(.+)-(\d+)", node)
    if not parts:
        return None
    value = int(parts[2])
    for byte in f"({number})".encode():
        value = (value ^ byte) * 16777619 % (1 << 32)
    return f"{parts[1]}-{TEMPLATES[1]}-{value}"


def _log(connection: Connection, run_id: str, pod: str, cluster: Cluster) -> Any | None:
    """Return the answer that holds the log of a pod; None where the server has none."""
    import kfp_server_api

    query = {"podname": pod, "runid": run_id, **({"podnamespace": cluster.namespace} if cluster.namespace else {})}
    ways: list[tuple[str, dict[str, str]]] = [
        (f"/apis/v2beta1/runs/{run_id}/nodes/{pod}/log", {}),
        ("/k8s/pod/logs", query),  # where the host is the UI
        (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", {}),  # the API server itself, up to 2.17
    ]
    for path, asked in ways:
        try:
            answer = connection.get(path, **asked)
        except kfp_server_api.ApiException as error:
            if error.status in (401, 403):
                raise
            continue  # no such way, or no such pod
        # The UI answers what it does not know with its own page.
        if "text/html" not in str(answer.headers.get("Content-Type")):
            return answer
    return None


@contextmanager
def collected(connection: Connection) -> Iterator[list[str]]:
    """Collect the reason why there are no logs: that a run failed is worth saying without them."""
    reasons: list[str] = []
    try:
        with explained(connection.host):
            yield reasons
    except PipelineError as error:
        reasons.append(str(error))
