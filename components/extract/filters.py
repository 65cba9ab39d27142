"""What `--tags` asks for: a filter such as `forest:landuse=forest,meadow`, as an extractor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rsp.components.extract.osm import Width, unseen
from rsp.shared.errors import UsageError

GRAMMAR = "[CLASS:]KEY[=VALUE,...], [CLASS:]KEY!=VALUE,... or several of these joined by &"

_CONDITION = re.compile(r"([^=!&]+?)\s*(?:(!?=)\s*(.+))?")


class Condition(NamedTuple):
    """One tag that an object must have.

    Attributes:
        key: The key.
        values: Its values, one of which the object must have; empty where any will do.
        negated: The object must have the key with another value.
    """

    key: str
    values: frozenset[str] = frozenset()
    negated: bool = False

    def holds(self, tags: Mapping[str, str]) -> bool:
        """Tell whether an object has such a tag."""
        value = tags.get(self.key)
        return value is not None and (not self.values or (value in self.values) != self.negated)


class Tagged:
    """Objects that have certain tags: areas, or lines of a width."""

    def __init__(self, alternatives: Sequence[tuple[Condition, ...]], width: float | None = None) -> None:
        """Take objects for which all conditions of one of the alternatives hold."""
        self.alternatives = tuple(alternatives)
        self.geometry: Literal["polygon", "line"] = "polygon" if width is None else "line"
        # All conditions must hold, so looking for the first one's key is enough.
        self.keys = tuple(dict.fromkeys(conditions[0].key for conditions in alternatives))
        named = dict.fromkeys(each.key for conditions in alternatives for each in conditions)
        self.tags = tuple(dict.fromkeys([*named, "name"]))
        self._width = width
        self._named = frozenset(named)

    def accept(self, tags: Mapping[str, str]) -> bool:
        """Tell whether an object is wanted."""
        return any(all(each.holds(tags) for each in conditions) for conditions in self.alternatives)

    def hidden(self, tags: Mapping[str, str]) -> bool:
        """Tell whether an object cannot be seen from above, unless the filter itself asks for what says so."""
        return unseen(tags, self._named)

    def width(self, tags: Mapping[str, str]) -> Width:
        """Return the width that was asked for, of every line the same."""
        if self._width is None:
            raise TypeError("areas have no width")
        return Width(self._width)


class Filter(NamedTuple):
    """A parsed `--tags`: the class that it names (empty where it names none), and its conditions."""

    name: str
    conditions: tuple[Condition, ...]


def parse_filter(text: str) -> Filter:
    """Parse a filter.

    Up to its first colon a filter names the class; a key that holds a colon itself follows that of a class, or one
    by itself: `:roof:shape=flat`.

    Raises:
        UsageError: it does not follow the grammar.
    """
    name, colon, rest = text.partition(":")
    if not colon or re.search("[=&]", name):  # the colon stands in a value, or in a later condition
        name, rest = "", text
    conditions = []
    for part in rest.split("&"):
        match = _CONDITION.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"--tags {text!r} is not understood; expected {GRAMMAR}")
        values = [value.strip() for value in (match[3] or "").split(",")]
        if match[2] and not all(values):
            raise UsageError(f"--tags {text!r} has an empty value; expected {GRAMMAR}")
        anything = not match[2] or (match[2] == "=" and "*" in values)
        conditions.append(Condition(match[1].strip(), frozenset(() if anything else values), match[2] == "!="))
    return Filter(name.strip(), tuple(conditions))
