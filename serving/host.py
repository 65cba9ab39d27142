"""What TorchServe needs of the machine it runs on: Java, Python packages, free ports, a folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
from pathlib import Path

from rsp.shared.errors import ServingError


def preflight() -> None:
    """Raise `ServingError` if something is missing that TorchServe needs, and say how to get it."""
    java = Path(os.environ["JAVA_HOME"]) / "bin" / "java" if os.environ.get("JAVA_HOME") else "java"
    if shutil.which(java) is None:
        raise ServingError(
            "TorchServe needs Java 17, which is not installed here: `apt-get install openjdk-17-jre-headless` "
            "(Debian, Ubuntu), or set JAVA_HOME to where it is"
        )
    # Without yaml TorchServe starts, says it is healthy, and never answers.
    for module, package in (("ts", "torchserve"), ("yaml", "pyyaml"), ("torch", "torch"), ("psutil", "psutil")):
        if importlib.util.find_spec(module) is None:
            raise ServingError(
                f"the Python package {package} is missing; install it with `pip install 'rsp-tools[serve]'`"
            )


def free_ports(asked: tuple[int, ...], host: str = "127.0.0.1") -> list[int]:
    """Return the ports that were asked for, and a free one for each 0.

    Raises:
        ServingError: one that was asked for is taken.
    """
    held, ports = [], []
    try:
        for port in asked:
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held[-1].bind((host, port))
            except OSError as error:
                raise ServingError(
                    f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
                ) from None
            ports.append(held[-1].getsockname()[1])
    finally:
        for holder in held:
            holder.close()
    return ports


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a port, a free one if 0, and does not listen yet.

    Raises:
        ServingError: the port is taken, or the address is not one of this machine.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        reason = error.strerror or error
        raise ServingError(f"cannot listen on {host}:{port}: {reason}; choose another port") from None
    return found


def short_folder() -> Path:
    """Make a temporary folder whose path is short enough for the workers' sockets (108 characters in all)."""
    folder = Path(tempfile.mkdtemp(prefix="rsp-serve-"))
    if len(str(folder)) > 70:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="rsp-serve-", dir="/tmp"))
    return folder


def connects(port: int) -> bool:
    """Tell whether somebody listens on a port of the loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
