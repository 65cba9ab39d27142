"""Tables of keys and values, as TOML and JSON hold them: validated, with defaults filled in.

A `Key` says everything about a key. The configuration (`rsp.shared.config`) and the model card are read with the
same code, and `docs/config.md` is made from the same tables.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsp.shared.errors import ConfigError

NO_DEFAULT: Any = object()
MAX_TEXT = 4096


@dataclass(frozen=True)
class Key:
    """One key of a table.

    Attributes:
        name: How we spell it (the spelling of the newest form).
        holds: One of `EXPECTED`.
        default: The value where the key is missing; `NO_DEFAULT` where it must be there.
        text: What it means.
        aliases: Other spellings, read the same.
        high: The largest whole number that it holds.
    """

    name: str
    holds: str
    default: Any = NO_DEFAULT
    text: str = ""
    aliases: tuple[str, ...] = ()
    high: int = 1 << 31


# What keys hold, in words.
EXPECTED = {
    "bool": "true or false",
    "str": "a text",
    "int": "a whole number, 0 or more",
    "count": "a whole number, 1 or more",
    "positive": "a number above 0",
    "fraction": "a number from 0 to 1",
    "weight": "a number, 0 or more",
    "difference": "a number from -1 to 1",
    "size": "a positive whole number, or two equal ones",
    "ints": "a list of whole numbers from 1",
    "indices": "a list of whole numbers",
    "measured": 'a list of numbers, or "auto"',
    "auto_int": 'a whole number, 0 or more, or "auto"',
    "auto_count": 'a whole number, 1 or more, or "auto"',
    "auto_size": 'a positive whole number, two equal ones, or "auto"',
    "auto_weight": 'a number, 0 or more, or "auto"',
    "floats": "a list of numbers",
    "strs": "a list of texts",
    "rgb": "three whole numbers 0 to 255",
    "table": "a table",
    "rows": "a list of tables",
}


def key(default: Any, holds: str, text: str, *aliases: str) -> Any:
    """Return a field of a dataclass that is a key of a table: its default stands there, and nowhere else."""
    return dataclasses.field(default=default, metadata={"key": (holds, text, aliases)})


def keys_of(kind: type) -> tuple[Key, ...]:
    """Return the keys that the fields of a dataclass were declared as; other fields are left out."""
    return tuple(
        Key(field.name, field.metadata["key"][0], field.default, *field.metadata["key"][1:])
        for field in dataclasses.fields(kind)
        if "key" in field.metadata
    )


def read_table(row: Any, keys: Sequence[Key], where: str, *, others: bool = False) -> dict[str, Any]:
    """Return the values of a table under our spelling, each of the right type, defaults filled in.

    Args:
        row: The table.
        keys: Those that it may have.
        where: What messages begin with.
        others: Pass over keys that are not known.

    Raises:
        ConfigError: it is not a table, a key is missing, unknown, repeated, or of another type.
    """
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: expected a table, got {type(row).__name__}")
    spellings = {spelling: key for key in keys for spelling in (key.name, *key.aliases)}
    values: dict[str, Any] = {}
    for spelling, value in row.items():
        key = spellings.get(spelling)
        if key is None and others:
            continue
        if key is None:
            raise ConfigError(f"{where}: unknown key {spelling!r}; expected one of {', '.join(spellings)}")
        if key.name in values:
            raise ConfigError(f"{where}: {spelling!r} repeats {key.name!r}; keep one of them")
        # JSON has null where a value is not known; TOML has none.
        unset = value is None and key.default is None
        values[key.name] = None if unset else typed(value, key, f"{where}: {spelling}")
    for key in keys:
        if key.name not in values and key.default is NO_DEFAULT:
            meaning = f": {key.text}" if key.text else ""
            raise ConfigError(f"{where}: the key {key.name!r} is missing{meaning}")
        values.setdefault(key.name, key.default)
    return values


def typed(value: Any, key: Key, where: str) -> Any:
    """Return a value as the type of its key; raise `ConfigError` that names what was expected."""
    if key.holds.startswith("auto_"):
        holds = key.holds.removeprefix("auto_")
        if value == "auto":
            return value
    else:
        holds = key.holds
    value = _whole(value, holds)
    number = _is_finite(value)
    match holds, value:
        case "bool", bool():
            return value
        case "str", str() if len(value) <= MAX_TEXT:
            return value
        case "int" | "count" | "size", int() if number and (holds != "int") <= value <= key.high:
            return value
        case "positive" | "fraction" | "weight" | "difference", int() | float() if number and _in_range(
            holds, value
        ):
            return float(value)
        case "size", [int(width), int(height)] if width == height and 0 < width <= key.high:
            return width
        case "ints", list() if value and all(type(item) is int and 0 < item <= key.high for item in value):
            return tuple(value)
        case "indices", list() if value and all(type(item) is int and 0 <= item <= key.high for item in value):
            return tuple(value)
        case "floats" | "measured", list() if value and all(map(_is_finite, value)):
            return tuple(map(float, value))
        case "measured", "auto":
            return value
        case "strs", list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case "rgb", [_, _, _] if all(type(item) is int and 0 <= item <= 255 for item in value):
            return tuple(value)
        case "table", Mapping():
            return dict(value)
        case "rows", list():
            return value
    expected = EXPECTED[key.holds]
    if type(value) is int and value > key.high:
        expected += f", up to {key.high}"
    raise ConfigError(f"{where}: expected {expected}, got {shortened(value)}")


def _whole(value: Any, holds: str) -> Any:
    """Return whole numbers as such where such are expected: forms and JSON may write them as 3.0."""
    if holds not in ("int", "count", "size", "ints", "indices", "rgb"):
        return value
    if isinstance(value, list):
        return [_whole(item, "int") for item in value]
    return int(value) if type(value) is float and value.is_integer() else value


def shortened(value: Any) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_finite(value: Any) -> bool:
    """Tell whether a value is a number that a float can hold; `math.isfinite` raises for whole ones beyond."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _in_range(holds: str, value: float) -> bool:
    inside = {
        "positive": value > 0, "fraction": 0 <= value <= 1, "weight": value >= 0, "difference": -1 <= value <= 1
    }  # fmt: skip
    return inside[holds]


def describe_keys(keys: Sequence[Key]) -> Iterator[str]:
    """Yield the lines of a Markdown table of keys."""
    yield "| key | also | holds | default | meaning |"
    yield "|---|---|---|---|---|"
    for key in keys:
        also = ", ".join(f"`{alias}`" for alias in key.aliases)
        yield f"| `{key.name}` | {also} | {EXPECTED[key.holds]} | {_shown(key.default)} | {key.text} |"


def _shown(default: Any) -> str:
    """Return a default as TOML writes it."""
    if default is NO_DEFAULT:
        return "(must be given)"
    if default is None:
        return ""
    if isinstance(default, float):
        return f"`{default:.6f}`".replace("000`", "`") if 0 < default < 1e-3 else f"`{default}`"
    return f"`{json.dumps(default)}`"
