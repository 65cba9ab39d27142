"""Releases on this machine's disk: what a server starts from where the store cannot be reached."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from rsp.serving.manifest import NAME, Release, verify
from rsp.shared.atomic import atomic_text
from rsp.shared.errors import ReleaseError, StorageError

# Names the version that was verified, compared and served last.
SERVED = ".served"  # no version begins with a dot


class Cache:
    """A folder of fetched releases: `<name>/<version>/`, as `ReleaseReader.fetch` makes them.

    Args:
        folder: Where it is; made when the first release is fetched.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def place(self, name: str, version: str) -> Path:
        """Return the folder of a release, which need not be there."""
        return self.folder / name / version

    def verified(self, name: str, version: str) -> Release | None:
        """Return a release whose files have the right digests; None where it is not here, or is damaged."""
        with suppress(ReleaseError):
            release = verify(self.place(name, version))
            if (release.name, release.version) == (name, version):
                return release
        return None

    def note_served(self, name: str, version: str) -> None:
        """Note that a version serves."""
        with atomic_text(self.folder / name / SERVED) as file:
            file.write(f"{version}\n")

    def served(self, name: str) -> str | None:
        """Return the version that served last; None where none did, or the note is damaged."""
        try:
            text = (self.folder / name / SERVED).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if NAME.fullmatch(text) else None

    def prune(self, name: str, keep: set[str]) -> None:
        """Delete all releases of a name but some."""
        with suppress(OSError):
            for path in (self.folder / name).iterdir():
                if path.name not in keep and NAME.fullmatch(path.name) and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)


def default_cache(address: str) -> Path:
    """Return the folder for releases of a store where nobody names one: the user's cache, by the store's address.

    Where that cannot be written (a container with a read-only root), it is a temporary folder.
    """
    named = hashlib.sha256(address.encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if os.environ.get("HOME") else None)
    if home:
        folder = Path(home) / "rsp" / "releases" / named
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    try:
        return Path(tempfile.mkdtemp(prefix="rsp-releases-"))
    except OSError as error:
        raise StorageError(f"there is no folder for releases: {error.strerror}; name one with --cache") from error
