"""From a source to the shelf: polygons widened, looked for in the cover, counted, and put by for their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from rsp.components.rasterize.blocks import Blocks, Indices
from rsp.components.rasterize.layers import Layers
from rsp.components.rasterize.shelf import Shelf
from rsp.components.rasterize.source import OUTSIDE, Bounds, Polygons, Source
from rsp.shared.atomic import atomic_path
from rsp.shared.locations import Location
from rsp.shared.progress import progress

if TYPE_CHECKING:
    from rsp.components.rasterize.weights import Instances

VANISHED = "nothing left of it after --buffer"

# More metres of EPSG:3857 a metre on the ground there are nowhere on the tile grid.
MOST = 12.0


class Tally:
    """Counts features: all that meet the cover, and those of each class in each tile.

    Attributes:
        used: How many meet the cover.
    """

    def __init__(self, blocks: Blocks, classes: int) -> None:
        self.used = 0
        self._blocks = blocks
        self._features = np.zeros(classes, np.int64)
        self._counts: dict[int, npt.NDArray[np.int32]] = {}

    def add(self, value: npt.NDArray[np.uint8], number: Indices, tile: Indices) -> int:
        """Count features, given their class index, and the pairs of a feature and a tile; return how many meet."""
        met = np.unique(number)
        self.used += len(met)
        self._features += np.bincount(value[met], minlength=len(self._features))
        for each in np.unique(value[met]).tolist():
            if each not in self._counts:
                self._counts[each] = np.zeros(self._blocks.tile_count, np.int32)
            np.add.at(self._counts[each], tile[value[number] == each], 1)
        return len(met)

    @property
    def classes(self) -> list[int]:
        """The class indices of which there are features."""
        return sorted(self._counts)

    def told(self, value: int) -> dict[str, int]:
        """Return the numbers of a class for the report."""
        counts = self._counts[value]
        return {
            "features": int(self._features[value]),
            "tiles": int(np.count_nonzero(counts)),
            "most": int(counts.max(initial=0)),
        }

    def write(self, path: Location, value: int) -> None:
        """Write a cover of the tiles that have features of a class, with their number as a further column."""
        counts = self._counts[value]
        places = np.flatnonzero(counts)
        keys = self._blocks.keys(places)
        order = np.argsort(keys)
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for start in range(0, len(order), _LINES):
                some = order[start : start + _LINES]
                x, y = (column.tolist() for column in (keys[some] >> 32, keys[some] & 0xFFFFFFFF))
                zoom = self._blocks.zoom
                rows = zip(x, y, counts[places[some]].tolist(), strict=True)
                file.writelines(f"{column},{row},{zoom},{count}\n" for column, row, count in rows)


_LINES = 1 << 16


def fill(
    source: Source,
    blocks: Blocks,
    shelf: Shelf,
    layers: Layers,
    tally: Tally,
    buffer: float,
    instances: Instances | None = None,
) -> None:
    """Read all polygons of a source, and put by those that meet the cover; what does not is counted there.

    Those that weights are made of are put by, too, where `instances` takes them.
    """
    around = [border.metres for border in layers.borders] + ([instances.reach] if instances else [])
    reach = max(0.0, buffer) + max(around, default=0.0)
    batches = source.polygons(_widened(blocks.bounds, reach * MOST))
    layer_of = np.array(layers.of_class, np.uint16)
    for polygons, value in _sized(progress(batches, "rasterize: read", unit="feature", size=_count)):
        if buffer:
            from rsp.components.rasterize.ground import buffer as widened

            polygons = widened(polygons, buffer)
            left = ~shapely.is_empty(polygons)
            if not left.all():
                source.skipped[VANISHED] += int((~left).sum())
                polygons, value = polygons[left], value[left]
        met = blocks.meet(polygons)
        outside = len(polygons) - tally.add(value, met.number, met.tile)
        if outside:
            source.skipped[OUTSIDE] += outside
        if instances:
            instances.put(polygons, value)
        shelf.put(met.block, met.pieces, layer_of[value[met.piece_of]])
        for border in layers.borders:
            from rsp.components.rasterize.ground import buffer as widened

            near = blocks.meet(widened(polygons[value == border.of], border.metres))
            shelf.put(near.block, near.pieces, np.full(len(near.block), border.layer, np.uint16))


def _count(batch: Polygons) -> int:
    return len(batch.polygons)


def _sized(batches: Iterator[Polygons]) -> Iterator[Polygons]:
    """Yield what has polygons."""
    return (batch for batch in batches if len(batch.polygons))


def _widened(bounds: Bounds, metres: float) -> Bounds:
    west, south, east, north = bounds
    return west - metres, south - metres, east + metres, north + metres
