"""Tell whether TorchServe can answer for a model: a worker has loaded it, and no shutdown has begun.

    python -m rsp.serving.ready              exit code 0 or 1; this is what the probes and the HEALTHCHECK run

TorchServe's own /ping says "Healthy" with no worker, with a model that failed to load, and while workers crash
in a loop.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from rsp.serving.management import Management
from rsp.shared.errors import ServingError


def main() -> int:
    """Return 0 where the model of this container is ready."""
    if (Path(tempfile.gettempdir()) / "draining").exists():
        print("not ready: shutting down")
        return 1
    management = os.environ.get("TS_MANAGEMENT_ADDRESS", "http://127.0.0.1:8081").replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    name = os.environ.get("RSP_MODEL_NAME", "rsp")
    try:
        count = Management(management, name).ready_workers()
    except ServingError as error:
        print(f"not ready: {error}")
        return 1
    print(f"{'ready' if count else 'not ready'}: {count} workers have loaded the model {name}")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
