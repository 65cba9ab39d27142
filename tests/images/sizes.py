"""How large the images are, layer by layer, and the table of them in docs/images.md."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.images.engine import docker

BEGIN, END = "<!-- sizes: written by make test-images -->", "<!-- end of sizes -->"


@dataclass(frozen=True)
class Layer:
    """A layer of an image: what made it, and its bytes before compression."""

    made_by: str
    size: int


def layers(image: str) -> list[Layer]:
    """Return the layers of an image that hold anything, the lowest first."""
    listed = docker("history", "--no-trunc", "--human=false", "--format", "{{json .}}", image).stdout.splitlines()
    found = [Layer(entry["CreatedBy"], int(entry["Size"])) for entry in map(json.loads, listed)]
    return [layer for layer in reversed(found) if layer.size]


def digests(image: str) -> list[str]:
    """Return the digests of all layers of an image, the lowest first."""
    return json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image).stdout)


def base(registry: str, name: str) -> str:
    """Return the one image of a base that the engine has."""
    listed = docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"{registry}/rsp-{name}").stdout.split()
    assert len(listed) == 1, listed
    return listed[0]


def table(registry: str, tag: str, below: str) -> str:
    """Return the table of docs/images.md; `below` is the image that the bases stand on."""
    bottom, data, torch = layers(below), layers(base(registry, "data")), layers(base(registry, "torch"))
    tool, serving = layers(f"{registry}/rsp-train:{tag}"), layers(f"{registry}/rsp-serving:{tag}")
    rows = [
        ("data", "the image below: Debian with Python 3.11", bottom),
        ("data", "libexpat1, tini, a user; rasterio, shapely, osmium ... and kfp's executor", data[len(bottom) :]),
        ("torch", "torch, its CPU build", [layer for layer in torch[len(data) :] if "torch==" in layer.made_by]),
        ("torch", "transformers, onnxruntime, kornia ...",
         [layer for layer in torch[len(data) :] if "torch==" not in layer.made_by]),
        ("code", "the tools themselves", tool[len(torch) :]),
        ("serving", "Java, TorchServe, uvicorn ... and the code", serving[len(torch) :]),
    ]  # fmt: skip
    lines = ["| part | what is in it | MB |", "| :--- | :--- | ---: |"]
    lines += [f"| {part} | {text} | {sum(each.size for each in of) / 1e6:.1f} |" for part, text, of in rows]
    return "\n".join(lines)


def write(path: Path, registry: str, tag: str, below: str) -> None:
    """Write the table into the page."""
    text = path.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{table(registry, tag, below)}\n\n{END}{after}", "utf-8")


def read(path: Path) -> dict[str, float]:
    """Return the bytes that the page states, by part."""
    stated: dict[str, float] = {}
    for part, size in re.findall(r"^\| (\w+) \|.*\| ([\d.]+) \|$", path.read_text("utf-8"), re.M):
        stated[part] = stated.get(part, 0) + float(size) * 1e6
    return stated
