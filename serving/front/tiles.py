"""Live tiles: cut from a source, asked of a model, kept until either of them changes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import requests

from rsp.serving.front.cache import Cache, Entry
from rsp.serving.front.errors import NoSuchTileError, RefusedError, etag_matches
from rsp.serving.front.models import Model, Models, refused
from rsp.serving.front.turns import Flights, Gate
from rsp.serving.sources import NoTileError, Picture, Source, UnfitError
from rsp.shared.errors import ServingError, SourceError, TileError
from rsp.shared.images import encode
from rsp.shared.tiles import Tile, zxy

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEDIA = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg", "geojson": "application/geo+json",
         "tif": "image/tiff"}  # fmt: skip
# How often a tile is cut again where the model or the source changed meanwhile.
AGAIN = 3
# Threads that read pictures for the background, and look at files: these are quick and do not wait for a worker.
READERS = 8
# Of the headers of an answer these go to the client.
PASSED = ("X-Model-Version", "X-Precision", "X-Shape", "Server-Timing")


@dataclass(frozen=True)
class Asked:
    """What a tile of a model is asked for.

    Attributes:
        tile: The tile.
        form: One of `MEDIA`.
        overlap: Pixels of the border; None for the model's.
        version: Of the model, where not the one that answers now.
        request_id: Passed on, so that logs can be joined.
        known: What the client's cache holds (If-None-Match).
    """

    tile: Tile
    form: str
    overlap: int | None = None
    version: str | None = None
    request_id: str = ""
    known: str = ""


class _SwitchedError(Exception):
    """Another version of the model answered than the one that the tile was cut for."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what a source raises into what a client is told."""
    try:
        yield
    except NoTileError as error:
        raise NoSuchTileError(404, str(error)) from None
    except UnfitError as error:
        raise RefusedError(409, str(error)) from None
    except TileError as error:
        raise RefusedError(409, f"the tile of the source cannot be used: {error}") from None
    except SourceError as error:
        raise RefusedError(503, str(error), {"Retry-After": "5"}) from None


def _refresh(place: Source) -> None:
    """Follow a source that was changed."""
    try:
        place.refresh()
    except SourceError as error:
        # What was open stays readable; whether it is, the tile itself will tell.
        logger.warning("%s", error, extra={"source": place.name})


class Tiles:
    """Answers for tiles of sources, from a cache or from the servers.

    Args:
        sources: Those that the operator named.
        models: The servers behind.
        cache: Of what was answered.
        width: Requests under way at the servers at once.
        line: Requests that may wait for that.
        metrics: Where to count.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        models: Models,
        cache: Cache,
        *,
        width: int,
        line: int,
        metrics: Metrics | None = None,
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.models, self.cache, self.gate, self.metrics = models, cache, Gate(width, line), metrics
        self._flights: Flights[Entry] = Flights()
        # As many as may be at the servers at once, so nobody waits here who has his turn.
        self._workers = ThreadPoolExecutor(width, "live")
        self._readers = ThreadPoolExecutor(READERS, "picture")
        if metrics is not None:
            metrics.sources(self.sources)
            models.told = metrics.models
            metrics.watch(
                live_queue=lambda: self.gate.waiting,
                live_running=lambda: self.gate.running,
                live_cache_bytes=lambda: self.cache.bytes,
            )

    def source(self, name: str) -> Source:
        """Return a source; raise `RefusedError` (404) where there is none."""
        if name not in self.sources:
            raise RefusedError(404, f"no source {name!r}; there is {', '.join(self.sources) or 'none'}")
        return self.sources[name]

    async def mask(self, source: str, model: str, asked: Asked) -> Entry:
        """Return what a model says of a tile.

        Raises:
            RefusedError: there is none, with the status and the reason; 304 where the client's cache has it.
        """
        place = self.source(source)
        for _ in range(AGAIN):
            try:
                return await self._mask(place, model, asked)
            except _SwitchedError:
                continue  # another version answered, which may want another border
        raise RefusedError(503, f"the version of {model!r} changes from answer to answer; try again")

    async def _mask(self, place: Source, model: str, asked: Asked) -> Entry:
        found = await self.models.get(model, asked.version)
        overlap = self._overlap(found, asked)
        etag = await self._read(self._lookup, place, found, asked, overlap)
        key = self._key(place, found.version, etag, asked, overlap)
        if etag_matches(asked.known, f'"{key}"'):
            raise RefusedError(304, "not modified", {"ETag": f'"{key}"'})
        entry = await self._read(self.cache.get, key)
        if entry is not None:
            self._count("hit")
            return entry

        async def make(begin: Callable[[], None]) -> Entry:
            async with self.gate.turn():
                begin()
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._workers, self._make, place, found, asked)

        entry, joined = await self._flights.join(key, make)
        self._count("joined" if joined else "miss")
        return entry

    def _lookup(self, place: Source, found: Model, asked: Asked, overlap: int) -> str:
        """Return what the pixels of a tile and its border are now, and refuse what the model does not take."""
        with _refusing():
            _refresh(place)
            place.check_fit(found.card)
            place.check(asked.tile)
            return place.etag(asked.tile, overlap)

    def _overlap(self, found: Model, asked: Asked) -> int:
        overlap = found.card.overlap if asked.overlap is None else asked.overlap
        if overlap > found.card.overlap:
            raise RefusedError(400, f"overlap: the model takes up to {found.card.overlap}, got {overlap}")
        return overlap

    def _key(self, place: Source, version: str, etag: str, asked: Asked, overlap: int) -> str:
        text = f"{place.name} {version} {etag} {zxy(asked.tile)} {asked.form} {overlap}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _make(self, place: Source, found: Model, asked: Asked) -> Entry:
        """Cut a tile and ask for its mask, on a thread."""
        card = found.card
        overlap = self._overlap(found, asked)
        began, client = time.monotonic(), self.models.client(found.name)
        with _refusing():
            window, etag = place.window(asked.tile, card.channels, overlap, card.tile_size)
            side = card.tile_size + 2 * overlap
            if window.shape[:2] != (side, side):
                height, width = (each - 2 * overlap for each in window.shape[:2])
                raise UnfitError(f"the tile has {width}x{height} pixels, the model takes {card.tile_size}")
            if self.metrics is not None:
                self.metrics.source(place.name, time.monotonic() - began)
            if asked.form == "tif":
                return self._entry(place, found.version, etag, asked, overlap, encode(window, "tif"), {})
            image = client.encode(window)
        headers = {"Accept": MEDIA[asked.form], "X-Tile": zxy(asked.tile), "X-Request-Id": asked.request_id}
        if overlap:
            headers["X-Overlap"] = str(overlap)
        try:
            answer = client.ask(image, headers, version=asked.version)
        except (TileError, ServingError) as error:
            told = refused(error, found.name, asked.version)
            # The source holds what this model does not take: the client's request is as it should be.
            raise RefusedError(409 if told.status in (400, 413) else told.status, told.detail) from None
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind != MEDIA[asked.form]:
            raise RefusedError(502, f"the servers answered {kind or 'nothing'} and not {MEDIA[asked.form]}")
        version = answer.headers.get("X-Model-Version") or found.version
        if version != found.version:
            self.models.seen(found.name, version)
            raise _SwitchedError
        return self._entry(place, version, etag, asked, overlap, answer.content, passed(answer))

    def _entry(
        self, place: Source, version: str, etag: str, asked: Asked, overlap: int, body: bytes,
        headers: Mapping[str, str],
    ) -> Entry:  # fmt: skip
        key = self._key(place, version, etag, asked, overlap)
        about = {"X-Model-Version": version, **headers, "Content-Type": MEDIA[asked.form], "ETag": f'"{key}"'}
        entry = Entry(body, about)
        if asked.form != "tif":
            self.cache.put(key, entry)
        return entry

    async def picture(self, source: str, tile: Tile, form: Picture, known: str = "") -> Entry:
        """Return a tile of a source as people see it; raises as `mask` does."""
        place = self.source(source)
        return await self._read(self._picture, place, tile, form, known)

    def _picture(self, place: Source, tile: Tile, form: Picture, known: str) -> Entry:
        with _refusing():
            _refresh(place)
            place.check(tile)
            key = hashlib.blake2b(
                f"{place.name} {place.etag(tile)} {zxy(tile)} {form}".encode(), digest_size=16
            ).hexdigest()
            if etag_matches(known, f'"{key}"'):
                raise RefusedError(304, "not modified", {"ETag": f'"{key}"'})
            entry = self.cache.get(key)
            if entry is None:
                entry = Entry(place.picture(tile, form), {"Content-Type": MEDIA[form], "ETag": f'"{key}"'})
                if place.first.remote or place.kind == "raster":  # else reading it again is as quick
                    self.cache.put(key, entry)
            return entry

    async def predict(
        self, model: str, version: str | None, image: bytes, headers: Mapping[str, str]
    ) -> requests.Response:
        """Pass an image on to the servers, in turn, and again where a worker died.

        Raises:
            RefusedError: no usable answer.
        """
        self.models.check(model)
        async with self.gate.turn():
            return await asyncio.get_running_loop().run_in_executor(
                self._workers, self._predict, model, version, image, headers
            )

    def _predict(
        self, model: str, version: str | None, image: bytes, headers: Mapping[str, str]
    ) -> requests.Response:
        try:
            answer = self.models.client(model).ask(image, headers, version=version)
        except (TileError, ServingError) as error:
            raise refused(error, model, version) from None
        if version is None:
            self.models.seen(model, answer.headers.get("X-Model-Version", ""))
        return answer

    async def _read(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *args)

    def _count(self, result: str) -> None:
        if self.metrics is not None:
            self.metrics.cache(result)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the threads, and close the sources."""
        for pool in (self._workers, self._readers):
            pool.shutdown(wait=False, cancel_futures=True)  # what still runs was cut off
        for source in self.sources.values():
            source.close()


def passed(answer: requests.Response) -> dict[str, str]:
    """Return the headers of an answer that go to the client."""
    return {name: answer.headers[name] for name in PASSED if name in answer.headers}
