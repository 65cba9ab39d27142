"""What every tile set is, whichever its form: the formats of tiles, and what can be read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rsp.shared.covers import Cover
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.locations import Location
from rsp.shared.tiles import Tile
from rsp.shared.tileset.metadata import TileSetInfo, join_metadata, parse_info

if TYPE_CHECKING:
    from rsp.shared.images import Array, Mask

# The file extensions of tiles, and the one that stands for each format.
FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp", "tif": "tif", "tiff": "tif"}


def tile_format(name: str) -> str:
    """Return the one name of a tile format (`jpeg` is `jpg`, `tiff` is `tif`); raise `UsageError` if unknown."""
    try:
        return FORMATS[name.lower().lstrip(".")]
    except KeyError:
        raise UsageError(f"unknown tile format {name!r}; expected one of {', '.join(FORMATS)}") from None


def refuse_other_formats(path: object, extensions: Iterable[str], tiles_format: str) -> None:
    """Raise `TileSetError` where a set holds tiles of another format: under two extensions one is unreadable."""
    other = {extension for extension in extensions if tile_format(extension) != tiles_format}
    if other:
        raise TileSetError(
            f"{path} already holds .{', .'.join(sorted(other))} tiles and {tiles_format} was asked for; "
            "choose another output or the same --format"
        )


class TileReader(ABC):
    """A tile set open for reading. Use it as a context manager.

    Attributes:
        path: Where it is; a text where that is a URL.
        format: The format of its tiles (of the first, where a directory mixes formats).
        formats: All formats of its tiles.
    """

    path: Location | str
    format: str
    formats: frozenset[str]

    @abstractmethod
    def cover(self) -> Cover:
        """Return all tiles, as arrays: eight bytes a tile."""

    def among(self, cover: Cover) -> Cover:
        """Return the tiles of a cover that are there."""
        return cover & self.cover()

    def tiles(self) -> list[Tile]:
        """Return all tiles as objects, sorted. They take 200 bytes each: see `cover`."""
        return sorted(self.cover())

    @abstractmethod
    def __contains__(self, tile: object) -> bool:
        """Tell whether there is a tile: a `Tile`, or a plain (x, y, z), which may lie outside the grid."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, tile: Tile) -> bytes:
        """Return the encoded image of a tile; raise `TileError` where there is none or it cannot be read."""

    def read_many(self, tiles: Iterable[Tile]) -> dict[Tile, bytes]:
        """Return the encoded images of tiles, without those that are not there.

        Readers of remote sets ask for neighbours together.
        """
        return {tile: self.read(tile) for tile in tiles if tile in self}

    def image(self, tile: Tile) -> Array:
        """Return the pixels of a tile, shape (height, width, bands); raises as `read` and `decode` do."""
        from rsp.shared.images import decode

        return decode(self.read(tile))

    def mask(self, tile: Tile) -> Mask:
        """Return the class indices of a tile, shape (height, width); raises as `read` and `decode_mask` do."""
        from rsp.shared.images import decode_mask

        return decode_mask(self.read(tile))

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What the writer noted about the whole set; raises `TileSetError` where it cannot be read."""

    @property
    def info(self) -> TileSetInfo:
        """What of the metadata the tools know, validated; raises `TileSetError` where a value is wrong."""
        return parse_info(self.metadata, f"the metadata of {self.path}")

    def zoom(self) -> int:
        """Return the one zoom of the set; raise `CoverError` where there are more."""
        return self.cover().zoom(self.path)

    def close(self) -> None:
        """Release what the reader holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TileWriter(ABC):
    """A tile set open for writing. Use it as a context manager: leaving it well commits.

    Attributes:
        done: Tiles that were there already when a writer was opened to resume.
        metadata: Notes about the whole set (see `rsp.shared.tileset.metadata`), kept by an archive inside and by a
            directory in `metadata.json`. What follows from the tiles is added at the end.
    """

    path: Location
    format: str
    done: Cover
    metadata: dict[str, Any]

    def describe(self, metadata: Mapping[str, Any]) -> None:
        """Note something about the whole set.

        Raises:
            TileSetError: it contradicts what is noted of the tiles that are there already.
        """
        self.metadata = join_metadata(self.metadata, metadata, self.path)

    @abstractmethod
    def write(self, tile: Tile, data: bytes) -> None:
        """Write a tile, in place of one that is there. Safe to call from several threads."""

    def take(self, reader: TileReader, cover: Cover) -> bool:
        """Take tiles over from another tile set as they are, which read and written one by one would cost more.

        Args:
            reader: The tile set, of the same format. It may be closed afterwards.
            cover: The tiles, all of which it has.

        Returns:
            Whether that was possible; nothing has happened otherwise.
        """
        return False

    @abstractmethod
    def commit(self) -> None:
        """Make everything visible to readers."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go after a failure; what was written stays for a writer that resumes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abandon()
