"""TorchServe with archives that `rsp deploy` registers over the management API."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rsp.serving.archive import build_archive, trusts_models
from rsp.serving.management import ready_workers
from rsp.serving.proxy import Proxy, max_request_size
from rsp.serving.store import current_archives
from rsp.serving.torchserve import TorchServe, loopback
from rsp.shared.errors import ServingError

# What a worker's log says when it could not load the model; TorchServe would retry forever.
DIED = "Backend worker process died"


class DirectServer:
    """TorchServe behind a `Proxy`, with the models that a folder of archives names: without a release store.

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
        folder: Its folder, gone with the server.
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
        self.timeout = timeout
        self._store, self._port, self._asked = model_store, port, management_port or metrics_port
        self._options = {
            "host": host, "management_port": management_port, "metrics_port": metrics_port, "workers": workers,
            "threads": threads, "model_api": model_api,
        }  # fmt: skip
        self._proxy: Proxy | None = None
        self._torchserve: TorchServe | None = None

    def start(self) -> None:
        """Start, and return when a worker is READY (or, without any model, when the server answers).

        Raises:
            ServingError: Java or a package is missing, a port is taken, the model cannot be loaded, or no worker
                is READY in time; with the reason, or the end of the log.
        """
        try:
            self._torchserve = server = TorchServe(self._store, **self._options)  # type: ignore[arg-type]
            self.model_store, self.folder = server.model_store, server.folder
            # From the start: it answers 503 until TorchServe does.
            self._proxy = Proxy(self.host, self._port, 0, max_body=max_request_size())
            self._proxy.start()
            self.inference = f"http://{loopback(self.host)}:{self._proxy.port}"
            if self.model is not None:
                archive = build_archive(
                    self.model,
                    self.model_store,
                    name=self.name,
                    version=self.version,
                    trust_model=trusts_models(),
                )
                server.models = {self.name: archive.name}
            else:
                server.models = current_archives(self.model_store)
            for attempt in (1, 2, 3):
                server.launch()
                self._proxy.backend, self.management, self.metrics = server.port, server.management, server.metrics
                try:
                    return self._wait()
                except ServingError:
                    # Somebody else took a port in the moment between our choice and Java's start.
                    if attempt == 3 or self._asked or "Address already in use" not in server.tail(200):
                        raise
                    server.kill()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + self.timeout
        assert self._torchserve is not None
        while not self.ready():
            if not self._torchserve.running:
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
        server = self._torchserve
        if server is None or not server.running:
            return False
        if not server.models:
            return server.answers()
        return all(ready_workers(self.management, name) for name in server.models)

    @property
    def running(self) -> bool:
        """Whether the processes are there."""
        return self._torchserve is not None and self._torchserve.running

    def served(self) -> list[str]:
        """Return the names of the models that it was started with."""
        return [] if self._torchserve is None else sorted(self._torchserve.models)

    def tail(self, lines: int = 20) -> str:
        """Return the end of TorchServe's log."""
        return "(no log)" if self._torchserve is None else self._torchserve.tail(lines)

    def stop(self, drain: float = 0.0) -> int:
        """Accept no more connections, answer the requests under way, end Java and the workers.

        Args:
            drain: Seconds that the requests under way may take.

        Returns:
            How many were cut off.
        """
        lost = 0 if self._proxy is None else self._proxy.stop(drain)
        if self._torchserve is not None:
            self._torchserve.close()
        return lost

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
