"""The live front: tiles of the operator's sources and their masks, for maps.

`rsp serve` (server.py) asks this module whether the front is wanted, and how to start it.
"""

from __future__ import annotations

import argparse
from typing import Protocol


class Front(Protocol):
    """What listens on the public port in the proxy's place, which then has a port of the loopback behind it."""

    url: str

    def start(self) -> None:
        """Accept connections."""

    def stop(self, seconds: float) -> int:
        """Accept no more, answer what there is, and return how many requests were cut off after `seconds`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp serve` that are the front's."""


def alone(args: argparse.Namespace) -> bool:
    """Tell whether the front runs without a TorchServe here: for folders, or before servers elsewhere."""
    return False


def serve(args: argparse.Namespace) -> int:
    """Run the front alone until Ctrl-C or SIGTERM, and return the exit code."""
    raise NotImplementedError


def open_front(args: argparse.Namespace, endpoint: str, host: str, port: int) -> Front | None:
    """Return the front to put before the server at `endpoint`; None where no source is named."""
    return None
