"""The devices that torch computes on."""

from __future__ import annotations

from typing import Any

import torch


def describe_devices() -> dict[str, Any]:
    """Return the version of torch, its threads, and each device with its memory in bytes."""
    devices = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices.append(
            {"device": f"cuda:{index}", "name": about.name, "memory": about.total_memory,
             "capability": f"{about.major}.{about.minor}"}
        )  # fmt: skip
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "devices": devices,
    }
