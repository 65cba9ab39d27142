"""Multipolygon relations of an OpenStreetMap file: which are wanted, and their areas as osmium builds them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import osmium
from osmium.filter import IdFilter, KeyFilter
from osmium.osm import RELATION, WAY

from rsp.components.extract.rings import Member, Point
from rsp.components.extract.source import DisorderError, Source

# Types of relations that osmium builds areas of.
BUILT = ("multipolygon", "boundary")


class Area(NamedTuple):
    """A relation all of whose members were in the file.

    Attributes:
        number: Its id.
        tags: Its tags.
        wkb: Its multipolygon, hexadecimal; empty where osmium could not build the rings.
    """

    number: int
    tags: dict[str, str]
    wkb: str


class Relations:
    """Finds the wanted relations in one pass over the file, and builds their areas in the next.

    Attributes:
        wanted: The ids of the multipolygon relations that are wanted.
        whole: The ids of those whose members were all there.
        buffer: Holds areas that have been built; true where it does.
    """

    def __init__(self, source: Source, places: osmium.index.LocationTable | None, keys: Sequence[str]) -> None:
        self.wanted: set[int] = set()
        self.whole: set[int] = set()
        self._source = source
        self._places = places
        self._keys = keys
        self._manager = osmium.area.AreaManager()
        self._factory = osmium.geom.WKBFactory()
        self.buffer = osmium.BufferIterator()

    def find(self, wants: Callable[[osmium.osm.Relation], bool]) -> None:
        """Go through the relations that have one of the keys, and keep those that are wanted in mind.

        Raises:
            DisorderError: one of them appears twice.
        """
        relation: Any
        seen: set[int] = set()
        with self._source.readable(), osmium.io.Reader(self._source.file, RELATION) as reader:
            # Filters and handlers have to live as long as what they are given to.
            chain = KeyFilter(*self._keys), self._manager.first_pass_handler()
            for relation in osmium.OsmFileIterator(reader, *chain):
                if not wants(relation):
                    continue
                if relation.id in seen:
                    raise DisorderError(f"relation {relation.id} appears twice")
                seen.add(relation.id)
                if relation.tags.get("type") == "multipolygon":
                    self.wanted.add(relation.id)
        # Osmium builds areas of closed ways, too, which it does not repair. By their ids only those of relations
        # pass, but its filter knows no negative ones.
        keys = KeyFilter(*self._keys)
        self._filter = IdFilter([2 * number + 1 for number in seen]) if min(seen, default=0) >= 0 else keys
        self.buffer = osmium.BufferIterator(self._filter)

    def handler(self) -> Any:
        """Return a handler that is given all objects of the file; areas are in `buffer` then.

        It also checks that the objects are in order.
        """
        return self._manager.second_pass_to_buffer(self.buffer)

    def areas(self) -> Iterator[Area]:
        """Yield the areas of relations that have been built since the last time.

        Raises:
            DisorderError: one of the relations appears twice.
        """
        area: Any
        for area in self.buffer:
            if area.from_way():
                continue
            number = area.orig_id()
            if number in self.whole:
                raise DisorderError(f"relation {number} appears twice")
            self.whole.add(number)
            wkb = self._factory.create_multipolygon(area) if area.num_rings()[0] else ""
            yield Area(number, dict(area.tags), wkb)

    def members(self, numbers: Collection[int]) -> Iterator[tuple[int, dict[str, str], list[Member]]]:
        """Yield relations by id, with their tags and those of their member ways that are in the file."""
        if not numbers:
            return
        item: Any
        relations: dict[int, tuple[dict[str, str], dict[int, str]]] = {}
        ways: dict[int, tuple[Point, ...]] = {}
        with self._source.readable():
            for item in _only(osmium.FileProcessor(self._source.file, RELATION), set(numbers)):
                roles = {member.ref: member.role for member in item.members if member.type == "w"}
                relations[item.id] = (dict(item.tags), roles)
            processor = osmium.FileProcessor(self._source.file, WAY)
            if self._places is not None:
                processor.with_filter(locator(self._places))
            for item in _only(processor, {ref for _, roles in relations.values() for ref in roles}):
                ways[item.id] = tuple(map(point, item.nodes))
        for number, (tags, roles) in sorted(relations.items()):
            yield number, tags, [Member(role, ways[ref]) for ref, role in roles.items() if ref in ways]


def _only(processor: osmium.FileProcessor, ids: Collection[int]) -> Iterator[Any]:
    """Yield the objects that have one of these ids."""
    if ids and min(ids) >= 0:  # osmium's filter knows no negative ones
        processor.with_filter(IdFilter(sorted(ids)))
    return (item for item in processor if item.id in ids)


def locator(places: osmium.index.LocationTable) -> osmium.NodeLocationsForWays:
    """Return a handler that tells the nodes of a way where they are."""
    handler = osmium.NodeLocationsForWays(places)
    handler.ignore_errors()
    return handler


def point(node: osmium.osm.NodeRef) -> Point:
    """Return a node of a way; one that is not in the file is at NaN."""
    if node.location.valid():
        return Point(node.ref, node.location.lon, node.location.lat)
    return Point(node.ref, float("nan"), float("nan"))
