"""Builds an area from the member ways of a multipolygon relation, for relations that osmium refuses to build."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.disjoint import DisjointSets
from rsp.shared.geometry import polygonal

INNER = "inner"
OUTER = "outer"


class Point(NamedTuple):
    """A node of a way: its id, and where it is, in degrees."""

    ref: int
    lon: float
    lat: float


class Member(NamedTuple):
    """A way of a relation: its role, and its nodes in order."""

    role: str
    points: tuple[Point, ...]


def assemble(members: Sequence[Member]) -> BaseGeometry | None:
    """Return the valid Polygon or MultiPolygon of a relation, or None if its rings enclose no area.

    Ways are joined at their ends to rings, apart by role, and each ring is repaired by itself. The area is that of
    the outer rings less that of the inner ones, so it does not matter where rings touch or cross, nor whether they
    share nodes there. Rings without a role are holes if they lie within an odd number of others.

    Raises:
        ValueError: the ways do not join to closed rings.
    """
    ways: dict[str, list[Sequence[Point]]] = {OUTER: [], INNER: [], "": []}
    for member in members:
        ways[member.role if member.role in ways else ""].append(member.points)
    if not ways[OUTER] and not ways[""]:  # wrongly tagged: somewhere there has to be an outside
        ways = {OUTER: ways[INNER], INNER: [], "": []}
    try:
        outer, undecided = _groups(rings(ways[OUTER])), _groups(rings(ways[""]))
    except ValueError:  # perhaps only one part of a ring has a role
        outer, undecided = [], _groups(rings([*ways[OUTER], *ways[""]]))
    area = shapely.union_all(outer) if not undecided else _nested([*outer, *undecided])
    return polygonal(area.difference(shapely.union_all(_groups(rings(ways[INNER])))))


class Ring(NamedTuple):
    """A closed ring: the end nodes of its ways, and all of its nodes, the first one again at the end."""

    ends: list[int]
    points: list[Point]


def rings(ways: Sequence[Sequence[Point]]) -> list[Ring]:
    """Join ways at their end nodes to closed rings, each of which passes an end node only once.

    Raises:
        ValueError: some ways do not join to a closed ring.
    """
    ends: dict[int, list[int]] = {}
    for index, way in enumerate(ways):
        if way:
            for ref in {way[0].ref, way[-1].ref}:
                ends.setdefault(ref, []).append(index)
    used: set[int] = set()
    found = []
    for index, way in enumerate(ways):
        if index in used or not way:
            continue
        node = way[0].ref
        path: list[Sequence[Point]] = []
        position = {node: 0}  # where on the path each of its end nodes is
        while (number := _take(ends[node], used)) is not None:
            piece = ways[number] if ways[number][0].ref == node else ways[number][::-1]
            path.append(piece)
            node = piece[-1].ref
            if node in position:
                parts = path[position[node] :]
                points = [point for part in parts for point in part[:-1]]
                found.append(Ring([part[0].ref for part in parts], [*points, piece[-1]]))
                for part in parts[:-1]:
                    del position[part[-1].ref]
                del path[position[node] :]
            else:
                position[node] = len(path)
        if path:
            raise ValueError(f"no way continues from node {node}")
    return found


def _take(numbers: list[int], used: set[int]) -> int | None:
    """Return a way that has not been used yet, and mark it as used."""
    while numbers:
        number = numbers.pop()
        if number not in used:
            used.add(number)
            return number
    return None


def _groups(found: Sequence[Ring]) -> list[BaseGeometry]:
    """Return the area of each group of rings that share end nodes: what lies in an odd number of them.

    Which way goes on from a node where several rings meet is arbitrary, so rings there may be the borders between
    the areas that are meant; the rule of odd and even gives the same whichever they are.
    """
    nodes = DisjointSets()
    for ring in found:
        for ref in ring.ends:
            nodes.join(ref, ring.ends[0])
    groups: dict[int, list[Ring]] = {}
    for ring in found:
        groups.setdefault(nodes.root(ring.ends[0]), []).append(ring)
    areas: list[BaseGeometry] = []
    for group in groups.values():
        area: BaseGeometry = shapely.Polygon()
        for polygon in _polygons(group):
            area = shapely.symmetric_difference(area, polygon)
        areas.append(area)
    return areas


def _nested(areas: Sequence[BaseGeometry]) -> BaseGeometry:
    """Return the union of areas less those that lie within an odd number of others."""
    order = sorted(areas, key=lambda area: -area.area)
    depth = [0] * len(order)
    for inside, around in shapely.STRtree(order).query(order, predicate="within").T:
        depth[inside] += around < inside
    total: BaseGeometry = shapely.Polygon()
    for area, level in zip(order, depth, strict=True):
        total = shapely.difference(total, area) if level % 2 else shapely.union(total, area)
    return total


def _polygons(found: Iterable[Ring]) -> list[BaseGeometry]:
    """Return a valid polygon for each ring that has an area."""
    built = (
        polygonal(shapely.Polygon([(point.lon, point.lat) for point in ring.points]))
        for ring in found
        if len(ring.points) > 3
    )
    return [polygon for polygon in built if polygon is not None]
