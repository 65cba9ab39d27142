"""What is burnt upon what: which class each input is, the order of classes, and borders between instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rsp.shared.classes import class_index
from rsp.shared.config import ClassDef
from rsp.shared.errors import ConfigError, UsageError

# What stands between a file and its layer, as QGIS writes it.
LAYER = "|layername="

# How a query begins that has no class before it.
_QUERIES = ("select", "with", "values", "table", "(")


class Input(NamedTuple):
    """Where features come from.

    Attributes:
        text: A path, an address or a glob pattern of either, or a query.
        value: The class index of its features; None where each feature says its class.
        layer: Which layer of a file; None for the only one.
    """

    text: str
    value: int | None
    layer: str | None = None


class Layer(NamedTuple):
    """What is burnt at once.

    Attributes:
        value: The class index that pixels get.
        least: How many polygons of the layer must cover a pixel.
    """

    value: int
    least: int = 1


class Border(NamedTuple):
    """A border between instances of a class, made of what lies near two of them.

    With d1 and d2 the distances of a pixel's centre from the nearest and from the second nearest instance (0
    within one), it is what has d2 <= `metres`. A class needs no loss that takes weights, as those that
    `rsp.components.rasterize.weights` makes of the same distances. It is drawn by counting how many instances,
    widened by `metres`, cover a pixel.

    Attributes:
        of: The class index of the instances.
        metres: How near, on the ground.
        layer: Where its polygons go, in `Layers.layers`.
    """

    of: int
    metres: float
    layer: int


@dataclass(frozen=True)
class Layers:
    """All layers.

    Attributes:
        layers: From the lowest to the highest: where two meet, a pixel is of the higher one.
        of_class: The layer of the instances of each class index.
        rank: For each class index its place in the order, the background at 0.
        borders: Those to draw.
    """

    layers: tuple[Layer, ...]
    of_class: tuple[int, ...]
    rank: tuple[int, ...]
    borders: tuple[Border, ...] = ()


def make_layers(
    classes: Sequence[ClassDef], order: str | None = None, borders: str | None = None, border_type: str = "border"
) -> Layers:
    """Return the layers of a configuration's classes.

    Args:
        classes: The background and the others.
        order: Titles, with commas between them: of two that meet, the later one is seen. Classes that it does
            not name lie below, in their own order.
        borders: `METRES`, or `CLASS=METRES` with commas between several.
        border_type: Title of the class that borders get.

    Raises:
        UsageError: a grammar that cannot be meant.
        ConfigError: no such class.
    """
    named = [class_index(classes, title.strip()) for title in order.split(",")] if order else []
    if 0 in named or len(set(named)) < len(named):
        raise UsageError(f"--order {order}: expected each class once, and not the background")
    ordered = [index for index in range(1, len(classes)) if index not in named] + named
    rank = [0] * len(classes)
    for place, index in enumerate(ordered, 1):
        rank[index] = place
    wanted = _parse_borders(borders, classes, border_type) if borders else {}
    found: list[Layer] = []
    of_class, drawn = [0] * len(classes), []
    border = class_index(classes, border_type) if wanted else None
    for index in ordered:
        of_class[index] = len(found)
        found.append(Layer(index))
        if index == border:
            for of, metres in wanted.items():
                drawn.append(Border(of, metres, len(found)))
                found.append(Layer(index, least=2))
    return Layers(tuple(found), tuple(of_class), tuple(rank), tuple(drawn))


def _parse_borders(text: str, classes: Sequence[ClassDef], border_type: str) -> dict[int, float]:
    """Return how wide the border of which class is."""
    try:
        border = class_index(classes, border_type)
    except ConfigError as error:
        raise ConfigError(f"--borders needs a class to burn, named by --border_type: {error}") from error
    if border == 0:
        raise UsageError(f"--border_type {border_type} is the background")
    wanted: dict[int, float] = {}
    for part in text.split(","):
        title, mark, number = part.rpartition("=")
        try:
            metres = float(number)
        except ValueError:
            metres = -1.0
        if not 0 < metres < 1000:
            raise UsageError(
                f"--borders {text}: expected metres above 0, as 1.5, or CLASS=METRES, as building=1.5"
            )
        others = [index for index in range(1, len(classes)) if index != border]
        for index in [class_index(classes, title.strip())] if mark else others:
            if index in (0, border) or index in wanted:
                raise UsageError(
                    f"--borders {text}: expected each class once, neither the background nor the border"
                )
            wanted[index] = metres
    return wanted


def parse_inputs(
    entries: Sequence[str],
    classes: Sequence[ClassDef],
    kind: str | None,
    type_field: str | None,
    *,
    layer: str | None = None,
    queries: bool,
) -> list[Input]:
    """Return the inputs that the user names, as `FILE` or `CLASS=FILE`.

    Args:
        entries: What the user says.
        classes: The classes.
        kind: Title of the class of all inputs that do not name theirs.
        type_field: The property that says the class of a feature, in inputs that do not name theirs.
        layer: The layer of all files that do not name theirs, as `FILE|layername=NAME`.
        queries: They are queries of a database, not files.

    Raises:
        UsageError: an input of which the class is not known.
        ConfigError: no such class.
    """
    if kind is not None and type_field is not None:
        raise UsageError("--type says that all features are of one class, --type_field that each says its own")
    value = None if kind is None else foreground(classes, kind, "--type")
    if value is None and type_field is None and len(classes) == 2:
        value = 1
    inputs = []
    for entry in entries:
        title, text = _split(entry, classes, queries)
        own = value if title is None else foreground(classes, title, entry)
        if own is None and type_field is None:
            raise UsageError(
                f"which class are the polygons of {text}? Say --type with one of {titles(classes)}, or "
                f"CLASS={text}, or --type_field where each feature says its own"
            )
        path, mark, name = text.partition(LAYER)
        inputs.append(Input(text, own) if queries else Input(path, own, name if mark else layer))
    return inputs


def _split(entry: str, classes: Sequence[ClassDef], queries: bool) -> tuple[str | None, str]:
    """Return the title before the first `=` of an input, if there is one, and the rest."""
    title, mark, text = entry.partition("=")
    title = title.strip()
    if not mark:
        return None, entry
    if queries:
        whole = title.casefold().startswith(_QUERIES) and not _is_class(title, classes)
    else:
        # The `=` belongs to a path, as that of `data/year=2026/roofs.json`, or `s3://bucket/a=b`.
        whole = "/" in title or "*" in title or (Path(entry).exists() and not _is_class(title, classes))
    return (None, entry) if whole else (title, text.strip())


def _is_class(title: str, classes: Sequence[ClassDef]) -> bool:
    try:
        class_index(classes, title)
    except ConfigError:
        return False
    return True


def foreground(classes: Sequence[ClassDef], title: str, where: str) -> int:
    """Return the index of a class that is not the background."""
    index = class_index(classes, title)
    if index == 0:
        raise UsageError(f"{where}: {title} is the background; choose {titles(classes)}")
    return index


def titles(classes: Sequence[ClassDef]) -> str:
    """Return what the classes beside the background are called."""
    return ", ".join(entry.title for entry in classes[1:])
