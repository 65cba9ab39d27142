"""The versions and devices at hand."""

from __future__ import annotations

import os
import platform
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rsp import __version__
from rsp.shared.errors import UsageError
from rsp.shared.parallel import cpu_count

LIBRARIES = (
    "numpy", "pillow", "rasterio", "shapely", "pyogrio", "osmium", "torch", "onnxruntime", "transformers", "kfp",
)  # fmt: skip


def describe_machine(root: Path = Path("/"), *, devices: bool = False) -> dict[str, Any]:
    """Describe what is installed, and what there is to compute with.

    Args:
        root: Where `proc` and `sys` are looked for; another folder in tests.
        devices: Ask torch for devices, too, which takes seconds to import; without it those that the driver of
            NVIDIA names are listed.
    """
    import rasterio
    import shapely

    found: dict[str, Any] = {
        "kind": "installation",
        "rsp": __version__,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "gdal": rasterio.__gdal_version__,
        "geos": ".".join(map(str, shapely.geos_version)),
        "cpus": cpu_count(root),
        "cpus_of_the_machine": os.cpu_count(),
        "memory": memory_limit(root),
        "gpus": _gpus(root),
    }
    if devices:
        try:
            # By name: what installs this tool need not have torch.
            found["torch"] = import_module("rsp.shared.learning.devices").describe_devices()
        except ModuleNotFoundError as error:
            raise UsageError(f"--devices needs torch, which is not installed here ({error})") from error
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process may use: of the machine, or fewer where its control group says so."""
    limits: list[int] = []
    try:
        total = re.search(r"MemTotal:\s*(\d+) kB", (root / "proc/meminfo").read_text("utf-8"))
        limits += [int(total[1]) << 10] if total else []
    except OSError:
        return None
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text("utf-8").strip()
        except OSError:
            continue
        limits += [int(text)] if text.isdecimal() else []
    return min(limits, default=None)


def _gpus(root: Path) -> list[str]:
    """Return the names of the accelerators that the driver of NVIDIA knows."""
    names = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        try:
            found = re.search(r"Model:\s*(.+)", path.read_text("utf-8", "replace"))
        except OSError:
            continue
        names += [found[1].strip()] if found else []
    return names
