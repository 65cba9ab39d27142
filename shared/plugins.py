"""Plug-ins: what a configuration names is ours, a module's attribute, or an entry point of another package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsp.shared.errors import PluginError, RspError

# What messages call the members of a group.
NOUNS = {
    "rsp.models": "network",
    "rsp.losses": "loss",
    "rsp.loaders": "loader",
    "rsp.augmentations": "augmentation",
    "rsp.metrics": "metric",
    "rsp.extractors": "extractor",
}


def load(name: str, group: str, builtin: Mapping[str, Any] | None = None) -> Any:
    """Return the object that a name stands for.

    Args:
        name: One of `builtin`, `module:attribute`, or the name of an entry point in `group`.
        group: The entry point group, as `rsp.models`.
        builtin: Our own, by name.

    Raises:
        PluginError: nothing of that name (what there is, is listed), or it cannot be imported.
    """
    lower = name.lower()  # some forms of the configuration write `Lovasz`, some `lovasz`
    if builtin is not None and lower in builtin:
        return builtin[lower]
    if ":" in name:
        return _import(name, group)
    from importlib.metadata import entry_points  # takes as long as to start Python

    points = entry_points(group=group)
    found = {point.name: point for point in points}
    point = found.get(name) or {point.name.lower(): point for point in points}.get(lower)
    if point is None:
        known = ", ".join(sorted([*(builtin or {}), *found])) or "none"
        what = NOUNS.get(group, group.removeprefix("rsp."))
        raise PluginError(f"unknown {what} {name!r}; known: {known}; or give module:attribute")
    try:
        return point.load()
    except Exception as error:
        raise PluginError(f"the entry point {name!r} of {group} cannot be loaded: {error}") from error


@contextmanager
def guarded(what: str, name: str) -> Iterator[None]:
    """Name the plug-in that raises inside of the block.

    Args:
        what: What it is, as `loss`.
        name: What the configuration calls it, as `module:attribute`.

    Raises:
        PluginError: in place of whatever it raised, but for errors of our own, which say enough.
    """
    try:
        yield
    except RspError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise PluginError(f"the {what} {name!r} failed: {type(error).__name__}: {reason}") from error


def unexpected(what: str, name: str, got: Any, expected: str) -> PluginError:
    """Return the error of a plug-in that returned what it should not."""
    return PluginError(f"the {what} {name!r} returned {describe(got)}; expected {expected}")


def describe(value: Any) -> str:
    """Return what a value is, in few words: its type, and the shape or length where it has one."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{kind} of {str(dtype).removeprefix('torch.')} and shape {tuple(shape)}"
    if isinstance(value, Mapping):
        return f"{kind} with the keys {', '.join(map(str, list(value)[:5])) or 'none'}"
    return f"{kind} of length {len(value)}" if isinstance(value, list | tuple | str) else kind


def _import(name: str, group: str) -> Any:
    """Return what `module:attribute` names; the module may lie in the current folder."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # at the end: what is installed goes first
    module, _, attribute = name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise PluginError(f"cannot import {name!r} for {group}: {error}") from error
    return value
