"""Sharded prediction, killed at random and started again: for `tests/test_shards.py` and `tests/scale.py`.

The steps are the components of the pipeline `prediction` (`tests.pods`). The tile server and the S3 server are
here; they know which step asks, count what it asks for, and end the run, all its processes at once, in the middle
of a request that was drawn. That way a kill hits a known step at any place, however slow the machine is.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from rsp.components.cover.blocks import OWN, blocks
from rsp.shared.images import encode
from rsp.shared.locations import location, pinned
from rsp.shared.tiles import Tile, read_cover, write_cover
from tests.faults import Fault, FaultyProxy
from tests.pods import Order
from tests.s3 import moto

ROOT = Path(__file__).parent.parent
SIDE = 64  # pixels of a tile
CELL = 88  # and of the square that a building stands in
# Runs that may end before they are killed, as joining may be done sooner than the moment that was drawn.
MOST_RUNS = 30
STRETCH = 1500  # pixels that a road goes on for


def picture(tile: Tile) -> np.ndarray:
    """Return the image of a tile: buildings that know nothing of tiles, and roads through many of them."""
    x = tile.x * SIDE + np.arange(SIDE)[None, :]
    y = tile.y * SIDE + np.arange(SIDE)[:, None]
    number = ((x // CELL) * 73856093 ^ (y // CELL) * 19349663) & 0x7FFFFFFF
    number = (number ^ number >> 13) * 1540483477 & 0x7FFFFFFF
    number ^= number >> 15
    left, top = 2 + number % 16, 2 + number // 16 % 16
    wide, high = 30 + number // 64 % 32, 30 + number // 2048 % 32
    column, row = x % CELL - left, y % CELL - top
    building = (number // 65536 % 100 < 50) & (column >= 0) & (column < wide) & (row >= 0) & (row < high)
    road = ((x + 2 * y) % 1700 < 20) & ((x // STRETCH + y // STRETCH) % 2 == 0)
    ground = 40 + (x * 7 + y * 13) % 31
    return np.repeat(np.where(building | road, ground + 150, ground)[:, :, None], 3, 2).astype(np.uint8)


def gaps(tile: Tile) -> bool:
    """Tell of a tile whether a server has none: here and there, and all of a square that is a block of its own."""
    x, y, _ = tile
    return (x // 2 * 31 + y // 2 * 17) % 101 == 0 or (x // 16, y // 16) == (131056 // 16, 65520 // 16)


def square(x: int, y: int, columns: int, rows: int, zoom: int = 18) -> list[Tile]:
    """Return the tiles of a rectangle."""
    return [Tile(x + column, y + row, zoom) for column in range(columns) for row in range(rows)]


def crossing(features: Path, tiles: list[Tile], size: int, folder: Path) -> int:
    """Return how many features lie in more than one block.

    Args:
        features: GeoJSON.
        tiles: The cover.
        size: Tiles of a block.
        folder: For the covers of the blocks.
    """
    write_cover(folder / "cover.csv", tiles)
    found = blocks(folder / "cover.csv", folder / "blocks", size=size)
    block = {
        (x, y): number for number, name in enumerate(found.written) for x, y, _ in read_cover(Path(name + OWN))
    }
    count, side = 0, 1 << tiles[0].z
    for feature in json.loads(features.read_text())["features"]:
        lon, lat = np.array(feature["geometry"]["coordinates"][0]).T
        y = (1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2
        corners = np.stack([(lon + 180) / 360, y]) * side
        # Two pixels towards the middle, so that what only touches a border is on its own side of it.
        corners += np.clip(corners.mean(1, keepdims=True) - corners, -2 / SIDE, 2 / SIDE)
        count += len({block[x, y] for x, y in np.floor(corners).astype(int).T.tolist()}) > 1
    return count


@dataclass
class Asked:
    """What a step has asked the servers for.

    Attributes:
        tiles: Of the tile server, how often each.
        reads: Requests of S3 that read, by the folder below the data root: `download`, `predict` ...
        writes: And that write or remove.
        sent: Bytes to S3.
        got: Bytes from S3.
    """

    tiles: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    got: int = 0

    @property
    def all(self) -> int:
        """How many requests these were."""
        return sum(sum(each.values()) for each in (self.tiles, self.reads, self.writes))


@dataclass(frozen=True)
class Kill:
    """When a run is killed.

    Attributes:
        tool: In a step of this tool that no run before has ended.
        request: At this request of such steps, the first is 1.
        after: Seconds after it arrived.
    """

    tool: str
    request: int
    after: float = 0.0


def draw_kill(dice: random.Random, tool: str, most: int, longest: float = 0.2) -> Kill:
    """Return a kill at a random moment.

    Half of them hit the middle of a request, the others mostly something that is computed.

    Args:
        dice: What draws.
        tool: In a step of which.
        most: The last of its requests that may be hit.
        longest: Seconds after it that may pass.
    """
    return Kill(tool, dice.randint(1, most), dice.choice([0.0, dice.uniform(0, longest)]))


class Watch:
    """What the servers see of a run, by the name of the step that asks; ends it when the moment has come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._group: int | None = None
        self.begin(None, frozenset())

    def begin(self, kill: Kill | None, done: frozenset[str]) -> None:
        """Count from nothing, for a run.

        Args:
            kill: When it is to end; None lets it.
            done: Names of the steps that runs before have ended.
        """
        with self._lock:
            self.asked: defaultdict[str, Asked] = defaultdict(Asked)
            self._kill, self._done, self._left = kill, done, kill.request if kill else 0
            self._started = threading.Event()

    def started(self, group: int) -> None:
        """Note which processes belong to the run."""
        self._group = group
        self._started.set()

    def seen(self, step: str, note: Callable[[Asked], None]) -> None:
        """Count a request, which is answered after this."""
        with self._lock:
            note(self.asked[step])
            kill = self._kill
            if kill is None or step.partition("-")[0] != kill.tool or step in self._done:
                return
            self._left -= 1
            if self._left != 0:
                return
        threading.Timer(kill.after, self.kill).start() if kill.after else self.kill()

    def kill(self) -> None:
        """End all processes of the run at once, if they have not ended."""
        self._started.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self._group or 0, signal.SIGKILL)


class Imagery(ThreadingHTTPServer):
    """A tile server that draws its tiles, and has none where `absent` says so."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, watch: Watch, absent: Callable[[Tile], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                watch.seen(self.headers.get("X-Step", "?"), lambda asked: asked.tiles.update([self.path]))
                z, x, y = map(int, re.findall(r"\d+", self.path))
                tile = Tile(x, y, z)
                status, body = (404, b"") if absent(tile) else (200, encode(picture(tile), "png"))
                head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{{z}}/{{x}}/{{y}}.png"

    def handle_error(self, *_: object) -> None:
        """Be silent: who asked was killed."""


@dataclass
class Run:
    """How a run went.

    Attributes:
        status: 0, or what it ended with; -9 where it was killed.
        asked: What its steps asked for.
        events: What `tests.pods` noted.
        features: The GeoJSON that it wrote.
        absent: The cover of the tiles that the server does not have.
    """

    status: int
    asked: dict[str, Asked]
    events: list[dict[str, Any]]
    features: Path
    absent: Path

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.status == -signal.SIGKILL

    @property
    def done(self) -> frozenset[str]:
        """Names of the steps of blocks that were done."""
        names = (each["step"] for each in self.events if each["what"] == "done")
        return frozenset(name for name in names if not name.startswith(("blocks", "join")))

    @property
    def ended(self) -> list[dict[str, Any]]:
        """What each process took that ended by itself."""
        return [each for each in self.events if each["what"] == "ended"]


class Shards:
    """Servers, and a process that forks runs.

    Attributes:
        s3: The S3 server.
        watch: What it and the tile server see.
        root: `s3://bucket/data`, where results go.
    """

    def __init__(self, folder: Path, s3: Any, imagery: Imagery, watch: Watch, pods: subprocess.Popen[str]) -> None:
        self.folder, self.s3, self.imagery, self.watch, self._pods = folder, s3, imagery, watch, pods
        self._count = 0
        self.bucket = f"s3://{s3.bucket()}"
        self.root = f"{self.bucket}/data"
        model = folder / "model.safetensors"
        self._order(Order(str(folder), "", "", str(model)))
        storage = location(self.bucket).storage()
        storage.upload("model.safetensors", model)
        self.model = model
        self._model_at = str(pinned(location(f"{self.bucket}/model.safetensors")))

    def _order(self, order: Order) -> int:
        """Have a run made; returns its status."""
        assert self._pods.stdin and self._pods.stdout
        print(json.dumps(asdict(order)), file=self._pods.stdin, flush=True)
        self.watch.started(int(self._pods.stdout.readline()))
        status = int(self._pods.stdout.readline())
        return os.waitstatus_to_exitcode(status)

    def _run(self, tiles: list[Tile], kill: Kill | None, done: frozenset[str], **order: Any) -> Run:
        folder = self.folder / f"run-{self._count}"
        self._count += 1
        folder.mkdir()
        write_cover(folder / "cover.csv", tiles)
        self.watch.begin(kill, done)
        status = self._order(Order(str(folder), str(folder / "cover.csv"), self.imagery.url, **order))
        lines = (folder / "events").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return Run(status, dict(self.watch.asked), events, folder / "features.geojson", folder / "absent.csv")

    def whole(self, tiles: list[Tile], workers: int = 0) -> Run:
        """Let the tools work on all tiles at once, on this machine and undisturbed."""
        return self._run(tiles, None, frozenset(), model=str(self.model), workers=workers)

    def killed(
        self,
        tiles: list[Tile],
        size: int,
        kills: Iterable[tuple[str, int]],
        *,
        seed: int = 0,
        longest: float = 0.2,
        ran: Callable[[Kill | None, Run], object] = lambda *_: None,
        **options: Any,
    ) -> list[Run]:
        """Work on blocks, be killed and begin again, until a run ends after the last kill; returns all runs.

        Args:
            tiles: The cover.
            size: Tiles of a block.
            kills: For each kill the tool, and the last of its requests that may be hit.
            seed: Of the moments.
            longest: See `draw_kill`.
            ran: Called after each run.
            options: See `sharded`.
        """
        dice, runs, left = random.Random(seed), [], deque(kills)
        done: frozenset[str] = frozenset()
        while True:
            kill = draw_kill(dice, *left[0], longest) if left else None
            runs.append(self.sharded(tiles, size, kill, done, **options))
            ran(kill, runs[-1])
            done |= runs[-1].done
            if runs[-1].killed:
                left.popleft()
            elif kill is None or runs[-1].status or len(runs) > MOST_RUNS:
                return runs

    def journals(self) -> list[str]:
        """Return what killed writers left in S3 that nobody needs any more."""
        keys = [found.key for found in location(self.root).storage().list()]
        return [key for key in keys if ".journal/" in key]

    def sharded(
        self, tiles: list[Tile], size: int, kill: Kill | None = None, done: frozenset[str] = frozenset(),
        *, segment: int = 0, endpoint: str = "",
    ) -> Run:  # fmt: skip
        """Let the components work on blocks, and go on where runs before were killed.

        Args:
            tiles: The cover.
            size: Tiles of a block.
            kill: When the run is killed; None lets it end.
            done: The steps that runs before have ended.
            segment: Bytes after which a part of a journal is stored; 0 for the default.
            endpoint: URL of the S3 server, if it is not ours itself.
        """
        environ = dict(self.s3.environ) | ({"AWS_ENDPOINT_URL_S3": endpoint} if endpoint else {})
        return self._run(
            tiles, kill, done, model=self._model_at, data_root=self.root, size=size, segment=segment,
            environ=environ,
        )  # fmt: skip


def check(runs: list[Run], expected: Run, kills: int) -> None:
    """Hold runs to what sharded prediction promises.

    Args:
        runs: Of one cover and one size of blocks, one after the other.
        expected: The undisturbed run of the cover.
        kills: How many of them were killed.
    """
    assert sum(run.killed for run in runs) == kills and runs[-1].status == 0, [run.status for run in runs]
    for run in runs:
        if run.status == 0:
            assert run.features.read_bytes() == expected.features.read_bytes()
            ours, theirs = (sorted(cover.read_text().splitlines()) for cover in (run.absent, expected.absent))
            assert ours == theirs
    done: frozenset[str] = frozenset()
    for run in runs:
        for name in done & run.asked.keys():
            asked = run.asked[name]
            assert not asked.tiles, f"{name} was done, and asks the tile server again"
            # Whether it is there, and its record: no tile of it.
            assert asked.all <= 8 and asked.got < 20_000, f"{name} was done: {asked}"
        done |= run.done
        assert all(step["mb"] < 1000 for step in run.ended), run.ended


@contextmanager
def shards(folder: Path, absent: Callable[[Tile], bool] = lambda _: False) -> Iterator[Shards]:
    """Start the servers, and the process that forks runs; it takes seconds to import what steps import."""
    watch = Watch()
    imagery = Imagery(watch, absent)
    command = [sys.executable, "-m", "tests.pods"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    pods = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ
    )
    threading.Thread(target=imagery.serve_forever, args=(0.02,), daemon=True).start()
    before = dict(os.environ)
    try:
        with moto(lambda environ, size: _note_call(watch, environ, size)) as s3:
            os.environ.update(s3.environ)
            assert pods.stdout and pods.stdout.readline() == "ready\n"
            yield Shards(folder, s3, imagery, watch, pods)
    finally:
        watch.kill() if watch._group else None
        assert pods.stdin and pods.stdout
        pods.stdin.close()
        pods.wait(60)
        pods.stdout.close()
        imagery.shutdown()
        imagery.server_close()
        os.environ.clear()
        os.environ.update(before)


def _note_call(watch: Watch, environ: dict[str, Any], size: int | None) -> None:
    """Note a request to S3, when it comes (without a size) and when it is answered."""
    found = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    step = found[1] if found else "?"
    if size is not None:
        watch.asked[step].got += size
        return
    path = str(environ["PATH_INFO"]).split("/")
    place = path[3] if len(path) > 3 else ""
    reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")

    def note(asked: Asked) -> None:
        (asked.reads if reads else asked.writes)[place] += 1
        asked.sent += int(environ.get("CONTENT_LENGTH") or 0)

    watch.seen(step, note)


@contextmanager
def faulty(host: str, share: float, seed: int = 0) -> Iterator[FaultyProxy]:
    """Put a proxy before a server that lets a share of the requests go wrong, each in another way."""
    dice, lock = random.Random(seed), threading.Lock()
    faults = [
        Fault(forward=False, cut=-1), Fault(cut=-1), Fault(cut=100), Fault(forward=False, status=503),
        Fault(status=500), Fault(stall=0.3),
    ]  # fmt: skip

    def fault(*_: object) -> Fault:
        with lock:
            return dice.choice(faults) if dice.random() < share else Fault()

    with FaultyProxy(host, fault) as proxy:
        yield proxy
