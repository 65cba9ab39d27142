"""Plug-ins: what a configuration names is ours, a module's attribute, or an entry point of another package."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from shared.errors import PluginError


def load(name: str, group: str, builtin: Mapping[str, Any] | None = None) -> Any:
    """Return the object that a name stands for.

    Args:
        name: One of `builtin`, `module:attribute`, or the name of an entry point in `group`.
        group: The entry point group, as `rsp.models`.
        builtin: Our own, by name.

    Raises:
        PluginError: nothing of that name (what there is, is listed), or it cannot be imported.
    """
    if builtin and name.lower() in builtin:  # some forms of the configuration write `Lovasz`, some `lovasz`
        return builtin[name.lower()]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"cannot import {name!r} for {group}: {error}") from error
        return value
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        known = ", ".join(sorted([*(builtin or {}), *found])) or "none"
        raise PluginError(
            f"unknown {group.removeprefix('rsp.')} {name!r}; known: {known}; or give module:attribute"
        )
    try:
        return found[name].load()
    except Exception as error:
        raise PluginError(f"the entry point {name!r} of {group} cannot be loaded: {error}") from error
