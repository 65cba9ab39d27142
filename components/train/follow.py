"""A training in the cluster from its first to its last moment: made, followed, its log shown, and ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rsp.components.train.cluster import Cluster, number
from rsp.components.train.signals import terminated
from rsp.shared.errors import ClusterError, RspError

# Seconds from one look at a training to the next.
POLL = 5.0
# For how long a pod may be unable to start before the training is given up. Waiting for a node does not count.
PATIENCE = 600.0
# For how long the pods are waited for at the end: a pod has 30 s to leave.
LEAVING = 60.0

_BROKEN = {
    "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff",
    "InvalidImageName", "RunContainerError",
}  # fmt: skip

Say = Callable[[str], object]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


class Logs:
    """Shows the logs of pods while they are written, each line once, whatever becomes of connections."""

    def __init__(self, cluster: Cluster, out: Say) -> None:
        self._cluster, self._out = cluster, out
        self._threads: dict[str, threading.Thread] = {}
        self._last: dict[str, tuple[str, set[str]]] = {}

    def follow(self, pod: Mapping[str, Any]) -> None:
        """Show what a pod writes from now on, and what it has written; called again, go on where that ended."""
        name = pod["metadata"]["name"]
        thread = self._threads.get(name)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._show, args=(name, number(pod)), daemon=True)
            self._threads[name] = thread
            thread.start()

    def finish(self, seconds: float) -> None:
        """Wait for the ends of logs."""
        end = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(0.0, end - time.monotonic()))

    def _show(self, name: str, node: int) -> None:
        last, seen = self._last.get(name, ("", set()))
        try:
            for line in self._cluster.log(name):
                moment, _, text = line.partition(" ")
                if moment < last or (moment == last and text in seen):
                    continue  # shown before the connection was lost
                if moment != last:
                    last, seen = moment, set()
                seen.add(text)
                self._last[name] = (last, seen)
                self._out(f"[node {node}] {text}")
        except ClusterError:
            return  # no log yet, or the connection was lost: the next look at the training tries again


def run(
    cluster: Cluster,
    manifest: Mapping[str, Any],
    *,
    told: Callable[[], RspError | None] = lambda: None,
    out: Say = say,
    poll: float = POLL,
    patience: float = PATIENCE,
) -> None:
    """Make a TrainJob, follow it to its end, and remove it, however this ends: SIGTERM, too.

    Args:
        cluster: Where.
        manifest: The TrainJob.
        told: Asked at each look; the error that a process of the training has left, if one has.
        out: Takes the lines of the logs, and what becomes of the training.
        poll: Seconds between looks.
        patience: Seconds for which a pod may be unable to start.

    Raises:
        RspError: what a process of the training raised.
        ClusterError: the training failed or vanished, its pods cannot start, or the API refuses.
    """
    name = manifest["metadata"]["name"]
    with terminated():
        made = True  # from here on: a signal, or a broken connection, may come when it is made and not yet known
        try:
            try:
                cluster.create(manifest)
            except ClusterError as error:
                made = error.status is None  # else the API said that it is not
                raise
            out(f"made the TrainJob {name} in the namespace {cluster.namespace}")
            _follow(cluster, name, told, out, poll, patience)
        finally:
            if made:
                _end(cluster, name, out, poll)


def _end(cluster: Cluster, name: str, out: Say, poll: float) -> None:
    """Remove a training, and wait for its pods to go; what hinders that is told, not raised."""
    try:
        cluster.delete(name)
        end = time.monotonic() + LEAVING
        while cluster.get(name) is not None and time.monotonic() < end:
            time.sleep(min(poll, 1.0))
    except ClusterError as error:
        remove = f"kubectl --namespace {cluster.namespace} delete trainjob {name}"
        out(f"note: the TrainJob may still be there: {error}; {remove}")


def _follow(
    cluster: Cluster,
    name: str,
    told: Callable[[], RspError | None],
    out: Say,
    poll: float,
    patience: float,
) -> None:
    """Return when the training is complete; raise where it never will be."""
    logs, notes = Logs(cluster, out), _Notes(out)
    hindered: dict[str, float] = {}
    while True:
        job = cluster.get(name)
        pods = cluster.pods(name)
        for pod in pods:
            if pod["status"].get("phase") in ("Running", "Succeeded", "Failed"):
                logs.follow(pod)
        if error := told():
            logs.finish(poll)
            raise error
        if job is None:
            raise ClusterError(f"the TrainJob {name} is gone: somebody removed it while it was followed")
        status = job.get("status") or {}
        conditions = {each["type"]: each for each in status.get("conditions", []) if each["status"] == "True"}
        if "Complete" in conditions:
            logs.finish(poll + 5)
            return
        if "Failed" in conditions:
            logs.finish(poll + 5)
            if error := told():
                raise error
            found = conditions["Failed"]
            ends = "; ".join(filter(None, map(_ending, pods)))
            raise ClusterError(
                f"the training failed in the cluster: {found.get('reason', '')}: {found.get('message', '')}"
                f"{'; ' + ends if ends else ''}"
            )
        if "Suspended" in conditions:
            notes(f"{name} is suspended: {conditions['Suspended'].get('message', '')}")
        elif not pods:
            notes(f"{name} has no pods yet; kubectl describe trainjob,jobset,job says why if none come")
        for pod in pods:
            where = f"node {number(pod)} ({pod['metadata']['name']})"
            why, text = _waiting(pod)
            if why:
                notes(f"{where}: {why}: {text}")
            if why not in _BROKEN:
                hindered.pop(where, None)
            elif time.monotonic() - hindered.setdefault(where, time.monotonic()) > patience:
                raise ClusterError(f"{where} cannot start: {why}: {text}")
        time.sleep(poll)


class _Notes:
    """Says each thing once."""

    def __init__(self, out: Say) -> None:
        self._out, self._said = out, set[str]()

    def __call__(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._out(f"note: {text}")


def _waiting(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a pod does not run yet: a reason and its words, both empty where nothing hinders it."""
    status = pod["status"]
    for each in status.get("containerStatuses") or []:
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return waiting["reason"], waiting.get("message", "")
    for each in status.get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return each.get("reason", ""), each.get("message", "")
    return "", ""


def _ending(pod: Mapping[str, Any]) -> str:
    """Return how the container of a pod ended, if badly."""
    for each in pod["status"].get("containerStatuses") or []:
        for state in (each.get("state"), each.get("lastState")):
            ended = (state or {}).get("terminated") or {}
            if ended.get("exitCode"):
                return (
                    f"node {number(pod)} ended with exit code {ended['exitCode']} ({ended.get('reason', 'Error')})"
                )
    return ""
