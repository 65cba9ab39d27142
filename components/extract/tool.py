"""Extract features from OpenStreetMap data (.osm.pbf or .osm): buildings, roads, parking areas, or what tags say.

rsp extract --type building lyon.osm.pbf buildings.json
rsp extract --type building road parking --bbox 4.8,45.7,4.9,45.8 rhone-alpes.osm.pbf labels.json
rsp extract --tags forest:landuse=forest forest:natural=wood lyon.osm.pbf forests.json
rsp extract --tags railway=rail,tram --width 4 --changes 1.osc.gz 2.osc.gz lyon.osm.pbf rails.json
rsp extract --type my_package.osm:Parking lyon.osm.pbf parkings.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rsp.shared.arguments import add_out, require
from rsp.shared.atomic import is_stream
from rsp.shared.claims import FEATURES, Output, check_paths
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.locations import Location, location, on_disk
from rsp.shared.progress import progress
from rsp.shared.report import Result

if TYPE_CHECKING:
    from rsp.components.extract.boundary import Boundary
    from rsp.components.extract.layers import Layer
    from rsp.components.extract.pending import Batch
    from rsp.components.extract.reader import OsmReader
    from rsp.components.extract.source import Source

STDOUT = Path("/dev/stdout")

# Metres that a line may be wide; more is a typing error that would flood the map with one class.
WIDEST = 1000.0

Index = Literal["flex_mem", "dense_file_array", "sparse_file_array"]


@dataclass(kw_only=True)
class ExtractResult(Result):
    """What `extract` did.

    Attributes:
        features: How many features were written.
        classes: How many of each type, where several were asked for.
        repaired: How many of them had an invalid geometry that could be made valid.
        clipped: How many of them are lines of which only the stretches are there whose nodes are in the data.
        cut: How many of them were cut off at the boundary.
        outside: How many were left out because they do not meet the boundary.
        hidden: How many objects were left out because they cannot be seen from above.
        left_out: How many objects were left out because of what is wrong with them.
        skipped: Why: the number for each reason.
        unreadable_tags: How many tags about a width could not be read, and so were not used.
    """

    features: int
    classes: dict[str, int] = field(default_factory=dict)
    repaired: int = 0
    clipped: int = 0
    cut: int = 0
    outside: int = 0
    hidden: int = 0
    left_out: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unreadable_tags: int = 0


def extract(
    pbf: Location,
    out: Location,
    *,
    kind: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
    width: float | Mapping[str, float] | None = None,
    bbox: str | None = None,
    poly: Location | None = None,
    clip: bool = False,
    changes: Sequence[Location] | None = None,
    index: Index | None = None,
    with_hidden: bool = False,
) -> ExtractResult:
    """Write the features of some types from OpenStreetMap data, in degrees, in one pass over it.

    Each feature has the properties `osm_type` (way or relation), `osm_id`, and a few tags of the object; lines
    also `width`, in metres. Where several types are asked for, and where a filter of tags names its class, it has
    `class` too; an object of several types comes once for each. A polygon may be an area of closed ways or a
    multipolygon relation; its inner rings are holes. Objects come in the order of the file, relations that had to
    be repaired last.

    Where nodes or members of an object are not in the file, as at the edge of most extracts, an area is left out
    and counted; of a line each run of known nodes is kept, and counted as clipped.

    What cannot be seen from above is left out unless `with_hidden` is set: what is in a tunnel (any `tunnel` but
    `no`, a `building_passage` too), under cover (any `covered` but `no`), indoors, or whose `location` is
    underground or underwater; of buildings only the last. A negative `layer` alone hides nothing.

    The data may be `.osm.pbf`, OSM XML, `.o5m` or `.opl`, the texts also packed as `.gz` or `.bz2`; its content
    tells which. Files whose objects are not sorted by type and id, as Overpass writes them, are sorted in a
    temporary file up to 256 MB of text, or 32 MB in the binary formats. A file cut off exactly between two of its
    blocks cannot be told from a whole one.

    Args:
        pbf: The OpenStreetMap data.
        out: Where the features go, in the format of its suffix: GeoJSON, GeoJSONSeq (`.geojsonl`), FlatGeobuf,
            GeoPackage or GeoParquet; `-` is standard output. The file says whose the data are.
        kind: `building`, `road`, `parking`, an entry point of the group `rsp.extractors`, or `module:attribute`;
            several as a sequence, or in one text with commas between them.
        tags: A filter, or several: `[class:]key`, `[class:]key=value,value` or `[class:]key!=value`, or conditions
            that must hold together, joined by `&`. They find areas, or lines where there is a width. Filters of
            one class count as one.
        width: Metres; what `tags` finds are lines of this width then. A mapping gives it by class.
        bbox: `west,south,east,north` in degrees; west beyond east crosses the antimeridian.
        poly: The same as an area: a `.poly` file, or GeoJSON in degrees, all of whose polygons count. With both,
            features have to meet both.
        clip: Cut features off at the boundary; without it those that meet it are kept whole.
        changes: Change files (`.osc`, also packed), applied to the data first: of each object the newest version
            counts. They are held in memory; the changed data are a temporary file.
        index: Where the places of the nodes are kept while reading: `flex_mem` in memory, 16 bytes a node; the
            other two in a file in the temporary folder, `sparse_file_array` of 16 bytes a node, `dense_file_array`
            of 8 bytes for each id up to the highest, for the planet. Without it, in memory up to about 16 million
            nodes (a .pbf of 150 MB), and in a sparse file beyond.
        with_hidden: Also take what cannot be seen from above.

    Raises:
        FeatureError: the data, the changes or the boundary cannot be read, are damaged, cut off or too large to be
            sorted here, or every object had to be left out.
        PluginError: no such type, or a plug-in that fails or returns what it should not.
        UsageError: nothing is asked for, or a filter, width or bbox that cannot be parsed.
    """
    from rsp.components.extract.layers import find_layers
    from rsp.components.extract.said import hint, named, tell
    from rsp.components.extract.source import Source

    if str(out) == "-":
        out = STDOUT
    check_paths([Output(out, FEATURES)], [pbf, poly, *(changes or [])])
    layers = find_layers(_kinds(kind), [tags] if isinstance(tags, str) else tags or [], width)
    with ExitStack() as stack:
        boundaries = _boundaries(bbox, poly, clip=clip)
        source = stack.enter_context(Source(stack.enter_context(on_disk(pbf))))
        if changes:
            from rsp.components.extract.changes import apply_changes

            apply_changes(source, [stack.enter_context(on_disk(each)) for each in changes])
        reader, result = _read(source, layers, boundaries, out, pbf, index, with_hidden=with_hidden)
    tell(reader, result)
    if result.classes and result.features:
        print("extract:", ", ".join(f"{name}: {count}" for name, count in result.classes.items()), file=sys.stderr)
    if result.features == 0:
        print(f"extract: no {named(layers)} in {pbf}{hint(layers)}", file=sys.stderr)
    return result


def listed(text: str) -> list[str]:
    """Return what stands between semicolons, as a parameter of the component holds several."""
    return [each.strip() for each in text.split(";") if each.strip()]


def _kinds(kind: str | Sequence[str] | None) -> list[str]:
    """Return the types, each by itself."""
    listed = [kind] if isinstance(kind, str) else kind or []
    return [each.strip() for text in listed for each in text.split(",") if each.strip()]


def _boundaries(bbox: str | None, poly: Location | None, *, clip: bool) -> list[Boundary]:
    """Return the areas that features have to meet."""
    if bbox is None and poly is None:
        if clip:
            raise UsageError("--clip cuts at a boundary: give --bbox or --poly")
        return []
    from rsp.components.extract.boundary import Boundary, box_of, read_boundary

    regions = [] if bbox is None else [box_of(bbox)]
    if poly is not None:
        regions.append(read_boundary(poly))
    return [Boundary(region, clip=clip) for region in regions]


def _read(
    source: Source,
    layers: Sequence[Layer],
    boundaries: Sequence[Boundary],
    out: Location,
    pbf: Location,
    index: Index | None,
    *,
    with_hidden: bool,
) -> tuple[OsmReader, ExtractResult]:
    """Read the source, and once more in order where it turns out to have none."""
    from rsp.components.extract.reader import OsmReader
    from rsp.components.extract.source import DisorderError

    while True:
        for boundary in boundaries:
            boundary.cut = boundary.outside = 0
        reader = OsmReader(source, layers, source.index(index), with_hidden=with_hidden)
        try:
            return reader, _write(reader, boundaries, out, layers, pbf)
        except DisorderError as error:
            if is_stream(out):  # what went into a pipe cannot be taken back
                raise FeatureError(
                    f"{pbf} is not sorted by type and id ({error}); sort it first: "
                    f"osmium sort {pbf} -o sorted.osm.pbf"
                ) from error
            print(f"extract: {pbf} is not sorted by type and id ({error}); sorting it", file=sys.stderr)
            source.sort(error)


def _write(
    reader: OsmReader, boundaries: Sequence[Boundary], out: Location, layers: Sequence[Layer], pbf: Location
) -> ExtractResult:
    """Write what the reader yields; return what was done."""
    from rsp.components.extract.said import named, nothing_left
    from rsp.shared.featurewriter import OPENSTREETMAP, feature_writer

    classes = {layer.label: 0 for layer in layers if layer.label is not None}
    with feature_writer(out, schema=_schema(layers), attribution=OPENSTREETMAP) as writer:
        for geometries, properties in _within(reader, boundaries):
            writer.write_batch(geometries, properties)
            if classes:
                for each in properties:
                    classes[each["class"]] += 1
        outside = sum(boundary.outside for boundary in boundaries)
        if writer.count == 0 and reader.skipped and not outside:
            raise FeatureError(nothing_left(reader, named(layers), pbf))
    return ExtractResult(
        features=writer.count,
        classes=classes,
        repaired=reader.repaired,
        clipped=reader.clipped,
        cut=sum(boundary.cut for boundary in boundaries),
        outside=outside,
        hidden=reader.hidden,
        left_out=sum(reader.skipped.values()),
        skipped=dict(sorted(reader.skipped.items())),
        unreadable_tags=reader.unreadable,
    )


def _schema(layers: Sequence[Layer]) -> dict[str, type]:
    """Return the columns of a table of these features."""
    found: dict[str, type] = {"osm_type": str, "osm_id": int}
    if any(layer.label is not None for layer in layers):
        found["class"] = str
    for layer in layers:
        found |= {key: str for key in layer.extractor.tags if key not in found}
    return found if all(layer.areas for layer in layers) else found | {"width": float}


def _within(reader: OsmReader, boundaries: Sequence[Boundary]) -> Iterator[Batch]:
    """Yield the features that meet all boundaries."""
    for batch in progress(reader, "extract", unit="object", size=lambda batch: len(batch.properties)):
        for boundary in boundaries:
            batch = boundary.within(batch)
        yield batch


class _Several(argparse.Action):
    """A flag with several values. It remembers the last of its kind, which may have taken positionals."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])
        namespace._last = self.dest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp extract`."""
    parser.add_argument(
        "pbf", type=location, nargs="?",
        help="OpenStreetMap data, a path or s3://bucket/key: .osm.pbf, .osm (XML), .o5m or .opl, the two texts "
        "also as .gz or .bz2",
    )  # fmt: skip
    add_out(
        parser, "features to write: .geojson or .json, .geojsonl, .fgb, .gpkg or .parquet; - for standard output"
    )
    parser.add_argument(
        "--type", dest="kind", action=_Several, nargs="+", metavar="TYPE",
        help="building, road, parking, a plug-in, or module:attribute; of several each feature has its class",
    )  # fmt: skip
    parser.add_argument(
        "--tags", action=_Several, nargs="+", metavar="FILTER",
        help="what has these tags: [class:]key, [class:]key=value,value, [class:]key!=value, or several joined by "
        "&; areas, or lines with --width (a key that holds a colon: :roof:shape=flat)",
    )  # fmt: skip
    parser.add_argument(
        "--width", action=_Several, nargs="+", metavar="METRES",
        help="take lines of this width for --tags; CLASS=METRES for those of one class",
    )  # fmt: skip
    parser.add_argument(
        "--bbox",
        metavar="W,S,E,N",
        help="only what meets this box, in degrees; west beyond east crosses 180 degrees",
    )
    parser.add_argument(
        "--poly", type=location, metavar="FILE",
        help="only what meets this area: a .poly file, or GeoJSON in degrees",
    )  # fmt: skip
    parser.add_argument(
        "--clip", action="store_true", help="cut features off at --bbox or --poly; otherwise they stay whole"
    )
    parser.add_argument(
        "--changes", type=location, action=_Several, nargs="+", metavar="OSC",
        help="change files to apply to the data first: .osc, .osc.gz, .osc.bz2 or .o5c",
    )  # fmt: skip
    parser.add_argument(
        "--index", choices=("flex_mem", "dense_file_array", "sparse_file_array"),
        help="where the places of nodes are kept: in memory, or in a file in the temporary folder, dense for the "
        "planet (default: in memory up to about 16 million nodes, a .pbf of 150 MB, and sparse beyond)",
    )  # fmt: skip
    parser.add_argument(
        "--with_hidden", action="store_true",
        help="also take what cannot be seen from above: what is in tunnels, under cover, indoors, underground or "
        "underwater",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> None:
    """Give positionals back that a flag with several values has taken, and parse the widths."""
    taken = getattr(args, vars(args).pop("_last", "kind")) or []
    for name in ("out", "pbf"):
        if getattr(args, name) is None and len(taken) > 1:
            setattr(args, name, location(taken.pop()))
    require(args, "pbf", "out")
    if args.width is not None:
        args.width = widths_of(args.width)
    if not args.kind and not args.tags:
        raise UsageError("nothing to extract: give --type, --tags or both")


def widths_of(texts: Sequence[str]) -> float | dict[str, float]:
    """Return the metres of `4`, or by class those of `rail=4`, `river=12`.

    Raises:
        UsageError: no widths, or some with a class and some without.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, metres = text.rpartition("=")
        try:
            value = float(metres)
        except ValueError:
            value = 0
        if not 0 < value <= WIDEST or name in found:
            raise UsageError(f"--width is metres up to {WIDEST:g}, or CLASS=METRES for several; got {text!r}")
        found[name] = value
    if "" in found and len(found) > 1:
        raise UsageError("--width is one for all of --tags, or has a class each: CLASS=METRES")
    return found.get("", found)
