"""The model card: the readable description that travels with every checkpoint and every exported model.

A card has a version, one whole number. Whatever changes its fields raises `VERSION`, gives a field that is new a
default that says "not known" (or one that older models kept to), and adds a fixture of what was written before,
as `tests/fixtures/card_v0`. Cards of older versions are read for ever; newer ones are refused, since a field that
this code does not know may change what the model answers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any

from rsp import __version__
from rsp.shared.config import Channel, ClassDef, ModelConfig
from rsp.shared.errors import ModelError
from rsp.shared.images import VALUE_TYPES
from rsp.shared.tiles import MAX_ZOOM

# 0: cards that do not say a version. 1: value types, divisors, zoom, and the digest of the validation tiles.
VERSION = 1

# A card of 255 classes and 100 channels is some 60 KB; what claims more is not a card.
MAX_BYTES = 1 << 20
MAX_SIDE = 1 << 14
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelCard:
    """What a network is, what it takes and what it answers.

    Attributes:
        nn: The network, as `[model] nn` of the configuration names it.
        encoder: Its encoder, likewise.
        num_filters: Width of the decoder.
        channels: Where the input bands come from, in order, and how they are normalised.
        classes: The classes of the masks.
        tile_size: Side in pixels of the tiles that it was trained on.
        overlap: Pixels of the neighbouring tiles that prediction adds on each side.
        epoch: How many epochs it was trained for.
        epochs: How many the training was to have.
        metrics: What it reached on the validation tiles, as `iou`, `miou`, `mcc`, `loss`.
        versions: Of the libraries that made it.
        uuid: Follows from the weights: the same weights have the same.
        zoom: Of the tiles that it was trained on; None where they had several, or it is not known.
        validation: What the metrics were measured on: `rsp.shared.tileset.tiles_digest` of the validation tiles
            and their labels; None where it is not known. Metrics of models can be compared where it is equal.
        version: Of the card; a card that was read has the current one.
    """

    nn: str
    encoder: str
    num_filters: int
    channels: tuple[Channel, ...]
    classes: tuple[ClassDef, ...]
    tile_size: int
    overlap: int
    epoch: int = 0
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    uuid: str = ""
    zoom: int | None = None
    validation: str | None = None
    version: int = VERSION

    @property
    def in_channels(self) -> int:
        """How many bands the network takes."""
        return sum(len(channel.bands) for channel in self.channels)

    @property
    def num_classes(self) -> int:
        """How many classes the network tells apart, the background included."""
        return len(self.classes)

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """The plain palette: one colour a class, in order."""
        return [entry.color for entry in self.classes]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each band of the input, of values scaled to 0..1."""
        return tuple(value for channel in self.channels for value in channel.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each band of the input, of values scaled to 0..1."""
        return tuple(value for channel in self.channels for value in channel.std)

    def model_config(self) -> ModelConfig:
        """Return the configuration that builds the network, never with pretrained weights."""
        return ModelConfig(nn=self.nn, encoder=self.encoder, pretrained=False, num_filters=self.num_filters)

    def to_json(self) -> str:
        """Return the card as JSON, the same text for the same card."""
        data = asdict(self)
        # JSON has no NaN, and other readers refuse Python's.
        data["metrics"] = {key: value if value == value else None for key, value in self.metrics.items()}
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelCard:
        """Read a card and validate every field of it.

        Raises:
            ModelError: not JSON, a card of a newer version, a field that is missing, unknown, or of another type,
                or a card too large.
        """
        if len(text) > MAX_BYTES:
            raise ModelError(f"the model card has {len(text)} bytes, the limit is {MAX_BYTES}")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the model card is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ModelError(f"the model card: expected an object, got {type(data).__name__}")
        _upgrade(data)
        _check_names(data, cls, "the model card")
        side = {"tile_size": (1, MAX_SIDE), "overlap": (0, MAX_SIDE), "num_filters": (1, MAX_SIDE)}
        for name in ("tile_size", "overlap", "num_filters", "epoch", "epochs"):
            low, high = side.get(name, (0, 1 << 31))
            if type(data[name]) is not int or not low <= data[name] <= high:
                raise ModelError(f"the model card: {name}: expected a whole number {low} to {high}")
        if data["zoom"] is not None and (type(data["zoom"]) is not int or not 0 <= data["zoom"] <= MAX_ZOOM):
            raise ModelError(f"the model card: zoom: expected a whole number 0 to {MAX_ZOOM}, or null")
        validation = data["validation"]
        if validation is not None and not (isinstance(validation, str) and _DIGEST.fullmatch(validation)):
            raise ModelError(
                "the model card: validation: expected a SHA-256 digest of 64 hexadecimal digits, or null"
            )
        for name in ("nn", "encoder", "uuid"):
            if not isinstance(data[name], str) or len(data[name]) > 4096:
                raise ModelError(f"the model card: {name}: expected a text")
        return cls(
            channels=_rows(data.pop("channels"), "channels", _channel, 1, 1024),
            classes=_rows(data.pop("classes"), "classes", _class, 2, 255),
            metrics=_mapping(data.pop("metrics"), "metrics", (int, float, type(None))),
            versions=_mapping(data.pop("versions"), "versions", (str,)),
            **data,
        )


def library_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this project and of installed libraries, by name."""
    return {"rsp": __version__} | {name: version(name) for name in libraries}


def _upgrade(data: dict[str, Any]) -> None:
    """Bring the fields of a card to the current version; raise `ModelError` where it is newer than that."""
    found = data.pop("version", 0)
    if type(found) is not int or found < 0:
        raise ModelError("the model card: version: expected a whole number")
    if found > VERSION:
        raise ModelError(
            f"the model card has version {found}, and this rsp ({__version__}) reads up to version {VERSION}: "
            "upgrade rsp to at least the version that wrote the model"
        )
    data["version"] = VERSION
    if found < 1:
        data |= {name: data.get(name) for name in ("zoom", "validation")}
        for row in data["channels"] if isinstance(data.get("channels"), list) else ():
            if isinstance(row, dict):
                row |= {name: row.get(name) for name in ("value_type", "divisor")}


def _check_names(data: Any, kind: type, where: str) -> None:
    """Raise where an object does not have exactly the fields of a dataclass."""
    if not isinstance(data, dict):
        raise ModelError(f"{where}: expected an object, got {type(data).__name__}")
    names = {entry.name for entry in fields(kind)}
    for wrong, verb in ((names - set(data), "is missing"), (set(data) - names, "is unknown")):
        if wrong:
            raise ModelError(f"{where}: the field {min(wrong)!r} {verb}; is it of another version?")


def _rows(rows: Any, name: str, make: Any, low: int, high: int) -> tuple[Any, ...]:
    if not isinstance(rows, list) or not low <= len(rows) <= high:
        raise ModelError(f"the model card: {name}: expected a list of {low} to {high}")
    return tuple(make(row, f"the model card: {name} {number}") for number, row in enumerate(rows, 1))


def _numbers(values: Any, where: str, count: int | None = None) -> tuple[float, ...]:
    if not isinstance(values, list) or not values or not all(type(item) in (int, float) for item in values):
        raise ModelError(f"{where}: expected a list of numbers")
    if count is not None and len(values) != count:
        raise ModelError(f"{where}: expected {count} numbers, got {len(values)}")
    return tuple(values)


def _channel(row: Any, where: str) -> Channel:
    _check_names(row, Channel, where)
    bands = _numbers(row["bands"], f"{where}: bands")
    if not all(type(band) is int and band > 0 for band in bands) or not isinstance(row["name"], str):
        raise ModelError(f"{where}: expected a name, and bands counted from 1")
    mean = _numbers(row["mean"], f"{where}: mean", len(bands))
    std = _numbers(row["std"], f"{where}: std", len(bands))
    if min(std) <= 0:
        raise ModelError(f"{where}: std must be above 0")
    kind, divisor = row["value_type"], row["divisor"]
    if (kind is None) != (divisor is None):
        raise ModelError(f"{where}: value_type and divisor go together: expected both, or null for both")
    if kind is not None and kind not in VALUE_TYPES:
        raise ModelError(f"{where}: value_type: expected one of {', '.join(VALUE_TYPES)}")
    if divisor is not None:
        (divisor,) = map(float, _numbers([divisor], f"{where}: divisor"))
        if not (0 < divisor < math.inf) or (kind == "float32" and divisor != 1):
            raise ModelError(f"{where}: divisor: expected a number above 0, and 1 for float32")
    return Channel(
        row["name"], tuple(map(int, bands)), tuple(map(float, mean)), tuple(map(float, std)), kind, divisor
    )


def _class(row: Any, where: str) -> ClassDef:
    _check_names(row, ClassDef, where)
    color = _numbers(row["color"], f"{where}: color", 3)
    if not all(type(value) is int and 0 <= value <= 255 for value in color):
        raise ModelError(f"{where}: color: expected three whole numbers 0 to 255")
    if not isinstance(row["title"], str) or type(row["transparent"]) is not bool:
        raise ModelError(f"{where}: expected a title, and `transparent` true or false")
    (weight,) = _numbers([row["weight"]], f"{where}: weight")
    red, green, blue = map(int, color)
    return ClassDef(row["title"], (red, green, blue), float(weight), row["transparent"])


def _mapping(data: Any, name: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(type(value) in kinds for value in data.values()):
        raise ModelError(f"the model card: {name}: expected an object of plain values")
    return {key: float("nan") if value is None else value for key, value in data.items()}
