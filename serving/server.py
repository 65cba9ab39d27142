"""Serve a model on this machine with TorchServe: image tiles in, masks out, over HTTP.

rsp serve --model model.pt2
rsp serve --model_store models --model_api
rsp serve --model checkpoint.safetensors --name roofs --port 9000

It runs until Ctrl-C or SIGTERM: then it accepts no more connections, answers what it has, and ends. In Python:

    with TorchServe(Path("model.pt2")) as server:
        TileClient(server.inference).predict(image)
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rsp.serving.archive import HERE, build_archive, trusts_models
from rsp.serving.front import Front, max_request_size
from rsp.serving.host import connects, free_ports, preflight, short_folder
from rsp.serving.management import ready_workers
from rsp.serving.store import VARIABLE, current_archives
from rsp.shared.arguments import bounded
from rsp.shared.errors import RspError, ServingError, UsageError
from rsp.shared.parallel import cpu_count
from rsp.shared.parser import Parser

# What a worker's log says when it could not load the model; TorchServe would retry forever.
DIED = "Backend worker process died"


class TorchServe:
    """TorchServe on this machine, behind a `Front`, with a folder, ports and processes of its own.

    Args:
        model: The model to serve; if None, what the model store says is current.
        name: Its name in the URLs.
        version: Its version; 8 digits of its SHA-256 if empty.
        model_store: Folder of the archives; a temporary one if None.
        host: Address to listen on, for predictions and metrics. The management API stays on the loopback.
        port: Port for predictions; a free one if 0. Likewise `management_port`, `metrics_port`.
        workers: Worker processes of each model.
        threads: Threads of each worker; workers times threads should not pass the processors.
        model_api: Let `rsp deploy` register and remove models.
        timeout: Seconds until a worker must be READY.

    Attributes:
        inference, management, metrics: The URLs.
        log: The log file, gone with the server.
    """

    def __init__(
        self,
        model: Path | None = None,
        *,
        name: str = "rsp",
        version: str = "",
        model_store: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        management_port: int = 0,
        metrics_port: int = 0,
        workers: int = 1,
        threads: int = 1,
        model_api: bool = False,
        timeout: float = 120.0,
    ) -> None:
        self.model, self.name, self.version, self.host = model, name, version, host
        self.workers, self.threads, self.model_api, self.timeout = workers, threads, model_api, timeout
        self._store = model_store
        self._port, self._asked = port, (0, management_port, metrics_port, 0, 0)
        self._front: Front | None = None
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when a worker is READY (or, without any model, when the server answers).

        Raises:
            ServingError: Java or a package is missing, a port is taken, the model cannot be loaded, or no worker
                is READY in time; with the reason, or the end of the log.
        """
        preflight()
        self._folder = folder = short_folder()
        try:
            # From the start: it answers 503 until TorchServe does.
            self._front = Front(self.host, self._port, 0, max_body=max_request_size())
            self._front.start()
            self.model_store = (self._store or folder / "store").absolute()
            self.model_store.mkdir(parents=True, exist_ok=True)
            if self.model is not None:
                archive = build_archive(
                    self.model,
                    self.model_store,
                    name=self.name,
                    version=self.version,
                    trust_model=trusts_models(),
                )
                self._models = {self.name: archive.name}
            else:
                self._models = current_archives(self.model_store)
            for attempt in (1, 2, 3):
                self._launch(folder)
                try:
                    return self._wait()
                except ServingError:
                    # Somebody else took a port in the moment between our choice and Java's start.
                    if attempt == 3 or any(self._asked) or "Address already in use" not in self.tail(200):
                        raise
                    self._kill()
        except BaseException:
            self.stop()
            raise

    def _launch(self, folder: Path) -> None:
        assert self._front is not None
        ports = free_ports(self._asked)
        self._front.backend = ports[0]
        here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        self.inference = f"http://{here}:{self._front.port}"
        self.management, self.metrics = f"http://127.0.0.1:{ports[1]}", f"http://{here}:{ports[2]}"
        self.log = folder / "log"
        config = folder / "config.properties"
        config.write_text((HERE / "config.properties").read_text("utf-8") + self._settings(ports), "utf-8")
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--ts-config", str(config), "--log-config", str(HERE / "log4j2.xml")]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
        environment |= dict.fromkeys(("TEMP", "TMPDIR", "LOG_LOCATION", "METRICS_LOCATION"), str(folder))
        environment["OMP_NUM_THREADS"] = str(self.threads)
        environment[VARIABLE] = str(self.model_store)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "watchdog.py"), str(folder), *command],
                cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def _settings(self, ports: list[int]) -> str:
        """Return what stands over the file of the image."""
        settings = {
            "inference_address": f"http://127.0.0.1:{ports[0]}",
            "management_address": f"http://127.0.0.1:{ports[1]}",
            "metrics_address": f"http://{self.host}:{ports[2]}",
            "grpc_inference_port": ports[3],
            "grpc_management_port": ports[4],
            "enable_envvars_config": "false",
            "model_store": self.model_store,
            "allowed_urls": f"file://{re.escape(str(self.model_store))}/.*".replace("\\", "\\\\"),
            "load_models": ",".join(f"{name}={archive}" for name, archive in self._models.items()),
            "enable_model_api": str(self.model_api).lower(),
            "default_workers_per_model": self.workers,
        }
        return "\n" + "".join(f"{key}={value}\n" for key, value in settings.items())

    def _wait(self) -> None:
        deadline = time.monotonic() + self.timeout
        assert self._process is not None
        while not self.ready():
            if self._process.poll() is not None:
                raise ServingError(f"TorchServe ended while it started:\n{self.tail()}")
            log = self.tail(200)
            if DIED in log:
                causes = re.findall(r"MODEL_LOG - (?:[\w.]*\.)?(\w*(?:Error|Exception): .*)", log)
                if causes:
                    raise ServingError(f"TorchServe cannot load the model: {causes[-1]}")
                # The traceback follows this line; if it does not, some seconds later the end of the log has to do.
                deadline = min(deadline, time.monotonic() + 5)
            if time.monotonic() > deadline:
                raise ServingError(f"no worker has loaded the model after {self.timeout:g} s:\n{self.tail()}")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Tell whether each model has a worker that is READY; without any model, whether the server answers."""
        if not self.running:
            return False
        if not self._models:
            # The list of models is an object, not a list, and so empty here: connecting is what tells.
            assert self._front is not None
            return connects(int(self.management.rpartition(":")[2])) and connects(self._front.backend)
        return all(ready_workers(self.management, name) for name in self._models)

    @property
    def running(self) -> bool:
        """Whether the processes are there."""
        return self._process is not None and self._process.poll() is None

    def served(self) -> list[str]:
        """Return the names of the models that it was started with."""
        return sorted(self._models)

    def tail(self, lines: int = 20) -> str:
        """Return the end of the log."""
        try:
            return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-lines:])
        except (OSError, AttributeError):
            return "(no log)"

    def stop(self, drain: float = 0.0) -> int:
        """Accept no more connections, answer the requests under way, end Java and the workers, remove the folder.

        The processes are killed: TorchServe's own way of stopping takes four seconds, cuts off requests all the
        same, and has nothing to save.

        Args:
            drain: Seconds that the requests under way may take.

        Returns:
            How many were cut off.
        """
        lost = 0 if self._front is None else self._front.stop(drain)
        self._kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        return lost

    def _kill(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()  # the watchdog does the rest
        self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `rsp serve`."""
    text = (__doc__ or "").partition(" In Python:")[0].strip()
    parser = Parser(prog="rsp serve", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FILE", help="exported model, or checkpoint")
    parser.add_argument("--name", default="rsp", help="its name in the URL (default: rsp)")
    parser.add_argument("--version", default="", help="its version (default: 8 digits of its SHA-256)")
    parser.add_argument(
        "--model_store", type=Path, metavar="DIR",
        help="folder of the archives; without --model, its current models are served (default: a temporary one)",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port for predictions (default: 8080)")
    parser.add_argument("--management_port", type=int, default=8081, help="of the management API (default: 8081)")
    parser.add_argument("--metrics_port", type=int, default=8082, help="of the metrics (default: 8082)")
    parser.add_argument(
        "--workers", type=bounded(int, 1, 1024), default=cpu_count(), metavar="N",
        help="worker processes of each model (default: one for each processor)",
    )  # fmt: skip
    parser.add_argument("--model_api", action="store_true", help="let `rsp deploy` register models here")
    parser.add_argument(
        "--timeout", type=bounded(float, 1, 3600), default=120.0, metavar="SECONDS",
        help="how long the start may take (default: 120)",
    )  # fmt: skip
    parser.add_argument(
        "--drain", type=bounded(float, 0, 3600), default=60.0, metavar="SECONDS",
        help="how long requests under way may take at the end (default: 60)",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve a model in the foreground until Ctrl-C or SIGTERM."""
    args = vars(make_parser().parse_args(argv))
    drain, debug = args.pop("drain"), args.pop("debug")

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    try:
        return _serve(args, drain)
    except RspError as error:
        if debug:
            raise
        print(f"rsp serve: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _serve(args: dict[str, Any], drain: float) -> int:
    if args["model"] is None and args["model_store"] is None:
        raise UsageError("give --model, or the --model_store whose models are to be served")
    with TorchServe(**args) as server:
        names = server.served()
        for name in names:
            print(f"serving {server.inference}/predictions/{name}")
        if not names:
            flags = f"--model_store {server.model_store} --management {server.management}"
            print(f"serving {server.inference}, without a model yet; deploy one with")
            print(f"  rsp deploy --model model.pt2 {flags} --inference {server.inference}")
        url = f"{server.inference}/predictions/{names[0] if names else server.name}"
        print(f"  curl -T tile.webp -X POST -H 'Content-Type: image/webp' {url} --output mask.png")
        print(f"metrics: {server.metrics}/metrics; Ctrl-C ends it", flush=True)
        try:
            while server.running:
                time.sleep(0.5)
            raise ServingError(f"TorchServe has ended:\n{server.tail()}")
        except KeyboardInterrupt:
            print("stopping: no more connections, and an answer for each request under way", flush=True)
            lost = server.stop(drain)
    if lost:
        raise ServingError(f"{lost} requests were cut off, as they took longer than {drain:g} s (--drain)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
