"""What every component has in common, so that it runs in its image, offline, and explains itself."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from rsp.components.container import image

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "components").glob("*/component.py"))
TOOLS = [folder.name for folder in FOLDERS]


def components(tool: str) -> list:
    """The components of a folder."""
    module = import_module(f"rsp.components.{tool}.component")
    return [value for value in vars(module).values() if hasattr(value, "component_spec")]


def decorators(tool: str) -> list[ast.Call]:
    tree = ast.parse((ROOT / "components" / tool / "component.py").read_text())
    return [
        decorator
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "dsl.component"
    ]


def test_every_tool_has_one():
    tools = {path.parent.name for path in (ROOT / "components").glob("*/tool.py")}
    assert tools == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_installed_at_run_time(tool):
    found = decorators(tool)
    assert len(found) == len(components(tool)) > 0
    for decorator in found:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in decorator.keywords}
        assert keywords == {
            "base_image": f"image('{tool}')",
            "packages_to_install": "[]",
            "install_kfp_package": "False",
        }


@pytest.mark.parametrize("tool", TOOLS)
def test_the_image_is_that_of_the_tool(tool):
    for component in components(tool):
        assert component.component_spec.implementation.container.image == image(tool)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_argument_is_explained(tool):
    for component in components(tool):
        spec = component.component_spec
        assert spec.description and spec.description[0].isupper(), spec.name
        for name, value in {**(spec.inputs or {}), **(spec.outputs or {})}.items():
            # KFP takes no description of an output artifact over from the arguments: the docstring has it.
            # An output without a name is what the component returns.
            explained = r"^ +Returns:\n +\S" if name == "Output" else rf"^ +{name}: \S"
            assert re.search(explained, component.python_func.__doc__, re.M), f"{spec.name}: {name}"
            assert name in (spec.outputs or {}) or value.description


@pytest.mark.parametrize("tool", TOOLS)
def test_the_body_is_thin(tool):
    """Imports, one call with a parameter a line, metadata: what is longer cannot be tested as a function."""
    tree = ast.parse((ROOT / "components" / tool / "component.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:]  # without the docstring
            lines = body[-1].end_lineno - body[0].lineno + 1
            assert lines <= 50, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("tool", TOOLS)
def test_no_whole_number_is_optional(tool):
    """`Optional[int] = None` left unset is a TypeError in kfp's local runner."""
    for component in components(tool):
        for name, value in (component.component_spec.inputs or {}).items():
            if value.type in ("NUMBER_INTEGER", "Integer", "integer", "NUMBER_DOUBLE"):
                assert not value.optional or value.default is not None, f"{tool}: {name}"


@pytest.mark.parametrize("tool", TOOLS)
def test_metrics_are_files_for_the_cache(tool):
    """KFP's local cache takes a step for done only where all its outputs are files."""
    text = (ROOT / "components" / tool / "component.py").read_text()
    outputs = re.findall(r"(\w+): dsl\.Output\[dsl\.(?:Classification)?Metrics\]", text)
    for name in outputs:
        assert re.search(rf"\b{name}\b[^\n]*touch\(\)|touch\([^\n]*\b{name}\b", text), (
            f"{name}.path is not touched"
        )


def test_the_dockerfile_builds_every_tool():
    extras = (ROOT / "pyproject.toml").read_text()
    for tool in TOOLS:
        assert re.search(rf"^{tool} = \[", extras, re.M), f"no extra [{tool}] for the image of {tool}"
