"""Reads an OpenStreetMap file: ways and multipolygon relations with their geometry, in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import osmium
import shapely
from osmium.filter import EntityFilter, KeyFilter
from osmium.osm import NODE, NOTHING, RELATION, WAY

from rsp.components.extract.geometry import LINE_HEAD, POINT
from rsp.components.extract.layers import WIDTH, Layer, keys_of
from rsp.components.extract.pending import Batch, Pending
from rsp.components.extract.relations import Relations, locator, point
from rsp.components.extract.rings import assemble
from rsp.components.extract.source import DisorderError, Source

MISSING = "missing nodes or members"
OPEN = "not closed"
INVALID = "invalid geometry"

URL = "https://www.openstreetmap.org"


class _Asked(NamedTuple):
    """What the reader asks of a layer for each object, looked up once."""

    layer: Layer
    accept: Callable[[Any], bool]
    hidden: Callable[[Any], bool] | None
    areas: bool
    foreign: bool
    keys: frozenset[str]


class OsmReader:
    """Yields what layers want from a file, in batches, in the same order on every run.

    Ways come in the order of the file, a relation some time after its last member, and relations that had to be
    repaired last. An object that several layers want comes once for each, in the order of the layers.

    Of the file, only these are held in memory: the places of its nodes (16 bytes each with the index `flex_mem`;
    other indexes keep them in a file), the ids of the wanted relations and of their members, and member ways until
    their relation is whole.

    Attributes:
        skipped: How many objects were left out, by reason.
        hidden: How many objects were left out because they cannot be seen from above.
        clipped: Of how many lines only the stretches are there whose nodes are in the file.
        unreadable: How many tags about a width could not be read.
        example: The first of them, with its object.
        notes: One line for each object left out, with its address, up to `NOTES`.
    """

    NOTES = 10

    # How many missing nodes, and relations, are looked for further down in the file.
    SUSPECTS = 10_000
    SUSPECT_RELATIONS = 100

    def __init__(
        self, source: Source, layers: Sequence[Layer], index: str = "flex_mem", *, with_hidden: bool = False
    ) -> None:
        """Prepare to read what layers want; `index` is osmium's name of a store for the places of nodes."""
        self.skipped: Counter[str] = Counter()
        self.hidden = self.clipped = self.unreadable = 0
        self.example = ""
        self.notes: list[str] = []
        self._source = source
        self._layers = [
            _Asked(
                layer,
                layer.extractor.accept,
                None if with_hidden else layer.hidden,
                layer.areas,
                layer.foreign,
                frozenset(layer.extractor.keys),
            )
            for layer in layers
        ]
        self._area_layers = [asked for asked in self._layers if asked.areas]
        self._keys = keys_of(layers)
        self._places = None if source.located else osmium.index.create_map(index)
        self._factory = osmium.geom.WKBFactory()
        self._suspects: set[int] = set()
        self._last: int | None = None
        self._repaired = 0
        self._pending = Pending(lambda kind, number: self._skip(INVALID, kind, number))

    @property
    def repaired(self) -> int:
        """How many geometries had to be made valid."""
        return self._repaired + self._pending.repaired

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            FeatureError: the data is damaged or cut off.
            DisorderError: it is not in order, so what was yielded may be wrong; `Source.sort` may help.
        """
        relations = Relations(self._source, self._places, keys_of([asked.layer for asked in self._area_layers]))
        if self._area_layers:
            relations.find(self._wants)
        refused: list[int] = []
        for way in self._ways(relations):
            self._way(way)
            if relations.buffer:
                self._areas(relations, refused)
            if self._pending.full:
                yield self._pending.batch()
        self._areas(relations, refused)
        self._refused(relations, refused)
        yield self._pending.batch()
        missing = relations.wanted - relations.whole
        for number in sorted(missing):
            self._skip(MISSING, "relation", number)
        self._check_order(relations, missing)

    def _ways(self, relations: Relations) -> Iterator[Any]:
        """Yield the ways that have one of the keys, while the areas of relations are built."""
        chain: list[Any] = [EntityFilter(WAY), KeyFilter(*self._keys)]
        entities = WAY if self._places is None else NODE | WAY
        if self._area_layers and (relations.wanted or not self._source.in_order):
            # What it sees is checked to be in order: ways, and all of a text that a person may have put together.
            # Nodes that stand after ways are noticed anyway.
            by_hand = not self._source.in_order and self._source.is_text
            chain.insert(0 if by_hand else 1, relations.handler())
            entities |= RELATION if by_hand else NOTHING
        if self._places is not None:
            chain.insert(0, locator(self._places))
        with self._source.readable(), osmium.io.Reader(self._source.file, entities) as reader:
            yield from osmium.OsmFileIterator(reader, *chain)

    def _wants(self, relation: osmium.osm.Relation) -> bool:
        """Tell whether one of the layers takes a relation."""
        taken = [self._asks(asked, relation.tags, relation) for asked in self._area_layers]
        return any(tags is not None for tags in taken)

    def _asks(self, asked: _Asked, tags: Any, item: Any = None) -> Any:
        """Return the tags of an object as the layer wants them if it takes the object, else None.

        Without the object itself it has been asked for before: it is not deleted, and not counted again.
        """
        if asked.foreign:
            tags = dict(tags)
            if asked.keys.isdisjoint(tags):
                return None
        if not asked.accept(tags) or (item is not None and item.deleted):
            return None
        if asked.hidden is not None and asked.hidden(tags):
            self.hidden += item is not None
            return None
        return tags

    def _areas(self, relations: Relations, refused: list[int]) -> None:
        """Add the areas of relations that have been built; note those whose rings osmium could not build."""
        for area in relations.areas():
            if not area.wkb:
                refused.append(area.number)
                continue
            for asked in self._area_layers:
                tags = self._asks(asked, area.tags)
                if tags is not None:
                    self._pending.area(asked.layer.properties("relation", area.number, tags), area.wkb)

    def _refused(self, relations: Relations, numbers: Collection[int]) -> None:
        """Add the relations that osmium refused to build, repaired from the rings of their members."""
        for number, tags, members in relations.members(numbers):
            try:
                geometry = assemble(members)
            except ValueError:
                self._skip(OPEN, "relation", number)
                continue
            if geometry is None:
                self._skip(INVALID, "relation", number)
                continue
            for asked in self._area_layers:
                seen = self._asks(asked, tags)
                if seen is not None:
                    self._repaired += 1
                    self._pending.ready(asked.layer.properties("relation", number, seen), geometry)

    def _way(self, way: osmium.osm.Way) -> None:
        number, tags = way.id, way.tags
        for asked in self._layers:
            seen = self._asks(asked, tags, way)
            if seen is not None:
                if number == self._last:
                    raise DisorderError(f"way {number} appears twice")
                self._take(way, number, asked, seen)
        self._last = number

    def _take(self, way: osmium.osm.Way, number: int, asked: _Asked, tags: Any) -> None:
        """Add a way for a layer that takes it."""
        closed = way.ends_have_same_location()  # or neither end is in the file
        # A closed road that says `area=yes` is a surface, not the line around one.
        surface = asked.areas or (closed and tags.get("area") == "yes")
        try:
            if not (surface and closed) and _begins_nowhere(way):
                raise osmium.InvalidLocationError
            points = self._factory.create_linestring(way)[LINE_HEAD:]
        except osmium.InvalidLocationError:
            self._clipped(way, asked, tags)
            return
        except RuntimeError:  # fewer than two places
            if _begins_nowhere(way):
                self._clipped(way, asked, tags)
            else:
                self._skip(INVALID, "way", number)
            return
        if not surface:
            metres = self._width(way, asked, tags)
            self._pending.line(self._properties(way, asked, tags, metres), points, metres)
        elif not closed or tags.get("area") == "no":
            self._skip(OPEN, "way", number)
        elif len(points) < 4 * POINT:
            self._skip(INVALID, "way", number)
        else:
            self._pending.ring(asked.layer.properties("way", number, tags), points)

    def _clipped(self, way: osmium.osm.Way, asked: _Asked, tags: Any) -> None:
        """Add the runs of known nodes of a line; an area whose outline has gaps is left out."""
        points = list(map(point, way.nodes))
        missing = [point.ref for point in points if point.lon != point.lon]
        self._suspects.update(islice(missing, self.SUSPECTS - len(self._suspects)))
        runs = []
        for known, run in groupby(points, lambda point: point.lon == point.lon):
            places = [(point.lon, point.lat) for point in run]
            if known and len(set(places)) > 1:
                runs.append(places)
        if asked.areas or not runs or (way.is_closed() and tags.get("area") == "yes"):
            self._skip(MISSING, "way", way.id)
            return
        self.clipped += 1
        metres = self._width(way, asked, tags)
        properties = self._properties(way, asked, tags, metres)
        self._pending.stretches(properties, shapely.MultiLineString(runs), metres)

    def _width(self, way: osmium.osm.Way, asked: _Asked, tags: Any) -> float:
        """Return how wide a line is; count the tags about it that cannot be read."""
        width = asked.layer.extractor.width(tags)
        for tag in width.ignored:
            self.unreadable += 1
            self.example = self.example or f"way/{way.id} {tag}"
        return width.metres

    def _properties(self, way: osmium.osm.Way, asked: _Asked, tags: Any, metres: float) -> dict[str, Any]:
        found = asked.layer.properties("way", way.id, tags)
        found[WIDTH] = round(metres, 2)
        return found

    def _check_order(self, relations: Relations, missing: Collection[int]) -> None:
        """Find out whether what was missing stands further down in the file."""
        if not self._source.in_order and not self._suspects:
            for _, _, members in relations.members(sorted(missing)[: self.SUSPECT_RELATIONS]):
                for member in members:
                    self._suspects.update(point.ref for point in member.points if point.lon != point.lon)
        self._source.check_order(self._suspects)

    def _skip(self, reason: str, kind: str, number: int) -> None:
        self.skipped[reason] += 1
        if len(self.notes) < self.NOTES:
            name = f"{URL}/{kind}/{number}" if number > 0 else f"{kind} {number}"  # negative: not uploaded yet
            self.notes.append(f"{name}: {reason}")


def _begins_nowhere(way: osmium.osm.Way) -> bool:
    """Tell whether the first node is not in the file: such nodes osmium drops without a word."""
    return len(way.nodes) > 0 and not way.nodes[0].location.valid()
