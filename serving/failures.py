"""Why a worker could not load a model, noted in a file beside the archives.

TorchServe keeps the reason to its log. A worker notes it as `<name>-<version>.failed` in the folder that the
environment names, and the follower, which waits for the worker, reads it there.
"""

from __future__ import annotations

import os
from pathlib import Path

from rsp.shared.atomic import atomic_text

FAILED = ".failed"
# Where the workers find the folder; whoever starts TorchServe sets it.
VARIABLE = "RSP_MODEL_STORE"


def failure_note(folder: Path, name: str, version: str) -> Path:
    """Return the file in which a worker notes why it could not load a model."""
    return folder / f"{name}-{version}{FAILED}"


def note_failure(name: str, version: str, reason: str | None) -> None:
    """Note why a worker could not load a model; None where it could. Outside of our server nothing happens."""
    if folder := os.environ.get(VARIABLE):
        note = failure_note(Path(folder), name, version)
        if reason is None:
            note.unlink(missing_ok=True)
        else:
            with atomic_text(note) as file:
                file.write(f"{reason}\n")


def read_failure(folder: Path, name: str, version: str) -> str | None:
    """Return why a worker could not load a model, or None."""
    try:
        return failure_note(folder, name, version).read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
