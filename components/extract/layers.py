"""What is extracted in one pass: each type with its name, and how the reader asks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rsp.components.extract.filters import Filter, Tagged, parse_filter
from rsp.components.extract.osm import Extractor
from rsp.components.extract.plugin import PlugIn, find_extractor, hides
from rsp.shared.errors import UsageError

# Properties that say where a feature comes from; tags of these names are not copied over them.
OSM_TYPE, OSM_ID, CLASS, WIDTH = "osm_type", "osm_id", "class", "width"


class Layer(NamedTuple):
    """A type of object, as the reader takes it.

    Attributes:
        name: What it is called, as `building`: the class of its features.
        extractor: Which objects belong to it.
        label: The property `class` of its features; None where they have none.
        spelt: How its (first) filter of tags was written; empty for a type.
    """

    name: str
    extractor: Extractor
    label: str | None = None
    spelt: str = ""

    @property
    def foreign(self) -> bool:
        """Whether it is of another package, and has to be asked with a dictionary."""
        return isinstance(self.extractor, PlugIn)

    @property
    def areas(self) -> bool:
        """Whether its objects are areas, and not lines."""
        return self.extractor.geometry == "polygon"

    @property
    def hidden(self) -> Callable[[Mapping[str, str]], bool] | None:
        """What tells whether an object cannot be seen from above."""
        return hides(self.extractor)

    def properties(self, kind: str, number: int, tags: Any) -> dict[str, Any]:
        """Return the properties of a feature."""
        found: dict[str, Any] = {OSM_TYPE: kind, OSM_ID: number}
        if self.label is not None:
            found[CLASS] = self.label
        get = tags.get
        for key in self.extractor.tags:
            value = get(key)
            if value is not None and key not in found:
                found[key] = value
        return found


def find_layers(
    kinds: Sequence[str] = (), filters: Sequence[str] = (), widths: float | Mapping[str, float] | None = None
) -> list[Layer]:
    """Return the layers of types and of filters of tags; several filters of one class count as that class.

    Args:
        kinds: `building`, `road`, `parking`, plug-ins, or `module:attribute`.
        filters: Filters of tags, as `parse_filter` takes them.
        widths: Metres; what the filters find are lines then. For all of them, or by class.

    Raises:
        UsageError: nothing is asked for, something twice, a filter that cannot be parsed, or a width of a class
            that no filter has.
        PluginError: no such type, or a plug-in that is none.
    """
    _check_twice([kind if ":" in kind else kind.lower() for kind in kinds], "--type")
    _check_twice(filters, "--tags")
    found = [Layer(kind, find_extractor(kind)) for kind in kinds]
    classes: dict[str, list[Filter]] = {}
    for text in filters:
        parsed = parse_filter(text)
        classes.setdefault(parsed.name or text, []).append(parsed)
    spelt = {parse_filter(text).name or text: text for text in reversed(filters)}
    by_class = dict(widths) if isinstance(widths, Mapping) else dict.fromkeys(classes, widths)
    unknown = [name for name in by_class if name not in classes]
    if unknown or (widths is not None and not classes):
        raise UsageError(f"{', '.join(unknown) or '--width'}: widths are for --tags; a type knows its own")
    for name, members in classes.items():
        tagged = Tagged([each.conditions for each in members], by_class.get(name))
        found.append(Layer(name, tagged, members[0].name or None, spelt[name]))
    if not found:
        raise UsageError("nothing to extract: give --type, --tags or both")
    return [layer._replace(label=layer.name) for layer in found] if len(found) > 1 else found


def _check_twice(names: Iterable[str], flag: str) -> None:
    """Refuse what is asked for twice, as its features would be there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{flag} {name} is given twice")
        seen.add(name)


def keys_of(layers: Iterable[Layer]) -> list[str]:
    """Return the keys of which every object of the layers has one, each once."""
    return list(dict.fromkeys(key for layer in layers for key in layer.extractor.keys))
