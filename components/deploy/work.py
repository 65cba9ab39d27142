"""A deployment step by step: publish, move the pointer, wait for the servers, move back where one cannot."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rsp.components.deploy.checks import another_question, warn, worse
from rsp.components.deploy.replicas import Replica, Replicas
from rsp.components.deploy.verdict import Order
from rsp.serving.manifest import Pointer, Release, check_name, measured, sha8
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import ConflictError, ModelError, ReleaseError, RspError, ServingError, StorageError
from rsp.shared.locations import Location

# What a model is called in a release, by its form.
NAMES = {"checkpoint": "model.safetensors", "onnx": "model.onnx", "jit": "model.pt", "pt2": "model.pt2"}
CHECKPOINT = "checkpoint.safetensors"


class Deployment:
    """The way of one name from what is wanted to something else.

    Args:
        store: The release store.
        name: Of the model.
        replicas: Whom to wait for; without addresses nobody.
        timeout: Seconds until all of them must serve it.

    Attributes:
        before: The pointer as it was at the beginning. Whoever moves it later has won.
        seconds: How long each step took.
    """

    def __init__(self, store: ReleaseStore, name: str, replicas: Replicas, timeout: float) -> None:
        self.store, self.name, self.replicas, self.timeout = store, name, replicas, timeout
        self.seconds: dict[str, float] = {}
        with self._step("look"):
            self.before = store.pointer(name)
            if replicas.urls:
                replicas.check()

    @property
    def now(self) -> str:
        """What is wanted as long as nothing is changed, in words."""
        version = None if self.before is None else self.before.version
        return (
            f"version {version} of {self.name} is wanted as before" if version else "nothing is wanted as before"
        )

    def publish(
        self,
        model: Path,
        version: str,
        checkpoint: Path | None,
        golden: Location | None,
        *,
        force: bool,
        trust: bool,
        verdict: Order | None = None,
    ) -> str:
        """Put a model into the store, after it was compared with the current release; returns its version.

        With a verdict both were measured on the same tiles, so the IoUs that they recorded are not asked.
        """
        version = check_name("version", version or sha8(model))
        current = self._current()
        if verdict is not None:
            with self._refused():
                verdict.check(measured(model).sha256, version, self.before, current)
        if current is not None and self._is_whole(current, version, model, checkpoint):
            return version
        # From here on torch is needed.
        from torch import __version__ as torch_version

        from rsp.components.deploy.golden import golden_tiles
        from rsp.shared.learning.formats import read_model_card, sniff

        with self._refused():
            with self._step("compare"):
                card = read_model_card(model)
                if checkpoint is not None:
                    if sniff(checkpoint) != "checkpoint":
                        raise ModelError(
                            f"{checkpoint} is an exported model; --checkpoint takes what it was made of"
                        )
                    if card.uuid != read_model_card(checkpoint).uuid:
                        raise ModelError(f"the model {model} was not made of the checkpoint {checkpoint}")
                if current is not None and not force and measured(model) != current.files[current.model]:
                    problem = another_question(card, current) or (None if verdict else worse(card, current))
                    if problem:
                        raise ServingError(problem)
            with self._step("golden tiles"):
                files, pairs, precision = golden_tiles(model, golden, trust_model=trust)
            with self._step("publish"):
                path = NAMES[sniff(model)]
                self.store.publish(
                    self.name,
                    version,
                    {path: model, **({CHECKPOINT: checkpoint} if checkpoint else {}), **files},
                    card=card,
                    model=path,
                    torch=str(torch_version).partition("+")[0],
                    checkpoint=CHECKPOINT if checkpoint else None,
                    golden=pairs,
                    precision=precision,
                )
        return version

    def earlier(self, version: str) -> str:
        """Return which version to go back to: the one that is named, or the one before."""
        if self.before is None:
            raise ReleaseError(
                f"there is no pointer of {self.name} in {self.store.address}, so nothing to go back from"
            )
        version = version or self.before.previous or ""
        if not version:
            raise ReleaseError(f"{self.name} had no other version than {self.before.version} before")
        self.store.release(self.name, check_name("version", version))
        return version

    def switch(self, version: str, reason: str) -> tuple[bool, list[Replica]]:
        """Move the pointer and wait for the servers.

        Returns:
            Whether it was moved, and the servers that serve the version.

        Raises:
            ServingError: a server cannot; the pointer is back where it was.
            ConflictError: somebody else moved the pointer.
        """
        before = self.before
        if before is not None and before.version == version:
            try:
                return False, self._wait(version, before)
            except ServingError as error:
                raise ServingError(
                    f"version {version} of {self.name} has been wanted since {before.moved}, but {error}"
                ) from error
        with self._step("switch"):
            moved = self.store.move(self.name, version, expected=before, reason=reason)
        try:
            return True, self._wait(version, moved)
        except ConflictError:
            raise  # it is somebody else's now
        except BaseException as error:
            # Ctrl-C, too: who gave up waiting does not want what nobody knows to serve.
            said = self._undo(moved, str(error) if isinstance(error, RspError) else type(error).__name__)
            if isinstance(error, RspError):
                raise ServingError(f"not deployed, {said}: {error}") from error
            print(f"deploy: {said}", file=sys.stderr, flush=True)
            raise

    def prune(self, keep: int) -> list[str]:
        """Delete old releases. What was deployed is deployed: a failure here is a warning."""
        try:
            with self._step("prune"):
                return self.store.prune(self.name, keep)
        except RspError as error:
            warn(f"old releases were not removed: {error}")
            return []

    def _current(self) -> Release | None:
        """Return the release that is wanted now; None where there is none to compare with."""
        if self.before is None or self.before.version is None:
            return None
        try:
            return self.store.release(self.name, self.before.version)
        except ReleaseError as error:
            warn(f"the new model is not compared with the current release: {error}")
            return None

    def _is_whole(self, current: Release, version: str, model: Path, checkpoint: Path | None) -> bool:
        """Tell whether a model is the current release already, and nothing of that is missing."""
        if current.version != version or measured(model) != current.files[current.model]:
            return False
        if checkpoint is not None and (
            current.checkpoint is None or measured(checkpoint) != current.files[current.checkpoint]
        ):
            return False
        return not self.store.missing(current)

    def _wait(self, version: str, pointer: Pointer) -> list[Replica]:
        if not self.replicas.urls:
            print("deploy: nobody was waited for; --status URL waits until servers serve it", file=sys.stderr)
            return []
        with self._step("wait"):
            return self.replicas.wait(version, self.timeout, self._watch(pointer))

    def _watch(self, pointer: Pointer) -> Callable[[], None]:
        """Return what raises once somebody else has moved the pointer."""

        def watch() -> None:
            try:
                found = self.store.pointer(self.name)
            except StorageError:
                return  # servers may still fetch, or have fetched; the time limit holds
            if found is None or found.serial != pointer.serial or found != pointer:
                to = "deleted it" if found is None else f"moved it to {found.version} ({found.reason})"
                raise ConflictError(
                    f"the pointer of {self.name} wanted {pointer.version}, and while servers loaded that, "
                    f"somebody else {to}"
                )

        return watch

    def _undo(self, moved: Pointer, reason: str) -> str:
        """Move the pointer back; returns what is wanted now, in words."""
        try:
            self.store.move_back(moved, self.before, f"{moved.version} was not deployed: {reason}")
        except ConflictError as error:
            return f"and not undone: {error}"
        except RspError as error:
            return (
                f"and version {moved.version} of {self.name} is still wanted, since the pointer could not be "
                f"moved back ({error}); try --rollback"
            )
        return self.now.replace("as before", "again")

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Say of an error that nothing was changed."""
        try:
            yield
        except RspError as error:
            raise type(error)(f"not deployed, {self.now}: {error}") from error

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Measure a step and say that it is done."""
        start = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - start, 3)
        print(f"deploy: {what}: {self.seconds[what]:.1f} s", file=sys.stderr, flush=True)
