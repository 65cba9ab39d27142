"""Run a compiled pipeline with kfp's DockerRunner, each step in the container that a cluster would give it.

    python -m tests.images.docker_runner FOLDER

FOLDER holds `pipeline.yaml` and `run.json`: the root of the run, its parameters, and options for the containers.

kfp's own way to run a container cannot be believed: it lets the engine remove a container that ended, and takes
one that it does not find any more for a success. It also leaves the entrypoint of the image in front of the
command, which Kubernetes replaces, and pulls what is not there. `run_container` does none of these.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any


def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
    """Run a container to its end and return its exit code; kfp calls it as its own `run_docker_container`.

    Raises:
        docker.errors.ImageNotFound: the image is not on this machine. It is never pulled.
    """
    client.images.get(image)
    container = client.containers.create(
        image, entrypoint=command[:1], command=command[1:], volumes={**volumes, **VOLUMES}, **options
    )
    try:
        container.start()
        for line in container.logs(stream=True, follow=True):
            print(line.decode(errors="replace"), end="", flush=True)
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True, v=True)


def replace_runner() -> None:
    """Let kfp's DockerRunner run containers with `run_container`.

    Raises:
        RuntimeError: this kfp runs them in another way, and would not come to call it.
    """
    import kfp.local.docker_task_handler as handler

    name = "run_docker_container"
    if not hasattr(handler, name) or name not in handler.DockerTaskHandler.run.__code__.co_names:
        raise RuntimeError(f"kfp's DockerRunner calls no {name} any more: its results cannot be believed")
    handler.run_docker_container = run_container


# More volumes for each container: kfp gives it the root of the run alone.
VOLUMES: dict[str, Any] = {}


def main(folder: Path) -> None:
    """Run what the folder holds."""
    warnings.simplefilter("ignore")
    from kfp import components, local

    run = json.loads((folder / "run.json").read_text("utf-8"))
    VOLUMES.update(run["volumes"])
    replace_runner()
    # kfp makes the folders of the outputs, as whoever runs it; the steps are somebody else.
    os.umask(0)
    workspace = folder / "workspace"
    workspace.mkdir()
    local.init(
        runner=local.DockerRunner(**run["options"]), pipeline_root=run["root"], workspace_root=str(workspace)
    )
    component = components.load_component_from_file(str(folder / "pipeline.yaml"))
    try:
        component(**run["parameters"])
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
