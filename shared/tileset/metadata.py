"""What a tile set says of itself: in the metadata of an archive, or in `metadata.json` of a directory.

Both are one JSON object. These keys are ours, and any other is carried along:

- `format`: of the tiles, as `png`;
- `zoom`: the one zoom, missing where tiles have several;
- `tile_size`: side in pixels;
- `value_type`: of the values of imagery, one of `rsp.shared.images.VALUE_TYPES`;
- `divisor`: what brings them to 0..1;
- `value_range`: the two values of the source that became the least and the greatest, where they were scaled, or
  two for each band;
- `classes`: of labels and masks, in the order of their index: `[{"title": "building", "color": "#ff1493"}, ...]`;
- `model`: UUID of the model that made masks or probabilities; of several all, sorted, with commas between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsp.shared.config import ClassDef, parse_classes
from rsp.shared.errors import ConfigError, TileError, TileSetError
from rsp.shared.keys import Key, read_table
from rsp.shared.tiles import MAX_ZOOM

# As other tools name it that unpack an archive to a directory (mb-util, tippecanoe).
SIDECAR = "metadata.json"
# 255 classes are some 20 KB; the statistics that other tools add are larger.
MAX_BYTES = 4 << 20
MAX_SIDE = 1 << 14

_KEYS = (
    Key("tile_size", "count", None, high=MAX_SIDE), Key("zoom", "int", None, high=MAX_ZOOM),
    Key("value_type", "str", None), Key("divisor", "positive", None), Key("value_range", "floats", None),
    Key("classes", "rows", None), Key("model", "str", None),
)  # fmt: skip


@dataclass(frozen=True)
class TileSetInfo:
    """What a tile set says of itself, as far as it does: each field may be None.

    Attributes:
        classes: The classes of labels or masks, in the order of their index.
        tile_size: Side of a tile in pixels.
        zoom: The one zoom.
        value_type: Type of the values of imagery.
        divisor: What brings them to 0..1.
        value_range: The values of the source that became the least and the greatest, or two for each band.
        model: UUID of the model that made them; of several all, with commas between them.
    """

    classes: tuple[ClassDef, ...] | None = None
    tile_size: int | None = None
    zoom: int | None = None
    value_type: str | None = None
    divisor: float | None = None
    value_range: tuple[float, ...] | None = None
    model: str | None = None


def parse_metadata(data: bytes, where: str) -> dict[str, Any]:
    """Parse metadata; raise `TileSetError` where it is not a JSON object, or too large."""
    if len(data) > MAX_BYTES:
        raise TileSetError(f"{where} is too large, the limit is {MAX_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TileSetError(f"{where} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise TileSetError(f"{where}: expected a JSON object, got {type(found).__name__}")
    return found


def parse_info(metadata: Mapping[str, Any], where: str) -> TileSetInfo:
    """Validate our keys of metadata; raise `TileSetError` where one is of another type."""
    from rsp.shared.images import VALUE_TYPES

    try:
        found = read_table(metadata, _KEYS, where, others=True)
        rows, span = found["classes"], found["value_range"]
        # Before 0.2 the titles alone stood here, which is not enough to write labels or masks.
        known = rows is not None and not all(isinstance(row, str) for row in rows)
        found["classes"] = parse_classes(rows, where) if known else None
    except ConfigError as error:
        raise TileSetError(str(error)) from error
    if found["value_type"] not in (None, *VALUE_TYPES):
        raise TileSetError(f"{where}: value_type: expected one of {', '.join(VALUE_TYPES)}")
    if span is not None and (len(span) % 2 or not span):
        raise TileSetError(f"{where}: value_range: expected two numbers, or two for each band")
    return TileSetInfo(**found)


def classes_metadata(classes: Sequence[ClassDef]) -> list[dict[str, Any]]:
    """Return classes as `classes` of metadata holds them: the grammar of `[[classes]]` of a configuration."""
    colors = ["transparent" if entry.transparent else f"#{bytes(entry.color).hex()}" for entry in classes]
    return [
        {"title": entry.title, "color": color} | ({"ignore": True} if entry.ignore else {})
        for entry, color in zip(classes, colors, strict=True)
    ]


def image_metadata(data: bytes) -> dict[str, Any]:
    """Return what metadata says of tiles like this one; nothing where it is not an image."""
    from rsp.shared.images import decode, natural_divisor, value_type

    try:
        image = decode(data)
        height, width = image.shape[:2]
        found = {"value_type": value_type(image), "divisor": natural_divisor(image.dtype)}
    except TileError:
        return {}
    return found | ({"tile_size": width} if width == height else {})


def join_metadata(before: Mapping[str, Any], now: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return the metadata of a set to which tiles are added. Classes may be added at the end.

    Raises:
        TileSetError: both say of what classes, size or values the tiles are, and contradict each other.
    """
    old, new = parse_info(before, str(where)), parse_info(now, str(where))
    pairs: dict[str, tuple[Any, Any]] = {
        name: (getattr(old, name), getattr(new, name)) for name in ("tile_size", "value_type", "value_range")
    }
    if old.classes and new.classes:
        pairs["classes"] = (titles(old.classes), titles(new.classes[: len(old.classes)]))
    for name, (theirs, ours) in pairs.items():
        if None not in (theirs, ours) and theirs != ours:
            raise TileSetError(
                f"{where} holds tiles of the {name.replace('_', ' ')} {theirs}, and those to add are of {ours}: "
                "choose another output"
            )
    joined = {**before, **now}
    if old.model and new.model:
        joined["model"] = ",".join(sorted({*old.model.split(","), *new.model.split(",")}))
    return joined


def titles(classes: Sequence[ClassDef]) -> str:
    """Return the titles of classes as messages show them."""
    return ", ".join(entry.title for entry in classes)


def to_json(metadata: Mapping[str, Any]) -> str:
    """Return what `metadata.json` holds."""
    return json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def foreign(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not ours: it stays where all tiles of a set may be replaced."""
    ours = {"format", *(key.name for key in _KEYS)}
    return {name: value for name, value in metadata.items() if name not in ours}


def complete(metadata: Mapping[str, Any], tile_format: str, zooms: Iterable[int], first: bytes) -> dict[str, Any]:
    """Return the metadata of a set, with what follows from its tiles.

    Args:
        metadata: What its writer was told.
        tile_format: Of its tiles.
        zooms: Of its tiles.
        first: One of them, which stands for all.
    """
    found = {**metadata, "format": tile_format}
    found.pop("zoom", None)
    if len(set(zooms)) == 1:
        (found["zoom"],) = set(zooms)
    measured = image_metadata(first)
    if "classes" in found:  # its values are indices
        measured = {name: value for name, value in measured.items() if name == "tile_size"}
    return {**measured, **found}
