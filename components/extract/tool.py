"""Extract features, in GeoJSON, from OpenStreetMap data (.osm.pbf or .osm).

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
from typing import TYPE_CHECKING, Any, Literal

from rsp.shared.arguments import add_out, require
from rsp.shared.atomic import is_stream
from rsp.shared.claims import GEOJSON, Output, check_paths
from rsp.shared.errors import FeatureError
from rsp.shared.locations import Location, location, on_disk
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
        clipped: How many of them are roads of which only the stretches are there whose nodes are in the data.
        hidden: How many objects were left out because they cannot be seen from above.
        left_out: How many objects were left out because of what is wrong with them.
        skipped: Why: the number for each reason.
        unreadable_tags: How many tags about a width could not be read, and so were not used.
    """

    features: int
    repaired: int = 0
    clipped: int = 0
    hidden: int = 0
    left_out: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unreadable_tags: int = 0


def extract(
    pbf: Location, out: Location, *, kind: str, index: Index = "flex_mem", with_hidden: bool = False
) -> ExtractResult:
    """Write the features of one type from OpenStreetMap data as GeoJSON, in degrees.

    Each feature has the properties `osm_type` (way or relation), `osm_id`, and a few tags of the object; roads
    also `width`, in metres. A polygon may be an area of closed ways or a multipolygon relation; its inner rings
    are holes. Objects come in the order of the file, relations that had to be repaired last.

    Where nodes or members of an object are not in the file, as at the edge of most extracts, an area is left out
    and counted; of a road each run of known nodes is kept, and counted as clipped.

    What cannot be seen from above is left out unless `with_hidden` is set: roads in tunnels (any `tunnel` but
    `no`, a `building_passage` too), under cover (any `covered` but `no`) or indoors, roads and buildings whose
    `location` is underground or underwater. A negative `layer` alone hides nothing.

    The data may be `.osm.pbf`, OSM XML, `.o5m` or `.opl`, the texts also packed as `.gz` or `.bz2`; its content
    tells which. Files whose objects are not sorted by type and id, as Overpass writes them, are sorted in a
    temporary file up to 256 MB of text, or 32 MB in the binary formats. A file cut off exactly between two of its
    blocks cannot be told from a whole one.

    Args:
        pbf: The OpenStreetMap data.
        out: Where the GeoJSON goes.
        kind: `building`, `road`, an entry point of the group `rsp.extractors`, or `module:attribute`.
        index: Where the places of the nodes are kept while reading: `flex_mem` in memory, 16 bytes a node or a
            little less (up to a country); the other two in a temporary file, `dense_file_array` for a continent
            or the planet.
        with_hidden: Also take what cannot be seen from above.

    Raises:
        FeatureError: the data cannot be read, is damaged, cut off or too large to be sorted here, or every object
            of the type had to be left out.
        PluginError: no such type, or a plug-in that fails or returns what it should not.
    """
    from rsp.components.extract.layers import find_layers
    from rsp.components.extract.reader import OsmReader
    from rsp.components.extract.source import DisorderError, Source

    check_paths([Output(out, GEOJSON)], [pbf])
    layers = find_layers([kind])
    with on_disk(pbf) as file, Source(file) as source:
        while True:
            reader = OsmReader(source, layers, index, with_hidden=with_hidden)
            try:
                result = _write(reader, out, kind, pbf)
                break
            except DisorderError as error:
                if is_stream(out):  # what went into a pipe cannot be taken back
                    raise FeatureError(
                        f"{pbf} is not sorted by type and id ({error}); sort it first: "
                        f"osmium sort {pbf} -o sorted.osm.pbf"
                    ) from error
                print(f"extract: {pbf} is not sorted by type and id ({error}); sorting it", file=sys.stderr)
                source.sort(error)
    _tell(reader)
    if result.features == 0:
        print(f"extract: no {kind} in {pbf}", file=sys.stderr)
    return result


def _write(reader: OsmReader, out: Location, kind: str, pbf: Location) -> ExtractResult:
    """Write what the reader yields; return what was done."""
    from rsp.shared.features import feature_writer

    with feature_writer(out) as writer:
        for batch in reader:
            for geometry, properties in zip(*batch, strict=True):
                writer.write(geometry, properties)
        if writer.count == 0 and reader.skipped:
            raise FeatureError(_nothing_left(reader, kind, pbf))
    return ExtractResult(
        features=writer.count,
        repaired=reader.repaired,
        clipped=reader.clipped,
        hidden=reader.hidden,
        left_out=sum(reader.skipped.values()),
        skipped=dict(sorted(reader.skipped.items())),
        unreadable_tags=reader.unreadable,
    )


def _nothing_left(reader: OsmReader, kind: str, pbf: Location) -> str:
    """Return the message for data of which every object had to be left out."""
    from rsp.components.extract.reader import INVALID, MISSING, OPEN

    causes = {
        MISSING: "the file lacks nodes or ways that these objects consist of: end an Overpass query with "
        "`(._;>;); out body;`, and cut files with `osmium extract`, which keeps ways complete",
        OPEN: "their outlines do not end where they begin, so they may be lines, or cut-off parts of areas",
        INVALID: "their outlines enclose no area, so the tool that wrote the file may have dropped or moved nodes",
    }
    counts = ", ".join(f"{reason}: {count}" for reason, count in reader.skipped.most_common())
    (main, _), *_ = reader.skipped.most_common(1)
    hidden = f"; {reader.hidden} more are hidden, see --with_hidden" if reader.hidden else ""
    return (
        f"every {kind} in {pbf} had to be left out ({counts}{hidden}), for example {reader.notes[0]}. "
        f"The likely cause: {causes[main]}"
    )


def _tell(reader: OsmReader) -> None:
    """Say on stderr what was left out."""
    for note in reader.notes:
        print(f"extract: left out {note}", file=sys.stderr)
    more = sum(reader.skipped.values()) - len(reader.notes)
    if more > 0:
        print(f"extract: left out {more} more", file=sys.stderr)
    if reader.clipped:
        print(
            f"extract: clipped: {reader.clipped} (some of their nodes are not in the file; the stretches between "
            "those that are were written)",
            file=sys.stderr,
        )
    if reader.hidden:
        print(
            f"extract: hidden: {reader.hidden} (in a tunnel, covered, indoors or underground, so left out; "
            "--with_hidden includes them)",
            file=sys.stderr,
        )
    if reader.unreadable:
        print(
            f"extract: unreadable width or lanes tags: {reader.unreadable} (for example {reader.example}; the usual "
            "width of the class was used instead)",
            file=sys.stderr,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp extract`."""
    parser.add_argument(
        "pbf", type=location,
        help="OpenStreetMap data, a path or s3://bucket/key: .osm.pbf, .osm (XML), .o5m or .opl, the two texts "
        "also as .gz or .bz2",
    )  # fmt: skip
    add_out(parser, "GeoJSON file to write")
    parser.add_argument(
        "--type", dest="kind", required=True, metavar="TYPE",
        help="building, road, a plug-in, or module:attribute; building and road in upper or lower case",
    )  # fmt: skip
    parser.add_argument(
        "--index", choices=("flex_mem", "dense_file_array", "sparse_file_array"), default="flex_mem",
        help="where the places of nodes are kept: in memory, or in a temporary file for what is larger than a "
        "country (default: flex_mem)",
    )  # fmt: skip
    parser.add_argument(
        "--with_hidden", action="store_true",
        help="also take what cannot be seen from above: roads in tunnels, under cover or indoors, buildings and "
        "roads underground or underwater",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> None:
    """Refuse a missing output."""
    require(args, "out")
