"""Objects on their way out of the reader: gathered one by one, made to geometries many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.components.extract.geometry import POINT, Widener, lines, polygons
from rsp.shared.geometry import polygonal

# A batch ends at as many objects, or as many points.
OBJECTS, POINTS = 4096, 1 << 20


class Batch(NamedTuple):
    """Features in degrees: valid polygons and multipolygons, and the properties of each."""

    geometries: npt.NDArray[np.object_]
    properties: list[dict[str, Any]]


class Pending:
    """Gathers objects until there are enough of them.

    Coordinates come as osmium writes them in WKB: hexadecimal digits of doubles, behind a head.

    Attributes:
        repaired: How many invalid geometries could be made valid, in all batches.
    """

    def __init__(self, skip: Callable[[str, int], None]) -> None:
        """Begin; `skip(kind, number)` is called for each object whose outline encloses no area."""
        self.repaired = 0
        self._skip = skip
        self._widener = Widener()
        self._clear()

    def _clear(self) -> None:
        self._properties: list[dict[str, Any]] = []
        self._digits = 0
        # Each with the positions in the batch that they have.
        self._rings: tuple[list[int], list[str]] = [], []
        self._areas: tuple[list[int], list[str]] = [], []
        self._lines: tuple[list[int], list[str]] = [], []
        self._stretches: tuple[list[int], list[BaseGeometry]] = [], []
        self._metres: list[float] = []
        self._ready: tuple[list[int], list[BaseGeometry]] = [], []

    @property
    def full(self) -> bool:
        """Whether it is time for `batch`."""
        return len(self._properties) >= OBJECTS or self._digits >= POINTS * POINT

    def ring(self, properties: dict[str, Any], points: str) -> None:
        """Add an area of one closed ring."""
        self._add(self._rings, properties, points)
        self._digits += len(points)

    def area(self, properties: dict[str, Any], wkb: str) -> None:
        """Add a multipolygon; one of a single part becomes a polygon."""
        self._add(self._areas, properties, wkb)
        self._digits += len(wkb)

    def line(self, properties: dict[str, Any], points: str, metres: float) -> None:
        """Add a line of a width."""
        self._add(self._lines, properties, points)
        self._metres.append(metres)
        self._digits += len(points)

    def stretches(self, properties: dict[str, Any], geometry: BaseGeometry, metres: float) -> None:
        """Add what is left of a line of a width."""
        self._add(self._stretches, properties, geometry)
        self._metres.append(metres)

    def ready(self, properties: dict[str, Any], geometry: BaseGeometry) -> None:
        """Add a valid area."""
        self._add(self._ready, properties, geometry)

    def _add(self, to: tuple[list[int], list[Any]], properties: dict[str, Any], item: Any) -> None:
        to[0].append(len(self._properties))
        to[1].append(item)
        self._properties.append(properties)

    def batch(self) -> Batch:
        """Return what has been gathered, in the order in which it came, less what encloses no area."""
        found = np.empty(len(self._properties), object)
        found[self._rings[0]] = polygons(self._rings[1])
        found[self._areas[0]] = _multipolygons(self._areas[1])
        found[self._ready[0]] = _array(self._ready[1])
        self._mend(found, [*self._rings[0], *self._areas[0]])
        self._widen(found)
        properties = self._properties
        kept = ~shapely.is_missing(found)
        if not kept.all():
            found, properties = found[kept], [each for each, stays in zip(properties, kept, strict=True) if stays]
        self._clear()
        return Batch(found, properties)

    def _mend(self, found: npt.NDArray[np.object_], positions: list[int]) -> None:
        """Make the areas at these positions valid, or None where they enclose nothing."""
        at = np.array(sorted(positions), int)
        for position in at[~shapely.is_valid(found[at])].tolist():
            found[position] = polygonal(found[position])
            if found[position] is None:
                properties = self._properties[position]
                self._skip(properties["osm_type"], properties["osm_id"])
            else:
                self.repaired += 1

    def _widen(self, found: npt.NDArray[np.object_]) -> None:
        """Make polygons of the lines."""
        positions = [*self._lines[0], *self._stretches[0]]
        if not positions:
            return
        drawn = np.concatenate([lines(self._lines[1]), _array(self._stretches[1])])
        # Widths were added in the order of the objects, whichever of the two they are.
        order = np.argsort(positions)
        found[np.array(positions)[order]] = self._widener.widen(drawn[order], self._metres)


def _array(items: Sequence[BaseGeometry]) -> npt.NDArray[np.object_]:
    made = np.empty(len(items), object)
    made[:] = items
    return made


def _multipolygons(items: Sequence[str]) -> npt.NDArray[np.object_]:
    made = shapely.from_wkb(np.array(items, object))
    single = shapely.get_num_geometries(made) == 1
    made[single] = shapely.get_geometry(made[single], 0)
    return made
