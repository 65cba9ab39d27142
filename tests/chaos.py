"""What serving withstands, at full scale: `make chaos`, or `python -m tests.chaos switch kill ...` for some rows.

The suite has a small version of each. Here real `rsp serve` processes follow real stores, are killed at each state
of a switch, are asked for nonsense; and each row says what came of it. Waits are given as ratios of the same run
without a switch: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import requests

from rsp.serving.client import TileClient
from rsp.serving.host import free_ports
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import ServingError, TileError
from rsp.shared.images import encode
from rsp.shared.learning.encoded import predict_tiles
from rsp.shared.learning.inference import load_predictor
from rsp.shared.storage import open_storage
from tests.relay import Relay
from tests.s3 import moto
from tests.serving.bad_inputs import BAD, RAW, fault, send, send_raw
from tests.serving.load import Load
from tests.serving.stores import move, publish
from tests.serving.tiny import make_model
from tests.tilesets import BLOCK, noise

STATES = (
    "fetching", "verifying", "archiving", "registering", "loading", "comparing", "switching", "draining",
    "removing", "serving",
)  # fmt: skip


class Serve:
    """`rsp serve` in a process of its own, which can be killed and started again on its cache."""

    def __init__(self, folder: Path, store: str, workers: int = 1, **environ: str) -> None:
        self.folder, self.store, self.workers = folder, store, workers
        folder.mkdir(parents=True)
        self.port, self.metrics_port = free_ports((0, 0))
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = {**os.environ, "RSP_LOG_FORMAT": "json", **environ}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "rsp.shared.cli", "serve", "--store", self.store, "--name", "rsp"]
        command += ["--port", str(self.port), "--metrics_port", str(self.metrics_port)]
        command += ["--workers", str(self.workers), "--cache", str(self.folder / "cache")]
        self.log = self.folder / f"log-{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environ)

    def status(self) -> dict[str, object]:
        try:
            found: dict[str, object] = requests.get(f"{self.url}/status", timeout=5).json()["models"]["rsp"]
        except (requests.RequestException, ValueError):
            return {}
        return found

    def wait(self, condition: Callable[[dict[str, object]], bool], seconds: float = 180.0) -> dict[str, object]:
        end = time.monotonic() + seconds
        while True:
            found = self.status()
            if found and condition(found):
                return found
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{found}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def serves(self, version: str) -> dict[str, object]:
        return self.wait(lambda each: each["serving"] == version)

    def states(self) -> list[str]:
        return re.findall(r'"state": "(\w+)"', self.log.read_text())

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def java(self) -> int:
        return next(each.pid for each in self.family() if each.name() == "java")

    def python_workers(self) -> list[psutil.Process]:
        return [each for each in self.family() if any(part.endswith("worker.py") for part in _line(each))]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def serving(folder: Path, store: str, workers: int = 1, **environ: str) -> Iterator[Serve]:
    server = Serve(folder, store, workers, **environ)
    try:
        yield server
    finally:
        server.stop()


def store_of(address: str, folder: Path) -> ReleaseStore:
    """A store with v1, v2, and one whose golden mask is wrong; v1 is wanted."""
    store = ReleaseStore(open_storage(address))
    for seed in (1, 2):
        publish(store, make_model(folder / f"v{seed}.pt2", seed, "pt2"), f"v{seed}")  # what pipelines deploy
    publish(store, folder / "v2.pt2", "wrong", wrong=True)
    move(store, "v1")
    return store


def waits(load: Load, start: float, end: float) -> list[float]:
    """The seconds of all requests that ended in a span of time."""
    return sorted(b - a for moments in load.moments for a, b in moments if start <= b <= end)


def p99(found: list[float]) -> float:
    return found[int(0.99 * (len(found) - 1))]


def switch(folder: Path, seconds: float, times: int) -> bool:
    """Switch, roll-back and refused release under 4 clients."""
    print(f"\n## Under 4 clients, {seconds:g} s each, {times} times: requests, failed, p99, longest wait\n")
    store = store_of(str(folder / "store"), folder)
    good, ratios = True, dict[str, list[float]]()
    with serving(folder / "server", str(folder / "store"), 2) as server:
        server.serves("v1")
        for number in range(times):
            rows = {}
            for kind, version in (("none", ""), ("switch", "v2"), ("roll-back", "v1"), ("refused", "wrong")):
                with Load(server.url) as load:
                    load.wait_for(3)
                    start = time.monotonic()
                    if version:
                        move(store, version)
                        wanted = "v1" if version == "wrong" else version
                        found = server.wait(
                            lambda each, version=version, wanted=wanted: (each["wanted"], each["serving"]) == (
                                version, wanted) and (version != "wrong" or each["state"] == "refused")
                        )  # fmt: skip
                        took = time.monotonic() - start
                    time.sleep(max(0.0, seconds - (time.monotonic() - start)))
                    end = time.monotonic()
                all_of = waits(load, start, end)
                rows[kind] = p99(all_of)
                ratio = rows[kind] / rows["none"]
                told = f" after {took:.1f} s: {found['state']}" if version else ""
                print(
                    f"| {number + 1} | {kind}{told} | {len(all_of)} | {len(load.faults)} | {rows[kind]:.3f} s "
                    f"({ratio:.2f}) | {all_of[-1]:.2f} s |",
                    flush=True,
                )
                good &= not load.faults and all_of[-1] <= 5
                if version:
                    ratios.setdefault(kind, []).append(ratio)
            move(store, "v1")  # from the refused one
            server.serves("v1")
    medians = {kind: statistics.median(found) for kind, found in ratios.items()}
    told = ", ".join(f"{kind} {median:.2f}" for kind, median in medians.items())
    print(f"\nnone failed or waited over 5 s: {good}; p99 ratio, medians: {told}")
    return good and max(medians.values()) <= 2


class Retrying:
    """Clients that ask again, as `rsp predict --endpoint` does, and note what they could not get."""

    def __init__(self, url: str, masks: dict[bytes, str], clients: int = 2, pause: float = 0.1) -> None:
        self.url, self.masks, self.pause = url, masks, pause
        self.count, self.faults, self.stop = 0, [], threading.Event()
        self.image = encode(noise(BLOCK[0]), "png")
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self) -> None:
        with TileClient(self.url) as client:
            while not self.stop.wait(self.pause):
                try:
                    mask = client.predict(self.image)
                except (ServingError, TileError) as error:
                    self.faults.append(str(error))
                    continue
                self.count += 1
                if mask not in self.masks:
                    self.faults.append("a mask of nobody's")

    def __enter__(self) -> Retrying:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def masks_of(folder: Path) -> dict[bytes, str]:
    """The version by the mask that it answers to the tile of the load."""
    image = encode(noise(BLOCK[0]), "png")
    found = {}
    for version in ("v1", "v2"):
        (mask,) = predict_tiles(load_predictor(folder / f"{version}.pt2", device="cpu"), [image])
        assert isinstance(mask, bytes)
        found[mask] = version
    return found


def kill(folder: Path, seconds: float, times: int) -> bool:
    """Three servers on one S3 store; one is killed at each state of a switch, and started again."""
    print("\n## SIGKILL of one of three servers at each state of a switch\n", flush=True)
    dice, good = random.Random(0), True
    with moto() as s3, ExitStack() as stack:
        os.environ.update(s3.environ)
        s3.client().make_bucket("chaos")
        store = store_of("s3://chaos/models", folder)
        servers = [stack.enter_context(serving(folder / f"server{n}", "s3://chaos/models")) for n in range(3)]
        for server in servers:
            server.serves("v1")
        relay = Relay(*(server.port for server in servers))
        stack.callback(relay.close)
        client = stack.enter_context(Retrying(f"http://127.0.0.1:{relay.port}", masks_of(folder)))
        wanted = "v1"
        for number in range(times):
            state, victim = STATES[number % len(STATES)], dice.choice(servers)
            for server in servers:  # a new log each time, so that states of this switch are told apart
                server.wait(lambda each: (each["state"], each["kept"]) == ("serving", []))
            before = len(victim.states())
            wanted = "v2" if wanted == "v1" else "v1"
            move(store, wanted)
            while state not in victim.states()[before:]:
                time.sleep(0.002)
            victim.process.send_signal(signal.SIGKILL)
            victim.process.wait()
            time.sleep(1)  # as long as a kubelet takes at least
            victim.start()
            ends = [server.serves(wanted)["serving"] for server in servers]
            told = victim.states()
            good &= ends == [wanted] * 3
            print(
                f"| {number + 1} | {state} | {' '.join(map(str, ends))} | {client.count} answered, "
                f"{len(client.faults)} failed | {'fetching' in told} |",
                flush=True,
            )
    print(f"\nall on the pointer's model: {good}; failed requests: {len(client.faults)} of {client.count}")
    print(*sorted(set(client.faults))[:5], sep="\n")
    return good and not client.faults


def sigterm(folder: Path, seconds: float, times: int) -> bool:
    """SIGTERM under the load of 4 clients that do not ask again."""
    print("\n## SIGTERM under 4 clients: answered, failed, exit code\n")
    store_of(str(folder / "store"), folder)
    good = True
    for number in range(times):
        with serving(folder / f"server{number}", str(folder / "store"), 2, RSP_DRAIN="2") as server:
            server.serves("v1")
            with Load(server.url) as load:
                load.wait_for(20)
                server.process.terminate()
                code = server.process.wait(120)
                for thread in load.threads:
                    thread.join(120)
            count = sum(map(len, load.moments))
            print(f"| {number + 1} | {count} | {len(load.faults)} | {code} |", flush=True)
            good &= not load.faults and code == 0
    return good


def workers(folder: Path, seconds: float, times: int) -> bool:
    """Workers that are killed under load: no tile is lost through a client that asks again."""
    print("\n## SIGKILL of workers under 4 clients that ask again\n")
    store_of(str(folder / "store"), folder)
    dice, killed = random.Random(0), 0
    with serving(folder / "server", str(folder / "store"), 2) as server:
        server.serves("v1")
        with Retrying(server.url, masks_of(folder), 4, 0.0) as client:
            while killed < times:
                # Under load, and when the last one's successor has begun to work: a worker that is killed whenever
                # it starts would answer nobody.
                server.wait(lambda each: each["workers"] == 2)
                answered = client.count
                while client.count < answered + 5:
                    time.sleep(0.05)
                time.sleep(dice.uniform(0.0, 0.2))
                dice.choice(server.python_workers()).kill()
                killed += 1
                time.sleep(2.5)  # until the follower has noticed
            time.sleep(5)
    print(f"{killed} workers killed, {client.count} tiles answered, {len(client.faults)} lost", flush=True)
    print(*sorted(set(client.faults))[:5], sep="\n")
    return not client.faults


def inputs(folder: Path, seconds: float, times: int) -> bool:
    """Bad inputs among good ones, and slow connections."""
    print("\n## Bad inputs of all kinds among good ones, and 300 slow connections\n")
    store_of(str(folder / "store"), folder)
    count = 50 * times
    with serving(folder / "server", str(folder / "store"), 2) as server, ExitStack() as stack:
        server.serves("v1")
        url = f"{server.url}/predictions/rsp"
        masks, image = masks_of(folder), encode(noise(BLOCK[0]), "png")
        for bad in BAD:  # what Python and Java allocate once
            send(url, bad)
        before, pids, java = _memory(server), sorted(each.pid for each in server.python_workers()), server.java()
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(300)]
        partial = b"", b"POST / HT", b"POST /predictions/rsp HTTP/1.1\r\nContent-Length: 9\r\n\r\na"
        for number, sock in enumerate(slow):
            sock.sendall(partial[number % 3])

        def ask(number: int) -> list[str]:
            faults = []
            bad = BAD[number % len(BAD)]
            answer = send(url, bad)
            if found := fault(bad, answer.status_code, answer.json()):
                faults.append(found)
            good = requests.post(url, image, headers={"Content-Type": "image/png"}, timeout=60)
            if masks.get(good.content) != "v1":
                faults.append(f"a good tile was answered {good.status_code}")
            if number % 10 == 0:
                name, (data, statuses) = list(RAW.items())[number // 10 % len(RAW)]
                if (status := send_raw(url, data)) not in statuses:
                    faults.append(f"{name}: {status}")
            return faults

        with ThreadPoolExecutor(8) as pool:
            faults = [each for found in pool.map(ask, range(count)) for each in found]
        after = _memory(server)
        same = (pids, java) == (sorted(each.pid for each in server.python_workers()), server.java())
        print(
            f"{count} bad inputs of {len(BAD)} kinds and {len(RAW)} that are not HTTP, {count} good ones: "
            f"{len(faults)} faults; restarts: {'none' if same else 'some'}; {before:.0f} MB, then {after:.0f} MB",
            flush=True,
        )
        print(*faults[:5], sep="\n")
    return not faults and same and after < 1.15 * before


def _memory(server: Serve) -> float:
    """The MB of all processes of a server."""
    family = [psutil.Process(server.process.pid), *server.family()]
    return sum(each.memory_info().rss for each in family) / 1e6


# How often the table of the documentation has each row.
ROWS = {
    "switch": (switch, 3),
    "kill": (kill, 20),
    "sigterm": (sigterm, 10),
    "workers": (workers, 20),
    "inputs": (inputs, 20),
}


def main(argv: list[str] | None = None) -> int:
    """Run rows, and return 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="only these rows")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long each load lasts (default: 40)")
    parser.add_argument("--times", type=int, help="how often, instead of the number of the row")
    args = parser.parse_args(argv)
    verdicts = {}
    for name in args.rows or ROWS:
        run, times = ROWS[name]
        with tempfile.TemporaryDirectory(prefix="rsp-chaos-") as folder:
            verdicts[name] = run(Path(folder), args.seconds, args.times or times)
    print(f"\n{json.dumps(verdicts)}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
