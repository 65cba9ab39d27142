"""What the header of an OpenStreetMap file (pbf) says, read without a library: it is small, and a stranger's."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsp.shared.errors import FeatureError
from rsp.shared.protobuf import fields

# What the format allows (https://wiki.openstreetmap.org/wiki/PBF_Format).
MAX_HEAD, MAX_BLOB = 64 << 10, 32 << 20
_TEXTS = {4: "required", 5: "optional"}


def is_pbf(head: bytes) -> bool:
    """Tell whether a file begins as a pbf does."""
    return head[4:6] == b"\x0a\x09" and head[6:15] == b"OSMHeader"


def describe_pbf(path: Path) -> dict[str, Any]:
    """Describe a pbf by its header.

    Raises:
        FeatureError: it is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(4), "big")
            if not 0 < length <= MAX_HEAD:
                raise ValueError(f"a head of {length} bytes")
            head = {number: value for number, value, *_ in fields(file.read(length), 0, length)}
            size = head.get(3)
            if not isinstance(size, int) or not 0 < size <= MAX_BLOB:
                raise ValueError(f"a header of {size} bytes")
            block = _unpacked(file.read(size))
    except OSError as error:
        raise FeatureError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError, zlib.error) as error:
        raise FeatureError(f"{path} is damaged: {error}") from error
    found: dict[str, Any] = {"kind": "OpenStreetMap", "form": "pbf", "bytes": path.stat().st_size}
    try:
        found |= _header(block)
    except (ValueError, IndexError, OverflowError) as error:
        raise FeatureError(f"{path} is damaged: {error}") from error
    return found


def _unpacked(blob: bytes) -> bytes:
    """Return what a blob holds: raw, or compressed by zlib."""
    for number, _, start, end in fields(blob, 0, len(blob)):
        if number == 1:
            return blob[start:end]
        if number == 3:
            stream = zlib.decompressobj()
            data = stream.decompress(blob[start:end], MAX_BLOB)
            if stream.unconsumed_tail:
                raise ValueError(f"its header unpacks to more than {MAX_BLOB} bytes")
            return data
    raise ValueError("its header is compressed in another way than zlib")


def _header(block: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"required": [], "optional": []}
    for number, value, start, end in fields(block, 0, len(block)):
        text = block[start:end].decode("utf-8", "replace")
        if number == 1:
            # left, right, top, bottom in units of 1e-9 degrees, each a zigzag number.
            sides = {side: _zigzag(each) for side, each, *_ in fields(block[start:end], 0, end - start)}
            found["bounds"] = [round(sides.get(side, 0) / 1e9, 7) for side in (1, 4, 2, 3)]
        elif number in _TEXTS:
            found[_TEXTS[number]].append(text)
        elif number == 16:
            found["written_by"] = text
        elif number == 17:
            found["source"] = text
        elif number == 32 and value is not None:
            found["until"] = datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        elif number == 33 and value is not None:
            found["sequence"] = value
        elif number == 34:
            found["updates"] = text
    return found


def _zigzag(value: int | None) -> int:
    if value is None:
        raise ValueError("its bounds are no numbers")
    return (value >> 1) ^ -(value & 1)
