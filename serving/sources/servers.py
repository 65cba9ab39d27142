"""A tile server (XYZ, TMS or WMS) as a source of live imagery."""

from __future__ import annotations

import time

from rsp.serving.sources.layers import Extent, Layer, NoTileError, tile_at
from rsp.shared.credentials import masked
from rsp.shared.errors import SourceError
from rsp.shared.images import Array, decode
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileserver import Client, FetchError, error_text
from rsp.shared.tileurl import Kind, TileTemplate

# A person waits for the answer: what a server does not give within some seconds is asked for again by the client.
TIMEOUT = 10.0
ATTEMPTS = 2
WORKERS = 16
# Of a server that says nothing else: what it answers stays as it is for so many seconds.
TTL = 3600.0


class ServerLayer(Layer):
    """Tiles that a server gives, as `rsp download` would fetch them.

    Args:
        url: With placeholders, as `rsp download` takes it.
        kind: XYZ, TMS or WMS.
        extent: Where it has tiles, as far as the operator said.
        rate: Requests a second at most.
        ttl: Seconds for which a tile is taken to stay as it is.

    Raises:
        UsageError: the URL lacks a placeholder, has an unknown one, or wants a key that the environment lacks.
    """

    remote = True

    def __init__(self, url: str, kind: Kind, extent: Extent, *, rate: float, ttl: float = TTL) -> None:
        self._template = TileTemplate(url, kind)
        self.kind, self.path, self.extent = kind.lower(), masked(url), extent
        self._ttl = ttl
        self._client = Client(rate, TIMEOUT, WORKERS, attempts=ATTEMPTS)

    def __contains__(self, tile: object) -> bool:
        # Whether it is there only the server knows: `image` asks.
        return isinstance(tile, Tile) and self.extent.holds(tile)

    def encoded(self, tile: Tile) -> bytes:
        if tile not in self:
            raise NoTileError(f"no tile {zxy(tile)} in {self.path}")
        try:
            answer = self._client.fetch(self._template.url_of(tile))
        except FetchError as error:
            if error.absent:
                raise NoTileError(f"the tile server has no tile {zxy(tile)}: {error}") from None
            raise SourceError(f"the tile server does not give {zxy(tile)}: {error}") from None
        if text := error_text(answer):
            raise SourceError(f"{zxy(tile)}: {text}")
        return answer.body

    def image(self, tile: Tile) -> Array:
        return decode(self.encoded(tile))

    def revision(self, tile: Tile) -> str:
        return str(int(time.time() // self._ttl))

    def sample(self) -> Tile:
        west, south, east, north = self.extent.bounds
        return tile_at((west + east) / 2, (south + north) / 2, self.extent.high)

    def close(self) -> None:
        self._client.close()
