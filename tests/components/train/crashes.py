"""Trainings that come to a bad end, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rsp.components.train import batches, keeper, training
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.components.train.signals import terminated
from rsp.shared.config import load_config
from rsp.shared.errors import StorageError

CPU = World(torch.device("cpu"))


def end_of(function: Callable[..., None], *arguments: Any) -> int | None:
    """Call a function of this module in another process; returns its exit code.

    The processes are forks of one that has imported what a training needs, which takes longer than the training.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _signalled(module: ModuleType, name: str, after: int, number: signal.Signals) -> None:
    """Let a function of a module send this process a signal when it is called once more than `after`."""
    work = getattr(module, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            os.kill(os.getpid(), number)
        return work(*arguments, **options)

    setattr(module, name, counted)


def killed(config: Path, dataset: Path, out: Path, after: int, where: str, checkpoint: Path | None = None) -> None:
    """Train four epochs, but get killed in a function of `keeper` when it is called once more than `after`."""
    _signalled(keeper, where, after, signal.SIGKILL)
    training.train_model(Plan(load_config(config), dataset, out, epochs=4, checkpoint=checkpoint), CPU)


def stopped(
    config: Path, dataset: Path, out: Path, after: int, where: str, checkpoint: Path | None = None
) -> None:
    """Train four epochs, or go on with them, but get SIGTERM in a function that is called once more than `after`.

    Args:
        config: The configuration.
        dataset: What to train on.
        out: Where to.
        after: How often it may be called.
        where: `batches.collate`, `training.prepare` or `training.validate`: while a batch is waited for, within a
            step, or in validation.
        checkpoint: What to fine-tune, in place of going on.
    """
    module, _, name = where.partition(".")
    _signalled({"batches": batches, "training": training}[module], name, after, signal.SIGTERM)
    torch.set_num_threads(1)
    resume = checkpoint is None
    with terminated():
        training.train_model(
            Plan(load_config(config), dataset, out, epochs=4, resume=resume, checkpoint=checkpoint), CPU
        )


def full(config: Path, dataset: Path, out: Path, limit: int, said: Path) -> None:
    """Go on to a second epoch where no file may grow beyond a limit; what it said of that goes into a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        training.train_model(Plan(load_config(config), dataset, out, epochs=2, resume=True), CPU)
    except StorageError as error:
        said.write_text(str(error))
