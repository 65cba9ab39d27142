"""Several models, or one that sees each window turned and mirrored: the mean of their probabilities.

The mean is taken in float32, over the models in the order of their UUIDs and over the turns in one order, so it is
the same for every order in which models are named and for any number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rsp.shared.classes import class_index
from rsp.shared.errors import UsageError
from rsp.shared.images import Array, Mask
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.encoded import probability_bytes
from rsp.shared.learning.inference import Predictor, Scores, classes_of
from rsp.shared.locations import Location

Turns = Literal["none", "flips", "d4"]
# What is done to a window: mirrored from left to right or not, and then turned by so many quarters.
TURNS: dict[Turns, tuple[tuple[bool, int], ...]] = {
    "none": ((False, 0),),
    "flips": ((False, 0), (True, 0), (True, 2), (False, 2)),
    "d4": tuple((mirrored, quarters) for mirrored in (False, True) for quarters in range(4)),
}


class Answered(NamedTuple):
    """What a model says of a tile.

    Attributes:
        mask: The class of each pixel, shape (height, width).
        probabilities: The probability of each class as `probability_bytes`, shape (classes, height, width); None
            where they were not asked for.
    """

    mask: Mask
    probabilities: npt.NDArray[np.uint8] | None = None


class Ensemble:
    """One model or several on one device.

    Args:
        predictors: The models; `join_cards` takes their cards.
        turns: In which ways each of them sees a window.
        thresholds: Of class indices; see `make_thresholds`.
    """

    def __init__(
        self, predictors: Sequence[Predictor], turns: Turns = "none", thresholds: Mapping[int, float] | None = None
    ) -> None:
        self.predictors = sorted(predictors, key=lambda predictor: predictor.card.uuid)
        self.turns, self.thresholds = TURNS[turns], dict(thresholds or {})
        self.device, self.batch_size = predictors[0].device, predictors[0].batch_size

    def too_small(self, height: int, width: int) -> Predictor | None:
        """Return a model that does not take windows of this size, which only exported ones may not; or None."""
        return next((each for each in self.predictors if not each.fits(height, width)), None)

    def answers(self, windows: Sequence[Array], overlap: int, *, probabilities: bool = False) -> list[Answered]:
        """Answer windows.

        Args:
            windows: As `Predictor.masks` takes them.
            overlap: Width of their borders.
            probabilities: Answer with the probabilities, too.
        """
        if len(self.predictors) == len(self.turns) == 1 and not self.thresholds:
            (one,) = self.predictors
            if not probabilities:
                return [Answered(mask) for mask in one.masks(windows, overlap)]
            found = one.masks_and_probabilities(windows, overlap)
            return [Answered(mask, probability_bytes(scores)) for mask, scores in found]
        return [
            Answered(self._decided(scores), probability_bytes(scores) if probabilities else None)
            for scores in self._means(windows, overlap)
        ]

    def _means(self, windows: Sequence[Array], overlap: int) -> list[Scores]:
        """Return the mean probability of each class, shape (classes, height, width), of each window."""
        sums: list[Scores] = []
        for predictor in self.predictors:
            for mirrored, quarters in self.turns:
                seen = [_turned(window, mirrored, quarters) for window in windows]
                scores = predictor.probabilities(seen, overlap)
                back = [_turned_back(each, mirrored, quarters) for each in scores]
                if sums:
                    for total, each in zip(sums, back, strict=True):
                        total += each
                else:
                    sums = [each.copy() for each in back]
        count = np.float32(len(self.predictors) * len(self.turns))
        return [total / count for total in sums]

    def _decided(self, scores: Scores) -> Mask:
        if self.thresholds:
            return decide(scores, self.thresholds, self.predictors[0].card.ignored)
        mask: Mask = classes_of(torch.from_numpy(scores)[None])[0].numpy()
        return mask


def _turned(image: npt.NDArray[Any], mirrored: bool, quarters: int) -> npt.NDArray[Any]:
    """Turn an image of shape (height, width, bands)."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, quarters))


def _turned_back(scores: Scores, mirrored: bool, quarters: int) -> Scores:
    """Undo `_turned` on what was answered, shape (classes, height, width)."""
    straight = np.rot90(scores, -quarters, axes=(1, 2))
    return straight[:, :, ::-1] if mirrored else straight


def decide(probabilities: Scores, thresholds: Mapping[int, float], ignored: Sequence[int] = ()) -> Mask:
    """Choose the class of each pixel where some classes have thresholds.

    A class that has one is chosen where its probability is at least that; of several that reach theirs, the one
    that is the most times above it, and of equal ones the first. Where none does, the most probable class of those
    without a threshold is chosen.

    Args:
        probabilities: Shape (classes, height, width).
        thresholds: By class index.
        ignored: Classes that are never chosen.
    """
    left = [index for index in range(len(probabilities)) if index not in thresholds and index not in ignored]
    mask = np.asarray(left, np.uint8)[probabilities[left].argmax(axis=0)]
    best = np.zeros(mask.shape, np.float32)
    for index, least in sorted(thresholds.items()):
        times = probabilities[index] / np.float32(least)
        chosen = (probabilities[index] >= np.float32(least)) & (times > best)
        mask[chosen] = index
        best[chosen] = times[chosen]
    return mask


def make_thresholds(card: ModelCard, given: float | Mapping[str, float] | None) -> dict[int, float]:
    """Return thresholds by class index.

    Args:
        card: Of the model.
        given: By title; or one number, of the one class that is not the background.

    Raises:
        ConfigError: no such class.
        UsageError: a threshold that is not above 0 and below 1, one for all of many classes, or one of a class
            that has to be without: the background, and classes that are never answered.
    """
    if given is None:
        return {}
    alone = [each.title for index, each in enumerate(card.classes) if index not in card.ignored][1:]
    if not isinstance(given, Mapping):
        if len(alone) != 1 or not card.background:
            raise UsageError(
                f"--threshold {given:g} is for models of one class and a background; say of which of the classes "
                f"({', '.join(each.title for each in card.classes)}) it is, as --threshold {alone[-1]}={given:g}"
            )
        given = {alone[0]: given}
    found: dict[int, float] = {}
    for title, value in given.items():
        index = class_index(card.classes, title)
        if not 0 < value < 1:
            raise UsageError(f"--threshold {title}={value:g}: expected a probability above 0 and below 1")
        if index == 0 and card.background:
            raise UsageError(
                f"--threshold {title}={value:g}: the background takes what no other class reaches; give the "
                "thresholds of the others"
            )
        if index in card.ignored:
            raise UsageError(f"--threshold {title}={value:g}: the model never answers this class")
        found[index] = float(value)
    if len(found) == card.num_classes - len(card.ignored):
        raise UsageError("--threshold: one class at least has to be without, for where none reaches its own")
    return found


def join_cards(cards: Sequence[tuple[Location, ModelCard]]) -> ModelCard:
    """Return the card of an ensemble: that of its models, with the largest overlap, and all UUIDs.

    Args:
        cards: Where the models are, and their cards.

    Raises:
        UsageError: two are the same model, or they do not take the same tiles and tell the same classes apart.
    """
    (first, card), *others = cards
    seen = {card.uuid: first}
    for path, other in others:
        if other.uuid in seen:
            raise UsageError(f"--checkpoint {path} is the same model as {seen[other.uuid]}: give each once")
        seen[other.uuid] = path
        for what, theirs, ours in zip(_SHARED, _shared(other), _shared(card), strict=True):
            if theirs != ours:
                raise UsageError(
                    f"{path} and {first} cannot answer together: the first has the {what} {theirs}, the second "
                    f"{ours}"
                )
    if not others:
        return card
    every = [each for _, each in cards]
    return replace(
        card,
        overlap=max(each.overlap for each in every),
        uuid=",".join(sorted(seen)),
        zoom=card.zoom if len({each.zoom for each in every}) == 1 else None,
    )


# What models of an ensemble have in common. Means and deviations each may have its own.
_SHARED = ("classes", "background", "channels", "types of values", "tile_size")


def _shared(card: ModelCard) -> tuple[Any, ...]:
    return (
        [(each.title, "ignored") if each.ignore else each.title for each in card.classes],
        card.background,
        [(each.name, list(each.bands), each.kind) for each in card.channels],
        [(each.value_type, each.divisor) for each in card.channels],
        card.tile_size,
    )
