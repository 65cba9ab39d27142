"""Which tiles are there under which extension, where each one is a file or an object of its own: as arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsp.shared.covers import Cover
from rsp.shared.errors import TileSetError
from rsp.shared.tilekeys import Keys
from rsp.shared.tiles import MAX_ZOOM, Tile, zxy
from rsp.shared.tileset.base import FORMATS, tile_format
from rsp.shared.tileset.hilbert import tile_of

# Names that are plain numbers, with one extension: those of a folder in which nothing else lies.
_PLAIN = r"(?:(?:0|[1-9][0-9]{0,9})%s\n)+"


class Rows(NamedTuple):
    """Some tiles of a zoom.

    Attributes:
        zoom: Theirs.
        keys: Their numbers, in any order (see `rsp.shared.tilekeys`).
        extensions: How the name of each ends, or of all of them.
    """

    zoom: int
    keys: Keys
    extensions: list[str] | str

    @property
    def first(self) -> str:
        """How the name of the first one ends; there must be one."""
        return self.extensions if isinstance(self.extensions, str) else self.extensions[0]


class Listing:
    """The tiles of a set, and the extension of each: nine bytes a tile.

    Args:
        rows: The tiles, in any order.
    """

    def __init__(self, rows: Iterable[Rows]) -> None:
        numbers: dict[str, int] = {}
        found: dict[int, list[tuple[Keys, NDArray[np.uint8]]]] = {}
        for zoom, keys, extensions in rows:
            if isinstance(extensions, str):
                codes = np.full(len(keys), numbers.setdefault(extensions, len(numbers)), np.uint8)
            else:
                codes = np.array([numbers.setdefault(each, len(numbers)) for each in extensions], np.uint8)
            found.setdefault(zoom, []).append((keys, codes))
        self.extensions = tuple(numbers)
        self._codes: dict[int, NDArray[np.uint8]] = {}
        sorted_keys: dict[int, Keys] = {}
        for zoom in sorted(found):
            keys, codes = (np.concatenate(column) for column in zip(*found.pop(zoom), strict=True))
            order = np.argsort(keys, kind="stable")
            sorted_keys[zoom], self._codes[zoom] = keys[order], codes[order]
        self.cover = Cover(sorted_keys)

    def check(self, where: object) -> None:
        """Raise `TileSetError` where a tile is there twice, which only those see who read."""
        for zoom in self.cover.zooms:
            keys = self.cover.keys(zoom)
            twice = np.flatnonzero(keys[1:] == keys[:-1])
            if len(twice):
                place, codes = int(twice[0]), self._codes[zoom]
                x, y = divmod(int(keys[place]), 1 << 32)
                one, other = (self.extensions[code] for code in codes[place : place + 2].tolist())
                raise TileSetError(
                    f"{where} holds tile {zxy(Tile(x, y, zoom))} twice, as .{one} and .{other}; remove one of them"
                )

    def __len__(self) -> int:
        return len(self.cover)

    def extension(self, tile: object) -> str | None:
        """Return how the name of a tile ends, None where it is not there."""
        found = tile_of(tile)
        if found is None or found.z not in self._codes:
            return None
        keys, key = self.cover.keys(found.z), found.x << 32 | found.y
        place = int(keys.searchsorted(key))
        if place == len(keys) or keys[place] != key:
            return None
        return self.extensions[self._codes[found.z][place]]

    def names(self) -> Iterator[str]:
        """Yield `z/x/y.ext` of each tile."""
        for zoom in self.cover.zooms:
            for tile, code in zip(Cover({zoom: self.cover.keys(zoom)}), self._codes[zoom].tolist(), strict=True):
                yield f"{zxy(tile)}.{self.extensions[code]}"

    @property
    def formats(self) -> frozenset[str]:
        """All formats of the tiles."""
        return frozenset(map(tile_format, self.extensions))

    @property
    def first(self) -> Tile | None:
        """The least tile, by x, y and zoom."""
        return min(
            (Tile(*divmod(int(self.cover.keys(zoom)[0]), 1 << 32), zoom) for zoom in self.cover.zooms),
            default=None,
        )


def scan(root: Path) -> Iterator[Rows]:
    """Yield the tiles below a directory, column by column; whatever is not named like a tile is passed over."""
    for zoom, folder in _numbered(root):
        if zoom > MAX_ZOOM:
            continue
        for x, column in _numbered(folder):
            if not x >> zoom and (rows := _column(zoom, x, os.listdir(column))):  # noqa: PTH208
                yield rows


def _column(zoom: int, x: int, names: list[str]) -> Rows | None:
    """Return the tiles of a column by the names of its files."""
    extension = names[0].partition(".")[2] if names else ""
    if extension.lower() in FORMATS:
        text = "\n".join(names) + "\n"
        if re.fullmatch(_PLAIN % re.escape(f".{extension}"), text):
            keys = np.fromstring(text.replace(f".{extension}\n", " "), np.int64, sep=" ")
            if not (keys >> zoom).any():
                return Rows(zoom, keys | x << 32, extension)
    # Something else lies there too.
    tiles = []
    for name in names:
        stem, _, extension = name.partition(".")
        y = number(stem)
        if y is not None and not y >> zoom and extension.lower() in FORMATS:
            tiles.append((x << 32 | y, extension))
    if not tiles:
        return None
    return Rows(zoom, np.array([key for key, _ in tiles], np.int64), [extension for _, extension in tiles])


def number(name: str) -> int | None:
    """Return the number that a name is, or None; `007` does not count, as tile 7 would not be found again."""
    return int(name) if name.isascii() and name.isdecimal() and (name[0] != "0" or name == "0") else None


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the sub-directories whose name is a number."""
    with os.scandir(folder) as entries:
        for entry in entries:
            found = number(entry.name)
            if found is not None and entry.is_dir():
                yield found, Path(entry.path)
