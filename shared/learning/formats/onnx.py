"""Models as ONNX: protobuf messages, read here only as far as is needed to see that they are data of their own.

ONNX names operators and holds their weights; onnxruntime brings the code. It would read weights from any other
file that one of them names, and operators of other domains come from libraries. A file of ours has neither.
"""

from __future__ import annotations

import hashlib
import mmap
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsp.shared.errors import ModelError
from rsp.shared.learning.header import CARD, DIGEST, METADATA, mapped, onnx_metadata
from rsp.shared.protobuf import fields, varints

MAX_DEPTH = 16
_DOMAINS = (b"", b"ai.onnx")
_EXTERNAL, _LOCATION = 13, 14  # of TensorProto

# The fields of each message that are known, and what message they hold, if it is looked into (onnx.proto, IR 13).
_SCHEMA: dict[str, dict[int, str]] = {
    "model": dict.fromkeys((1, 2, 3, 4, 5, 6, METADATA), "") | {7: "graph", 8: "opset", 25: "function"},
    "opset": {1: "domain", 2: ""},
    "graph": dict.fromkeys((2, 10, 11, 12, 13, 14, 16), "") | {1: "node", 5: "tensor", 15: "sparse"},
    "node": dict.fromkeys((1, 2, 3, 4, 6, 8, 9), "") | {5: "attribute", 7: "domain"},
    "attribute": dict.fromkeys((1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 20, 21), "")
    | {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": dict.fromkeys((1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, _LOCATION, 16), ""),
    "sparse": {1: "tensor", 2: "tensor", 3: ""},
    "function": dict.fromkeys((1, 4, 5, 6, 8, 11, 12, 13, 14), "") | {7: "node", 9: "opset", 10: "domain"},
}


def write_onnx(path: Path, model: nn.Module, example: torch.Tensor, card: str, max_batch: int) -> None:
    """Export a network; see `rsp.shared.learning.formats.write_model`."""
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    program = torch.onnx.export(
        model, (example,), dynamo=True, external_data=False, verbose=False, optimize=True,
        input_names=["images"], output_names=["logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # as for torch.export
    program.model.metadata_props[CARD.decode()] = card
    program.save(str(path), external_data=False)
    # ONNX has no checksum of its own. Messages of protobuf are joined by writing one behind the other.
    digest = _digest(path)
    entry = _text(1, DIGEST) + _text(2, digest.encode())
    with path.open("ab") as file:
        file.write(_text(METADATA, entry))


def load_onnx(path: Path, device: str) -> tuple[Any, list[Any]]:
    """Open a session; return it, and the shape of what the network takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread a window, as the other forms have: see `rsp.shared.learning.inference`.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ModelError("this onnxruntime has no CUDA; install onnxruntime-gpu, or use --device cpu")
        index = torch.device(device).index or 0
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    (source,) = session.get_inputs()
    return session, list(source.shape)


def check_digest(path: Path) -> None:
    """Raise where an ONNX file is not what was written, if it says what that was."""
    with mapped(path) as data:
        expected = onnx_metadata(data).get(DIGEST)
    if expected is not None and expected.decode("latin-1") != _digest(path):
        raise ModelError(f"the model {path} is damaged: its SHA-256 is not the one that it was written with")


def check_onnx(path: Path) -> None:
    """Raise where an ONNX file reaches beyond itself.

    Raises:
        ModelError: it is damaged, names weights in other files or operators of other domains, has fields that are
            not known, or weights that claim to be larger than the file.
    """
    with mapped(path) as data:
        _walk(data, "model", 0, len(data), 0)


def _walk(data: mmap.mmap, message: str, start: int, end: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelError("its graphs are nested too deeply")
    if message == "domain":
        domain = data[start:end]
        if domain not in _DOMAINS:
            raise ModelError(
                f"it needs operators of {domain[:80].decode('latin-1')!r}, which is a library of its own"
            )
        return
    known = _SCHEMA[message]
    sides: list[int] = []
    for number, value, first, last in fields(data, start, end):
        if message == "tensor" and (number == _EXTERNAL or (number == _LOCATION and value)):
            raise ModelError("its weights are in another file, and it could name any")
        if number not in known:
            raise ModelError(f"a {message} of it has the unknown field {number}")
        if message == "tensor" and number == 1:
            sides += [value] if value is not None else [side for side, _ in varints(data, first, last)]
        if known[number]:
            if value is not None:
                raise ModelError(f"a {message} of it is damaged")
            _walk(data, known[number], first, last, depth + 1)
    # A value takes half a byte at least.
    if sides and (max(sides) >= 1 << 63 or prod(sides) > 2 * (end - start)):
        raise ModelError(f"a weight claims to have the shape {sides[:8]}, which is more than the file holds")


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file but for its metadata."""
    digest = hashlib.sha256()
    with mapped(path) as data:
        for number, value, start, end in fields(data, 0, len(data)):
            if number != METADATA:
                digest.update(f"{number} {value} {end - start}\n".encode())
                with memoryview(data) as view:
                    digest.update(view[start:end])
    return digest.hexdigest()


def _text(number: int, value: bytes) -> bytes:
    """Return a field of a protobuf message that holds bytes."""
    head = bytearray()
    for rest in (number << 3 | 2, len(value)):
        while rest > 0x7F:
            head.append(rest & 0x7F | 0x80)
            rest >>= 7
        head.append(rest)
    return bytes(head) + value
