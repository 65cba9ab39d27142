"""Training on several nodes: the step says what to train, the pods of a TrainJob train it, all through the store.

All that passes between them lies in S3, under names of what is trained (`{data_root}/train/{key}`), so that
another attempt goes on from the last epoch that this one finished:

    <work>.run/            what `rsp train` writes, after each epoch
    <work>.json            the result, when all is done
    <work>.<TrainJob>/     what this attempt is told (plan.json), a sign that its step is there, errors

This module is also the program of the pods: torchrun -m rsp.components.train.nodes <address of plan.json>.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rsp import __version__
from rsp.components.train.launch import error_of, text_of
from rsp.components.train.lease import Lease
from rsp.components.train.plan import Plan
from rsp.components.train.result import TrainResult
from rsp.components.train.sets import Sets, check_sets, link_sets
from rsp.components.train.trainjob import Inherited, Nodes, build
from rsp.shared.config import Config
from rsp.shared.dataroot import result_key
from rsp.shared.errors import ClusterError, RspError, StorageError, UsageError
from rsp.shared.locations import Address, Location, location, parse_address, pinned

FORMAT = 1
PLAN, ERROR = "plan.json", "error-"
# What stands behind the key, as with all results below a data root.
RUN, RESULT = ".run", ".json"
GONE = "the step that made this training is gone, and nobody waits for the result"


def addressed(sets: Sets) -> dict[str, dict[str, str]]:
    """Return the texts of tile sets, if every node can read them.

    Raises:
        UsageError: one is no archive in S3.
    """
    found: dict[str, dict[str, str]] = {}
    for part, places in sets.items():
        for name, at in places.items():
            where = location(at)
            if not isinstance(where, Address) or where.suffix.lower() != ".pmtiles":
                raise UsageError(
                    f"the {name} of the {part} part are {str(at)!r}: several nodes read archives in S3 "
                    "(s3://bucket/key.pmtiles), so give the pipeline a data_root"
                )
            found.setdefault(part, {})[name] = str(where)
    return found


def place(data_root: str, what: Mapping[str, Any]) -> Address:
    """Return the place of a training, to which suffixes are added: the same for the same training.

    Args:
        data_root: s3://bucket/prefix.
        what: All that decides the result.

    Raises:
        UsageError: `data_root` is no address.
    """
    root = location(data_root) if data_root else None
    if not isinstance(root, Address):
        raise UsageError(
            f"training on several nodes needs a data_root in S3, as s3://bucket/prefix; got {data_root!r}"
        )
    text = json.dumps([FORMAT, what], sort_keys=True, default=str)
    return root / "train" / result_key(text)


def train_on_nodes(
    sets: Sets,
    config: Config,
    data_root: str,
    nodes: Nodes,
    *,
    epochs: int,
    seed: int,
    refresh: str = "",
    start: Location | None = None,
    image: str = "",
    poll: float | None = None,
) -> TrainResult:
    """Train as a TrainJob on several nodes, and wait for the end.

    Args:
        sets: The tile sets, archives in S3.
        config: The configuration.
        data_root: Where the work goes: s3://bucket/prefix.
        nodes: How many nodes, and which.
        epochs: Epochs of training.
        seed: See `train`.
        refresh: Another text trains again what was trained before.
        start: A checkpoint in S3 whose weights training starts from.
        image: What the nodes run, in place of the image of this pod.
        poll: Seconds between looks at the training.

    Returns:
        The result; its checkpoint is an address.

    Raises:
        UsageError: data that not every node can read, or nodes that cannot be.
        ConfigError: a channel is of another tile set than `images`, or weights of pixels are missing.
        ClusterError: the cluster refuses the training, or it fails there.
        RspError: what a process of the training raised.
    """
    from rsp.components.train.cluster import Cluster
    from rsp.components.train.follow import POLL, run

    nodes.check()
    check_sets(config, sets)
    texts = addressed(sets)
    if start is not None:
        start = _for_all(start, f"training starts from {start}, which several nodes cannot read")
    # The training reads no database, and a DSN may hold a password.
    config = replace(config, pg_dsn=None)
    if listed := config.recipe.tile_weights:
        weighed = _for_all(location(listed), f"[train] tile_weights: {listed}: several nodes cannot read it")
        config = replace(config, recipe=replace(config.recipe, tile_weights=str(weighed)))
    what = {
        "sets": texts, "config": config, "epochs": epochs, "seed": seed, "refresh": refresh,
        "processes": nodes.count * nodes.processes, "gpus": nodes.gpus > 0, "version": __version__,
        "start": start and start.etag,
    }  # fmt: skip
    work = place(data_root, what)
    if (done := _result(work)) is not None:
        print(f"trained before: {_beside(work, RESULT)}", flush=True)
        return done
    plan = Plan(config, Path("dataset"), _beside(work, RUN), epochs, checkpoint=start, seed=seed)
    plan.check()
    cluster = Cluster()
    pod = cluster.own_pod() or Inherited()
    name = f"rsp-train-{secrets.token_hex(5)}"
    attempt = _beside(work, f".{name}")
    storage = attempt.storage()
    told = {
        "format": FORMAT, "sets": texts, "plan": plan.to_json(), "result": str(_beside(work, RESULT)),
        "device": "cuda" if nodes.gpus else "cpu",
    }  # fmt: skip
    manifest = build(name, [str(attempt / PLAN)], nodes, replace(pod, image=image or pod.image))
    storage.write(PLAN, json.dumps(told).encode())
    lease = Lease(attempt)

    def look() -> RspError | None:
        lease.renew()
        return first_error(attempt)

    try:
        lease.renew()
        run(cluster, manifest, told=look, poll=poll or POLL)
    finally:
        storage.delete(*(each.key for each in storage.list()))
    if (result := _result(work)) is None:
        raise ClusterError(
            f"the TrainJob {name} ended well and left no {_beside(work, RESULT)}; does it run another image?"
        )
    return result


def _for_all(where: Location, otherwise: str) -> Address:
    """Return an address that every node reads, with the ETag of what lies there; else raise `UsageError`."""
    if not isinstance(where, Address):
        raise UsageError(f"{otherwise}: put it into S3")
    return where if where.etag else pinned(where)


def _beside(work: Address, suffix: str) -> Address:
    return work.with_name(work.name + suffix)


def _result(work: Address) -> TrainResult | None:
    storage, key = _beside(work, RESULT).open()
    if storage.stat(key) is None:
        return None
    return TrainResult.from_json(storage.read(key)[0].decode())


def first_error(attempt: Address) -> RspError | None:
    """Return the error that the processes of a training left: the first one, as others follow from it."""
    storage = attempt.storage()
    try:
        found = [json.loads(storage.read(each.key)[0]) for each in storage.list(ERROR)]
    except StorageError:
        return None  # the store is away for a while: the training is not
    if not found:
        return None
    first = min(found, key=lambda each: (each["time"], each["rank"]))
    return error_of(first)


def worker(where: Address) -> int:
    """Train as one process of several, on one of several nodes; the exit code."""
    from rsp.components.train.processes import join
    from rsp.components.train.training import train_model

    lease, storage = Lease(where.parent), where.parent.storage()
    if lease.expired():
        print(f"error: {GONE}", file=sys.stderr, flush=True)
        return 1
    told = json.loads(storage.read(PLAN)[0])
    rank = int(os.environ["RANK"])
    watch = lease.watch(_gone)
    try:
        if told["format"] != FORMAT:
            raise UsageError(f"{where} is of format {told['format']}, and this image knows {FORMAT}")
        _check_device(told["device"])
        plan = Plan.from_json(told["plan"])
        with TemporaryDirectory() as folder:
            plan.dataset = link_sets(Path(folder) / "dataset", plan.config, told["sets"])
            with join(told["device"]) as world:
                try:
                    result = train_model(_going_on(plan), world)
                except RspError as error:
                    # Before the group is left: what that does to the others comes later than this.
                    _leave(where, rank, error)
                    return error.exit_code
                if world.is_main:
                    storage, key = parse_address(told["result"]).open()
                    storage.write(key, result.to_json().encode())
    except RspError as error:
        _leave(where, rank, error)
        return error.exit_code
    finally:
        watch.set()
    return 0


def _gone() -> None:
    """End this process, and with it, through torchrun, this node and then the others."""
    print(f"error: {GONE}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _going_on(plan: Plan) -> Plan:
    """Return what is left of a plan: an earlier attempt may have trained some of its epochs."""
    from rsp.components.train.history import read_state

    state = read_state(plan.out)
    # Where all are done, that attempt was cut off before it wrote its result.
    if state is None or state.epoch >= plan.epochs:
        return plan
    return replace(plan, resume=True, checkpoint=None)


def _check_device(device: str) -> None:
    """Raise `UsageError` where a node lacks the GPU that it was asked for: a CPU would take for ever."""
    import torch

    if device == "cuda" and torch.cuda.device_count() <= int(os.environ["LOCAL_RANK"]):
        raise UsageError(
            f"this node shows {torch.cuda.device_count()} GPUs to torch {torch.__version__}: too few for its "
            "processes; is it an image with CUDA, and the accelerator the one of the cluster?"
        )


def _leave(where: Address, rank: int, error: RspError) -> None:
    """Leave an error for the step; one that a rank has left stays."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    where.parent.storage().write(f"{ERROR}{rank}.json", json.dumps(
        {**text_of(error), "rank": rank, "time": time.time()}
    ).encode())  # fmt: skip


if __name__ == "__main__":
    sys.exit(worker(parse_address(sys.argv[1])))
