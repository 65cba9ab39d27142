"""Extract features, in GeoJSON, from OpenStreetMap data (.osm.pbf).

rsp extract --type building lyon.osm.pbf buildings.json
rsp extract --type road lyon.osm.pbf roads.json
rsp extract --type my_package.osm:Parking lyon.osm.pbf parkings.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rsp.shared.arguments import add_out, require
from rsp.shared.progress import progress
from rsp.shared.report import Result

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from rsp.components.extract.osm import Extractor
    from rsp.components.extract.reader import OsmObject, OsmReader

Index = Literal["flex_mem", "dense_file_array", "sparse_file_array"]

# Roads are widened this many at once, which is ten times as fast as one by one.
BATCH = 1000


@dataclass(kw_only=True)
class ExtractResult(Result):
    """What `extract` did.

    Attributes:
        features: How many features were written.
        repaired: How many of them had an invalid geometry that could be made valid.
        left_out: How many objects of the type were not written.
        skipped: Why: the number of each reason.
        unreadable_tags: How many tags about a width could not be read, and so were not used.
    """

    features: int
    repaired: int = 0
    left_out: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unreadable_tags: int = 0


def extract(pbf: Path, out: Path, *, kind: str, index: Index = "flex_mem") -> ExtractResult:
    """Write the features of one type from OpenStreetMap data as GeoJSON, in degrees.

    Each feature has the properties `osm_type` (way or relation), `osm_id`, and a few tags of the object; roads
    also `width`, in metres. Objects come in the order of the file. A polygon may be an area of closed ways or a
    multipolygon relation; its inner rings are holes. An object whose nodes or members are not all in the file,
    as at the edge of every extract, is left out and counted. A file cut off exactly between two of its blocks
    cannot be told from a whole one.

    Args:
        pbf: The OpenStreetMap data.
        out: Where the GeoJSON goes.
        kind: `building`, `road`, an entry point of the group `rsp.extractors`, or `module:attribute`.
        index: Where the places of the nodes are kept while reading: `flex_mem` in memory, 16 bytes a node or a
            little less (up to a country); the other two in a temporary file, `dense_file_array` for a continent
            or the planet.

    Raises:
        FeatureError: the data cannot be read, is damaged, or is cut off.
        PluginError: no such type.
    """
    from rsp.components.extract.osm import find_extractor
    from rsp.components.extract.reader import OsmReader
    from rsp.shared.features import feature_writer

    extractor = find_extractor(kind)
    reader = OsmReader(pbf.expanduser(), extractor, index)
    unreadable: list[str] = []
    with feature_writer(out) as writer:
        for geometry, properties in _features(progress(reader, "extract", unit="object"), extractor, unreadable):
            writer.write(geometry, properties)
    _tell(reader, unreadable)
    if writer.count == 0:
        print(f"extract: no {kind} in {pbf}", file=sys.stderr)
    return ExtractResult(
        features=writer.count,
        repaired=reader.repaired,
        left_out=sum(reader.skipped.values()),
        skipped=dict(sorted(reader.skipped.items())),
        unreadable_tags=len(unreadable),
    )


def _features(
    objects: Iterable[OsmObject], extractor: Extractor, unreadable: list[str]
) -> Iterator[tuple[BaseGeometry, dict[str, Any]]]:
    """Yield the geometry and the properties of each feature, lines as polygons of their width."""
    from rsp.components.extract.geometry import Widener

    widener = Widener()
    objects = iter(objects)
    while batch := list(islice(objects, BATCH)):
        widths = {}
        for number, item in enumerate(batch):
            if item.geometry.geom_type == "LineString":
                width = extractor.width(item.tags)
                widths[number] = width.metres
                unreadable += (f"{item.kind}/{item.number} {tag}" for tag in width.ignored)
        wide = dict(
            zip(
                widths,
                widener.widen([batch[number].geometry for number in widths], list(widths.values())),
                strict=True,
            )
        )
        for number, item in enumerate(batch):
            properties: dict[str, Any] = {"osm_type": item.kind, "osm_id": item.number}
            properties |= {tag: item.tags[tag] for tag in extractor.tags if tag in item.tags}
            if number in widths:
                properties["width"] = round(widths[number], 2)
            yield wide.get(number, item.geometry), properties


def _tell(reader: OsmReader, unreadable: list[str]) -> None:
    """Say on stderr what was left out."""
    for note in reader.notes:
        print(f"extract: skipped {note}", file=sys.stderr)
    left = sum(reader.skipped.values()) - len(reader.notes)
    if left > 0:
        print(f"extract: skipped {left} more", file=sys.stderr)
    if unreadable:
        print(
            f"extract: {len(unreadable)} tags about a width cannot be read, as {unreadable[0]}; the width of the "
            "class was taken",
            file=sys.stderr,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp extract`."""
    parser.add_argument("pbf", type=Path, help="OpenStreetMap data (.osm.pbf)")
    add_out(parser, "GeoJSON file to write")
    parser.add_argument(
        "--type", dest="kind", required=True, metavar="TYPE",
        help="building, road, a plug-in, or module:attribute; upper and lower case are the same",
    )  # fmt: skip
    parser.add_argument(
        "--index", choices=("flex_mem", "dense_file_array", "sparse_file_array"), default="flex_mem",
        help="where the places of nodes are kept: in memory, or in a temporary file for what is larger than a "
        "country (default: flex_mem)",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> None:
    """Refuse a missing output."""
    require(args, "out")
