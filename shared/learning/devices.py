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


def devices_of(text: str | None) -> list[str]:
    """Return the devices that a person asks for.

    Args:
        text: As `cpu`, `cuda` for all GPUs that are visible, `cuda:1`, or several with commas between them; all
            GPUs, or the CPU where there is none, for None.
    """
    if text is None:
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if text == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [text]
    return [part.strip() for part in text.split(",")]


def must_wait(tensor: torch.Tensor) -> bool:
    """Tell whether to ask for a value of a tensor is to wait for all that its device still has to do."""
    return tensor.device.type != "cpu"
