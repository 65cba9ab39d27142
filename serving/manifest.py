"""What a release is, and which one is wanted: the two JSON files of a release store, read strictly.

Whoever can write to the store decides what is served, but must not decide what is read or written elsewhere: every
name, path, size and digest is checked before anything is done with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

from rsp.shared.errors import ConfigError, ModelError, ReleaseError
from rsp.shared.keys import MAX_TEXT, Key, read_table, shortened

T = TypeVar("T")

FORMAT = 1
RELEASE = "release.json"
POINTER = "pointer.json"
# Notes that the folder of a release is being filled, and since when.
MARK = "publishing"

# What is larger is not ours: a release with 255 classes has some 20 KB, a pointer with a whole history 60 KB.
MAX_MANIFEST = 1 << 20
MAX_FILES = 64
# As large as a model may be (rsp.shared.learning.formats).
MAX_FILE = 8 << 30
MAX_TOTAL = 2 * MAX_FILE
# A golden tile is read into memory.
MAX_GOLDEN_BYTES = 64 << 20
MAX_GOLDEN = 16
# How many moves a pointer remembers, and how much of the reason of each.
HISTORY = 100
MAX_REASON = 500

# Names and versions of models: TorchServe puts both into URLs and file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DTYPES = ("float32", "bfloat16")
DIGEST = re.compile("[0-9a-f]{64}")
_TIME = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
# Each part begins with a letter or digit: no `..`, nothing hidden, nothing absolute, no drive, no backslash.
_PART = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_PATH = re.compile(f"{_PART}(?:/{_PART}){{0,3}}")


@dataclass(frozen=True)
class File:
    """What a file of a release must be.

    Attributes:
        sha256: Its digest.
        size: Its bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class Golden:
    """A tile whose mask is known.

    Attributes:
        image: Path of the encoded tile.
        mask: Path of the PNG that the model answers.
    """

    image: str
    mask: str


@dataclass(frozen=True)
class Precision:
    """How the golden masks were computed. Masks of another precision may differ in a few pixels.

    Attributes:
        dtype: One of `DTYPES`.
        device: As `cpu` or `cuda:0`.
        capability: Instructions that the processor has, as torch calls them (`AVX512`); empty where unknown.
    """

    dtype: str = "float32"
    device: str = "cpu"
    capability: str = ""


@dataclass(frozen=True)
class Release:
    """A model and all that is needed to judge whether a server serves it well.

    Attributes:
        name: Of the model, in the URLs.
        version: Of the model, likewise.
        created: When it was published, as `2026-11-25T19:21:26Z`.
        rsp: The version of this project that published it.
        torch: The version of torch that made the golden masks; a server needs the same.
        model: Path of the model.
        card: Path of its card.
        precision: How the golden masks were computed.
        bands: What each channel takes, as `images 1-2-3`.
        classes: The titles, in order.
        tile_size: Side of its tiles in pixels.
        overlap: Width in pixels of the border that its tiles may carry.
        files: What each file of the release must be, by its path.
        value_type: One of `rsp.shared.images.VALUE_TYPES`; None where the card does not say, or channels differ.
        metrics: What it reached on the validation tiles.
        validation: Digest of those tiles and their labels; None where unknown. Metrics can be compared where it is
            equal.
        golden: Tiles whose masks are known; a server has to answer the same.
        checkpoint: Path of the checkpoint that the model was exported from.
    """

    name: str
    version: str
    created: str
    rsp: str
    torch: str
    model: str
    card: str
    precision: Precision
    bands: tuple[str, ...]
    classes: tuple[str, ...]
    tile_size: int
    overlap: int
    files: Mapping[str, File]
    value_type: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: str | None = None
    golden: tuple[Golden, ...] = ()
    checkpoint: str | None = None

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(each.size for each in self.files.values())

    @property
    def folder(self) -> str:
        """The folder of its files in the store, which follows from what they hold.

        So two that publish one version at once never write over each other's files.
        """
        table = sorted((path, each.sha256) for path, each in self.files.items())
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """Return the release as `release.json` holds it."""
        data = {"format": FORMAT, **asdict(self)}
        data["metrics"] = {key: value if math.isfinite(value) else None for key, value in self.metrics.items()}
        return dumped(data)

    @classmethod
    def from_json(cls, text: bytes, where: str) -> Release:
        """Read a release and check every field of it.

        Args:
            text: What `release.json` holds.
            where: What messages begin with.

        Raises:
            ReleaseError: not JSON, a release of a newer format, a field that is missing, unknown, out of bounds,
                or that contradicts another.
        """
        return checked(text, where, _release)


@dataclass(frozen=True)
class Move:
    """One entry of a pointer's history: what was wanted, since when, and why."""

    version: str | None
    moved: str
    reason: str


@dataclass(frozen=True)
class Pointer:
    """Which release of a name is wanted.

    Attributes:
        name: Of the model.
        version: What is wanted; None where nothing is any more.
        serial: Counts the moves.
        moved: When, as `2026-11-25T19:21:26Z`.
        reason: Why.
        history: What was wanted before, the latest first, `HISTORY` of them at most.
        etag: Of the file that it was read from; whoever moves it says which one.
    """

    name: str
    version: str | None
    serial: int
    moved: str
    reason: str
    history: tuple[Move, ...] = ()
    etag: str = field(default="", compare=False)

    @property
    def previous(self) -> str | None:
        """The version that was wanted before this one; None where there was no other."""
        others = (move.version for move in self.history if move.version not in (None, self.version))
        return next(others, None)

    def kept(self, keep: int) -> set[str]:
        """Return the versions that may not be deleted: the current one, the one before, the last `keep` in all."""
        named = dict.fromkeys(move for move in (self.version, *(move.version for move in self.history)) if move)
        return {*list(named)[:keep], *filter(None, (self.version, self.previous))}

    def to_json(self) -> bytes:
        """Return the pointer as `pointer.json` holds it."""
        data = {"format": FORMAT, **asdict(self)}
        del data["etag"]
        return dumped(data)

    @classmethod
    def from_json(cls, text: bytes, where: str, etag: str = "") -> Pointer:
        """Read a pointer; raise `ReleaseError` as `Release.from_json` does."""
        return checked(text, where, lambda data, where: _pointer(data, where, etag))


def noted(seconds: float) -> str:
    """Return a time, in seconds since 1970, as releases and pointers note it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(moment: str) -> float:
    """Return a noted time in seconds since 1970."""
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def check_name(what: str, text: str) -> str:
    """Return a name or version; raise `ReleaseError` where it cannot be part of a path and a URL."""
    if not NAME.fullmatch(text):
        raise ReleaseError(
            f"the {what} of a release may only hold letters, digits, dots, dashes and underscores (64 at most, a "
            f"letter or digit first), got {shortened(text)}"
        )
    return text


def verify(folder: Path) -> Release:
    """Check a release on the disk against its digests.

    Args:
        folder: As `ReleaseStore.fetch` makes them.

    Raises:
        ReleaseError: a file is missing, is no file, or has another size or digest than the release says.
    """
    release = Release.from_json(read_limited(folder / RELEASE), f"{folder / RELEASE}")
    for path, wanted in release.files.items():
        found = measured(folder / path)
        if found != wanted:
            what = "size" if found.size != wanted.size else "SHA-256 digest"
            raise ReleaseError(f"{folder / path} has another {what} than its release says: it is damaged")
    return release


def read_limited(path: Path) -> bytes:
    """Return a small file; raise `ReleaseError` where it is missing, no plain file, or too large."""
    try:
        if not path.is_file() or path.is_symlink():
            raise ReleaseError(f"there is no file {path}")
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise ReleaseError(f"cannot read {path}: {error.strerror}") from error


def measured(content: Path | bytes) -> File:
    """Return digest and size of a file or of bytes; raise `ReleaseError` where there is no file to read."""
    if isinstance(content, bytes):
        return File(hashlib.sha256(content).hexdigest(), len(content))
    try:
        if not content.is_file() or content.is_symlink():
            raise ReleaseError(f"there is no file {content}")
        with content.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return File(digest, file.tell())
    except OSError as error:
        raise ReleaseError(f"cannot read {content}: {error.strerror}") from error


def sha8(model: Path) -> str:
    """Return what identifies a model: the first eight hex digits of the SHA-256 of its file."""
    try:
        with model.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise ModelError(f"cannot read the model {model}: {error.strerror}") from error


def dumped(data: Mapping[str, Any]) -> bytes:
    """Return a table as the files of a store hold it."""
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def checked(text: bytes, where: str, read: Callable[[Any, str], T]) -> T:
    """Return what `read` makes of JSON; whatever is wrong with it is a `ReleaseError`."""
    if len(text) > MAX_MANIFEST:
        raise ReleaseError(f"{where}: it has more than {MAX_MANIFEST} bytes")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{where}: it is not JSON: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is int and found > FORMAT:
        raise ReleaseError(f"{where}: it has format {found}, and this rsp reads up to {FORMAT}: upgrade rsp")
    try:
        return read(data, where)
    except ConfigError as error:
        raise ReleaseError(str(error)) from error


_RELEASE = (
    Key("format", "count"), Key("name", "str"), Key("version", "str"), Key("created", "str"), Key("rsp", "str"),
    Key("torch", "str"), Key("model", "str"), Key("checkpoint", "str", None), Key("card", "str"),
    Key("precision", "table"), Key("bands", "strs"), Key("value_type", "str", None), Key("classes", "strs"),
    Key("tile_size", "count", high=1 << 14), Key("overlap", "int", high=1 << 14), Key("metrics", "table"),
    Key("validation", "str", None), Key("golden", "rows"), Key("files", "table"),
)  # fmt: skip
_FILE = (Key("sha256", "str"), Key("size", "int", high=MAX_FILE))
_GOLDEN = (Key("image", "str"), Key("mask", "str"))
_PRECISION = (Key("dtype", "str"), Key("device", "str"), Key("capability", "str"))
_POINTER = (
    Key("format", "count"), Key("name", "str"), Key("version", "str", None), Key("serial", "count"),
    Key("moved", "str"), Key("reason", "str"), Key("history", "rows"),
)  # fmt: skip
_MOVE = (Key("version", "str", None), Key("moved", "str"), Key("reason", "str"))


def expect(holds: object, where: str, what: str) -> None:
    """Raise `ReleaseError` where something does not hold."""
    if not holds:
        raise ReleaseError(f"{where}: {what}")


def _release(data: Any, where: str) -> Release:
    values = read_table(data, _RELEASE, where)
    del values["format"]
    for what in ("name", "version"):
        expect(NAME.fullmatch(values[what]), where, f"{what}: {shortened(values[what])} cannot be part of a URL")
    expect(is_time(values["created"]), where, f"created: {shortened(values['created'])} is not a time")
    files = {path: _file(path, row, where) for path, row in values["files"].items()}
    expect(0 < len(files) <= MAX_FILES, where, f"files: expected 1 to {MAX_FILES} of them, got {len(files)}")
    expect(sum(each.size for each in files.values()) <= MAX_TOTAL, where, f"files: more than {MAX_TOTAL} bytes")
    for path in files:
        for above in map(str, PurePosixPath(path).parents):
            expect(above not in files, where, f"files: {above} cannot be a file and a folder")
    for what in ("model", "checkpoint", "card"):
        path = values[what]
        expect(path is None or path in files, where, f"{what}: {shortened(path)} is not one of the files")
    values["precision"] = _precision(values["precision"], where)
    values["golden"] = tuple(Golden(**read_table(row, _GOLDEN, f"{where}: golden")) for row in values["golden"])
    expect(len(values["golden"]) <= MAX_GOLDEN, where, f"golden: more than {MAX_GOLDEN} tiles")
    for each in values["golden"]:
        for path in (each.image, each.mask):
            expect(path in files, where, f"golden: {shortened(path)} is not one of the files")
            expect(files[path].size <= MAX_GOLDEN_BYTES, where, f"golden: {path} is larger than a tile can be")
    expect(1 <= len(values["bands"]) <= 1024, where, f"bands: expected 1 to 1024, got {len(values['bands'])}")
    expect(2 <= len(values["classes"]) <= 255, where, f"classes: expected 2 to 255, got {len(values['classes'])}")
    for text in (*values["bands"], *values["classes"]):
        expect(len(text) <= MAX_TEXT, where, f"a text of {len(text)} characters")
    kind, digest = values["value_type"], values["validation"]
    from rsp.shared.images import VALUE_TYPES  # which imports numpy, and a server that only starts needs none

    expect(kind is None or kind in VALUE_TYPES, where, f"value_type: expected one of {', '.join(VALUE_TYPES)}")
    expect(digest is None or DIGEST.fullmatch(digest), where, "validation: expected a SHA-256 digest, or null")
    expect(
        # Bounded, as JSON's numbers are not.
        all(
            value is None or (type(value) in (int, float) and abs(value) < 1e300)
            for value in values["metrics"].values()
        ),
        where,
        "metrics: expected numbers",
    )
    values["metrics"] = {
        key: math.nan if value is None else float(value) for key, value in values["metrics"].items()
    }
    return Release(**{**values, "files": files})


def _file(path: str, row: Any, where: str) -> File:
    expect(
        _PATH.fullmatch(path) and path not in (RELEASE, MARK),
        where,
        f"files: {shortened(path)} is not a path within it",
    )
    file = File(**read_table(row, _FILE, f"{where}: {path}"))
    expect(DIGEST.fullmatch(file.sha256), where, f"{path}: sha256: expected 64 hexadecimal digits")
    return file


def _precision(row: Any, where: str) -> Precision:
    precision = Precision(**read_table(row, _PRECISION, f"{where}: precision"))
    expect(precision.dtype in DTYPES, where, f"precision: dtype: expected one of {', '.join(DTYPES)}")
    return precision


def is_time(text: str) -> bool:
    """Tell whether a text is a time as `noted` writes it."""
    if not _TIME.fullmatch(text):
        return False
    try:
        seconds_of(text)
    except ValueError:
        return False
    return True


def _pointer(data: Any, where: str, etag: str) -> Pointer:
    values = read_table(data, _POINTER, where)
    del values["format"]
    expect(NAME.fullmatch(values["name"]), where, f"name: {shortened(values['name'])} cannot be part of a URL")
    rows: Sequence[Any] = values["history"]
    expect(len(rows) <= HISTORY, where, f"history: more than {HISTORY} moves")
    moves = tuple(Move(**read_table(row, _MOVE, f"{where}: history")) for row in rows)
    for move in (Move(values["version"], values["moved"], values["reason"]), *moves):
        expect(
            move.version is None or NAME.fullmatch(move.version),
            where,
            f"version: {shortened(move.version)} cannot be part of a URL",
        )
        expect(is_time(move.moved), where, f"moved: {shortened(move.moved)} is not a time")
        expect(len(move.reason) <= MAX_REASON, where, f"reason: more than {MAX_REASON} characters")
    return Pointer(**{**values, "history": moves, "etag": etag})
