"""Puts one model into a release store of this machine, for `rsp serve --model`.

    python -m rsp.serving.publish model.pt2 STORE NAME [VERSION]        a process of its own, as torch is needed

`rsp deploy` is the command for a store that others follow: this one makes no golden tiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rsp.serving.archive import trusts_models
from rsp.serving.manifest import sha8
from rsp.shared.errors import ModelError, RspError


def publish_model(model: Path, store: Path, name: str, version: str) -> str:
    """Publish a model, and let the name want it.

    Args:
        model: An exported model, or a checkpoint.
        store: A folder.
        name: Of the model.
        version: Of the model; 8 digits of its SHA-256 where empty.

    Returns:
        The version.

    Raises:
        ModelError: it is not a model of ours, could run code, or name or version do not fit into a URL.
    """
    version = version or sha8(model)
    command = [sys.executable, "-m", "rsp.serving.publish", str(model), str(store), name, version]
    # With -m, a `json.py` or a `torch/` of the current folder would be taken for the real one.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise ModelError(last[0].removeprefix("error: "))
    return version


def main(argv: list[str]) -> int:
    """Publish a model; errors go to standard error."""
    from rsp.serving.releases import ReleaseStore
    from rsp.shared.learning.formats import check_model
    from rsp.shared.storage import open_storage

    model, (folder, name, version) = Path(argv[0]), argv[1:]
    try:
        card = check_model(model, trust_model=trusts_models())
        store = ReleaseStore(open_storage(folder))
        stored = f"model{model.suffix}"
        torch = str(card.versions.get("torch", "unknown"))
        store.publish(name, version, {stored: model}, card=card, model=stored, torch=torch)
        store.move(name, version, expected=store.pointer(name), reason="rsp serve --model")
    except RspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
