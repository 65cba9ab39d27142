"""Download the tiles of a cover from a tile server (XYZ, TMS, WMS or WMTS).

rsp download https://tiles.example/{z}/{x}/{y}.jpg cover images
rsp download "https://{s}.tiles.example/{q}.jpg?key={key}" --subdomains t0,t1 cover images
rsp download --type WMS "https://wms.example/?SERVICE=WMS&REQUEST=GetMap&VERSION=1.3.0&CRS=EPSG:3857&BBOX={bbox}&..." cover images
rsp download --type WMTS https://wmts.example/1.0.0/WMTSCapabilities.xml --layer ortho cover images.pmtiles
rsp download --refresh https://tiles.example/{z}/{x}/{y}.jpg cover images

Tiles are checked (each a whole, square image) and kept as the server sends them, byte for byte, unless --format asks
for another format. The same command, run again, continues where it stopped. Tiles that the server does not have (404)
are listed beside the output, in FILE.absent.csv, and are not asked for again. With --refresh the server is asked of
each tile whether it has changed (by ETag and Last-Modified, kept in FILE.etags.csv): those that have are fetched, and
listed in the cover FILE.changed.csv.

Credentials are best given in the environment: {key} in the URL stands for RSP_HTTP_KEY, and RSP_HTTP_HEADERS holds
headers for the server, one `Name: value` per line (as `Authorization: Bearer ...`).
"""  # noqa: E501

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rsp.components.download.failures import FailureLimit
from rsp.components.download.fetching import Fetched, converted, fetcher, samples_first
from rsp.components.download.notes import CHANGED, NOTES, Notes, beside
from rsp.components.download.output import Output
from rsp.components.download.sources import ServerKind, find_source
from rsp.components.download.tally import Tally
from rsp.shared.arguments import add_attribution, add_out, add_web_ui, require
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import DownloadError, TileSetError, UsageError
from rsp.shared.locations import Address, Location, location
from rsp.shared.parallel import parallel_map
from rsp.shared.progress import progress
from rsp.shared.report import Result, absent_cover, note_absent, note_failures, read_list
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileserver import Client, FetchError
from rsp.shared.tileurl import SUBDOMAINS

if TYPE_CHECKING:
    from rsp.shared.tileset import TileReader

# Requests under way at once: as browsers hold open to a host. What they are worth a second the rate says.
WORKERS = 8


@dataclass(kw_only=True)
class DownloadResult(Result):
    """What `download` did.

    Attributes:
        tiles: How many tiles the output has of the cover.
        downloaded: How many of them were fetched now; with `refresh` those that are new or have changed.
        skipped: How many were there already, and have not changed.
    """

    tiles: int
    downloaded: int
    skipped: int


def download(
    url: str,
    cover: Location,
    out: Location,
    *,
    kind: ServerKind = "XYZ",
    layer: str | None = None,
    style: str | None = None,
    matrix_set: str | None = None,
    dimension: Sequence[str] | None = None,
    subdomains: str = SUBDOMAINS,
    rate: float = 10.0,
    timeout: int = 10,
    tile_format: str = "",
    workers: int = WORKERS,
    overwrite: bool = False,
    refresh: bool = False,
    allow_empty: bool = False,
    attribution: str = "",
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> DownloadResult:
    """Fetch tiles that are not there yet, or have changed.

    Args:
        url: URL of a tile, http or https, with placeholders. XYZ and TMS: `{z}`, `{x}`, `{y}` (TMS counts y from
            the south) or `{-y}` (from the south in both), or `{q}`, a quadkey. WMS: `{bbox}`, in the order of axes
            that its VERSION and CRS want, or `{xmin}`, `{ymin}`, `{xmax}`, `{ymax}`, in the unit of the CRS:
            EPSG:3857 or EPSG:4326. In all: `{s}`, one of `subdomains`; `{key}`, the environment variable
            RSP_HTTP_KEY. WMTS: URL of the service or of its capabilities; LAYER, STYLE and TILEMATRIXSET in it
            count where the arguments say nothing.
        cover: The tiles to fetch (CSV).
        out: Where they go, a directory or a `.pmtiles` archive.
        kind: What kind of server it is.
        layer: Layer of a WMTS; None where it has one.
        style: Style of a WMTS; None for the default one.
        matrix_set: Matrix set of a WMTS; None for the first whose matrices are the zooms of the cover.
        dimension: Values of dimensions of a WMTS, as `TIME=2020-06-01`; others have that of the URL, else the
            default one.
        subdomains: What `{s}` may be: letters, or names with commas between them.
        rate: Requests a second at most, over all threads and retries; may be a fraction.
        timeout: Seconds to wait for a connection, and for each part of an answer.
        tile_format: What tiles are stored as. An answer of this format is stored as it came, any other is
            converted. Empty: as the server sends. All tiles of a set have one format: that of those that are
            there, else of the first. A server that sends others, too, has those converted.
        workers: How many requests are under way at once at most.
        overwrite: Fetch tiles again that are there, and ask again for those that were absent.
        refresh: Fetch what is new or has changed since it was downloaded, and list it in a cover beside the
            output, FILE.changed.csv. What the server no longer has stays. For tile sets on this machine.
        allow_empty: The server may have none of the tiles, as of a part of a larger area: the archive is empty
            then. All of them are asked for, where otherwise the first 100 would tell.
        attribution: Whose the imagery is, as its licence asks for it, with links if need be; empty leaves what
            is noted of tiles that are there. It stands in the metadata of the tiles and of what is made of them.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: A template of the user's own for it.
        web_ui: Write the web page.

    Raises:
        UsageError: the URL lacks a placeholder or has an unknown one, a WMTS has no such layer or none that is the
            grid of XYZ, or a number makes no sense.
        CoverError: the cover cannot be read.
        TileSetError: there is nothing to refresh, or the tiles that are there have another format.
        DownloadError: the server gives nothing, or no more; what it gave is kept.
    """
    from rsp.shared.tileset import is_archive
    from rsp.shared.tileset import tile_format as format_name

    plain = tiles_output(out, web_ui=web_ui)
    check_paths([plain._replace(sides=(*plain.sides, NOTES, CHANGED))], [web_ui_template], cover=cover)
    if not (0 < rate < math.inf) or timeout < 1 or workers < 1:
        raise UsageError("--timeout and --workers must be at least 1, and --rate more than 0")
    if allow_empty and not is_archive(out):
        raise UsageError(f"--allow_empty is for archives: name the output {out}.pmtiles")
    if refresh and (overwrite or isinstance(out, Address)):
        raise UsageError("--refresh is for tile sets on this machine, and not for use with --overwrite")
    tile_format = format_name(tile_format) if tile_format else ""
    wanted = read_cover(cover)
    zooms = sorted({tile.z for tile in wanted})
    source = find_source(
        url, kind, zooms, layer=layer, style=style, matrix_set=matrix_set, dimensions=dimension or (),
        subdomains=subdomains, rate=rate, timeout=timeout, tile_format=tile_format,
    )  # fmt: skip
    client = Client(rate, timeout, workers, home=url if kind == "WMTS" else None)
    # What an earlier run has noted; None where it does not count.
    before = None if overwrite or refresh else read_list(absent_cover(out))
    with Notes(out, source.identity, refresh=refresh, forget=overwrite) as notes:
        with ExitStack() as stack:
            old = stack.enter_context(old_tiles(out, tile_format)) if refresh else None
            output = stack.enter_context(
                Output(
                    out,
                    tile_format,
                    resume=not overwrite,
                    empty=allow_empty,
                    later=refresh and not notes.changed,
                    attribution=attribution,
                )
            )
            present = output.done if old is None else old
            done = present if old is None else notes.seen
            there = sum(tile in present for tile in wanted)
            noted = {tile for tile in (before or set()).intersection(wanted) if tile not in present}
            missing = [tile for tile in wanted if tile not in done and tile not in noted]
            outside = {tile for tile in missing if source.url_of(tile) is None}
            missing = samples_first([tile for tile in missing if tile not in outside], FailureLimit.NONE)
            limit = FailureLimit(len(notes.seen) if refresh else there)
            tally = Tally(present, noted | outside, limit, empty=allow_empty)
            if not limit.good and not missing and not allow_empty:
                listed = f"{absent_cover(out)} says; ask again with --overwrite"
                known = "the limits of the layer say" if outside else listed
                raise DownloadError(f"none of the {len(wanted)} tiles exists there, as {known}")
            fetch = fetcher(client, source, notes, old, lambda: output.format)
            # The client goes first where something fails, and wakes the threads that wait.
            with closing(parallel_map(fetch, missing, workers, threads=True)) as results, client:
                for tile, result in zip(missing, progress(results, "download", len(missing)), strict=True):
                    if isinstance(result, FetchError):
                        tally.refused(tile, result)
                    else:
                        keep(tile, result, output, notes, tally)
            tally.check(len(wanted))
        if refresh:
            note_changed(out, notes.changed)
        notes.finish()
    tally.tell(output.converted, output.format)
    note_failures(out, tally.failed)
    if tally.absent or before != set():
        note_absent(out, tally.absent)
    if web_ui:
        from rsp.shared.webmap import write_webmap

        missed = tally.absent | {tile for tile in tally.failed if tile not in present}
        shown = [tile for tile in wanted if tile not in missed]
        write_webmap(out, shown, str(output.format), base_url=web_ui_base_url, template=web_ui_template)
    return DownloadResult(
        tiles=there + tally.new,
        downloaded=tally.written,
        skipped=there + tally.new - tally.written,
        failed=tally.failed,
        absent=sorted(tally.absent),
    )


def keep(tile: Tile, result: Fetched, output: Output, notes: Notes, tally: Tally) -> None:
    """Write a tile that was fetched, where it is not there already, and note what the server said of it."""
    data = result.data
    if result.changed:
        try:  # the first tiles came before the format of the set was known
            data = converted(data, result.format, output.format or result.format)
        except FetchError as error:
            tally.refused(tile, error)
            return
        notes.changing(tile)
        output.write(tile, data, result.came)
        tally.wrote(tile)
    notes.note(tile, data, result.validators)
    tally.succeeded(result.side)


@contextmanager
def old_tiles(out: Location, tile_format: str) -> Iterator[TileReader]:
    """Open the tiles that are there.

    Raises:
        TileSetError: there are none, or none of the format that was asked for.
    """
    from rsp.shared.tileset import open_reader

    with open_reader(out, empty=True) as reader:
        if tile_format and len(reader) and reader.format != tile_format:
            raise TileSetError(
                f"{out} holds {reader.format} tiles and {tile_format} was asked for; leave out --format"
            )
        yield reader


def note_changed(out: Location, changed: Collection[Tile]) -> None:
    """List the tiles that a refresh has changed in a cover beside the output; an empty list is none."""
    assert isinstance(out, Path)
    path = beside(out, CHANGED)
    if not changed:
        path.unlink(missing_ok=True)
        print("no tile has changed", file=sys.stderr)
        return
    write_cover(path, sorted(changed))
    print(f"{len(changed)} tiles are new or have changed; {path} lists them", file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp download`."""
    parser.add_argument(
        "url",
        help="URL of a tile with {z} {x} {y} (or {-y}), or {q} (quadkey); for WMS with {bbox}; for WMTS that of "
        "the service; {s} is one of --subdomains, {key} stands for $RSP_HTTP_KEY",
    )
    parser.add_argument("cover", type=location, metavar="tiles", help="cover of the tiles to fetch, CSV")
    add_out(parser, "where the tiles go, a directory or FILE.pmtiles")
    parser.add_argument(
        "--type", dest="kind", choices=("XYZ", "WMS", "TMS", "WMTS"), default="XYZ",
        help="kind of server (default: XYZ)",
    )  # fmt: skip
    parser.add_argument("--layer", help="layer of a WMTS (default: the only one)")
    parser.add_argument("--style", help="style of a WMTS (default: the default one)")
    parser.add_argument(
        "--matrix_set", metavar="SET", help="matrix set of a WMTS (default: the first that is the grid of XYZ)"
    )
    parser.add_argument(
        "--dimension", action="append", metavar="NAME=VALUE",
        help="value of a dimension of a WMTS, as TIME=2020-06-01; may be repeated (default: the default ones)",
    )  # fmt: skip
    parser.add_argument(
        "--subdomains", default=SUBDOMAINS, metavar="NAMES",
        help=f"what {{s}} may be: letters, or names as t0,t1,t2 (default: {SUBDOMAINS})",
    )  # fmt: skip
    parser.add_argument(
        "--rate",
        type=float,
        default=10.0,
        help="maximum requests per second, in total; may be a fraction (default: 10)",
    )
    parser.add_argument("--timeout", type=int, default=10, help="seconds to wait for a response (default: 10)")
    parser.add_argument(
        "--format", dest="tile_format", default="", metavar="FORMAT",
        help="what tiles are stored as: webp, png, jpg or tif (default: as the server sends); answers of this "
        "format are stored as they come",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help=f"concurrent requests at most (default: {WORKERS})"
    )
    parser.add_argument("--overwrite", action="store_true", help="download tiles again that exist already")
    parser.add_argument(
        "--refresh", action="store_true",
        help="download what is new or has changed since, and list it in FILE.changed.csv",
    )  # fmt: skip
    parser.add_argument(
        "--allow_empty", action="store_true",
        help="write an empty archive where the server has none of the tiles, as of a part of a larger area",
    )  # fmt: skip
    add_attribution(parser, "what is noted of tiles that are there")
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Tell that the output is missing."""
    require(args, "out")
