"""What is extracted from OpenStreetMap: the interface of an extractor, and the two that come with the tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from rsp.shared.errors import PluginError
from rsp.shared.plugins import load


class Width(NamedTuple):
    """How wide a linear object is.

    Attributes:
        metres: The width on the ground.
        ignored: Tags that should have said it and could not be read, as `lanes=several`.
    """

    metres: float
    ignored: tuple[str, ...] = ()


@runtime_checkable
class Extractor(Protocol):
    """Picks one type of object. Write your own, and name it `--type module:attribute` or in `rsp.extractors`.

    Attributes:
        geometry: `polygon` takes closed ways and multipolygon relations; `line` takes ways, and makes polygons
            of them with `width`.
        keys: Only objects with one of these keys are looked at.
        tags: The tags that are copied to the properties of a feature.
    """

    geometry: Literal["polygon", "line"]
    keys: tuple[str, ...]
    tags: tuple[str, ...]

    def accept(self, tags: Mapping[str, str]) -> bool:
        """Tell whether an object with these tags is wanted."""
        ...

    def width(self, tags: Mapping[str, str]) -> Width:
        """Return the width of a line (never asked for polygons)."""
        ...


class Building:
    """Roofs: every `building`, but for values that show no lasting roof from above."""

    geometry: Literal["polygon", "line"] = "polygon"
    keys: tuple[str, ...] = ("building",)
    tags: tuple[str, ...] = ("building", "name", "building:levels", "height")

    REFUSED = frozenset(
        {
            "conservatory", "construction", "digester", "greenhouse", "houseboat", "no", "ruins", "stadium",
            "static_caravan",
        }
    )  # fmt: skip
    HIDDEN = frozenset({"underground", "underwater"})

    def accept(self, tags: Mapping[str, str]) -> bool:
        return tags.get("building", "no") not in self.REFUSED and tags.get("location") not in self.HIDDEN

    def width(self, tags: Mapping[str, str]) -> Width:
        raise TypeError("a building is no line")


class Profile(NamedTuple):
    """The usual cross-section of a class of road: lanes in one direction, and widths in metres."""

    lanes: int
    lane: float
    left: float
    right: float


class Road:
    """Carriageways: the classes of road that cars drive on, as wide as their tags or their class say."""

    geometry: Literal["polygon", "line"] = "line"
    keys: tuple[str, ...] = ("highway",)
    tags: tuple[str, ...] = ("highway", "name", "lanes", "oneway")

    PROFILES: Mapping[str, Profile] = {
        "motorway": Profile(4, 3.75, 0.75, 3.0),
        "trunk": Profile(3, 3.75, 0.75, 3.0),
        "primary": Profile(2, 3.75, 0.5, 1.5),
        "secondary": Profile(1, 3.5, 0.0, 0.75),
        "tertiary": Profile(1, 3.5, 0.0, 0.75),
        "unclassified": Profile(1, 3.5, 0.0, 0.0),
        "residential": Profile(1, 3.5, 0.0, 0.75),
        "service": Profile(1, 3.0, 0.0, 0.0),
        "motorway_link": Profile(2, 3.75, 0.75, 3.0),
        "trunk_link": Profile(2, 3.75, 0.5, 1.5),
        "primary_link": Profile(1, 3.75, 0.0, 0.75),
        "secondary_link": Profile(1, 3.5, 0.0, 0.75),
        "tertiary_link": Profile(1, 3.5, 0.0, 0.0),
    }

    def accept(self, tags: Mapping[str, str]) -> bool:
        return tags.get("highway") in self.PROFILES

    def width(self, tags: Mapping[str, str]) -> Width:
        """Return the width: the tag `width`, else the lanes (the tag counts both directions) and shoulders."""
        profile = self.PROFILES[tags["highway"]]
        lanes = float(profile.lanes if tags.get("oneway", "no") not in ("no", "false", "0") else 2 * profile.lanes)
        ignored = []
        if "lanes" in tags:
            counted = metres_of(tags["lanes"], units=False)
            if counted is None:
                ignored.append(f"lanes={tags['lanes']}")
            else:
                lanes = max(1.0, counted)
        width = lanes * profile.lane + profile.left + profile.right
        if "width" in tags:
            measured = metres_of(tags["width"])
            if measured is None:
                ignored.append(f"width={tags['width']}")
            else:
                width = max(1.0, measured)
        return Width(width, tuple(ignored))


_LENGTH = re.compile(r"(\d+(?:[.,]\d+)?)\s*(m|metres?|meters?|ft|feet|')?", re.IGNORECASE)

# Wider than any road; a typing error that would flood the map with one class.
WIDEST = 200.0


def metres_of(text: str, *, units: bool = True) -> float | None:
    """Return a number, or a length as OpenStreetMap writes it (`3.5`, `3,5 m`, `12 ft`, `12'`), or None."""
    match = _LENGTH.fullmatch(text.strip())
    if not match or (match[2] and not units):
        return None
    value = float(match[1].replace(",", "."))
    if match[2] and match[2].lower() in ("ft", "feet", "'"):
        value *= 0.3048
    return value if value <= WIDEST else None


BUILTIN: Mapping[str, Callable[[], Extractor]] = {"building": Building, "road": Road}


def find_extractor(kind: str) -> Extractor:
    """Return the extractor of a type: `building` and `road` in any case, a plug-in, or `module:attribute`.

    Raises:
        PluginError: there is none, or it lacks a part of `Extractor`.
    """
    found = load(kind if ":" in kind else kind.lower(), "rsp.extractors", BUILTIN)
    try:
        extractor = found() if callable(found) else found
    except Exception as error:
        raise PluginError(f"the extractor {kind!r} cannot be made: {error}") from error
    if not isinstance(extractor, Extractor) or extractor.geometry not in ("polygon", "line"):
        raise PluginError(
            f"{kind!r} is no extractor: it needs `geometry` (polygon or line), `keys`, `tags`, `accept(tags)` and "
            "`width(tags)`"
        )
    return extractor
