"""A real S3 server that judges signatures: OpenStack Swift with its S3 interface.

Debian: apt-get install --no-install-recommends swift-proxy swift-account swift-container swift-object
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.s3 import S3

KEY = "the-key-of-swift"

_PYTHON = "/usr/bin/python3"
_PROGRAM = Path(__file__).with_name("swift_server.py")


def missing() -> str | None:
    """Return why no server can be started here, or None."""
    if not Path("/usr/lib/python3/dist-packages/swift/proxy").is_dir():
        return "no Swift (apt-get install swift-proxy swift-account swift-container swift-object)"
    return None


@contextmanager
def swift() -> Iterator[S3]:
    """Start a server on 127.0.0.1 and yield how to reach it. It ends with this process, however that ends."""
    folder = Path(tempfile.mkdtemp(prefix="rsp-swift-"))
    log = (folder / "log").open("wb")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    # -I: the folders of this checkout are none of its packages.
    server = subprocess.Popen([_PYTHON, "-I", str(_PROGRAM), str(folder), KEY], text=True, cwd="/", **pipes)
    try:
        assert server.stdin and server.stdout
        port = server.stdout.readline().strip()
        assert port, (folder / "log").read_text()
        yield S3(
            f"127.0.0.1:{port}",
            {
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test:tester",
                "AWS_SECRET_ACCESS_KEY": KEY,
            },
        )
    finally:
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
