"""The forms of a model: checkpoint, ONNX, TorchScript and torch.export; told by content, written and loaded.

Each carries its model card inside. An exported model takes windows of one size, (N, bands, side, side) float32
with N from 1 to `MAX_BATCH`, where `side` follows from its card (`window_side`); a checkpoint takes any size.

Files of others are read with care: pickles are refused, and of `torch.export` archives only what `rsp export`
writes is let through to torch's loader, since that unpickles some members and runs libraries from others.
"""

from __future__ import annotations

import json
import logging
import mmap
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rsp.shared.errors import ModelError
from rsp.shared.learning.card import MAX_BYTES, ModelCard

Kind = Literal["checkpoint", "onnx", "jit", "pt2"]
ExportKind = Literal["onnx", "jit", "pt2"]

# (N, bands, H, W) float32 on the device of the network -> logits (N, classes, H, W).
Network = Callable[[torch.Tensor], torch.Tensor]

# Encoders halve the resolution five times.
STRIDE = 32
MAX_BATCH = 64
# Larger than any network for tiles; a stranger's file is not read without end.
MAX_FILE = 8 << 30
_CARD = "card"
_PT2_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt|extra/card|version"
)


def window_side(card: ModelCard) -> int:
    """Return the side in pixels of the windows of a model: a tile and its borders, up to a multiple of 32."""
    return -(-(card.tile_size + 2 * card.overlap) // STRIDE) * STRIDE


def sniff(path: Path) -> Kind:
    """Tell by content what form of a model a file is; raise `ModelError` where it is none."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}") from error
    if size > MAX_FILE:
        raise ModelError(f"the model {path} has {size} bytes, the limit is {MAX_FILE}")
    if head.startswith(b"PK\x03\x04"):
        names = _members(path)
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


def read_model_card(path: Path) -> ModelCard:
    """Return the card of a model in any form, without loading its weights.

    Raises:
        ModelError: no model, a damaged one, or one without a card.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "checkpoint":
        from rsp.shared.learning.checkpoint import read_card

        return read_card(path)
    text = _onnx_card(path) if kind == "onnx" else _zip_card(path)
    if text is None:
        raise ModelError(f"{path} holds no model card; export the checkpoint with `rsp export`")
    try:
        return ModelCard.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def load_network(path: Path, device: str = "cpu") -> tuple[Network, ModelCard, Kind]:
    """Load a model of any form, ready to answer.

    Raises:
        ModelError: no model, a damaged one, one without a card or of another shape than its card says, or a
            device that is not there.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "checkpoint":
        from rsp.shared.learning.checkpoint import load_checkpoint

        model, card = load_checkpoint(path, device=device)
        return model, card, kind
    card = read_model_card(path)
    loaders: dict[str, Callable[[Path, str, ModelCard], Network]] = {
        "onnx": _load_onnx, "jit": _load_jit, "pt2": _load_pt2
    }  # fmt: skip
    try:
        return loaders[kind](path, device, card), card, kind
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"the model {path} is damaged, or of another version of its library: {(reason or [repr(error)])[0]}"
        ) from error


def write_model(path: Path, kind: ExportKind, model: nn.Module, card: ModelCard) -> None:
    """Export a network.

    Args:
        path: The file to write; not atomic, that is the caller's.
        kind: The form.
        model: The network, in evaluation mode, on the CPU.
        card: Its description, which goes into the file.

    Raises:
        ModelError: the network cannot be exported in this form.
    """
    side = window_side(card)
    example = torch.rand(2, card.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    writers = {"onnx": _write_onnx, "jit": _write_jit, "pt2": _write_pt2}
    try:
        with _quiet(), torch.no_grad():
            writers[kind](path, model, example, card.to_json())
    except (OSError, ModelError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise ModelError(
            f"{card.nn} with the encoder {card.encoder} cannot be exported to {kind}: {reason[0]}"
        ) from error


# --- TorchScript --------------------------------------------------------------------------------------------


def _write_jit(path: Path, model: nn.Module, example: torch.Tensor, card: str) -> None:
    traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
    # Folding the normalisations into the convolutions would be quicker, but round differently: one pixel in a
    # million would differ from the checkpoint's.
    frozen = torch.jit.freeze(traced, optimize_numerics=False)
    # To an open file: given a name, torch writes that into the archive, and ours is a temporary one.
    with path.open("wb") as file:
        torch.jit.save(frozen, file, _extra_files={_CARD: card.encode()})


def _load_jit(path: Path, device: str, card: ModelCard) -> Network:
    with _quiet():
        model: Network = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    return model


# --- torch.export -------------------------------------------------------------------------------------------


def _write_pt2(path: Path, model: nn.Module, example: torch.Tensor, card: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    # The example would be stored as a pickle, and be larger than a small network.
    program.example_inputs = None
    # Which line of which file made an operator is nobody's business: the file should not depend on the place.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_CARD: card})


def _load_pt2(path: Path, device: str, card: ModelCard) -> Network:
    _check_pt2(path)
    with path.open("rb") as file:
        program = torch.export.load(file)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()


def _check_pt2(path: Path) -> None:
    """Raise where an archive holds a pickle, a library, or anything that `rsp export` never writes."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0] + "/"
        names = archive.namelist()
        strange = [name for name in names if not _PT2_MEMBERS.fullmatch(name.removeprefix(root))]
        if strange or len(set(names)) < len(names):
            raise ModelError(f"{path} holds {(strange or names)[0]!r}, which `rsp export` does not write: refused")
        pickled = archive.getinfo(f"{root}data/sample_inputs/model.pt").file_size > 0
        for table in ("weights", "constants"):
            with archive.open(f"{root}data/{table}/model_{table}_config.json") as file:
                entries = json.load(file)["config"].values()
            pickled |= any(entry["use_pickle"] for entry in entries)
    if pickled:
        raise ModelError(f"{path} holds pickled data, which could run any code: refused; use `rsp export`")


# --- ONNX ---------------------------------------------------------------------------------------------------


def _write_onnx(path: Path, model: nn.Module, example: torch.Tensor, card: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.onnx.export(
        model, (example,), dynamo=True, external_data=False, verbose=False, optimize=True,
        input_names=["images"], output_names=["logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # as for torch.export
    program.model.metadata_props[_CARD] = card
    program.save(str(path), external_data=False)


def _load_onnx(path: Path, device: str, card: ModelCard) -> Network:
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
    side = window_side(card)
    if list(source.shape[1:]) != [card.in_channels, side, side]:
        raise ModelError(f"{path} takes {source.shape}, its card says {card.in_channels} bands of {side} pixels")

    def network(batch: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(None, {source.name: batch.cpu().numpy()})
        return torch.from_numpy(logits)

    return network


def _onnx_card(path: Path) -> bytes | None:
    """Find the card among the metadata of an ONNX file (protobuf), without parsing the graph."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for field, start, end in _fields(data, 0, len(data)):
                if field != 14 or end - start > MAX_BYTES:  # ModelProto.metadata_props
                    continue
                entry = {key: data[a:b] for key, a, b in _fields(data, start, end)}
                if entry.get(1) == _CARD.encode():
                    return entry.get(2)
    except (IndexError, ValueError) as error:
        raise ModelError(f"the model {path} is damaged, or no ONNX file") from error
    return None


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field that has a length, of a protobuf message."""

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("varint")

    while position < end:
        tag = varint()
        wire = tag & 7
        if wire == 0:
            varint()
        elif wire == 2:
            length = varint()
            if position + length > end:
                raise ValueError("length")
            yield tag >> 3, position, position + length
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError("wire type")


# --- archives -----------------------------------------------------------------------------------------------


def _members(path: Path) -> set[str]:
    """Return the members of a zip archive without the folder that they all lie in."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ModelError(f"the model {path} is damaged: {error}") from error


def _zip_card(path: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.partition("/")[2] == f"extra/{_CARD}":
                    if entry.file_size > MAX_BYTES:
                        raise ModelError(f"the card of {path} has {entry.file_size} bytes")
                    return archive.read(entry)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(f"the model {path} is damaged: {error}") from error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch says about its own plans: deprecations, and packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
