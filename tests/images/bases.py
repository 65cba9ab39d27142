"""What the images of the tests stand on, and where pip finds packages while they are built.

Where a registry is reached it is the image that the Dockerfiles name. Elsewhere it is made on the spot from this
machine's own Debian: its mirror, its certificates, its Python packages. Nothing of them is written anywhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tests.images.engine import docker

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
MADE = "rsp-test-base:1"
PACKAGES = "python3,python3-pip,ca-certificates"


def base_image(named: str, folder: Path) -> str:
    """Return the image that a Dockerfile names if it can be had, else the name of one that is made here."""
    if docker("image", "inspect", named, check=False).returncode == 0:
        return named
    if docker("pull", "--quiet", named, check=False).returncode == 0:
        return named
    return bootstrap(folder)


def bootstrap(folder: Path) -> str:
    """Make an image of this machine's Debian release with its Python, which has to be 3.11.

    Raises:
        RuntimeError: apt knows no mirror, or Debian's packages cannot be had.
    """
    if docker("image", "inspect", MADE, check=False).returncode == 0:
        return MADE  # the engine is one that outlives the tests
    mirror, release = debian_mirror()
    command = [
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}",
        # As in Debian's own slim images.
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        release, "-", mirror,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as making:
        docker("import", "--change", "ENV LANG=C.UTF-8", "--change", 'CMD ["python3"]', "-", "rsp-test-root:1",
               stdin=making.stdout)  # fmt: skip
    if making.returncode:
        raise RuntimeError(f"mmdebstrap ended with {making.returncode}")
    # pip in a build has to trust whom this machine trusts.
    lines = ["FROM rsp-test-root:1"]
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, folder / CERTIFICATES.name)
        lines.append(f"COPY {CERTIFICATES.name} {CERTIFICATES}")
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
    docker("build", "--tag", MADE, folder)
    version = docker("run", "--rm", "--network", "none", MADE, "python3", "--version").stdout
    if not version.startswith("Python 3.11."):
        raise RuntimeError(f"{release} has {version.strip()}, and the project is one of Python 3.11")
    return MADE


def debian_mirror() -> tuple[str, str]:
    """Return the mirror and the name of the release that apt uses on this machine."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)[
        "VERSION_CODENAME"
    ].strip('"')
    format_ = "$(SITE) $(RELEASE) $(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", format_, "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for line in listed.splitlines():
        site, of, component = line.split()
        if of == release and component == "main":
            return site, release
    raise RuntimeError(f"apt has no mirror of {release}; run apt-get update once")


@contextmanager
def build_environment() -> Iterator[dict[str, str]]:
    """Yield variables by which pip in a build of components/images.sh finds what this machine's pip finds.

    Folders of wheels and indexes of files are offered on 127.0.0.1 meanwhile, so a build uses this machine's
    network. The engine's client takes the values from the environment: others could read an argument.
    """
    servers: list[ThreadingHTTPServer] = []
    try:
        variables = {}
        for setting in ("index-url", "extra-index-url", "find-links"):
            if reached := " ".join(_reached(place, servers) for place in _setting(setting)):
                variables[f"PIP_{setting.upper().replace('-', '_')}"] = reached
        arguments = ["--network host", *(f"--build-arg {name}" for name in variables)]
        yield {**variables, "RSP_BUILD_ARGS": " ".join(arguments)}
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _setting(name: str) -> list[str]:
    """Return what a setting of pip says: its variable, else its files."""
    if text := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return text.split()
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True
    )
    return done.stdout.split()


def _reached(place: str, servers: list[ThreadingHTTPServer]) -> str:
    """Return where a build reaches a place: a folder of this machine gets a server."""
    if urlsplit(place).scheme in ("http", "https"):
        return place
    path = Path(url2pathname(urlsplit(place).path) if place.startswith("file:") else place)
    # The pages of an index of files point at what lies beside it.
    root, inner = (path.parent, f"{path.name}/") if path.name == "simple" else (path, "")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    servers.append(server)
    return f"http://127.0.0.1:{server.server_port}/{inner}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
