"""Finds the extractor of a type, and checks what an extractor of another package answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rsp.components.extract.osm import Building, Extractor, Parking, Road, Width
from rsp.shared.errors import PluginError
from rsp.shared.plugins import load

BUILTIN: Mapping[str, Callable[[], Extractor]] = {"building": Building, "road": Road, "parking": Parking}

PARTS = ("geometry", "keys", "tags", "accept", "width")


def find_extractor(kind: str) -> Extractor:
    """Return the extractor of a type: one of `BUILTIN` in any case, a plug-in, or `module:attribute`.

    Raises:
        PluginError: there is none, or it lacks a part of `Extractor`.
    """
    found = load(kind if ":" in kind else kind.lower(), "rsp.extractors", BUILTIN)
    if found in BUILTIN.values():
        return found()  # type: ignore[no-any-return]
    try:
        extractor = found() if callable(found) else found
        return PlugIn(kind, extractor)
    except PluginError:
        raise
    except Exception as error:  # whatever the code of others raises
        raise PluginError(f"the extractor {kind!r} cannot be created: {_said(error)}") from error


def hides(extractor: Extractor) -> Callable[[Mapping[str, str]], bool] | None:
    """Return the method of an extractor that tells whether an object is hidden, if it has one."""
    return getattr(extractor, "hidden", None)


class PlugIn:
    """An extractor of another package. Its errors and wrong answers become errors that name it."""

    geometry: Literal["polygon", "line"]
    keys: tuple[str, ...]
    tags: tuple[str, ...]

    def __init__(self, name: str, extractor: Any) -> None:
        """Check the parts of the extractor.

        Raises:
            PluginError: one of them is missing or has the wrong type.
        """
        self._name = name
        self._extractor = extractor
        missing = [part for part in PARTS if not hasattr(extractor, part)]
        if missing:
            raise PluginError(
                f"{name!r} is not an extractor: it has no {', '.join(missing)} (of {', '.join(PARTS)})"
            )
        if extractor.geometry not in ("polygon", "line"):
            raise self._wrong("geometry", extractor.geometry, '"polygon" or "line"')
        self.geometry = extractor.geometry
        self.keys = self._strings("keys", extractor.keys)
        if not self.keys:
            raise self._wrong("keys", extractor.keys, "at least one key")
        self.tags = self._strings("tags", extractor.tags)

    def accept(self, tags: Mapping[str, str]) -> bool:
        return self._bool("accept", tags)

    def hidden(self, tags: Mapping[str, str]) -> bool:
        return hasattr(self._extractor, "hidden") and self._bool("hidden", tags)

    def width(self, tags: Mapping[str, str]) -> Width:
        answer = self._call("width", tags)
        try:
            metres, ignored = answer
            metres, ignored = float(metres), tuple(map(str, ignored))
            good = not isinstance(answer, str) and math.isfinite(metres) and metres > 0
        except (TypeError, ValueError):
            good = False
        if not good:
            raise self._wrong("width(tags)", answer, "Width(metres, ignored) with metres above 0", tags)
        return Width(metres, ignored)

    def _strings(self, part: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(one, str) for one in value):
            raise self._wrong(part, value, 'a tuple of strings, such as ("amenity",)')
        return tuple(value)

    def _bool(self, method: str, tags: Mapping[str, str]) -> bool:
        answer = self._call(method, tags)
        if not isinstance(answer, bool):
            raise self._wrong(f"{method}(tags)", answer, "True or False", tags)
        return answer

    def _call(self, method: str, tags: Mapping[str, str]) -> Any:
        try:
            return getattr(self._extractor, method)(tags)
        except Exception as error:  # whatever the code of others raises
            raise PluginError(
                f"{method}(tags) of the extractor {self._name!r} failed with {_said(error)} for the tags "
                f"{_short(dict(tags))}"
            ) from error

    def _wrong(self, part: str, value: Any, wanted: str, tags: Mapping[str, str] | None = None) -> PluginError:
        what = "returned" if tags is not None else "is"
        for_tags = f" for the tags {_short(dict(tags))}" if tags is not None else ""
        return PluginError(
            f"{part} of the extractor {self._name!r} {what} {_short(value)}{for_tags}; expected {wanted}"
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (the repr of others may fail, too)
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."
