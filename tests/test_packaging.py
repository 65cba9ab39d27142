"""What `pyproject.toml` says of each tool's needs is what the tool imports: its image holds that and no more."""

from __future__ import annotations

import os
import re
import tomllib
from functools import cache
from pathlib import Path

import grimp
import pytest

from rsp.components import bases
from rsp.components.train.tool import train
from rsp.components.train.trainjob import Inherited, Nodes, build
from rsp.pipelines import local
from rsp.shared.errors import ConfigError
from rsp.shared.parallel import OPENMP
from tests.images import imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOM = "rsp"
TOOLS = sorted(name for name, module in PROJECT["entry-points"]["rsp.tools"].items() if "components" in module)

# Packages whose import name is another.
NAMES = {
    "PIL": "pillow", "yaml": "pyyaml", "model_archiver": "torch-model-archiver", "ts": "torchserve",
    "prometheus_client": "prometheus-client",
}  # fmt: skip
# kfp's executor is in every image by itself; setuptools_scm is asked in a checkout only.
ELSEWHERE = {"kfp", "setuptools_scm"}
# Comes with what is asked for: rasterio needs affine, requests needs urllib3, minio needs certifi.
IMPLIED = {"affine": "rasterio", "certifi": "minio", "urllib3": "requests"}


def wanted(extra: str) -> set[str]:
    """The packages that an extra asks for, those of other extras that it names included."""
    found = set()
    for line in PROJECT["optional-dependencies"][extra]:
        name, inner = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?.*", line).groups()
        if name == "rsp-tools":
            for other in inner.split(","):
                found |= wanted(other)
        else:
            found.add(name.lower())
    return found


def base() -> set[str]:
    return {re.match(r"[\w-]+", line)[0].lower() for line in PROJECT["dependencies"]}


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(ROOM, include_external_packages=True)


def imported(*modules: str) -> set[str]:
    """The packages outside of the standard library that modules, and all that these import, ask for."""
    import sys

    found: set[str] = set()
    for module in modules:
        for name in graph().find_upstream_modules(module):
            top = name.partition(".")[0]
            if top != ROOM and top not in sys.stdlib_module_names | ELSEWHERE:
                found.add(NAMES.get(top, top))
    return {IMPLIED.get(name, name) for name in found}


@pytest.mark.parametrize("tool", TOOLS)
def test_an_image_holds_what_its_tool_imports(tool):
    modules = [name for name in graph().modules if name.startswith(f"rsp.components.{tool}")]
    assert imported(*modules) - base() - wanted(tool) == set()


@pytest.mark.parametrize("step", imports.steps(), ids=lambda step: step.name)
def test_the_base_of_the_image_of_a_step_holds_what_the_step_imports(step):
    """Steps of pipelines have the image of a tool, which need not be what they import."""
    held = {"data": base(), "torch": base()}
    for tool in TOOLS:
        for name in {bases.base_of(PROJECT, tool), "torch"}:
            held[name] |= wanted(tool)
    tool = imports.tool_of(step)
    modules = {text.replace(":", ".") for text in imports.imported(step)}
    modules |= {module.rpartition(".")[0] for module in modules}
    assert imported(*(modules & graph().modules)) <= held[bases.base_of(PROJECT, tool)], tool


def test_the_server_holds_what_it_imports():
    modules = [name for name in graph().modules if name.startswith("rsp.serving")]
    assert imported(*modules) - base() - wanted("serve") == set()


def test_torch_is_pinned_once_and_within_its_range():
    constraints = (ROOT / "constraints.txt").read_text()
    (pinned,) = re.findall(r"^torch==(.*)$", constraints, re.M)
    assert pinned == "2.13.0"
    assert "torch>=2.13,<2.14" in PROJECT["optional-dependencies"]["train"]


def test_dockerfiles_install_by_the_constraints():
    for name in ("components/bases.Dockerfile", "components/code.Dockerfile", "serving/Dockerfile"):
        installs = re.findall(r"pip install (.*)", (ROOT / name).read_text())
        others = [line for line in installs if "--constraint constraints.txt" not in line]
        # The code itself, without anything that it needs.
        assert len(installs) > len(others) and all("--no-deps --root /code ." in line for line in others)


def test_openmp_waits_alike_everywhere(monkeypatch, tmp_path):
    """In `rsp train`, in the pods of a TrainJob, in pipelines on this machine, and in the images."""
    bare = {name: value for name, value in os.environ.items() if name not in OPENMP}
    monkeypatch.setattr(os, "environ", bare)
    with pytest.raises(ConfigError):
        train(tmp_path / "out", config=tmp_path / "none.toml")
    assert bare.items() >= OPENMP.items()
    trainer = build("a", ["plan.json"], Nodes(2), Inherited("train:1"))["spec"]["trainer"]
    assert {each["name"]: each.get("value") for each in trainer["env"]}.items() >= OPENMP.items()
    assert local.DEFAULTS.items() >= OPENMP.items()
    recipe = (ROOT / "components/bases.Dockerfile").read_text()
    assert dict(re.findall(r"\b(G?OMP_\w+)=(\w+)", recipe)) == OPENMP
