"""One name's way from one release to the next, and back to the last good one when it fails.

    fetching, verifying, archiving, registering, loading, comparing, switching, draining, removing, serving

`waiting` is where there is nothing to do it with, `refused` where a release failed. Whatever fails, what serves
goes on serving, and what was begun is taken back.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rsp.serving.loading import Loader, Shared
from rsp.serving.management import NotReadyError
from rsp.serving.manifest import Pointer, Release, noted
from rsp.shared.errors import RspError, ServingError, StorageError
from rsp.shared.http import Backoff

log = logging.getLogger(__name__)

# How soon a release that failed is tried again: soon where the reason may pass by itself, seldom where it was
# refused. A pointer that moves ends either wait.
SOON = Backoff(1 << 30, 1.0, longest=30.0)
SELDOM = Backoff(1 << 30, 30.0, longest=900.0)
# Seconds that a store may take for its first answer before the last release on this machine's disk will do.
PATIENCE = 5.0
# Seconds between two looks while TorchServe or the store has not answered yet.
STARTING = 0.1
# Old versions that are kept beside the one that serves, for clients that hold on to them.
MOST_KEPT = 2
# Seconds that requests under way may take when their version goes: more than TorchServe's responseTimeout.
UNDER_WAY = 75.0


class _OvertakenError(Exception):
    """The pointer was moved, TorchServe started again, or the end began: stop what is under way."""


@dataclass
class _Version:
    """A version that TorchServe has registered."""

    release: Release
    since: float = 0.0  # when it became an old one, by time.monotonic()


@dataclass(frozen=True)
class _Failure:
    """Why what is wanted does not serve."""

    state: str
    reason: str


class Switch:
    """Follows the pointer of one name. `run` is a thread's; the other methods may be called from any."""

    def __init__(self, name: str, shared: Shared) -> None:
        self.name, self._shared = name, shared
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._began = time.monotonic()
        # What is wanted: nothing is known of it before the store has answered.
        self._known, self._pointer = False, None  # type: tuple[bool, Pointer | None]
        self._fault: str | None = "the release store has not answered yet"
        # What there is.
        self._generation = 0
        self._loader: Loader
        self._versions: dict[str, _Version] = {}
        self._serving: str | None = None
        self._ready = 0
        self._silent_since: float | None = None
        # How it went.
        self._failure: _Failure | None = None
        self._tries, self._again = 0, 0.0
        self._not_before: dict[str, float] = {}  # of releases that did not do as a substitute
        self._state, self._since = "waiting", time.time()
        self._reason: str | None = self._fault
        self._settled = False

    # --- what others tell ------------------------------------------------------------------------------------

    def wanted(self, pointer: Pointer | None) -> None:
        """Take the pointer as the store has it now; None where there is none."""
        fault = None if pointer else f"the release store has no pointer of {self.name}"
        # One that vanished wants nothing else, and what serves goes on.
        self._hear(True, pointer or self._pointer, fault)

    def damaged(self, reason: str) -> None:
        """Note that the pointer makes no sense; what serves goes on."""
        self._hear(True, self._pointer, reason)

    def unreachable(self, reason: str) -> None:
        """Note that the store does not answer."""
        self._hear(self._known, self._pointer, self._fault if self._known else reason)

    def _hear(self, known: bool, pointer: Pointer | None, fault: str | None) -> None:
        with self._lock:
            moved = pointer != self._pointer
            news = moved or (known, fault) != (self._known, self._fault)
            self._known, self._pointer, self._fault = known, pointer, fault
            if moved:
                self._failure, self._tries, self._again = None, 0, 0.0
        if news:
            self._wake.set()

    def wake(self) -> None:
        """Let the thread look again at once."""
        self._wake.set()

    # --- what others ask -------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether the first way has come to its end, be it that nothing serves."""
        return self._settled

    def status(self) -> dict[str, Any]:
        """Return what `/status` tells of this name."""
        with self._lock:
            serving = self._versions.get(self._serving or "")
            return {
                "wanted": self._pointer.version if self._pointer else None,
                "serving": self._serving,
                "state": self._state,
                "reason": self._reason,
                "since": noted(self._since),
                "torch": serving.release.torch if serving else None,
                "workers": self._ready,
                "kept": sorted(set(self._versions) - {self._serving}),
            }

    def problem(self) -> str | None:
        """Return why this name does not answer; None where it does."""
        with self._lock:
            if self._serving is None:
                return f"{self.name}: {self._reason or self._state}"
            return None if self._ready else f"{self.name}: no worker of version {self._serving} is READY"

    # --- the thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow until the end."""
        while not self._shared.ending.is_set():
            self._wake.clear()
            wait = self._shared.settings.poll
            try:
                if not self._look():
                    wait = min(wait, STARTING)
            except _OvertakenError:
                continue
            except Exception:
                # Whatever it was, what serves must go on, and be followed.
                log.exception("following %s failed", self.name, extra={"model": self.name})
            self._wake.wait(wait)

    def _look(self) -> bool:
        """Do what there is to do, and tell whether that was possible."""
        if not self._meet_torchserve():
            return False
        self._observe()
        with self._lock:
            known, pointer, due = self._known, self._pointer, time.monotonic() >= self._again
        if not known and not self._settled and time.monotonic() - self._began < PATIENCE:
            return False
        wanted = pointer.version if pointer else None
        if pointer is not None and wanted is None:
            self._take_down()
        elif wanted is not None and wanted != self._serving and due:
            self._try(wanted)
        if self._serving is None and (pointer is None or wanted is not None):
            self._fall_back(pointer)
        self._retire()
        self._settle()
        return True

    def _meet_torchserve(self) -> bool:
        """Tell whether TorchServe answers; where it is another one than before, nothing is registered there."""
        server = self._shared.torchserve
        if server.generation != self._generation:
            with self._lock:
                self._versions, self._serving, self._ready = {}, None, 0
                self._failure, self._tries, self._again = None, 0, 0.0
            self._loader = Loader(self.name, self._shared, self._enter, self._check)
            self._generation, self._silent_since, self._settled = self._loader.generation, None, False
            self._not_before.clear()
        if self._generation and self._loader.lives():
            return True
        with self._lock:
            self._ready = 0
        self._enter("waiting", "TorchServe does not answer (yet)")
        return False

    def _observe(self) -> None:
        """See which workers there are."""
        if self._serving is None:
            return
        try:
            found = self._loader.api.versions()
        except ServingError as error:
            log.warning("TorchServe cannot be asked: %s", error, extra={"model": self.name})
            return
        workers = found.get(self._serving, {}).get("workers", [])
        with self._lock:
            self._ready = ready = sum(worker.get("status") == "READY" for worker in workers)
        if metrics := self._shared.metrics:
            for version in set(self._versions) & set(found):
                pids = {str(each["id"]): int(each.get("pid", -1)) for each in found[version]["workers"]}
                metrics.workers(self.name, version, {key: pid for key, pid in pids.items() if pid > 0})
        # TorchServe gives up on workers that die again and again, and then nothing would ever come back.
        now = time.monotonic()
        self._silent_since = None if ready else self._silent_since or now
        if self._silent_since and now - self._silent_since > self._shared.settings.timeout:
            log.error("no worker of %s is READY: starting TorchServe again", self.name, extra={"model": self.name})
            self._shared.torchserve.kill()
            raise _OvertakenError

    def _try(self, version: str) -> None:
        """Bring the version that is wanted, and note why it failed."""
        failure, backoff = None, SOON
        try:
            self._bring(version, substitute=False)
        except StorageError as error:
            failure = _Failure("waiting", str(error))
        except RspError as error:
            # What dies without a reason may have been killed for another one than the model.
            may_pass = isinstance(error, NotReadyError) and self._tries < 2
            if may_pass or not self._loader.lives():
                failure = _Failure("waiting", str(error))
            else:
                failure, backoff = _Failure("refused", str(error)), SELDOM
        with self._lock:
            if failure is None:
                self._failure, self._tries = None, 0
                return
            self._failure = failure
            self._again = time.monotonic() + backoff.wait(min(self._tries, 20))
            self._tries += 1
        if failure.state == "refused" and self._shared.metrics:
            self._shared.metrics.switched(self.name, "refused")

    def _fall_back(self, pointer: Pointer | None) -> None:
        """Where nothing serves, serve the last release that did, or the one that was wanted before."""
        before = [move.version for move in pointer.history] if pointer else []
        wanted = pointer.version if pointer else None
        for version in dict.fromkeys(filter(None, [self._shared.cache.served(self.name), *before])):
            if version == wanted and self._failure is None:
                continue  # it is about to be tried
            if time.monotonic() < self._not_before.get(version, 0.0):
                continue
            try:
                return self._bring(version, substitute=True)
            except RspError as error:
                self._not_before[version] = time.monotonic() + SELDOM.longest
                log.warning(
                    "%s: version %s does not serve in its place: %s", self.name, version, error,
                    extra={"model": self.name, "version": version},
                )  # fmt: skip

    # --- bringing a version ----------------------------------------------------------------------------------

    def _bring(self, version: str, *, substitute: bool) -> None:
        """Make a version the one that serves.

        Args:
            version: The version.
            substitute: It is not the one that is wanted, and the store need not have it.

        Raises:
            _OvertakenError: it is not wanted any more.
            StorageError: the store does not answer, or the disk refuses.
            RspError: it cannot serve.
        """
        self._trying = None if substitute else version
        with self._shared.turn:
            self._check()
            release = self._shared.cache.verified(self.name, version) if substitute else None
            if release is None:
                release = self._loader.find(version)
                there = self._versions.get(version)
                if there is not None and there.release == release:
                    return self._switch(version)  # a roll-back to one that has not gone yet
                if there is not None:
                    there.since = -math.inf
                    raise NotReadyError(f"another release was called {version} and has to go first")
                self._loader.fetch(release)
            self._loader.load(release)
            with self._lock:
                self._versions[version] = _Version(release)
            self._switch(version)

    def _check(self) -> None:
        """Raise `_OvertakenError` where what is under way is not wanted any more."""
        if self._shared.ending.is_set() or self._shared.torchserve.generation != self._generation:
            raise _OvertakenError
        with self._lock:
            wanted = self._pointer.version if self._pointer else None
        if self._trying is not None and self._trying != wanted:
            raise _OvertakenError

    def _switch(self, version: str) -> None:
        """Let a version that was compared answer."""
        self._enter("switching", None, version)
        self._loader.api.set_default(version)
        self._shared.routes.switch(self.name, version)
        with self._lock:
            old, self._serving, self._ready = self._serving, version, self._shared.settings.workers
            if old in self._versions:
                self._versions[old].since = time.monotonic()
        self._settled = True
        with suppress(StorageError):  # a full disk must not keep it from serving
            self._shared.cache.note_served(self.name, version)
        if self._shared.metrics:
            self._shared.metrics.switched(self.name, "switched")
        self._tell_metrics()

    # --- old versions ----------------------------------------------------------------------------------------

    def _take_down(self) -> None:
        """Stop serving: that nothing is wanted is another thing than that nothing is known."""
        with self._lock:
            self._serving, self._ready = None, 0
            for each in self._versions.values():
                each.since = -math.inf
            self._fault = f"nothing is wanted: {self._pointer.reason}" if self._pointer else None

    def _retire(self) -> None:
        """Remove old versions that nobody asks for any more, when the last request is answered."""
        settings, routes, now = self._shared.settings, self._shared.routes, time.monotonic()
        with self._lock:
            old = sorted((each.since, version) for version, each in self._versions.items())
        old = [(since, version) for since, version in old if version != self._serving]
        for number, (since, version) in enumerate(old):
            asked = routes.last_asked(self.name, version)
            idle, kept = now - max(since, asked or since), now - since
            if idle < settings.linger and kept < settings.hold and len(old) - number <= MOST_KEPT:
                continue
            routes.close(self.name, version)
            if routes.busy(self.name, version) and kept < settings.hold + UNDER_WAY:
                continue
            self._remove(version)

    def _remove(self, version: str) -> None:
        """Unregister a version that gets no more requests, and forget releases that are not needed here."""
        self._enter("removing", None, version)
        try:
            self._loader.api.unregister(version)
        except ServingError as error:
            log.warning("cannot remove version %s: %s", version, error, extra={"model": self.name})
            return
        with self._lock:
            self._versions.pop(version, None)
            keep = {self._serving or "", *self._versions}
            if self._pointer:
                keep |= {self._pointer.version or "", self._pointer.previous or ""}
        self._shared.cache.prune(self.name, keep)
        self._tell_metrics()

    # --- telling ---------------------------------------------------------------------------------------------

    def _tell_metrics(self) -> None:
        if self._shared.metrics:
            self._shared.metrics.serves(self.name, list(self._versions), self._serving)

    def _settle(self) -> None:
        """Enter the state in which there is nothing more to do now."""
        with self._lock:
            failure, fault = self._failure, self._fault
            wanted = self._pointer.version if self._pointer else None
            old = set(self._versions) - {self._serving}
        self._settled = True
        if failure is not None and self._serving != wanted:
            state = "serving" if failure.state == "waiting" and self._serving else failure.state
            self._enter(state, f"version {wanted}: {failure.reason}")
        elif self._serving is None:
            self._enter("waiting", fault)
        else:
            self._enter("draining" if old else "serving", fault)

    def _enter(self, state: str, reason: str | None, version: str | None = None) -> None:
        """Note a state, and write a line about it where it is another."""
        version = version or self._serving
        with self._lock:
            if (state, reason) == (self._state, self._reason):
                return
            self._state, self._reason, self._since = state, reason, time.time()
        level = logging.WARNING if state == "refused" else logging.INFO
        text = f"{self.name}: {state}" + (f" {version}" if version else "") + (f": {reason}" if reason else "")
        log.log(level, "%s", text, extra={"model": self.name, "version": version, "state": state})
