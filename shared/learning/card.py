"""The model card: the readable description that travels with every checkpoint and every exported model.

A card has a version, one whole number. Whatever changes its fields raises `VERSION`, gives a field that is new a
default that says "not known" (or one that older models kept to), and adds a fixture of what was written before,
as `tests/fixtures/card_v0`. Cards of older versions stay readable; newer ones are refused, since a field that
this code does not know may change what the model answers.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from rsp import __version__
from rsp.shared.config import (
    NORMS,
    Channel,
    ClassDef,
    Config,
    ModelConfig,
    check_classes,
    make_channel,
    make_class,
)
from rsp.shared.errors import ConfigError, ModelError
from rsp.shared.images import VALUE_TYPES
from rsp.shared.keys import Key, read_table
from rsp.shared.tiles import MAX_ZOOM

# 0: cards that do not say a version. 1: value types, divisors, zoom, and the digest of the validation tiles.
# 2: kinds of channels, classes to ignore, whether there is a background, the side of the tiles as they lay, and
# the precision of the training. 3: what features are normalised over.
VERSION = 3

# A card of 255 classes and 100 channels is some 60 KB; what claims more is not a card.
MAX_BYTES = 1 << 20
# Of the tiles that a network sees: a window of them with their borders takes a few GB, not more than there is.
MAX_SIDE = 4096
MAX_SOURCE, MAX_FILTERS = 1 << 14, 1 << 14
# Of validation tiles, as `rsp.shared.tileset.tiles_digest` writes it.
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelCard:
    """What a network is, what it takes and what it answers.

    Attributes:
        nn: The network, as `[model] nn` of the configuration names it.
        encoder: Its encoder, likewise.
        num_filters: Width of the decoder.
        channels: Where the input bands come from, in order, and how they are normalised.
        classes: The classes of the masks.
        tile_size: Side in pixels of the tiles that the network sees: others are brought to it.
        overlap: Pixels of the neighbouring tiles that prediction adds on each side.
        epoch: How many epochs it was trained for.
        epochs: How many the training was to have.
        metrics: What it reached on the validation tiles, as `iou`, `miou`, `mcc`, `loss`.
        versions: Of the libraries that made it.
        uuid: Follows from the weights: the same weights have the same.
        zoom: Of the tiles that it was trained on; None where they had several, or it is not known.
        validation: What the metrics were measured on: `rsp.shared.tileset.tiles_digest` of the validation tiles
            and their labels; None where it is not known. Metrics of models can be compared where it is equal.
        source_size: Side of the tiles of the training as they lay; None where it is not known.
        background: Whether the first class is the background.
        precision: What it was trained in, `float32` or `bfloat16`; None where it is not known.
        norm: What features are normalised over: `batch`, or `group` in place of it.
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
    source_size: int | None = None
    background: bool = True
    precision: str | None = None
    norm: str = "batch"
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
    def ignored(self) -> tuple[int, ...]:
        """The indices of the classes that it never answers, since their pixels taught it nothing."""
        return tuple(index for index, entry in enumerate(self.classes) if entry.ignore)

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
        return ModelConfig(
            nn=self.nn, encoder=self.encoder, pretrained=False, num_filters=self.num_filters, norm=self.norm
        )

    def other_network(self, config: Config) -> str | None:
        """Return in what the network is another than that of a configuration; None where it is the same."""
        for name, theirs, ours in (
            ("nn", self.nn, config.model.nn),
            ("encoder", self.encoder, config.model.encoder),
            ("num_filters", self.num_filters, config.model.num_filters),
            ("norm", self.norm, config.model.norm),
            ("bands", [list(c.bands) for c in self.channels], [list(c.bands) for c in config.channels]),
            ("classes", [c.title for c in self.classes], [c.title for c in config.classes]),
        ):
            if theirs != ours:
                return f"its {name} is {theirs}, the configuration has {ours}"
        return None

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
        try:
            return _card(data)
        except ConfigError as error:
            raise ModelError(str(error)) from error


def warn_of_zoom(card: ModelCard, zoom: int, where: object) -> None:
    """Print a warning where tiles are of another zoom than those that a model learnt from."""
    if card.zoom is not None and zoom != card.zoom:
        print(
            f"warning: {where} is of zoom {zoom}, and the model was trained on zoom {card.zoom}, where things are "
            f"{'smaller' if zoom > card.zoom else 'larger'}: its answers may be poor",
            file=sys.stderr,
        )


def library_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this project and of installed libraries, by name."""
    return {"rsp": __version__} | {name: version(name) for name in libraries}


# What came with a later version has the default "not known".
_CARD = (
    Key("version", "int", 0),
    Key("nn", "str"), Key("encoder", "str"), Key("num_filters", "count", high=MAX_FILTERS), Key("uuid", "str"),
    Key("tile_size", "count", high=MAX_SIDE), Key("overlap", "int", high=MAX_SIDE // 2),
    Key("epoch", "int"), Key("epochs", "int"),
    Key("channels", "rows"), Key("classes", "rows"), Key("metrics", "table"), Key("versions", "table"),
    Key("zoom", "int", None, high=MAX_ZOOM), Key("validation", "str", None),
    Key("source_size", "count", None, high=MAX_SOURCE), Key("background", "bool", True),
    Key("precision", "str", None), Key("norm", "str", "batch"),
)  # fmt: skip
_CHANNEL = (
    Key("name", "str"), Key("bands", "indices"), Key("mean", "floats"), Key("std", "floats"),
    Key("value_type", "str", None), Key("divisor", "positive", None), Key("kind", "str", "image"),
)  # fmt: skip
_CLASS = (
    Key("title", "str"), Key("color", "rgb"), Key("weight", "weight"), Key("transparent", "bool"),
    Key("ignore", "bool", False),
)  # fmt: skip


def _card(data: Any) -> ModelCard:
    """Return the card of parsed JSON; raise `ModelError` or `ConfigError` where it is not one."""
    where = "the model card"
    found = data.get("version", 0) if isinstance(data, dict) else 0
    if type(found) is int and found > VERSION:
        raise ModelError(
            f"{where} has version {found}, and this rsp ({__version__}) reads up to version {VERSION}: "
            "upgrade rsp to at least the version that wrote the model"
        )
    values = read_table(data, _CARD, where) | {"version": VERSION}
    if values["precision"] not in (None, "float32", "bfloat16"):
        raise ModelError(f"{where}: precision: expected float32, bfloat16, or null")
    if values["norm"] not in NORMS:
        raise ModelError(f"{where}: norm: expected one of {', '.join(NORMS)}")
    digest = values["validation"]
    if digest is not None and not DIGEST.fullmatch(digest):
        raise ModelError(f"{where}: validation: expected a SHA-256 digest of 64 hexadecimal digits, or null")
    for name, low, high in (("channels", 1, 1024), ("classes", 2, 255)):
        if not low <= len(values[name]) <= high:
            raise ModelError(f"{where}: {name}: expected {low} to {high} of them, got {len(values[name])}")
    values["channels"] = tuple(
        _channel(row, f"{where}: channel {number}") for number, row in enumerate(values["channels"], 1)
    )
    values["classes"] = tuple(
        _class(row, f"{where}: class {number}") for number, row in enumerate(values["classes"], 1)
    )
    check_classes(values["classes"], where)
    for name, kinds in (("metrics", (int, float, type(None))), ("versions", (str,))):
        if not all(type(value) in kinds for value in values[name].values()):
            raise ModelError(f"{where}: {name}: expected an object of plain values")
    values["metrics"] = {key: math.nan if value is None else value for key, value in values["metrics"].items()}
    return ModelCard(**values)


def _channel(row: Any, where: str) -> Channel:
    values = read_table(row, _CHANNEL, where)
    kind, divisor = values["value_type"], values["divisor"]
    if (kind is None) != (divisor is None):
        raise ModelError(f"{where}: value_type and divisor go together: expected both, or null for both")
    if kind is not None and kind not in VALUE_TYPES:
        raise ModelError(f"{where}: value_type: expected one of {', '.join(VALUE_TYPES)}")
    if kind == "float32" and divisor != 1:
        raise ModelError(f"{where}: divisor: expected 1 for float32")
    if values["kind"] == "auto":
        raise ModelError(f"{where}: kind: expected image or classes")
    if values["kind"] == "classes" and (kind, divisor) != ("uint8", 1):
        raise ModelError(f"{where}: a channel of classes holds uint8 values and has the divisor 1")
    return replace(make_channel(values, where), value_type=kind, divisor=divisor)


def _class(row: Any, where: str) -> ClassDef:
    values = read_table(row, _CLASS, where)
    return make_class(
        values["title"], values["color"], values["weight"], values["transparent"], values["ignore"], where
    )
