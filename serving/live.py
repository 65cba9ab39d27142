"""The live front: tiles of the operator's sources and their masks, for maps; and folders of tiles, for browsers.

`rsp serve` (server.py) asks this module whether the front is wanted, and how to start it. What the front is made
of is imported only then.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Protocol

from rsp.shared.arguments import bounded, local_folder
from rsp.shared.errors import ServingError, UsageError

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

logger = logging.getLogger(__name__)

# Seconds that requests under way may take at the end: a little more than a prediction may.
ANSWER = 65.0
# Requests at servers elsewhere at once, where nobody says how many workers they have.
WIDTH = 16

_LIST = re.compile(r"[,\s]+")


class Front(Protocol):
    """What listens on the public port in the proxy's place, which then has a port of the loopback behind it."""

    url: str

    def start(self) -> None:
        """Accept connections."""

    def stop(self, seconds: float) -> int:
        """Accept no more, answer what there is, and return how many requests were cut off after `seconds`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp serve` that are the front's."""
    parser.add_argument(
        "folders", nargs="*", type=local_folder, metavar="FOLDER",
        help="show the tile sets, maps and GeoJSON of folders, instead of serving a model",
    )  # fmt: skip
    group = parser.add_argument_group("live tiles")
    group.add_argument(
        "--source", action="append", metavar="NAME=LOCATION",
        help="imagery to show with the masks of the models: PMTiles, a folder of tiles or a GeoTIFF (a path, "
        "http(s):// or s3://), or the URL of tiles with {z} {x} {y} or {bbox}; options follow, as "
        "#zooms=15-19&attribution=...; may be given several times (RSP_SOURCES, one a line)",
    )  # fmt: skip
    group.add_argument(
        "--endpoint", metavar="URL", default=os.environ.get("RSP_ENDPOINT"),
        help="ask servers elsewhere, instead of starting one here (RSP_ENDPOINT)",
    )  # fmt: skip
    group.add_argument(
        "--concurrency", type=bounded(int, 1, 1024), default=os.environ.get("RSP_CONCURRENCY"), metavar="N",
        help="requests under way at the servers at once (RSP_CONCURRENCY; default: two for each worker, "
        f"{WIDTH} with --endpoint)",
    )  # fmt: skip
    group.add_argument(
        "--tile_cache", type=local_folder, default=os.environ.get("RSP_TILE_CACHE"), metavar="DIR",
        help="keep tiles in a folder, too, that outlives this process (RSP_TILE_CACHE)",
    )  # fmt: skip
    group.add_argument(
        "--tile_cache_mb", type=bounded(int, 1, 1 << 24), default=os.environ.get("RSP_TILE_CACHE_MB", "1024"),
        metavar="MB", help="megabytes of that folder (RSP_TILE_CACHE_MB; default: 1024)",
    )  # fmt: skip
    group.add_argument(
        "--cors", action="append", metavar="ORIGIN",
        help="let pages of another origin, as https://maps.example, read the answers; * lets all (RSP_CORS, with "
        "commas)",
    )  # fmt: skip
    group.add_argument(
        "--base_url", default=os.environ.get("RSP_BASE_URL", ""), metavar="URL",
        help="what people reach this server by, for TileJSON (RSP_BASE_URL; default: what a request was sent to)",
    )  # fmt: skip


def sources_of(args: argparse.Namespace) -> list[str]:
    """Return the sources that arguments or the environment name."""
    return args.source or [line.strip() for line in os.environ.get("RSP_SOURCES", "").splitlines() if line.strip()]


def wanted(args: argparse.Namespace) -> bool:
    """Tell whether the public port is the front's."""
    return bool(sources_of(args))


def alone(args: argparse.Namespace) -> bool:
    """Tell whether the front runs without a TorchServe here: for folders, or before servers elsewhere."""
    return bool(args.folders or args.endpoint)


def serve(args: argparse.Namespace) -> int:
    """Run the front alone until Ctrl-C or SIGTERM, and return the exit code.

    Raises:
        UsageError: arguments that contradict each other.
        ServingError: the port is taken, or requests were cut off at the end.
        TileSetError, RasterError, SourceError: a source or folder that cannot be read.
    """
    from rsp.serving import logs
    from rsp.serving.exporter import MetricsServer
    from rsp.serving.metrics import Metrics

    logs.set_up()
    if args.folders:
        others = [name for name in ("endpoint", "source", "store", "model") if getattr(args, name, None)]
        if others:
            raise UsageError(f"folders are shown alone: leave out --{others[0]}, or the folders")
        return _run(_folders(args), args, None)
    if not sources_of(args):
        raise UsageError("--endpoint goes with at least one --source, the imagery to show")
    for name in ("store", "model"):
        if getattr(args, name, None):
            raise UsageError(f"give --endpoint, for servers elsewhere, or --{name}, for one here: not both")
    metrics = Metrics()
    front = open_front(args, args.endpoint, args.host, args.port, metrics=metrics)
    assert front is not None
    return _run(front, args, MetricsServer(metrics, args.host, args.metrics_port))


def _run(front: Front, args: argparse.Namespace, shown: object) -> int:
    from rsp.serving.exporter import MetricsServer

    assert shown is None or isinstance(shown, MetricsServer)
    front.start()
    if shown is not None:
        shown.start()
    try:
        print(f"serving {front.url}/; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping: no more connections, and an answer for each request under way", flush=True)
    time.sleep(args.drain)
    lost = front.stop(ANSWER)
    if shown is not None:
        shown.stop()
    if lost:
        raise ServingError(f"{lost} requests were cut off, as they took longer than {ANSWER:g} s")
    return 0


def open_front(
    args: argparse.Namespace, endpoint: str, host: str, port: int, *, metrics: Metrics | None = None
) -> Front | None:
    """Return the front to put before the server at `endpoint`; None where no source is named.

    Args:
        args: The arguments of `rsp serve`.
        endpoint: URL of the servers behind.
        host: Address to listen on.
        port: Port to listen on; a free one if 0.
        metrics: Where to count.

    Raises:
        UsageError, TileSetError, RasterError, SourceError: a source that is none, or cannot be read.
        ConfigError: the file of tokens cannot be read.
        ServingError: the port is taken.
    """
    texts = sources_of(args)
    if not texts:
        return None
    from rsp.serving.front.app import create_app
    from rsp.serving.front.http import HttpServer
    from rsp.serving.front.models import Models
    from rsp.serving.sources import open_source, parse_source
    from rsp.serving.tokens import Tokens

    names = [parse_source(text).name for text in texts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two sources are called {twice[0]!r}")
    origins = args.cors or [each for each in _LIST.split(os.environ.get("RSP_CORS", "")) if each]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UsageError(f"--cors is an origin, as https://maps.example, or *; got {origin!r}")
    models = Models(endpoint, args.name or [each for each in _LIST.split(os.environ.get("RSP_NAMES", "")) if each])
    sources = [open_source(text) for text in texts]
    default = WIDTH if args.endpoint else 2 * int(args.workers)
    app = create_app(
        sources,
        models,
        width=args.concurrency or default,
        cache_folder=args.tile_cache,
        cache_folder_bytes=args.tile_cache_mb << 20,
        tokens=Tokens.load(),
        origins=origins,
        base_url=args.base_url,
        metrics=metrics,
    )
    server = HttpServer(app, host, port)
    if metrics is not None:
        metrics.watch(connections=lambda: server.connections)
    return server


def _folders(args: argparse.Namespace) -> Front:
    from rsp.serving.front.folders import create_folders_app
    from rsp.serving.front.http import HttpServer
    from rsp.serving.tokens import Tokens

    return HttpServer(create_folders_app(args.folders, tokens=Tokens.load()), args.host, args.port)
