"""Sharded prediction in processes that can be killed, for `tests.shards`: each step is a process, as it is a pod.

This is a program. It imports once what the steps import; for each order, a line of JSON, it forks a run: a group
of processes that does what the pipeline `prediction` does with a `data_root`, two blocks at a time. It prints the
number of the group at once, and the status when the last process of the group has ended.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import minio  # noqa: F401 (as the others that are not used here: what the steps import when they are called)
import numpy.ma  # noqa: F401
import rasterio.session

from rsp.components.cover.component import blocks
from rsp.components.download.component import download
from rsp.components.download.tool import download as download_tool
from rsp.components.predict.component import predict
from rsp.components.predict.tool import predict as predict_tool
from rsp.components.vectorize.component import join, vectorize_block
from rsp.components.vectorize.join import join as _join  # noqa: F401
from rsp.components.vectorize.step import part_of_block  # noqa: F401
from rsp.components.vectorize.tool import vectorize as vectorize_tool
from rsp.shared.learning import inference  # noqa: F401
from rsp.shared.locations import location
from rsp.shared.report import absent_cover
from rsp.shared.tileset import stored
from tests.networks import make_blurred

PR_SET_CHILD_SUBREAPER = 36
# As a step of the pipeline is tried again.
ATTEMPTS = 3
# Requests a second to a tile server that is this machine's own.
RATE = 100_000


@dataclass(frozen=True)
class Order:
    """A run.

    Attributes:
        folder: Of this run: what its steps write to the disk, their logs, and `events`.
        cover: The cover, CSV.
        url: Of a tile.
        model: The checkpoint: an address, or a path for an undisturbed run.
        data_root: `s3://bucket/prefix`; empty for an undisturbed run without shards.
        size: Tiles of a block.
        segment: Bytes after which a part of a journal is stored; 0 for the default.
        lanes: Blocks at a time.
        workers: Of each tool of an undisturbed run; 0 for the default.
        environ: For all steps.
    """

    folder: str
    cover: str
    url: str
    model: str
    data_root: str = ""
    size: int = 0
    segment: int = 0
    lanes: int = 2
    workers: int = 0
    environ: dict[str, str] = field(default_factory=dict)

    def note(self, **event: Any) -> None:
        """Write down what happened, in one call, as several processes do."""
        line = json.dumps(event).encode() + b"\n"
        file = os.open(Path(self.folder) / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line)
        os.close(file)


def forked(work: Callable[[], object]) -> int:
    """Do something in a child of this process, and return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


def step(order: Order, name: str, work: Callable[[Path], object]) -> Any:
    """Do a step in a process of its own, as often as a pipeline tries it, and return what it returned.

    Args:
        order: The run.
        name: Of the step, as `download-3`.
        work: Called with a folder of its own.
    """
    for attempt in range(ATTEMPTS):
        folder = Path(order.folder) / f"{name}.{attempt}"
        folder.mkdir()
        order.note(step=name, what="begins")
        began = time.monotonic()
        _, status, usage = os.wait4(forked(lambda: _in_pod(order, name, folder, work)), 0)  # noqa: B023
        order.note(
            step=name, what="ended", status=status, seconds=time.monotonic() - began,
            cpu=usage.ru_utime + usage.ru_stime, mb=usage.ru_maxrss / 1024,
        )  # fmt: skip
        if status == 0:
            returned = json.loads((folder / "returned").read_text())
            shutil.rmtree(folder)
            return returned
    raise RuntimeError(f"{name} failed {ATTEMPTS} times: {(folder / 'log').read_text()[-2000:]}")


def _in_pod(order: Order, name: str, folder: Path, work: Callable[[Path], object]) -> None:
    # Its name is what the servers know it by.
    os.environ.update(order.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": name, "RSP_HTTP_HEADERS": f"X-Step: {name}", "RSP_CACHE": str(folder / "cache"),
    }  # fmt: skip
    tempfile.tempdir = str(folder)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    returned = work(folder)
    (folder / "returned").write_text(json.dumps(returned))
    order.note(step=name, what="done")


def call(component: Any, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Call a component with files for its outputs, and return what it wrote into them, or the artifacts."""
    outputs = dict(component.component_spec.outputs or {})
    returns = outputs.pop("Output", None) is not None
    files = {
        name: SimpleNamespace(path=str(folder / name), metadata={})
        if str(spec.type).startswith("system.")
        else str(folder / name)
        for name, spec in outputs.items()
    }
    returned = component.python_func(**files, **arguments)
    found = {name: Path(file).read_text() if isinstance(file, str) else file for name, file in files.items()}
    return found | ({"Output": returned} if returns else {})


def prediction(order: Order) -> None:
    """What the pipeline `prediction` does with a `data_root`."""
    stored.SEGMENT = order.segment or stored.SEGMENT
    cover = SimpleNamespace(path=order.cover, metadata={})
    root = order.data_root

    def cut(folder: Path) -> object:
        return call(blocks, folder, cover=cover, data_root=root, size=order.size, at_once=order.lanes)["Output"]

    found = step(order, "blocks-0", cut)
    lanes = [forked(lambda: _lane(order, found, number)) for number in range(order.lanes)]  # noqa: B023
    if any(os.waitpid(pid, 0)[1] for pid in lanes):
        raise RuntimeError("a block failed")
    parts = [json.loads((Path(order.folder) / f"part-{number}").read_text()) for number in range(len(found))]

    def whole(folder: Path) -> None:
        found = call(join, folder, parts=parts)
        for name in ("failed", "absent", "features"):
            Path(found[name].path).rename(Path(order.folder) / Path(found[name].path).name)

    step(order, "join-0", whole)


def _lane(order: Order, found: list[dict[str, str]], lane: int) -> None:
    """Work on every second block, on one processor."""
    mine = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {mine[lane % len(mine)]})
    root = order.data_root
    for number in range(lane, len(found), order.lanes):
        block = found[number]

        def fetch(folder: Path) -> object:
            options = {"url": order.url, "rate": RATE, "tile_format": "png", "allow_empty": True}
            options |= {"cover_at": block["seen"], "at_once": block["at_once"]}  # noqa: B023
            return call(download, folder, data_root=root, **options)["tiles_at"]

        def look(folder: Path) -> object:
            options = {"images_at": images, "model_at": order.model, "allow_empty": True}  # noqa: B023
            options |= {"cover_at": block["own"]}  # noqa: B023
            return call(predict, folder, data_root=root, **options)["masks_at"]

        def trace(folder: Path) -> object:
            options = {"masks_at": masks, "seen_at": block["seen"]}  # noqa: B023
            return call(vectorize_block, folder, data_root=root, **options)["Output"]

        images = step(order, f"download-{number}", fetch)
        masks = step(order, f"predict-{number}", look)
        part = step(order, f"vectorize-{number}", trace)
        (Path(order.folder) / f"part-{number}").write_text(json.dumps(part))


def undisturbed(order: Order) -> None:
    """The same by the tools, on this machine, all tiles at once."""
    folder = Path(order.folder)

    def work(_: Path) -> None:
        images, masks = folder / "images.pmtiles", folder / "masks.pmtiles"
        workers = order.workers or None
        download_tool(order.url, location(order.cover), images, rate=RATE, tile_format="png", web_ui=False)
        predict_tool(images, masks, checkpoint=location(order.model), workers=workers, web_ui=False)
        vectorize_tool(masks, folder / "features.geojson", kind="building", workers=workers)
        absent_cover(images).rename(folder / "absent.csv")

    step(order, "whole-0", work)


def run(order: Order) -> None:
    os.setpgid(0, 0)
    if not order.data_root and not order.cover:
        make_blurred(Path(order.model))
    elif not order.data_root:
        undisturbed(order)
    else:
        prediction(order)


def main(lines: Iterable[str]) -> None:
    # The images have no boto3, of which rasterio opens sessions for each mask where the environment has a key.
    rasterio.session.boto3 = None
    # What a killed run leaves becomes this process's, which waits for it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in lines:
        order = Order(**json.loads(line))
        pid = forked(lambda: run(order))  # noqa: B023
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        while True:
            try:
                os.waitpid(-pid, 0)
            except ChildProcessError:
                break
        print(status, flush=True)


if __name__ == "__main__":
    main(sys.stdin)
