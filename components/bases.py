"""Which of the two base images a tool stands on, and what each of them holds.

`rsp-data` has what tiles, rasters and features need; `rsp-torch` adds what trains and predicts. All tools on a
base share its layers. A base changes with its packages and not with the code, so its tag is a digest of what it is
made of: a release that changes code alone pulls and pushes no base.

This runs in a bare Python, before anything of the project is installed:

    python3 components/bases.py requirements data|torch|serving    what pip installs, one requirement a line
    python3 components/bases.py base TOOL                          data or torch
    python3 components/bases.py tag [TEXT...]                      the tag of the bases; any TEXT goes into it
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

# Entry points that are no tools with an image of their own.
NO_IMAGES = {"pipeline", "serve"}
# What the tag of a base stands for, beside the requirements; paths in the root of the project.
RECIPE = ("components/bases.Dockerfile", "components/slim.py", "constraints.txt")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def project(root: Path) -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    about: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return about


def needs(about: dict[str, Any], extra: str) -> set[str]:
    """Return the requirements of an extra; those of other extras that it names are among them."""
    found: set[str] = set()
    for requirement in about["optional-dependencies"].get(extra, []):
        if inner := re.fullmatch(rf"{re.escape(about['name'])}\[([\w,-]+)\]", requirement):
            found.update(*(needs(about, name) for name in inner[1].split(",")))
        else:
            found.add(requirement)
    return found


def base_of(about: dict[str, Any], tool: str) -> str:
    """Return `torch` for a tool that needs torch, else `data`."""
    names = {match[0].lower() for text in needs(about, tool) if (match := _NAME.match(text))}
    return "torch" if "torch" in names else "data"


def tools(about: dict[str, Any]) -> list[str]:
    """Return the names of the tools that have an image of their own."""
    return sorted(set(about["entry-points"]["rsp.tools"]) - NO_IMAGES)


def requirements(about: dict[str, Any], what: str) -> list[str]:
    """Return what pip installs: into `data`, into `torch` on top of it, or into `serving` on top of that.

    Raises:
        ValueError: there is no such base.
    """
    data = set(about["dependencies"]).union(
        *(needs(about, tool) for tool in tools(about) if base_of(about, tool) == "data")
    )
    torch = data.union(*(needs(about, tool) for tool in tools(about)))
    serving = torch | needs(about, "serve")
    parts = {"data": data, "torch": torch - data, "serving": serving - torch}
    if what not in parts:
        raise ValueError(f"no base is called {what}; expected {', '.join(parts)}")
    return sorted(parts[what])


def base_tag(root: Path, *texts: str) -> str:
    """Return the tag of the bases: another one when anything they are made of is another.

    Args:
        root: Of the project.
        texts: What else decides what is in them, as the image below them and the build of torch.
    """
    about = project(root)
    parts = [
        *(requirements(about, name) for name in ("data", "torch")),
        *((root / name).read_text("utf-8") for name in RECIPE),
    ]
    digest = hashlib.sha256(repr([parts, texts]).encode())
    return f"deps-{digest.hexdigest()[:12]}"


def main(argv: list[str]) -> None:
    """Run from the command line."""
    root = Path(__file__).resolve().parent
    if not (root / "pyproject.toml").is_file():  # in a checkout; in the build of an image both lie side by side
        root = root.parent
    match argv:
        case ["requirements", what]:
            print("\n".join(requirements(project(root), what)))
        case ["base", tool]:
            print(base_of(project(root), tool))
        case ["tag", *texts]:
            print(base_tag(root, *texts))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
