"""What a town is made of: streets, buildings, ground, trees, in metres around its middle (y to the north)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shapely import Polygon

Point = tuple[float, float]

ROUNDABOUT = 16.0  # outer radius of the roundabout in the middle, in metres


@dataclass(frozen=True)
class Wing:
    """A rectangle of a building: its middle, the direction of its ridge, and its sides."""

    x: float
    y: float
    angle: float
    length: float
    width: float

    def ring(self) -> list[Point]:
        """Return the corners."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        corners = ((1, 1), (-1, 1), (-1, -1), (1, -1))
        half = [(a * self.length / 2, b * self.width / 2) for a, b in corners]
        return [(self.x + u * cos - v * sin, self.y + u * sin + v * cos) for u, v in half]


@dataclass(frozen=True)
class Building:
    """A building: the union of its wings under one roof."""

    wings: tuple[Wing, ...]
    kind: str  # the value of its OpenStreetMap tag
    roof: str  # gable, hip or flat
    height: float
    pitch: float
    color: tuple[int, int, int]
    footprint: Polygon
    panels: bool = False


@dataclass(frozen=True)
class Road:
    """A street: its axis, class, and width in metres."""

    axis: tuple[Point, ...]
    highway: str
    width: float
    lanes: int
    oneway: bool = False


@dataclass(frozen=True)
class Patch:
    """Ground of one material. `rows` are the furrows of a field: direction, distance in metres, contrast."""

    ring: tuple[Point, ...]
    color: tuple[int, int, int]
    fine: float = 9.0
    coarse: float = 10.0
    rows: tuple[float, float, float] = (0.0, 1.0, 0.0)


@dataclass
class Town:
    """All there is to paint, each list in painting order."""

    size: Point
    roads: list[Road] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    sites: list[tuple[str, Polygon]] = field(default_factory=list)  # mapped, but no finished building
    ground: list[Patch] = field(default_factory=list)
    paved: list[Patch] = field(default_factory=list)  # over the streets: markings, cars
    trees: list[tuple[float, float, float, int]] = field(default_factory=list)  # x, y, radius, kind
    shadows: list[list[Point]] = field(default_factory=list)  # of low things: cars and hedges
