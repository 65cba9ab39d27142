"""What a model file says of itself: its form and its card, read without torch, and without a weight."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rsp.shared.errors import ModelError
from rsp.shared.learning.archives import open_archive
from rsp.shared.learning.card import MAX_BYTES, ModelCard
from rsp.shared.locations import Location, location, on_disk
from rsp.shared.protobuf import fields

Kind = Literal["checkpoint", "onnx", "jit", "pt2"]

# Larger than any network for tiles; a stranger's file is not read without end.
MAX_FILE = 8 << 30
# The header of a checkpoint: its card and plan, and 100 bytes a weight.
MAX_HEADER = 16 << 20
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
CARD, DIGEST = b"card", b"sha256"
METADATA = 14  # ModelProto.metadata_props


class Checkpoint(NamedTuple):
    """What stands in the header of a checkpoint.

    Attributes:
        card: The model card.
        plan: What the network's library needs to build it, if it needs anything.
        weights: How many numbers the weights are.
    """

    card: ModelCard
    plan: dict[str, Any] | None
    weights: int


def sniff(path: Path) -> Kind:
    """Tell by content what form of a model a file is; raise `ModelError` where it is not one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}") from error
    if size > MAX_FILE:
        raise ModelError(f"the model {path} has {size} bytes, the limit is {MAX_FILE}")
    if head.startswith(b"PK\x03\x04"):
        with open_archive(path) as archive:
            names = set(archive.sizes)
        if "archive_format" in names:
            return "pt2"
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "jit"
        raise ModelError(
            f"{path} is an archive, but neither TorchScript nor torch.export; pickles, as torch.save writes, are "
            "refused, since they could run any code: use a checkpoint of `rsp train`, or export it"
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "checkpoint"
    if head[:1] == b"\x08":  # the first field of an ONNX file: the version of its form
        return "onnx"
    raise ModelError(
        f"{path} is not a model; expected a checkpoint (safetensors), ONNX, TorchScript or torch.export"
    )


def read_model_card(path: Location) -> ModelCard:
    """Return the card of a model in any form, without loading its weights.

    Raises:
        ModelError: no model, a damaged one, or one without a card.
        StorageError: it is in S3, and there is none, or the store cannot be reached.
    """
    with on_disk(location(path)) as file:
        return card_of(file, sniff(file))


def card_of(path: Path, kind: Kind) -> ModelCard:
    """Return the card of a model of a form."""
    if kind == "checkpoint":
        return read_checkpoint(path).card
    text = _onnx_card(path) if kind == "onnx" else _zip_card(path)
    if text is None:
        raise ModelError(f"{path} holds no model card; export the checkpoint with `rsp export`")
    try:
        return ModelCard.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what the header of a checkpoint says; raise `ModelError` where it is not one.

    Whether the weights are whole is not looked at: `rsp.shared.learning.checkpoint.check_checkpoint` does.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(8), os.fstat(file.fileno()).st_size
            refuse_pickle(path, start)
            length = int.from_bytes(start, "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ModelError(f"{path} is not a checkpoint, or it is damaged (a header of {length} bytes)")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not a checkpoint, or it is damaged ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ModelError(f"{path} is not a checkpoint, or it is damaged (its header is no table)")
    card, plan = described(header.pop("__metadata__", {}), path)
    try:
        weights = sum(prod(each["shape"]) for each in header.values())
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a checkpoint, or it is damaged (a weight without a shape)") from error
    return Checkpoint(card, plan, weights)


def refuse_pickle(path: Path, start: bytes) -> None:
    """Raise `ModelError` where a file begins as a pickle does."""
    if start.startswith(_PICKLES):
        raise ModelError(
            f"{path} is a pickle (as torch.save writes), which could run any code when loaded; "
            "checkpoints are safetensors files: train or convert it to one"
        )


def described(metadata: Mapping[str, Any], path: Path) -> tuple[ModelCard, dict[str, Any] | None]:
    """Return the card in the notes of a checkpoint, and the plan of its network if it has one."""
    if not isinstance(metadata.get("card"), str):
        raise ModelError(f"{path} is a safetensors file without a model card: `rsp train` did not write it")
    try:
        card = ModelCard.from_json(metadata["card"])
        text = metadata.get("plan")
        if text is not None and len(text) > MAX_BYTES:
            raise ModelError("the plan of the network is too large")
        plan = None if text is None else json.loads(text)
        if plan is not None and not isinstance(plan, dict):
            raise ModelError("the plan of the network is not an object")
    except (ModelError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from error
    return card, plan


def _zip_card(path: Path) -> bytes | None:
    name = f"extra/{CARD.decode()}"
    with open_archive(path) as archive:
        if name not in archive.sizes:
            return None
        if archive.sizes[name] > MAX_BYTES:
            raise ModelError(f"the card of {path} has {archive.sizes[name]} bytes")
        return archive.text(name)


def _onnx_card(path: Path) -> bytes | None:
    """Find the card among the metadata of an ONNX file, without parsing the graph."""
    with mapped(path) as data:
        return onnx_metadata(data).get(CARD)


def onnx_metadata(data: mmap.mmap) -> dict[bytes | None, bytes | None]:
    """Return the notes of an ONNX file."""
    found: dict[bytes | None, bytes | None] = {}
    for number, _, start, end in fields(data, 0, len(data)):
        if number == METADATA and end - start <= MAX_BYTES:
            entry = {key: data[a:b] for key, _, a, b in fields(data, start, end)}
            found[entry.get(1)] = entry.get(2)
    return found


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file; what is no protobuf in it is an error of the model."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (IndexError, ValueError) as error:
        raise ModelError(f"the model {path} is damaged, or not an ONNX file: {error}") from error
