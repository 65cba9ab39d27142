"""Asks a version that TorchServe has loaded for the golden tiles of its release, and compares the masks."""

from __future__ import annotations

import http.client
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from rsp import __version__
from rsp.serving.management import NotReadyError
from rsp.serving.manifest import Precision, Release
from rsp.shared.errors import ServingError, TileError

# Fraction of the pixels that may differ where server and release compute with different types or instructions, or
# with the code of different versions for a checkpoint. Where these are the same, no pixel does.
TOLERANCE = 0.001


def compare(release: Release, folder: Path, inference: str, timeout: float) -> None:
    """Ask a loaded version for the golden masks of its release.

    Args:
        release: The release.
        folder: Where its files are.
        inference: URL of TorchServe's predictions.
        timeout: Seconds for one tile.

    Raises:
        ServingError: it does not answer, or with other masks.
    """
    import numpy as np  # not at the top: `rsp serve --help` answers without

    from rsp.shared.images import decode_mask

    differing = total = 0
    # An exported model is a program of its own; how the network of a checkpoint rounds is up to our code.
    exact = not release.model.endswith(".safetensors") or release.rsp == __version__
    for golden in release.golden:
        mask, headers = _ask(release, (folder / golden.image).read_bytes(), inference, timeout)
        try:
            there = decode_mask(mask)
        except TileError as error:
            raise ServingError(f"the answer to {golden.image} is no mask: {error}") from error
        here = decode_mask((folder / golden.mask).read_bytes())
        if here.shape != there.shape:
            raise ServingError(
                f"the mask of {golden.image} has the shape {there.shape}, the release says {here.shape}"
            )
        exact = exact and precision_of(headers) == release.precision
        differing += int(np.count_nonzero(here != there))
        total += here.size
    allowed = 0.0 if exact else TOLERANCE
    if differing > allowed * total:
        raise ServingError(
            f"its masks differ from those of the release in {differing / total:.2%} of the pixels of the golden "
            f"tiles; {f'up to {allowed:.2%} may' if allowed else 'none may, as both compute alike'}"
        )


def precision_of(headers: Message) -> Precision | None:
    """Return how the server computed an answer; None where its headers do not say."""
    dtype, device = headers.get("X-Precision"), headers.get("X-Device", "").split()
    if not dtype or len(device) != 2:
        return None
    return Precision(dtype, device[0], device[1])


def _ask(release: Release, image: bytes, inference: str, timeout: float) -> tuple[bytes, Message]:
    """Return a mask, and the headers that came with it."""
    host = urlsplit(inference).netloc
    connection = http.client.HTTPConnection(host, timeout=timeout)
    try:
        connection.request(
            "POST",
            f"/predictions/{release.name}/{release.version}",
            image,
            {"Content-Type": "application/octet-stream", "Accept": "image/png"},
        )
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReadyError(f"TorchServe does not answer a golden tile: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        text = " ".join(content.decode("utf-8", "replace").split())[:300]
        # A worker may have been killed for another reason than this model.
        problem = NotReadyError if answer.status >= 500 else ServingError
        raise problem(f"a golden tile is answered with {answer.status}: {text}")
    version = answer.headers.get("X-Model-Version", release.version)
    if version != release.version:
        raise ServingError(f"version {version} answers in the place of {release.version}")
    return content, answer.headers
