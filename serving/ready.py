"""Tell whether TorchServe can answer for a model: a worker is READY, and nobody has begun to shut it down.

    python -m rsp.serving.ready              exit code 0 or 1; this is what the probes and the HEALTHCHECK run

TorchServe's own /ping says "Healthy" with no worker, with a model that failed to load, and while workers crash
in a loop. This module needs the standard library only, as probes run it every few seconds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# A gateway, or TorchServe's own token check, may want one; never an argument, as those show in process lists.
TOKEN_VARIABLE = "RSP_TORCHSERVE_TOKEN"  # noqa: S105 (the variable's name)


def auth_headers() -> dict[str, str]:
    """Return the header that carries the token of the environment, if there is one."""
    token = os.environ.get(TOKEN_VARIABLE)
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_loopback(url: str) -> bool:
    """Tell whether a URL is on this machine, where a proxy of the environment has no way to."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def describe(management: str, name: str, version: str = "", timeout: float = 5.0) -> list[dict[str, Any]]:
    """Return what the management API says of a model: of its default version, of one, or of `all`.

    An unreachable server, an unknown model and an answer that makes no sense all give an empty list.
    """
    if not management.startswith(("http://", "https://")):
        raise ValueError(f"the management URL must begin with http:// or https://, got {management!r}")
    url = "/".join(part for part in (management.rstrip("/"), "models", name, version) if part)
    request = urllib.request.Request(url, headers=auth_headers())  # noqa: S310 (scheme checked above)
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
    try:
        with urllib.request.build_opener(proxies).open(request, timeout=timeout) as answer:
            found = json.loads(answer.read())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def ready_workers(management: str, name: str, version: str = "") -> int:
    """Return how many workers of a model are READY."""
    return sum(
        worker.get("status") == "READY"
        for model in describe(management, name, version)
        for worker in model.get("workers", [])
    )


def main() -> int:
    """Exit with 0 where the model of this container is ready."""
    if (Path(tempfile.gettempdir()) / "draining").exists():
        print("draining")
        return 1
    management = os.environ.get("TS_MANAGEMENT_ADDRESS", "http://127.0.0.1:8081").replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    count = ready_workers(management, os.environ.get("RSP_MODEL_NAME", "rsp"))
    print(f"{count} workers READY")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
