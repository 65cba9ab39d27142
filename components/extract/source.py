"""An OpenStreetMap file to read: what format it is in, whether it is in order, and how to bring it into order."""

from __future__ import annotations

import bz2
import gzip
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import osmium
from osmium.filter import IdFilter
from osmium.osm import NODE, NOTHING, RELATION, WAY

from rsp.shared.atomic import temporary_prefix
from rsp.shared.errors import FeatureError

FORMATS = ".osm.pbf, .osm (XML), .o5m or .opl, the texts also as .gz or .bz2"

# What is sorted here is held in memory: about a gigabyte at these sizes. Text takes more bytes for an object.
SORTABLE = {"pbf": 32 << 20, "o5m": 32 << 20, "osm": 256 << 20, "opl": 256 << 20}

# Ids of nodes that have none from the database yet are negative, which osmium's indexes of places cannot hold.
# They are written as positive ones beyond any that the database will reach.
UNSAVED = 1 << 52

# Places of nodes are kept in memory up to this many (256 MB); a node takes about as many bytes of a file in each
# format, text more when it is unpacked, and a place so many.
IN_MEMORY = 1 << 24
NODE_BYTES = {"pbf": 9, "o5m": 10, "osm": 120, "opl": 70}
UNPACKED = 8
PLACE = 16

_HEAD = 4096
_COMPRESSED: dict[bytes, tuple[str, Callable[..., Any]]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZh": (".bz2", bz2.open),
}
_UNPACK = {b"PK\x03\x04": "unzip", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
_OPL = re.compile(rb"[nwrc]-?\d+( |\n|$)")
_ROOT = re.compile(rb"<\s*([A-Za-z][\w:.-]*)")
_DISORDER = re.compile(r"IDs? out of order|ID twice in input")
_REMARK = re.compile(rb"<remark>\s*(.*?error.*?)\s*</remark>", re.DOTALL | re.IGNORECASE)


class DisorderError(FeatureError):
    """A file whose objects are not in the order that they can be read in, or not with their ids (`negative`)."""

    def __init__(self, message: str, *, negative: bool = False) -> None:
        super().__init__(message)
        self.negative = negative


class Source:
    """An OpenStreetMap file in one of `FORMATS`, told by its content; a context, for its temporary file.

    Attributes:
        path: The file, as the user knows it.
        located: The ways themselves say where their nodes are (`out geom` of Overpass, or osmium's
            `add-locations-to-ways`).
        in_order: It is known that nodes stand before ways and ways before relations, each by id.
    """

    def __init__(self, path: Path) -> None:
        """Look at the beginning of the file.

        Raises:
            FeatureError: no such file, or not one that can be read; says what it seems to be.
        """
        self.path = path
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._sorted = self._numbered = self._changed = False
        self._format = self._original = _format(path)
        if self._format == "osm":
            _refuse_remark(path)
        self._file = path
        self.in_order = self.located = False
        with self.readable():
            header = osmium.io.Reader(self.file, NOTHING).header()
            if header.has_multiple_object_versions:
                raise FeatureError(
                    f"{path} holds the history of each object; `osmium time-filter` makes a file of one state of "
                    "the map"
                )
            self.in_order = header.get("sorting") == "Type_then_ID"
            self.located = any(
                header.get(f"pbf_optional_feature_{number}") == "LocationsOnWays" for number in range(8)
            )
        if self._format != "pbf":
            self._look_at_first()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def temporary(self) -> Path:
        """A folder that is there until the context ends."""
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix=temporary_prefix("extract"))
        return Path(self._temporary.name)

    @contextmanager
    def rewritten(self) -> Iterator[Path]:
        """Write the map as changes make it to the path within the block, and go on with that file.

        Raises:
            FeatureError: it cannot be written, or the map not be read.
        """
        target = self.temporary / "changed.pbf"
        with self.readable():
            yield target
        if self._sorted:
            self._file.unlink()
        self._file, self._format, self.in_order, self._changed = target, "pbf", True, True

    def index(self, kind: str | None) -> str:
        """Return the store for the places of the nodes, in osmium's words; files lie in the temporary folder.

        Args:
            kind: `flex_mem`, `sparse_file_array` or `dense_file_array`; None for memory up to `IN_MEMORY` nodes.

        Raises:
            FeatureError: the temporary folder has no room for them.
        """
        plain, packed = self._format.partition(".")[::2]
        nodes = self._file.stat().st_size * (UNPACKED if packed else 1) // NODE_BYTES[plain]
        if kind is None:
            kind = "flex_mem" if nodes <= IN_MEMORY else "sparse_file_array"
        if kind == "flex_mem":
            return kind
        file = self.temporary / "nodes"
        file.unlink(missing_ok=True)  # of an earlier attempt
        free = shutil.disk_usage(file.parent).free
        # What does not fit into a mapped file ends the process.
        if kind == "sparse_file_array" and free < nodes * PLACE:
            raise FeatureError(
                f"the places of about {nodes / 1e6:.0f} million nodes need {nodes * PLACE / 1e9:.1f} GB in the "
                f"temporary folder {file.parent.parent}, where {free / 1e9:.1f} GB are free; set TMPDIR to "
                "another folder, or give --index flex_mem to keep them in memory"
            )
        return f"{kind},{file}"

    @property
    def is_text(self) -> bool:
        """Whether the file is XML or OPL, which people write too."""
        return self._format.partition(".")[0] in ("osm", "opl")

    @property
    def file(self) -> osmium.io.File:
        """The file for osmium to read: the original, or the one in order."""
        return osmium.io.File(str(self._file), self._format)

    def _look_at_first(self) -> None:
        """See the usual order of Overpass (ways before their nodes) at the first object."""
        first: Any
        disorder = False
        with self.readable():
            for first in osmium.FileProcessor(self.file, NODE | WAY | RELATION):
                self.located = first.is_way() and any(node.location.valid() for node in first.nodes)
                disorder = not first.is_node() and not self.located
                break
        if disorder:
            self.sort(DisorderError("ways stand before their nodes"))

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn what osmium says about a file into our errors."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, osmium.InvalidLocationError) as error:
            if _DISORDER.search(str(error)):
                raise DisorderError(str(error)) from error
            reason = str(error).removesuffix(".")
            hint = "end the Overpass query with `out body;`" if "center" in reason else "is the download complete?"
            raise FeatureError(f"cannot read {self.path} as OpenStreetMap data: {reason}; {hint}") from error

    def check_order(self, refs: Iterable[int]) -> None:
        """Find out whether nodes that were missing when they were needed come later in the file.

        Raises:
            DisorderError: one of them does, or has a negative id.
        """
        wanted = sorted(set(refs))
        if wanted and wanted[0] < 0 and not self._numbered:
            raise DisorderError("ids of nodes are negative", negative=True)
        if not wanted or self.in_order or self.located:
            return
        with self.readable():
            for node in osmium.FileProcessor(self.file, NODE).with_filter(IdFilter(wanted)):
                raise DisorderError(f"node {node.id} stands after a way that needs it")

    def sort(self, reason: DisorderError) -> None:
        """Go on with a temporary copy in order: by type and id, each object once, in its newest version.

        Raises:
            FeatureError: the file is too large to be sorted here, was sorted already, or cannot be copied.
        """
        if self._numbered or self._changed or (self._sorted and not reason.negative):
            raise FeatureError(f"{self.path} cannot be sorted by type and id: {reason}")
        plain, suffix = self._original.partition(".")[::2]
        try:
            # A name that osmium can tell the format by.
            packed, target = (
                self.temporary / f"input.{plain}",
                self.temporary / f"sorted-{int(reason.negative)}.pbf",
            )
            if suffix:
                self._unpack(packed, SORTABLE[plain], reason)
            elif self.path.stat().st_size > SORTABLE[plain]:
                raise self._too_large(SORTABLE[plain], reason)
            else:
                packed.symlink_to(self.path.resolve())
            options = "pbf,pbf_compression=none" + (",locations_on_ways=true" if self.located else "")
            with self.readable(), osmium.SimpleWriter(osmium.io.File(str(target), options)) as writer:
                merger = osmium.MergeInputReader()
                merger.add_file(str(packed))
                merger.apply(_Numbered(writer) if reason.negative else writer, simplify=True)
            packed.unlink()
        except OSError as error:
            raise FeatureError(
                f"cannot sort {self.path} in the temporary folder {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        self._file, self._format, self.in_order = target, "pbf", True
        self._sorted, self._numbered = True, reason.negative

    def _unpack(self, target: Path, limit: int, reason: DisorderError) -> None:
        """Unpack the file, as far as it may be sorted here."""
        unpack = gzip.open if self._format.endswith(".gz") else bz2.open
        try:
            with unpack(self.path, "rb") as file, target.open("wb") as out:
                left = limit
                while chunk := file.read(1 << 20):
                    left -= len(chunk)
                    if left < 0:
                        raise self._too_large(limit, reason)
                    out.write(chunk)
        except (EOFError, gzip.BadGzipFile) as error:
            raise FeatureError(f"cannot unpack {self.path}: {error}; is the download complete?") from error

    def _too_large(self, limit: int, reason: DisorderError) -> FeatureError:
        return FeatureError(
            f"{self.path} is not sorted by type and id ({reason}), and larger than the {limit >> 20} MB that can "
            f"be sorted here; sort it first: osmium sort {self.path} -o sorted.osm.pbf"
        )


class _Numbered:
    """Passes objects on to a writer, nodes with negative ids under positive ones."""

    def __init__(self, writer: osmium.SimpleWriter) -> None:
        self._writer = writer

    def node(self, node: Any) -> None:
        self._writer.add_node(node if node.id >= 0 else node.replace(id=UNSAVED - node.id))

    def way(self, way: Any) -> None:
        refs = [node.ref for node in way.nodes]
        if any(ref < 0 for ref in refs):
            way = way.replace(nodes=[ref if ref >= 0 else UNSAVED - ref for ref in refs])
        self._writer.add_way(way)

    def relation(self, relation: Any) -> None:
        self._writer.add_relation(relation)


def _format(path: Path) -> str:
    """Return the format of a file in osmium's words, as `pbf` or `osm.gz`, by its content.

    Raises:
        FeatureError: there is no such file, or it is in another format.
    """
    head, suffix = head_of(path)
    found = _plain_format(head)
    if found in SORTABLE:
        if suffix and found in ("pbf", "o5m"):
            raise FeatureError(
                f"cannot read {path}: unpack it first; only text formats can stay packed as {suffix}"
            )
        return found + suffix
    raise FeatureError(f"cannot read {path} as OpenStreetMap data: {found}. It may be in one of: {FORMATS}")


def head_of(path: Path) -> tuple[bytes, str]:
    """Return the beginning of a file, unpacked, and how it is packed, as `.gz`.

    Raises:
        FeatureError: it cannot be read.
    """
    suffix = ""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise FeatureError(f"cannot read {path}: a pipe or device can be read only once; give a file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
        for magic, (name, unpack) in _COMPRESSED.items():
            if head.startswith(magic):
                suffix = name
                with unpack(path, "rb") as file:
                    head = file.read(_HEAD)
                break
    except (OSError, EOFError) as error:
        raise FeatureError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return head, suffix


def _plain_format(head: bytes) -> str:
    """Return the format that the beginning of a file shows, or what is wrong with it."""
    if b"OSMHeader" in head[:64]:
        return "pbf"
    if head.startswith(b"\xff\xe0\x04o5"):
        return "o5m" if head[5:6] == b"m" else "it holds changes, not a map"
    for magic, command in _UNPACK.items():
        if head.startswith(magic):
            return f"it is packed; unpack it first ({command})"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "it is empty"
    if text.startswith((b"{", b"[")):
        return "it is JSON; Overpass writes XML if the query begins with [out:xml]"
    if text.startswith((b"<", b"\xff\xfe", b"\xfe\xff")):
        root = _ROOT.search(text)
        name = root[1].decode() if root else "osm"
        if name.lower() == "html" or text[:14].lower() == b"<!doctype html":
            return "it is a web page, perhaps the error message of a server"
        if name in ("osmChange", "osmAugmentedDiff"):
            return "it holds changes, not a map"
        return "osm" if name == "osm" else f"it is XML, but of another kind (<{name}>)"
    if _OPL.match(text):
        return "opl"
    return "its beginning is that of no format known here; is the download complete?"


def _refuse_remark(path: Path) -> None:
    """Refuse the partial answer of Overpass to a query that failed: it ends in a remark."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _HEAD))
        remark = _REMARK.search(file.read())
    if remark:
        reason = remark[1].decode(errors="replace")
        raise FeatureError(f"{path} is incomplete: the Overpass server ended its answer with {reason!r}")
