"""Download the tiles of a cover from a tile server (XYZ, WMS or TMS).

rsp download https://tiles.example/{z}/{x}/{y}.jpg cover images
rsp download --type WMS "https://wms.example/?SERVICE=WMS&REQUEST=GetMap&BBOX={xmin},{ymin},{xmax},{ymax}&..." cover images
rsp download --rate 50 --format png https://tiles.example/{z}/{x}/{-y}.png cover images.pmtiles

The same command, run again, continues where it stopped. Tiles that the server does not have (404) are listed beside
the output, in FILE.absent.csv, and are not asked for again. Credentials are best given in the environment:
RSP_HTTP_HEADERS holds headers for the server, one `Name: value` per line (as `Authorization: Bearer ...`).
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from rsp.components.download.failures import FailureLimit
from rsp.shared.arguments import add_out, add_web_ui, require
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import DownloadError, TileError, UsageError
from rsp.shared.locations import Location, location
from rsp.shared.parallel import parallel_map
from rsp.shared.progress import progress
from rsp.shared.report import Result, absent_cover, note_absent, note_failures, read_list
from rsp.shared.tiles import Tile, read_cover
from rsp.shared.tileserver import Answer, Client, FetchError, Kind, check_url, error_text, tile_url


@dataclass(kw_only=True)
class DownloadResult(Result):
    """What `download` did.

    Attributes:
        tiles: How many tiles the output has of the cover.
        downloaded: How many of them were fetched now.
        skipped: How many were there already.
    """

    tiles: int
    downloaded: int
    skipped: int


def download(
    url: str,
    cover: Location,
    out: Location,
    *,
    kind: Kind = "XYZ",
    rate: int = 10,
    timeout: int = 10,
    tile_format: str = "webp",
    workers: int | None = None,
    overwrite: bool = False,
    allow_empty: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> DownloadResult:
    """Fetch tiles that are not there yet.

    Args:
        url: URL of a tile, http or https, with placeholders. XYZ and TMS: `{z}`, `{x}`, `{y}` (TMS counts y from
            the south) or `{-y}` (from the south in both). WMS: `{xmin}`, `{ymin}`, `{xmax}`, `{ymax}` in metres of
            EPSG:3857, or `{bbox}`. In all: `{s}`, one of a, b, c.
        cover: The tiles to fetch (CSV).
        out: Where they go, a directory or a `.pmtiles` archive.
        kind: What kind of server it is.
        rate: Requests a second at most, over all threads and retries.
        timeout: Seconds to wait for a connection, and for each part of an answer.
        tile_format: What tiles are stored as. An answer of this format is stored as it
            came, any other is re-encoded.
        workers: How many requests are under way at once; None is as many as `rate`, but 16 at most.
        overwrite: Fetch tiles again that are there, and ask again for those that were absent.
        allow_empty: The server may have none of the tiles, as of a part of a larger area: the archive is empty
            then. All of them are asked for, where otherwise the first 100 would tell.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: A template of the user's own for it.
        web_ui: Write the web page.

    Raises:
        UsageError: the URL lacks a placeholder or has an unknown one, or a number makes no sense.
        CoverError: the cover cannot be read.
        DownloadError: the server gives nothing, or no more; what it gave is kept.
    """
    from rsp.shared.tileset import is_archive, open_writer
    from rsp.shared.tileset import tile_format as format_name

    check_paths([tiles_output(out, web_ui=web_ui)], [web_ui_template], cover=cover)
    check_url(url, kind)
    if rate < 1 or timeout < 1 or (workers is not None and workers < 1):
        raise UsageError("--rate, --timeout and --workers must be at least 1")
    if allow_empty and not is_archive(out):
        raise UsageError(f"--allow_empty is for archives: name the output {out}.pmtiles")
    tile_format = format_name(tile_format)
    wanted = read_cover(cover)
    workers = workers or min(rate, 16)
    client = Client(rate, timeout, workers)

    def fetch(tile: Tile) -> tuple[bytes, int] | FetchError:
        try:
            return checked(client.fetch(tile_url(url, tile, kind)), tile_format)
        except FetchError as error:
            return error

    failed: dict[Tile, str] = {}
    # What an earlier run has noted; None where it does not count.
    before = None if overwrite else read_list(absent_cover(out))
    absent = (before or set()).intersection(wanted)
    sides: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    with open_writer(out, tile_format, resume=not overwrite, empty=allow_empty) as writer:
        missing = [tile for tile in wanted if tile not in writer.done and tile not in absent]
        missing = samples_first(missing, FailureLimit.NONE)
        there = len(writer.done.intersection(wanted))
        absent -= writer.done
        limit = FailureLimit(there)
        # The client goes first where something fails, and wakes the threads that wait.
        with closing(parallel_map(fetch, missing, workers, threads=True)) as results, client:
            for tile, result in zip(missing, progress(results, "download", len(missing)), strict=True):
                if isinstance(result, FetchError):
                    if result.absent and not result.forbidden:
                        absent.add(tile)
                        reasons[str(result)] += 1
                        if allow_empty:
                            continue
                    else:
                        failed[tile] = str(result)
                    limit.failed(result)
                else:
                    data, side = result
                    writer.write(tile, data)
                    sides[side] += 1
                    limit.succeeded()
        if not limit.good and not missing and not allow_empty:
            raise DownloadError(
                f"none of the {len(wanted)} tiles exists there, as {absent_cover(out)} says; ask again with "
                "--overwrite"
            )
        if not limit.good and not (allow_empty and absent):
            reason, count = (reasons + Counter(failed.values())).most_common(1)[0]
            raise DownloadError(f"none of the {len(wanted)} tiles could be fetched; {count} times: {reason}")
    if len(sides) > 1:
        counts = ", ".join(f"{count} of {side} pixels" for side, count in sorted(sides.items()))
        print(f"warning: the tiles differ in size: {counts}", file=sys.stderr)
    note_failures(out, failed)
    if absent or before != set():
        note_absent(out, absent)
    if web_ui:
        from rsp.shared.webmap import write_webmap

        shown = [tile for tile in wanted if tile not in failed and tile not in absent]
        write_webmap(out, shown, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    done = len(wanted) - len(failed) - len(absent)
    return DownloadResult(tiles=done, downloaded=done - there, skipped=there, failed=failed, absent=sorted(absent))


def checked(answer: Answer, tile_format: str) -> tuple[bytes, int]:
    """Return the tile of an answer in the format asked for, and its side in pixels.

    Raises:
        FetchError: the response is not an image, or cannot be a tile.
    """
    from rsp.shared.images import decode, encode, sniff

    try:
        image = decode(answer.body)
        height, width = image.shape[:2]
        if height != width:
            raise FetchError(f"a tile is a square, this image has {width}x{height} pixels", server=False)
        # What came in this format stays as it is: encoding again would only lose quality.
        same = sniff(answer.body) == tile_format
        return answer.body if same else encode(image, tile_format), width
    except TileError as error:
        raise FetchError(error_text(answer) or str(error), server=False) from None


def samples_first(tiles: list[Tile], count: int) -> list[Tile]:
    """Return the tiles with about `count` of them, taken evenly from all over, in front.

    A cover begins at a corner, where a server may have nothing; so the first answers tell of the whole.
    """
    step = max(1, len(tiles) // count)
    first = tiles[::step]
    return first + [tile for index, tile in enumerate(tiles) if index % step]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp download`."""
    parser.add_argument(
        "url",
        help="URL of a tile with {z} {x} {y} (or {-y}); for WMS with {xmin},{ymin},{xmax},{ymax} or {bbox} in "
        "metres of EPSG:3857; {s} is one of a, b, c",
    )
    parser.add_argument("cover", type=location, metavar="tiles", help="cover of the tiles to fetch, CSV")
    add_out(parser, "where the tiles go, a directory or FILE.pmtiles")
    parser.add_argument(
        "--type", dest="kind", choices=("XYZ", "WMS", "TMS"), default="XYZ", help="kind of server (default: XYZ)"
    )
    parser.add_argument("--rate", type=int, default=10, help="maximum requests per second, in total (default: 10)")
    parser.add_argument("--timeout", type=int, default=10, help="seconds to wait for a response (default: 10)")
    parser.add_argument(
        "--format", dest="tile_format", default="webp", metavar="FORMAT",
        help="what tiles are stored as: webp, png, jpg or tif (default: webp); answers of this format are stored "
        "as they come",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=None, help="concurrent requests (default: as --rate, at most 16)"
    )
    parser.add_argument("--overwrite", action="store_true", help="download tiles again that exist already")
    parser.add_argument(
        "--allow_empty", action="store_true",
        help="write an empty archive where the server has none of the tiles, as of a part of a larger area",
    )  # fmt: skip
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Tell that the output is missing."""
    require(args, "out")
