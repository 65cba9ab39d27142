"""Where anything can be said: the tiles that there are, and what of objects lies in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import shapely

from rsp.components.changes.layer import Flags, Floats, Integers, Layer, Objects
from rsp.shared.covers import Cover
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.tilekeys import Keys, among, columns

# Objects that lie in more tiles are looked up tile by tile of the area, not of their own.
WIDE = 1 << 12
# Objects and tiles that are worked on at once.
MANY = 1 << 16
# How near to a missing tile an object is cut by it, as a share of the side of a tile: a pixel of 256. Outlines of
# masks may have moved so far from the edge of their tile when they were simplified.
NEAR = 1 / 256
# A share of an object that is rounding: coordinates have seven decimals in files.
ROUNDING = 1e-4


class Area:
    """Tiles of one zoom.

    Attributes:
        zoom: Their zoom.
        side: How long the side of a tile is, in metres of EPSG:3857.
        keys: The tiles, sorted (see `rsp.shared.tilekeys`).
    """

    def __init__(self, cover: Cover) -> None:
        self.zoom = cover.zoom()
        self.keys = cover.keys(self.zoom)
        self.side = AROUND / (1 << self.zoom)

    def boxes(self, keys: Keys) -> Objects:
        """Return tiles as polygons in metres of EPSG:3857."""
        x, y = columns(keys)
        west, north = x * self.side - HALF, HALF - y * self.side
        return np.asarray(shapely.box(west, north - self.side, west + self.side, north))

    def reach(self, polygons: Objects, beyond: float = 0.0) -> Integers:
        """Return the first and last column and row of tiles that polygons may meet, shape (n, 4).

        Args:
            polygons: In metres of EPSG:3857.
            beyond: So many metres around them count, too.
        """
        west, south, east, north = shapely.bounds(polygons).T
        places = np.stack(
            [west - beyond + HALF, HALF - north - beyond, east + beyond + HALF, HALF - south + beyond]
        )
        return np.clip(np.floor(places / self.side), -1, 1 << self.zoom).astype(np.int64).T

    def tiles(self, reach: Integers) -> Iterator[tuple[Integers, Keys]]:
        """Yield pairs of objects, given by where they reach, and tiles of the area that they may meet."""
        for objects, keys in _expanded(reach):
            there = among(keys, self.keys)
            yield objects[there], keys[there]
        x, y = columns(self.keys)
        for place in np.flatnonzero(_counts(reach) > WIDE).tolist():
            left, top, right, bottom = reach[place]
            keys = self.keys[(x >= left) & (x <= right) & (y >= top) & (y <= bottom)]
            yield np.full(len(keys), place), keys

    def clip(self, layer: Layer) -> Layer:
        """Return the objects that lie in the area, cut to it."""
        polygons, count = layer.polygons.copy(), len(layer)
        inside, cut = np.ones(count), np.zeros(count, bool)
        around = self.reach(polygons, NEAR * self.side)
        rest = np.flatnonzero(~self._whole(around))
        if len(rest):
            polygons[rest], inside[rest] = self._clipped(polygons[rest])
            cut[rest] = self._touched(layer.polygons[rest], around[rest]) | (inside[rest] < 1)
        return layer.within(polygons, inside, cut)

    def _whole(self, reach: Integers) -> Any:
        """Tell which objects are wholly among tiles of the area."""
        counts = _counts(reach)
        found = np.zeros(len(reach), np.int64)
        for objects, keys in _expanded(reach):
            found += np.bincount(objects[among(keys, self.keys)], minlength=len(reach))
        return found == counts

    def _clipped(self, polygons: Objects) -> tuple[Objects, Floats]:
        """Return what of polygons lies in the area, None where nothing does, and which share of each that is."""
        pieces: list[Objects] = [np.empty(0, object)]
        owners: list[Integers] = [np.empty(0, np.int64)]
        for objects, keys in self.tiles(self.reach(polygons)):
            some = np.asarray(shapely.intersection(polygons[objects], self.boxes(keys)))
            real = shapely.area(some) > 0
            pieces.append(some[real])
            owners.append(objects[real])
        found, of = np.concatenate(pieces), np.concatenate(owners)
        areas = np.bincount(of, shapely.area(found), len(polygons))
        shares = areas / shapely.area(polygons)
        whole = shares >= 1 - ROUNDING
        shares[whole] = 1.0
        clipped: Objects = polygons.copy()
        clipped[~whole] = None
        groups, joined = unions(found[~whole[of]], of[~whole[of]])
        clipped[groups] = joined
        return clipped, shares

    def _touched(self, polygons: Objects, reach: Integers) -> Flags:
        """Tell which polygons come close to a tile that is missing, as very wide ones are taken to do."""
        found = _counts(reach) > WIDE
        for objects, keys in _expanded(reach):
            missing = ~among(keys, self.keys)
            objects, keys = objects[missing], keys[missing]
            met = shapely.dwithin(polygons[objects], self.boxes(keys), NEAR * self.side)
            found[objects[met]] = True
        return found


def unions(polygons: Objects, groups: Integers) -> tuple[Integers, Objects]:
    """Return the union of the polygons of each group, and the numbers of the groups, ascending."""
    order = np.argsort(groups, kind="stable")
    numbers, places = np.unique(groups[order], return_inverse=True)
    if not len(numbers):
        return numbers, np.empty(0, object)
    parts, of = shapely.get_parts(polygons[order], return_index=True)
    shaped = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON  # where edges touch, a cut leaves lines
    collections = np.asarray(shapely.geometrycollections(parts[shaped], indices=places[of[shaped]]))
    return numbers, np.asarray(shapely.union_all(collections[:, np.newaxis], axis=1))


def _counts(reach: Integers) -> Integers:
    return np.asarray((reach[:, 2] - reach[:, 0] + 1) * (reach[:, 3] - reach[:, 1] + 1))


def _expanded(reach: Integers) -> Iterator[tuple[Integers, Keys]]:
    """Yield pairs of objects and tiles in their reach, some at a time, without objects that are very wide."""
    counts = _counts(reach)
    narrow = np.flatnonzero(counts <= WIDE)
    for start in range(0, len(narrow), max(1, MANY // 16)):
        some = narrow[start : start + max(1, MANY // 16)]
        objects = np.repeat(some, counts[some])
        within = np.arange(len(objects)) - np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
        left, top, right, _ = reach[objects].T
        across = right - left + 1
        x, y = left + within % across, top + within // across
        # Beyond the edges of the world there is no tile: no key is -1.
        yield objects, np.where((x >= 0) & (y >= 0), x << 32 | y, -1)
