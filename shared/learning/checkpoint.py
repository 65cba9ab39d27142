"""Checkpoints: one safetensors file whose header holds the model card; no pickle, no code of strangers."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rsp.shared.atomic import atomic_path, atomic_text
from rsp.shared.errors import ModelError, StorageError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.header import described, refuse_pickle
from rsp.shared.learning.models import build_model, is_plugin, plan_of
from rsp.shared.learning.models.budget import Budget
from rsp.shared.locations import Location, location, on_disk


def save_checkpoint(path: Location, model: nn.Module, card: ModelCard) -> None:
    """Write a checkpoint atomically, and its card once more, for people, as `<path>.json`.

    Args:
        path: Where to, as `best.safetensors`.
        model: The network, not wrapped (by DDP or `torch.compile`).
        card: Its description.

    Raises:
        StorageError: the disk refuses.
    """
    text = card.to_json()
    metadata = {"card": text, "format": "pt"}
    plan = plan_of(model)
    if plan is not None:
        # What the network's library needs to build it, so that loading asks neither hub nor folder.
        metadata["plan"] = json.dumps(plan, sort_keys=True)
    try:
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(_tensors(model), temporary, metadata)
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
            _sort_header(temporary)
    except SafetensorError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    with atomic_text(path.with_name(f"{path.name}.json")) as file:
        file.write(text + "\n")


def _sort_header(path: Path) -> None:
    """Put the notes in the header in order: safetensors shuffles them; equal checkpoints must be equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else it was not written as we write it: leave it as it is
            file.seek(8)
            file.write(text.ljust(length))


def load_checkpoint(path: Location, *, device: str | torch.device = "cpu") -> tuple[nn.Module, ModelCard]:
    """Build the network that a checkpoint describes and load its weights, all of them.

    Nothing is fetched, and no pretrained weights are asked for. A network that is a plug-in must be installed.

    Returns:
        The network in evaluation mode, and its card.

    Raises:
        ModelError: no checkpoint, a damaged one, or weights of another network than the card says.
        StorageError: it is in S3, and there is none, or the store cannot be reached.
    """
    with on_disk(location(path)) as file:
        card, plan = _read_header(file)
        weights = _read_weights(file, card)
        with nullcontext() if is_plugin(card.nn) else Budget(plan, [*weights.values()], str(file)):
            model = build_model(card.model_config(), card.in_channels, card.num_classes, plan=plan)
        load_weights(model, weights, str(file))
    return model.to(device).eval(), card


def check_checkpoint(path: Location) -> ModelCard:
    """Return the card of a checkpoint whose weights are whole; raise `ModelError` where they are not."""
    with on_disk(location(path)) as file:
        card, _ = _read_header(file)
        _read_weights(file, card)
    return card


def _read_weights(path: Path, card: ModelCard) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint, which must be those that its card was written for."""
    try:
        with safe_open(path, "pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the checkpoint {path} is damaged: {error}") from error
    if card.uuid and card.uuid != _identity(weights):
        raise ModelError(
            f"the checkpoint {path} is damaged, or its weights were changed: they are not those that its card was "
            "written for"
        )
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Load weights strictly; raise `ModelError` that says how they differ from the network."""
    own = model.state_dict()
    differing = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    missing, foreign = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    if missing or foreign or differing:
        first = [*missing, *foreign, *differing][0]
        raise ModelError(
            f"{where} holds the weights of another network: {len(missing)} are missing, {len(foreign)} are "
            f"unknown and {len(differing)} have another shape, the first is {first}"
        )
    model.load_state_dict(dict(weights))


def read_card(path: Location) -> ModelCard:
    """Return the card of a checkpoint without reading its weights; raise `ModelError` where it is not one."""
    with on_disk(location(path)) as file:
        return _read_header(file)[0]


def fingerprint(model: nn.Module) -> str:
    """Return a UUID that follows from the names and values of the weights."""
    return _identity(_tensors(model))


def _identity(weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest()))


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights on the CPU, none of them sharing memory with another (safetensors refuses that)."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def _read_header(path: Path) -> tuple[ModelCard, dict[str, Any] | None]:
    """Return the card of a checkpoint, and the plan of its network if it has one."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    refuse_pickle(path, start)
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a checkpoint, or it is damaged ({error})") from error
    return described(metadata, path)
