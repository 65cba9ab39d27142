"""OpenStreetMap files for tests: written node by node, and what was extracted from them read back."""

from __future__ import annotations

import json

import osmium
from shapely.geometry import shape


class Scene:
    """Writes an .osm.pbf: nodes where asked for, ways and relations with ids counted from 1."""

    def __init__(self, path):
        self.path = path
        self.nodes, self.ways, self.relations = [], [], []

    def node(self, lon, lat):
        self.nodes.append((lon, lat))
        return len(self.nodes)

    def way(self, points, missing=(), **tags):
        """A way through points, equal ones being one node; at the positions `missing` the node is not there."""
        numbers = {}
        for point in points:
            if point not in numbers:
                numbers[point] = self.node(*point)
        refs = [numbers[point] for point in points]
        for position in missing:
            refs[position] = 999_999
        self.ways.append((refs, tags))
        return len(self.ways)

    def relation(self, members, **tags):
        self.relations.append(([("w", way, role) for way, role in members], {"type": "multipolygon", **tags}))
        return len(self.relations)

    def write(self):
        self.path.unlink(missing_ok=True)
        with osmium.SimpleWriter(str(self.path)) as writer:
            for number, place in enumerate(self.nodes, 1):
                writer.add_node(osmium.osm.mutable.Node(id=number, location=place))
            for number, (refs, tags) in enumerate(self.ways, 1):
                writer.add_way(osmium.osm.mutable.Way(id=number, nodes=refs, tags=tags))
            for number, (members, tags) in enumerate(self.relations, 1):
                writer.add_relation(osmium.osm.mutable.Relation(id=number, members=members, tags=tags))
        return self.path


def square(west, south, side=0.001):
    east, north = west + side, south + side
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]


def features_of(path):
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    return {
        (feature["properties"]["osm_type"], feature["properties"]["osm_id"]): (
            shape(feature["geometry"]),
            feature["properties"],
        )
        for feature in collection["features"]
    }
