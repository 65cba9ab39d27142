"""The event file of a training, read by TensorBoard where it is installed, and by its rules where it is not."""

from __future__ import annotations

import struct

import pytest

from rsp.components.train.events import EVENTS, Events, _checksum


def row(epoch, loss):
    part = {"loss": loss, "iou": None, "iou_of": {"a": 0.5}, "confusion": [[1, 0], [0, 1]]}
    return {"epoch": epoch, "lr": 0.25, "seconds": 2, "training": part, "validation": part}


def records(data):
    """Yield the events in a file, checksums checked."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = data[12 : 12 + length]
        assert data[8:12] == _checksum(data[:8]) and data[12 + length : 16 + length] == _checksum(event)
        yield event
        data = data[16 + length :]


def test_checksum_is_the_one_of_tfrecord():
    crc = 0xE3069283  # CRC-32C of "123456789", as its catalogue has it
    assert _checksum(b"123456789") == struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_a_record_an_epoch_also_after_an_interruption(tmp_path):
    events = Events(tmp_path, [row(1, 0.5)])
    events.add(row(2, 0.125))
    first, *epochs = records((tmp_path / EVENTS).read_bytes())
    assert b"brain.Event:2" in first and len(epochs) == 2
    assert b"validation/loss\x15" + struct.pack("<f", 0.125) in epochs[1] and b"training/iou_of_a" in epochs[1]
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b"cut")  # by a kill
    Events(tmp_path, [row(1, 0.5)])
    assert len(list(records((tmp_path / EVENTS).read_bytes()))) == 2


def test_tensorboard_reads_it(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = Events(tmp_path, [row(1, 0.5)])
    events.add(row(2, 0.125))
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in found.Scalars("training/loss")] == [(1, 0.5), (2, 0.125)]
    assert {"lr", "seconds", "validation/iou_of_a"} <= set(found.Tags()["scalars"])
