"""Measure what a tile costs: in this process, through HTTP, and the start of a model. Masks are compared."""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import torch
from PIL import Image

from rsp.components.predict.tool import predict
from rsp.serving.client import TileClient
from rsp.serving.host import free_ports
from rsp.shared.images import Array, encode
from rsp.shared.learning.checkpoint import load_checkpoint
from rsp.shared.learning.encoded import predict_tiles
from rsp.shared.learning.formats import write_model
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.tiles import Tile, write_cover, zxy
from rsp.shared.tileset import open_reader
from tests.bench.harness import ROOT, Growth, Line, Row, compared, rsp
from tests.networks import make_card, make_checkpoint
from tests.tilesets import make_tileset

RUNS = 5
SIDE, OVERLAP = 256, 32
# Tiles of a measurement in this process, and through HTTP.
TILES, REQUESTS = 12, 128
# Tiles that `rsp predict` is measured with.
RUN = 2000
# Times that requests are measured, between measurements in this process.
ROUNDS = 3
# Java compiles what it has called 200 times.
WARM_UP = 256
# Fields of a card, and of the tables in it, that the first landing knows.
FIRST_CARD = (
    "nn", "encoder", "num_filters", "channels", "classes", "tile_size", "overlap", "epoch", "epochs", "metrics",
    "versions", "uuid",
)  # fmt: skip
FIRST_TABLES = {
    "channels": ("name", "bands", "mean", "std"),
    "classes": ("title", "color", "weight", "transparent"),
}

# Of the first landing: tiles in, milliseconds of CPU a tile and masks out.
FIRST = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shared.learning.inference import load_predictor, predict_tiles
import torch
torch.set_num_threads(1)
folder = Path(sys.argv[2])
tiles = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
predictor = load_predictor(folder / "first.safetensors", device="cpu")
predict_tiles(predictor, tiles[:2], 32)
times = []
for tile in tiles:
    start = time.process_time()
    (mask,) = predict_tiles(predictor, [tile], 32)
    times.append(time.process_time() - start)
    (folder / f"first{len(times):03d}.mask").write_bytes(mask)
print(sorted(times)[len(times) // 2] * 1000)
"""
# The network and nothing else, with the memory kept as we keep it.
BARE = """
import sys
from pathlib import Path
import torch
from rsp.shared.learning.checkpoint import load_checkpoint
from rsp.shared.memory import keep_memory
torch.set_num_threads(1)
keep_memory()
network, card = load_checkpoint(Path(sys.argv[1]))
network = network.to(memory_format=torch.channels_last)
side = card.tile_size + 2 * card.overlap
window = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    for _ in range(int(sys.argv[2])):
        network(window)
"""
LOAD = """
import sys, time
from pathlib import Path
began = time.perf_counter()
from rsp.shared.learning.inference import load_predictor
import numpy as np
predictor = load_predictor(Path(sys.argv[1]), device="cpu")
side = predictor.card.tile_size
predictor.masks([np.zeros((side, side, 3), np.uint8)])
print(time.perf_counter() - began)
"""


def make_tiles(count: int) -> list[bytes]:
    """Return windows of 320 px, as `rsp predict` sends them."""
    return [encode(make_areas(seed, SIDE + 2 * OVERLAP), "png") for seed in range(count)]


def make_areas(seed: int, side: int) -> Array:
    """Return an image: areas, edges and a little noise."""
    rng = np.random.default_rng(seed)
    areas = np.kron(rng.integers(0, 256, (20, 20, 3)), np.ones((16, 16, 1), int))[:side, :side]
    return np.clip(areas + rng.integers(-3, 4, (side, side, 3)), 0, 255).astype(np.uint8)


def milliseconds(function: Callable[[bytes], object], tiles: Sequence[bytes]) -> float:
    """Return the median CPU time of a tile in this process."""
    times = []
    for tile in tiles:
        start = time.process_time()
        function(tile)
        times.append(time.process_time() - start)
    return statistics.median(times) * 1000


def pixels(masks: Sequence[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(mask))) for mask in masks])


def plain_loop(checkpoint: Path) -> Callable[[bytes], bytes]:
    """Return what one would write without this project: Pillow, numpy, and the network, channels last."""
    network, card = load_checkpoint(checkpoint)
    network = network.to(memory_format=torch.channels_last)
    mean, std = np.float32(card.mean), np.float32(card.std)
    palette = [value for color in card.colors for value in color]

    def predict(tile: bytes) -> bytes:
        image = np.asarray(Image.open(io.BytesIO(tile)), np.float32) / 255
        batch = torch.from_numpy((image - mean) / std).permute(2, 0, 1).unsqueeze(0)
        with torch.inference_mode():
            classes = network(batch.contiguous(memory_format=torch.channels_last)).argmax(1)[0]
        mask = Image.fromarray(classes[OVERLAP:-OVERLAP, OVERLAP:-OVERLAP].to(torch.uint8).numpy())
        mask.putpalette(palette)
        buffer = io.BytesIO()
        mask.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    return predict


def first_landing(folder: Path, checkpoint: Path) -> tuple[float, list[bytes]] | None:
    """Return milliseconds a tile and masks of the code of the first landing; None without git or its history."""
    log = ["git", "log", "--format=%H", "--diff-filter=A", "--", "shared/learning/inference.py"]
    found = subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        return None
    code = folder / "code"
    if not code.exists():
        code.mkdir()
        packed = subprocess.run(["git", "archive", found[-1]], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", code], input=packed, check=True)
        write_first(checkpoint, folder / "first.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", FIRST, code, folder], capture_output=True, text=True, check=True, cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    return float(done.stdout), [path.read_bytes() for path in sorted(folder.glob("first*.mask"))]


def write_first(checkpoint: Path, out: Path) -> None:
    """Copy a checkpoint with a card as the first landing wrote it."""
    data = checkpoint.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    card = _only(FIRST_CARD, json.loads(header["__metadata__"]["card"]))
    for name, keys in FIRST_TABLES.items():
        card[name] = [_only(keys, table) for table in card[name]]
    header["__metadata__"]["card"] = json.dumps(card)
    text = json.dumps(header).encode()
    out.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _only(keys: Sequence[str], table: Mapping[str, object]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key in keys}


def bench_process(folder: Path, checkpoint: Path, predictor: Predictor, tiles: Sequence[bytes]) -> Iterator[Line]:
    def ours(tile: bytes) -> bytes:
        answer = predict_tiles(predictor, [tile], OVERLAP)[0]
        assert isinstance(answer, bytes)
        return answer

    what, loop = "a tile of 256 px in process", plain_loop(checkpoint)
    mine, theirs = [ours(tile) for tile in tiles], [loop(tile) for tile in tiles]
    differing = int((pixels(mine) != pixels(theirs)).sum())
    pairs = [(milliseconds(ours, tiles), milliseconds(loop, tiles)) for _ in range(RUNS)]
    yield compared(what, f"a plain torch loop, channels last; {differing} pixels differ", pairs)
    found = first_landing(folder, checkpoint)
    if found is None:
        yield Line(what, "", "the first landing: no git history")
        return
    differing = int((pixels(mine) != pixels(found[1])).sum())
    pairs = []
    for _ in range(3):
        before = first_landing(folder, checkpoint)
        assert before is not None
        pairs.append((milliseconds(ours, tiles), before[0]))
    yield compared(what, f"the first landing; {differing} pixels differ", pairs, 1 / 1.67)


def bench_load(models: dict[str, Path]) -> Iterator[Line]:
    for kind, path in models.items():
        used, waited = [], []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-c", LOAD, path], capture_output=True, text=True, check=True, cwd=ROOT
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            waited.append(float(done.stdout))
        yield Line(
            f"start a process, load {kind}, answer one tile", f"{statistics.median(used):.2f} s",
            "elapsed", f"{statistics.median(waited):.2f} s",
        )  # fmt: skip


class Served:
    """`rsp serve` with a model, as processes of its own.

    Attributes:
        seconds: From the start to the first answer.
        cpu: CPU seconds until then.
    """

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        port, metrics = free_ports((0, 0))
        began = time.monotonic()
        command = [sys.executable, "-m", "rsp.shared.cli", "serve", "--model", str(model), "--port", str(port)]
        self._log = (folder / "serve.log").open("wb")
        self._process = subprocess.Popen(
            [*command, "--metrics_port", str(metrics), "--workers", "1", *options],
            cwd=ROOT,
            stdout=self._log,
            stderr=self._log,
        )
        self.url = f"http://127.0.0.1:{port}"
        with TileClient(self.url, attempts=1) as client:
            while not client.ready():
                if self._process.poll() is not None or time.monotonic() - began > 120:
                    self.stop()
                    raise SystemExit((folder / "serve.log").read_text())
                time.sleep(0.1)
        self.seconds, self.cpu = time.monotonic() - began, sum(self.times().values())

    def times(self) -> dict[str, float]:
        """Return the CPU seconds so far, by what the processes are for."""
        found: dict[str, float] = defaultdict(float)
        root = psutil.Process(self._process.pid)
        for process in [root, *root.children(recursive=True)]:
            line = " ".join(process.cmdline())
            kind = next((name for word, name in ROLES.items() if word in line), "proxy")
            spent = process.cpu_times()
            found[kind] += spent.user + spent.system
        return found

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


ROLES = {"model_service_worker": "worker", "org.pytorch.serve": "java", "ts.model_server": "launcher"}


def bench_http(folder: Path, model: Path, predictor: Predictor, tiles: Sequence[bytes]) -> Iterator[Line]:
    expected = predict_tiles(predictor, tiles, OVERLAP)
    served = Served(model, folder)
    try:
        yield Line(
            "`rsp serve` with one worker, until it answers",
            f"{served.cpu:.2f} s",
            "elapsed",
            f"{served.seconds:.1f} s",
        )
        with TileClient(served.url) as client:

            def ask(index: int) -> None:
                assert client.predict(tiles[index % len(tiles)], overlap=OVERLAP) == expected[index % len(tiles)]

            def predict(tile: bytes) -> object:
                return predict_tiles(predictor, [tile], OVERLAP)

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(ask, range(WARM_UP)))
            for clients, bar in ((1, 7), (8, 5), (32, 5)):
                with ThreadPoolExecutor(clients) as pool:
                    list(pool.map(ask, range(2 * clients)))
                    rounds = []
                    for _ in range(ROUNDS):
                        alone = milliseconds(predict, tiles)
                        before, start = served.times(), time.process_time()
                        list(pool.map(ask, range(REQUESTS)))
                        client_time, after = time.process_time() - start, served.times()
                        alone = (alone + milliseconds(predict, tiles)) / 2
                        split = {name: (after[name] - before[name]) / REQUESTS * 1000 for name in after}
                        split["client"] = client_time / REQUESTS * 1000
                        rounds.append((sum(split.values()) - alone, alone, split))
                # Other work on the machine hits one side more than the other: the middle one counts.
                added, alone, split = sorted(rounds, key=lambda each: each[0])[ROUNDS // 2]
                parts = ", ".join(f"{name} {spent:.1f}" for name, spent in sorted(split.items()) if spent >= 0.05)
                yield Line(
                    f"a tile over HTTP, {clients} clients", f"{added + alone:.1f} ms ({parts})", "in process",
                    f"{alone:.1f} ms", f"HTTP adds {added:.1f} ms", f"<= {bar} ms",
                    fault=f"HTTP adds {added:.1f} ms, the bar is {bar}" if added > bar else "",
                )  # fmt: skip
    finally:
        served.stop()


def bench_live(folder: Path, model: Path) -> Iterator[Line]:
    """A tile of the live map: cut from its source with a border, predicted, drawn; against `rsp predict`."""
    warm, asked = ([Tile(4000 + x, y, 14) for y in range(first, first + 12) for x in range(12)]
                   for first in (4000, 5000))  # fmt: skip
    images, masks = folder / "town.pmtiles", folder / "masks.pmtiles"
    make_tileset(images, [*warm, *asked], "webp", lambda tile: make_areas(tile.x * tile.y, SIDE))
    write_cover(folder / "asked.csv", asked)

    def predicted() -> float:
        before = time.process_time()
        predict(images, masks, checkpoint=model, cover=folder / "asked.csv", workers=1, web_ui=False)
        return (time.process_time() - before) / len(asked) * 1000

    served = Served(model, folder, "--source", f"town={images}")
    try:

        def get(tile: Tile) -> bytes:
            answer = requests.get(f"{served.url}/town/rsp/{zxy(tile)}.png", timeout=60)
            answer.raise_for_status()
            return answer.content

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(get, warm))
            alone = predicted()
            before = served.times()
            found = list(pool.map(get, asked))  # each for the first time: none from the cache
            after = served.times()
        alone = (alone + predicted()) / 2
    finally:
        served.stop()
    with open_reader(masks) as reader:
        if found != [reader.read(tile) for tile in asked]:
            raise AssertionError("the live map and `rsp predict` disagree")
    split = {name: (after[name] - before[name]) / len(asked) * 1000 for name in after}
    parts = ", ".join(f"{name} {spent:.1f}" for name, spent in sorted(split.items()) if spent >= 0.05)
    total = sum(split.values())
    yield Line(
        "a tile of the live map, 8 clients", f"{total:.1f} ms ({parts})", "`rsp predict`, the same bytes",
        f"{alone:.1f} ms", f"live adds {total - alone:.1f} ms",
    )  # fmt: skip


def bench_run(folder: Path) -> Iterator[Row | Growth]:
    """`rsp predict`, its start included, against a loop that forwards as many windows and does nothing else."""
    card = replace(make_card(tile_size=SIDE, overlap=OVERLAP), num_filters=16)
    checkpoint = make_checkpoint(folder / "loop.safetensors", card)
    pictures = [make_areas(seed, SIDE) for seed in range(8)]

    def tiles_of(count: int, side: int) -> Path:
        tiles = [Tile(4000 + number % 50, 4000 + number // 50, 14) for number in range(count)]
        path = folder / f"{count}-{side}.pmtiles"
        return make_tileset(path, tiles, "webp", lambda tile: pictures[(tile.x * 7 + tile.y) % 8][:side, :side])

    masks = folder / "run.pmtiles"

    def predicted(model: Path, tiles: Path, *flags: object) -> list[object]:
        return rsp("predict", "--workers", 1, "--no_web_ui", "--checkpoint", model, *flags, tiles, masks)

    def every_tile() -> None:
        with open_reader(masks) as reader:
            assert len(reader) == RUN, "tiles are missing"

    yield Row(
        f"predict: {RUN:,} tiles of {SIDE} px",
        predicted(checkpoint, tiles_of(RUN, SIDE)),
        [sys.executable, "-c", BARE, checkpoint, RUN],
        "the bare network, channels last, on as many windows",
        1 / 0.9,
        every_tile,
        fresh=(masks,),
        runs=2,
        turns=True,
    )
    small = make_checkpoint(folder / "small.safetensors", make_card(tile_size=64, overlap=16))
    for name, flags in (("", ()), (", and their probabilities", ("--probabilities", folder / "shares.pmtiles"))):
        few, many = (predicted(small, tiles_of(count, 64), *flags) for count in (100, 10_000))
        fresh = masks, folder / "shares.pmtiles"
        yield Growth(
            f"predict: 10,000 tiles of 64 px{name}", few, many, factor=100, tiles=9900, fresh=fresh, bar=100
        )


def rows(folder: Path) -> Iterator[Line | Row | Growth]:
    """Yield the rows, measured one after the other."""
    yield from bench_run(folder)
    torch.set_num_threads(1)
    card = replace(make_card(tile_size=SIDE, overlap=OVERLAP), num_filters=16)  # the demo's network
    checkpoint = make_checkpoint(folder / "model.safetensors", card)
    network, card = load_checkpoint(checkpoint)
    models = {"a checkpoint": checkpoint}
    for kind in ("pt2", "jit", "onnx"):
        models[kind] = folder / f"model.{kind}"
        write_model(models[kind], kind, network, card)  # type: ignore[arg-type]
    tiles = make_tiles(TILES)
    for number, tile in enumerate(tiles):
        (folder / f"{number:03d}.png").write_bytes(tile)
    predictor = load_predictor(models["pt2"], device="cpu")
    yield from bench_process(folder, checkpoint, predictor, tiles)
    yield from bench_load(models)
    yield from bench_http(folder, models["pt2"], predictor, tiles)
    yield from bench_live(folder, models["pt2"])
