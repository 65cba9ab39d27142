"""Work over many items by several processes or threads, in order, with a bounded number under way."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rsp.shared.errors import RspError

T = TypeVar("T")
R = TypeVar("R")


def cpu_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


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
    """Prepare a worker process: Ctrl-C is its parent's affair, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*initargs)


def _end_with_parent() -> None:
    # A killed parent cannot tell its workers, and they hold both ends of the pipe on which they wait.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
