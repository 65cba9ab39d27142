"""Reads an OpenStreetMap file once through: ways and multipolygon relations with their geometry, in a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple

import osmium
import shapely
from osmium.filter import EntityFilter, IdFilter, KeyFilter
from osmium.osm import ALL, AREA, NODE, RELATION, WAY
from shapely.geometry.base import BaseGeometry

from rsp.components.extract.osm import Extractor
from rsp.components.extract.plugin import hides
from rsp.components.extract.rings import Member, Point, assemble
from rsp.components.extract.source import DisorderError, Source
from rsp.shared.features import polygonal

MISSING = "missing nodes or members"
OPEN = "not closed"
INVALID = "invalid geometry"

# The heads of a line and of a polygon with one ring in WKB (little-endian, in hexadecimal); the number of points
# and their coordinates follow.
LINE_WKB = "0102000000"
POLYGON_WKB = "010300000001000000"
POINT_WKB = 32

URL = "https://www.openstreetmap.org"


class OsmObject(NamedTuple):
    """An object that an extractor accepted: areas are a Polygon or MultiPolygon, lines a (Multi)LineString."""

    kind: str
    number: int
    tags: dict[str, str]
    geometry: BaseGeometry


class OsmReader:
    """Yields what an extractor wants from a file, in the same order on every run.

    Of the file, only these are held in memory: the places of its nodes (16 bytes each with the index `flex_mem`),
    the multipolygon relations of the wanted keys, and their member ways.

    Attributes:
        skipped: How many objects were left out, by reason.
        hidden: How many objects were left out because they cannot be seen from above.
        repaired: How many geometries had to be made valid.
        clipped: Of how many lines only the stretches are there whose nodes are in the file.
        notes: One line for each object left out, with its address, up to `NOTES`.
    """

    NOTES = 10

    # How many missing nodes, and relations, are looked for further down in the file.
    SUSPECTS = 10_000
    SUSPECT_RELATIONS = 100

    def __init__(
        self, source: Source, extractor: Extractor, index: str = "flex_mem", *, with_hidden: bool = False
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self.hidden = self.repaired = self.clipped = 0
        self.notes: list[str] = []
        self._source = source
        self._extractor = extractor
        self._places = None if source.located else osmium.index.create_map(index)
        self._hidden = None if with_hidden else hides(extractor)
        self._factory = osmium.geom.WKBFactory()
        self._suspects: set[int] = set()

    def __iter__(self) -> Iterator[OsmObject]:
        """Yield the objects.

        Raises:
            FeatureError: the data is damaged or cut off.
            DisorderError: it is not in order, so what was yielded may be wrong; `Source.sort` may help.
        """
        areas = self._extractor.geometry == "polygon"
        wanted: set[int] = set()  # relations that we asked for
        built: set[int] = set()  # relations whose members were all there
        refused: set[int] = set()  # of these, the ones whose rings osmium could not build
        last = None
        accept, hidden = self._extractor.accept, self._hidden
        for item in self._entities(areas):
            if item.is_area() and item.from_way():
                continue  # built from the way itself, which osmium does not repair
            tags = dict(item.tags)
            if not accept(tags) or item.deleted:
                continue
            if hidden is not None and hidden(tags):
                self.hidden += not item.is_area()
            elif item.is_area():
                if item.orig_id() in built:
                    raise DisorderError(f"relation {item.orig_id()} appears twice")
                built.add(item.orig_id())
                if item.num_rings()[0]:
                    yield from self._relation(item, tags)
                else:
                    refused.add(item.orig_id())
            elif item.is_way():
                if item.id == last:
                    raise DisorderError(f"way {last} appears twice")
                last = item.id
                yield from self._way(item, tags, areas)
            elif tags.get("type") == "multipolygon":
                wanted.add(item.id)
        yield from self._refused(refused)
        for number in sorted(wanted - built):
            self._skip(MISSING, "relation", number)
        self._check_order(wanted - built)

    def _entities(self, areas: bool) -> Iterator[Any]:
        """Yield the raw objects that have one of the keys."""
        keys = KeyFilter(*self._extractor.keys)
        processor = _Processor(self._source.file, ALL if areas else NODE | WAY, self._places)
        if areas:
            processor.with_areas(keys)
        entities = WAY | RELATION | AREA if areas else WAY
        with self._source.readable():
            yield from processor.with_filter(EntityFilter(entities)).with_filter(keys)

    def _relation(self, area: osmium.osm.Area, tags: dict[str, str]) -> Iterator[OsmObject]:
        geometry: Any = shapely.from_wkb(self._factory.create_multipolygon(area))
        if len(geometry.geoms) == 1:
            geometry = geometry.geoms[0]
        yield from self._polygon("relation", area.orig_id(), tags, geometry)

    def _refused(self, numbers: Collection[int]) -> Iterator[OsmObject]:
        """Yield the relations that osmium refused to build, repaired from the rings of their members."""
        for number, tags, members in self._members(numbers):
            try:
                geometry = assemble(members)
            except ValueError:
                self._skip(OPEN, "relation", number)
                continue
            if geometry is None:
                self._skip(INVALID, "relation", number)
            else:
                self.repaired += 1
                yield OsmObject("relation", number, tags, geometry)

    def _members(self, numbers: Collection[int]) -> Iterator[tuple[int, dict[str, str], list[Member]]]:
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
                processor.with_filter(_locator(self._places))
            for item in _only(processor, {ref for _, roles in relations.values() for ref in roles}):
                ways[item.id] = tuple(map(_point, item.nodes))
        for number, (tags, roles) in sorted(relations.items()):
            yield number, tags, [Member(role, ways[ref]) for ref, role in roles.items() if ref in ways]

    def _way(self, way: osmium.osm.Way, tags: dict[str, str], areas: bool) -> Iterator[OsmObject]:
        try:
            # osmium would drop missing nodes at the beginning without a word.
            if len(way.nodes) and not way.nodes[0].location.valid():
                raise osmium.InvalidLocationError
            wkb = self._factory.create_linestring(way)
        except osmium.InvalidLocationError:
            yield from self._clipped(way, tags, areas)
            return
        except RuntimeError:  # fewer than two places
            self._skip(INVALID, "way", way.id)
            return
        points = wkb[len(LINE_WKB) + 8 :]  # behind the head comes their number
        closed = points[:POINT_WKB] == points[-POINT_WKB:]
        # A closed road that says `area=yes` is a surface, not the line around one.
        if not areas and not (closed and tags.get("area") == "yes"):
            yield OsmObject("way", way.id, tags, shapely.from_wkb(wkb))
        elif not closed or tags.get("area") == "no":
            self._skip(OPEN, "way", way.id)
        elif len(points) < 4 * POINT_WKB:
            self._skip(INVALID, "way", way.id)
        else:
            # A third quicker than shapely.Polygon(line).
            polygon = shapely.from_wkb(POLYGON_WKB + wkb[len(LINE_WKB) :])
            yield from self._polygon("way", way.id, tags, polygon)

    def _clipped(self, way: osmium.osm.Way, tags: dict[str, str], areas: bool) -> Iterator[OsmObject]:
        """Yield the runs of known nodes of a line; an area whose outline has gaps is left out."""
        points = list(map(_point, way.nodes))
        missing = [point.ref for point in points if point.lon != point.lon]
        self._suspects.update(islice(missing, self.SUSPECTS - len(self._suspects)))
        runs = []
        for known, run in groupby(points, lambda point: point.lon == point.lon):
            places = [(point.lon, point.lat) for point in run]
            if known and len(set(places)) > 1:
                runs.append(places)
        if areas or not runs or (way.is_closed() and tags.get("area") == "yes"):
            self._skip(MISSING, "way", way.id)
            return
        self.clipped += 1
        yield OsmObject("way", way.id, tags, shapely.MultiLineString(runs))

    def _polygon(
        self, kind: str, number: int, tags: dict[str, str], geometry: BaseGeometry
    ) -> Iterator[OsmObject]:
        if not geometry.is_valid:
            mended = polygonal(geometry)
            if mended is None:
                self._skip(INVALID, kind, number)
                return
            self.repaired += 1
            geometry = mended
        yield OsmObject(kind, number, tags, geometry)

    def _check_order(self, relations: Collection[int]) -> None:
        """Find out whether what was missing stands further down in the file."""
        if not self._source.in_order and not self._suspects:
            for _, _, members in self._members(sorted(relations)[: self.SUSPECT_RELATIONS]):
                for member in members:
                    self._suspects.update(point.ref for point in member.points if point.lon != point.lon)
        self._source.check_order(self._suspects)

    def _skip(self, reason: str, kind: str, number: int) -> None:
        self.skipped[reason] += 1
        if len(self.notes) < self.NOTES:
            name = f"{URL}/{kind}/{number}" if number > 0 else f"{kind} {number}"  # negative: not uploaded yet
            self.notes.append(f"{name}: {reason}")


class _Processor(osmium.FileProcessor):
    """Goes through a file with an index of places, or without one where the ways themselves say the places."""

    def __init__(
        self, file: osmium.io.File, entities: osmium.osm.osm_entity_bits, places: osmium.index.LocationTable | None
    ) -> None:
        super().__init__(file, entities)
        self._places = places
        self.with_locations()

    def with_locations(self, storage: Any = None) -> _Processor:
        """Take our index, also where `with_areas` would ask for one of its own."""
        if self._places is not None:
            super().with_locations(self._places)  # type: ignore[arg-type]  # osmium's stub forgets it
        return self


def _only(processor: osmium.FileProcessor, ids: Collection[int]) -> Iterator[Any]:
    """Yield the objects that have one of these ids."""
    if ids and min(ids) >= 0:  # osmium's filter knows no negative ones
        processor.with_filter(IdFilter(sorted(ids)))
    return (item for item in processor if item.id in ids)


def _locator(places: osmium.index.LocationTable) -> osmium.NodeLocationsForWays:
    """Return a handler that tells the nodes of a way where they are."""
    handler = osmium.NodeLocationsForWays(places)
    handler.ignore_errors()
    return handler


def _point(node: osmium.osm.NodeRef) -> Point:
    """Return a node of a way; one that is not in the file is at NaN."""
    if node.location.valid():
        return Point(node.ref, node.location.lon, node.location.lat)
    return Point(node.ref, float("nan"), float("nan"))
