"""Brings one release from the store to the workers of TorchServe, up to the masks being right."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from rsp.serving import failures
from rsp.serving.archive import archive_name, write_archive
from rsp.serving.cache import Cache
from rsp.serving.golden import compare
from rsp.serving.management import Management
from rsp.serving.manifest import Release
from rsp.serving.reader import ReleaseReader
from rsp.serving.routes import Routes
from rsp.serving.torchserve import TorchServe
from rsp.shared.errors import ServingError, StorageError

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a server follows.

    Attributes:
        workers: Worker processes of each model.
        poll: Seconds between two looks at the pointers.
        linger: Seconds without a request that asks for an old version by its name, after which it goes.
        hold: The longest, in seconds, that an old version is kept for those who ask for it.
        timeout: Seconds until a worker must have loaded a model, and for one golden tile.
        precision: What workers compute in, as `bfloat16`; as model-config.yaml says if None.
    """

    workers: int = 1
    poll: float = 2.0
    linger: float = 30.0
    hold: float = 3600.0
    timeout: float = 120.0
    precision: str | None = None


@dataclass
class Shared:
    """What the switches of one server have in common."""

    store: ReleaseReader
    torchserve: TorchServe
    routes: Routes
    cache: Cache
    settings: Settings
    ending: threading.Event
    metrics: Metrics | None = None
    # Only one name at a time loads models: the workers of the others have to answer meanwhile.
    turn: threading.Lock = field(default_factory=threading.Lock)


class Loader:
    """Loads releases of one name into one start of TorchServe.

    Args:
        name: The model.
        shared: What the names of a server have in common.
        enter: Is told each state, a reason, and the version.
        check: Raises, between two steps, where what is under way is not wanted any more.
    """

    def __init__(
        self,
        name: str,
        shared: Shared,
        enter: Callable[[str, str | None, str | None], None],
        check: Callable[[], None],
    ) -> None:
        self.name, self._shared, self._enter, self._check = name, shared, enter, check
        self.api = Management(shared.torchserve.management, name, shared.settings.timeout)
        self.generation = shared.torchserve.generation

    def lives(self) -> bool:
        """Tell whether TorchServe answers, and is the one that it was."""
        server = self._shared.torchserve
        return server.generation == self.generation and server.answers()

    def find(self, version: str) -> Release:
        """Return a release of the store that this server can serve.

        Raises:
            StorageError: the store does not answer.
            ReleaseError, ServingError: there is none, or it was made with another torch.
        """
        self._enter("fetching", None, version)
        release = self._shared.store.release(self.name, version)
        _check_torch(release)
        return release

    def fetch(self, release: Release) -> None:
        """Bring the files of a release to the disk, and check them there.

        Raises:
            StorageError: the store does not answer, or the disk refuses.
            ReleaseError: a file is not what the release says.
        """
        place = self._shared.cache.place(self.name, release.version)
        self._shared.store.fetch(self.name, release.version, place)
        self._check()
        self._enter("verifying", None, release.version)
        if self._shared.cache.verified(self.name, release.version) != release:
            raise StorageError(f"the files of the release at {place} changed")

    def load(self, release: Release) -> None:
        """Register a release of the disk with one worker, compare what it answers, and start the other workers.

        Raises:
            StorageError: the disk refuses.
            ServingError: it was made with another torch, cannot be loaded, or answers with other masks. TorchServe
                has as much of it as before.
        """
        _check_torch(release)
        place = self._shared.cache.place(self.name, release.version)
        archive = self._shared.torchserve.model_store / archive_name(
            place / release.model, self.name, release.version
        )
        try:
            self._load(release, place, archive)
        except BaseException:
            self._take_back(release.version)
            raise
        finally:
            # TorchServe has a copy, and this one is made again where it is needed.
            with suppress(OSError):
                archive.unlink(missing_ok=True)

    def _load(self, release: Release, place: Path, archive: Path) -> None:
        version, settings, server = release.version, self._shared.settings, self._shared.torchserve
        self._enter("archiving", None, version)
        write_archive(
            place / release.model, archive, name=self.name, version=version,
            description=f"release {version} of {self.name}: {', '.join(release.classes)}",
            precision=settings.precision,
        )  # fmt: skip
        self._check()
        self._enter("registering", None, version)
        failures.failure_note(server.model_store, self.name, version).unlink(missing_ok=True)
        if version in self.api.versions():
            self.api.unregister(version)  # of a try whose end was not seen
        self.api.register(archive.name, 1)
        self._enter("loading", None, version)
        self._wait_ready(version)
        self._enter("comparing", None, version)
        compare(release, place, server.inference, settings.timeout)
        # One after the other: importing torch takes as much of the processor as it gets, and the old version's
        # workers need theirs.
        for workers in range(2, settings.workers + 1):
            self._check()
            self._enter("loading", f"worker {workers} of {settings.workers}", version)
            self.api.scale(version, workers)
            self._wait_ready(version)
        self._check()

    def _wait_ready(self, version: str) -> None:
        store = self._shared.torchserve.model_store
        self.api.wait_ready(version, lambda: failures.read_failure(store, self.name, version), self._check)

    def _take_back(self, version: str) -> None:
        """Undo what `load` has begun."""
        if self._shared.ending.is_set() or not self.lives():
            return
        try:
            if version in self.api.versions():
                self.api.unregister(version)
        except ServingError as error:
            log.warning("cannot take version %s back: %s", version, error, extra={"model": self.name})


def _check_torch(release: Release) -> None:
    """Raise `ServingError` where this server's torch is not the one that made the release."""
    here = installed_version("torch")
    if release.torch.split(".")[:2] != here.split(".")[:2]:
        raise ServingError(
            f"the release was made with torch {release.torch}, this server has {here}; export it with torch "
            f"{here}, or serve it with torch {release.torch}"
        )
