"""Copy, link, move or delete tiles of a tile set; join tile sets, and convert them.

rsp subset --dir images --filter training/cover training/images
rsp subset --mode move --dir images --cover validation/cover --out validation/images.pmtiles
rsp subset --mode delete --dir images --filter bad/cover
rsp subset --mode link --dir images --filter training/cover training/images
rsp subset --dir images --format webp --quality 80 s3://bucket/images.pmtiles
rsp subset --dir new.pmtiles --union old.pmtiles --difference bad/cover --zoom 18 joined.pmtiles
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import add_out, add_web_ui, add_workers, bounded, tiles_at
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.locations import Address, Location, location
from rsp.shared.report import Result, note_failures
from rsp.shared.tiles import MAX_ZOOM, Tile

if TYPE_CHECKING:
    from rsp.components.subset.convert import Conversion
    from rsp.components.subset.work import Choice
    from rsp.shared.covers import Cover

Mode = Literal["copy", "move", "delete", "link", "hardlink"]
MODES: tuple[Mode, ...] = ("copy", "move", "delete", "link", "hardlink")
LINKS = ("link", "hardlink")
# Beyond these all tiles of a set would go, or more than one set would be changed.
_TAKING = ("move", "delete")


@dataclass(kw_only=True)
class SubsetResult(Result):
    """What `subset` did.

    Attributes:
        tiles: How many tiles it copied, linked, moved or deleted.
        skipped: With `resume`: how many were in the output already, or gone from the source with `delete`.
    """

    tiles: int
    skipped: int = 0


def subset(
    tiles: Location | str,
    cover: Location | Sequence[Location] | None = None,
    out: Location | None = None,
    *,
    mode: Mode = "copy",
    union: Sequence[Location | str] | None = None,
    intersection: Sequence[Location | str] | None = None,
    difference: Sequence[Location | str] | None = None,
    zoom: str = "",
    tile_format: str = "",
    quality: int | None = None,
    kind: Literal["image", "label"] | None = None,
    resume: bool = False,
    workers: int | None = None,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> SubsetResult:
    """Copy, link, move or delete tiles; their bytes stay as they are, but for those that are converted.

    First come the tiles of `tiles` and of `union`, then only those that all of `intersection` have are left, then
    none that any of `difference` has; of these those that `cover` lists are taken.

    Args:
        tiles: The source tile set: a directory or an archive, here or in S3, or an archive on an HTTP server.
        cover: The tiles to take (CSV), or several such lists. Those that no tile set has are listed as failed.
            Without it all are taken.
        out: Where they go, a directory or a `.pmtiles` archive, here or in S3; the current directory if none is
            given.
        mode: What to do with them. `move` takes a tile from the source once it is safe in the output. `delete`
            makes nothing and takes no output. `link` makes symbolic links, which are relative, `hardlink`
            hard ones: from a directory to a directory, on this machine.
        union: More tile sets to take from. Where several have a tile, it is that of the first, `tiles` before all.
        intersection: Covers or tile sets; a tile that one of them lacks is not taken.
        difference: Covers or tile sets; a tile that one of them has is not taken.
        zoom: The zooms to take, as `18`, `16,18` or `14-18`; empty for all.
        tile_format: png, jpg, webp or tif: what tiles of another format are converted to. Labels keep their values
            and colours, as png or tif. Empty leaves all as they are.
        quality: Of JPEG and WebP, 1 to 100 (85 if none is given). With it tiles that have the format already are
            encoded again, too.
        kind: `image` or `label`, where that cannot be told: tile sets that list classes are labels, and so are
            tiles with a palette.
        resume: Keep the tiles that the output has already; without, they are replaced. With `delete`, tiles that
            are gone already are no failure.
        workers: How many threads convert; one per processor if none is given.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: A template of the user's own for it.
        web_ui: Write the web page (never in `delete`).

    Raises:
        UsageError: the arguments do not fit together.
        CoverError: a cover cannot be read.
        TileSetError: no tile set, or it has none of these tiles.
        StorageError: the output cannot be written; what was written stays whole, and nothing was lost.
    """
    from rsp.components.subset.work import check_links, choose, take_away

    covers = [] if cover is None else [cover] if isinstance(cover, str | Path | Address) else list(cover)
    more, both, without = list(union or ()), list(intersection or ()), list(difference or ())
    _check_mode(mode, bool(more), bool(covers or both or without or zoom), converts=bool(tile_format or quality))
    zooms = _zooms(zoom)
    source, target = tiles_at(str(tiles)), location(out or Path()).expanduser()
    if mode == "delete":
        if out is not None:
            raise UsageError("`--mode delete` takes the tiles out of --dir and has no output")
        check_paths([], [tiles, *both, *without], cover=next(iter(covers), None), inside=covers[1:])
    else:
        output, reads = tiles_output(target, web_ui=web_ui), [tiles, *more, *both, *without, web_ui_template]
        if isinstance(target, Path) and target.resolve() == Path.cwd():
            # The default output: what is read may lie in it, beside the folders of the zooms.
            check_paths([output], [], inside=[*reads, *covers])
        else:
            check_paths([output], [*reads, *covers[1:]], cover=next(iter(covers), None))
    with ExitStack() as stack:
        choice = choose(stack, [source, *more], covers, both, without, zooms)
        # What a run that was killed had removed already is no failure of the one that goes on.
        passed = len(choice.missing) if resume and mode == "delete" else 0
        failed = {} if passed else {tile: _absent(source, more) for tile in choice.missing}
        if not choice.cover and not (resume and mode in _TAKING):
            raise TileSetError(_nothing(choice, [source, *more], covers))
        if mode == "delete":
            reader, taken = choice.sources[0]
            gone = take_away(reader, source, taken, failed) if taken else 0
            note_failures(location(source), failed)
            return SubsetResult(tiles=gone, skipped=passed, failed=failed)
        if mode in LINKS:
            check_links(choice, target)
        conversion = _conversion(choice, source, tile_format, quality, kind, mode)
        result, written, tile_format = _bring(choice, source, target, failed, conversion, mode, resume, workers)
    note_failures(target, failed)
    if web_ui:
        from rsp.shared.webmap import write_webmap

        write_webmap(target, written, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    return result


def _check_mode(mode: str, joined: bool, chosen: bool, *, converts: bool) -> None:
    if mode not in MODES:
        raise UsageError(f"--mode is {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}")
    if mode in _TAKING and joined:
        raise UsageError(f"`--mode {mode}` takes tiles out of --dir, and of no other tile set: leave out --union")
    if mode == "delete" and not chosen:
        raise UsageError("`--mode delete` would take every tile out of --dir: say which with --filter")
    if mode in (*LINKS, "delete") and converts:
        raise UsageError(f"`--mode {mode}` leaves tiles as they are: leave out --format and --quality")


def _zooms(text: str) -> frozenset[int] | None:
    """Return the zooms of `18`, `16,18` or `14-18`."""
    if not text:
        return None
    found: set[int] = set()
    for part in str(text).split(","):
        low, mark, high = part.strip().partition("-")
        if not (low.isdecimal() and (high.isdecimal() if mark else True)):
            raise UsageError(f"--zoom is 18, 16,18 or 14-18, got {text!r}")
        first, last = int(low), int(high or low)
        if not first <= last <= MAX_ZOOM:
            raise UsageError(f"--zoom {text}: zooms go from 0 to {MAX_ZOOM}, the lower one first")
        found.update(range(first, last + 1))
    return frozenset(found)


def _absent(source: Location | str, more: Sequence[Location | str]) -> str:
    return f"no such tile in {' nor in '.join(map(str, [source, *more]))}"


def _nothing(choice: Choice, sources: Sequence[Location | str], covers: Sequence[Location]) -> str:
    """Return what to say where there is nothing to take."""
    named = " and ".join(map(str, sources))
    if covers and len(choice.missing) == choice.asked:
        return f"{named} has none of the {choice.asked} tiles of {' and '.join(map(str, covers))}"
    return f"no tile of {named} is left by --zoom, --intersection and --difference"


def _conversion(
    choice: Choice, source: Location | str, tile_format: str, quality: int | None, kind: str | None, mode: str
) -> Conversion | None:
    """Return how tiles are converted, None where they stay as they are.

    Raises:
        UsageError: a format without a quality, or one that does not keep labels.
        TileSetError: several formats, and none was chosen.
    """
    readers = [source.reader for source in choice.sources]
    formats = frozenset().union(*(reader.formats for reader in readers))
    if not tile_format and len(formats) > 1:
        advice = "" if mode in LINKS else ": choose it with --format"
        what = f"{source} mixes" if len(readers) == 1 else "these tile sets have"
        raise TileSetError(f"{what} {' and '.join(sorted(formats))} tiles; a subset has one format{advice}")
    if not tile_format and quality is None:
        return None
    from rsp.components.subset.convert import OF_LABELS, Conversion
    from rsp.shared.tileset import tile_format as format_name

    chosen = format_name(tile_format or next(iter(formats)))
    if quality is not None and chosen not in ("jpg", "webp"):
        raise UsageError(f"--quality is for jpg and webp, which lose something; {chosen} does not")
    classes = next((found for reader in readers if (found := reader.info.classes)), None)
    kind = kind or ("label" if classes else None)
    if quality is None and formats == {chosen}:
        return None
    if kind == "label" and chosen not in OF_LABELS:
        raise UsageError(f"{source} holds labels: png and tif keep their values and colours, {chosen} does not")
    return Conversion(chosen, quality, kind, [entry.color for entry in classes or ()])


def _bring(
    choice: Choice,
    source: Location | str,
    target: Location,
    failed: dict[Tile, str],
    conversion: Conversion | None,
    mode: Mode,
    resume: bool,
    workers: int | None,
) -> tuple[SubsetResult, Cover, str]:
    """Bring tiles to the output, and take away what was moved; return what it has now, and in which format."""
    from rsp.components.subset.work import bring, describe, link, take_away, unlink
    from rsp.shared.covers import Cover
    from rsp.shared.tileset import DirectoryReader, is_archive, open_writer

    tile_format = conversion.format if conversion else choice.sources[0].reader.format
    done = Cover()
    with open_writer(target, tile_format, resume=resume) as writer:
        describe(writer, [each.reader for each in choice.sources], keep=resume)
        before = choice.cover & writer.done
        moved = choice.missing & writer.done
        for tile in moved:
            del failed[tile]  # an earlier run has brought it over
        for each in choice.sources:
            todo = each._replace(cover=each.cover - writer.done)
            # A tile in a directory or below a prefix is safe at once, one in an archive when the archive is there.
            at_once = mode == "move" and not is_archive(target) and isinstance(each.reader, DirectoryReader)
            lost: list[Tile] = []
            if mode in LINKS:
                outcomes = link(todo, writer, hard=mode == "hardlink")
            elif conversion is None and todo.cover and writer.take(todo.reader, todo.cover):
                outcomes = iter(())
            else:
                outcomes = bring(todo, writer, conversion, workers, mode)
            for tile, reason in outcomes:
                if reason is not None:
                    failed[tile] = reason
                    lost.append(tile)
                elif at_once and isinstance(each.reader, DirectoryReader):
                    unlink(each.reader, tile, failed)
            done |= todo.cover - Cover.of(lost)
        if not (done or before or moved):
            reason = next(iter(failed.values()), "")
            raise TileSetError(f"none of the {choice.asked} tiles of {source} came over: {reason}")
    if mode == "move":
        # An interrupted move may have written tiles without removing them; those already removed do no harm.
        take_away(choice.sources[0].reader, source, done | before, failed)
    result = SubsetResult(tiles=len(done), skipped=len(before) + len(moved), failed=failed)
    return result, done | before | moved, tile_format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp subset`."""
    add_out(parser, "where the tiles go, a directory or FILE.pmtiles (default: the current directory)")
    parser.add_argument(
        "--dir", dest="tiles", type=tiles_at, required=True, metavar="TILES", help="source tile set"
    )
    parser.add_argument(
        "--filter", "--cover", dest="cover", type=location, action="append", metavar="CSV",
        help="cover of the tiles to take; may be given again (default: all tiles)",
    )  # fmt: skip
    parser.add_argument(
        "--union", type=tiles_at, action="append", metavar="TILES",
        help="take what --dir lacks from this tile set; may be given again, the first one that has a tile counts",
    )  # fmt: skip
    parser.add_argument(
        "--intersection", type=tiles_at, action="append", metavar="WHAT",
        help="take only what this cover lists, or this tile set has; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--difference", type=tiles_at, action="append", metavar="WHAT",
        help="leave out what this cover lists, or this tile set has; may be given again",
    )  # fmt: skip
    parser.add_argument("--zoom", default="", help="zooms to take: 18, 16,18 or 14-18 (default: all)")
    parser.add_argument(
        "--mode", choices=MODES, default="copy",
        help="what to do: `link` makes relative symbolic links, `hardlink` hard ones (default: copy)",
    )  # fmt: skip
    for mode in MODES:
        parser.add_argument(
            f"--{mode}", dest="mode", action="store_const", const=mode, help=f"the same as `--mode {mode}`",
            default=argparse.SUPPRESS,
        )  # fmt: skip
    parser.add_argument(
        "--format", dest="tile_format", default="", metavar="FORMAT",
        help="png, jpg, webp or tif: convert to it what is not (default: leave tiles as they are)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", type=bounded(int, 1, 100), default=None, metavar="N",
        help="of jpg and webp, 1 to 100 (default: 85); encodes every tile again",
    )  # fmt: skip
    parser.add_argument(
        "--type", dest="kind", choices=("image", "label"), default=None,
        help="what is converted, where it cannot be told: labels have a palette, or list classes",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="keep tiles that exist in the output; with `--mode delete` pass over those that are gone",
    )  # fmt: skip
    add_workers(parser, what="threads that convert")
    add_web_ui(parser)
