"""Locks on files, by which the writers of one tile set know of each other. A lock goes with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process; tell whether it is locked for certain.

    Raises:
        BlockingIOError: another process (or another opening of the file) holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False  # a file system without locks, as some network and object store mounts are
    return True


def hold(path: Path) -> int:
    """Open a file for reading and writing, made where it is missing, and lock it; return its descriptor.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try_lock(descriptor)
            # Its last holder may have removed it between the opening and the locking: then the name is free,
            # and the lock is on nothing.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
