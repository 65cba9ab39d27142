"""Covers as arrays: sets of tiles that take eight bytes a tile, read and written in blocks of text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import IO

import numpy as np
import numpy.typing as npt

from rsp.shared.atomic import atomic_path
from rsp.shared.errors import CoverError, NotFoundError
from rsp.shared.locations import Location, fetched, location
from rsp.shared.tilekeys import Keys, among, columns, tiles_of
from rsp.shared.tiles import MAX_ZOOM, Tile, check_zooms, tile_of
from rsp.shared.tiles import write_cover as write_tiles

# Bytes of text that are parsed at once, and tiles that are written, or made objects of, at once.
BLOCK, ROWS = 1 << 20, 1 << 16

# Tabs are read as commas, and numbers are then told apart by blanks.
_COMMAS, _BLANKS = bytes.maketrans(b"\t", b","), bytes.maketrans(b",\n", b"  ")
_ZERO, _NINE, _COMMA, _NEWLINE = b"09,\n"


class Cover(Collection[Tile]):
    """A set of tiles of any zooms, each once, in the order of zoom, x and y.

    Objects are made only of the tiles that are asked for: inside are sorted arrays, one a zoom, of whole numbers
    (see `rsp.shared.tilekeys`). A cover does not change.
    """

    __slots__ = ("_keys",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, keys: Mapping[int, Keys] | None = None) -> None:
        """Make a cover of sorted arrays in which each tile is once, by zoom; nothing of that is checked."""
        self._keys = {zoom: some for zoom, some in sorted((keys or {}).items()) if len(some)}

    @classmethod
    def of(cls, tiles: Iterable[tuple[int, int, int]]) -> Cover:
        """Return the cover of some tiles (x, y, z), in any order."""
        if isinstance(tiles, Cover):
            return tiles
        rows = np.fromiter((number for tile in tiles for number in tile), np.int64).reshape(-1, 3)
        return _gathered([rows])

    @classmethod
    def from_keys(cls, keys: Keys, zoom: int) -> Cover:
        """Return the cover of tiles of one zoom, given as numbers in any order."""
        return cls({zoom: unique(keys)})

    @property
    def zooms(self) -> tuple[int, ...]:
        """The zooms that there are tiles of, ascending."""
        return tuple(self._keys)

    def keys(self, zoom: int) -> Keys:
        """Return the tiles of a zoom, as sorted numbers; not to be written to."""
        return self._keys.get(zoom, np.empty(0, np.int64))

    def zoom(self, where: str | Location = "the cover") -> int:
        """Return the one zoom of the tiles; raise `CoverError` where there is none, or more than one."""
        return check_zooms(self.zooms, where)

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    def __iter__(self) -> Iterator[Tile]:
        for zoom, keys in self._keys.items():
            for start in range(0, len(keys), ROWS):
                yield from tiles_of(keys[start : start + ROWS], zoom)

    def __contains__(self, tile: object) -> bool:
        if not isinstance(tile, tuple) or len(tile) != 3:
            return False
        x, y, zoom = tile
        keys = self._keys.get(zoom)
        if keys is None or not (0 <= x < 1 << zoom and 0 <= y < 1 << zoom):
            return False
        key = x << 32 | y
        place = int(keys.searchsorted(key))
        return place < len(keys) and int(keys[place]) == key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cover):
            return NotImplemented
        return self.zooms == other.zooms and all(
            np.array_equal(keys, other._keys[zoom]) for zoom, keys in self._keys.items()
        )

    def __or__(self, other: Cover) -> Cover:
        """Return the tiles of either."""
        if not self or not other:
            return self or other
        return Cover({z: _joined([self.keys(z), other.keys(z)]) for z in {*self.zooms, *other.zooms}})

    def __and__(self, other: Cover) -> Cover:
        """Return the tiles of both."""
        return Cover({z: _chosen(keys, among(keys, other.keys(z))) for z, keys in self._keys.items()})

    def __sub__(self, other: Cover) -> Cover:
        """Return the tiles that the other has not."""
        if not other:
            return self
        return Cover({z: _chosen(keys, ~among(keys, other.keys(z))) for z, keys in self._keys.items()})

    def __repr__(self) -> str:
        """Say how many tiles there are, of which zooms."""
        return f"<Cover of {len(self):,} tiles, zooms {', '.join(map(str, self.zooms)) or 'none'}>"


def _chosen(keys: Keys, which: npt.NDArray[np.bool_]) -> Keys:
    """Return some of the numbers: all of them as the same array, which costs no memory."""
    return keys if which.all() else keys[which]


def unique(keys: Keys) -> Keys:
    """Return numbers sorted, each once; quick where they are so already, as most files are."""
    if (keys[1:] > keys[:-1]).all():
        return keys
    # Not by `np.unique`, which hashes, and takes eight times as long.
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])]


def _joined(parts: list[Keys]) -> Keys:
    """Return what is in any of some arrays, sorted, each once."""
    parts = [part for part in parts if len(part)]
    return unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _gathered(blocks: Iterable[npt.NDArray[np.int64]]) -> Cover:
    """Return the cover of rows of x, y and z."""
    found: dict[int, list[Keys]] = {}
    for rows in blocks:
        zooms = rows[:, 2]
        for zoom in zooms[:1].tolist() if (zooms == zooms[:1]).all() else np.unique(zooms).tolist():
            some = rows[zooms == zoom]
            found.setdefault(zoom, []).append(some[:, 0] << 32 | some[:, 1])
    return Cover({zoom: _joined(parts) for zoom, parts in found.items()})


def read_tiles(path: str | Location) -> Cover:
    """Read a cover as `rsp.shared.tiles.read_cover` does, into arrays: 10^6 tiles take a fifth of a second.

    Raises:
        CoverError: as `read_cover`.
        StorageError: the store cannot be reached.
    """
    path = location(path)
    try:
        with fetched(path).open("rb") as file:
            cover = parse_tiles(file, str(path))
    except NotFoundError as error:
        raise CoverError(f"cannot read the cover {path}: {error}") from FileNotFoundError(str(error))
    except OSError as error:
        raise CoverError(f"cannot read the cover {path}: {error}") from error
    if not cover:
        raise CoverError(f"the cover {path} lists no tile; make one with `rsp cover`")
    return cover


def parse_tiles(file: IO[bytes], where: str) -> Cover:
    """Return the tiles that the lines of a file list, which may be none.

    Raises:
        CoverError: a line that is not a tile, named with its number.
    """
    return _gathered(_rows(file, where))


def _rows(file: IO[bytes], where: str) -> Iterator[npt.NDArray[np.int64]]:
    """Yield rows of x, y and z."""
    done, rest = 0, b""
    while data := file.read(BLOCK):
        if not done and not rest:
            data = data.removeprefix(b"\xef\xbb\xbf")
        head, mark, tail = data.rpartition(b"\n")
        if not mark:
            rest += data
            if len(rest) > BLOCK:
                raise CoverError(
                    f"{where}, line {done + 1}: expected `x,y,z`, got a line of more than {BLOCK} bytes"
                )
            continue
        block, rest = rest + head + mark, tail
        yield _parsed(block, where, done)
        done += block.count(b"\n")
    if rest:
        yield _parsed(rest + b"\n", where, done)


def _parsed(block: bytes, where: str, done: int) -> npt.NDArray[np.int64]:
    """Return the rows of whole lines; `done` lines came before."""
    rows = _plain(block.replace(b"\r\n", b"\n"))
    if rows is not None:
        return rows
    # Blanks, further columns, or something that is no cover: line by line, to take the ones and explain the other.
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        number = done + block.count(b"\n", 0, error.start) + 1
        raise CoverError(f"cannot read the cover {where}: line {number} is not UTF-8: {error.reason}") from error
    lines = enumerate(text.splitlines(), done + 1)
    tiles = [tile for number, line in lines if (tile := tile_of(line, f"{where}, line {number}")) is not None]
    return np.array(tiles, np.int64).reshape(-1, 3)


def _plain(block: bytes) -> npt.NDArray[np.int64] | None:
    """Return the rows of lines that are three numbers each, and tiles; None where some are anything else."""
    block = block.translate(_COMMAS)
    data = np.frombuffer(block, np.uint8)
    marks = data[data < _ZERO]
    if len(marks) % 3 or (data > _NINE).any() or (marks.reshape(-1, 3) != (_COMMA, _COMMA, _NEWLINE)).any():
        return None
    # Text is not read beyond what is no number; there is nothing else here, so an empty field shows in the count.
    numbers = np.fromstring(block.translate(_BLANKS), np.int64, sep=" ")
    if len(numbers) != len(marks):
        return None
    rows = numbers.reshape(-1, 3)
    zooms = rows[:, 2]
    if (zooms > MAX_ZOOM).any() or (rows[:, :2] >> zooms[:, np.newaxis]).any():
        return None
    return rows


def write_cover(path: str | Location, tiles: Cover | Iterable[Tile]) -> int:
    """Write a cover atomically, one `x,y,z` a line, and return how many tiles it lists."""
    if not isinstance(tiles, Cover):
        return write_tiles(path, tiles)
    with atomic_path(location(path)) as temporary, temporary.open("wb") as file:
        for text in cover_text(tiles):
            file.write(text)
    return len(tiles)


def cover_text(cover: Cover) -> Iterator[bytes]:
    """Yield the lines of a cover, many at a time."""
    for zoom in cover.zooms:
        keys = cover.keys(zoom)
        for start in range(0, len(keys), ROWS):
            yield lines_of(keys[start : start + ROWS], zoom)


def lines_of(keys: Keys, zoom: int) -> bytes:
    """Return the lines `x,y,z` of tiles of one zoom."""
    tail = np.frombuffer(f",{zoom}\n".encode(), np.uint8)
    x, y = (_digits(numbers.astype(np.uint32)) for numbers in columns(keys))
    comma = np.full((len(keys), 1), _COMMA, np.uint8)
    text = np.hstack([x, comma, y, np.broadcast_to(tail, (len(keys), len(tail)))])
    return text.tobytes().translate(None, b"\0")


def _digits(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Return the decimal digits of numbers as text, a row each, with zero bytes before them."""
    width = len(str(numbers.max(initial=0)))
    digits = np.empty((len(numbers), width), np.uint8)
    rest = numbers
    for place in range(width - 1, -1, -1):
        tenth = rest // 10
        digit = (rest - tenth * 10).astype(np.uint8) + _ZERO
        # The last digit is there of nought, too.
        digits[:, place] = digit if place == width - 1 else np.where(rest > 0, digit, 0)
        rest = tenth
    return digits
