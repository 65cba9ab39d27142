"""Makes TorchServe serve what the pointers of a release store want, and says what it does about it.

One thread reads the pointers; each name has a thread of its own that brings a release from the store to the
workers (switch.py). Nobody tells a follower what to do: it looks at what is wanted and at what is there, so that a
deploy, a new replica, a restart and a roll-back all go one way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rsp.serving.cache import Cache
from rsp.serving.loading import Settings, Shared
from rsp.serving.reader import ReleaseReader
from rsp.serving.routes import Routes
from rsp.serving.switch import Switch
from rsp.serving.torchserve import TorchServe
from rsp.shared.errors import ReleaseError, StorageError

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

log = logging.getLogger(__name__)

# Seconds between two looks at a store that does not answer: the first wait, and the longest.
FIRST, LONGEST = 1.0, 30.0


class Follower:
    """Follows a release store for some names.

    Args:
        store: The release store.
        names: The models to serve.
        torchserve: The processes; somebody else starts them, and starts them again.
        routes: Is told which versions answer.
        cache: Where releases are kept on this machine.
        settings: Times and numbers.
        metrics: Is told what serves, and of each switch.
    """

    def __init__(
        self,
        store: ReleaseReader,
        names: Iterable[str],
        *,
        torchserve: TorchServe,
        routes: Routes,
        cache: Cache,
        settings: Settings,
        metrics: Metrics | None = None,
    ) -> None:
        self._store, self._poll = store, settings.poll
        self._ending = threading.Event()
        shared = Shared(store, torchserve, routes, cache, settings, self._ending, metrics)
        self._switches = {name: Switch(name, shared) for name in names}
        self._reachable: bool | None = None
        self._reason: str | None = None
        self._watcher = threading.Thread(target=self._watch, name="pointers", daemon=True)
        self._threads = [
            threading.Thread(target=switch.run, name=f"follow {name}", daemon=True)
            for name, switch in self._switches.items()
        ]

    def start(self) -> None:
        """Begin to follow."""
        for thread in (self._watcher, *self._threads):
            thread.start()

    def end(self) -> None:
        """Begin nothing more, and leave what serves as it is."""
        self._ending.set()
        for switch in self._switches.values():
            switch.wake()

    def status(self) -> dict[str, Any]:
        """Return what `/status` tells of the store and of each name."""
        return {
            "store": {"address": self._store.address, "reachable": bool(self._reachable), "reason": self._reason},
            "models": {name: switch.status() for name, switch in self._switches.items()},
        }

    def problem(self) -> str | None:
        """Return why this server should get no requests; None where it should."""
        problems = {name: switch.problem() for name, switch in self._switches.items()}
        if all(problems.values()):
            return "; ".join(str(each) for each in problems.values())
        # A name that has come to its end, whichever, must not keep the others from answering.
        under_way = [name for name, switch in self._switches.items() if not switch.settled]
        return f"{', '.join(under_way)}: the first release is under way" if under_way else None

    def _watch(self) -> None:
        """Read the pointers, and pass them on."""
        wait = FIRST
        while not self._ending.is_set():
            try:
                for name, switch in self._switches.items():
                    try:
                        switch.wanted(self._store.pointer(name))
                    except ReleaseError as error:
                        switch.damaged(str(error))
            except StorageError as error:
                if self._reachable is not False or self._reason != str(error):
                    log.warning("the release store %s cannot be read: %s", self._store.address, error)
                self._reachable, self._reason = False, str(error)
                for switch in self._switches.values():
                    switch.unreachable(str(error))
                self._ending.wait(wait)
                wait = min(2 * wait, LONGEST)
                continue
            if self._reachable is False:
                log.info("the release store %s answers again", self._store.address)
            self._reachable, self._reason, wait = True, None, FIRST
            self._ending.wait(self._poll)
