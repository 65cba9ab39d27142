"""Rasterize vector features (files or PostGIS) to label tiles.

rsp rasterize --geojson buildings.json cover labels
rsp rasterize --geojson buildings.json --like images cover labels
rsp rasterize --geojson building=buildings.json --geojson 'road=roads/*.json' cover labels
rsp rasterize --geojson osm.json --type_field kind --order road,building cover labels
rsp rasterize --geojson buildings.json --buffer -0.5 --borders 1.5 --counts cover labels.pmtiles
rsp rasterize --geojson buildings.json --weights weights --weight_sigma 2 cover labels
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
    from rsp.components.rasterize.burn import Block, Burnt
    from rsp.components.rasterize.source import Source
    from rsp.shared.config import ClassDef
    from rsp.shared.jobs import Failure
    from rsp.shared.tiles import Tile

MAX_SIZE = 4096

# Tiles that a further process must have to do: starting one takes as long as burning some hundred.
WORTH = 512


@dataclass(kw_only=True)
class RasterizeResult(Result):
    """What `rasterize` did.

    Attributes:
        features: How many features meet the cover and were burnt.
        left_out: How many were not.
        skipped: Why: the number of each reason.
        tiles: How many tiles of the cover have a label now.
        foreground: Which share of the pixels written is of no background, 0 to 1.
        instances: For each class of which there are features: how many (`features`), in how many tiles of the
            cover (`tiles`), and how many of them at most in one (`most`).
        shares: Which share of the pixels written is of each class, 0 to 1.
        weighted: How many tiles of weights were written that are not 0 throughout.
    """

    features: int
    left_out: int
    skipped: dict[str, int] = field(default_factory=dict)
    tiles: int
    foreground: float
    instances: dict[str, dict[str, int]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    weighted: int = 0


def rasterize(
    cover: Location,
    out: Location,
    *,
    geojson: str | Sequence[str] | None = None,
    postgis: str | Sequence[str] | None = None,
    config: Location | None = None,
    tile_size: int | None = None,
    like: Location | None = None,
    layer: str | None = None,
    kind: str | None = None,
    type_field: str | None = None,
    order: str | None = None,
    append: bool = False,
    buffer: float = 0.0,
    all_touched: bool = False,
    borders: str | None = None,
    border_type: str = "border",
    counts: bool = False,
    weights: Location | None = None,
    weight_sigma: float = 1.5,
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
    `rsp.shared.images.complementary`). The polygons may be of any CRS that their file states. Polygons that are
    too many for the memory wait in temporary files (in `$TMPDIR`).

    Where polygons of two classes meet, a pixel is of the class that comes later in the configuration, or in
    `order`.

    Args:
        cover: The cover; all its tiles have one zoom.
        out: The tile set to write.
        geojson: Where the features are: a path, an address in S3, a glob pattern of either, a URL, or several of
            these: GeoJSON, GeoPackage, Shapefile, FlatGeobuf, GeoParquet, or what else GDAL reads. `CLASS=FILE`
            says which class the features are of.
        postgis: A SELECT whose column `geom` holds the polygons, or several, also as `CLASS=SELECT`; the
            connection is the configuration's.
        config: The configuration file, for the classes and the size of a tile. With `append` it is not needed
            where the labels that are there tell both, as ours do; it may then add classes at the end.
        tile_size: Side of a tile in pixels (default: that of `like`, else the configuration's, else that of the
            labels that are there).
        like: A tile set, as of the images that belong to the labels: the labels get the side of its tiles.
        layer: The layer to read of files that have several; `FILE|layername=NAME` says it for one input.
        kind: Title of the class of all features whose input does not say it (default: the one class beside the
            background).
        type_field: The property (in PostGIS, the column) whose value is the title of the class of each feature.
            Features in which it names no class are left out.
        order: Titles of classes, with commas between them, from the lowest to the highest. Classes that it does
            not name lie below those, in the order of the configuration, which is the default.
        append: Keep the labels that are there, and merge the new ones into them by the same order.
        buffer: Widen the polygons by so many metres on the ground (below 0: shrink them, which separates houses
            that touch).
        all_touched: Burn every pixel of which a polygon has a part, not only those whose centre it has.
        borders: Metres on the ground: pixels whose centre is no farther than that from two features of one class
            are of the class `border_type`. `CLASS=METRES`, with commas between several, draws those of some
            classes only. The order of classes says whether the border goes over the features, too: between
            those that touch there is one only if it does. Distances are those after `buffer`.
        border_type: Title of the class that borders get.
        counts: For each class, list the tiles that have features of it with their number, in
            `CLASS_cover.csv` in the folder of tiles (of an archive, beside it and under its name).
        weights: A tile set to write, too: how near pixels are to two instances of a class, as U-Net weighs them, 0
            to 255 in grey PNG. See `rsp.components.rasterize.weights`; distances are those after `buffer`.
        weight_sigma: How far, in metres on the ground, these weights reach: at 1.5 a pixel between houses 3 m
            apart has 255 exp(-2) = 35.
        tile_format: Format of the labels: png, which is the only one that keeps class indices.
        workers: Processes (default: one for each processor).
        resume: Keep labels that are there as they are.
        web_ui_base_url: Where the map finds the tiles.
        web_ui_template: HTML template of your own.
        web_ui: Write a web map.
        crs: The CRS of the files, as EPSG:2154, whatever they say.

    Raises:
        UsageError: the arguments do not fit together.
        ConfigError: no configuration, no such class in it, or no connection to PostGIS.
        CoverError: no cover, an empty one, or one of several zooms.
        FeatureError: no such file, one that cannot be read, or a database or query that does not answer.
        StorageError: temporary files that the disk refuses.
    """
    from rsp.components.rasterize.blocks import Blocks
    from rsp.components.rasterize.burn import Job, blocks_to_burn
    from rsp.components.rasterize.fill import Tally, fill
    from rsp.components.rasterize.layers import LAYER, make_layers
    from rsp.components.rasterize.shelf import Shelf
    from rsp.shared.attribution import note
    from rsp.shared.covers import Cover, read_tiles
    from rsp.shared.images import complementary
    from rsp.shared.jobs import Failure, run_job
    from rsp.shared.tileset import classes_metadata, open_writer, read_side
    from rsp.shared.webmap import write_webmap

    if append and resume:
        raise UsageError("--append merges into the labels that are there, --resume leaves them: choose one")
    if weights is not None and append:
        raise UsageError(
            "--weights are those of all features together, --append knows only the new ones: choose one"
        )
    if not 0 < weight_sigma <= 100:
        raise UsageError(f"--weight_sigma is more than 0 and up to 100 metres, got {weight_sigma:g}")
    if tile_format != "png":
        raise UsageError(f"labels are png, got --format {tile_format}: the other formats lose class indices")
    files, queries = _listed(geojson), _listed(postgis)
    if bool(files) == bool(queries):
        raise UsageError("give the polygons either with --geojson or with --postgis")
    if tile_size is not None and like is not None:
        raise UsageError("--tile_size says how large the labels are, --like takes it from other tiles: choose one")
    paths = [text.partition(LAYER)[0] for text in files]
    reads = [config, like, web_ui_template, *paths, *(text for _, mark, text in map(_titled, paths) if mark)]
    beside = [] if weights is None else [tiles_output(weights, web_ui=False)]
    check_paths([tiles_output(out, web_ui=web_ui), *beside], reads, cover=cover)
    tile_size = tile_size if like is None else read_side(like)
    present = out.expanduser() if append and _has_labels(out.expanduser()) else None
    classes, size, connection = _settings(config, tile_size, present, bool(queries))
    if not 1 <= size <= MAX_SIZE:
        raise UsageError(f"--tile_size must be from 1 to {MAX_SIZE}, got {size}")
    layers = make_layers(classes, order, borders, border_type)
    source = _source(files, queries, classes, kind, type_field, connection, crs, layer)
    if counts:
        sides = tuple(f".{name}" for name in map(counts_name, classes[1:]))
        check_paths([tiles_output(out, web_ui=web_ui)._replace(sides=sides)], reads, cover=cover)
    tiles = read_tiles(cover)
    blocks = Blocks(tiles, tiles.zoom(cover), size)

    with Shelf() as shelf, Shelf() as near:
        tally = Tally(blocks, len(classes))
        instances = None
        if weights is not None:
            from rsp.components.rasterize.weights import Instances

            instances = Instances(blocks, near, weight_sigma)
        fill(source, blocks, shelf, layers, tally, buffer, instances)
        skipped = dict(sorted(source.skipped.items()))
        _tell(skipped, tally.used, cover)
        folder = shelf.finish()
        job = Job(
            size, blocks.side, blocks.levels, layers.layers, layers.rank,
            tuple(complementary([entry.color for entry in classes])), all_touched, present, folder,
        )  # fmt: skip
        failed: dict[Tile, str] = {}
        pixels: Counter[int] = Counter()
        done = weighted = 0
        empty = job.empty()
        with open_writer(out, tile_format, resume=resume or append) as writer:
            writer.describe({"tile_size": size, "classes": classes_metadata(classes)})
            note(writer, source.owners(), keep=resume or append)
            keep = writer.done & tiles if resume else Cover()
            todo = len(tiles) - len(keep)
            work = blocks_to_burn(blocks, shelf, folder is not None, keep)
            burning = run_job(job, work, todo, workers, worth=WORTH)
            with closing(burning):
                for tile, burnt in progress(_each_tile(burning), "rasterize", total=todo):
                    if isinstance(burnt, Failure):
                        failed[tile] = burnt.reason
                        continue
                    writer.write(tile, burnt.data or empty)
                    pixels.update(burnt.pixels)
                    done += 1
            if todo and not done:
                raise TileError(f"no label could be merged into {out}: {next(iter(failed.values()))}")
        if weights is not None:
            from rsp.components.rasterize.weights import write_weights

            weighted = write_weights(
                weights, blocks, near, tiles, size, weight_sigma, workers=workers, worth=WORTH // 8, resume=resume
            )
    note_failures(out, failed)
    if counts:
        for value in tally.classes:
            tally.write(counts_path(out, classes[value]), value)
    if web_ui:
        write_webmap(out, tiles, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    share = {value: count / (done * size * size) for value, count in pixels.items()}
    return RasterizeResult(
        failed=failed,
        features=tally.used,
        left_out=sum(skipped.values()),
        skipped=skipped,
        tiles=len(tiles) - len(failed),
        foreground=sum(pixels.values()) / (done * size * size) if done else 0.0,
        instances={classes[value].title: tally.told(value) for value in tally.classes},
        weighted=weighted,
        shares={classes[value].title: share[value] for value in sorted(share)},
    )


def _listed(given: str | Sequence[str] | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def _titled(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def counts_name(entry: ClassDef) -> str:
    """Return how the list of the tiles of a class is called."""
    from urllib.parse import quote

    return f"{quote(entry.title, safe=' ')}_cover.csv"


def counts_path(out: Location, entry: ClassDef) -> Location:
    """Return where the tiles of a class are listed."""
    from rsp.shared.tileset import is_archive

    out = out.expanduser()
    return out.parent / f"{out.name}.{counts_name(entry)}" if is_archive(out) else out / counts_name(entry)


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
        size = settings.model.side
    if present is not None and told.classes is not None:
        classes = find_classes(config, [present], extended=True)
    else:
        assert settings is not None
        classes = settings.classes
    return classes, size, settings.pg_dsn if settings else None


def _source(
    files: Sequence[str],
    queries: Sequence[str],
    classes: Sequence[ClassDef],
    kind: str | None,
    type_field: str | None,
    dsn: str | None,
    crs: str | None,
    layer: str | None,
) -> Source:
    """Return the source that the arguments name."""
    from rsp.components.rasterize.layers import parse_inputs
    from rsp.components.rasterize.source import FileSource, Naming
    from rsp.shared.crs import parse_crs

    skipped: Counter[str] = Counter()
    naming = Naming(classes, type_field, skipped)
    inputs = parse_inputs(files or queries, classes, kind, type_field, layer=layer, queries=bool(queries))
    if files:
        return FileSource(inputs, naming, skipped, None if crs is None else parse_crs(crs))
    if crs is not None:
        raise UsageError("--crs goes with --geojson; geometries of PostGIS have an SRID of their own")
    if layer is not None:
        raise UsageError("--layer goes with --geojson; a query of PostGIS names its tables")
    from rsp.components.rasterize.postgis import PostgisSource

    return PostgisSource(inputs, naming, skipped, dsn)


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
    burning: Iterable[tuple[Block, list[Burnt | Failure] | Failure]],
) -> Iterator[tuple[Tile, Burnt | Failure]]:
    for block, burnt in burning:
        assert isinstance(burnt, list)  # each tile has a failure of its own
        yield from zip(block.tiles, burnt, strict=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp rasterize`."""
    parser.add_argument("cover", type=location, help="cover of the labels, in CSV (x,y,z)")
    add_out(parser, "tile set to write: a directory, or a PMTiles file")
    inputs = parser.add_argument_group("Polygons (one of)")
    inputs.add_argument(
        "--geojson", "--features", action="append", metavar="[CLASS=]FILE",
        help="file of features (GeoJSON, GeoPackage and what else GDAL reads), a path, s3://bucket/key, URL, or a "
        "glob pattern in quotes; once for each file, and with the title of a class before it, as "
        "building=roofs.json",
    )  # fmt: skip
    inputs.add_argument(
        "--crs", metavar="EPSG:CODE", help="CRS of the files, as EPSG:2154 (default: what they say, else degrees)"
    )
    inputs.add_argument(
        "--layer", metavar="NAME",
        help="layer to read of files that have several; FILE|layername=NAME says it for one of them",
    )  # fmt: skip
    inputs.add_argument(
        "--postgis", action="append", metavar="[CLASS=]SELECT",
        help="SQL query with a column `geom`; once for each query, and with the title of a class before it",
    )  # fmt: skip
    kinds = parser.add_argument_group("Classes")
    kinds.add_argument(
        "--type", dest="kind", metavar="CLASS",
        help="title of the class that the polygons are; needed where the configuration has more than one, and "
        "neither the inputs nor the features say it",
    )  # fmt: skip
    kinds.add_argument(
        "--type_field", metavar="NAME",
        help="property (in PostGIS, column) of the features whose value is the title of their class",
    )  # fmt: skip
    kinds.add_argument(
        "--order", metavar="CLASS,CLASS",
        help="titles from the lowest to the highest: where classes meet, the later is seen (default: the order of "
        "the configuration)",
    )  # fmt: skip
    kinds.add_argument(
        "--append", action="store_true", help="merge into existing labels, where the higher class wins"
    )
    kinds.add_argument(
        "--borders", metavar="[CLASS=]METRES",
        help="draw what is no farther than this from two features of a class, as a class of its own",
    )  # fmt: skip
    kinds.add_argument(
        "--border_type", default="border", metavar="CLASS", help="title of that class (default: border)"
    )
    kinds.add_argument(
        "--counts", action="store_true", help="list the tiles of each class with their numbers of features"
    )
    kinds.add_argument(
        "--weights", type=location, metavar="TILES",
        help="also write a tile set of weights, grey PNG: 255 exp(-(d1 + d2)^2 / (2 sigma^2)), of a pixel's "
        "distances d1 and d2 from the nearest two features of a class, as U-Net is trained with",
    )  # fmt: skip
    kinds.add_argument(
        "--weight_sigma", type=float, default=1.5, metavar="METRES",
        help="sigma of these weights, on the ground (default: 1.5)",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument(
        "--tile_size", "--ts", dest="tile_size", type=tile_side, default=None, metavar="PIXELS",
        help="side of a tile in pixels (default: the configuration's)",
    )  # fmt: skip
    parser.add_argument(
        "--like",
        type=location,
        metavar="TILES",
        help="make labels of the size of these tiles, as of the images",
    )
    parser.add_argument(
        "--buffer", type=float, default=0.0, metavar="METRES",
        help="widen the polygons, or shrink them (below 0), in metres on the ground (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--all_touched", action="store_true",
        help="burn every pixel that a polygon touches (default: those whose centre lies in it)",
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
