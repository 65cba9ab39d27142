"""Which tiles a subset takes from where, and how they come over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

from rsp.components.subset.convert import Conversion
from rsp.shared.attribution import note, of_readers
from rsp.shared.covers import Cover, read_tiles
from rsp.shared.errors import CoverError, TileError, TileSetError, UsageError
from rsp.shared.locations import Address, Location, location, remove
from rsp.shared.parallel import cpu_count, parallel_map
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile
from rsp.shared.tileset import (
    SIDECAR,
    DirectoryReader,
    DirectoryWriter,
    TileReader,
    TileWriter,
    is_archive,
    open_reader,
    open_writer,
)
from rsp.shared.tileset.entries import MAGIC
from rsp.shared.tileset.hilbert import in_order
from rsp.shared.tileset.metadata import foreign
from rsp.shared.tileset.ranged import RangedReader
from rsp.shared.tileset.remote import StoredReader, is_remote

# Tiles that are read together: those of an archive elsewhere lie together, and each request costs.
TOGETHER, LOCAL = 128, 16
# Requests that are under way at once.
REQUESTS = 16

Work = Callable[[bytes], bytes]
Read = list[tuple[Tile, bytes | TileError]]


class Source(NamedTuple):
    """A tile set, and the tiles that are taken from it."""

    reader: TileReader
    cover: Cover


class Choice(NamedTuple):
    """What is taken.

    Attributes:
        sources: The tile sets, the first one first.
        missing: Tiles that were asked for and that none of them has.
        asked: How many were asked for, or are there where nobody said which.
    """

    sources: list[Source]
    missing: Cover
    asked: int

    @property
    def cover(self) -> Cover:
        """All tiles that are taken."""
        return reduce(or_, (source.cover for source in self.sources))


def choose(
    stack: ExitStack,
    tiles: Sequence[Location | str],
    covers: Sequence[Location],
    intersection: Sequence[Location | str],
    difference: Sequence[Location | str],
    zooms: frozenset[int] | None,
) -> Choice:
    """Open tile sets and decide what is taken from each.

    Args:
        stack: Closes them.
        tiles: The tile sets; where several have a tile it is taken from the first.
        covers: What is asked for; everything where there is none.
        intersection: Covers or tile sets, all of which must have a tile.
        difference: Covers or tile sets, none of which may have it.
        zooms: Those that are wanted; None for all.

    Raises:
        CoverError: a cover cannot be read.
        TileSetError: there is no such tile set.
    """
    wanted = reduce(or_, map(read_tiles, covers)) if covers else None
    limits = [_named(place) for place in intersection], [_named(place) for place in difference]
    readers = [stack.enter_context(open_reader(place)) for place in tiles]
    sources, found = [], Cover()
    if wanted is not None:
        wanted = _of_zooms(wanted, zooms)
    for reader in readers:
        there = reader.cover() if wanted is None else reader.among(wanted)
        there = _of_zooms(there, zooms)
        own, found = there - found, found | there
        for cover in limits[0]:
            own &= cover
        for cover in limits[1]:
            own -= cover
        sources.append(Source(reader, own))
    return Choice(sources, Cover() if wanted is None else wanted - found, len(found if wanted is None else wanted))


def _of_zooms(cover: Cover, zooms: frozenset[int] | None) -> Cover:
    return cover if zooms is None else Cover({zoom: cover.keys(zoom) for zoom in cover.zooms if zoom in zooms})


def _named(place: Location | str) -> Cover:
    """Return the tiles that a cover lists, or that a tile set has, told by what is there."""
    if _is_cover(place):
        return read_tiles(place)
    with open_reader(place, empty=True) as reader:
        return reader.cover()


def _is_cover(place: Location | str) -> bool:
    if is_remote(place):
        return location(place).suffix.lower() in (".csv", ".txt", ".tsv")
    place = Path(place).expanduser()
    if not place.is_file():
        return False
    try:
        with place.open("rb") as file:
            return file.read(len(MAGIC)) != MAGIC
    except OSError as error:
        raise CoverError(f"cannot read {place}: {error.strerror}") from error


def describe(writer: TileWriter, readers: Sequence[TileReader], *, keep: bool = False) -> None:
    """Note what tile sets say of themselves; of what is not ours the first one counts, but whose they are.

    Args:
        writer: Where their tiles go.
        readers: The tile sets.
        keep: The tiles that were there stay, and whose they are.

    Raises:
        TileSetError: they contradict each other.
    """
    for reader in readers:
        metadata = reader.metadata
        others = foreign(metadata)
        writer.describe(
            {name: value for name, value in metadata.items() if name not in others or name not in writer.metadata}
        )
    note(writer, of_readers(readers), keep=keep)


# --- copying ------------------------------------------------------------------------------------------------


def bring(
    source: Source, writer: TileWriter, convert: Conversion | None, workers: int | None, what: str
) -> Iterator[tuple[Tile, str | None]]:
    """Copy the tiles of a source, and yield each with what was wrong with it, None where it was written.

    Args:
        source: The tile set, and its tiles.
        writer: Where they go.
        convert: What is done to each; None leaves the bytes as they are.
        workers: How many threads convert; None for one a processor.
        what: The name of the work, for the progress.
    """
    reader = source.reader
    remote = isinstance(reader, RangedReader | StoredReader)
    threads = REQUESTS if remote else 0
    if convert is not None:
        threads = max(threads, workers or cpu_count())
    size = TOGETHER if isinstance(reader, RangedReader) else LOCAL if not remote else 1

    def work(tiles: list[Tile]) -> Read:
        return [(tile, _converted(data, convert)) for tile, data in _read(reader, tiles)]

    chunks = in_order(source.cover, size)
    with closing(parallel_map(work, chunks, threads, threads=True)) as results:
        for tile, data in progress((pair for part in results for pair in part), what, len(source.cover)):
            if isinstance(data, TileError):
                yield tile, str(data)
            else:
                writer.write(tile, data)
                yield tile, None


def _read(reader: TileReader, tiles: list[Tile]) -> Read:
    if isinstance(reader, RangedReader):
        return list(reader.read_many(tiles).items())
    found: Read = []
    for tile in tiles:
        try:
            found.append((tile, reader.read(tile)))
        except TileError as error:
            found.append((tile, error))
    return found


def _converted(data: bytes | TileError, convert: Conversion | None) -> bytes | TileError:
    if convert is None or isinstance(data, TileError):
        return data
    try:
        return convert(data)
    except TileError as error:
        return error


def check_links(choice: Choice, target: Location) -> None:
    """Raise `UsageError` where tiles are not files on this machine, or are not to become such."""
    here = all(isinstance(source.reader, DirectoryReader) for source in choice.sources)
    if not here or is_archive(target) or isinstance(target, Address):
        raise UsageError("links lead from file to file: from a directory to a directory, both on this machine")


def link(source: Source, writer: TileWriter, *, hard: bool) -> Iterator[tuple[Tile, str | None]]:
    """Link the tiles of a directory; else as `bring`."""
    assert isinstance(source.reader, DirectoryReader) and isinstance(writer, DirectoryWriter)
    for tile in progress(source.cover, "link"):
        writer.link(tile, source.reader.locate(tile), hard=hard)
        yield tile, None


# --- taking away --------------------------------------------------------------------------------------------


def take_away(reader: TileReader, source: Location | str, cover: Cover, failed: dict[Tile, str]) -> int:
    """Take tiles out of a tile set, and folders that become empty; return how many were taken.

    Args:
        reader: The tile set.
        source: Where it is.
        cover: The tiles, all of which it has.
        failed: Gets those that could not be removed, with the reason.
    """
    if isinstance(reader, RangedReader) and isinstance(reader.path, str):
        raise UsageError(f"{source} is on a web server, from which nothing can be taken away")
    plain = source.plain if isinstance(source, Address) else Path(source).expanduser()
    if isinstance(reader, StoredReader):
        reader.delete(cover)
        if isinstance(plain, Address) and len(cover) == len(reader):
            remove(plain / SIDECAR)
        return len(cover)
    if isinstance(reader, DirectoryReader):
        gone = sum(unlink(reader, tile, failed) for tile in cover)
        _prune(reader.path, cover)
        if gone == len(reader):
            (reader.path / SIDECAR).unlink(missing_ok=True)
        return gone
    rest = reader.cover() - cover
    if not rest:
        remove(plain)  # an archive holds at least one tile
        return len(cover)
    with open_writer(plain, reader.format) as writer:
        writer.describe(reader.metadata)
        if writer.take(reader, rest):
            return len(cover)
        for _, reason in bring(Source(reader, rest), writer, None, None, "keep"):
            if reason:  # nothing is lost: the archive stays as it was
                raise TileSetError(f"{source} stays as it was: of a tile that was to stay, {reason}")
    return len(cover)


def unlink(reader: DirectoryReader, tile: Tile, failed: dict[Tile, str]) -> bool:
    """Remove the file of a tile; tell whether it is gone, and note it as failed where not."""
    path = reader.locate(tile)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        failed[tile] = f"cannot remove {path}: {error.strerror}"
        return False
    return True


def _prune(root: Path, cover: Cover) -> None:
    """Remove the folders of tiles that are empty now."""
    columns = {zoom: {key >> 32 for key in cover.keys(zoom).tolist()} for zoom in cover.zooms}
    folders = {root / str(zoom) / str(x) for zoom, found in columns.items() for x in found}
    for folder in [*sorted(folders), *sorted({folder.parent for folder in folders})]:
        try:
            folder.rmdir()
        except OSError:
            continue  # it holds something still
