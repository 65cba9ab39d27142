"""The configuration file (`config.toml`): read in every form that users have, validated, and frozen.

`KEYS` says everything about every key: its spellings, type, default and meaning. The reader and
`docs/config.md` are both made from it.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsp.shared.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NO_DEFAULT: Any = object()


@dataclass(frozen=True)
class Key:
    """One key of the file.

    Attributes:
        name: How we spell it (the spelling of the newest form).
        kind: What it holds; one of `EXPECTED`.
        default: The value where the key is missing; `NO_DEFAULT` where it must be there.
        text: What it means.
        aliases: Other spellings, read the same.
    """

    name: str
    kind: str
    default: Any
    text: str
    aliases: tuple[str, ...] = ()


# What each kind of key holds, in words.
EXPECTED = {
    "bool": "true or false",
    "str": "a text",
    "int": "a whole number, 0 or more",
    "count": "a whole number, 1 or more",
    "float": "a number",
    "positive": "a number above 0",
    "share": "a number from 0 to 1",
    "weight": "a number, 0 or more",
    "size": "a positive whole number, or two equal ones",
    "ints": "a list of whole numbers from 1",
    "floats": "a list of numbers",
    "strs": "a list of texts",
    "table": "a table",
}

# What other forms of the file call our loader.
LOADERS = {"semseg": "tiles", "semsegtiles": "tiles"}

# What each table is about.
TABLES = {
    "channels": "Input of the network; written `[[channels]]`, once for each folder of tiles. Their bands are "
    "stacked in this order, which is how several images are fused.",
    "classes": "What a pixel can be; written `[[classes]]`, once for each. The first is the background, index 0. "
    "A white background is put before them where there is only one, and where none has the title `background` "
    "in a file of the form that leaves it out (one without `[dataset]`, `[train]`, `[auth]` and `model.name`).",
    "model": "The network, and how it is trained.",
    "train": "The later place of the keys about training. What stands here is taken in place of `[model]`.",
    "dataset": "Places of data.",
    "auth": "Logins. Further keys, for providers of imagery, are not used.",
}

KEYS: dict[str, tuple[Key, ...]] = {
    "dataset": (
        Key("path", "str", None, "Folder of the data set that `train` reads (`--dataset` overrides it)."),
        Key("pg_dsn", "str", None, "PostGIS connection, without a password: that stands in `~/.pgpass` or "
            "`PGPASSWORD`."),
    ),
    "auth": (
        Key("pg", "str", None, "PostGIS connection, the later spelling of `dataset.pg_dsn`."),
    ),
    "channels": (
        Key("name", "str", NO_DEFAULT, "Sub-folder of the data set that holds this channel's tiles.", ("sub",)),
        Key("bands", "ints", NO_DEFAULT, "Bands taken from the tiles, counted from 1, in this order."),
        Key("mean", "floats", None, "Mean of each band, of values scaled to 0..1. Default: ImageNet's for three "
            "bands, else 0.5."),
        Key("std", "floats", None, "Standard deviation of each band, likewise. Default: ImageNet's, else 0.25."),
    ),
    "classes": (
        Key("title", "str", NO_DEFAULT, "Name of the class."),
        Key("color", "str", NO_DEFAULT, "A CSS3 colour name, `#RRGGBB`, or `transparent`."),
        Key("weight", "weight", 1.0, "Weight of the class in losses that take one."),
    ),
    "model": (
        Key("nn", "str", "unet", "Network: a built-in name, `module:attribute`, or a plug-in.", ("name",)),
        Key("encoder", "str", "resnet50", "Encoder: a built-in name, a hub id, or a local folder."),
        Key("pretrained", "bool", True, "Start from pretrained encoder weights (from the hub or a folder)."),
        Key("num_filters", "count", 32, "Width of the decoder."),
        Key("ts", "size", 512, "Side of a tile in pixels.", ("tile_size",)),
        Key("loss", "str", "lovasz", "Loss: a built-in name, `module:attribute`, or a plug-in."),
        Key("bs", "count", 2, "Tiles in a batch, on each device.", ("batch_size",)),
        Key("lr", "positive", 0.000025, "Learning rate. Take about 1e-4 or more without pretrained weights."),
        Key("decay", "weight", 0.0, "Weight decay."),
        Key("da", "str", "flip", "Augmentation: a built-in name, `module:attribute`, or a plug-in."),
        Key("dap", "share", 0.75, "Probability that a tile is augmented.", ("data_augmentation",)),
        Key("loader", "str", "tiles", "Loader of the data set: a built-in name or a plug-in."),
        Key("metrics", "strs", ("iou", "mcc"), "Metrics shown for every epoch."),
        Key("ms", "int", 64, "Overlap into the neighbouring tiles in prediction, in pixels."),
    ),
    "train": (
        Key("pretrained", "bool", None, "As `model.pretrained`, the later place of it."),
        Key("bs", "count", None, "As `model.bs`."),
        Key("loss", "str", None, "As `model.loss`."),
        Key("metrics", "strs", None, "As `model.metrics`."),
        Key("da", "table", None, "`{name=..., p=...}`: as `model.da` and `model.dap`."),
        Key("optimizer", "table", None, "`{name=\"Adam\", lr=..., ...}`: an optimizer of `torch.optim` and its "
            "arguments."),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Channel:
    """Where some bands of the input come from, and how they are normalised.

    Attributes:
        name: Sub-folder of the data set that holds the tiles.
        bands: Those taken from the tiles, counted from 1, in order.
        mean: Of each band, of values that were divided by `divisor`.
        std: Likewise.
        value_type: What a network was trained on, one of `rsp.shared.images.VALUE_TYPES`; None where that is not
            known, as in a configuration.
        divisor: What values were divided by in training; the largest value of their type where None.
    """

    name: str
    bands: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_type: str | None = None
    divisor: float | None = None


@dataclass(frozen=True)
class ClassDef:
    """A class of the masks; its index is its place in the list, 0 being the background."""

    title: str
    color: tuple[int, int, int]
    weight: float = 1.0
    transparent: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The network and how it is trained; `KEYS["model"]` says what each field means."""

    nn: str = "unet"
    encoder: str = "resnet50"
    pretrained: bool = True
    num_filters: int = 32
    ts: int = 512
    loss: str = "lovasz"
    bs: int = 2
    lr: float = 0.000025
    decay: float = 0.0
    da: str = "flip"
    dap: float = 0.75
    loader: str = "tiles"
    metrics: tuple[str, ...] = ("iou", "mcc")
    ms: int = 64
    optimizer: str = "Adam"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A whole configuration."""

    channels: tuple[Channel, ...]
    classes: tuple[ClassDef, ...]
    model: ModelConfig
    dataset: Path | None = None
    pg_dsn: str | None = None

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """The plain palette: one colour a class, in order."""
        return [entry.color for entry in self.classes]

    def class_index(self, title: str) -> int:
        """Return the index of the class of this title; raise `ConfigError` where there is none."""
        titles = [entry.title for entry in self.classes]
        if title not in titles:
            raise ConfigError(f"no class {title!r} in the configuration; it has {', '.join(titles)}")
        return titles.index(title)


def find_config(path: str | Path | None) -> Path:
    """Return the configuration file to read: the argument, else `$RSP_CONFIG`, else `~/.rsp_config`.

    Raises:
        ConfigError: none of them is there.
    """
    if path:
        chosen, source = Path(path), "--config"
    elif os.environ.get("RSP_CONFIG"):
        chosen, source = Path(os.environ["RSP_CONFIG"]), "RSP_CONFIG"
    else:
        chosen, source = Path("~/.rsp_config"), "the default place"
    chosen = chosen.expanduser()
    if not chosen.is_file():
        raise ConfigError(
            f"no configuration file {chosen} ({source}); give one with --config FILE or RSP_CONFIG "
            "(the project's config.toml is one to start from)"
        )
    return chosen


def load_config(path: str | Path | None = None) -> Config:
    """Find, read and validate the configuration.

    Raises:
        ConfigError: no file, no valid TOML, or a key, type or colour that is wrong; says which, and what was
            expected.
    """
    found = find_config(path)
    try:
        data = tomllib.loads(found.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {found}: {error}") from error
    return parse_config(data, str(found))


def parse_config(data: Mapping[str, Any], where: str = "the configuration") -> Config:
    """Validate the parsed TOML of a configuration; see `load_config`."""
    unknown = sorted(set(data) - set(KEYS))
    if unknown:
        raise ConfigError(f"{where}: unknown table [{unknown[0]}]; expected one of {', '.join(KEYS)}")
    channels = [
        _channel(_table(row, "channels", f"{where}: [[channels]] {number}"), f"{where}: [[channels]] {number}")
        for number, row in enumerate(_rows(data, "channels", where), 1)
    ]
    classes = [
        _class(_table(row, "classes", f"{where}: [[classes]] {number}"), f"{where}: [[classes]] {number}")
        for number, row in enumerate(_rows(data, "classes", where), 1)
    ]
    if not channels:
        raise ConfigError(f"{where}: no [[channels]]; expected at least one")
    if not classes:
        raise ConfigError(f"{where}: no [[classes]]; expected the background and at least one more")
    if _leaves_background_out(data, [entry.title.casefold() for entry in classes], where):
        classes.insert(0, ClassDef("background", (255, 255, 255)))
    titles = [entry.title for entry in classes]
    if len(set(titles)) < len(titles):
        raise ConfigError(f"{where}: two [[classes]] have the same title")
    if len(classes) > 255:
        raise ConfigError(f"{where}: {len(classes)} classes; a mask of one byte a pixel holds 255")
    dataset = _table(data.get("dataset", {}), "dataset", f"{where}: [dataset]")
    auth = _table(data.get("auth", {}), "auth", f"{where}: [auth]")
    return Config(
        channels=tuple(channels),
        classes=tuple(classes),
        model=_model(data, where),
        dataset=Path(dataset["path"]).expanduser() if dataset["path"] else None,
        pg_dsn=auth["pg"] or dataset["pg_dsn"],
    )


def _leaves_background_out(data: Mapping[str, Any], titles: Sequence[str], where: str) -> bool:
    """Tell whether the classes are those of the form of the file that does not list the background."""
    if titles[0] == "background":
        return False
    if "background" in titles:
        raise ConfigError(f"{where}: the class `background` must be the first of [[classes]]")
    model = data.get("model")
    oldest = isinstance(model, Mapping) and "name" in model  # it lists the background, under any title
    return len(titles) == 1 or not (oldest or {"dataset", "train", "auth"} & set(data))


def _rows(data: Mapping[str, Any], name: str, where: str) -> list[Any]:
    rows = data.get(name, [])
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: {name} is written [[{name}]], once for each, not [{name}]")
    return rows


def _table(row: Any, name: str, where: str) -> dict[str, Any]:
    """Return the values of a table under our spelling, each of the right type, defaults filled in."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: expected a table, got {type(row).__name__}")
    keys = KEYS[name]
    spellings = {spelling: key for key in keys for spelling in (key.name, *key.aliases)}
    values: dict[str, Any] = {}
    for spelling, value in row.items():
        key = spellings.get(spelling)
        if key is None and name == "auth":
            continue
        if key is None:
            raise ConfigError(f"{where}: unknown key {spelling!r}; expected one of {', '.join(spellings)}")
        if key.name in values:
            raise ConfigError(f"{where}: {spelling!r} is {key.name!r} once more; keep one of them")
        values[key.name] = _typed(value, key.kind, f"{where}: {spelling}")
    for key in keys:
        if key.name not in values and key.default is NO_DEFAULT:
            raise ConfigError(f"{where}: the key {key.name!r} is missing: {key.text}")
        values.setdefault(key.name, key.default)
    return values


def _typed(value: Any, kind: str, where: str) -> Any:
    """Return a value as the type of its key, or raise `ConfigError` that names what was expected."""
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    match kind, value:
        case ("bool", bool()) | ("str", str()):
            return value
        case "int" | "count" | "size", int() if number and value >= (0 if kind == "int" else 1):
            return value
        case "float" | "positive" | "share" | "weight", int() | float() if number and _in_range(kind, value):
            return float(value)
        case "size", [int(width), int(height)] if width == height > 0:
            return width
        case "ints", list() if value and all(type(item) is int and item > 0 for item in value):
            return tuple(value)
        case "floats", list() if value and all(
            type(item) in (int, float) and math.isfinite(item) for item in value
        ):
            return tuple(map(float, value))
        case "strs", list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case "table", Mapping():
            return dict(value)
    raise ConfigError(f"{where}: expected {EXPECTED[kind]}, got {value!r}")


def _in_range(kind: str, value: float) -> bool:
    return {"float": True, "positive": value > 0, "share": 0 <= value <= 1, "weight": value >= 0}[kind]


def _channel(values: dict[str, Any], where: str) -> Channel:
    bands = values["bands"]
    rgb = len(bands) == 3
    mean = values["mean"] or (IMAGENET_MEAN if rgb else (0.5,) * len(bands))
    std = values["std"] or (IMAGENET_STD if rgb else (0.25,) * len(bands))
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != len(bands):
            raise ConfigError(f"{where}: {name} has {len(numbers)} numbers for {len(bands)} bands")
    if min(std) <= 0:
        raise ConfigError(f"{where}: std must be above 0, got {list(std)}")
    name = values["name"]
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"{where}: name must be that of a plain folder, got {name!r}")
    return Channel(name, bands, mean, std)


def _class(values: dict[str, Any], where: str) -> ClassDef:
    from rsp.shared.images import parse_color  # Pillow: not needed by the tools that read no configuration

    if not values["title"].strip():
        raise ConfigError(f"{where}: title: expected a name, got {values['title']!r}")
    transparent = values["color"].lower() == "transparent"
    try:
        color = (255, 255, 255) if transparent else parse_color(values["color"])
    except ConfigError as error:
        raise ConfigError(f"{where}: color: {error}") from None
    return ClassDef(values["title"], color, values["weight"], transparent)


def _model(data: Mapping[str, Any], where: str) -> ModelConfig:
    """Join [model] and the later [train]."""
    model = _table(data.get("model", {}), "model", f"{where}: [model]")
    train = _table(data.get("train", {}), "train", f"{where}: [train]")
    for name in ("pretrained", "bs", "loss", "metrics"):
        if train[name] is not None:
            model[name] = train[name]
    augmentation = train["da"] or {}
    unknown = sorted(set(augmentation) - {"name", "p"})
    if unknown:
        raise ConfigError(f"{where}: [train] da: unknown key {unknown[0]!r}; expected one of name, p")
    model["da"] = _typed(augmentation.get("name", model["da"]), "str", f"{where}: [train] da.name")
    model["dap"] = _typed(augmentation.get("p", model["dap"]), "share", f"{where}: [train] da.p")
    optimizer = dict(train["optimizer"] or {})
    model["optimizer"] = _typed(optimizer.pop("name", "Adam"), "str", f"{where}: [train] optimizer.name")
    model["lr"] = _typed(optimizer.pop("lr", model["lr"]), "positive", f"{where}: [train] optimizer.lr")
    model["optimizer_options"] = optimizer
    model["loader"] = LOADERS.get(model["loader"].lower(), model["loader"])
    return ModelConfig(**model)


def describe() -> str:
    """Return every table and key as Markdown, for `docs/config.md`."""
    lines = []
    for name, text in TABLES.items():
        title = f"[[{name}]]" if name in ("channels", "classes") else f"[{name}]"
        lines += [
            f"## `{title}`",
            "",
            text,
            "",
            "| key | also | holds | default | meaning |",
            "|---|---|---|---|---|",
        ]
        for key in KEYS[name]:
            also = ", ".join(f"`{alias}`" for alias in key.aliases)
            lines.append(f"| `{key.name}` | {also} | {EXPECTED[key.kind]} | {_shown(key.default)} | {key.text} |")
        lines.append("")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    """Return a default as TOML writes it."""
    if default is NO_DEFAULT:
        return "(must be given)"
    if default is None:
        return ""
    if isinstance(default, float):
        return f"`{default:.6f}`".replace("000`", "`") if 0 < default < 1e-3 else f"`{default}`"
    return f"`{json.dumps(default)}`"
