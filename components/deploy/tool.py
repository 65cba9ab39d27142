"""Deploy an exported model to TorchServe without losing a request: test beside the old version, switch, drain.

rsp deploy --model model.pt2 --model_store /models --golden tiles
rsp deploy --model model.pt2 --model_store /models --name roofs --management http://serving:8081
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.shared.arguments import add_trust_model, bounded
from rsp.shared.claims import check_paths
from rsp.shared.errors import RspError, ServingError, UsageError
from rsp.shared.report import Result

if TYPE_CHECKING:
    from rsp.serving.management import Management


@dataclass(kw_only=True)
class DeployResult(Result):
    """What `deploy` did.

    Attributes:
        endpoint: Where tiles are predicted now.
        version: The version that serves.
        previous: The version that served before; empty where none did.
        changed: Whether anything was changed: not where this very version served already.
        agreement: Fraction of the pixels of the golden tiles in which server and local prediction agree.
        seconds: How long each step took.
    """

    endpoint: str
    version: str
    previous: str
    changed: bool
    agreement: float
    seconds: dict[str, float] = field(default_factory=dict)


def deploy(
    model: Path,
    *,
    model_store: Path,
    name: str = "rsp",
    version: str = "",
    management: str = "http://127.0.0.1:8081",
    inference: str = "http://127.0.0.1:8080",
    golden: Path | None = None,
    workers: int | None = None,
    drain: float = 3.0,
    timeout: float = 120.0,
    tolerance: float = 0.001,
    keep_archives: bool = False,
    force: bool = False,
    trust_model: bool = False,
) -> DeployResult:
    """Make a model the one that TorchServe answers with.

    The model is put into an archive and registered beside the version that serves. It becomes the default only
    when its answers on the golden tiles are those of a local prediction; the old version goes when its last
    request is answered. If anything fails before that, the new version goes and the old one keeps serving. A token
    is taken from the environment (RSP_TORCHSERVE_TOKEN).

    Args:
        model: An exported model, or a checkpoint.
        model_store: The folder from which TorchServe reads its archives.
        name: Name of the model in the URLs.
        version: Its version; 8 digits of its SHA-256 where empty, so that equal models are one version.
        management: URL of TorchServe's management API.
        inference: URL of its inference API.
        golden: Tile set whose first tiles are the smoke test; noise if None.
        workers: Workers of the model; as many as the server is set to if None.
        drain: Seconds that the old version stays once its queue is empty; more than the slowest request takes.
        timeout: Seconds for each step that waits.
        tolerance: Fraction of pixels that may differ from the local prediction: none do on equal processors, a few
            may where the server computes on a GPU or with other instructions.
        keep_archives: Keep the archives of all versions. Otherwise that of the version before is kept, for a
            roll-back, and older ones are deleted.
        force: Deploy a model whose recorded IoU on the same validation tiles is lower than that of the model that
            serves, or whose classes or bands are others.
        trust_model: Load an exported model even where it could run any code: only for files of your own. The
            server refuses it all the same, unless RSP_TRUST_MODEL=1 is set where it runs.

    Raises:
        UsageError: an argument that cannot be meant.
        ModelError: the file is not a model of ours.
        ServingError: a step failed; the message names it, and says what serves now.
    """
    from rsp.components.deploy.checks import agreement, check_progress, expected_masks
    from rsp.serving import store
    from rsp.serving.archive import archive_name, build_archive, sha8
    from rsp.serving.management import Management

    check_paths([], [model, golden])
    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    if not model_store.is_dir():
        raise UsageError(
            f"--model_store must be the folder that TorchServe reads archives from; {model_store} is not a folder"
        )
    version = version or sha8(model)
    seconds: dict[str, float] = {}
    api = Management(management, name, timeout)
    api.check()
    before = api.versions()
    previous = api.default()
    file_name = archive_name(model, name, version)
    if version in before and before[version].get("modelUrl") not in ("", None, file_name):
        raise ServingError(
            f"version {version} of {name} is another model on {management}; give another --version, or leave it "
            "out (it then follows from the model)"
        )
    serving = f"version {previous} still serves" if previous else "no version serves"
    archive = model_store / file_name
    ours = not archive.exists()
    pointer = store.current_archives(model_store).get(name)
    try:
        with _step("compare", seconds):
            if previous not in ("", version) and not force:
                check_progress(model, inference, name)
        with _step("archive", seconds):
            build_archive(model, archive, name=name, version=version, trust_model=trust_model)
        with _step("expect", seconds):
            expected = expected_masks(model, golden, trust_model=trust_model)
        with _step("register", seconds):
            store.failure_note(model_store, name, version).unlink(missing_ok=True)
            if version not in before:
                api.register(archive.name, workers)
            else:
                api.scale(version, workers or max(1, len(before[version].get("workers", []))))
            api.wait_ready(version, lambda: store.read_failure(model_store, name, version))
        with _step("smoke test", seconds):
            agreed = agreement(inference, name, version, expected, timeout)
            if agreed < 1 - tolerance:
                raise ServingError(
                    f"the masks of the server differ from those of a local prediction in {1 - agreed:.2%} of the "
                    f"pixels; up to {tolerance:.2%} are tolerated"
                )
        with _step("switch", seconds):
            api.set_default(version)
            store.set_current(model_store, name, archive)
            if (default := api.default()) != version:
                raise ServingError(f"version {default} is still the default one; does somebody else deploy?")
    except BaseException as error:
        if version != previous:
            _roll_back(api, version, previous, archive if ours else None)
            store.restore_current(model_store, name, pointer)
            store.failure_note(model_store, name, version).unlink(missing_ok=True)
        if isinstance(error, RspError):
            raise ServingError(f"not deployed, {serving}: {error}") from error
        raise
    try:
        with _step("drain", seconds):
            old = [other for other in before if other != version]
            for other in old:
                api.drain(other, drain)
        with _step("remove", seconds):
            for other in old:
                api.unregister(other)
            _prune(model_store, name, before, previous, version, keep_archives)
    except RspError as error:
        raise ServingError(
            f"version {version} is deployed and serves, but the old one is still there: {error}"
        ) from error
    return DeployResult(
        endpoint=f"{inference.rstrip('/')}/predictions/{name}",
        version=version,
        previous=previous,
        changed=version != previous,
        agreement=agreed,
        seconds=seconds,
    )


@contextmanager
def _step(what: str, seconds: dict[str, float]) -> Iterator[None]:
    """Measure a step, and name it in the error that ends it."""
    start = time.monotonic()
    try:
        yield
    except RspError as error:
        raise ServingError(f"step `{what}`: {error}") from error
    finally:
        seconds[what] = round(time.monotonic() - start, 3)
    print(f"deploy: {what}: {seconds[what]:.1f} s", file=sys.stderr, flush=True)


def _roll_back(api: Management, version: str, previous: str, archive: Path | None) -> None:
    """Take the new version off, and leave the old one as it was."""
    try:
        if previous and api.default() != previous:
            api.set_default(previous)
        if version in api.versions():
            api.unregister(version)
    except RspError as error:
        print(f"deploy: while rolling back: {error}", file=sys.stderr)
    if archive is not None:
        archive.unlink(missing_ok=True)


def _prune(
    model_store: Path, name: str, before: dict[str, Any], previous: str, version: str, keep_archives: bool
) -> None:
    """Delete the archives of versions that were removed; that of the one before stays, for a roll-back."""
    from rsp.serving import store

    kept = str(before[previous].get("modelUrl", "")) if previous else ""
    current = store.current_archives(model_store).get(name)
    if not keep_archives:
        for other in before:
            url = str(before[other].get("modelUrl", ""))
            if other != version and url not in (kept, current):
                store.remove_archive(model_store, url)
    if kept and previous != version:
        store.set_previous(model_store, name, kept, keep=keep_archives)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp deploy`."""
    parser.add_argument("--model", type=Path, required=True, help="exported model, or checkpoint")
    parser.add_argument(
        "--model_store", type=Path, required=True, metavar="DIR", help="folder that TorchServe reads archives from"
    )
    parser.add_argument("--name", default="rsp", help="name of the model in the URLs (default: rsp)")
    parser.add_argument("--version", default="", help="its version (default: 8 digits of its SHA-256)")
    parser.add_argument(
        "--management", default="http://127.0.0.1:8081", metavar="URL",
        help="management API (default: http://127.0.0.1:8081)",
    )  # fmt: skip
    parser.add_argument(
        "--inference", default="http://127.0.0.1:8080", metavar="URL",
        help="inference API (default: http://127.0.0.1:8080)",
    )  # fmt: skip
    parser.add_argument(
        "--golden", type=Path, metavar="TILES", help="tile set whose first tiles are the smoke test"
    )
    parser.add_argument(
        "--workers", type=int, help="workers of the model (default: as many as the server is set to)"
    )
    parser.add_argument(
        "--drain", type=bounded(float, 0, 3600), default=3.0, metavar="SECONDS",
        help="how long the old version stays once its queue is empty (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=bounded(float, 1, 3600), default=120.0, metavar="SECONDS",
        help="for each step that waits (default: 120)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=bounded(float, 0, 1), default=0.001, metavar="FRACTION",
        help="of pixels that may differ from a local prediction (default: 0.001)",
    )  # fmt: skip
    parser.add_argument(
        "--keep_archives",
        action="store_true",
        help="keep the archives of all versions, not only of the one before",
    )
    parser.add_argument(
        "--force", action="store_true",
        help="deploy a model that did worse on the same validation tiles, or has other classes or bands",
    )  # fmt: skip
    add_trust_model(parser)
