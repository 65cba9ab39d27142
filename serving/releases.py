"""The release store: all models that may be served, and for each name a pointer to the one that is wanted.

`rsp.serving.reader` shows how it is laid out. A version without a `release.json` is no release: somebody publishes
it at this moment, or was killed while they did. Pointers are moved by compare-and-swap, so of two who deploy at
once one wins and the other is told. Nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rsp import __version__
from rsp.serving.judgements import JUDGEMENTS, Judgement, read_judgements, write_judgements
from rsp.serving.manifest import (
    HISTORY,
    MARK,
    MAX_GOLDEN,
    MAX_REASON,
    RELEASE,
    Golden,
    Move,
    Pointer,
    Precision,
    Release,
    check_name,
    measured,
    noted,
    seconds_of,
    verify,
)
from rsp.serving.reader import ReleaseReader
from rsp.shared.errors import ConflictError, NotFoundError, ReleaseError, StorageError
from rsp.shared.learning.card import ModelCard
from rsp.shared.storage import Storage

__all__ = ["Golden", "Move", "Pointer", "Precision", "Release", "ReleaseReader", "ReleaseStore", "verify"]

# Seconds for which an unfinished release, or one that no pointer has named yet, is somebody's work under way.
GRACE = 24 * 3600.0
# How often a judgement is added to what others have written meanwhile.
NOTES = 10


class ReleaseStore(ReleaseReader):
    """Reads and writes a release store. It may be shared by threads.

    Args:
        storage: Where it is.
        single_writer: Write even where the server ignores conditions. Only for who is sure that nobody else
            deploys at the same time.
        clock: Seconds since 1970.
    """

    def __init__(
        self, storage: Storage, *, single_writer: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(storage)
        self.single_writer, self._clock = single_writer, clock

    def publish(
        self,
        name: str,
        version: str,
        files: Mapping[str, Path | bytes],
        *,
        card: ModelCard,
        model: str,
        torch: str,
        checkpoint: str | None = None,
        golden: Sequence[Golden] = (),
        precision: Precision | None = None,
    ) -> Release:
        """Put a release into the store. Nobody serves it before a pointer names it.

        Killed half way, it leaves no release. Called again with the same model it finds what is there, and adds
        what is missing.

        Args:
            name: Of the model.
            version: Of the model.
            files: What to store, by the path within the release.
            card: The card of the model; stored as `card.json`.
            model: The path of the model among the files.
            torch: The version of torch that made the golden masks.
            checkpoint: The path of the checkpoint among the files.
            golden: Paths of tiles and their masks among the files.
            precision: How the masks were computed.

        Returns:
            The release, or, where the same model is there under this version, that one.

        Raises:
            ReleaseError: this version is another model, or is damaged; a name, path or size out of bounds; a file
                changed while it was read.
            StorageError: the store refuses, or the server ignores conditions.
        """
        check_name("name", name)
        check_name("version", version)
        self._check_conditions()
        contents: dict[str, Path | bytes] = {**files, "card.json": card.to_json().encode()}
        if len(golden) > MAX_GOLDEN:
            raise ReleaseError(f"a release has at most {MAX_GOLDEN} golden tiles, got {len(golden)}")
        release = Release(
            name=name,
            version=version,
            created=noted(self._clock()),
            rsp=__version__,
            torch=torch,
            model=model,
            card="card.json",
            precision=precision or Precision(),
            bands=bands_of(card),
            classes=tuple(entry.title for entry in card.classes),
            tile_size=card.tile_size,
            overlap=card.overlap,
            files={path: measured(content) for path, content in contents.items()},
            value_type=value_type_of(card),
            metrics=card.metrics,
            validation=card.validation,
            golden=tuple(golden),
            checkpoint=checkpoint,
        )
        # What cannot be read back must not be written.
        Release.from_json(release.to_json(), f"the release {version} of {name}")
        there = self._find(name, version)
        if there is not None:
            self._check_same(there, release)
            missing = self.missing(there)
            if missing and there.folder != release.folder:
                raise ReleaseError(
                    f"{missing[0]} of the release {version} of {name} is missing in {self.address}: deploy the "
                    "model under another --version"
                )
            if missing:
                self._fill(release, {path: contents[path] for path in missing})
            return there
        mark = f"{self._base(name, version)}/{release.folder}/{MARK}"
        self.storage.write(mark, noted(self._clock()).encode())
        self._fill(release, contents)
        try:
            self._write_if(self._release_key(name, version), release.to_json(), etag=None)
        except ConflictError:
            there = self.release(name, version)
            if there.folder != release.folder:
                self._delete(f"{self._base(name, version)}/{release.folder}/")
            self._check_same(there, release)
            return there
        self.storage.delete(mark)
        return release

    def move(self, name: str, version: str, *, expected: Pointer | None, reason: str) -> Pointer:
        """Let a name want another version.

        Args:
            name: Of the model.
            version: What is wanted from now on; it has to be there.
            expected: The pointer as the caller knows it; None where there was none.
            reason: Why, for those who look at the history.

        Returns:
            The pointer as it is now.

        Raises:
            ReleaseError: there is no such release.
            ConflictError: somebody else has moved it.
            StorageError: the store refuses, or the server ignores conditions.
        """
        self.release(name, version)
        history: tuple[Move, ...] = ()
        if expected is not None:
            history = (Move(expected.version, expected.moved, expected.reason), *expected.history)
        moved = self._swap(name, version, expected, reason, history)
        if self.storage.stat(self._release_key(name, version)) is None:
            # Somebody cleaned up between our look and the move.
            self.move_back(moved, expected, f"the release {version} was deleted")
            raise ReleaseError(
                f"the release {version} of {name} was deleted while the pointer moved to it: deploy it again"
            )
        return moved

    def move_back(self, moved: Pointer, before: Pointer | None, reason: str) -> Pointer:
        """Undo a move: what was wanted before is wanted again, and what was undone is not part of the history.

        Args:
            moved: As `move` returned it.
            before: As it was before; where it was None, nothing is wanted now.
            reason: Why.

        Raises:
            ConflictError: somebody else has moved it since.
            StorageError: the store refuses.
        """
        version, history = (None, ()) if before is None else (before.version, before.history)
        return self._swap(moved.name, version, moved, reason, history)

    def note(self, name: str, judgement: Judgement) -> None:
        """Remember what was judged about a candidate. The oldest of `KEPT` go.

        Args:
            name: Of the model.
            judgement: What was judged.

        Raises:
            ReleaseError: what is remembered is damaged, or the judgement itself is out of bounds.
            ConflictError: others note theirs again and again.
            StorageError: the store refuses, or the server ignores conditions.
        """
        self._check_conditions()
        key = f"{check_name('name', name)}/{JUDGEMENTS}"
        # What cannot be read back must not be written.
        read_judgements(write_judgements([judgement]), f"a judgement about {name}")
        for _ in range(NOTES):
            known, etag = self._judgements(name)
            if judgement in known:
                return  # a write whose answer was lost is tried again, and then meets itself
            with suppress(ConflictError):
                self._write_if(key, write_judgements([*known, judgement]), etag=etag)
                return
        raise ConflictError(f"{self._where(key)} was changed by others {NOTES} times in a row")

    def prune(self, name: str, keep: int) -> list[str]:
        """Delete releases that nobody needs, and what was left by those who were killed.

        What the pointer names stays, what it named before, and what somebody may be about to deploy.

        Args:
            name: Of the model.
            keep: How many releases of the history to keep, the current one included.

        Returns:
            The versions that were deleted.

        Raises:
            ReleaseError: the pointer is damaged.
            StorageError: the store refuses.
        """
        pointer = self.pointer(name)
        if pointer is None:
            return []
        self._check_conditions()
        known = {move.version for move in pointer.history}
        removed = []
        for version in self._versions(name, unfinished=True):
            try:
                release = self._find(name, version)
            except ReleaseError:
                continue  # `releases` tells of it; nobody knows how old it is
            named = release is not None and version in known
            if release is None or version in pointer.kept(keep) or (not named and self._is_young(release.created)):
                self._sweep(name, version, release)
            elif self._remove(release):
                removed.append(version)
        return removed

    def _remove(self, release: Release) -> bool:
        """Delete a release, unless somebody moves the pointer to it at this moment."""
        key = self._release_key(release.name, release.version)
        self.storage.delete(key)
        # `move` looks for the release after it has moved: either it misses it there, or we see the move here.
        pointer = self.pointer(release.name)
        if pointer is not None and release.version in (pointer.version, pointer.previous):
            with suppress(ConflictError):
                self._write_if(key, release.to_json(), etag=None)
            return False
        self._sweep(release.name, release.version, None)
        return True

    def _sweep(self, name: str, version: str, release: Release | None) -> None:
        """Delete folders of a version that its release does not name and nobody fills at this moment."""
        base = self._base(name, version)
        folders = {stat.key[len(base) + 1 :].partition("/")[0] for stat in self.storage.list(f"{base}/")}
        for folder in sorted(folders - {RELEASE, release.folder if release else ""}):
            try:
                began, _ = self.storage.read(f"{base}/{folder}/{MARK}", limit=100)
            except NotFoundError:
                began = b""
            if began and self._is_young(began.decode("ascii", "replace")):
                continue
            # The mark goes when the release is there, so look once more.
            there = self._find(name, version)
            if there is None or there.folder != folder:
                self._delete(f"{base}/{folder}/")

    def _is_young(self, moment: str) -> bool:
        try:
            return self._clock() - seconds_of(moment) < GRACE
        except ValueError:
            return False

    def _fill(self, release: Release, contents: Mapping[str, Path | bytes]) -> None:
        """Store files of a release."""
        for path, content in contents.items():
            key = self._key(release, path)
            stat = (
                self.storage.write(key, content)
                if isinstance(content, bytes)
                else self.storage.upload(key, content)
            )
            # A model that is being written to would be a release that no server accepts.
            if isinstance(content, Path) and measured(content) != release.files[path]:
                raise ReleaseError(f"{content} changed while it was published; publish it when it is finished")
            if stat.size != release.files[path].size:
                raise ReleaseError(f"{self._where(key)} has {stat.size} bytes after {path} was stored there")

    def _swap(
        self, name: str, version: str | None, expected: Pointer | None, reason: str, history: tuple[Move, ...]
    ) -> Pointer:
        """Write the pointer where it still is the expected one."""
        self._check_conditions()
        key = self._pointer_key(name)
        wanted = Pointer(
            name=name,
            version=version,
            serial=1 if expected is None else expected.serial + 1,
            moved=noted(self._clock()),
            reason=cut(reason),
            history=history[:HISTORY],
        )
        text = wanted.to_json()
        try:
            etag = self._write_if(key, text, etag=None if expected is None else expected.etag)
        except ConflictError:
            found = self.pointer(name)
            # A write whose answer was lost is tried again, and then meets itself.
            if found == wanted:
                return found
            what = "gone" if found is None else f"at {found.version} (move {found.serial}: {found.reason})"
            raise ConflictError(
                f"somebody else moved the pointer of {name} in {self.address} at the same time; it is {what}"
            ) from None
        return replace(wanted, etag=etag)

    def _write_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        if self.storage.honours_conditions():
            return self.storage.write_if(key, data, etag=etag).etag
        # One writer, as the caller said; what others did before is still seen.
        found = self.storage.stat(key)
        if (found and found.etag) != etag:
            raise ConflictError(f"{self._where(key)} was changed by somebody else")
        return self.storage.write(key, data).etag

    def _check_conditions(self) -> None:
        if not self.single_writer and not self.storage.honours_conditions():
            raise StorageError(
                f"the server of {self.address} ignores the conditions of a write (If-Match), so two who deploy at "
                "once would not notice each other; with --single_writer you say that nobody else deploys there"
            )

    def _check_same(self, there: Release, wanted: Release) -> None:
        """Refuse to take one model for another under one version."""
        where = f"version {wanted.version} of {wanted.name} in {self.address}"
        for what, ours, theirs in (
            ("model", wanted.model, there.model),
            ("checkpoint", wanted.checkpoint, there.checkpoint),
        ):
            if ours is None:
                continue
            if theirs is None:
                raise ReleaseError(f"{where} was published without its {what}; give another --version")
            if wanted.files[ours].sha256 != there.files[theirs].sha256:
                raise ReleaseError(f"{where} is another {what}; give another --version, or leave it out")

    def missing(self, release: Release) -> list[str]:
        """Return the files that are not there, or have another size."""
        sizes = {stat.key: stat.size for stat in self.storage.list(self._key(release, ""))}
        return [path for path, file in release.files.items() if sizes.get(self._key(release, path)) != file.size]

    def _delete(self, prefix: str) -> None:
        self.storage.delete(*[stat.key for stat in self.storage.list(prefix)])


def cut(reason: str) -> str:
    """Return a reason as the store keeps it."""
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."


def bands_of(card: ModelCard) -> tuple[str, ...]:
    """Return what each channel of a model takes, as `images 1-2-3`."""
    return tuple(f"{channel.name} {'-'.join(map(str, channel.bands))}" for channel in card.channels)


def value_type_of(card: ModelCard) -> str | None:
    """Return the type of the values that a model takes; None where it is not known, or channels differ."""
    kinds = {channel.value_type for channel in card.channels}
    return kinds.pop() if len(kinds) == 1 else None
