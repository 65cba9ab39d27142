"""What the steps of pipelines import, read from their code: by the image that they run in."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections import defaultdict

from kfp.dsl.python_component import PythonComponent

from rsp.components.container import IMAGES, PLACEHOLDER
from tests.images.boxes import ROOT

# Run in an image: imports what the command line names, as `module` or `module:name`.
SCRIPT = """
import importlib, sys
for text in sys.argv[1:]:
    module, _, name = text.partition(":")
    found = importlib.import_module(module)
    if name and not hasattr(found, name):
        importlib.import_module(f"{module}.{name}")
"""


def steps() -> list[PythonComponent]:
    """Return all components of the project, in a fixed order."""
    files = [*(ROOT / "components").glob("*/component.py"), *(ROOT / "pipelines").glob("*.py")]
    names = [".".join(("rsp", *path.relative_to(ROOT).with_suffix("").parts)) for path in sorted(files)]
    # Only pipelines and components have to do with kfp; the others would be imported for nothing.
    modules = [
        importlib.import_module(name) for name, path in zip(names, sorted(files), strict=True)
        if "@dsl.component" in path.read_text("utf-8")
    ]  # fmt: skip
    found = [each for module in modules for each in vars(module).values() if isinstance(each, PythonComponent)]
    return list({id(each): each for each in found}.values())


def imported(component: PythonComponent) -> set[str]:
    """Return what the code of a component imports, as `module` or `module:name`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(component.python_func)))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}:{alias.name}" for alias in node.names)
    return found


def tool_of(component: PythonComponent) -> str:
    """Return the tool in whose image a component runs."""
    image = component.component_spec.implementation.container.image
    tool = re.fullmatch(rf"{re.escape(IMAGES)}/rsp-([a-z]+):{PLACEHOLDER}", image)
    assert tool, f"{component.name} runs in {image}"
    return tool[1]


def by_image() -> dict[str, set[str]]:
    """Return what is imported in the image of each tool."""
    found: dict[str, set[str]] = defaultdict(set)
    for component in steps():
        found[tool_of(component)] |= imported(component)
    return found
