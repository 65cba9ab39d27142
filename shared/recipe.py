"""How a network is trained beyond `[model]`: the keys of `[train]` that have no earlier place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rsp.shared.errors import ConfigError
from rsp.shared.keys import key

PRECISIONS = ("auto", "float32", "bfloat16")
MOST_PROFILED = 200
SCHEDULES = ("cosine", "constant")
# Far more than any network learns from at once; what is cut for a crop has its side divided by the scale.
MOST_CROP = 4096
LEAST_SCALE, MOST_SCALE = 0.125, 8.0

# What the keys that may be left to the program hold until it knows the data set.
Auto = Literal["auto"]

# Crops of this side, in pixels, see what is around a house, and eight of them fit anywhere.
CROP = 256
SCALE = (0.75, 1.33)
# Batches of an epoch, at least: each ends with a validation and is saved, which should cost little beside it.
BATCHES = 100
# Of the learning rate for an encoder that has been trained already: the whole of it unlearns what it knows.
PRETRAINED_RATE = 0.1


@dataclass(frozen=True)
class Recipe:
    """What `[train]` of the configuration says, as it stands there."""

    precision: str = key(
        "auto", "str", "What the network computes in: `float32`, `bfloat16`, or `auto`: bfloat16 where the "
        "processor or the GPU has it. A training is resumed in the same."
    )  # fmt: skip
    crop: int | Auto = key(
        "auto", "auto_int", "Side in pixels of the random crops that it learns from, cut from tiles of `ts` "
        "across their borders; an epoch has as many as cover the tiles once. 0 takes whole tiles; `auto` is 256, "
        "or `ts` where that is less."
    )  # fmt: skip
    passes: int | Auto = key(
        "auto", "auto_count", "How often an epoch goes through the training tiles: more where there are few of "
        "them, since each epoch ends with a validation and is saved. `auto`: as often as makes 100 batches, and "
        "once where one pass has more."
    )  # fmt: skip
    scale: tuple[float, ...] | Auto = key(
        "auto", "measured", "The smallest and the largest factor by which a crop is enlarged, drawn at random. "
        "`auto` is `[0.75, 1.33]` for crops; whole tiles are not enlarged."
    )  # fmt: skip
    rotate: float = key(
        0.0, "weight", "The largest angle, in degrees, by which a crop is turned besides the moves of `da`."
    )
    cutmix: float = key(
        0.0,
        "fraction",
        "Probability that a rectangle of a crop is that of another (CutMix, arxiv.org/abs/1905.04899).",
    )
    balance: float = key(
        0.0, "fraction", "Fraction of the crops that are cut around a pixel of a rare class: of each but the most "
        "frequent class equally often."
    )  # fmt: skip
    weights: str | None = key(
        None, "str", "Name of a tile set in the training data that weighs pixels, as `rsp rasterize --weights` "
        "writes it."
    )  # fmt: skip
    weight_scale: float = key(4.0, "weight", "What a weight of 255 adds to the weight of a pixel, which is 1.")
    tile_weights: str | None = key(
        None, "str", "A CSV file of `x,y,z,weight`: how often tiles are drawn beside the others, which weigh 1."
    )
    classes_weights: str | None = key(
        None, "str", "`auto` measures weights of the classes on the labels, in place of those of `[[classes]]`."
    )
    label_smoothing: float = key(0.0, "fraction", "Part of a label that cross-entropy spreads over all classes.")
    hard: float = key(
        1.0, "fraction", "Part of the pixels of a batch, those of the highest loss, that cross-entropy and focal "
        "loss learn from (arxiv.org/abs/1604.03540), but at least 1024; 1: all."
    )  # fmt: skip
    ema: float = key(
        0.99, "fraction", "Decay of the moving average of the weights, which is what is kept; 0: none."
    )
    warmup: float = key(0.1, "fraction", "Fraction of the steps in which the learning rate climbs.")
    schedule: str = key("cosine", "str", "What the learning rate does then: `cosine` or `constant`.")
    clip: float = key(0.0, "weight", "Largest norm of the gradients; 0 leaves them as they are.")
    accumulate: int = key(1, "count", "Batches whose gradients are joined for one step.")
    patience: int = key(0, "int", "Epochs without a better one after which training stops; 0 goes on to the end.")
    encoder_rate: float | Auto = key(
        "auto", "auto_weight", "Factor of the learning rate for the encoder; `auto` is 0.1 where it is "
        "`pretrained`, and else 1."
    )  # fmt: skip
    layer_decay: float = key(
        1.0, "positive", "Factor of the rate from each stage of the encoder to the one before."
    )
    freeze: int = key(0, "int", "Stages of the encoder, from the input (its stem), that are not trained.")
    tensorboard: bool = key(
        False, "bool", "Write the metrics for TensorBoard, too, as an event file beside the history."
    )

    profile: int = key(
        0, "int", "Steps, after the first few, whose parts and operators are timed: the tables are in "
        "`profile.txt`, beside the log. 0: none."
    )  # fmt: skip

    def check(self, where: str) -> Recipe:
        """Return the recipe; raise `ConfigError` where a value is none of those that it can be."""
        for name, choices in (("precision", PRECISIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{where}: {name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.classes_weights not in (None, "auto"):
            raise ConfigError(f"{where}: classes_weights: expected auto, got {self.classes_weights!r}")
        scale = SCALE if self.scale == "auto" else self.scale
        if len(scale) != 2 or not LEAST_SCALE <= scale[0] <= scale[1] <= MOST_SCALE:
            raise ConfigError(
                f"{where}: scale: expected two factors from {LEAST_SCALE:g} to {MOST_SCALE:g}, the smaller first, "
                f"got {list(scale)}"
            )
        asked = {
            "scale": self.scale not in ("auto", (1.0, 1.0)),
            "rotate": self.rotate,
            "cutmix": self.cutmix,
            "balance": self.balance,
        }
        if not self.crop and any(asked.values()):
            name = next(name for name, value in asked.items() if value)
            raise ConfigError(
                f"{where}: {name} is about crops: give crop, their side in pixels, as half that of tiles (`ts`)"
            )
        if self.rotate > 180:
            raise ConfigError(f"{where}: rotate: expected degrees up to 180, got {self.rotate:g}")
        if self.crop != "auto" and self.crop % 32:
            raise ConfigError(f"{where}: crop: networks need a multiple of 32, got {self.crop}")
        if self.crop != "auto" and self.crop > MOST_CROP:
            raise ConfigError(f"{where}: crop: expected up to {MOST_CROP} pixels, got {self.crop}")
        if self.ema == 1:
            raise ConfigError(f"{where}: ema: 1 would keep the first weights for ever; expected a number below 1")
        if self.profile > MOST_PROFILED:
            raise ConfigError(
                f"{where}: profile: expected up to {MOST_PROFILED} steps, which say as much as more would, got "
                f"{self.profile}"
            )
        if self.hard == 0:
            raise ConfigError(
                f"{where}: hard: 0 leaves no pixel to learn from; expected a part above 0, 1 for all"
            )
        if self.label_smoothing == 1:
            raise ConfigError(f"{where}: label_smoothing: 1 leaves nothing of the labels; expected less")
        return self

    def settled(self, *, side: int, tiles: int, batch: int) -> Settled:
        """Return what is done to a data set: the same for the same tiles, on any number of processes.

        Args:
            side: Of the tiles, in pixels.
            tiles: How many there are to learn from.
            batch: Crops in a batch of all processes.
        """
        crop = min(CROP, side) if self.crop == "auto" else self.crop
        scale = self.scale
        if scale == "auto":
            scale = SCALE if crop else (1.0, 1.0)
        passes = self.passes
        if passes == "auto":
            # As few as have more crops than all but the last of the batches hold.
            passes = (BATCHES - 1) * batch * (crop or side) ** 2 // (tiles * side**2) + 1
        return Settled(**{**vars(self), "crop": crop, "scale": scale, "passes": passes})

    def rate_of_encoder(self, pretrained: bool) -> float:
        """Return the factor of the learning rate for the encoder, of a network that starts so."""
        if self.encoder_rate == "auto":
            return PRETRAINED_RATE if pretrained else 1.0
        return self.encoder_rate


@dataclass(frozen=True)
class Settled(Recipe):
    """A recipe for a known data set: nothing about its crops is left open."""

    crop: int = 0
    passes: int = 1
    scale: tuple[float, ...] = (1.0, 1.0)


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """Return the recipe of a table `[train]` that was read; other keys of it are left out."""
    return Recipe(**{name: values[name] for name in Recipe.__dataclass_fields__}).check(where)
