"""What a path is, told by what lies there and not by its name, and what is to say about it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rsp.components.info.files import describe_config, describe_cover, describe_features, describe_raster
from rsp.components.info.models import describe_model, describe_release, describe_store
from rsp.components.info.osm import describe_pbf, is_pbf
from rsp.components.info.tilesets import describe_tiles
from rsp.components.info.vectors import describe_table, form_of
from rsp.serving.manifest import RELEASE
from rsp.shared.errors import RasterError, UsageError
from rsp.shared.locations import Address, Location, fetched
from rsp.shared.tileset import is_archive
from rsp.shared.tileset.entries import MAGIC

HEAD = 4096
_COVER = re.compile(rb"\s*\d+[,\t]\d+[,\t]\d+")
_RASTERS = (
    b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"\x89PNG", b"\xff\xd8\xff", b"\x00\x00\x00\x0cjP",
    b"<VRTDataset",
)  # fmt: skip
# Rasters in a store of which only the header is read.
_BY_RANGES = (".tif", ".tiff", ".vrt")
# A model that TorchServe serves.
_MAR = "MAR-INF/MANIFEST.json"


def describe(path: Location | str) -> dict[str, Any]:
    """Describe what lies at a path, at an address in S3, or at a URL (an archive of tiles, or a raster).

    What is a stranger's is read up to limits, and nothing of it is run.

    Returns:
        In types of JSON: `kind` and what there is to say about things of this kind.

    Raises:
        UsageError: nothing of a kind that is known lies there.
        RspError: what lies there is damaged.
    """
    if isinstance(path, str):
        return describe_tiles(path) if urlsplit(path).path.lower().endswith(".pmtiles") else describe_raster(path)
    if isinstance(path, Address):
        return _stored(path)
    path = path.expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UsageError(f"there is no {path}")
    return _file(path)


def _stored(path: Address) -> dict[str, Any]:
    if is_archive(path):
        return describe_tiles(path)
    if path.suffix.lower() in _BY_RANGES:
        return describe_raster(str(path))
    if path.key:
        storage, key = path.open()
        if storage.stat(key) is not None:
            return _file(fetched(path))
    return describe_store(path) or describe_tiles(path)


def _folder(path: Path) -> dict[str, Any]:
    names = sorted(each.name for each in path.iterdir())
    if any(name.isdecimal() for name in names):
        return describe_tiles(path)
    parts = [part for part in ("training", "validation") if part in names]
    if parts:
        sets = {
            part: sorted(each.name for each in (path / part).iterdir() if not each.name.startswith("."))
            for part in parts
        }
        return {"kind": "data set", "parts": sets, "hint": f"rsp info --dataset {path} checks it whole"}
    if RELEASE in names:
        return describe_release(path)
    if (found := describe_store(path)) is not None:
        return found
    raise UsageError(f"{path} is a folder of nothing that is known: no tiles z/x/y, no data set, no release store")


def _file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(MAGIC):
        return describe_tiles(path)
    if is_pbf(head):
        return describe_pbf(path)
    if head.startswith(b"PK\x03\x04"):
        return _mar(path) or describe_model(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return describe_model(path)
    if (form := form_of(head)) is not None:
        return describe_table(path, form)
    if start.startswith((b"{", b"\x1e{")):
        return describe_features(path)
    if head.startswith(_RASTERS) or start.startswith(b"<VRTDataset"):
        return describe_raster(str(path))
    if start.startswith(b"<") and b"<osm" in head:
        return {"kind": "OpenStreetMap", "form": "XML", "bytes": path.stat().st_size}
    if path.suffix.lower() == ".toml":
        return describe_config(path)
    if _COVER.match(start):
        return describe_cover(path)
    if head[:1] == b"\x08":  # the first field of an ONNX file
        return describe_model(path)
    try:
        return describe_raster(str(path))  # GDAL knows many more
    except RasterError:
        raise UsageError(
            f"{path} is nothing that is known: no tile set, cover, raster, vector file, model, configuration, or "
            "OpenStreetMap file"
        ) from None


def _mar(path: Path) -> dict[str, Any] | None:
    """Describe an archive for TorchServe; None where a zip file is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if _MAR not in names:
                return None
            return {
                "kind": "archive for TorchServe", "bytes": path.stat().st_size,
                "files": {each.filename: each.file_size for each in archive.infolist()[:100]},
            }  # fmt: skip
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # who reads models says what is wrong with it
