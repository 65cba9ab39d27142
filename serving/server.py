"""Start TorchServe for a model on this machine, and stop all of it again.

    python -m rsp.serving.server --model model.pt2 --port 8080       runs until Ctrl-C or SIGTERM

In Python:

    with TorchServe(Path("model.pt2")) as server:
        TileClient(server.inference).predict(image)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rsp.serving.archive import HERE, build_archive
from rsp.serving.ready import describe, ready_workers
from rsp.shared.errors import RspError, ServingError
from rsp.shared.parallel import cpu_count

# What a worker's log says when it could not load the model; TorchServe would try again for ever.
DIED = "Backend worker process died"
POINTER = ".current"


def preflight() -> None:
    """Raise `ServingError` where something is missing that TorchServe needs, and say how to get it."""
    java = Path(os.environ["JAVA_HOME"]) / "bin" / "java" if os.environ.get("JAVA_HOME") else "java"
    if shutil.which(java) is None:
        raise ServingError(
            "TorchServe needs Java 17 and there is none; install it with "
            "`apt-get install openjdk-17-jre-headless` (Debian, Ubuntu) or set JAVA_HOME"
        )
    # Without yaml TorchServe starts, says it is healthy, and never answers.
    for module, package in (("ts", "torchserve"), ("yaml", "pyyaml"), ("torch", "torch"), ("psutil", "psutil")):
        if importlib.util.find_spec(module) is None:
            raise ServingError(
                f"the Python package {package} is missing; install it with `pip install 'rsp-tools[serve]'`"
            )


def set_current(model_store: Path, name: str, archive: Path) -> None:
    """Note which archive of a model is the default one: a server that starts anew on this store loads it.

    What the management API changes is gone when TorchServe stops.
    """
    from rsp.shared.atomic import atomic_text

    with atomic_text(model_store / f"{name}{POINTER}") as file:
        file.write(f"{archive.name}\n")


def current_archives(model_store: Path) -> dict[str, str]:
    """Return the file name of each model's default archive, by the model's name."""
    found = {}
    for pointer in sorted(model_store.glob(f"*{POINTER}")):
        archive = pointer.read_text("utf-8").strip()
        if (model_store / archive).is_file():
            found[pointer.name.removesuffix(POINTER)] = archive
    return found


class TorchServe:
    """TorchServe on this machine, with a folder, ports and processes of its own.

    Args:
        model: The model to serve. None: whatever the model store holds, or nothing yet.
        name: Its name in the URLs.
        version: Its version; 8 digits of its SHA-256 where empty.
        model_store: Folder of the archives; a temporary one where None.
        host: Address to listen on. The metrics too; the management API always stays on loopback.
        port: Port for predictions; a free one where 0. Likewise `management_port`, `metrics_port`.
        workers: Worker processes of each model.
        threads: Threads of each worker; workers times threads should not pass the processors.
        model_api: Allow that models are registered and removed, as `rsp deploy` does.
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
        self._asked = (port, management_port, metrics_port, 0, 0)
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when a worker is READY (or, without any model, when the server answers).

        Raises:
            ServingError: Java or a package is missing, a port is taken, or no worker got READY in time; with
                the end of the log.
        """
        preflight()
        self._folder = folder = _short_folder()
        try:
            self.model_store = (self._store or folder / "store").absolute()
            self.model_store.mkdir(parents=True, exist_ok=True)
            if self.model is not None:
                archive = build_archive(self.model, self.model_store, name=self.name, version=self.version)
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
        ports = free_ports(self._asked, self.host)
        self.inference, self.management, self.metrics = (f"http://127.0.0.1:{port}" for port in ports[:3])
        self.log = folder / "log"
        config = folder / "config.properties"
        config.write_text((HERE / "config.properties").read_text("utf-8") + self._settings(ports), "utf-8")
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--ts-config", str(config), "--log-config", str(HERE / "log4j2.xml")]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
        environment |= dict.fromkeys(("TEMP", "TMPDIR", "LOG_LOCATION", "METRICS_LOCATION"), str(folder))
        environment["OMP_NUM_THREADS"] = str(self.threads)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "watchdog.py"), str(folder), *command],
                cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def _settings(self, ports: list[int]) -> str:
        """Return what stands over the file of the image."""
        settings = {
            "inference_address": f"http://{self.host}:{ports[0]}",
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
            if DIED in self.tail(200):
                causes = re.findall(r"MODEL_LOG - (?:[\w.]*\.)?(\w*(?:Error|Exception): .*)", self.tail(200))
                raise ServingError(f"TorchServe cannot load the model: {causes[-1:]}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServingError(f"no worker was READY within {self.timeout:g} s:\n{self.tail()}")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Tell whether each model has a worker that is READY; without any model, whether the server answers."""
        if not self.running:
            return False
        if not self._models:
            # The list of models is an object, not a list, and so empty here: connecting is what tells.
            return _connects(self.management) and _connects(self.inference)
        return all(ready_workers(self.management, name) for name in self._models)

    @property
    def running(self) -> bool:
        """Whether the processes are there."""
        return self._process is not None and self._process.poll() is None

    def pending(self) -> int:
        """Return how many requests wait in the queues."""
        return sum(
            int(model.get("jobQueueStatus", {}).get("pendingRequests", 0))
            for name in self._models
            for model in describe(self.management, name, "all")
        )

    def tail(self, lines: int = 20) -> str:
        """Return the end of the log."""
        try:
            return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-lines:])
        except (OSError, AttributeError):
            return "(no log)"

    def stop(self) -> None:
        """End Java and the workers, for sure, and remove the folder.

        They are killed: TorchServe's own way of stopping takes four seconds, cuts the requests under way all the
        same, and has nothing to save.
        """
        self._kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

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


def free_ports(asked: tuple[int, ...], host: str = "127.0.0.1") -> list[int]:
    """Return the ports that were asked for, and a free one for each 0.

    Raises:
        ServingError: one that was asked for is taken.
    """
    held, ports = [], []
    try:
        for port in asked:
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held[-1].bind((host, port))
            except OSError as error:
                raise ServingError(
                    f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
                ) from None
            ports.append(held[-1].getsockname()[1])
    finally:
        for holder in held:
            holder.close()
    return ports


def _short_folder() -> Path:
    """Make a folder whose path is short enough for the workers' sockets (108 characters in all)."""
    folder = Path(tempfile.mkdtemp(prefix="rsp-serve-"))
    if len(str(folder)) > 70:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="rsp-serve-", dir="/tmp"))
    return folder


def _connects(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _drain(server: TorchServe, seconds: float) -> None:
    """Wait until the queues are empty, and then a moment more for what the workers have in hand."""
    deadline = time.monotonic() + seconds
    while server.pending() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(max(0.0, min(1.0, deadline - time.monotonic())))


def main(argv: list[str] | None = None) -> int:
    """Serve a model in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m rsp.serving.server",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="exported model or checkpoint (default: the store's current)")
    parser.add_argument("--name", default="rsp", help="its name in the URL (default: rsp)")
    parser.add_argument("--version", default="", help="its version (default: 8 digits of its SHA-256)")
    parser.add_argument("--model_store", type=Path, help="folder of the archives (default: a temporary one)")
    parser.add_argument("--host", default="127.0.0.1", help="address for predictions (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port for predictions (default: 8080)")
    parser.add_argument("--management_port", type=int, default=8081, help="of the management API (default: 8081)")
    parser.add_argument("--metrics_port", type=int, default=8082, help="of the metrics (default: 8082)")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="worker processes (default: processors)")
    parser.add_argument("--model_api", action="store_true", help="let `rsp deploy` register models here")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to get ready (default: 120)")
    parser.add_argument("--drain", type=float, default=10.0, help="seconds for requests under way at the end")
    args = vars(parser.parse_args(argv))
    drain = args.pop("drain")

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    try:
        with TorchServe(**args) as server:
            print(f"serving {server.inference}/predictions/{server.name}, metrics {server.metrics}/metrics")
            print("  curl -H 'Content-Type: application/octet-stream' --data-binary @tile.webp "
                  f"{server.inference}/predictions/{server.name} --output mask.png", flush=True)  # fmt: skip
            try:
                while server.running:
                    time.sleep(0.5)
                raise ServingError(f"TorchServe has ended:\n{server.tail()}")
            except KeyboardInterrupt:
                print("stopping, once the requests under way are answered", flush=True)
                _drain(server, drain)
    except RspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
