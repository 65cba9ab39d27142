"""A job over many tiles: opened once in each process, with a result or a reason for every tile, in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any, Protocol, TypeVar

from rsp.shared.errors import RspError
from rsp.shared.memory import keep_memory
from rsp.shared.parallel import cpu_count, parallel_map

Item = TypeVar("Item")
Outcome = TypeVar("Outcome", covariant=True)
Taken = TypeVar("Taken", contravariant=True)


@dataclass(frozen=True)
class Failure:
    """Why there is no result."""

    reason: str


class Worker(Protocol[Taken, Outcome]):
    """What one process holds open to work on items."""

    def __call__(self, item: Taken, /) -> Outcome:
        """Work on an item; an `RspError` becomes the `Failure` of that item."""

    def close(self) -> None:
        """Release what is open."""


class Job(Protocol[Taken, Outcome]):
    """Says what is to be done. It is small and can be pickled: each process gets a copy."""

    def open(self) -> Worker[Taken, Outcome]:
        """Open what the work needs."""


def attempt(work: Callable[[Item], Outcome], item: Item) -> Outcome | Failure:
    """Work on an item; return its result, or why there is none."""
    try:
        return work(item)
    except RspError as error:
        return Failure(str(error))


def run_job(
    job: Job[Item, Outcome],
    items: Iterable[Item],
    count: int,
    workers: int | None = None,
    *,
    worth: int,
    batch: int = 1,
) -> Generator[tuple[Item, Outcome | Failure], None, None]:
    """Yield each item with its result or its `Failure`, in the order of the items.

    Args:
        job: What to do with each item.
        items: The items, read as they are needed.
        count: How many tiles they are, about.
        workers: How many processes; None for one a processor. With one process the work is done here.
        worth: How many tiles make a further process worth its start.
        batch: How many items go to a process at a time; neighbours often need the same data.

    Raises:
        RspError: the job cannot be opened, or a process died.
    """
    processes = min(cpu_count() if workers is None else workers, -(-count // worth))
    if processes <= 1:
        keep_memory()
        with closing(job.open()) as worker:
            for item in items:
                yield item, attempt(worker, item)
        return
    sent, kept = tee(_batches(items, batch))  # items do not travel back
    with closing(parallel_map(_work, sent, processes, initializer=_open, initargs=(job,))) as done:
        for ours, outcomes in zip(kept, done, strict=True):
            yield from zip(ours, outcomes, strict=True)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while found := list(islice(items, size)):
        yield found


_worker: Worker[Any, Any] | None = None


def _open(job: Job[Any, Any]) -> None:
    global _worker
    _worker = job.open()


def _work(items: list[Any]) -> list[Any]:
    assert _worker is not None
    return [attempt(_worker, item) for item in items]
