"""Rasterize vector features (GeoJSON or PostGIS) to label tiles.

rsp rasterize --geojson buildings.json cover labels
rsp rasterize --geojson 'roads/*.json' --type road --append cover labels
rsp rasterize --postgis 'SELECT geom FROM buildings' cover labels.pmtiles
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rsp.shared.arguments import add_config, add_out, add_web_ui, add_workers, require
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import TileError, UsageError
from rsp.shared.locations import Address, Location, exists, location
from rsp.shared.progress import progress
from rsp.shared.report import Result, note_failures

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from rsp.components.rasterize.burn import Burnt, Chunk
    from rsp.components.rasterize.source import Source
    from rsp.shared.config import ClassDef
    from rsp.shared.jobs import Failure
    from rsp.shared.tiles import Tile

MAX_SIZE = 4096

# Tiles that a further process must have to do: starting one takes as long as burning some hundred.
WORTH = 256


@dataclass(kw_only=True)
class RasterizeResult(Result):
    """What `rasterize` did.

    Attributes:
        features: How many features meet the cover and were burnt.
        left_out: How many were not.
        skipped: Why: the number of each reason.
        tiles: How many tiles of the cover have a label now.
        foreground: Which share of the pixels written is of the class, 0 to 1.
    """

    features: int
    left_out: int
    skipped: dict[str, int] = field(default_factory=dict)
    tiles: int
    foreground: float


def rasterize(
    cover: Location,
    out: Location,
    *,
    geojson: str | None = None,
    postgis: str | None = None,
    config: Location | None = None,
    tile_size: int | None = None,
    kind: str | None = None,
    append: bool = False,
    buffer: float = 0.0,
    tile_format: str = "png",
    workers: int | None = None,
    resume: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
    crs: str | None = None,
) -> RasterizeResult:
    """Write a label for every tile of a cover: the class of each pixel whose centre lies in a polygon.

    A label is a single-band paletted PNG of class indices, in the complementary palette (see
    `rsp.shared.images.complementary`). The polygons may be of any CRS that the GeoJSON states in its `crs` member.
    Only the polygons that meet the cover are held in memory.

    Args:
        cover: The cover; all its tiles have one zoom.
        out: The tile set to write.
        geojson: A GeoJSON path, an address in S3, or a glob pattern of either.
        postgis: A SELECT whose column `geom` holds the polygons; the connection is the configuration's.
        config: The configuration file, for the classes and the size of a tile. With `append` it is not needed
            where the labels that are there tell both, as ours do; it may then add classes at the end.
        tile_size: Side of a tile in pixels (default: the configuration's, else that of the labels that are there).
        kind: Title of the class that the polygons are (default: the one class beside the background).
        append: Keep the labels that are there below the new ones: of two classes the higher index wins.
        buffer: Widen the polygons by so many metres of EPSG:3857 (below 0: shrink them, which separates houses
            that touch).
        tile_format: Format of the labels: png, which is the only one that keeps class indices.
        workers: Processes (default: one for each processor).
        resume: Keep labels that are there as they are.
        web_ui_base_url: Where the map finds the tiles.
        web_ui_template: HTML template of your own.
        web_ui: Write a web map.
        crs: The CRS of the GeoJSON, as EPSG:2154, whatever the file says.

    Raises:
        UsageError: the arguments do not fit together.
        ConfigError: no configuration, no such class in it, or no connection to PostGIS.
        CoverError: no cover, an empty one, or one of several zooms.
        FeatureError: no such file, one that cannot be read, or a database or query that does not answer.
    """
    from rsp.components.rasterize.burn import Job, TileIndex
    from rsp.shared.covers import Cover
    from rsp.shared.images import complementary
    from rsp.shared.jobs import Failure, run_job
    from rsp.shared.tiles import read_cover, zoom_of
    from rsp.shared.tileset import classes_metadata, open_writer
    from rsp.shared.webmap import write_webmap

    if append and resume:
        raise UsageError("--append merges into the labels that are there, --resume leaves them: choose one")
    if tile_format != "png":
        raise UsageError(f"labels are png, got --format {tile_format}: the other formats lose class indices")
    check_paths([tiles_output(out, web_ui=web_ui)], [geojson, config, web_ui_template], cover=cover)
    present = out.expanduser() if append and _has_labels(out.expanduser()) else None
    classes, size, connection = _settings(config, tile_size, present, postgis is not None)
    if not 1 <= size <= MAX_SIZE:
        raise UsageError(f"--tile_size must be from 1 to {MAX_SIZE}, got {size}")
    colors = complementary([entry.color for entry in classes])
    job = Job(size, _class_index(classes, kind), tuple(colors), present)
    tiles = read_cover(cover)
    zoom_of(tiles, cover)
    source = _source(geojson, postgis, connection, crs)

    index = TileIndex(tiles)
    polygons = progress(source.polygons(_widened(index.bounds, buffer)), "rasterize: read", unit="feature")
    index.fill(_buffered(polygons, buffer, source))
    skipped = dict(sorted((source.skipped + _counted(index.outside)).items()))
    _tell(skipped, index.used, cover)

    failed: dict[Tile, str] = {}
    foreground = done = 0
    empty = job.empty()
    with open_writer(out, tile_format, resume=resume or append) as writer:
        writer.describe({"tile_size": size, "classes": classes_metadata(classes)})
        keep = writer.done if resume else Cover()
        todo = [tile for tile in index.tiles if tile not in keep]
        chunks = run_job(job, index.chunks(keep), len(todo), workers, worth=WORTH)
        with closing(chunks):
            for tile, burnt in progress(_each_tile(chunks), "rasterize", total=len(todo)):
                if isinstance(burnt, Failure):
                    failed[tile] = burnt.reason
                    continue
                writer.write(tile, burnt.data or empty)
                foreground += burnt.foreground
                done += 1
        if todo and not done:
            raise TileError(f"no label could be merged into {out}: {next(iter(failed.values()))}")
    note_failures(out, failed)
    if web_ui:
        write_webmap(out, tiles, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    return RasterizeResult(
        failed=failed,
        features=index.used,
        left_out=sum(skipped.values()),
        skipped=skipped,
        tiles=len(tiles) - len(failed),
        foreground=foreground / (done * size * size) if done else 0.0,
    )


def _settings(
    config: Location | None, tile_size: int | None, present: Location | None, connecting: bool
) -> tuple[Sequence[ClassDef], int, str | None]:
    """Return the classes, the side of a tile and the connection to PostGIS.

    The labels to append to are asked first. A configuration is read where it is named, or needed.
    """
    from rsp.shared.classes import find_classes
    from rsp.shared.config import load_config
    from rsp.shared.tileset import TileSetInfo, read_info

    told = TileSetInfo() if present is None else read_info(present)
    size = tile_size if tile_size is not None else None if config else told.tile_size
    settings = load_config(config) if config or connecting or told.classes is None or size is None else None
    if size is None:
        assert settings is not None
        size = settings.model.ts
    if present is not None and told.classes is not None:
        classes = find_classes(config, [present], extended=True)
    else:
        assert settings is not None
        classes = settings.classes
    return classes, size, settings.pg_dsn if settings else None


def _class_index(classes: Sequence[ClassDef], kind: str | None) -> int:
    """Return the class to burn."""
    from rsp.shared.classes import class_index

    others = ", ".join(entry.title for entry in classes[1:])
    if kind is not None:
        index = class_index(classes, kind)
        if index == 0:
            raise UsageError(f"--type {kind} is the background; choose {others}")
        return index
    if len(classes) > 2:
        raise UsageError(f"which class are the polygons? Say --type with one of {others}")
    return 1


def _source(geojson: str | None, postgis: str | None, dsn: str | None, crs: str | None) -> Source:
    """Return the source that the arguments name."""
    from rsp.components.rasterize.source import GeoJsonSource
    from rsp.shared.crs import parse_crs

    if (geojson is None) == (postgis is None):
        raise UsageError("give the polygons either with --geojson or with --postgis")
    if geojson is not None:
        return GeoJsonSource(geojson, None if crs is None else parse_crs(crs))
    if crs is not None:
        raise UsageError("--crs goes with --geojson; geometries of PostGIS have an SRID of their own")
    assert postgis is not None
    from rsp.components.rasterize.postgis import PostgisSource

    return PostgisSource(postgis, dsn)


def _widened(bounds: tuple[float, float, float, float], metres: float) -> tuple[float, float, float, float]:
    west, south, east, north = bounds
    reach = max(0.0, metres)
    return west - reach, south - reach, east + reach, north + reach


def _buffered(polygons: Iterable[BaseGeometry], metres: float, source: Source) -> Iterator[BaseGeometry]:
    """Yield polygons widened or shrunk; count those that vanish."""
    for polygon in polygons:
        wide = polygon.buffer(metres) if metres else polygon
        if wide.is_empty:
            source.skipped["nothing left of it after --buffer"] += 1
        else:
            yield wide


def _counted(outside: int) -> Counter[str]:
    from rsp.components.rasterize.source import OUTSIDE

    return Counter({OUTSIDE: outside})


def _tell(skipped: dict[str, int], used: int, cover: Location) -> None:
    """Say on stderr what was left out, and whether nothing is left."""
    for reason, count in skipped.items():
        print(f"rasterize: left out {count} features: {reason}", file=sys.stderr)
    if not used:
        print(f"rasterize: warning: no feature meets {cover}; all labels are background", file=sys.stderr)


def _has_labels(out: Location) -> bool:
    """Tell whether there is a tile set to append to; raise where what is there cannot be read."""
    from rsp.shared.errors import TileSetError
    from rsp.shared.tileset import open_reader

    try:
        open_reader(out).close()
    except TileSetError:
        if isinstance(out, Address):
            if exists(out):
                raise
        elif out.is_file() or (out.is_dir() and any(out.glob("*/*/*"))):
            raise
        return False
    return True


def _each_tile(
    chunks: Iterable[tuple[Chunk, list[Burnt | Failure] | Failure]],
) -> Iterator[tuple[Tile, Burnt | Failure]]:
    for chunk, burnt in chunks:
        assert isinstance(burnt, list)  # each tile has a failure of its own
        yield from zip(chunk.tiles, burnt, strict=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp rasterize`."""
    parser.add_argument("cover", type=location, help="cover of the labels, in CSV (x,y,z)")
    add_out(parser, "tile set to write: a directory, or a PMTiles file")
    inputs = parser.add_argument_group("Polygons (one of)")
    inputs.add_argument(
        "--geojson", metavar="FILE", help="GeoJSON file, a path or s3://bucket/key, or a glob pattern in quotes"
    )
    inputs.add_argument(
        "--crs", metavar="EPSG:CODE", help="CRS of the GeoJSON, as EPSG:2154 (default: what it says, else degrees)"
    )
    inputs.add_argument("--postgis", metavar="SELECT", help="SQL query with a column `geom`")
    add_config(parser)
    parser.add_argument(
        "--tile_size", "--ts", dest="tile_size", type=tile_side, default=None, metavar="PIXELS",
        help="side of a tile in pixels (default: the configuration's)",
    )  # fmt: skip
    parser.add_argument(
        "--type", dest="kind", metavar="CLASS",
        help="title of the class that the polygons are; needed where the configuration has more than one",
    )  # fmt: skip
    parser.add_argument("--append", action="store_true", help="merge into existing labels: the higher class wins")
    parser.add_argument(
        "--buffer", type=float, default=0.0, metavar="METRES",
        help="widen the polygons, or shrink them (below 0), in metres of EPSG:3857 (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--format", dest="tile_format", choices=("png",), default="png", help="format of the labels (default: png)"
    )
    add_workers(parser)
    parser.add_argument("--resume", action="store_true", help="keep existing labels")
    add_web_ui(parser)


def tile_side(text: str) -> int:
    """Parse `512` or `512,512`."""
    sides = set(text.split(","))
    try:
        (side,) = map(int, sides)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected 512, or 512,512, got {text!r}") from None
    return side


def resolve(args: argparse.Namespace) -> None:
    """Refuse a missing output."""
    require(args, "out")
