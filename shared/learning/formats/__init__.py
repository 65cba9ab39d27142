"""The forms of a model: checkpoint, ONNX, TorchScript and torch.export; told by content, written and loaded.

Each carries its model card inside. An exported model takes windows of one size, (N, bands, side, side) float32
with N from 1 to `MAX_BATCH`, where `side` follows from its card (`window_side`); a checkpoint takes any size.

Files of others are read with care. A checkpoint and ONNX are data; TorchScript and torch.export files are
programs, and torch would run what a crafted one says. So of these only what `rsp export` writes of a network is
let through to torch, unless the caller trusts the file; see docs/security.md.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rsp.shared.errors import ModelError, RspError
from rsp.shared.learning.answers import check_logits, guarded_network
from rsp.shared.learning.archives import NOTHING, open_archive
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.formats.onnx import check_digest, check_onnx, load_onnx, write_onnx
from rsp.shared.learning.formats.pt2 import clean_pt2, load_pt2, load_trusted_pt2, write_pt2
from rsp.shared.learning.formats.torchscript import clean_jit, load_jit, write_jit
from rsp.shared.learning.header import Kind, card_of, read_model_card, sniff
from rsp.shared.locations import Location, location, on_disk

__all__ = [
    "MAX_BATCH",
    "STRIDE",
    "ExportKind",
    "Kind",
    "Network",
    "check_model",
    "load_network",
    "read_model_card",
    "sniff",
    "window_side",
    "write_model",
]

ExportKind = Literal["onnx", "jit", "pt2"]

# (N, bands, H, W) float32 on the device of the network -> logits (N, classes, H, W).
Network = Callable[[torch.Tensor], torch.Tensor]

# Encoders halve the resolution five times.
STRIDE = 32
MAX_BATCH = 64
_CARD = "card"
_CLEAN = {"jit": clean_jit, "pt2": clean_pt2}


def window_side(card: ModelCard) -> int:
    """Return the side in pixels of the windows of a model: a tile and its borders, up to a multiple of 32."""
    return -(-(card.tile_size + 2 * card.overlap) // STRIDE) * STRIDE


def check_model(path: Location, *, trust_model: bool = False) -> ModelCard:
    """Check a model without loading it: that it is whole, and a program only of what a network needs.

    Args:
        path: A model of any form.
        trust_model: Take what is not known to be harmless; damage is found all the same.

    Returns:
        Its card.

    Raises:
        ModelError: no model, a damaged one, one without a card, or one that could do more than a network does.
        StorageError: it is in S3, and there is none, or the store cannot be reached.
    """
    with on_disk(location(path)) as file:
        return _check(file, trust_model)


def _check(path: Path, trust_model: bool) -> ModelCard:
    kind = sniff(path)
    if kind == "checkpoint":
        from rsp.shared.learning.checkpoint import check_checkpoint

        return check_checkpoint(path)
    card = card_of(path, kind)
    if kind == "onnx":
        check_digest(path)
    if not trust_model:
        with _refused_by_name(path):
            if kind == "onnx":
                check_onnx(path)
            else:
                _CLEAN[kind](path)
    elif kind != "onnx":
        with open_archive(path) as archive:
            archive.copy({}, NOTHING)  # reads every member, against its checksum
    return card


def load_network(
    path: Location, device: str = "cpu", *, trust_model: bool = False
) -> tuple[Network, ModelCard, Kind]:
    """Load a model of any form, ready to answer.

    Args:
        path: The model.
        device: Where it computes, as `cpu` or `cuda:0`.
        trust_model: Load an exported program whatever it holds: it may run any code. For files of your own that
            hold an operator which is not on the list.

    Raises:
        ModelError: no model, a damaged one, one without a card or of another shape than its card says, one that
            could do more than a network does, or a device that is not there.
        StorageError: it is in S3, and there is none, or the store cannot be reached.
    """
    with on_disk(location(path)) as file:
        return _load(file, device, trust_model)


def _load(path: Path, device: str, trust_model: bool) -> tuple[Network, ModelCard, Kind]:
    kind = sniff(path)
    if kind == "checkpoint":
        from rsp.shared.learning.checkpoint import load_checkpoint

        model, card = load_checkpoint(path, device=device)
        return model, card, kind
    card = card_of(path, kind)
    try:
        if kind == "onnx":
            return _load_onnx(path, device, card, trust_model), card, kind
        with _quiet(), _refused_by_name(path):
            return (_load_jit if kind == "jit" else _load_pt2)(path, device, card, trust_model), card, kind
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"the model {path} is damaged, or of another version of its library: {(reason or [repr(error)])[0]}"
        ) from error


def _load_jit(path: Path, device: str, card: ModelCard, trust_model: bool) -> Network:
    with path.open("rb") if trust_model else clean_jit(path) as source:
        return load_jit(source, device)


def _load_pt2(path: Path, device: str, card: ModelCard, trust_model: bool) -> Network:
    try:
        with clean_pt2(path) as checked:
            graph = load_pt2(checked, device)
    except ModelError:
        if not trust_model:
            raise
        with path.open("rb") as source:
            return load_trusted_pt2(source, device)
    _check_shape(path, graph.shape, card)
    return graph


def _check_shape(path: Path, shape: list[Any], card: ModelCard) -> None:
    side = window_side(card)
    if shape[1:] != [card.in_channels, side, side]:
        raise ModelError(f"{path} takes {shape}, its card says {card.in_channels} bands of {side} pixels")


def _load_onnx(path: Path, device: str, card: ModelCard, trust_model: bool) -> Network:
    check_digest(path)
    if not trust_model:
        with _refused_by_name(path):
            check_onnx(path)
    session, shape = load_onnx(path, device)
    _check_shape(path, shape, card)
    name = session.get_inputs()[0].name

    def network(batch: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(None, {name: batch.cpu().contiguous().numpy()})
        return torch.from_numpy(logits)

    return network


@contextmanager
def _refused_by_name(path: Path) -> Iterator[None]:
    """Say of which file it is that something was refused, and what to do."""
    try:
        yield
    except ModelError as error:
        if str(path) in str(error):
            raise
        raise ModelError(
            f"{path} is refused: {error}. An exported model is a program, and this one could do more than a "
            "network does. Export its checkpoint with `rsp export`; or, if you trust who made the file, give "
            "--trust_model"
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
    from rsp.shared.learning.models.folding import folded  # as in `Predictor`: not where models are only loaded

    model = folded(model)  # as the checkpoint answers, so that both give the same bytes
    side = window_side(card)
    example = torch.rand(2, card.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    example = example.contiguous(memory_format=torch.channels_last)  # as it is asked: see `Predictor`
    text = card.to_json()
    try:
        with _quiet(), torch.no_grad():
            with guarded_network(card.nn):
                answer = model(example)
            check_logits(answer, card.nn, (len(example), card.num_classes, side, side))
            if kind == "onnx":
                write_onnx(path, model, example, text, MAX_BATCH)
            elif kind == "pt2":
                write_pt2(path, model, example, {_CARD: text}, MAX_BATCH)
            else:
                write_jit(path, model, example, {_CARD: text})
    except (OSError, RspError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise ModelError(
            f"{card.nn} with the encoder {card.encoder} cannot be exported to {kind}: {reason[0]}"
        ) from error


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
