"""Cut georeferenced rasters into tiles, of an image or of labels.

rsp tile --zoom 18 ortho.tif images
rsp tile --zoom 18 --bands 1,2,3,4 --format tif north.tif south.tif images.pmtiles
rsp tile --zoom 18 --type label --config config.toml classes.tif labels
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import add_config, add_web_ui, add_workers, bounded, int_list
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import CoverError, RasterError, UsageError
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location, location
from rsp.shared.progress import progress
from rsp.shared.report import Result, note_failures
from rsp.shared.tiles import MAX_TILES, MAX_ZOOM, Tile, read_cover, tiles_of_blocks, zoom_of, zxy

if TYPE_CHECKING:
    from rsp.shared.rasters import RasterGroup

Kind = Literal["image", "label"]

# Tiles that a worker makes at a time: neighbours in a row, which need the same blocks of a raster.
RUN = 8


@dataclass(kw_only=True)
class TileResult(Result):
    """What `tile` did.

    Attributes:
        tiles: How many tiles the output has of these rasters.
        skipped: How many of them were there already (with `resume`).
        empty: How many were dropped since no raster has a pixel there.
        border: How many were dropped since a whole border is no data (with `no_data`).
        tile_format: How they are encoded.
        value_range: What became 0 and 255, where values were scaled.
    """

    tiles: int
    skipped: int
    empty: int
    border: int
    tile_format: str
    value_range: list[float] | None


def tile(
    rasters: list[str],
    out: Location,
    *,
    zoom: int,
    config: Location | None = None,
    no_data: int | None = None,
    kind: Kind = "image",
    tile_size: int = 512,
    tile_format: str | None = None,
    bands: list[int] | None = None,
    value_range: list[float] | None = None,
    cover: Location | None = None,
    workers: int | None = None,
    resume: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
    max_tiles: int = MAX_TILES,
) -> TileResult:
    """Project rasters to EPSG:3857 and cut them into tiles.

    Images are interpolated (bilinear), labels never (nearest). Tiles that a raster fills only in part are kept,
    their rest black (labels: class 0).

    Args:
        rasters: Paths, addresses in S3, glob patterns of either, or URLs that GDAL reads, all of the same bands
            and type. Where they overlap, the first one is on top; where it has no data (by its mask, alpha band
            or no-data value), the next one.
        out: Where the tiles go, a directory or a `.pmtiles` archive.
        zoom: Zoom of the tiles.
        config: The configuration that names the classes, for labels.
        no_data: Drop tiles of which a whole border row or column has this value (0 to 255) in all bands, or lies
            outside the rasters.
        kind: `image`, or `label` for one band of class indices.
        tile_size: Side of a tile in pixels.
        tile_format: How tiles are encoded. None is png for one band and webp for three, of 8 or 16 bits, and tif
            (which keeps values as they are) for all else.
        bands: Bands to take, counted from 1; None takes all but one that the file calls alpha, which tells where
            there is data. (Many files call their near infrared so: name the bands then.)
        value_range: What becomes 0 and 255, where values are scaled to bytes. None scales 16-bit values by the
            depth of the sensor that they seem to come from (the least of 8, 10, ..., 16 bits that holds them).
        cover: Make only these tiles.
        workers: Processes; None is one for each processor.
        resume: Keep tiles that are there.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: A template of the user's own for it.
        web_ui: Write the web page.
        max_tiles: Refuse to make more tiles.

    Raises:
        UsageError: the arguments do not fit together, the format cannot hold the raster, or there would be too
            many tiles.
        RasterError: a raster cannot be read, has no georeference, or gives no tile.
        CoverError: the cover cannot be read, has another zoom, or none of its tiles is in the rasters.
    """
    from rsp.shared import rasters as files
    from rsp.shared import warp
    from rsp.shared.gdal import RasterEnv
    from rsp.shared.tileset import classes_metadata, open_writer

    if not rasters:
        raise UsageError("give at least one raster")
    if kind not in ("image", "label"):
        raise UsageError(f"--type is image or label, got {kind!r}")
    if not 0 <= zoom <= MAX_ZOOM:
        raise UsageError(f"--zoom must be from 0 to {MAX_ZOOM}, got {zoom}")
    if not 1 <= tile_size <= 4096:
        raise UsageError(f"--tile_size must be from 1 to 4096, got {tile_size}")
    if no_data is not None and not 0 <= no_data <= 255:
        raise UsageError(f"--no_data must be from 0 to 255, got {no_data}")
    if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
        raise UsageError("--range is two numbers, the lesser first, as 0,4095")
    check_paths([tiles_output(out, web_ui=web_ui)], [*rasters, config, web_ui_template], cover=cover)
    classes = None
    if kind == "label":
        from rsp.shared.config import load_config

        if tile_format not in (None, "png") or value_range is not None:
            raise UsageError(
                "labels are png and keep their values: --type label goes without --format and --range"
            )
        classes = load_config(config).classes
    paths = files.expand(rasters)
    with RasterEnv(paths):
        source = files.inspect(paths, bands, label=kind == "label")
        tile_format = _format(tile_format, source, kind)
        scale = _range(value_range, tile_format, source, kind)
        blocks = [files.footprint(path, zoom, tile_size) for path in paths]
    grid = _grid(blocks, None if cover is None else _wanted(cover, zoom), max_tiles, zoom)
    if not grid:
        raise CoverError(f"none of the tiles of {cover} is in the rasters")
    colors = None if classes is None else tuple(entry.color for entry in classes)
    job = warp.Job(source, zoom, tile_size, tile_format, scale, no_data, colors)

    failed: dict[Tile, str] = {}
    written: list[Tile] = []
    dropped = {"empty": 0, "border": 0}
    with open_writer(out, tile_format, resume=resume) as writer:
        if classes is not None:
            writer.describe({"tile_size": tile_size, "classes": classes_metadata(classes)})
        else:
            writer.describe({"tile_size": tile_size} | ({} if scale is None else {"value_range": list(scale)}))
        before = [found for found in grid if found in writer.done]
        missing = [found for found in grid if found not in writer.done]
        with closing(run_job(job, missing, len(missing), workers, worth=RUN, batch=RUN)) as results:
            for made_tile, made in progress(results, "tile", len(missing)):
                if isinstance(made, Failure):
                    failed[made_tile] = made.reason
                elif made.dropped is not None:
                    dropped[made.dropped] += 1
                else:
                    assert made.data is not None
                    writer.write(made_tile, made.data)
                    written.append(made_tile)
        if not written and not before:
            raise RasterError(_why_none(failed, dropped))
    note_failures(out, failed)
    if web_ui:
        from rsp.shared.webmap import write_webmap

        write_webmap(out, before + written, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    return TileResult(
        tiles=len(before) + len(written),
        skipped=len(before),
        empty=dropped["empty"],
        border=dropped["border"],
        tile_format=tile_format,
        value_range=None if scale is None else list(scale),
        failed=failed,
    )


def _wanted(cover: Location, zoom: int) -> list[Tile]:
    """Return the tiles of a cover; raise `CoverError` where it has another zoom."""
    wanted = read_cover(cover)
    if zoom_of(wanted, cover) != zoom:
        raise CoverError(f"{cover} has the zoom {zoom_of(wanted, cover)}, and {zoom} is asked for by --zoom")
    return wanted


def _grid(blocks: list[tuple[Tile, Tile]], wanted: list[Tile] | None, max_tiles: int, zoom: int) -> list[Tile]:
    """Return the tiles of all rasters, of those that are wanted, row after row; a raster is a block of tiles."""
    if wanted is None:
        tiles = tiles_of_blocks(blocks, max_tiles, f"the rasters at zoom {zoom}")
    else:
        tiles = {
            tile
            for tile in wanted
            if any(first.x <= tile.x <= last.x and first.y <= tile.y <= last.y for first, last in blocks)
        }
    return sorted(tiles, key=lambda tile: (tile.y, tile.x))


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
    value_range: list[float] | None, tile_format: str, source: RasterGroup, kind: Kind
) -> tuple[float, float] | None:
    """Return what becomes 0 and 255; None where values stay as they are."""
    from rsp.shared.rasters import default_range

    if value_range is not None:
        return value_range[0], value_range[1]
    if tile_format == "tif" or source.dtype == "uint8" or kind == "label":
        return None
    if source.dtype == "uint16":
        return default_range(source)
    raise UsageError(
        f"{tile_format} cannot hold {source.dtype}; --range MIN,MAX says what becomes 0 and 255, and "
        "--format tif keeps the values"
    )


def _why_none(failed: dict[Tile, str], dropped: dict[str, int]) -> str:
    """Say why there is no tile at all."""
    if failed:
        found, reason = min(failed.items())
        return f"no tile could be made; {len(failed)} failed, {zxy(found)} as {reason}"
    return (
        f"the rasters give no tile: {dropped['empty']} would be without data, {dropped['border']} would have a "
        "border of the value of --no_data"
    )


def float_pair(text: str) -> list[float]:
    """Parse `0,4095`."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers as 0,4095, got {text!r}") from None
    return [low, high]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp tile`."""
    parser.add_argument(
        "rasters", nargs="+", metavar="raster",
        help="rasters to tile (paths, s3:// addresses, glob patterns of either, URLs); where several overlap the "
        "first is on top. The last argument is the output, a directory or FILE.pmtiles, unless --out names it",
    )  # fmt: skip
    parser.add_argument("--out", type=location, help="where the tiles go, a directory or FILE.pmtiles")
    parser.add_argument("--zoom", type=int, required=True, help="zoom of the tiles")
    add_config(parser)
    parser.add_argument(
        "--no_data", "--nodata", type=bounded(int, 0, 255), metavar="0..255",
        help="drop tiles with a border entirely of this value (default: keep every tile with data)",
    )  # fmt: skip
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
        "--range", dest="value_range", type=float_pair, metavar="MIN,MAX",
        help="values that become 0 and 255 (default, for 16-bit values in png, jpg and webp: 0 and the maximum "
        "of the sensor's bit depth, 8 to 16)",
    )  # fmt: skip
    parser.add_argument("--cover", type=location, metavar="CSV", help="make only these tiles")
    parser.add_argument(
        "--max_tiles", type=int, default=MAX_TILES, metavar="N",
        help=f"refuse to make more tiles than this (default: {MAX_TILES})",
    )  # fmt: skip
    add_workers(parser)
    parser.add_argument("--resume", action="store_true", help="keep existing tiles")
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Take the last positional as the output where --out does not name it."""
    if args.out is None:
        *args.rasters, out = args.rasters
        args.out = location(out)
    if not args.rasters:
        raise UsageError("give the rasters, and then the output")
