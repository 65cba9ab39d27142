"""The configuration file (`config.toml`): read in every form that users have, validated, and frozen.

`KEYS` says everything about every key: its spellings, type, default and meaning. The reader and
`docs/config.md` are both made from it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsp.shared.errors import ConfigError
from rsp.shared.keys import NO_DEFAULT, Key, describe_keys, key, keys_of, read_table
from rsp.shared.locations import Location, location, read_text
from rsp.shared.recipe import Auto, Recipe, recipe_of

# What the tiles of a channel hold.
KINDS = ("auto", "image", "classes")

# What networks normalise over.
NORMS = ("batch", "group")

# What other forms of the file call our loader.
LOADERS = {"semseg": "tiles", "semsegtiles": "tiles"}

# Side of a tile in pixels where nothing says another.
SIDE = 512

# What each table is about.
TABLES = {
    "channels": "Input of the network; written `[[channels]]`, once for each folder of tiles. Their bands are "
    "stacked in this order, which is how several images are fused.",
    "classes": "What a pixel can be; written `[[classes]]`, once for each. The first is the background, index 0. "
    "A white background is put before them where there is only one, and where none has the title `background` "
    "in a file of the form that leaves it out (one without `[dataset]`, `[train]`, `[auth]`, `model.name` and "
    "`model.background`).",
    "model": "The network, and how it is trained. Every key may be left out: what is done then learns from "
    "scratch, on a CPU or a GPU. A file of a form of RoboSat.pink, which has no `[train]` and says all of `nn`, "
    "`encoder`, `pretrained`, `loss`, `bs`, `lr` and `dap` here, means what it meant: Adam, flips, whole tiles, "
    "each once in an epoch, and no average of the weights.",
    "train": "The later place of the keys about training. What stands here is taken in place of `[model]`.",
    "dataset": "Places of data.",
    "auth": "Logins. Further keys, for providers of imagery, are not used.",
}


@dataclass(frozen=True)
class Channel:
    """Where some bands of the input come from, and how they are normalised.

    Attributes:
        name: Sub-folder of the data set that holds the tiles.
        bands: Those taken from the tiles, counted from 1, in order. Of tiles of classes they are the indices of
            the classes, from 0: each is a band that is 1 where the tile has this class, and 0 elsewhere.
        mean: Of each band, of values that were divided by `divisor`; empty where training is to measure it.
        std: Likewise.
        value_type: What a network was trained on, one of `rsp.shared.images.VALUE_TYPES`; None where that is not
            known, as in a configuration.
        divisor: What values were divided by in training; the largest value of their type where None.
        kind: What the tiles hold: `image`, `classes`, or `auto`, which training decides by the tiles.
    """

    name: str
    bands: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_type: str | None = None
    divisor: float | None = None
    kind: str = "image"


@dataclass(frozen=True)
class ClassDef:
    """A class of the masks; its index is its place in the list, 0 being the background.

    Pixels of a class to `ignore` teach nothing and count nowhere, as those of the label 255.
    """

    title: str
    color: tuple[int, int, int]
    weight: float = 1.0
    transparent: bool = False
    ignore: bool = False


# Of the tiny encoder and of what is not known; and of convolutional encoders with more layers.
OVERLAP, DEEP_OVERLAP = 128, 192


@dataclass(frozen=True)
class ModelConfig:
    """The network and how it is trained; `[model]` of the configuration."""

    nn: str = key("unet", "str", "Network: a built-in name, `module:attribute`, or a plug-in.", "name")
    encoder: str = key("tiny", "str", "Encoder: a built-in name, a hub id, or a local folder.")
    pretrained: bool = key(
        False,
        "bool",
        "Start from pretrained encoder weights, from the hub or a folder. There are none of `tiny`.",
    )
    num_filters: int = key(32, "count", "Width of the decoder.")
    norm: str = key(
        "batch",
        "str",
        "How features are normalised: `batch`, or `group` in place of it, which needs no other tiles: for batches "
        "of 1, and for several processes that exchange no statistics.",
    )
    ts: int | Auto = key(
        "auto",
        "auto_size",
        "Side in pixels of the tiles that the network sees; others are resized to it. `auto` is the side of the "
        "training tiles, to the next multiple of 32 and at most 1024, and 512 for tools that know no tiles.",
        "tile_size",
    )
    loss: str = key(
        "cross_entropy + dice",
        "str",
        "Loss: a built-in name, `module:attribute`, a plug-in, or a weighted sum of several: "
        "`cross_entropy + 0.5 dice`.",
    )
    bs: int = key(8, "count", "Tiles or crops in a batch, on each device.", "batch_size")
    lr: float = key(0.005, "positive", "Learning rate, at its highest; 0.002 where the optimizer is not Muon.")
    decay: float | None = key(
        None,
        "weight",
        "Weight decay, of all weights but biases and those of norms; where none is given, what torch gives the "
        "optimizer: 0.01 for AdamW and Muon, 0 for most others.",
    )
    da: str = key("color", "str", "Augmentation: a built-in name, `module:attribute`, or a plug-in.")
    dap: float = key(1.0, "fraction", "Probability that a tile or crop is augmented.", "data_augmentation")
    loader: str = key("tiles", "str", "Loader of the data set: a built-in name or a plug-in.")
    metrics: tuple[str, ...] = key(("iou", "mcc"), "strs", "Metrics shown for every epoch.")
    ms: int | None = key(
        None, "int",
        "Overlap into the neighbouring tiles in prediction, in pixels; at most half a tile is used. Where it is "
        "not given, it follows from the encoder: see docs/models.md.",
    )  # fmt: skip
    background: bool = key(
        True,
        "bool",
        "The first class is the background, which `iou` leaves out; false where every class counts. Where it is "
        "given, the list of classes is taken as it stands.",
    )
    # `[train] optimizer` sets these.
    optimizer: str = "Muon"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Side of a tile in pixels: `ts`, or 512 as long as no tile is known."""
        return SIDE if self.ts == "auto" else self.ts

    @property
    def overlap(self) -> int:
        """The overlap that is used: at most half a tile, as wider windows are mostly not of the tile.

        Multiples of 32 keep the grid on which the network halves the resolution where it is in one whole image.
        """
        return min(usual_overlap(self.nn, self.encoder) if self.ms is None else self.ms, self.side // 2)


def usual_overlap(nn: str, encoder: str) -> int:
    """Return how many pixels of the neighbours a network wants to see.

    With so many, fewer than one pixel in ten thousand is another than in one whole image, for tiles of 512 px:
    docs/models.md has what was measured. Networks with attention see all of a window, and so no overlap brings
    them there.
    """
    name = encoder.rpartition("/")[2].lower()
    deep = nn.lower() in ("unet", "albunet") and ("resnet" in name or "convnext" in name)
    return DEEP_OVERLAP if deep else OVERLAP


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
        Key("bands", "indices", NO_DEFAULT, "Bands taken from the tiles, counted from 1, in this order."),
        Key("kind", "str", "auto", "What the tiles hold: `image`; `classes`, as labels do, where `bands` are "
        "indices "
            "of classes, from 0, each of which becomes a band of 0 and 1; or `auto`: paletted tiles are "
            "classes, but "
            "colours where the bands are 1, 2, 3."),
        Key("mean", "measured", "auto", "Mean of each band, of values scaled to 0..1, as `rsp info` tells it; "
        "`auto` "
            "measures it on the training tiles, or keeps that of the checkpoint that is fine-tuned."),
        Key("std", "measured", "auto", "Standard deviation of each band, likewise."),
    ),
    "classes": (
        Key("title", "str", NO_DEFAULT, "Name of the class."),
        Key("color", "str", NO_DEFAULT, "A CSS3 colour name, `#RRGGBB`, or `transparent`."),
        Key("weight", "weight", 1.0, "Weight of the class in losses that take one."),
        Key("ignore", "bool", False, "Leave its pixels out of the loss and of every metric, as those of the "
        "label 255."),
    ),
    "model": keys_of(ModelConfig),
    "train": (
        Key("pretrained", "bool", None, "As `model.pretrained`, the later place of it."),
        Key("bs", "count", None, "As `model.bs`."),
        Key("loss", "str", None, "As `model.loss`."),
        Key("metrics", "strs", None, "As `model.metrics`."),
        Key("da", "table", None, "`{name=..., p=...}`: as `model.da` and `model.dap`."),
        Key("optimizer", "table", None, "`{name=\"AdamW\", lr=..., ...}`: an optimizer of `torch.optim`, or our "
            "`Muon`, which takes convolutions, and its arguments; where none is named, `Muon` from scratch and "
            "`AdamW` for what is pretrained."),
        *keys_of(Recipe),
    ),
}  # fmt: skip


# What [model] says in the forms of RoboSat.pink. What they cannot say, or may leave out, is as it was in them.
EARLIER = {"nn", "encoder", "pretrained", "loss", "bs", "lr", "dap"}
_EARLIER_MODEL = {"da": "flip", "ts": SIDE}
_EARLIER_RECIPE = {"crop": 0, "passes": 1, "scale": (1.0, 1.0), "ema": 0.0, "encoder_rate": 1.0}

# The learning rate where none is given, of all optimizers but the usual one.
RATE_OF_OTHERS = 0.002

# What the tables within [train] hold; further keys of the optimizer are its arguments.
_DA = (Key("name", "str", None), Key("p", "fraction", None))
_OPTIMIZER = (Key("name", "str", None), Key("lr", "positive", None))


@dataclass(frozen=True)
class Config:
    """A whole configuration."""

    channels: tuple[Channel, ...]
    classes: tuple[ClassDef, ...]
    model: ModelConfig
    dataset: Location | None = None
    pg_dsn: str | None = None
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """The plain palette: one colour a class, in order."""
        return [entry.color for entry in self.classes]


def find_config(path: str | Location | None) -> Location:
    """Return the configuration file to read: the argument, else `$RSP_CONFIG`, else `~/.rsp_config`.

    Raises:
        ConfigError: none of them is there.
    """
    if path:
        chosen, source = location(path), "--config"
    elif os.environ.get("RSP_CONFIG"):
        chosen, source = location(os.environ["RSP_CONFIG"]), "RSP_CONFIG"
    else:
        chosen, source = Path("~/.rsp_config"), "the default place"
    chosen = chosen.expanduser()
    if isinstance(chosen, Path) and not chosen.is_file():
        raise ConfigError(
            f"no configuration file {chosen} ({source}); give one with --config FILE or RSP_CONFIG "
            "(the project's config.toml is one to start from)"
        )
    return chosen


def load_config(path: str | Location | None = None) -> Config:
    """Find, read and validate the configuration.

    Raises:
        ConfigError: no file, no valid TOML, or a key, type or colour that is wrong; says which, and what was
            expected.
    """
    found = find_config(path)
    try:
        text = read_text(found, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {found}: {error}") from error
    return parse_config(parse_tables(text, str(found)), str(found))


def parse_tables(text: str, where: str = "the configuration") -> dict[str, Any]:
    """Return the tables of a configuration as they stand in it: TOML, or a JSON object with the same keys.

    Raises:
        ConfigError: it is neither.
    """
    try:
        # No TOML begins so.
        tables = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read the configuration {where}: {error}") from error
    assert isinstance(tables, dict)
    return tables


def parse_config(data: Mapping[str, Any], where: str = "the configuration") -> Config:
    """Validate the tables of a configuration; see `load_config`. Whole numbers may be written as 3.0."""
    unknown = sorted(set(data) - set(KEYS))
    if unknown:
        raise ConfigError(f"{where}: unknown table [{unknown[0]}]; expected one of {', '.join(KEYS)}")
    channels = [
        make_channel(read_table(row, KEYS["channels"], place), place)
        for row, place in _rows(data, "channels", where)
    ]
    classes = [
        _class(read_table(row, KEYS["classes"], place), place) for row, place in _rows(data, "classes", where)
    ]
    if not channels:
        raise ConfigError(f"{where}: no [[channels]]; expected at least one")
    if not classes:
        raise ConfigError(f"{where}: no [[classes]]; expected the background and at least one more")
    if _leaves_background_out(data, [entry.title.casefold() for entry in classes], where):
        classes.insert(0, ClassDef("background", (255, 255, 255)))
    check_classes(classes, where)
    dataset = read_table(data.get("dataset", {}), KEYS["dataset"], f"{where}: [dataset]")
    auth = read_table(data.get("auth", {}), KEYS["auth"], f"{where}: [auth]", others=True)
    place = f"{where}: [train]"
    train = read_table(data.get("train", {}), KEYS["train"], place)
    if _is_earlier(data):
        train |= _EARLIER_RECIPE
    return Config(
        channels=tuple(channels),
        classes=tuple(classes),
        model=_model(data, train, where),
        dataset=location(dataset["path"]).expanduser() if dataset["path"] else None,
        pg_dsn=auth["pg"] or dataset["pg_dsn"],
        recipe=recipe_of(train, place),
    )


def _leaves_background_out(data: Mapping[str, Any], titles: Sequence[str], where: str) -> bool:
    """Tell whether the classes are those of the form of the file that does not list the background."""
    model = data.get("model")
    if titles[0] == "background" or (isinstance(model, Mapping) and "background" in model):
        return False
    if "background" in titles:
        raise ConfigError(f"{where}: the class `background` must be the first of [[classes]]")
    oldest = isinstance(model, Mapping) and "name" in model  # it lists the background, under any title
    return len(titles) == 1 or not (oldest or {"dataset", "train", "auth"} & set(data))


def _is_earlier(data: Mapping[str, Any]) -> bool:
    """Tell whether a file is of a form of RoboSat.pink, by all that these say in `[model]`."""
    model = data.get("model")
    if "train" in data or not isinstance(model, Mapping):
        return False
    return _said(model) >= EARLIER


def _said(model: Mapping[str, Any]) -> set[str]:
    """Return the keys that stand in `[model]`, by our spelling."""
    return {key.name for key in KEYS["model"] if {key.name, *key.aliases} & set(model)}


def _rows(data: Mapping[str, Any], name: str, where: str) -> list[tuple[Any, str]]:
    """Return the tables of a name, each with what messages call it."""
    rows = data.get(name, [])
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: {name} is written [[{name}]], once for each, not [{name}]")
    return [(row, f"{where}: [[{name}]] {number}") for number, row in enumerate(rows, 1)]


def make_channel(values: Mapping[str, Any], where: str) -> Channel:
    """Return a channel of values of the right types; raise `ConfigError` where they do not fit together."""
    bands, kind = values["bands"], values["kind"]
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kind != "classes" and min(bands) < 1:
        raise ConfigError(
            f"{where}: bands: they are counted from 1, got {list(bands)}; the indices of classes begin with 0, "
            f"and are "
            'for tiles of kind = "classes"'
        )
    mean, std = (() if values[name] == "auto" else values[name] for name in ("mean", "std"))
    for name, numbers, other in (("mean", mean, "std"), ("std", std, "mean")):
        if numbers and len(numbers) != len(bands):
            raise ConfigError(f"{where}: {name} has {len(numbers)} numbers for {len(bands)} bands")
        if not numbers and values[other] != "auto":
            raise ConfigError(
                f"{where}: {other} is given and {name} is not: give both, or none to have them measured"
            )
    if std and min(std) <= 0:
        raise ConfigError(f"{where}: std must be above 0, got {list(std)}")
    name = values["name"]
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"{where}: name must be that of a plain folder, got {name!r}")
    return Channel(name, bands, mean, std, kind=kind)


def make_class(
    title: str, color: tuple[int, int, int], weight: float, transparent: bool, ignore: bool, where: str
) -> ClassDef:
    """Return a class; raise `ConfigError` where its title is empty, or of several lines."""
    if not title.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in title):
        raise ConfigError(f"{where}: title: expected a name in one line, got {title!r}")
    return ClassDef(title, color, weight, transparent, ignore)


def check_classes(classes: Sequence[ClassDef], where: str) -> None:
    """Raise `ConfigError` where two classes have one title, or a mask cannot hold so many."""
    if len({entry.title for entry in classes}) < len(classes):
        raise ConfigError(f"{where}: two [[classes]] have the same title")
    if len(classes) > 255:
        raise ConfigError(f"{where}: {len(classes)} classes; a mask of one byte a pixel holds 255")
    if sum(not entry.ignore for entry in classes) < 2:
        raise ConfigError(f"{where}: fewer than two [[classes]] are not ignored: nothing can be told apart")


def parse_classes(rows: Any, where: str) -> tuple[ClassDef, ...]:
    """Validate classes that stand elsewhere in the grammar of `[[classes]]`; raise `ConfigError`."""
    classes = tuple(
        _class(read_table(row, KEYS["classes"], place), place)
        for row, place in _rows({"classes": rows}, "classes", where)
    )
    if len(classes) < 2:
        raise ConfigError(f"{where}: {len(classes)} classes; expected the background and at least one more")
    check_classes(classes, where)
    return classes


def _class(values: dict[str, Any], where: str) -> ClassDef:
    from rsp.shared.images import parse_color  # Pillow: not needed by the tools that read no configuration

    transparent = values["color"].lower() == "transparent"
    try:
        color = (255, 255, 255) if transparent else parse_color(values["color"])
    except ConfigError as error:
        raise ConfigError(f"{where}: color: {error}") from None
    return make_class(values["title"], color, values["weight"], transparent, values["ignore"], where)


def _model(data: Mapping[str, Any], train: Mapping[str, Any], where: str) -> ModelConfig:
    """Join [model] and the later [train], which has been read."""
    model = read_table(data.get("model", {}), KEYS["model"], f"{where}: [model]")
    said = _said(data.get("model", {}))
    if _is_earlier(data):
        model |= {name: value for name, value in _EARLIER_MODEL.items() if name not in said}
        model["optimizer"] = "Adam"
    for name in ("pretrained", "bs", "loss", "metrics"):
        if train[name] is not None:
            model[name] = train[name]
    augmentation = read_table(train["da"] or {}, _DA, f"{where}: [train] da")
    optimizer = train["optimizer"] or {}
    found = read_table(optimizer, _OPTIMIZER, f"{where}: [train] optimizer", others=True)
    given = {
        "da": augmentation["name"], "dap": augmentation["p"], "lr": found["lr"], "optimizer": found["name"]
    }  # fmt: skip
    if model["pretrained"]:
        model.setdefault("optimizer", "AdamW")  # as they were pretrained, and by common practice
    model |= {name: value for name, value in given.items() if value is not None}
    usual = ModelConfig.optimizer
    if model.get("optimizer", usual) != usual and found["lr"] is None and "lr" not in said:
        model["lr"] = RATE_OF_OTHERS
    model["optimizer_options"] = {key: value for key, value in optimizer.items() if key not in found}
    if model["norm"] not in NORMS:
        raise ConfigError(f"{where}: [model] norm: expected one of {', '.join(NORMS)}, got {model['norm']!r}")
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
            *describe_keys(KEYS[name]),
            "",
        ]
    return "\n".join(lines)
