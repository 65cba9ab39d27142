"""Features on the ground as arrays: sorted, joined, and with the properties that they are written with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Order = tuple[int, int, tuple[float, ...], str, int]


class Features(NamedTuple):
    """Features on the ground, as arrays.

    Attributes:
        polygons: In degrees, rounded as they are written, outlines counter-clockwise.
        areas: In square metres of the ellipsoid.
        starts: x and y of the tile where each starts: of its tiles the northernmost, of these the westernmost.
            Shape (N, 2).
        tiles: How many tiles each lies in.
        sums: What the probabilities of its pixels sum to (255 is 1), and how many pixels that are; zeros where
            nobody asked. Shape (N, 2). Whole numbers: the mean is the same however a feature is cut.
        zoom: Zoom of the tiles.
        outlines: As traced, in pixels of the grid, of those that may meet others (see `rsp.shared.apart`), else
            None; None as a whole where that is so of all.
    """

    polygons: Objects
    areas: Floats
    starts: Integers
    tiles: Integers
    sums: Integers
    zoom: int
    outlines: Objects | None = None

    @classmethod
    def sorted(cls, some: Iterable[Features], zoom: int) -> Features:
        """Return those of several, sorted by `orders`."""
        none = no_sums(0)
        found = cls.joined([cls(np.empty(0, object), np.empty(0), none, none[:, 0], none, zoom), *some])
        return found.take(_order(found.polygons, found.starts, found.tiles))

    @classmethod
    def joined(cls, several: Sequence[Features]) -> Features:
        """Return those of several, of one zoom and at least one of them, one after another."""
        return cls(
            np.concatenate([one.polygons for one in several]), np.concatenate([one.areas for one in several]),
            np.concatenate([one.starts for one in several]), np.concatenate([one.tiles for one in several]),
            np.concatenate([one.sums for one in several]), several[0].zoom,
            np.concatenate([one._outlines() for one in several])
            if any(one.outlines is not None for one in several)
            else None,
        )  # fmt: skip

    def take(self, chosen: Flags | Integers | slice) -> Features:
        """Return some of them."""
        return Features(
            self.polygons[chosen], self.areas[chosen], self.starts[chosen], self.tiles[chosen], self.sums[chosen],
            self.zoom, None if self.outlines is None else self.outlines[chosen],
        )  # fmt: skip

    def divided(self) -> tuple[Features, Features]:
        """Return those that may meet others, which have outlines, and those that are finished."""
        if self.outlines is None:
            return self.take(slice(0, 0)), self
        held = np.array([outline is not None for outline in self.outlines], bool)
        return self.take(held), self.take(~held)

    def _outlines(self) -> Objects:
        return np.full(len(self.polygons), None, object) if self.outlines is None else self.outlines

    def properties(self, title: str, model: str | None = None) -> list[dict[str, Any]]:
        """Return the properties that they have as GeoJSON.

        Args:
            title: Of their class.
            model: What made the masks, where these tell.
        """
        areas = [{"area_m2": round(area, 2)} for area in self.areas.tolist()]
        return properties_of(self, title, areas, model)

    def orders(self) -> list[Order]:
        """Return what sorts each: the tile where it starts, its bounds, and what tells two apart at last."""
        bounds = shapely.bounds(self.polygons).tolist()
        return [
            (y, x, tuple(box), ending(polygon), tiles)
            for (x, y), box, polygon, tiles in zip(
                self.starts.tolist(), bounds, self.polygons, self.tiles.tolist(), strict=True
            )
        ]


def _order(polygons: Objects, starts: Integers, tiles: Integers) -> Integers:
    """Return the places of features as `Features.orders` sorts them."""
    keys = np.column_stack([starts[:, ::-1], shapely.bounds(polygons)])
    return ordered(keys, lambda place: (ending(polygons[place]), int(tiles[place])))


def ordered(keys: Floats, last: Callable[[int], tuple[Any, ...]]) -> Integers:
    """Return the places of rows of keys, sorted by them.

    Args:
        keys: The first column is the most important one.
        last: What tells apart, by their places, those whose keys are the same: it may take long, as these are few.
    """
    order = np.lexsort(keys.T[::-1])
    alike = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    if alike.any():
        groups = np.cumsum(np.append(True, ~alike))
        some = np.flatnonzero(np.append(False, alike) | np.append(alike, False))
        found = {
            place: (group, last(order[place]))
            for place, group in zip(some.tolist(), groups[some].tolist(), strict=True)
        }
        order[some] = order[sorted(found, key=found.__getitem__)]
    return order


def ending(polygon: Polygon) -> str:
    """Return what tells a geometry from others that are alike but for their vertices."""
    return hashlib.blake2b(shapely.to_wkb(polygon), digest_size=8).hexdigest()


class Placed(Protocol):
    """Features of any kind: where they are, and what the probabilities of their pixels sum to."""

    @property
    def starts(self) -> Integers: ...
    @property
    def tiles(self) -> Integers: ...
    @property
    def sums(self) -> Integers: ...
    @property
    def zoom(self) -> int: ...


def properties_of(
    some: Placed, title: str, measures: Iterable[dict[str, float]], model: str | None
) -> list[dict[str, Any]]:
    """Return the properties that features have as GeoJSON, what was measured of each among them."""
    told = {} if model is None else {"model": model}
    places = zip(some.starts.tolist(), some.tiles.tolist(), measures, some.sums.tolist(), strict=True)
    return [
        {"class": title, "x": x, "y": y, "z": some.zoom, "tiles": tiles}
        | measured
        | ({"probability": round(total / (255 * pixels), 3)} if pixels else {})
        | told
        for (x, y), tiles, measured, (total, pixels) in places
    ]


def no_sums(count: int) -> Integers:
    """Return the sums of so many features of which no probabilities were asked for."""
    return np.zeros((count, 2), np.int64)
