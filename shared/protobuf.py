"""Protobuf messages of strangers, read field by field without their schema and without copying them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

# Number, value (of a field that is one number) or None, start and end of a field in a protobuf message.
Field = tuple[int, int | None, int, int]
Data = mmap.mmap | bytes


def fields(data: Data, position: int, end: int) -> Iterator[Field]:
    """Yield the fields of a protobuf message; raise `ValueError` where it is not one."""
    while position < end:
        ((tag, position),) = varints(data, position, end, 1)
        wire = tag & 7
        start = position
        if wire == 0:
            ((value, position),) = varints(data, position, end, 1)
            yield tag >> 3, value, start, position
            continue
        if wire == 2:
            ((length, start),) = varints(data, position, end, 1)
            position = start + length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, None, start, position


def varints(data: Data, position: int, end: int, count: int = 1 << 16) -> list[tuple[int, int]]:
    """Return numbers of a variable length, each with the position behind it."""
    found: list[tuple[int, int]] = []
    while position < end and len(found) < count:
        value = shift = 0
        while True:
            if position >= end or shift > 63:
                raise ValueError("a number without an end")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found.append((value, position))
    if count == 1 and not found:
        raise ValueError("a number is missing")
    return found
