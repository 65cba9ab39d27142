"""How this process asks the kernel for memory."""

from __future__ import annotations

import ctypes
from functools import cache

# Of glibc's malloc.h. Allocations up to the first come from the heap, and up to the second stays on top of it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD, TRIM_THRESHOLD = 64 << 20, 256 << 20


@cache
def keep_memory() -> bool:
    """Keep freed memory for the next allocation instead of returning it to the kernel at once.

    The arrays of a tile have a megabyte or more. glibc would map each of them anew, and the kernel would have to
    clear every page of it: a quarter of the CPU time of a prediction (measured: 33.3 and 24.6 ms a tile). It costs
    what a process needs at its peak, kept for as long as it lives, `TRIM_THRESHOLD` for each thread at most.

    Returns:
        Whether it is so now: with glibc. Other C libraries have no such setting, and nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD))
