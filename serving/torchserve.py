"""TorchServe's processes: a launcher, Java and Python workers, on the loopback, and gone when we are."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque

from rsp.serving.archive import HERE
from rsp.serving.failures import VARIABLE
from rsp.serving.host import connects, free_ports, preflight, short_folder

log = logging.getLogger(__name__)

# As log4j2.xml has it: the time, a level that matters, and what follows.
_LEVEL = re.compile(r"\S+ \[(?:WARN|ERROR|FATAL) *\] ")
# Variables that TorchServe and its workers do not get.
PRIVATE = ("TS_", "AWS_", "MINIO_", "S3_", "RSP_TOKENS", "RSP_TORCHSERVE_TOKEN")


class TorchServe:
    """TorchServe on this machine, with a folder, ports and processes of its own.

    It listens on the loopback alone, and starts without any model; the follower registers them.

    Args:
        threads: Threads of each worker; workers times threads should not pass the processors.

    Attributes:
        model_store: Folder of the archives that can be registered.
        port: The port on the loopback for predictions.
        inference, management, metrics: The URLs.
        folder: Where its processes write; gone with the server.
        generation: How often it was started; what was registered is gone with each start.
    """

    def __init__(self, *, threads: int = 1) -> None:
        preflight()
        self.threads = threads
        self.folder = short_folder()
        self._lines: deque[str] = deque(maxlen=500)
        self.model_store = (self.folder / "store").absolute()
        self.model_store.mkdir(parents=True, exist_ok=True)
        self.generation = 0
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the processes; `answers` tells when they serve."""
        ports = free_ports((0, 0, 0, 0, 0))
        self.model_store.mkdir(parents=True, exist_ok=True)  # the watchdog of another start may have cleaned up
        self.port = ports[0]
        self.inference, self.management, self.metrics = (f"http://127.0.0.1:{port}" for port in ports[:3])
        config = self.folder / "config.properties"
        config.write_text((HERE / "config.properties").read_text("utf-8") + self._settings(ports), "utf-8")
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--ts-config", str(config), "--log-config", str(HERE / "log4j2.xml")]
        # Models are programs: how to open the release store, and who may predict, is none of their business.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE)}
        environment |= dict.fromkeys(("TEMP", "TMPDIR", "LOG_LOCATION", "METRICS_LOCATION"), str(self.folder))
        environment["OMP_NUM_THREADS"] = str(self.threads)
        environment[VARIABLE] = str(self.model_store)
        self._lines.clear()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "watchdog.py"), str(self.folder), *command],
            cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process,), name="torchserve log", daemon=True).start()
        self.generation += 1

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Keep the last lines that the processes write, and pass on what warns."""
        assert process.stdout is not None
        with process.stdout as output:
            for raw in output:
                line = raw.decode("utf-8", "replace").rstrip()[:2000]
                self._lines.append(line)
                found = _LEVEL.match(line)
                log.log(logging.WARNING if found else logging.DEBUG, "%s", line[found.end() :] if found else line)

    def _settings(self, ports: list[int]) -> str:
        """Return what stands over the file: keys that the environment gives as TS_<KEY>, and ours over both."""
        given = {key[3:].lower(): value for key, value in os.environ.items() if key.startswith("TS_")}
        settings = given | {
            "inference_address": f"http://127.0.0.1:{ports[0]}",
            "management_address": f"http://127.0.0.1:{ports[1]}",
            "metrics_address": f"http://127.0.0.1:{ports[2]}",
            "grpc_inference_port": ports[3],
            "grpc_management_port": ports[4],
            "enable_envvars_config": "false",
            "model_store": self.model_store,
            "allowed_urls": f"file://{re.escape(str(self.model_store))}/.*".replace("\\", "\\\\"),
            "enable_model_api": "true",
        }
        lines = (f"{key}={' '.join(str(value).split())}\n" for key, value in settings.items() if value != "")
        return "\n" + "".join(lines)

    @property
    def running(self) -> bool:
        """Whether the processes are there."""
        return self._process is not None and self._process.poll() is None

    def answers(self) -> bool:
        """Tell whether both of its ports answer, with or without a model."""
        # The list of models is an object, not a list, and so empty here: connecting is what tells.
        return self.running and connects(int(self.management.rpartition(":")[2])) and connects(self.port)

    def tail(self, lines: int = 20) -> str:
        """Return the last lines that the processes wrote."""
        return "\n".join(list(self._lines)[-lines:]) or "(no log)"

    def kill(self) -> None:
        """End Java and the workers; `launch` may start them again.

        They are killed: TorchServe's own way of stopping takes four seconds, cuts off requests all the same, and
        has nothing to save.
        """
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()  # the watchdog does the rest
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """End the processes, and remove the folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def loopback(host: str) -> str:
    """Return the address at which this machine reaches what listens on `host`, as it stands in a URL."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{here}]" if ":" in here else here
