"""The processes of a training: one, or several that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from rsp.shared.errors import UsageError
from rsp.shared.parallel import cpu_count


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        device: Where this one computes.
        rank: Its number; only 0 writes.
        size: How many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


def started_by_torchrun() -> bool:
    """Tell whether this process is one of several that torchrun started."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= set(os.environ)


def choose(device: str | None, gpus: int | None) -> tuple[str, int]:
    """Return the device that was asked for, and how many processes train.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, or None for GPUs where there are some.
        gpus: How many GPUs, 0 for none, None for all that are visible.

    Raises:
        UsageError: no such device, or fewer GPUs than asked for.
    """
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    if device == "cpu" or gpus == 0:
        if gpus:
            raise UsageError(f"--device cpu and --gpus {gpus} contradict each other")
        if device is not None and device != "cpu":
            raise UsageError(f"--device {device} and --gpus 0 contradict each other")
        return "cpu", 1
    if started_by_torchrun():
        return ("cuda" if torch.cuda.is_available() else "cpu"), 1
    visible = torch.cuda.device_count()
    if device is None and gpus is None and not visible:
        return "cpu", 1
    wanted = 1 if device is not None and ":" in device else (visible if gpus is None else gpus)
    if gpus is not None and gpus < 0:
        raise UsageError(f"--gpus must be 0 or more, got {gpus}")
    index = device.partition(":")[2] if device else ""
    if not visible or wanted > visible or (index and not (index.isdecimal() and int(index) < visible)):
        asked = f"--device {device}" if device else f"--gpus {gpus}"
        raise UsageError(
            f"{asked}: this machine shows {visible} GPUs to torch {torch.__version__}; --gpus 0 trains on the CPU"
        )
    return device or "cuda", wanted


@contextmanager
def join(device: str) -> Iterator[World]:
    """Join the other processes, if torchrun started some, for as long as the block runs.

    Args:
        device: `cpu`, `cuda` or `cuda:N`. Under torchrun each process takes the GPU of its local rank.
    """
    if not started_by_torchrun():
        # torch counts the processors of the node, not the quota of the container.
        if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cpu_count():
            torch.set_num_threads(cpu_count())
        yield World(torch.device(device))
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = torch.device("cpu")
    if device != "cpu":
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(chosen, rank, size)
    finally:
        distributed.destroy_process_group()
