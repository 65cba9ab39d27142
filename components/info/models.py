"""What a model or a release store says of itself, without torch and without running anything of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rsp.serving.manifest import RELEASE, Release, read_limited, verify
from rsp.serving.reader import ReleaseReader
from rsp.shared.errors import ReleaseError
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.header import card_of, read_checkpoint, sniff
from rsp.shared.locations import Location
from rsp.shared.storage import open_storage

FORMS = {"checkpoint": "safetensors", "onnx": "ONNX", "jit": "TorchScript", "pt2": "torch.export"}


def describe_model(path: Path) -> dict[str, Any]:
    """Describe a checkpoint or an exported model by its card.

    Raises:
        ModelError: it is none, or damaged, or has no card.
    """
    kind = sniff(path)
    found: dict[str, Any] = {
        "kind": "checkpoint" if kind == "checkpoint" else "exported model",
        "form": FORMS[kind],
        "bytes": path.stat().st_size,
    }
    if kind == "checkpoint":
        header = read_checkpoint(path)
        return found | {"weights": header.weights} | describe_card(header.card)
    return found | describe_card(card_of(path, kind))


def describe_card(card: ModelCard) -> dict[str, Any]:
    """Return what a model card says."""
    return {
        "network": card.nn,
        "encoder": card.encoder,
        "channels": {channel.name: list(channel.bands) for channel in card.channels},
        "values": sorted({channel.value_type or "not known" for channel in card.channels}),
        "classes": [entry.title for entry in card.classes],
        "tile_size": card.tile_size,
        "overlap": card.overlap,
        "zoom": card.zoom,
        "epochs": f"{card.epoch} of {card.epochs}",
        "metrics": {name: round(value, 6) for name, value in sorted(card.metrics.items())},
        "validation": card.validation,
        "uuid": card.uuid,
        "versions": dict(sorted(card.versions.items())),
    }


def describe_release(folder: Path) -> dict[str, Any]:
    """Describe a release; raise `ReleaseError` for a damaged one.

    One that was fetched has its files beside it, which are checked against their digests; those of one in a store
    lie elsewhere.
    """
    release = Release.from_json(read_limited(folder / RELEASE), f"{folder / RELEASE}")
    fetched = (folder / release.model).exists()
    if fetched:
        verify(folder)
    return {
        "kind": "release",
        "name": release.name,
        "version": release.version,
        "created": release.created,
        "bytes": release.size,
        "files": "whole" if fetched else "elsewhere in the store",
        "model": release.model,
        "bands": list(release.bands),
        "values": release.value_type,
        "classes": list(release.classes),
        "tile_size": release.tile_size,
        "overlap": release.overlap,
        "metrics": {name: round(value, 6) for name, value in sorted(release.metrics.items())},
        "validation": release.validation,
        "golden": len(release.golden),
        "versions": {"rsp": release.rsp, "torch": release.torch},
    }


def describe_store(path: Location) -> dict[str, Any] | None:
    """Describe a release store; None where a folder or prefix is none."""
    reader = ReleaseReader(open_storage(str(path)))
    names = reader.names()
    if not names:
        return None
    found: dict[str, Any] = {}
    for name in names:
        try:
            pointer = reader.pointer(name)
            wanted: str | None = pointer.version if pointer else None
        except ReleaseError as error:
            wanted = f"damaged: {error}"
        found[name] = {
            "wanted": wanted,
            "releases": {
                version: str(release) if isinstance(release, ReleaseError) else release.created
                for version, release in reader.releases(name).items()
            },
        }
    return {"kind": "release store", "models": found}
