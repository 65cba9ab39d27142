"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

# Seconds between two lines where stderr is not a terminal.
INTERVAL = 10.0


def progress(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "tile",
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Yield the items and show on stderr how far the work is, its rate and the time left.

    Args:
        items: What is worked through.
        what: The name of the work, as `predict`.
        total: How many items there are, where `items` has no length.
        unit: What one item is.
        size: For how many an item counts; more than one where it is a batch.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm  # not needed in a log

        with tqdm(desc=what, total=total, unit=unit, ascii=True, leave=True) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    start = shown = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += size(item)
        now = time.monotonic()
        if now - shown >= INTERVAL:
            shown = now
            rate = count / (now - start)
            left = f", {(total - count) / rate:.0f} s left" if total else ""
            of = f"/{total}" if total else ""
            print(f"{what}: {count}{of} {unit}s, {rate:.1f}/s{left}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    print(f"{what}: {count} {unit}s in {seconds:.1f} s", file=sys.stderr, flush=True)
