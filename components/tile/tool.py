"""Cut georeferenced rasters into tiles, of an image or of labels; or put tiles together to a raster.

rsp tile --zoom 18 ortho.tif images
rsp tile --zoom 18 --bands 1,2,3,4 --format tif north.tif south.tif images.pmtiles
rsp tile --zoom 18 --type label --config config.toml classes.tif labels
rsp tile masks masks.tif
"""

from __future__ import annotations

import argparse
import sys
from array import array
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import add_attribution, add_config, add_web_ui, add_workers, bounded, int_list
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import CoverError, RasterError, UsageError
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location, location
from rsp.shared.memory import keep_memory
from rsp.shared.progress import progress
from rsp.shared.report import Result, note_failures
from rsp.shared.tiles import MAX_TILES, MAX_ZOOM, Tile, zxy

if TYPE_CHECKING:
    from rsp.shared.rasters import RasterGroup

Kind = Literal["image", "label"]

# Tiles that a worker makes at a time: neighbours in a row, which need the same blocks of a raster.
RUN = 8
# Suffixes of what tiles are put together to.
RASTER = (".tif", ".tiff")


@dataclass(kw_only=True)
class TileResult(Result):
    """What `tile` did.

    Attributes:
        tiles: How many tiles the output has of these rasters; or how many it was put together of.
        skipped: How many of them were there already (with `resume`).
        empty: How many were dropped since no raster has a pixel there.
        border: How many were dropped since a whole border is no data (with `no_data`).
        sparse: How many were dropped since too much of them is no data (with `nodata_threshold`).
        tile_format: How they are encoded.
        value_range: What became 0 and 255, where values were scaled: two numbers, or two for each band.
    """

    tiles: int
    skipped: int = 0
    empty: int = 0
    border: int = 0
    sparse: int = 0
    tile_format: str
    value_range: list[float] | None = None


def tile(
    rasters: list[str],
    out: Location,
    *,
    zoom: int | None = None,
    config: Location | None = None,
    no_data: float | None = None,
    nodata_threshold: float | None = None,
    keep_borders: bool = False,
    kind: Kind = "image",
    tile_size: int = 512,
    tile_format: str | None = None,
    bands: list[int] | None = None,
    value_range: list[float] | None = None,
    percentiles: list[float] | None = None,
    cover: Location | None = None,
    workers: int | None = None,
    resume: bool = False,
    attribution: str = "",
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
    max_tiles: int = MAX_TILES,
) -> TileResult:
    """Project rasters to EPSG:3857 and cut them into tiles; or put a tile set together to a raster.

    Images are interpolated (bilinear), labels never (nearest). Tiles that a raster fills only in part are kept,
    their rest black (labels: class 0). Pictures of a colour table are cut of its colours, labels of its indices.

    Where `out` ends in `.tif`, the only input is a tile set, and what comes out is a Cloud Optimized GeoTIFF on
    the very grid of the tiles, in EPSG:3857, with overviews. Where there is no tile it has no data, by its mask.

    Args:
        rasters: Paths, addresses in S3, glob patterns of either, or URLs that GDAL reads, all of the same bands
            and type, each in a CRS of its own. Where they overlap, the first one is on top; where it has no data
            (by its mask, alpha band or no-data value), the next one.
        out: Where the tiles go, a directory or a `.pmtiles` archive; or a `.tif`.
        zoom: Zoom of the tiles. A tile set needs none, unless it has several.
        config: The configuration that names the classes, for labels.
        no_data: Drop tiles of which a whole border row or column has this value in all bands, or lies outside the
            rasters.
        nodata_threshold: Drop tiles of which at least so many percent have that value, or lie outside the rasters.
        keep_borders: Keep tiles in spite of their borders: then `no_data` counts for `nodata_threshold` alone.
        kind: `image`, or `label` for one band of class indices.
        tile_size: Side of a tile in pixels.
        tile_format: How tiles are encoded. None is png for one band and webp for three, of 8 or 16 bits, and tif
            (which keeps values as they are) for all else. In a raster: what its blocks are; None is what the tiles
            are.
        bands: Bands to take, counted from 1; None takes all but one that the file calls alpha, which tells where
            there is data. (Many files call their near infrared so: name the bands then.)
        value_range: What becomes 0 and 255, where values are scaled to bytes: two numbers, or two for each band.
            None scales whole numbers by the depth of the sensor that they seem to come from (the least of 8, 10,
            ..., 16 bits that holds them), fractions by 1 or by 255, others by the least and the greatest.
        percentiles: Scale each band from the one percentile of its values to the other, as 2 and 98.
        cover: Make only these tiles.
        workers: Processes; None is one for each processor.
        resume: Keep tiles that are there.
        attribution: Whose the imagery is, as its licence asks for it, with links if need be; empty takes what
            the rasters say (TIFFTAG_COPYRIGHT). A raster that is made of tiles says what these do.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: A template of the user's own for it.
        web_ui: Write the web page.
        max_tiles: Refuse to make more tiles.

    Raises:
        UsageError: the arguments do not fit together, the format cannot hold the raster, or there would be too
            many tiles.
        RasterError: a raster cannot be read, has no georeference, or gives no tile.
        CoverError: the cover cannot be read, has another zoom, or none of its tiles is in the rasters.
        TileSetError: the tile set cannot be read, or its tiles do not fit together.
    """
    if not rasters:
        raise UsageError("give at least one raster")
    if kind not in ("image", "label"):
        raise UsageError(f"--type is image or label, got {kind!r}")
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise UsageError(f"--zoom must be from 0 to {MAX_ZOOM}, got {zoom}")
    if location(out).suffix.lower() in RASTER:
        from rsp.components.tile.together import put_together

        if len(rasters) > 1:
            raise UsageError(f"{out} is made of one tile set, got {len(rasters)} inputs")
        refused = {
            "--bands": bands, "--range": value_range, "--percentiles": percentiles, "--no_data": no_data,
            "--nodata_threshold": nodata_threshold, "--resume": resume, "--keep_borders": keep_borders,
        }  # fmt: skip
        if named := [flag for flag, value in refused.items() if value is not None and value is not False]:
            raise UsageError(f"{', '.join(named)}: not where tiles are put together to {out}")
        return TileResult(
            **put_together(
                rasters[0],
                out,
                zoom=zoom,
                cover=cover,
                block_format=tile_format,
                workers=workers,
                attribution=attribution,
            )
        )
    if zoom is None:
        raise UsageError("--zoom says how large the tiles are: 18 is about 0.6 m a pixel of 256 at the equator")
    if not 1 <= tile_size <= 4096:
        raise UsageError(f"--tile_size must be from 1 to 4096, got {tile_size}")
    if nodata_threshold is not None and not 0 < nodata_threshold <= 100:
        raise UsageError(f"--nodata_threshold is a percentage, more than 0 and up to 100, got {nodata_threshold}")
    if value_range is not None and percentiles is not None:
        raise UsageError("--range and --percentiles contradict each other; give one of them")
    for flag, example, pairs in (("--range", "0,4095", value_range), ("--percentiles", "2,98", percentiles)):
        if pairs is not None and (
            len(pairs) % 2
            or not pairs
            or not all(low < high for low, high in zip(pairs[::2], pairs[1::2], strict=True))
        ):
            raise UsageError(f"{flag} is two numbers, the lesser first, as {example}")
    if percentiles is not None and (len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100):
        raise UsageError("--percentiles is two numbers from 0 to 100, the lesser first, as 2,98")
    check_paths([tiles_output(out, web_ui=web_ui)], [*rasters, config, web_ui_template], cover=cover)
    classes = None
    if kind == "label":
        from rsp.shared.config import load_config

        if tile_format not in (None, "png") or value_range is not None or percentiles is not None:
            raise UsageError(
                "labels are png and keep their values: --type label goes without --format and --range"
            )
        classes = load_config(config).classes

    from rsp.shared.gdal import RasterEnv  # noqa: I001 (first: it says how rasterio is imported)
    from rsp.components.tile.grid import grid_tiles, tile_grid, tile_keys, wanted_tiles
    from rsp.shared import rasters as files
    from rsp.shared import warp
    from rsp.shared.attribution import note
    from rsp.shared.covers import Cover
    from rsp.shared.footprints import LEAST_CACHE, footprint
    from rsp.shared.tileset import classes_metadata, open_writer

    keep_memory()
    paths = files.expand(rasters)
    with RasterEnv(paths, GDAL_CACHEMAX=LEAST_CACHE):
        source = files.inspect(paths, bands, label=kind == "label")
        _check_no_data(no_data, source)
        tile_format = _format(tile_format, source, kind)
        scale = _range(value_range, percentiles, tile_format, source, kind)
        footprints = tuple(footprint(path, zoom, tile_size) for path in paths)
    wanted = None if cover is None else wanted_tiles(cover, zoom)
    blocks = [block for each in footprints for block in each.blocks]
    grid = tile_grid(blocks, wanted, max_tiles, zoom)
    if not len(grid):
        raise CoverError(f"none of the tiles of {cover} is in the rasters")
    colors = None if classes is None else tuple(entry.color for entry in classes)
    job = warp.Job(
        source, zoom, tile_size, tile_format, value_range=scale, no_data=no_data, keep_borders=keep_borders,
        threshold=nodata_threshold, colors=colors, footprints=footprints,
    )  # fmt: skip

    failed: dict[Tile, str] = {}
    made_keys = array("q")
    dropped = {"empty": 0, "border": 0, "sparse": 0}
    with open_writer(out, tile_format, resume=resume) as writer:
        if classes is not None:
            writer.describe({"tile_size": tile_size, "classes": classes_metadata(classes)})
        else:
            writer.describe({"tile_size": tile_size} | ({} if scale is None else {"value_range": list(scale)}))
        note(writer, attribution or source.owners, keep=resume)
        done = writer.done
        before = sum(found in done for found in grid_tiles(grid, zoom)) if done else 0
        missing = (found for found in grid_tiles(grid, zoom) if not done or found not in done)
        count = len(grid) - before
        with closing(run_job(job, missing, count, workers, worth=RUN, batch=RUN)) as results:
            for made_tile, made in progress(results, "tile", count):
                if isinstance(made, Failure):
                    failed[made_tile] = made.reason
                elif made.dropped is not None:
                    dropped[made.dropped] += 1
                else:
                    assert made.data is not None
                    writer.write(made_tile, made.data)
                    made_keys.append(made_tile.x << 32 | made_tile.y)
        if not made_keys and not before:
            raise RasterError(_why_none(failed, dropped))
    note_failures(out, failed)
    written = Cover.from_keys(tile_keys(made_keys), zoom)
    if web_ui:
        from rsp.shared.webmap import write_webmap

        shown = written | Cover.of(found for found in grid_tiles(grid, zoom) if before and found in done)
        write_webmap(out, shown, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    return TileResult(
        tiles=before + len(written),
        skipped=before,
        empty=dropped["empty"],
        border=dropped["border"],
        sparse=dropped["sparse"],
        tile_format=tile_format,
        value_range=None if scale is None else list(scale),
        failed=failed,
    )


def _check_no_data(no_data: float | None, source: RasterGroup) -> None:
    """Raise `UsageError` for a value that the rasters cannot have."""
    import numpy as np

    kind = np.dtype(source.dtype)
    if no_data is None or kind.kind == "f":
        return
    limits = np.iinfo(kind)
    if no_data != int(no_data) or not limits.min <= no_data <= limits.max:
        raise UsageError(f"--no_data {no_data:g}: no value of {source.dtype} ({limits.min} to {limits.max})")


def _format(tile_format: str | None, source: RasterGroup, kind: Kind) -> str:
    """Return how tiles are encoded; raise `UsageError` where that cannot hold the bands."""
    from rsp.shared.tileset import tile_format as format_name

    bands = len(source.bands)
    if kind == "label":
        return "png"
    if tile_format is None:
        small = source.dtype in ("uint8", "uint16")
        return {1: "png", 3: "webp"}.get(bands, "tif") if small else "tif"
    tile_format = format_name(tile_format)
    if tile_format != "tif" and bands not in (1, 3):
        raise UsageError(
            f"{tile_format} cannot hold {bands} bands; take --format tif, or choose one or three with --bands"
        )
    return tile_format


def _range(
    value_range: list[float] | None,
    percentiles: list[float] | None,
    tile_format: str,
    source: RasterGroup,
    kind: Kind,
) -> tuple[float, ...] | None:
    """Return what becomes 0 and 255, and say it; None where values stay as they are."""
    from rsp.shared.rasters import default_range, percentile_range

    bands = len(source.bands)
    if value_range is not None:
        if len(value_range) not in (2, 2 * bands):
            raise UsageError(
                f"--range has {len(value_range)} numbers, there are {bands} bands: give two, or {2 * bands}"
            )
        return tuple(value_range)
    if percentiles is not None:
        found = percentile_range(source, *percentiles)
    elif tile_format == "tif" or source.dtype == "uint8" or kind == "label":
        return None
    else:
        found = default_range(source)
    pairs = ", ".join(f"{low:.6g} to {high:.6g}" for low, high in zip(found[::2], found[1::2], strict=True))
    print(f"tile: values of {source.dtype} from {pairs} become 0 to 255 (--range says otherwise)", file=sys.stderr)
    return found


def _why_none(failed: dict[Tile, str], dropped: dict[str, int]) -> str:
    """Say why there is no tile at all."""
    if failed:
        found, reason = min(failed.items())
        return f"no tile could be made; {len(failed)} failed, {zxy(found)} as {reason}"
    return (
        f"the rasters give no tile: {dropped['empty']} would be without data, {dropped['border']} would have a "
        f"border of the value of --no_data, {dropped['sparse']} would have too little data for --nodata_threshold"
    )


def float_list(text: str) -> list[float]:
    """Parse `0,4095`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as 0,4095, got {text!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp tile`."""
    parser.add_argument(
        "rasters", nargs="+", metavar="raster",
        help="rasters to tile (paths, s3:// addresses, glob patterns of either, URLs); where several overlap the "
        "first is on top; or one tile set, of which a FILE.tif is made. The last argument is the output, a "
        "directory, FILE.pmtiles or FILE.tif, unless --out names it",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=location,
        help="where the tiles go, a directory or FILE.pmtiles; or a FILE.tif, a Cloud Optimized GeoTIFF of a tile "
        "set",
    )  # fmt: skip
    parser.add_argument("--zoom", type=int, help="zoom of the tiles (of a tile set: its own)")
    add_config(parser)
    parser.add_argument(
        "--no_data", "--nodata", type=float, metavar="VALUE",
        help="drop tiles with a border entirely of this value, or outside the rasters (default: keep every tile "
        "with data)",
    )  # fmt: skip
    parser.add_argument(
        "--nodata_threshold", type=bounded(float, 0, 100), metavar="PERCENT",
        help="drop tiles of which at least so much is no data, by the rasters or --no_data (default: keep them)",
    )  # fmt: skip
    parser.add_argument("--keep_borders", action="store_true", help="keep tiles with a border of --no_data")
    parser.add_argument(
        "--type", dest="kind", choices=("image", "label"), default="image", help="what to make (default: image)"
    )
    parser.add_argument(
        "--label", dest="kind", action="store_const", const="label", default=argparse.SUPPRESS,
        help="the same as `--type label`",
    )  # fmt: skip
    parser.add_argument(
        "--tile_size", "--ts", type=int, default=512, help="side of a tile in pixels (default: 512)"
    )
    parser.add_argument(
        "--format", dest="tile_format", metavar="FORMAT",
        help="png, jpg, webp, or tif, which keeps any bands and values (default: png for one band, webp for "
        "three, else tif)",
    )  # fmt: skip
    parser.add_argument(
        "--bands",
        type=int_list,
        metavar="1,2,3",
        help="bands to use (default: all but alpha)",
    )
    parser.add_argument(
        "--range", dest="value_range", type=float_list, metavar="MIN,MAX[,MIN,MAX...]",
        help="values that become 0 and 255, for all bands or for each (default, in png, jpg and webp: 0 and the "
        "maximum of the sensor's bit depth; 0 and 1, or 255, for fractions; else the least and the greatest)",
    )  # fmt: skip
    parser.add_argument(
        "--percentiles", type=float_list, metavar="LOW,HIGH",
        help="scale each band from one percentile of its values to another, as 2,98",
    )  # fmt: skip
    parser.add_argument("--cover", type=location, metavar="CSV", help="make only these tiles")
    parser.add_argument(
        "--max_tiles", type=int, default=MAX_TILES, metavar="N",
        help=f"refuse to make more tiles than this (default: {MAX_TILES})",
    )  # fmt: skip
    add_workers(parser)
    parser.add_argument("--resume", action="store_true", help="keep existing tiles")
    add_attribution(parser, "what the rasters say, or the tiles")
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Take the last positional as the output where --out does not name it."""
    if args.out is None:
        *args.rasters, out = args.rasters
        args.out = location(out)
    if not args.rasters:
        raise UsageError("give the rasters, and then the output")
