"""Reads an OpenStreetMap file once over: ways and multipolygon relations with their geometry, in a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import osmium
import shapely
from osmium.filter import EntityFilter, KeyFilter
from osmium.osm import AREA, RELATION, WAY
from shapely.geometry.base import BaseGeometry

from rsp.components.extract.osm import Extractor
from rsp.shared.errors import FeatureError
from rsp.shared.features import polygonal

MISSING = "missing nodes or members"
OPEN = "not closed"
INVALID = "invalid geometry"

URL = "https://www.openstreetmap.org"


class OsmObject(NamedTuple):
    """An object that an extractor accepted: a Polygon, MultiPolygon or LineString in degrees."""

    kind: str
    number: int
    tags: dict[str, str]
    geometry: BaseGeometry


class OsmReader:
    """Yields what an extractor wants from a file, in one order at every run.

    Nothing of the file is held but the places of its nodes (16 bytes each with the index `flex_mem`), the
    multipolygon relations of the wanted keys, and their member ways.

    Attributes:
        skipped: How many objects were left out, by reason.
        repaired: How many geometries had to be made valid.
        notes: One line for each object left out, with its address, up to `NOTES`.
    """

    NOTES = 10

    def __init__(self, path: Path, extractor: Extractor, index: str = "flex_mem") -> None:
        self.path = path
        self.skipped: Counter[str] = Counter()
        self.repaired = 0
        self.notes: list[str] = []
        self._extractor = extractor
        self._index = index
        self._factory = osmium.geom.WKBFactory()

    def __iter__(self) -> Iterator[OsmObject]:
        """Yield the objects.

        Raises:
            FeatureError: no such file, no OpenStreetMap data, or data that is damaged or cut off.
        """
        areas = self._extractor.geometry == "polygon"
        wanted: set[int] = set()  # relations that we asked for
        built: set[int] = set()  # relations whose members were all there
        for item in self._entities(areas):
            if item.is_area() and item.from_way():
                continue  # built from the way itself, which osmium does not repair
            tags = dict(item.tags)
            if not self._extractor.accept(tags):
                continue
            if item.is_area():
                built.add(item.orig_id())
                yield from self._relation(item, tags)
            elif item.is_way():
                yield from self._way(item, tags, areas)
            elif tags.get("type") == "multipolygon":
                wanted.add(item.id)
        for number in sorted(wanted - built):
            self._skip(MISSING, "relation", number)

    def _entities(self, areas: bool) -> Iterator[Any]:
        """Yield the raw objects that have one of the keys, and turn errors of the file into ours."""
        keys = KeyFilter(*self._extractor.keys)
        try:
            with self.path.open("rb") as file:
                head = file.read(64)
            source = osmium.io.File(str(self.path), "pbf" if b"OSMHeader" in head else "")
            processor = osmium.FileProcessor(source).with_locations(self._index)
            if areas:
                processor = processor.with_areas(keys)
            entities = WAY | RELATION | AREA if areas else WAY
            yield from processor.with_filter(EntityFilter(entities)).with_filter(keys)
        except (OSError, RuntimeError) as error:
            raise FeatureError(
                f"cannot read {self.path} as OpenStreetMap data (.osm.pbf): {error}; is the download whole?"
            ) from error

    def _relation(self, area: osmium.osm.Area, tags: dict[str, str]) -> Iterator[OsmObject]:
        number = area.orig_id()
        if area.num_rings()[0] == 0:  # osmium could make no closed rings of the members
            self._skip(INVALID, "relation", number)
            return
        geometry: Any = shapely.from_wkb(self._factory.create_multipolygon(area))
        if len(geometry.geoms) == 1:
            geometry = geometry.geoms[0]
        yield from self._polygon("relation", number, tags, geometry)

    def _way(self, way: osmium.osm.Way, tags: dict[str, str], areas: bool) -> Iterator[OsmObject]:
        try:
            line: Any = shapely.from_wkb(self._factory.create_linestring(way))
        except osmium.InvalidLocationError:
            self._skip(MISSING, "way", way.id)
            return
        except RuntimeError:  # fewer than two places
            self._skip(INVALID, "way", way.id)
            return
        # A closed road that says `area=yes` is a surface, not the line around one.
        if not areas and not (line.is_closed and tags.get("area") == "yes"):
            yield OsmObject("way", way.id, tags, line)
        elif not line.is_closed or tags.get("area") == "no":
            self._skip(OPEN, "way", way.id)
        elif len(line.coords) < 4:
            self._skip(INVALID, "way", way.id)
        else:
            yield from self._polygon("way", way.id, tags, shapely.Polygon(line))

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

    def _skip(self, reason: str, kind: str, number: int) -> None:
        self.skipped[reason] += 1
        if len(self.notes) < self.NOTES:
            self.notes.append(f"{URL}/{kind}/{number}: {reason}")
