"""Work over many items by several processes or threads, in order, with a bounded number under way."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from rsp.shared.errors import RspError
from rsp.shared.memory import keep_memory

T = TypeVar("T")
R = TypeVar("R")

# How OpenMP's threads wait for each other, where the environment says nothing else. Set before torch is imported;
# the images have the same (components/bases.Dockerfile).
OPENMP = {
    # On cores that others use, too, threads that spin while they wait took 57 s of CPU time for an epoch of 20 s.
    "OMP_WAIT_POLICY": "PASSIVE",
    # But a wait that is over in a moment is not worth sleeping: 21 images a second in place of 15 on two quiet
    # cores, in the same CPU time. Where others take both of them, it is 8 in place of 11.
    "GOMP_SPINCOUNT": "20000",
}


def cpu_count(root: Path = Path("/")) -> int:
    """Return how many processors this process may use, at least 1.

    That is the smaller of its CPU affinity and of the CPU quota of its control group or of any group above, a
    part of a processor counted as one: a container limited to 1.5 CPUs has 2.

    Args:
        root: Where `proc` and the file systems that it names are looked for; another folder in tests.
    """
    count = len(os.sched_getaffinity(0))
    return max(1, min([count, *(math.ceil(quota) for quota in _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in processors, of this process's control group and of those above, where they have one.

    Version 2 has one hierarchy and `cpu.max`, version 1 one of the controller `cpu` and `cpu.cfs_quota_us`; a
    system may mount both.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux, or /proc is hidden: nothing is known of a quota
        return
    paths: dict[str, str] = {}  # of the process, by the kind of file system that shows its group
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        fields, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(" ")[-1].split(",")):
            continue
        shown, mount = (_unescape(name) for name in fields.split(" ")[3:5])
        top = root / mount.lstrip("/")
        # A container may see the host's path of its group, but only that group mounted, or the path may lead out
        # of its namespace (/../other): what is mounted is then its own.
        inner = os.path.relpath(paths[kind], shown)
        group = top if ".." in Path(inner).parts or ".." in Path(paths[kind]).parts else top / inner
        while group.is_relative_to(top):
            quota = _quota_of(group)
            if quota is not None:
                yield quota
            group = group.parent


def _quota_of(group: Path) -> float | None:
    """Return the quota of a control group in processors, None where it has none of its own."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text("utf-8") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 mean no limit
            return int(quota) / int(period)
    return None


def _unescape(name: str) -> str:
    r"""Undo the octal escapes of /proc, as \040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    *,
    threads: bool = False,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Generator[R, None, None]:
    """Apply a function to items and yield the results in the order of the items.

    At most four items a worker are under way, so memory stays bounded whatever the number of items. The first
    exception of `function` is raised where its result would stand, and what has not begun is dropped. Worker
    processes end with this one, however it ends.

    Args:
        function: What to do with an item. For processes it must be importable by name.
        items: The items, taken one by one.
        workers: How many processes or threads; 0 or 1 works in the caller, without any.
        threads: Use threads, for work that waits (network) or releases the GIL.
        initializer: Called once in each process (or here) before the first item.
        initargs: Its arguments.

    Raises:
        RspError: a worker process died.
    """
    if isinstance(items, Sized):
        workers = min(workers, len(items))  # a process that has nothing to do costs its start
    keep_memory()
    if workers <= 1:
        if initializer:
            initializer(*initargs)
        yield from map(function, items)
        return
    pool: Executor
    if threads:
        pool = ThreadPoolExecutor(workers, initializer=initializer, initargs=initargs)
    else:
        # Fresh processes: forking one that runs threads (GDAL, torch, tqdm) can deadlock.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin_worker, initargs=(initializer, initargs)
        )
    under_way: deque[Future[R]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= 4 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RspError(
            "a worker process died, which most often means that memory ran out: try fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """Prepare a worker process: Ctrl-C is for its parent to handle, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    if initializer:
        initializer(*initargs)


def _end_with_parent() -> None:
    # A killed parent cannot tell its workers, and they hold both ends of the pipe on which they wait.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
