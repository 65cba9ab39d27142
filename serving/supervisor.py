"""Starts TorchServe, and starts it again when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from rsp.serving.routes import Routes
from rsp.serving.torchserve import TorchServe
from rsp.shared.errors import ServingError
from rsp.shared.http import Backoff

log = logging.getLogger(__name__)

# Starts in a row that may fail before somebody else has to help, and how long one may take, in seconds.
ATTEMPTS, START = 5, 60.0
BACKOFF = Backoff(ATTEMPTS, 1.0)
# What lives for so many seconds has started.
LIVED = 60.0
POLL = 0.1


class Supervisor:
    """Keeps TorchServe running, on a thread.

    Args:
        torchserve: The processes.
        routes: Are closed when they end.
        listen_to: Is told the port for predictions at each start.

    Attributes:
        fault: Why TorchServe cannot be started; None as long as there is hope.
    """

    def __init__(self, torchserve: TorchServe, routes: Routes, listen_to: Callable[[int], None]) -> None:
        self._torchserve, self._routes, self._listen_to = torchserve, routes, listen_to
        self._ending = threading.Event()
        self.fault: str | None = None
        self._answers = False
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start TorchServe, soon."""
        self._thread.start()

    def stop(self) -> None:
        """Start nothing any more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """Return why TorchServe does not run; None where it does."""
        if self._answers and self._torchserve.running:
            return None
        return self.fault or "TorchServe is being started"

    def _run(self) -> None:
        failures, began = 0, 0.0
        while not self._ending.is_set():
            if self._torchserve.running:
                if failures and time.monotonic() - began > LIVED:
                    failures = 0
                self._ending.wait(POLL)
                continue
            self._answers = False
            self._routes.close_all()
            if began:
                log.error("TorchServe has ended; starting it again. Its last lines:\n%s", self._torchserve.tail())
                failures += 1
            if failures == ATTEMPTS:
                self.fault = f"TorchServe has ended {failures} times in a row:\n{self._torchserve.tail()}"
                return
            if failures and self._ending.wait(BACKOFF.wait(failures - 1)):
                return
            began = time.monotonic()
            try:
                self._torchserve.kill()  # collects what is left of the last one
                self._torchserve.launch()
            except ServingError as error:
                log.error("TorchServe cannot be started: %s", error)
                continue
            self._listen_to(self._torchserve.port)
            self._wait_for_answer()

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + START
        while not self._ending.wait(POLL) and self._torchserve.running:
            if self._torchserve.answers():
                self._answers = True
                return
            if time.monotonic() > deadline:
                log.error("TorchServe does not answer after %g s", START)
                return self._torchserve.kill()
