"""How large the images are, layer by layer, and the table of them in docs/images.md."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.images.boxes import Images
from tests.images.engine import docker

BEGIN, END = "<!-- sizes: written by make test-images -->", "<!-- end of sizes -->"
# A part of the images, what is in it, and its megabytes before compression.
Row = tuple[str, str, float]


@dataclass(frozen=True)
class Layer:
    """A layer of an image: what made it, and its bytes before compression."""

    made_by: str
    size: int


def layers(image: str) -> list[Layer]:
    """Return the layers of an image that hold anything, the lowest first."""
    command = ["history", "--no-trunc", "--human=false", "--format", "{{json .}}", image]
    listed = [json.loads(line) for line in docker(*command).stdout.splitlines()]
    return [Layer(entry["CreatedBy"], int(entry["Size"])) for entry in reversed(listed) if int(entry["Size"])]


def digests(image: str) -> list[str]:
    """Return the digests of all layers of an image, the lowest first."""
    return json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image).stdout)


def measure(images: Images) -> list[Row]:
    """Return the rows of the table."""
    below, data, torch, train, serving = (
        layers(image)
        for image in (images.below, *(images[name] for name in ("data", "torch", "train", "serving")))
    )
    above = torch[len(data) :]
    wheel = [layer for layer in above if "torch==" in layer.made_by]
    server = serving[len(torch) :]
    java = [layer for layer in server if "openjdk" in layer.made_by]
    code = server[-1:]
    parts = [
        ("data", "what the bases stand on: Debian with Python 3.11", below),
        ("data", "libexpat1, tini, rasterio, shapely, osmium ... and kfp's executor", data[len(below) :]),
        ("torch", "torch itself, its CPU build", wheel),
        ("torch", "transformers, onnxruntime ...", [layer for layer in above if layer not in wheel]),
        ("code", "the tools", train[len(torch) :]),
        ("serving", "Java", java),
        ("serving", "TorchServe, uvicorn ...", [layer for layer in server[:-1] if layer not in java]),
        ("serving", "the code", code),
    ]
    return [(part, text, round(sum(layer.size for layer in of) / 1e6, 1)) for part, text, of in parts]


def write(page: Path, images: Images) -> None:
    """Write the table into the page."""
    lines = ["| part | what is in it | MB |", "| :--- | :--- | ---: |"]
    lines += [f"| {part} | {text} | {size:.1f} |" for part, text, size in measure(images)]
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    table = "\n".join(lines)
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}", "utf-8")


def read(page: Path) -> list[Row]:
    """Return the rows that the page has."""
    table = page.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    found = re.findall(r"^\| (\w+) \| (.*) \| ([\d.]+) \|$", table, re.M)
    return [(part, text, float(size)) for part, text, size in found]
