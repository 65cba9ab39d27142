"""Whose the features of a file are: what it says where `feature_writer` writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rsp.shared.attribution import KEY, joined
from rsp.shared.errors import RspError
from rsp.shared.features import expand
from rsp.shared.webfiles import FileAt, local_file

# How much of GeoJSON is looked at: the members before the features.
_HEAD = 1 << 16
_MEMBER = re.compile(r'"attribution"\s*:\s*("(?:[^"\\]|\\.)*")')
_OWNERS = re.compile(r"(?i)©|\(c\)|copyright|licen[cs]e|contributors|\bCC[ -]BY|\bODbL")


def of_features(path: FileAt | str, layer: str | None = None) -> str | None:
    """Return what a file of features says: where `feature_writer` writes it. None where it says nothing.

    Args:
        path: The file, an object in S3, a URL, or a pattern of several.
        layer: Which layer, of several.
    """
    try:
        files = [local_file(each) for each in expand(path)]
        return joined(_of_file(each, layer) for each in files if each.is_file())
    except (OSError, RspError):
        return None  # who reads the features says what is wrong


def _of_file(path: Path, layer: str | None) -> str | None:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        before = head.decode("utf-8", "replace").partition('"features"')[0]
        found = _MEMBER.search(before)
        try:
            return json.loads(found[1]) if found else None
        except ValueError:
            return None
    if head.startswith(b"PAR1"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return (pq.read_schema(path).metadata or {}).get(KEY.encode(), b"").decode("utf-8", "replace")
        except pa.ArrowException:
            return None
    if head.startswith((b"SQLite format 3\0", b"fgb")):
        import pyogrio

        try:
            info = pyogrio.read_info(path, layer=layer)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
            return None
        told = (info["dataset_metadata"] or {}).get("ATTRIBUTION")
        # FlatGeobuf has one text, which other programs use for anything.
        described = (info["layer_metadata"] or {}).get("DESCRIPTION", "")
        return told or (described if head.startswith(b"fgb") and _OWNERS.search(described) else None)
    return None
