"""Serve models on this machine with TorchServe: image tiles in, masks out, over HTTP.

rsp serve --model model.pt2
rsp serve --store s3://models/prod --name roofs
rsp serve --store models --name roofs --name roads --host 0.0.0.0 --drain 10

A server with a release store follows it: what `rsp deploy` puts there is fetched, verified, tested, and takes over
without a failed request. GET /status tells what serves, /healthz whether requests are welcome, /livez whether the
processes live. It runs until Ctrl-C or SIGTERM: then it is not ready any more, serves on for --drain seconds,
accepts no more connections, answers what it has, and ends; at once with a second one. In Python:

    with Server("models", ["roofs"]) as server:
        server.wait()
        TileClient(server.inference, "roofs").predict(image)
"""

from __future__ import annotations

import argparse
import hmac
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rsp.serving import live, logs
from rsp.serving.cache import Cache, default_cache
from rsp.serving.exporter import MetricsServer
from rsp.serving.follower import Follower
from rsp.serving.loading import Settings
from rsp.serving.management import TOKEN_VARIABLE
from rsp.serving.manifest import DTYPES, NAME
from rsp.serving.metrics import Metrics
from rsp.serving.proxy import Proxy, max_request_size
from rsp.serving.publish import publish_model
from rsp.serving.reader import ReleaseReader
from rsp.serving.routes import Routes
from rsp.serving.supervisor import Supervisor
from rsp.serving.tokens import Tokens
from rsp.serving.torchserve import TorchServe, loopback
from rsp.shared.arguments import bounded, local_folder
from rsp.shared.errors import RspError, ServingError, UsageError
from rsp.shared.http import Backoff
from rsp.shared.locations import location, on_disk
from rsp.shared.parallel import cpu_count
from rsp.shared.parser import Parser
from rsp.shared.storage import is_remote, open_storage

# The follower looks at the store every two seconds, and has the last release on its disk: it need not be patient.
STORE = Backoff(3, 0.2)
# Seconds that requests under way may take at the end: a little more than TorchServe's responseTimeout.
ANSWER = 65.0


class Server:
    """TorchServe, the proxy before it, and the follower that makes it serve what a release store wants.

    Args:
        store: Address of the release store.
        names: The models to serve.
        host: Address to listen on, for predictions and metrics.
        port: Port for predictions; a free one if 0.
        metrics_port: Port for metrics; a free one if 0.
        cache: Folder for releases; the user's cache if None.
        settings: How to follow.
        threads: Threads of each worker; workers times threads should not pass the processors.
        behind: Listen for predictions on a free port of the loopback, behind a front of this process that has
            `host` and `port`.

    Attributes:
        metrics: What is counted here.
        inference, status_url, metrics_url: The URLs.
        torchserve: The processes.

    Raises:
        UsageError: a name that fits into no URL, or a store that cannot be meant.
        ServingError: Java or a package is missing, or a port is taken.
    """

    def __init__(
        self,
        store: str | Path,
        names: Sequence[str],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        metrics_port: int = 0,
        cache: Path | None = None,
        settings: Settings | None = None,
        threads: int = 1,
        behind: bool = False,
    ) -> None:
        for name in names:
            if not NAME.fullmatch(name):
                raise UsageError(
                    f"--name may only hold letters, digits, dots, dashes and underscores, got {name!r}"
                )
        self._settings = settings or Settings()
        storage = open_storage(store, **({"backoff": STORE} if is_remote(store) else {}))
        may = _private() if behind else _of_the_file()
        self.names = list(dict.fromkeys(names))
        self._draining = threading.Event()
        self.metrics, self._routes = Metrics(), Routes(self.names)
        self._opened: list[Any] = []
        try:
            self.torchserve = TorchServe(threads=threads)
            self._opened.append(self.torchserve.close)
            self._proxy = Proxy(
                "127.0.0.1" if behind else host, 0 if behind else port, 0, max_body=max_request_size(),
                routes=self._routes, metrics=self.metrics, may=may,
                local={"/status": self._status, "/healthz": self._healthz, "/livez": self._livez},
            )  # fmt: skip
            self._opened.append(self._proxy.stop)
            self._exporter = MetricsServer(self.metrics, host, metrics_port)
            self._opened.append(self._exporter.stop)
            self._follower = Follower(
                ReleaseReader(storage), self.names, torchserve=self.torchserve, routes=self._routes,
                cache=Cache(cache or default_cache(storage.address)), settings=self._settings,
                metrics=self.metrics,
            )  # fmt: skip
        except BaseException:
            self._close()
            raise
        self._supervisor = Supervisor(self.torchserve, self._routes, self._listen_to)
        self.metrics.watch(connections=lambda: float(self._proxy.connections))
        self.metrics.watch_status(self.status)
        here = loopback(host)
        self.inference = f"http://{'127.0.0.1' if behind else here}:{self._proxy.port}"
        self.status_url = f"{self.inference}/status"
        self.metrics_url = f"http://{here}:{self._exporter.port}/metrics"

    def _listen_to(self, port: int) -> None:
        self._proxy.backend = port

    def start(self) -> None:
        """Start all of it and return; `wait` waits until models answer."""
        self._exporter.start()
        self._proxy.start()  # from the start: it answers 503 until a model does
        self._supervisor.start()
        self._follower.start()

    def status(self) -> dict[str, Any]:
        """Return what GET /status tells."""
        problem = self.problem()
        return {
            "format": 1,
            "server": socket.gethostname(),
            "ready": problem is None,
            "draining": self._draining.is_set(),
            "reason": problem,
            **self._follower.status(),
        }

    def problem(self) -> str | None:
        """Return why this server should get no requests; None where a verified release answers."""
        if self._draining.is_set():
            return "this server is about to end"
        return self._follower.problem()

    def check(self) -> None:
        """Raise `ServingError` where TorchServe does not come back."""
        if self._supervisor.fault:
            raise ServingError(self._supervisor.fault)

    def wait(self, timeout: float = 120.0) -> None:
        """Wait until each name serves what is wanted.

        Raises:
            ServingError: a release is refused, TorchServe does not start, or it takes too long; with the reason.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            models = self._follower.status()["models"]
            for name, model in models.items():
                if model["state"] == "refused":
                    raise ServingError(f"{name}: {model['reason']}")
            waiting = {name: model for name, model in models.items() if model["serving"] is None
                       or model["wanted"] not in (None, model["serving"])}  # fmt: skip
            if not waiting:
                return
            if time.monotonic() > deadline:
                told = "; ".join(f"{name} is {each['state']}: {each['reason']}" for name, each in waiting.items())
                raise ServingError(f"not ready after {timeout:g} s: {told}\n{self.torchserve.tail()}")
            time.sleep(0.05)

    def drain(self) -> None:
        """Say that the end is near, and begin nothing new; requests are answered as before."""
        self._draining.set()
        self._follower.end()

    def stop(self, seconds: float = 0.0) -> int:
        """Accept no more connections, answer the requests under way, end all processes.

        Args:
            seconds: How long the requests under way may take.

        Returns:
            How many were cut off.
        """
        self.drain()
        self._supervisor.stop()
        lost = self._proxy.stop(seconds)
        self._close()
        return lost

    def _close(self) -> None:
        while self._opened:
            self._opened.pop()()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what the proxy answers by itself ------------------------------------------------------------------------

    def _status(self) -> tuple[int, dict[str, Any]]:
        return 200, self.status()

    def _healthz(self) -> tuple[int, dict[str, Any]]:
        problem = self.problem()
        return (200, {"ready": True}) if problem is None else (503, {"ready": False, "reason": problem})

    def _livez(self) -> tuple[int, dict[str, Any]]:
        problem = self._supervisor.problem()
        return (200, {"alive": True}) if problem is None else (503, {"alive": False, "reason": problem})


def _of_the_file() -> Callable[[str | None], bool] | None:
    """Return what tells whether somebody may ask, by the file of tokens; None where all may."""
    tokens = Tokens.load()
    return None if tokens is None else lambda given: tokens.who(given) is not None


def _private() -> Callable[[str | None], bool]:
    """Let in the front of this process alone: others on this machine would pass by its tokens."""
    token = os.environ[TOKEN_VARIABLE] = secrets.token_hex(32)
    return lambda given: hmac.compare_digest((given or "").encode(), f"Bearer {token}".encode())


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `rsp serve`; flags that are not given are taken from the environment."""
    text = (__doc__ or "").partition(" In Python:")[0].strip()
    parser = Parser(prog="rsp serve", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    live.add_arguments(parser)
    env = os.environ.get
    parser.add_argument(
        "--model", type=location, metavar="FILE", default=env("RSP_MODEL"),
        help="exported model, or checkpoint, to serve without a store; a path, or s3://bucket/key (RSP_MODEL)",
    )  # fmt: skip
    parser.add_argument(
        "--version", default=env("RSP_VERSION", ""),
        help="version of that model (RSP_VERSION; default: 8 digits of its SHA-256)",
    )  # fmt: skip
    parser.add_argument(
        "--store", metavar="STORE", default=env("RSP_STORE"),
        help="release store to follow: s3://bucket/prefix, or a folder (RSP_STORE)",
    )  # fmt: skip
    parser.add_argument(
        "--name", action="append", metavar="NAME",
        help="a model to serve, as it stands in the URL; may be given several times (RSP_NAMES, with commas; "
        "default: rsp)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=local_folder, metavar="DIR", default=env("RSP_CACHE"),
        help="folder for releases, from which it starts where the store does not answer (RSP_CACHE; default: the "
        "user's cache)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default=env("RSP_HOST", "127.0.0.1"),
        help="address to listen on (RSP_HOST; default: 127.0.0.1)",
    )  # fmt: skip
    for flag, default, what in (("port", "8080", "predictions"), ("metrics_port", "8082", "metrics")):
        variable = f"RSP_{flag.upper()}"
        parser.add_argument(
            f"--{flag}", type=bounded(int, 0, 65535), default=env(variable, default), metavar="PORT",
            help=f"port for {what}, a free one if 0 ({variable}; default: {default})",
        )  # fmt: skip
    parser.add_argument(
        "--workers", type=bounded(int, 1, 1024), default=env("RSP_WORKERS") or cpu_count(), metavar="N",
        help="worker processes of each model (RSP_WORKERS; default: one for each processor)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=DTYPES, default=env("RSP_PRECISION") or None,
        help="what models compute in; bfloat16 takes less time where the processor or the GPU has it, and gives "
        "about one pixel in a thousand another class (RSP_PRECISION; default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=bounded(float, 1, 3600), default=env("RSP_TIMEOUT", "120"), metavar="SECONDS",
        help="how long a worker may take to load a model (RSP_TIMEOUT; default: 120)",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=bounded(float, 0, 3600), default=env("RSP_DRAIN", "0"), metavar="SECONDS",
        help="how long to serve on, not ready any more, when the end has begun: time for load balancers to notice "
        "(RSP_DRAIN; default: 0)",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve in the foreground until Ctrl-C or SIGTERM."""
    args = make_parser().parse_args(argv)

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    try:
        if live.alone(args):
            return live.serve(args)
        logs.set_up()
        return _serve(args)
    except RspError as error:
        if args.debug:
            raise
        print(f"rsp serve: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def names_of(args: argparse.Namespace) -> list[str]:
    """Return the models to serve: of the flags, else of RSP_NAMES, else the default."""
    return args.name or re.findall(r"[^,\s]+", os.environ.get("RSP_NAMES", "")) or ["rsp"]


def _serve(args: argparse.Namespace) -> int:
    if (args.model is None) == (args.store is None):
        raise UsageError("give --model, or the --store that is to be followed: one of them")
    if args.precision not in (None, *DTYPES):  # argparse does not hold RSP_PRECISION to the choices
        raise UsageError(f"RSP_PRECISION is {args.precision!r}; expected {' or '.join(DTYPES)}")
    names = names_of(args)
    settings = Settings(
        workers=args.workers,
        timeout=args.timeout,
        poll=Settings.poll if args.store else 0.5,
        precision=args.precision,
    )
    options: dict[str, Any] = {
        "host": args.host, "port": args.port, "metrics_port": args.metrics_port, "settings": settings,
        "behind": live.wanted(args),
    }  # fmt: skip
    if args.model is None:
        with Server(args.store, names, cache=args.cache, **options) as server:
            return _run(server, args)
    if len(names) > 1:
        raise UsageError("--model is one model, which has one --name")
    from tempfile import TemporaryDirectory

    with (
        on_disk(args.model) as model,
        TemporaryDirectory(prefix="rsp-release-") as folder,
        Server(Path(folder) / "store", names, cache=Path(folder) / "cache", **options) as server,
    ):
        publish_model(model, Path(folder) / "store", names[0], args.version)
        server.wait(args.timeout + 60)
        return _run(server, args)


def _run(server: Server, args: argparse.Namespace) -> int:
    """Run until the end, and return the exit code."""
    front = live.open_front(args, server.inference, args.host, args.port, metrics=server.metrics)
    url = server.inference if front is None else front.url
    try:
        _announce(server, url, front is not None)
        if front is not None:
            front.start()
        while True:
            server.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        server.drain()
        print(f"stopping: not ready any more; serving for {args.drain:g} s, then answering what is under way")
        sys.stdout.flush()
    time.sleep(args.drain)
    lost = 0 if front is None else front.stop(ANSWER)
    lost += server.stop(ANSWER)
    if lost:
        raise ServingError(f"{lost} requests were cut off, as they took longer than {ANSWER:g} s")
    return 0


def _announce(server: Server, url: str, shows_a_map: bool) -> None:
    for name in server.names:
        print(f"serving {url}/predictions/{name}")
    print(f"  curl -T tile.png {url}/predictions/{server.names[0]} --output mask.png")
    if shows_a_map:
        print(f"map: {url}/")
    print(f"status: {url}/status; metrics: {server.metrics_url}; Ctrl-C ends it", flush=True)


if __name__ == "__main__":
    sys.exit(main())
