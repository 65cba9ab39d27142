"""The folder from which TorchServe reads archives, and what stands beside them.

`<name>.current` names the archive that a server loads when it starts: what the management API was told is gone
when TorchServe stops. `<name>.previous` names the one before, which is kept for a roll-back.
`<name>-<version>.failed` holds why a worker could not load a model.
"""

from __future__ import annotations

import os
from pathlib import Path

from rsp.shared.atomic import atomic_text

CURRENT, PREVIOUS, FAILED = ".current", ".previous", ".failed"
# Where the workers find the store; whoever starts TorchServe sets it.
VARIABLE = "RSP_MODEL_STORE"


def set_current(model_store: Path, name: str, archive: Path) -> None:
    """Note which archive of a model a server loads when it starts on this store."""
    _write(model_store / f"{name}{CURRENT}", archive.name)


def current_archives(model_store: Path) -> dict[str, str]:
    """Return the file name of each model's current archive, where it exists, by the model's name."""
    found = {}
    for pointer in sorted(model_store.glob(f"*{CURRENT}")):
        archive = _read(pointer)
        if archive and (model_store / archive).is_file():
            found[pointer.name.removesuffix(CURRENT)] = archive
    return found


def restore_current(model_store: Path, name: str, archive: str | None) -> None:
    """Set the pointer back to what `current_archives` had for a model."""
    if archive is None:
        (model_store / f"{name}{CURRENT}").unlink(missing_ok=True)
    else:
        set_current(model_store, name, model_store / archive)


def set_previous(model_store: Path, name: str, archive: str, *, keep: bool = False) -> None:
    """Note which archive was the current one before, and, unless `keep`, delete the one that was noted so far."""
    pointer = model_store / f"{name}{PREVIOUS}"
    stale = _read(pointer)
    _write(pointer, archive)
    if stale and not keep and stale not in (archive, current_archives(model_store).get(name)):
        remove_archive(model_store, stale)


def previous_archive(model_store: Path, name: str) -> str | None:
    """Return the file name of the archive that was current before."""
    return _read(model_store / f"{name}{PREVIOUS}")


def remove_archive(model_store: Path, archive: str) -> None:
    """Delete an archive. Only names, never paths: a server, or a file, could say anything."""
    path = model_store / Path(archive).name
    if path.suffix == ".mar":
        path.unlink(missing_ok=True)


def failure_note(model_store: Path, name: str, version: str) -> Path:
    """Return the file in which a worker notes why it could not load a model."""
    return model_store / f"{name}-{version}{FAILED}"


def note_failure(name: str, version: str, reason: str | None) -> None:
    """Note why a worker could not load a model; None where it could. Nothing happens outside of a server of ours.

    TorchServe keeps the reason to its log, where nobody who deploys over HTTP can read it.
    """
    if store := os.environ.get(VARIABLE):
        note = failure_note(Path(store), name, version)
        if reason is None:
            note.unlink(missing_ok=True)
        else:
            _write(note, reason)


def read_failure(model_store: Path, name: str, version: str) -> str | None:
    """Return why a worker could not load a model, or None."""
    return _read(failure_note(model_store, name, version))


def _write(path: Path, text: str) -> None:
    with atomic_text(path) as file:
        file.write(f"{text}\n")


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
