"""Reading a release store: which release of a name is wanted, and bringing it to the disk, checked.

<store>/<name>/pointer.json                            which version is wanted, and what was before
<store>/<name>/judgements.json                         what was judged about candidates, and why
<store>/<name>/releases/<version>/release.json         what the release is; written last
<store>/<name>/releases/<version>/<digest>/<files>     model, checkpoint, card, golden tiles and masks
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from glob import escape
from pathlib import Path
from tempfile import mkdtemp

from rsp.serving.judgements import JUDGEMENTS, Judgement, read_judgements
from rsp.serving.manifest import (
    MAX_MANIFEST,
    NAME,
    POINTER,
    RELEASE,
    Pointer,
    Release,
    check_name,
    measured,
    verify,
)
from rsp.shared.atomic import PREFIX, write_bytes
from rsp.shared.errors import NotFoundError, ReleaseError, StorageError
from rsp.shared.storage import Storage

# Seconds after which the folder of a fetch is that of one who was killed.
STALE = 24 * 3600.0


class ReleaseReader:
    """Reads a release store. It may be shared by threads.

    Args:
        storage: Where it is.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @property
    def address(self) -> str:
        """Where it is, without credentials."""
        return self.storage.address

    def names(self) -> list[str]:
        """Return the names that have a pointer, releases or judgements."""
        found = (stat.key.partition("/") for stat in self.storage.list())
        named = {name for name, _, rest in found if rest in (POINTER, JUDGEMENTS) or rest.startswith("releases/")}
        return sorted(filter(NAME.fullmatch, named))

    def pointer(self, name: str) -> Pointer | None:
        """Return what is wanted of a name; None where nothing ever was.

        Raises:
            ReleaseError: it is damaged.
            StorageError: the store cannot be reached.
        """
        key = self._pointer_key(name)
        try:
            text, stat = self.storage.read(key, limit=MAX_MANIFEST)
        except NotFoundError:
            return None
        pointer = Pointer.from_json(text, self._where(key), stat.etag)
        if pointer.name != name:
            raise ReleaseError(f"{self._where(key)} is the pointer of {pointer.name}")
        return pointer

    def judgements(self, name: str) -> list[Judgement]:
        """Return what was judged about candidates of a name, the newest last.

        Raises:
            ReleaseError: it is damaged.
            StorageError: the store cannot be reached.
        """
        return self._judgements(name)[0]

    def _judgements(self, name: str) -> tuple[list[Judgement], str | None]:
        """Return the same with the ETag of the file; None where there is none yet."""
        key = f"{check_name('name', name)}/{JUDGEMENTS}"
        try:
            text, stat = self.storage.read(key, limit=MAX_MANIFEST)
        except NotFoundError:
            return [], None
        return read_judgements(text, self._where(key)), stat.etag

    def current(self, name: str) -> Release | None:
        """Return the release that is wanted of a name; None where nothing is.

        Raises:
            ReleaseError: pointer or release are damaged, or the release is not there.
            StorageError: the store cannot be reached.
        """
        pointer = self.pointer(name)
        return None if pointer is None or pointer.version is None else self.release(name, pointer.version)

    def release(self, name: str, version: str) -> Release:
        """Return a release.

        Raises:
            ReleaseError: there is none, or it is damaged.
            StorageError: the store cannot be reached.
        """
        release = self._find(name, version)
        if release is None:
            raise ReleaseError(f"there is no release {version} of {name} in {self.address}{self._hint(name)}")
        return release

    def releases(self, name: str) -> dict[str, Release | ReleaseError]:
        """Return all releases of a name by their version, and for a damaged one what is wrong with it."""
        found: dict[str, Release | ReleaseError] = {}
        for version in self._versions(name):
            try:
                found[version] = self.release(name, version)
            except ReleaseError as error:
                found[version] = error
        return found

    def fetch(self, name: str, version: str, folder: Path) -> Release:
        """Bring a release to the disk and check every digest of it.

        Args:
            name: Of the model.
            version: Of the model.
            folder: Appears when all is there and right; one that is there already is checked, and replaced where
                it is damaged or another release.

        Raises:
            ReleaseError: there is no such release, or a file is missing or is not what the release says.
            StorageError: the store cannot be reached, or the disk refuses.
        """
        release = self.release(name, version)
        with suppress(ReleaseError):
            if verify(folder).to_json() == release.to_json():
                return release
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _forget_killed(folder)
            if (free := shutil.disk_usage(folder.parent).free) < release.size:
                raise StorageError(
                    f"release {version} of {name} has {release.size} bytes, and {folder.parent} has {free} left"
                )
            fresh = Path(mkdtemp(prefix=f"{PREFIX}{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise StorageError(f"cannot make a folder in {folder.parent}: {error.strerror}") from error
        try:
            for path in release.files:
                self._download(release, path, fresh / path)
            write_bytes(fresh / RELEASE, release.to_json())
            _replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return release

    def where(self, release: Release, path: str) -> str:
        """Return where a file of a release is: an address, or a path."""
        return self._where(self._key(release, path))

    def read(self, release: Release, path: str) -> bytes:
        """Return a small file of a release, checked.

        Raises:
            ReleaseError: it is missing, or is not what the release says.
            StorageError: the store cannot be reached, or the file is large.
        """
        key, wanted = self._key(release, path), release.files[path]
        try:
            data, _ = self.storage.read(key, limit=MAX_MANIFEST)
        except NotFoundError:
            raise ReleaseError(f"{self._where(key)} is missing, so the release is not whole") from None
        if measured(data) != wanted:
            raise ReleaseError(f"{self._where(key)} is not what its release says: it is damaged")
        return data

    def _download(self, release: Release, path: str, target: Path) -> None:
        key, wanted = self._key(release, path), release.files[path]
        stat = self.storage.stat(key)
        if stat is None:
            raise ReleaseError(f"{self._where(key)} is missing, so the release is not whole")
        # Not a byte more is brought here than the release says.
        if stat.size != wanted.size:
            raise ReleaseError(
                f"{self._where(key)} has {stat.size} bytes, its release says {wanted.size}: it is damaged"
            )
        try:
            self.storage.download(key, target)
        except NotFoundError:
            raise ReleaseError(f"{self._where(key)} is missing, so the release is not whole") from None
        if measured(target) != wanted:
            raise ReleaseError(
                f"{self._where(key)} has another SHA-256 digest than its release says: it is damaged"
            )

    def _find(self, name: str, version: str) -> Release | None:
        key = self._release_key(name, version)
        try:
            text, _ = self.storage.read(key, limit=MAX_MANIFEST)
        except NotFoundError:
            return None
        release = Release.from_json(text, self._where(key))
        if (release.name, release.version) != (name, version):
            raise ReleaseError(f"{self._where(key)} is the release {release.version} of {release.name}")
        return release

    def _versions(self, name: str, *, unfinished: bool = False) -> list[str]:
        """Return the versions that have a `release.json`, or, with `unfinished`, anything at all."""
        base = f"{check_name('name', name)}/releases/"
        found = (stat.key[len(base) :].partition("/") for stat in self.storage.list(base))
        versions = {version for version, _, rest in found if rest == RELEASE or (unfinished and rest)}
        return sorted(filter(NAME.fullmatch, versions))

    def _hint(self, name: str) -> str:
        versions = self._versions(name)
        if versions:
            return f"; there are {', '.join(versions[:10])}"
        names = self.names()
        return f"; it has {', '.join(names[:10])}" if names else ", which is empty"

    def _base(self, name: str, version: str) -> str:
        return f"{check_name('name', name)}/releases/{check_name('version', version)}"

    def _release_key(self, name: str, version: str) -> str:
        return f"{self._base(name, version)}/{RELEASE}"

    def _key(self, release: Release, path: str) -> str:
        return f"{self._base(release.name, release.version)}/{release.folder}/{path}"

    def _pointer_key(self, name: str) -> str:
        return f"{check_name('name', name)}/{POINTER}"

    def _where(self, key: str) -> str:
        return f"{self.address.rstrip('/')}/{key}"


def _forget_killed(folder: Path) -> None:
    """Remove what fetches into a folder left that were killed long ago."""
    for left in folder.parent.glob(f"{escape(PREFIX + folder.name)}-*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _replace(fresh: Path, folder: Path) -> None:
    """Put a finished folder in its place; what was there goes."""
    try:
        old = fresh.with_name(f"{fresh.name}.old")
        if folder.exists() or folder.is_symlink():
            folder.rename(old)
        fresh.chmod(0o755)
        fresh.rename(folder)
    except OSError as error:
        raise StorageError(f"cannot put the release at {folder}: {error.strerror}") from error
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)
