"""Release stores made on the spot, and what goes wrong with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from rsp.serving.manifest import Golden, Precision, Release
from rsp.serving.releases import ReleaseStore
from rsp.shared.config import parse_config
from rsp.shared.learning.card import ModelCard
from rsp.shared.storage import Stat, Storage
from tests.tilesets import CONFIG

TILES = "a" * 64


def make_card(**fields: Any) -> ModelCard:
    """A card of tiles of 64 px, three bands and two classes; no network has it."""
    config = parse_config(tomllib.loads(CONFIG))
    known = {
        "nn": "unet", "encoder": "tiny", "num_filters": 8, "channels": config.channels, "classes": config.classes,
        "tile_size": 64, "overlap": 16, "metrics": {"iou": 0.8}, "validation": TILES,
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    return ModelCard(**{**known, **fields})


def publish(
    store: ReleaseStore, version: str, *, name: str = "roofs", model: bytes = b"", **fields: Any
) -> Release:
    """Publish a release whose model is text; nothing can load it."""
    files: dict[str, bytes | Path] = {
        "model.pt2": model or f"the model {version}".encode(),
        "golden/0.tif": b"a tile",
        "golden/0.png": b"its mask",
    }
    return store.publish(
        name, version, files, card=make_card(**fields), model="model.pt2", torch="2.13.0",
        golden=[Golden("golden/0.tif", "golden/0.png")], precision=Precision("float32", "cpu", "AVX2"),
    )  # fmt: skip


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of it runs on."""


class Watched(Storage):
    """A storage that notes each change, and may end the one who makes it, or refuse."""

    def __init__(self, inner: Storage, *, kill_at: int | None = None, honours: bool = True) -> None:
        self.inner, self.address, self.kill_at, self.honours = inner, inner.address, kill_at, honours
        self.changes: list[str] = []
        self.before_change: Any = lambda what, key: None

    def _change(self, what: str, key: str) -> None:
        self.before_change(what, key)
        if self.kill_at is not None and len(self.changes) >= self.kill_at:
            raise Killed(f"before change {len(self.changes)}: {what} {key}")
        self.changes.append(f"{what} {key}")

    def stat(self, key: str) -> Stat | None:
        return self.inner.stat(key)

    def read(self, key: str, *, limit: int = 64 << 20) -> tuple[bytes, Stat]:
        return self.inner.read(key, limit=limit)

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        return self.inner.read_range(key, start, length, etag=etag)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> Stat:
        return self.inner.download(key, path, sha256=sha256)

    def upload(self, key: str, path: Path) -> Stat:
        self._change("upload", key)
        return self.inner.upload(key, path)

    def upload_from(self, key: str, source: Any, size: int) -> Stat:
        self._change("upload", key)
        return self.inner.upload_from(key, source, size)

    def write(self, key: str, data: bytes) -> Stat:
        self._change("write", key)
        return self.inner.write(key, data)

    def write_if(self, key: str, data: bytes, *, etag: str | None) -> Stat:
        self._change("write_if", key)
        if not self.honours:
            return self.inner.write(key, data)
        return self.inner.write_if(key, data, etag=etag)

    def list(self, prefix: str = ""):
        return self.inner.list(prefix)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._change("delete", key)
            self.inner.delete(key)

    def honours_conditions(self) -> bool:
        return self.honours and self.inner.honours_conditions()


def contents(storage: Storage) -> dict[str, bytes]:
    """All objects of a store."""
    return {stat.key: storage.read(stat.key)[0] for stat in storage.list()}


def flip(storage: Storage, key: str) -> None:
    """Change one bit in the middle of an object."""
    data = bytearray(storage.read(key)[0])
    data[len(data) // 2] ^= 1
    storage.write(key, bytes(data))


def as_folder(path: Path) -> list[str]:
    """The files of a folder, without those that are hidden."""
    return sorted(
        str(each.relative_to(path)) for each in path.rglob("*") if each.is_file() and not each.name.startswith(".")
    )
