"""Copy, move or delete the tiles of a tile set that a cover lists.

rsp subset --dir images --filter training/cover training/images
rsp subset --mode move --dir images --cover validation/cover --out validation/images.pmtiles
rsp subset --mode delete --dir images --filter bad/cover
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import add_out, add_web_ui
from rsp.shared.claims import check_paths, tiles_output
from rsp.shared.errors import TileError, TileSetError, UsageError
from rsp.shared.locations import Address, Location, location, remove
from rsp.shared.progress import progress
from rsp.shared.report import Result, note_failures
from rsp.shared.tiles import Tile, read_cover

if TYPE_CHECKING:
    from rsp.shared.tileset import TileReader

Mode = Literal["copy", "move", "delete"]


@dataclass(kw_only=True)
class SubsetResult(Result):
    """What `subset` did.

    Attributes:
        tiles: How many tiles it copied, moved or deleted.
        skipped: How many were in the output already (with `resume`).
    """

    tiles: int
    skipped: int = 0


def subset(
    tiles: Location,
    cover: Location,
    out: Location | None = None,
    *,
    mode: Mode = "copy",
    resume: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> SubsetResult:
    """Copy, move or delete tiles; their bytes stay as they are.

    Args:
        tiles: The source tile set, a directory or an archive.
        cover: The tiles to take (CSV). Those that the tile set does not have are listed as failed.
        out: Where they go, a directory or a `.pmtiles` archive; the current directory if none is given.
        mode: What to do with them. `move` takes a tile from the source once it is safe in the output. `delete`
            makes nothing and takes no output.
        resume: Keep the tiles that the output has already; without, they are replaced.
        web_ui_base_url: Where the web page finds the tiles.
        web_ui_template: A template of the user's own for it.
        web_ui: Write the web page (never in `delete`).

    Raises:
        UsageError: the arguments do not fit together.
        CoverError: the cover cannot be read.
        TileSetError: no tile set, or it has none of these tiles.
        StorageError: the output cannot be written; what was written stays whole, and nothing was lost.
    """
    from rsp.shared.tileset import open_reader

    if mode not in ("copy", "move", "delete"):
        raise UsageError(f"--mode is copy, move or delete, got {mode!r}")
    if mode == "delete" and out is not None:
        raise UsageError("`--mode delete` takes the tiles out of --dir and has no output")
    source, target = location(tiles).expanduser(), location(out or Path()).expanduser()
    if mode == "delete":
        check_paths([], [tiles], cover=cover)
    elif isinstance(target, Path) and target.resolve() == Path.cwd():
        # The default output: what is read may lie in it, beside the folders of the zooms.
        check_paths([tiles_output(target, web_ui=web_ui)], [], inside=[tiles, cover, web_ui_template])
    else:
        check_paths([tiles_output(target, web_ui=web_ui)], [tiles, web_ui_template], cover=cover)
    wanted = read_cover(cover)
    with open_reader(source) as reader:
        failed = {tile: f"no such tile in {source}" for tile in wanted if tile not in reader}
        present = [tile for tile in wanted if tile not in failed]
        if not present and not (resume and mode == "move"):
            raise TileSetError(f"{source} has none of the {len(wanted)} tiles of {cover}")
        if mode == "delete":
            done = _remove(reader, source, progress(present, "delete"), failed)
            note_failures(source, failed)
            return SubsetResult(tiles=len(done), failed=failed)
        done, skipped = _copy(reader, source, present, target, failed, move=mode == "move", resume=resume)
        tile_format = reader.format
    note_failures(target, failed)
    if not done and not skipped:
        raise TileSetError(f"{source} has none of the {len(wanted)} tiles of {cover} that can be read")
    if web_ui:
        from rsp.shared.webmap import write_webmap

        shown = [tile for tile in wanted if tile not in failed]
        write_webmap(target, shown, tile_format, base_url=web_ui_base_url, template=web_ui_template)
    return SubsetResult(tiles=len(done), skipped=skipped, failed=failed)


def _copy(
    reader: TileReader,
    source: Location,
    tiles: list[Tile],
    target: Location,
    failed: dict[Tile, str],
    *,
    move: bool,
    resume: bool,
) -> tuple[list[Tile], int]:
    """Copy tiles, and take away what was moved; return the tiles written, and how many were there before."""
    from rsp.shared.tileset import DirectoryReader, is_archive, open_writer
    from rsp.shared.tileset.remote import StoredReader

    if len(reader.formats) > 1:
        raise TileSetError(f"{source} mixes {' and '.join(sorted(reader.formats))} tiles; a subset has one format")
    done: list[Tile] = []
    # A tile in a directory or below a prefix is safe at once, one in an archive when the archive is there.
    at_once = move and not is_archive(target) and isinstance(reader, DirectoryReader | StoredReader)
    with open_writer(target, reader.format, resume=resume) as writer:
        writer.describe(reader.metadata)
        before = [tile for tile in tiles if tile in writer.done]
        moved = [tile for tile in failed if tile in writer.done]
        for tile in moved:
            del failed[tile]  # an earlier run has brought it over
        for tile in progress([tile for tile in tiles if tile not in writer.done], "move" if move else "copy"):
            try:
                data = reader.read(tile)
            except TileError as error:
                failed[tile] = str(error)
                continue
            writer.write(tile, data)
            done.append(tile)
            if at_once:
                _remove(reader, source, [tile], failed, prune=False)
    if move:
        # An interrupted move may have written tiles without removing them; those already removed do no harm.
        _remove(reader, source, done + before, failed)
    return done, len(before) + len(moved)


def _remove(
    reader: TileReader, source: Location, tiles: Iterable[Tile], failed: dict[Tile, str], *, prune: bool = True
) -> list[Tile]:
    """Take tiles out of a tile set, and folders that become empty; return the tiles taken."""
    from rsp.shared.tileset import SIDECAR, DirectoryReader, open_writer
    from rsp.shared.tileset.remote import StoredReader

    gone: list[Tile] = []
    if isinstance(reader, StoredReader):
        gone = list(tiles)
        reader.delete(gone)
        if isinstance(source, Address) and len(gone) == len(reader):
            remove(source.plain / SIDECAR)
        return gone
    if isinstance(reader, DirectoryReader):
        for tile in tiles:
            try:
                reader.locate(tile).unlink(missing_ok=True)
                gone.append(tile)
            except OSError as error:
                failed[tile] = f"cannot remove {reader.locate(tile)}: {error.strerror}"
        if prune:
            _prune(reader.path, gone)
            if len(gone) == len(reader):
                (reader.path / SIDECAR).unlink(missing_ok=True)
        return gone
    leaving = set(tiles)
    rest = [tile for tile in reader.tiles() if tile not in leaving]
    if rest:
        with open_writer(source.plain if isinstance(source, Address) else source, reader.format) as writer:
            writer.describe(reader.metadata)
            for tile in progress(rest, "keep"):
                writer.write(tile, reader.read(tile))
    else:
        remove(source.plain if isinstance(source, Address) else source)  # an archive holds at least one tile
    return sorted(leaving)


def _prune(root: Path, tiles: list[Tile]) -> None:
    """Remove the folders of tiles that are empty now."""
    folders = {root / str(tile.z) / str(tile.x) for tile in tiles}
    for folder in [*sorted(folders), *sorted({folder.parent for folder in folders})]:
        try:
            folder.rmdir()
        except OSError:
            continue  # it holds something still


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp subset`."""
    add_out(parser, "where the tiles go, a directory or FILE.pmtiles (default: the current directory)")
    parser.add_argument(
        "--dir", dest="tiles", type=location, required=True, metavar="TILES", help="source tile set"
    )
    parser.add_argument(
        "--filter",
        "--cover",
        dest="cover",
        type=location,
        required=True,
        metavar="CSV",
        help="cover of the tiles to take",
    )
    parser.add_argument(
        "--mode", choices=("copy", "move", "delete"), default="copy", help="what to do (default: copy)"
    )
    for mode in ("copy", "move", "delete"):
        parser.add_argument(
            f"--{mode}", dest="mode", action="store_const", const=mode, help=f"the same as `--mode {mode}`",
            default=argparse.SUPPRESS,
        )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep tiles that exist in the output")
    add_web_ui(parser)
