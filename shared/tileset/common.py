"""The tiles that several tile sets have in common, where each must have all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rsp.shared.covers import Cover, read_tiles
from rsp.shared.errors import CoverError, TileSetError
from rsp.shared.locations import Location
from rsp.shared.tiles import zxy
from rsp.shared.tileset import TileReader, open_reader

# What to do where tiles are missing from a set, or from one that the tiles of a cover are taken of.
PART = "compare a part with --cover"
LISTED = "leave them out of the cover: `rsp cover --dir` lists those that a tile set has"


def common_tiles(paths: Sequence[str | Location], cover: Location | None = None) -> Cover:
    """Return the tiles of tile sets that belong together: all of them, or those of a cover.

    Args:
        paths: The tile sets, which hold the same tiles unless there is a cover.
        cover: A cover, all of whose tiles each set has.

    Raises:
        CoverError: tiles of several zooms, or sets of different ones.
        TileSetError: the sets differ, or lack a tile of the cover; says how many and which is the first.
    """
    first, *others = paths
    wanted = read_tiles(cover) if cover else None
    with open_reader(first) as reader:
        if wanted is None:
            wanted = reader.cover()
        else:
            refuse_missing(reader, wanted, cover, LISTED)
    zoom = wanted.zoom(cover or first)
    for path in others:
        with open_reader(path) as reader:
            if cover is None and (theirs := reader.zoom()) != zoom:
                raise CoverError(
                    f"{first} has tiles of zoom {zoom}, {path} of zoom {theirs}: give tiles of one zoom"
                )
            refuse_missing(reader, wanted, cover or first, LISTED if cover else PART)
            if cover is None and len(reader) > len(wanted):
                extra = reader.cover() - wanted
                raise TileSetError(
                    f"{first} lacks {len(extra)} of the {len(reader)} tiles of {path}, the first is "
                    f"{zxy(next(iter(extra)))}; {PART}"
                )
    return wanted


class Together(NamedTuple):
    """The tiles of tile sets that need not hold the same ones.

    Attributes:
        tiles: The tiles that all of them have.
        lacking: Of each set that lacks tiles which another has: those.
    """

    tiles: Cover
    lacking: dict[str, Cover]


def tiles_together(paths: Sequence[str | Location]) -> Together:
    """Return the tiles that all of some tile sets have, and which of them lack what.

    Raises:
        CoverError: tiles of several zooms, or sets of different ones.
        TileSetError: they have no tile in common.
    """
    covers: dict[str, Cover] = {}
    for path in paths:
        with open_reader(path) as reader:
            covers[str(path)] = reader.cover()
    (first, found), *others = covers.items()
    zoom, every = found.zoom(first), found
    for name, cover in others:
        if (theirs := cover.zoom(name)) != zoom:
            raise CoverError(f"{first} has tiles of zoom {zoom}, {name} of zoom {theirs}: give tiles of one zoom")
        found, every = found & cover, every | cover
    if not found:
        told = ", ".join(f"{name} has {len(each)}, as {zxy(next(iter(each)))}" for name, each in covers.items())
        raise TileSetError(f"the tile sets have no tile in common: {told}")
    lacking = {name: every - cover for name, cover in covers.items()}
    return Together(found, {name: cover for name, cover in lacking.items() if cover})


def refuse_missing(
    reader: TileReader, tiles: Cover, source: str | Location | None, advice: str = "make both of the same tiles"
) -> None:
    """Raise `TileSetError` where a set lacks some of the tiles of another one, or of a cover."""
    missing = tiles - reader.among(tiles)
    if missing:
        raise TileSetError(
            f"{reader.path} lacks {len(missing)} of the {len(tiles)} tiles of {source}, the first is "
            f"{zxy(next(iter(missing)))}; {advice}"
        )
