"""Fetching one tile: asking for it, or for changes; checking what came; and converting it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from rsp.components.download.notes import Notes
from rsp.components.download.sources import Source
from rsp.shared.errors import TileError
from rsp.shared.tiles import Tile
from rsp.shared.tileserver import Answer, Client, FetchError, Validators, error_text

if TYPE_CHECKING:
    from rsp.shared.tileset import TileReader


class Fetched(NamedTuple):
    """A tile that a server has given.

    Attributes:
        data: The tile.
        format: Of the tile: that of the set, as far as that was known.
        came: The format that the server sent; empty where it sent nothing, as nothing has changed.
        side: Of the tile in pixels, 0 where nothing came.
        validators: By what the server tells later whether it has changed.
        changed: It is not what is there already.
    """

    data: bytes
    format: str
    came: str
    side: int
    validators: Validators
    changed: bool = True


def fetcher(
    client: Client, source: Source, notes: Notes, old: TileReader | None, format_now: Callable[[], str | None]
) -> Callable[[Tile], Fetched | FetchError]:
    """Return what fetches a tile, for any number of threads.

    Args:
        client: Who asks.
        source: Where.
        notes: What the server said of the tiles that are there.
        old: The tiles that are there, where only those are fetched that have changed.
        format_now: Returns the format of the set, None as long as that is not known.
    """

    def fetch(tile: Tile) -> Fetched | FetchError:
        try:
            before = _read(old, tile)
            known = None if before is None else notes.validators_of(tile, before)
            answer = client.fetch(str(source.url_of(tile)), known)
            if before is not None and not answer.changed:
                # Servers may leave out what they have said before.
                said = answer.validators if any(answer.validators) else known or Validators()
                return Fetched(before, "", "", 0, said, changed=False)
            came, side = checked(answer)
            wanted = format_now() or came
            data = converted(answer.body, came, wanted)
            return Fetched(data, wanted, came, side, answer.validators, data != before)
        except FetchError as error:
            return error

    return fetch


def _read(old: TileReader | None, tile: Tile) -> bytes | None:
    """Return a tile that is there; None where there is none, or it cannot be read."""
    if old is None or tile not in old:
        return None
    try:
        return old.read(tile)
    except TileError:
        return None


def checked(answer: Answer) -> tuple[str, int]:
    """Return the format of the tile of an answer, and its side in pixels.

    Raises:
        FetchError: the response is not an image, or cannot be a tile.
    """
    from rsp.shared.images import decode, sniff

    try:
        height, width = decode(answer.body).shape[:2]
    except TileError as error:
        raise FetchError(error_text(answer) or str(error), server=False) from None
    if height != width:
        raise FetchError(f"a tile is a square, this image has {width}x{height} pixels", server=False)
    return str(sniff(answer.body)), width


def converted(data: bytes, came: str, tile_format: str) -> bytes:
    """Return a tile in a format; one that came in it stays as it is, as encoding again would only lose quality.

    Raises:
        FetchError: the format cannot hold it.
    """
    from rsp.shared.images import decode, encode

    if came == tile_format:
        return data
    try:
        return encode(decode(data), tile_format)
    except TileError as error:
        raise FetchError(str(error), server=False) from None


def samples_first(tiles: list[Tile], count: int) -> list[Tile]:
    """Return the tiles with about `count` of them, taken evenly from all over, in front.

    A cover begins at a corner, where a server may have nothing; so the first answers tell of the whole.
    """
    step = max(1, len(tiles) // count)
    first = tiles[::step]
    return first + [tile for index, tile in enumerate(tiles) if index % step]
