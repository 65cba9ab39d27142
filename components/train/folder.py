"""Where a training writes: a folder, or one for the time being whose files go to S3 after every epoch."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from rsp.components.train.history import LAST, LOG, STATE
from rsp.shared.atomic import atomic_path
from rsp.shared.errors import StorageError
from rsp.shared.locations import Address, Location, exists, fetched


class OutFolder:
    """A folder to write to, for one training.

    Args:
        where: Where the results are to be.

    Attributes:
        path: The folder on this machine. With an address in S3 it is a temporary one.
    """

    def __init__(self, where: Location) -> None:
        self.where = where
        self._sent: dict[str, tuple[int, int]] = {}
        if isinstance(where, Path):
            self.path = where.expanduser()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"cannot make the folder {self.path}: {error.strerror}") from error
            return
        self.path = Path(mkdtemp(prefix="rsp-train-"))
        if exists(where / LOG):  # it is appended to
            shutil.copyfile(fetched(where / LOG), self.path / LOG)

    def publish(self) -> None:
        """Upload what has changed, the state last: what it describes is there then.

        Links are left out: S3 has none.
        """
        if isinstance(self.where, Path):
            return
        for path in sorted(self.path.iterdir(), key=lambda path: (path.name == STATE, path.name)):
            if path.is_symlink() or path.name.startswith("."):
                continue
            status = path.stat()
            now = status.st_mtime_ns, status.st_size
            if self._sent.get(path.name) != now:
                storage, key = (self.where / path.name).open()
                storage.upload(key, path)
                self._sent[path.name] = now

    def __enter__(self) -> OutFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Upload the log, and remove the temporary folder.

        Nothing is raised: what matters was uploaded with its epoch.
        """
        if isinstance(self.where, Address):
            with suppress(StorageError):
                log = self.path / LOG
                if log.exists():
                    storage, key = (self.where / LOG).open()
                    storage.upload(key, log)
            shutil.rmtree(self.path, ignore_errors=True)


def link_checkpoint(out: Path, epoch: int, epochs: int) -> None:
    """Offer the last checkpoint under the name that the seed gave it, `checkpoint-00003-of-00010.pth`.

    It is a link to `last.safetensors` (a copy where the file system has no links). Links to earlier epochs go,
    as what they name is kept no more.
    """
    path = out / f"checkpoint-{epoch:05d}-of-{epochs:05d}.pth"
    with atomic_path(path) as temporary:
        try:
            temporary.symlink_to(LAST)
        except (OSError, NotImplementedError):
            shutil.copyfile(out / LAST, temporary)
    for old in out.glob("checkpoint-?????-of-?????.pth"):
        if old != path:
            old.unlink()
