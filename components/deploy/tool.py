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
from typing import TYPE_CHECKING

from rsp.shared.arguments import bounded
from rsp.shared.errors import RspError, ServingError, TileError, UsageError
from rsp.shared.report import Result

if TYPE_CHECKING:
    from rsp.components.deploy.management import Management

# How many tiles of the golden tile set are predicted.
GOLDEN = 3


@dataclass(kw_only=True)
class DeployResult(Result):
    """What `deploy` did.

    Attributes:
        endpoint: Where tiles are predicted now.
        version: The version that serves.
        previous: The version that served before; empty where none did.
        changed: Whether anything was changed: not where this very version served already.
        agreement: Share of the pixels of the golden tiles on which server and local prediction agree.
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
) -> DeployResult:
    """Make a model the one that TorchServe answers with.

    The model is put into an archive and registered beside the version that serves. Only when its answers on the
    golden tiles are those of a local prediction does it become the default; the old version goes when its last
    request is answered. When anything fails before that, the new version goes and the old one serves on. A token
    is taken from the environment (RSP_TORCHSERVE_TOKEN).

    Args:
        model: An exported model, or a checkpoint.
        model_store: The folder from which TorchServe reads its archives.
        name: Name of the model in the URLs.
        version: Its version; 8 digits of its SHA-256 where empty, so that equal models are one version.
        management: URL of TorchServe's management API.
        inference: URL of its inference API.
        golden: Tile set whose first tiles are the smoke test; noise where None.
        workers: Workers of the model; as many as the server gives each where None.
        drain: Seconds that the old version stays once its queue is empty; more than the slowest request takes.
        timeout: Seconds for each step that waits.
        tolerance: Share of pixels that may differ from the local prediction: none do on equal processors, a few
            may where the server computes on a GPU or with other instructions.
        keep_archives: Leave the archives of the versions that are taken off in the model store.

    Raises:
        UsageError: an argument that cannot be meant.
        ModelError: the file is no model of ours.
        ServingError: a step failed (it is named), and what serves now.
    """
    from rsp.components.deploy.management import Management
    from rsp.serving.archive import archive_name, build_archive, sha8
    from rsp.serving.server import current_archives, set_current

    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    if not model_store.is_dir():
        raise UsageError(f"--model_store must be the folder that TorchServe reads, and {model_store} is none")
    version = version or sha8(model)
    seconds: dict[str, float] = {}
    api = Management(management, name, timeout)
    api.check()
    before = api.versions()
    previous = api.default()
    file_name = archive_name(model, name, version)
    if version in before and before[version].get("modelUrl") not in ("", None, file_name):
        raise ServingError(
            f"version {version} of {name} is another model on {management}; "
            "give another --version, or none (it then follows from the model)"
        )
    serving = f"version {previous} serves on" if previous else "no version serves"
    archive = model_store / file_name
    ours = not archive.exists()
    pointer = current_archives(model_store).get(name)
    try:
        with _step("archive", seconds):
            build_archive(model, archive, name=name, version=version)
        with _step("expect", seconds):
            expected = _expect(model, golden)
        with _step("register", seconds):
            if version not in before:
                api.register(archive.name, workers)
            else:
                api.scale(version, workers or max(1, len(before[version].get("workers", []))))
            api.wait_ready(version)
        with _step("smoke test", seconds):
            agreement = _smoke_test(inference, name, version, expected, timeout)
            if agreement < 1 - tolerance:
                raise ServingError(
                    f"the server's masks differ from local ones in {1 - agreement:.2%} of the pixels, "
                    f"and {tolerance:.2%} are tolerated"
                )
        with _step("switch", seconds):
            api.set_default(version)
            set_current(model_store, name, archive)
            if api.default() != version:
                raise ServingError(f"version {api.default()} is the default one still")
    except BaseException as error:
        if version != previous:
            _roll_back(api, version, previous, archive if ours else None)
            _restore(model_store, name, pointer)
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
                # Only names, never paths: the server could say anything.
                stale = model_store / Path(str(before[other].get("modelUrl", ""))).name
                if not keep_archives and stale.suffix == ".mar" and stale != archive:
                    stale.unlink(missing_ok=True)
    except RspError as error:
        raise ServingError(
            f"version {version} is deployed and serves, but the old one remains: {error}"
        ) from error
    finally:
        api.close()
    return DeployResult(
        endpoint=f"{inference.rstrip('/')}/predictions/{name}",
        version=version,
        previous=previous,
        changed=version != previous,
        agreement=agreement,
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


def _expect(model: Path, golden: Path | None) -> list[tuple[bytes, bytes]]:
    """Return golden tiles, each with the mask that the model makes of it here."""
    import numpy as np

    from rsp.shared.images import encode
    from rsp.shared.learning.inference import load_predictor, predict_tiles, sent_bands, sent_tile
    from rsp.shared.tileset import open_reader

    predictor = load_predictor(model, device="cpu", threads=1)
    if golden is not None:
        with open_reader(golden) as reader:
            images = [reader.read(tile) for tile in reader.tiles()[:GOLDEN]]
    else:
        side, bands = predictor.card.tile_size, sent_bands(predictor.card)
        images = [encode(sent_tile(predictor.card, np.random.default_rng(0).random((side, side, bands))), "tif")]
    pairs = []
    for image, mask in zip(images, predict_tiles(predictor, images), strict=True):
        if isinstance(mask, TileError):
            raise ServingError(f"the golden tiles {golden} are not fit for this model: {mask}")
        pairs.append((image, mask))
    return pairs


def _smoke_test(
    inference: str, name: str, version: str, expected: list[tuple[bytes, bytes]], timeout: float
) -> float:
    """Return the share of pixels on which the server agrees, and raise where it answers no masks."""
    import numpy as np

    from rsp.serving.client import TileClient
    from rsp.shared.images import decode_mask

    equal = total = 0
    with TileClient(inference, name, timeout, version=version) as client:
        for image, mask in expected:
            here, there = decode_mask(mask), decode_mask(client.predict(image))
            if here.shape != there.shape:
                raise ServingError(f"the server's mask has the shape {there.shape}, a local one {here.shape}")
            equal += int(np.count_nonzero(here == there))
            total += here.size
    return equal / total


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


def _restore(model_store: Path, name: str, pointer: str | None) -> None:
    """Let the next start of the server load what this one serves."""
    from rsp.serving.server import POINTER, set_current

    if pointer is None:
        (model_store / f"{name}{POINTER}").unlink(missing_ok=True)
    else:
        set_current(model_store, name, model_store / pointer)


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
    parser.add_argument("--workers", type=int, help="workers of the model (default: as the server is set)")
    parser.add_argument(
        "--drain", type=bounded(float, 0, 3600), default=3.0, metavar="SECONDS",
        help="how long the old version stays once nobody waits for it (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=bounded(float, 1, 3600), default=120.0, metavar="SECONDS",
        help="for each step that waits (default: 120)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=bounded(float, 0, 1), default=0.001, metavar="SHARE",
        help="of pixels that may differ from a local prediction (default: 0.001)",
    )  # fmt: skip
    parser.add_argument("--keep_archives", action="store_true", help="keep the archives of the old versions")
