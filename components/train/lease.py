"""How the nodes of a training know that its step still waits for them.

A step that is killed cannot remove its TrainJob, and the pod of a step that ended may stay for days. So the step
says every minute that it is there, in an object beside the plan; nodes that find it silent for half an hour end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rsp.shared.errors import NotFoundError, StorageError
from rsp.shared.locations import Address

ALIVE = "alive"
# Seconds between signs of life, and for how long there may be none. Clocks of nodes differ by less.
EVERY, SILENCE = 60.0, 1800.0


class Lease:
    """A sign of life of the step.

    Args:
        attempt: The prefix of this attempt.
    """

    def __init__(self, attempt: Address) -> None:
        self._storage = attempt.storage()
        self._renewed: float | None = None

    def renew(self) -> None:
        """Say that the step is there, at most every minute. A store may be away for a while."""
        now = time.monotonic()
        if self._renewed is not None and now - self._renewed < EVERY:
            return
        try:
            self._storage.write(ALIVE, f"{time.time():.0f}".encode())
        except StorageError as error:
            print(f"note: {error}; it is tried again", flush=True)
            return
        self._renewed = now

    def expired(self) -> bool:
        """Tell whether the step is gone: silent for too long, or what it wrote removed."""
        try:
            said = float(self._storage.read(ALIVE)[0])
        except NotFoundError:
            return True
        except StorageError:
            return False
        return time.time() - said > SILENCE

    def watch(self, end: Callable[[], object]) -> threading.Event:
        """Look every minute, in a thread, and call `end` when the step is gone; the returned event stops it."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(EVERY):
                if self.expired():
                    end()
                    return

        threading.Thread(target=look, daemon=True).start()
        return stop
