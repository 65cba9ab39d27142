"""Data by reference: what the bodies of the components need for tile sets in S3. It imports no kfp.

With a `data_root` a step writes its tile set to `{data_root}/{tool}/{key}.pmtiles`; the key is a digest of all
that decides the content. Beside it, `{key}.json` says that the step has ended and what it counted: whoever wants
the same again is answered from there. The next step gets the text `s3://...#etag`, so that KFP's cache sees
contents; the artifact is a small JSON with the address, which keeps the lineage visible in the UI.

Without a `data_root` the artifact is the tile set itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from rsp.components.artifacts import counts, describe, list_failed, named, refuse_failures, share_failed
from rsp.shared.atomic import write_bytes
from rsp.shared.dataroot import result_key, root_of, touch
from rsp.shared.errors import NotFoundError, UsageError
from rsp.shared.locations import Address, Location, etag_of, is_address, location, pinned
from rsp.shared.report import Result
from rsp.shared.storage import Storage
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, read_side

# Raise it where a tool writes something else for the same inputs: what is in data roots is then made again.
FORMAT = 1


def given(artifact: Any, text: str = "", name: str = "an input") -> Location:
    """Return where an input is that a component was given as an artifact or as a text.

    Args:
        artifact: The artifact, None where there is none. One that refers to an address stands for the address.
        text: A path or `s3://bucket/key#etag`; empty where the artifact was given.
        name: What messages call the input.

    Raises:
        UsageError: both were given, or neither.
    """
    if bool(artifact) == bool(text):
        raise UsageError(f"{'both' if text else 'neither'} of {name} and {name}_at given; expected one of the two")
    if text:
        return location(text)
    path = Path(artifact.path)
    if path.suffix == ".json":
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict) and is_address(found.get("address")):
            return location(f"{found['address']}#{found['etag']}")
    return path


def side_of(artifact: Any, text: str = "") -> int | None:
    """Return the side in pixels of the tiles of an input, see `given`; None where it was left out."""
    return read_side(given(artifact, text)) if artifact or text else None


@dataclass
class Target:
    """Where a step writes its tile set, and whether it has been written before.

    `out` is what the tool writes to, and `remote` whether that is in S3: then it resumes what an attempt before
    has left there.

    Attributes:
        tool: Whose output it is, as `download`.
        artifact: The output artifact of the tile set.
        at: The file of the output parameter that says where it is.
        data_root: `s3://bucket/prefix`; empty for an artifact.
        refresh: Any text; another one means that what is there is made again.
        what: All that decides the content, by name: options, texts, tables, and locations, which stand for what
            lies there. Nothing that is only about how it comes about, as a rate.
        failed: The output artifact of the cover of failed tiles, where the tool has one.
    """

    tool: str
    artifact: Any
    at: str
    data_root: str = ""
    refresh: str = ""
    what: Mapping[str, Any] = field(default_factory=dict)
    failed: Any = None

    def __post_init__(self) -> None:
        self.out: Location = (
            root_of(self.data_root) / self.tool / f"{self.key}.pmtiles"
            if self.data_root
            else named(self.artifact, ".pmtiles")
        )

    @property
    def remote(self) -> bool:
        """Whether the tile set is written to S3."""
        return bool(self.data_root)

    @property
    def key(self) -> str:
        """24 hexadecimal digits that change with what decides the content."""
        everything = {"tool": self.tool, "format": FORMAT, "refresh": self.refresh, "what": identity(self.what)}
        text = json.dumps(everything, sort_keys=True, ensure_ascii=False)
        return result_key(text)

    def finished(self, max_failed: float = 0.0) -> bool:
        """Tell whether the tile set was made before; if so the outputs are written, and nothing is left to do.

        One of which more tiles had failed than now may does not count, nor one that was changed since.
        """
        if not isinstance(self.out, Address):
            return False
        storage, key = self.out.open()
        record = _read_record(storage, Path(key).with_suffix(".json").name)
        found = storage.stat(key)
        if found is None or record.get("etag") != found.etag or record["share"] > float(max_failed):
            return False
        touch(self.out)
        if self.failed is not None:
            list_failed(self.failed, {Tile(*each[:3]): each[3] for each in record["failed"]})
        self._refer(record, reused=True)
        print(f"{self.out} is there already: nothing to do")
        return True

    def finish(self, kind: str, result: Result, max_failed: float = 0.0) -> None:
        """Write the outputs after the tool has written the tile set.

        Args:
            kind: What the tile set is, as `masks`.
            result: What the tool returned.
            max_failed: The share of failed tiles, 0 to 1, that is still no failure.

        Raises:
            PartialError: more tiles failed.
        """
        if self.failed is not None:
            list_failed(self.failed, result.failed)
        if not isinstance(self.out, Address):
            Path(self.at).parent.mkdir(parents=True, exist_ok=True)
            Path(self.at).write_text("", "utf-8")
            describe(self.artifact, kind, result, max_failed)
            return
        refuse_failures(result, max_failed)
        where = pinned(self.out)
        with open_reader(where, empty=True) as reader:
            tiles = len(reader)
            zoom = reader.zoom() if tiles else None
        record = {
            "etag": where.etag,
            "tiles": tiles,
            "zoom": zoom,
            "counts": {"rsp_kind": kind, **counts(result)},
            "share": share_failed(result),
            "failed": [[*tile, reason] for tile, reason in sorted(result.failed.items())],
        }
        write_bytes(self.out.with_suffix(".json"), json.dumps(record).encode())
        self._refer(record)

    def _refer(self, record: Mapping[str, Any], **metadata: Any) -> None:
        """Write the text and the artifact that say where the tile set is."""
        where = f"{self.out}#{record['etag']}"
        path = Path(self.at)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(where, "utf-8")
        reference = {name: record[name] for name in ("etag", "tiles", "zoom")}
        named(self.artifact, ".json").write_text(json.dumps({"address": str(self.out), **reference}), "utf-8")
        noted = {name: value for name, value in reference.items() if value is not None}
        self.artifact.metadata.update({**record["counts"], **noted, "address": where, **metadata})


def _read_record(storage: Storage, key: str) -> dict[str, Any]:
    """Return what stands beside a finished tile set; empty where nothing does."""
    try:
        found = json.loads(storage.read(key)[0])
    except NotFoundError:
        return {}
    except ValueError:
        return {}  # not ours: the tile set is made again, and this replaced
    return found if isinstance(found, dict) else {}


def resolved(text: str) -> str:
    """Return a text as it is, or an address in S3 with the ETag that its object has now.

    Raises:
        NotFoundError: nothing is there.
        StorageError: the store cannot be reached.
    """
    if not is_address(text):
        return text
    where = location(text)
    assert isinstance(where, Address)
    return str(where if where.etag else pinned(where))


def content(text: str) -> Any:
    """Return what a text stands for that names a file, files by a pattern, an address, or something else."""
    if is_address(text):
        return location(text)
    if "://" in text or text.startswith("/vsi"):
        return text
    path = Path(text).expanduser()
    if not path.exists() and has_magic(text):
        return sorted(map(Path, glob(str(path), recursive=True)))  # noqa: PTH207 (absolute too)
    return path if path.exists() else text


def identity(value: Any) -> Any:
    """Return what a value is but for where it lies and how it is written, in types of JSON."""
    if isinstance(value, Address):
        return f"etag {value.etag or etag_of(value)}"
    if isinstance(value, Path):
        return etag_of(value)
    if isinstance(value, Mapping):
        return {str(name): identity(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
