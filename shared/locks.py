"""Locks on files, by which processes of one machine know of each other. A lock goes with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

# How a file is locked: for this process alone, which does not wait, or together with others.
ALONE, SHARED = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH


def try_lock(descriptor: int, how: int = ALONE) -> bool:
    """Lock an open file; tell whether it is locked for certain.

    Raises:
        BlockingIOError: another process (or another opening of the file) holds the lock, and `how` does not wait.
    """
    try:
        fcntl.flock(descriptor, how)
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
