"""Say what is in an image, as CycloneDX 1.6: packages of Debian and of Python, with versions and licences.

It runs in the image, whose Python has nothing of ours to import, from standard input. Images that differ in their
name alone need one container for all of them; the result is an archive of a document for each name:

    docker run --rm -i --network none --entrypoint python3 IMAGE - VERSION NAME... < components/sbom.py | tar -x

The same image gives the same bytes.
"""

from __future__ import annotations

import io
import json
import platform
import re
import subprocess
import sys
import tarfile
import uuid
from importlib.metadata import Distribution, distributions
from typing import Any
from urllib.parse import quote


def python_package(found: Distribution) -> dict[str, Any]:
    """Return a distribution of Python as a component."""
    name, version = found.metadata["Name"], found.version
    normal = re.sub(r"[-_.]+", "-", name).lower()
    purl = f"pkg:pypi/{normal}@{quote(version)}"
    part: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    expression, text = found.metadata["License-Expression"], found.metadata["License"]
    if expression:
        part["licenses"] = [{"expression": expression}]
    elif text and "\n" not in text and len(text) < 100:  # not where somebody put the whole licence
        part["licenses"] = [{"license": {"name": text}}]
    return part


def debian_packages() -> list[dict[str, Any]]:
    """Return the packages of Debian as components; none where there is no dpkg."""
    try:
        listed = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${Architecture}\\n"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    except FileNotFoundError:
        return []
    system = platform.freedesktop_os_release()
    distro = f"{system['ID']}-{system.get('VERSION_ID', '')}".strip("-")
    parts = []
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        purl = f"pkg:deb/{system['ID']}/{name}@{quote(version)}?arch={architecture}&distro={distro}"
        parts.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return parts


def packages() -> list[dict[str, Any]]:
    """Return all packages of this image, as components."""
    # Debian's Python reads several folders, and the first that has a package is the one that is imported.
    found: dict[str, dict[str, Any]] = {}
    for distribution in distributions():
        part = python_package(distribution)
        found.setdefault(part["purl"].rpartition("@")[0], part)
    return sorted([*found.values(), *debian_packages()], key=lambda part: part["purl"])


def describe(name: str, version: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the document about an image."""
    digest = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([name, version, parts], sort_keys=True))
    about = {"type": "container", "bom-ref": f"{name}@{version}", "name": name, "version": version}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{digest}",
        "version": 1,
        "metadata": {"component": about},
        "components": parts,
    }


def main(version: str, *names: str) -> None:
    """Write an archive of the documents of the images of these names to standard output."""
    parts = packages()
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for name in names:
            data = f"{json.dumps(describe(name, version, parts), indent=1)}\n".encode()
            member = tarfile.TarInfo(f"{name}-{version.replace('+', '-')}.cdx.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
