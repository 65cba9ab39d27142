"""A wrong version of each data tool for each of its parameters: ignored, off by one, or one choice for another.

`flags.toml` names, for each of them, a test that notices: one that asserts what exactly comes out. It has to hold
all that `variants` knows, so a new parameter, or a new choice, asks for a test of its own.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.table import HERE, ROOT, Mutant

TABLE = "flags.toml"

TOOLS = (
    "cover", "download", "extract", "rasterize", "tile", "subset", "vectorize", "changes", "review", "compare",
    "evaluate", "info",
)  # fmt: skip

_FORMATS = ("png", "jpg", "webp", "tif")

# The choices of parameters beside the default, where the type of the parameter does not list them.
CHOICES = {
    ("cover", "kind"): ("bbox", "dir", "cover", "raster", "sql"),
    ("cover", "out_format"): ("extent", "geojson"),
    ("download", "kind"): ("WMS", "TMS", "WMTS"),
    ("download", "tile_format"): _FORMATS,
    ("extract", "kind"): (["building"], ["road"], ["parking"]),
    ("tile", "kind"): ("label",),
    ("tile", "tile_format"): _FORMATS,
    ("subset", "mode"): ("move", "delete", "link", "hardlink"),
    ("subset", "tile_format"): _FORMATS,
    ("subset", "kind"): ("image", "label"),
    ("compare", "mode"): ("stack", "outline", "list"),
    ("compare", "tile_format"): ("png", "jpg", "tif"),
}

# Parameters that differ by one without any effect on what comes out: only on when it does.
TIMES = {("download", "timeout"), *((tool, "workers") for tool in TOOLS)}

# What has one choice, which is the default.
ONE_CHOICE = {("rasterize", "tile_format")}


@dataclass(frozen=True)
class FlagMutant(Mutant):
    """A mutant whose `replace` is a statement, with which the function of the tool begins."""

    def apply(self, root: Path) -> str:
        """Return the text of the tool with the statement behind the docstring of its function."""
        text = (root / self.file).read_text("utf-8")
        last = _function(text, Path(self.file).parent.name).body[0].end_lineno
        lines = text.splitlines(keepends=True)
        return "".join([*lines[:last], f"    {self.replace}\n", *lines[last:]])


def _function(text: str, name: str) -> ast.FunctionDef:
    """Return the function of a tool."""
    return next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)


def path_of(tool: str) -> str:
    """Return the file of a tool, relative to the root."""
    return f"components/{tool}/tool.py"


def variants(tool: str, root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yield what may be wrong with each parameter of a tool that has a default, and the statement that does it."""
    arguments = _function((root / path_of(tool)).read_text("utf-8"), tool).args
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    for argument, default in [
        *zip(positional, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]:
        if default is None or argument.annotation is None:
            continue
        name, kind, usual = argument.arg, ast.unparse(argument.annotation), ast.unparse(default)
        if (tool, name) in ONE_CHOICE:
            continue
        yield name, f"{name} = {usual}"
        for choice in CHOICES.get((tool, name), ()):
            yield f"{name} = {choice}", f"{name} = {usual} if {name} == {choice!r} else {name}"
        if re.search(r"\b(int|float)\b", kind) and (tool, name) not in TIMES:
            more = f"{name} + 1"
            if "list[" in kind:
                more = f"[value + 1 for value in {name}]"
            elif "Mapping" in kind:
                more = (
                    f"{{key: value + 1 for key, value in {name}.items()}} if isinstance({name}, dict) else {more}"
                )
            yield f"{name} + 1", f"{name} = None if {name} is None else {more}"


def table(folder: Path = HERE) -> dict[str, dict[str, str]]:
    """Return the test of each variant of each tool."""
    return tomllib.loads((folder / TABLE).read_text("utf-8"))


def flag_mutants(folder: Path = HERE, root: Path = ROOT) -> list[Mutant]:
    """Return a mutant for each variant that has a test."""
    tests = table(folder)
    return [
        FlagMutant(
            f"{tool}: --{what} is not what is asked for", path_of(tool), "", statement, (tests[tool][what],)
        )
        for tool in tests
        for what, statement in variants(tool, root)
        if what in tests[tool]
    ]
