"""What a tool may write to: never over what it reads, and only under a name that tells what it writes.

Every tool calls `check_paths` before any work, so the command line, the Python function and the component are all
guarded. Nothing is touched when it refuses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

from rsp.shared.atomic import is_stream
from rsp.shared.errors import UsageError
from rsp.shared.locations import Address, Location, is_address, location, matching

# A suffix that names a format; `masks.2024-01` and `lr0.01` have none.
_FORMAT = re.compile(r"\.[a-z][a-z0-9]{0,15}", re.IGNORECASE)

# Suffixes of files: nobody who gives one expects a folder.
_FILES = re.compile(
    r"\.(7z|csv|db|fgb|geojson[ls]?|gml|gpkg|gz|html?|jit|jp2|jpe?g|json|kml|mar|mbtiles|onnx|osm|parquet|pbf|pdf|pmtiles|"
    r"png|pt2?|pth|safetensors|shp|sqlite|tar|tiff?|toml|tsv|txt|vrt|webp|ya?ml|zip)"
)


class Form(NamedTuple):
    """What is written under a name.

    Attributes:
        what: What a person calls it, for messages.
        suffixes: The suffixes under which it is written, beside none at all.
        folder: Without a suffix it is a folder. Folders may be called `masks.old`; only the suffix of another
            format is refused.
    """

    what: str
    suffixes: tuple[str, ...]
    folder: bool = False


COVER = Form("a cover", (".csv", ".txt"))
TABLE = Form("a list of tiles", (".csv", ".tsv", ".txt"))
GEOJSON = Form("GeoJSON", (".json", ".geojson"))
FEATURES = Form("features", (".geojson", ".json", ".geojsonl", ".geojsons", ".fgb", ".gpkg", ".parquet"))
GEOTIFF = Form("a GeoTIFF", (".tif", ".tiff"))
TILES = Form("tiles", (".pmtiles",), folder=True)
FOLDER = Form("a folder", (), folder=True)


class Output(NamedTuple):
    """A place to write to.

    Attributes:
        path: The path, or the address in S3.
        form: What is written there.
        sides: Suffixes of what is written beside it, under its name and this suffix.
    """

    path: Location
    form: Form
    sides: tuple[str, ...] = ()


# Beside every output of a tool that may fail on single tiles: a cover, which can be fed back in.
FAILED, ABSENT = ".failed.csv", ".absent.csv"

_report: ContextVar[Location | None] = ContextVar("_report", default=None)


@contextmanager
def reporting(path: Location | None) -> Iterator[None]:
    """While a tool runs, count the report that the command line writes afterwards among its outputs."""
    token = _report.set(path)
    try:
        yield
    finally:
        _report.reset(token)


def tiles_output(path: Location, *, web_ui: bool) -> Output:
    """Return a tile set as an output: an archive has its web page beside it, a folder has it inside."""
    path = location(path)
    page = web_ui and path.suffix.lower() == ".pmtiles"
    return Output(path, TILES, (FAILED, ABSENT, *((".html",) if page else ())))


def tile_set(path: Location | None) -> Location | None:
    """Return a place that is a tile set itself; None where it is a folder with a tile set for each channel.

    Such a folder may hold outputs too, as masks beside the images.
    """
    if path is None:
        return path
    if isinstance(path, Address):
        if path.suffix.lower() == ".pmtiles":
            return path
        # Sorted: numbers, which are zooms, come before the names of channels.
        first = next(iter(path.storage().list()), None)
        return path if first is None or first.key.partition("/")[0].isdecimal() else None
    if not Path(path).expanduser().is_dir():
        return path
    try:
        numbered = any(each.name.isdecimal() for each in Path(path).expanduser().iterdir())
    except OSError:
        return path  # its reader says what is wrong with it
    return path if numbered else None


def check_paths(
    outputs: Sequence[Output],
    reads: Iterable[str | Location | None],
    *,
    cover: Location | None = None,
    inside: Iterable[str | Location | None] = (),
) -> None:
    """Refuse outputs that would hurt an input or another output, and names that promise another format.

    Paths count as the same where they lead to the same file: through symbolic links, as hard links, however they
    are spelled. Devices and pipes (`/dev/stdout`) are not files, and pass. Addresses in S3 count as the same where
    their keys are.

    Args:
        outputs: What the tool writes.
        reads: What it reads: paths, addresses in S3, and glob patterns; other URLs and None are passed
            over.
        cover: The tiles to work on. It is read before anything is written, so it may be the list of failed tiles
            of an earlier run into the same output.
        inside: What is read and may lie in an output folder: a checkpoint in the folder of a training, or all
            that lies in the current directory where that is the output by default.

    Raises:
        UsageError: says which two paths collide, or which suffixes are written.
    """
    for output in outputs:
        _check_name(output)
    written = [location(output.path) for output in outputs]
    beside = [_beside(output.path, suffix) for output in outputs for suffix in output.sides]
    report = _report.get()
    if report is not None:
        beside.append(report)
    places = [(path, _place(path)) for path in [*written, *beside] if not is_stream(path)]
    own = len([path for path in written if not is_stream(path)])
    for source, lenient in [
        *((path, False) for path in _expand(reads)),
        *((path, True) for path in _expand(inside)),
        *((path, False) for path in _expand([cover])),
    ]:
        if is_stream(source):
            continue
        place = _place(source)
        for number, (path, target) in enumerate(places):
            if target[0] == place[0]:
                if source == cover and number >= own and str(path).endswith((FAILED, ABSENT)):
                    continue  # failed tiles that are tried again
                raise UsageError(f"the output {path} is the input {source}; choose another output")
            if place[0] in target:
                raise UsageError(f"the output {path} lies inside the input {source}; choose a place outside")
            if target[0] in place and not lenient:
                raise UsageError(f"the output {path} contains the input {source}; choose a folder of its own")
    for number, (path, target) in enumerate(places):
        for other_number, (other, taken) in enumerate(places[:number]):
            if target[0] == taken[0]:
                raise UsageError(f"{path} would be written twice; each output needs a path of its own")
            # A report may lie in the folder that it tells of.
            if path == report and other_number < own:
                continue
            if taken[0] in target or target[0] in taken:
                raise UsageError(f"the outputs {other} and {path} lie inside each other; each needs its own path")


def _check_name(output: Output) -> None:
    """Refuse a suffix of another format."""
    path, form = location(output.path), output.form
    if isinstance(path, Address) and not path.key:
        raise UsageError(f"{path} is a whole bucket; name {form.what} in it, as {path}/name")
    suffix = path.suffix.lower()
    if suffix in form.suffixes or not _FORMAT.fullmatch(suffix) or is_stream(path):
        return
    if form.folder and (not _FILES.fullmatch(suffix) or (isinstance(path, Path) and path.expanduser().is_dir())):
        return
    choices = [*form.suffixes, "no suffix"]
    listed = " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    folder = " for a folder" if form.folder and form.suffixes else ""
    raise UsageError(f"cannot write {path}: the output is {form.what} ({listed}{folder})")


def _beside(path: Location, suffix: str) -> Location:
    """Return what is written beside an output; `.` and `..` have a name too."""
    path = location(path).expanduser()
    if isinstance(path, Path) and path.name in ("", ".."):
        path = path.resolve()
    return path.parent / f"{path.name}{suffix}"


def _expand(names: Iterable[str | Location | None]) -> Iterator[Location]:
    """Yield the places that names and glob patterns lead to."""
    for name in names:
        if name is None:
            continue
        if not is_address(name) and ("://" in str(name) or str(name).startswith("/vsi")):
            continue
        place = location(name)
        if not has_magic(str(place)) or (isinstance(place, Path) and os.path.lexists(place)):
            yield place
        else:
            yield from matching(place)


def _place(path: Location) -> list[object]:
    """Return what identifies a path, then each folder that it lies in: an inode, or a name if there is no file."""
    if isinstance(path, Address):
        parts = path.key.split("/")
        return [str(Address(path.bucket, "/".join(parts[:end]))) for end in range(len(parts), -1, -1)]
    real = Path(os.path.realpath(Path(path).expanduser()))
    return [_identity(each) for each in (real, *real.parents)]


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return str(path)
    return status.st_dev, status.st_ino
