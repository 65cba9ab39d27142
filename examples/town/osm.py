"""Writes a town as an OpenStreetMap extract, with what real extracts have: odd tags and missing parts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import osmium
import shapely
from osmium.osm.mutable import Node, Relation, Way
from shapely import Polygon

from examples.town.town import Town, Wing

# Of no node that is written.
NOWHERE = 9_000_000_000


@dataclass(frozen=True)
class OsmCounts:
    """What is in the extract.

    Attributes:
        ways: Buildings that are a closed way.
        relations: Buildings that are a multipolygon relation (with a courtyard).
        excluded: Closed ways that are tagged as buildings and are none to extract (ruins, underground, ...).
        missing_nodes: Buildings that refer to nodes outside of the extract.
        missing_members: Building relations that refer to ways outside of the extract.
        roads: Ways of a class that is extracted as road, whole.
        broken_roads: Roads that refer to nodes outside of the extract.
        paths: Ways of a class that is no road.
    """

    ways: int
    relations: int
    excluded: int
    missing_nodes: int
    missing_members: int
    roads: int
    broken_roads: int
    paths: int


class Extract:
    """Collects nodes, ways and relations; equal places share a node."""

    def __init__(self, lonlat: Callable[[np.ndarray], np.ndarray]) -> None:
        self.lonlat = lonlat
        self.nodes: dict[tuple[float, float], int] = {}
        self.ways: list[Way] = []
        self.relations: list[Relation] = []

    def refs(self, points: Iterable[tuple[float, float]]) -> list[int]:
        """Return the nodes of points in metres, 7 decimals of a degree apart at least."""
        places = self.lonlat(np.array(list(points), float)).round(7)
        return [self.nodes.setdefault((lon, lat), len(self.nodes) + 1) for lon, lat in places.tolist()]

    def way(self, refs: list[int], tags: dict[str, str]) -> int:
        """Add a way and return its id."""
        self.ways.append(Way(id=len(self.ways) + 1, version=1, visible=True, nodes=refs, tags=tags))
        return len(self.ways)

    def relation(self, members: list[tuple[str, int, str]], tags: dict[str, str]) -> None:
        """Add a relation."""
        number = len(self.relations) + 1
        self.relations.append(Relation(id=number, version=1, visible=True, members=members, tags=tags))

    def write(self, path: Path) -> None:
        """Write all, sorted by type and id as readers expect it."""
        temporary = path.parent / f".{secrets.token_hex(4)}-{path.name}"
        header = osmium.io.Header()
        header.set("generator", "examples.town")
        with osmium.SimpleWriter(str(temporary), header=header) as writer:
            for place, number in self.nodes.items():
                writer.add_node(Node(id=number, version=1, visible=True, location=place))
            for way in self.ways:
                writer.add_way(way)
            for relation in self.relations:
                writer.add_relation(relation)
        temporary.replace(path)


def write_osm(path: Path, town: Town, lonlat: Callable[[np.ndarray], np.ndarray]) -> OsmCounts:
    """Write the extract and return what is in it."""
    extract = Extract(lonlat)
    ways = relations = 0
    for building in town.buildings:
        value = "yes" if building.kind == "detached" and building.roof == "hip" else building.kind
        tags = {"building": value}
        if building.footprint.interiors:
            outer = extract.way(extract.refs(building.footprint.exterior.coords), {})
            members = [("w", outer, "outer")]
            for ring in building.footprint.interiors:
                members.append(("w", extract.way(extract.refs(ring.coords), {}), "inner"))
            extract.relation(members, {"type": "multipolygon", **tags, "roof:shape": building.roof})
            relations += 1
        else:
            extract.way(extract.refs(building.footprint.exterior.coords), {**tags, "roof:shape": building.roof})
            ways += 1

    def square(x: float, y: float) -> list[int]:
        return extract.refs([*(ring := Wing(x, y, 0.3, 14, 9).ring()), ring[0]])

    # What is no building to extract, and what cannot be built: all of it lies beyond the picture.
    east, north = town.size[0] / 2 + 60, town.size[1] / 2 + 60
    odd: list[tuple[str, dict[str, str]]] = [
        (kind, {"building": kind})
        for kind in ("construction", "houseboat", "static_caravan", "stadium", "conservatory", "digester",
                     "greenhouse", "ruins")
    ] + [("underground", {"building": "yes", "location": "underground"}),
         ("underwater", {"building": "yes", "location": "underwater"})]  # fmt: skip
    for number, (_, tags) in enumerate(odd):
        extract.way(square(east, number * 20.0), tags)
    for kind, site in town.sites:
        extract.way(extract.refs(site.exterior.coords), {"building": kind})
    for number in range(4):
        refs = square(-east, number * 20.0)
        extract.way([*refs[:2], NOWHERE + number, *refs[3:]], {"building": "yes"})
    for number in range(2):
        present = extract.way(square(number * 30.0, north), {})
        members = [("w", present, "inner"), ("w", NOWHERE + number, "outer")]
        extract.relation(members, {"type": "multipolygon", "building": "yes"})

    roads = 0
    inside = Polygon([(-town.size[0] / 2, -town.size[1] / 2), (town.size[0] / 2, -town.size[1] / 2),
                      (town.size[0] / 2, town.size[1] / 2), (-town.size[0] / 2, town.size[1] / 2)])  # fmt: skip
    for number, road in enumerate(town.roads):
        if not shapely.LineString(road.axis).intersects(inside):
            continue
        tags = {"highway": road.highway, "name": f"Street {number}"}
        if number % 3 == 0:
            tags["lanes"] = ("2;3", "two")[number % 24 // 12] if number % 12 == 0 else str(road.lanes)
        if number % 4 == 0:
            tags["width"] = "wide" if number % 16 == 0 else f"{road.width:.1f}{' m' if number % 8 else ''}"
        if road.oneway:
            tags["oneway"] = "yes"
        elif number % 5 == 0:
            tags["oneway"] = "no"
        extract.way(extract.refs(road.axis), tags)
        roads += 1
    for number in range(3):
        refs = extract.refs([(-east - 30, number * 20.0), (-east - 60, number * 20.0)])
        extract.way([refs[0], NOWHERE + 100 + number, refs[1]], {"highway": "residential"})
    for number, value in enumerate(("footway", "cycleway")):
        extract.way(extract.refs([(-20, 3.0 * number), (20, 3.0 * number + 1)]), {"highway": value})
    extract.write(path)
    excluded = len(odd) + len(town.sites)
    return OsmCounts(ways, relations, excluded, 4, 2, roads, 3, 2)
