"""The one place that says where the images of the components are, and which version of them."""

from __future__ import annotations

import os
from importlib.metadata import version

# Compiled pipelines name an immutable version: a tag that moves would serve stale results from KFP's cache.
REGISTRY = os.environ.get("RSP_IMAGE_REGISTRY", "ghcr.io/rsp-components")
TAG = os.environ.get("RSP_IMAGE_TAG", version("rsp"))


def image(tool: str) -> str:
    """Return the image of a tool, as `<registry>/rsp-<tool>:<version>`."""
    return f"{REGISTRY}/rsp-{tool}:{TAG}"
