"""The one place that says where the images of the components are, and which version of them."""

from __future__ import annotations

import os

from rsp import __version__
from rsp.shared.errors import PipelineError

REGISTRY = os.environ.get("RSP_IMAGE_REGISTRY", "ghcr.io/rsp-components")
TAG = os.environ.get("RSP_IMAGE_TAG", __version__)

# Tags that are given to one build after the other. KFP's cache knows a step by the text of its image: behind a
# tag that moves it would serve what older code has made.
MOVING = {"", "latest", "main", "master", "dev", "edge", "nightly", "stable"}


def image(tool: str) -> str:
    """Return the image of a tool, as `<registry>/rsp-<tool>:<version>`.

    Raises:
        PipelineError: the tag is one that moves.
    """
    if TAG in MOVING:
        raise PipelineError(f"RSP_IMAGE_TAG is {TAG!r}, which moves; name a version, as {__version__}")
    return f"{REGISTRY}/rsp-{tool}:{TAG}"
