"""The numbers of a training as TensorBoard reads them: an event file, written without TensorBoard."""

from __future__ import annotations

import math
import struct
import time
from pathlib import Path
from typing import Any

from rsp.components.train.history import Row, flatten
from rsp.shared.atomic import atomic_path
from rsp.shared.errors import StorageError

# TensorBoard takes files whose names hold `tfevents`.
EVENTS = "events.out.tfevents.rsp"


class Events:
    """The event file of a training: begun with the epochs that are done, and longer by each that follows."""

    def __init__(self, out: Path, history: list[Row]) -> None:
        self.path = out / EVENTS
        with atomic_path(self.path) as temporary:
            first = _field(1, time.time()) + _field(3, b"brain.Event:2")
            temporary.write_bytes(_record(first) + b"".join(map(_event, history)))

    def add(self, row: Row) -> None:
        """Append an epoch; raise `StorageError` where it cannot be written."""
        try:
            with self.path.open("ab") as file:
                file.write(_event(row))
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error


def _event(row: Row) -> bytes:
    """Return the record of an epoch: its numbers by names as `validation/iou`."""
    summary = b""
    for name, value in _numbers(row):
        value = math.nan if value is None else float(value)
        summary += _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value))
    return _record(_field(1, time.time()) + _field(2, row["epoch"]) + _field(5, summary))


def _numbers(row: Row) -> list[tuple[str, Any]]:
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += [(f"{key}/{name}", number) for name, number in flatten(value).items()]
        elif key != "epoch":
            found.append((key, value))
    return found


def _field(number: int, value: float | int | bytes) -> bytes:
    """Return a field of a protocol buffer: a double, a whole number, or bytes."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _record(data: bytes) -> bytes:
    """Frame an event as TFRecord does: its length, a checksum of that, the event, and a checksum of it."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """Return the masked CRC-32C of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _shifted(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_shifted(value) for value in range(256)]
