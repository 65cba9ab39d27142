"""Make a tile cover, in CSV (x,y,z), from features, boxes, rasters, tile sets, other covers, or a database.

rsp cover --bbox 4.8,45.7,4.83,45.73 --zoom 18 cover
rsp cover --geojson north.json south.json --zoom 18 --out cover
rsp cover --raster scene.tif --zoom 18 cover
rsp cover --dir images --splits 70,30 training/cover validation/cover
rsp cover --cover cover --zoom 16 --format geojson --union area.json
osmium extract --bbox "$(rsp cover --dir images --extent)" country.osm.pbf -o here.osm.pbf
rsp cover - --zoom 14 - < features.json
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rsp.shared.arguments import add_out, int_list
from rsp.shared.claims import COVER, Form, Output, check_paths
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.locations import Location, location
from rsp.shared.report import Result
from rsp.shared.tiles import MAX_TILES, MAX_ZOOM

Kind = Literal["geojson", "bbox", "dir", "cover", "raster", "sql"]
OutFormat = Literal["cover", "extent", "geojson"]
KINDS, FORMATS = get_args(Kind), get_args(OutFormat)

# What stands for standard input and standard output.
STREAM = "-"

_FORMS = {
    "cover": COVER,
    "extent": Form("an extent", (".txt", ".csv")),
    "geojson": Form("GeoJSON", (".json", ".geojson", ".geojsonl", ".geojsons")),
}


@dataclass(kw_only=True)
class CoverResult(Result):
    """What `cover` did.

    Attributes:
        tiles: How many tiles the cover has.
        parts: How many of them went to each output.
        extent: West, south, east and north of all tiles, in degrees; west is beyond east over the antimeridian.
    """

    tiles: int
    parts: list[int]
    extent: str


def cover(
    source: str | Sequence[str],
    out: list[Location],
    *,
    kind: Kind = "geojson",
    zoom: int | None = None,
    splits: list[int] | None = None,
    seed: int = 0,
    block: int = 1,
    stable: bool = False,
    crs: str | None = None,
    pg: str | None = None,
    out_format: OutFormat = "cover",
    union: bool = False,
    max_tiles: int = MAX_TILES,
    layer: str | None = None,
) -> CoverResult:
    """Write the tiles that cover something, sorted, each once.

    Args:
        source: What is covered, or several of the same kind. Files of features, tile sets, covers and rasters are
            paths or addresses in S3, those of features and rasters also glob patterns of either, or URLs. Features
            may be GeoJSON, GeoPackage, Shapefile (also zipped), FlatGeobuf, GeoParquet, or what else GDAL reads. A
            box is `west,south,east,north[,EPSG:code]` (degrees unless a code is given; west beyond east crosses
            the antimeridian). A query is a SELECT with a column `geom`. `-` reads features, tiles or boxes from
            standard input, whichever it holds.
        out: Where the covers go: one path, or as many as there are splits; `-` is standard output.
        kind: What `source` is.
        zoom: The zoom of the cover, needed for all but tile sets and covers. A tile set that has it gives only
            these tiles; those of others, and of covers, are divided or put together.
        splits: Percentages that sum to 100, one for each output.
        seed: Seed of the shuffle before a split.
        block: Side in tiles, of the lowest zoom where there are several, of the squares that a split keeps
            together.
        stable: Let a hash of its place decide where a block goes, so that tiles that come later move none.
        crs: The CRS of the features or the bounding box, as EPSG:2154, whatever the file says.
        pg: How to connect to PostGIS, as `host=localhost dbname=gis`, without a password (that stands in
            `PGPASSWORD` or `~/.pgpass`); None asks the environment (`PGHOST` and so on), then the configuration.
        out_format: What is written: `cover`, a tile a line; `extent`, the box around them; `geojson`, their
            outlines.
        union: Of `geojson`: one outline around all tiles that touch.
        max_tiles: Refuse to make a cover of more tiles.
        layer: The layer of the files of features, where they have several.

    Raises:
        UsageError: the arguments do not fit together, or the cover would have too many tiles.
        FeatureError: features that cannot be read, or coordinates that cannot be meant; says which, and why.
        RasterError: a raster that cannot be read, or has no place on the tile grid.
        ConfigError: nothing says how to connect to PostGIS.
        CoverError: nothing is covered, or a cover that cannot be read.
    """
    from rsp.components.cover.outputs import extent_text, write_out
    from rsp.components.cover.sources import covered, nothing
    from rsp.shared.splits import split_cover

    sources = [source] if isinstance(source, str) else list(source)
    _check(sources, out, kind, zoom, splits, stable, pg, out_format, union)
    tiles = covered(kind, sources, zoom=zoom, crs=crs, pg=pg, max_tiles=max_tiles, layer=layer)
    if not tiles:
        raise nothing(sources)
    parts = split_cover(tiles, splits, seed=seed, block=block, stable=stable) if splits else [tiles]
    for path, part in zip(out, parts, strict=True):
        if not part:
            advice = "; try another --seed, smaller blocks, or --splits without --stable" if stable else ""
            raise CoverError(f"{len(tiles)} tiles are too few to split: {path} would be empty{advice}")
    for path, part in zip(out, parts, strict=True):
        write_out(path, part, out_format, union=union)
    return CoverResult(tiles=len(tiles), parts=[len(part) for part in parts], extent=extent_text(tiles))


def _check(
    sources: list[str], out: list[Location], kind: str, zoom: int | None, splits: list[int] | None, stable: bool,
    pg: str | None, out_format: str, union: bool,
) -> None:  # fmt: skip
    """Raise `UsageError` where arguments do not fit together."""
    if not sources:
        raise UsageError("there is nothing to cover: no input is named")
    if splits is None and len(out) != 1:
        raise UsageError(f"one output path without --splits, got {len(out)}")
    if splits is not None and len(splits) != len(out):
        raise UsageError(f"--splits has {len(splits)} parts for {len(out)} output paths")
    if kind not in KINDS:
        raise UsageError(f"--type is {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {kind!r}")
    if out_format not in FORMATS:
        raise UsageError(f"--format is {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {out_format!r}")
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise UsageError(f"--zoom must be from 0 to {MAX_ZOOM}, got {zoom}")
    if stable and splits is None:
        raise UsageError("--stable says how to split; give --splits, too")
    if union and out_format != "geojson":
        raise UsageError("--union joins outlines; give --format geojson, too")
    if pg is not None and kind != "sql":
        raise UsageError("--pg says where --sql asks; give a query")
    files = [path for path in out if str(path) != STREAM]
    if len(out) - len(files) > 1:
        raise UsageError("standard output can take one part only; give the others paths")
    reads = [] if kind in ("bbox", "sql") else [each for each in sources if each != STREAM]
    check_paths([Output(path, _FORMS[out_format]) for path in files], reads)


class _Type(argparse.Action):
    """`--type`, and that it was given: beside a flag that names the input it says what comes out."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        namespace.kind = values
        namespace.typed = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp cover`."""
    parser.add_argument(
        "source", nargs="?", default=argparse.SUPPRESS, metavar="input",
        help="file of features (or glob pattern), bounding box, raster, tile set or cover, as --type says; files "
        "also as s3://bucket/key, features and rasters as URLs; - reads standard input",
    )  # fmt: skip
    add_out(
        parser,
        "where to write the cover, path or s3://bucket/key, - for standard output; one for each of the splits",
        several=True,
    )  # fmt: skip
    parser.add_argument(
        "--type", dest="kind", choices=list(dict.fromkeys([*KINDS, *FORMATS])), default="geojson", action=_Type,
        help="what the input is (default: geojson); beside one of the flags below what is written, as --format",
    )  # fmt: skip
    for kind, nargs, metavar, what in (
        ("geojson", "+", "FILE", "features to cover"),
        ("bbox", "+", "W,S,E,N", "box in degrees, or with ,EPSG:CODE; west beyond east crosses the antimeridian"),
        ("dir", 1, "TILES", "tile set"),
        ("cover", 1, "FILE", "another cover; --zoom divides its tiles or puts them together"),
        ("raster", "+", "FILE", "rasters, covered by their true outlines"),
        ("sql", 1, "SELECT", "query to PostGIS with a column `geom`"),
    ):
        names = ["--geojson", "--features"] if kind == "geojson" else [f"--{kind}"]
        parser.add_argument(
            *names, action="extend" if kind != "bbox" else "append", nargs=nargs, metavar=metavar,
            help=f"input: {what}; may be repeated",
        )  # fmt: skip
    parser.add_argument(
        "--pg", metavar="DSN",
        help="how to connect to PostGIS, as `host=localhost dbname=gis`, without a password (default: as PGHOST, "
        "PGDATABASE and so on say, then the configuration)",
    )  # fmt: skip
    parser.add_argument("--zoom", type=int, help="zoom of the cover; needed for all but tile sets and covers")
    parser.add_argument(
        "--crs", metavar="EPSG:CODE", help="CRS of the input, as EPSG:2154 (default: what it says, else degrees)"
    )
    parser.add_argument("--layer", metavar="NAME", help="layer of the features, where their file has several")
    parser.add_argument(
        "--format", dest="out_format", choices=FORMATS, default="cover",
        help="what to write: a tile a line, the extent as w,s,e,n, or outlines as GeoJSON (default: cover)",
    )  # fmt: skip
    parser.add_argument(
        "--extent", dest="out_format", action="store_const", const="extent", default="cover",
        help="`--format extent`; to standard output where no output is named",
    )  # fmt: skip
    parser.add_argument("--union", action="store_true", help="with `--format geojson`: join tiles that touch")
    parser.add_argument(
        "--max_tiles", type=int, default=MAX_TILES, metavar="N",
        help=f"refuse to make more tiles than this (default: {MAX_TILES})",
    )  # fmt: skip
    parser.add_argument(
        "--splits", type=int_list, metavar="A,B", help="percentages that add up to 100: 70,30 or 70/30"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument(
        "--block", type=int, default=1, metavar="N",
        help="split by blocks of N x N tiles, since neighbouring tiles look alike (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--stable", action="store_true",
        help="split by a hash of each block's place: tiles that come later move none, shares hold on average",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> None:
    """Bring `--bbox B out`, `--bbox B --out out` and `--type bbox B out` to one form."""
    named = [kind for kind in KINDS if getattr(args, kind) is not None]
    typed = getattr(args, "typed", False)
    positional = getattr(args, "source", None)
    outs = [*(args.out or [])]
    if len(named) > 1:
        raise UsageError(
            f"one kind of input, got --{' and --'.join(named)}; make a cover of each, and one of these"
        )
    if named:
        (kind,) = named
        if typed and args.kind in FORMATS:
            args.out_format = args.kind
        elif typed and args.kind != kind:
            raise UsageError(f"--{kind} is the input: --type {args.kind} cannot be meant beside it")
        args.kind = kind
        values = getattr(args, kind)
        # The first positional is an output then.
        outs = [*([location(positional)] if positional is not None else []), *outs]
        if kind == "bbox":
            found = [_boxes(group) for group in values]
            args.source = [box for boxes, _ in found for box in boxes]
            outs = [*(location(rest) for _, others in found for rest in others), *outs]
        else:
            args.source, more = _apart(values) if kind in ("geojson", "raster") and not outs else (values, [])
            outs += more
    else:
        if typed and args.kind not in KINDS:
            args.out_format, args.kind = args.kind, "geojson"
        args.source = [positional.strip()] if positional else []
        if args.kind == "bbox" and args.source and _NUMBER.fullmatch(args.source[0]):
            args.source, rest = _boxes([*args.source, *map(str, outs)])
            outs = [*map(location, rest)]
    if not args.source:
        raise UsageError(f"the input is missing; give it as an argument, or as --{', --'.join(KINDS)}")
    if not outs and args.out_format == "extent":
        outs = [Path(STREAM)]
    if not outs:
        raise UsageError("`out` is missing; give it as an argument, or as --out")
    args.out = outs


_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*,?")


def _boxes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take apart what follows `--bbox`: boxes, each one word or four and perhaps a CRS; and outputs after them."""
    boxes: list[str] = []
    rest = list(words)
    while rest and (not boxes or _NUMBER.fullmatch(rest[0]) or re.match(r"\s*[-+.\d]+[\s,]|\s*\[", rest[0])):
        count = 1
        if _NUMBER.fullmatch(rest[0]) or (rest[0].lstrip().startswith("[") and "]" not in rest[0]):
            count = 4
        if len(rest) > count and rest[count].lstrip(" ,").upper().startswith("EPSG:"):
            count += 1
        boxes.append(" ".join(rest[:count]))
        rest = rest[count:]
    return boxes, rest


def _apart(values: Sequence[str]) -> tuple[list[str], list[Location]]:
    """Take apart inputs, and at the end outputs that are named as covers, where no output stands elsewhere."""
    end = len(values)
    while end > 1 and (
        values[end - 1] == STREAM or location(values[end - 1]).suffix.lower() in ("", *COVER.suffixes)
    ):
        end -= 1
    return list(values[:end]), [location(value) for value in values[end:]]
