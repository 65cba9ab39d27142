"""What an epoch sees: which tiles, how often, and where in them crops are cut.

An epoch has as many crops as cover the area of the tiles as often as `passes` says. All of it follows from seed,
epoch and the number of the crop: the same on any number of processes, and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rsp.components.train.crops import Place
from rsp.shared.errors import ConfigError, CoverError
from rsp.shared.images import Mask
from rsp.shared.locations import location, read_text
from rsp.shared.metrics import Counts
from rsp.shared.recipe import Settled
from rsp.shared.tiles import Tile, tile_of

Weights = npt.NDArray[np.float64]

# Sets the draws of an epoch apart from those of its crops, [seed, epoch, number].
_ORDER = 1


class Sampler:
    """Says what the crops of an epoch are.

    Args:
        tiles: Those that are trained on.
        side: Of each of them, in pixels.
        recipe: Of it `crop`, `passes`, `scale`, `rotate` and `balance` are used.
        seed: Of all that is drawn.
        weights: (tiles,), how often each tile is drawn beside the others; None: all alike.
        counts: (tiles, classes), the pixels of each class, for `balance`; 0 for classes that are ignored.

    Attributes:
        count: How many crops an epoch has; without `crop`, how many tiles.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        side: int,
        recipe: Settled,
        seed: int,
        weights: Weights | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.tiles, self.side, self.recipe, self.seed, self.weights = tiles, side, recipe, seed, weights
        seen = len(tiles) * recipe.passes
        self.count = math.ceil(seen * side**2 / recipe.crop**2) if recipe.crop else seen
        self._rare = [] if counts is None else rare_classes(counts, weights)
        self._drawn: tuple[int, npt.NDArray[np.int64]] | None = None

    def tile(self, epoch: int, number: int) -> int:
        """Return the index of the tile that an item of an epoch is, or is cut around."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._draw(epoch)
        return int(self._drawn[1][number])

    def _draw(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the tile of each item: each as often as its weight wants it, but for a fraction."""
        rng = np.random.default_rng([self.seed, epoch, 0, _ORDER])
        order = rng.permutation(len(self.tiles))
        ends = np.cumsum(np.ones(len(order)) if self.weights is None else self.weights[order])
        points = (np.arange(self.count) + rng.random()) * (ends[-1] / self.count)
        # Rounding may put the last point beyond the end, where a tile of no weight might be.
        last = np.searchsorted(ends, ends[-1])
        drawn: npt.NDArray[np.int64] = order[np.minimum(np.searchsorted(ends, points, side="right"), last)]
        return drawn

    def place(self, epoch: int, number: int, rng: np.random.Generator, label: Callable[[Tile], Mask]) -> Place:
        """Draw where a crop is cut.

        Args:
            epoch: Which epoch.
            number: Which of its crops.
            rng: What it is drawn by.
            label: Returns the label of a tile, (side, side), where it is cut around a pixel of a rare class.
        """
        recipe = self.recipe
        low, high = recipe.scale
        scale = math.exp(rng.uniform(math.log(low), math.log(high))) if low < high else low
        angle = math.radians(rng.uniform(-recipe.rotate, recipe.rotate)) if recipe.rotate else 0.0
        x, y = (rng.random(2) * self.side).tolist()
        if self._rare and rng.random() < recipe.balance:
            index, ends = self._rare[int(rng.integers(len(self._rare)))]
            tile = self.tiles[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]
            pixels = np.flatnonzero(label(tile) == index)
            row, column = divmod(int(pixels[rng.integers(len(pixels))]), self.side)
            # Anywhere in the pixel.
            return Place(tile, column + x % 1, row + y % 1, scale, angle)
        return Place(self.tiles[self.tile(epoch, number)], x, y, scale, angle)


def rare_classes(counts: Counts, weights: Weights | None) -> list[tuple[int, Weights]]:
    """Return all classes that are there but the most frequent one.

    Args:
        counts: (tiles, classes), the pixels of each class.
        weights: (tiles,), how often each tile is drawn.

    Returns:
        Each with how many of its pixels, weighted, are in the tiles up to each one.
    """
    pixels = counts if weights is None else counts * weights[:, None]
    totals = pixels.sum(axis=0)
    there = [index for index in np.argsort(-totals, kind="stable").tolist() if totals[index] > 0]
    return [(index, np.cumsum(pixels[:, index], dtype=np.float64)) for index in sorted(there[1:])]


def read_tile_weights(path: str, tiles: Sequence[Tile]) -> tuple[Weights, list[str]]:
    """Read how often tiles are drawn beside the others.

    Args:
        path: Lines of `x,y,z,weight`, the first of which may name the columns.
        tiles: Those that are trained on; the ones that are not listed weigh 1.

    Returns:
        The weight of each tile, and notes.

    Raises:
        ConfigError: the file cannot be read, a line is not such a tile, or nothing is left to draw.
    """
    where = f"[train] tile_weights: {path}"
    try:
        text = read_text(location(path).expanduser(), encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read: {error}") from error
    found: dict[Tile, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = [field.strip() for field in line.replace("\t", ",").split(",")]
        if fields == [""] or (number == 1 and [field.lower() for field in fields[:3]] == ["x", "y", "z"]):
            continue
        place = f"{where}, line {number}"
        try:
            tile, weight = tile_of(",".join(fields[:3]), place), float(fields[3])
        except CoverError as error:
            raise ConfigError(str(error)) from error
        except (IndexError, ValueError):
            fields = []
        if len(fields) != 4:  # of five, the last two are a number with a decimal comma
            raise ConfigError(f"{place}: expected `x,y,z,weight`, got {line[:60]!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{place}: the weight is {fields[3]}; expected a number from 0")
        if tile is None or tile in found:
            raise ConfigError(f"{place}: the tile {','.join(fields[:3])} stands there twice")
        found[tile] = weight
    if not found:
        raise ConfigError(f"{where}: no tile is listed; expected lines of `x,y,z,weight`")
    weights = np.array([found.get(tile, 1.0) for tile in tiles])
    if not math.isfinite(sum(weights.tolist())):
        raise ConfigError(f"{where}: the weights are too large to be added up; only their ratios matter")
    if not weights.any():
        raise ConfigError(f"{where}: all training tiles weigh 0: nothing is left to learn from")
    others = len(found.keys() - set(tiles))
    notes = [f"{path}: {others} of {len(found)} tiles are not among the training tiles"] if others else []
    return weights, notes
