"""What is extracted from OpenStreetMap: the interface of an extractor, and those that come with the tool."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable


class Width(NamedTuple):
    """How wide a linear object is.

    Attributes:
        metres: The width on the ground.
        ignored: Tags that should have told it and could not be read, such as `lanes=several`.
    """

    metres: float
    ignored: tuple[str, ...] = ()


@runtime_checkable
class Extractor(Protocol):
    """Picks one type of object. Write your own, and name it `--type module:attribute` or in `rsp.extractors`.

    A method `hidden(tags)`, which returns a bool, may be added: objects for which it returns True are left out
    unless `--with_hidden` is given.

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


_NO = frozenset({"no", "false", "0"})
_UNSEEN = frozenset({"underground", "underwater", "indoor"})


def unseen(tags: Mapping[str, str], asked: Collection[str] = ()) -> bool:
    """Tell whether something cannot be seen from above, by the tags `tunnel`, `covered`, `indoor` and `location`.

    A `building_passage` and an `avalanche_protector` have a roof, too. A negative `layer` alone says only what
    crosses above what: a road in a cutting below a bridge has one.

    Args:
        tags: What the object is tagged with.
        asked: Keys that do not count, since the object was asked for by them.
    """
    return any(tags.get(key, "no") not in _NO for key in ("tunnel", "covered", "indoor") if key not in asked) or (
        "location" not in asked and tags.get("location") in _UNSEEN
    )


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
        return tags.get("building", "no") not in self.REFUSED

    def hidden(self, tags: Mapping[str, str]) -> bool:
        """Tell whether a building is below the ground or the water (`location`)."""
        return tags.get("location") in self.HIDDEN

    def width(self, tags: Mapping[str, str]) -> Width:
        raise TypeError("buildings have no width")


class Parking:
    """Parking areas in the open: every `amenity=parking`, but for those below the ground and under a roof."""

    geometry: Literal["polygon", "line"] = "polygon"
    keys: tuple[str, ...] = ("amenity",)
    tags: tuple[str, ...] = ("amenity", "parking", "name", "access", "capacity", "surface")

    # Of these a roof is seen from above.
    REFUSED = frozenset(
        {"carport", "carports", "garage", "garage_boxes", "garages", "multi-storey", "rooftop", "shed", "sheds"}
    )
    UNDERGROUND = "underground"

    def accept(self, tags: Mapping[str, str]) -> bool:
        return (
            tags.get("amenity") == "parking"
            and tags.get("parking") not in self.REFUSED
            and tags.get("building", "no") == "no"
        )

    def hidden(self, tags: Mapping[str, str]) -> bool:
        """Tell whether a parking area is below the ground, or under cover."""
        return tags.get("parking") == self.UNDERGROUND or unseen(tags)

    def width(self, tags: Mapping[str, str]) -> Width:
        raise TypeError("parking areas have no width")


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

    # One-way unless `oneway` says otherwise.
    ONEWAY = frozenset({"motorway", "motorway_link"})
    ROUNDABOUTS = frozenset({"roundabout", "circular"})

    def accept(self, tags: Mapping[str, str]) -> bool:
        return tags.get("highway") in self.PROFILES

    def hidden(self, tags: Mapping[str, str]) -> bool:
        """Tell whether a road cannot be seen from above, as in a tunnel."""
        return unseen(tags)

    def _oneway(self, tags: Mapping[str, str]) -> bool:
        """Tell whether traffic goes one way, as roundabouts and motorways imply."""
        if "oneway" in tags:
            return tags["oneway"] not in _NO
        return tags["highway"] in self.ONEWAY or tags.get("junction") in self.ROUNDABOUTS

    def width(self, tags: Mapping[str, str]) -> Width:
        """Return the width: the tag `width`, else the lanes (the tag counts both directions) and shoulders."""
        profile = self.PROFILES[tags["highway"]]
        lanes = float(profile.lanes if self._oneway(tags) else 2 * profile.lanes)
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
