"""Sources of live imagery: what the operator names at the start, and a request only by that name.

    roofs=/data/roofs.pmtiles                           PMTiles, or a folder of tiles
    roofs=s3://imagery/2026/roofs.pmtiles               read by ranges, as over http(s)://
    city=https://tiles.example/{z}/{x}/{y}.webp         a tile server (XYZ or TMS), or a WMS with {bbox}
    ortho=https://data.example/ortho.tif                a raster (GeoTIFF), also s3:// or a path

Behind `#` stand options, as `#zooms=15-19&attribution=City of Example`; see `OPTIONS`.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_plus, urlsplit

import numpy as np

from rsp.serving.sources.layers import (
    WORLD,
    ArchiveLayer,
    Extent,
    FolderLayer,
    Layer,
    NoTileError,
    file_stamp,
)
from rsp.shared.attribution import joined, to_html
from rsp.shared.config import Channel
from rsp.shared.errors import SourceError, TileError, TileSetError, UsageError
from rsp.shared.images import Array, encode, sniff, value_type
from rsp.shared.learning.windows import TileImages, read_window
from rsp.shared.tiles import MAX_ZOOM, Tile, neighbours, zxy
from rsp.shared.tileset import find_tileset, open_reader

if TYPE_CHECKING:
    from rsp.shared.learning.card import ModelCard

__all__ = ["OPTIONS", "NoTileError", "Source", "UnfitError", "open_source", "parse_source"]

# What may stand behind the `#` of a location, and of what it is said.
OPTIONS = {
    "zooms": "lowest and highest zoom, as 15-19 (tile servers and rasters)",
    "bounds": "west,south,east,north in degrees (tile servers)",
    "attribution": "whose imagery it is, shown on the map",
    "type": "XYZ, TMS or WMS (tile servers; default: WMS with {bbox} or {xmin}, else XYZ)",
    "rate": "requests a second at most (tile servers; default: 50)",
    "ttl": "seconds for which tiles are taken to stay as they are (tile servers; default: 3600)",
    "bands": "bands to take, as 1,2,3 (rasters; default: all but alpha)",
    "range": "values that become 0 and 255, as 0,4095 (rasters; default: values stay as they are)",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What the front has at these paths.
RESERVED = frozenset(
    {"docs", "healthz", "livez", "metrics", "models", "openapi.json", "ping", "predictions", "sources", "static",
     "status"}
)  # fmt: skip
_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img")
# Bytes of decoded tiles that a source keeps for each set of channels that is asked for: neighbours share them.
KEEP = 128 << 20
# Tiles that are fetched at once over a network.
FETCHES = 16

Picture = Literal["png", "webp", "jpg"]


class UnfitError(SourceError):
    """A source that is not what a model takes."""


@dataclass(frozen=True)
class Spec:
    """What the operator wrote: a name, a location, and options."""

    name: str
    location: str
    options: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, option: str, count: int | None = None, separator: str = ",") -> tuple[float, ...] | None:
        """Return an option that holds numbers; None where it is not given."""
        text = self.options.get(option)
        if text is None:
            return None
        try:
            found = tuple(float(part) for part in text.split(separator))
        except ValueError:
            found = ()
        if not found or not np.isfinite(found).all() or count not in (None, len(found)):
            raise UsageError(f"--source {self.name}: {option} is {OPTIONS[option]}, got {text!r}")
        return found

    def zooms(self) -> tuple[int, int] | None:
        """Return the zooms that are named."""
        found = self.numbers("zooms", 2, "-")
        if found is None:
            return None
        low, high = map(int, found)
        if not 0 <= low <= high <= MAX_ZOOM:
            raise UsageError(f"--source {self.name}: zooms are two of 0 to {MAX_ZOOM}, the lower first, as 15-19")
        return low, high


def parse_source(text: str) -> Spec:
    """Parse `NAME=LOCATION[#OPTION=VALUE&...]`; raise `UsageError` where it is something else."""
    name, equals, location = text.partition("=")
    if not equals or not location:
        raise UsageError(f"--source is NAME=LOCATION, as roofs=roofs.pmtiles, got {text!r}")
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"--source {name!r}: a name has letters, digits, `.`, `_` and `-`, 64 at most, begins with a letter "
            f"or digit, and is not one of {', '.join(sorted(RESERVED))}"
        )
    # A file may have a `#` in its name; what follows the last one is options only where it looks so.
    location, _, tail = location.rpartition("#") if re.search(r"#\w+=[^#]*$", location) else (location, "", "")
    options: dict[str, str] = {}
    for pair in tail.split("&") if tail else ():
        key, _, value = pair.partition("=")
        if key not in OPTIONS:
            raise UsageError(f"--source {name}: unknown option {key!r}; known are {', '.join(OPTIONS)}")
        options[key] = unquote_plus(value)
    return Spec(name, location, options)


class Source:
    """Imagery that a model may be shown live, from any number of threads.

    Args:
        name: What it is called in URLs.
        layers: A layer for each channel, by name; one without a name serves any model of one channel.
        attribution: Whose it is, as HTML.
    """

    def __init__(self, name: str, layers: Mapping[str, Layer], attribution: str = "") -> None:
        self.name, self.layers, self.attribution = name, dict(layers), attribution
        self._lock = threading.Lock()
        self._images: dict[Any, TileImages] = {}
        self._looked = 0.0
        self._stretch: tuple[float, float] | None = None
        self._about: tuple[int, str] | None = None
        remote = any(layer.remote for layer in layers.values())
        self._fetchers = ThreadPoolExecutor(FETCHES, f"fetch-{name}") if remote else None

    @property
    def first(self) -> Layer:
        """The layer that the background of the map shows."""
        return next(iter(self.layers.values()))

    @property
    def kind(self) -> str:
        """What it is, as `pmtiles`."""
        return self.first.kind

    @property
    def extent(self) -> Extent:
        """Zooms and bounds."""
        return self.first.extent

    def about(self) -> tuple[int, str]:
        """Return how many bands the first layer has, and their value type, as a tile of its middle shows.

        Raises:
            TileError, SourceError: there is no such tile, or it cannot be had now.
        """
        if self._about is None:
            image = self.first.image(self.first.sample())
            self._about = image.shape[2], value_type(image)
        return self._about

    def refresh(self) -> None:
        """Follow what has changed since the last look, some seconds ago.

        Raises:
            SourceError: that cannot be told, or what is there now cannot be read.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._looked < self.first.slow:
                return
            self._looked = now
        for layer in self.layers.values():
            layer.refresh()

    def etag(self, tile: Tile, overlap: int = 0, side: int | None = None) -> str:
        """Return what changes when the pixels of a tile, or those of its border, do."""
        tiles = [tile, *neighbours(tile).values()] if overlap else [tile]
        digest = hashlib.blake2b(digest_size=12)
        for name, layer in self.layers.items():
            for each in tiles:
                digest.update(f"{name} {zxy(each)} {layer.sized(side or 0).revision(each)}\n".encode())
        return digest.hexdigest()

    def check(self, tile: Tile) -> None:
        """Raise `NoTileError` where there is no such tile (a tile server may still say so later)."""
        for layer in self.layers.values():
            if tile not in layer:
                extent = layer.extent
                where = "" if extent.holds(tile) else (
                    f"; it has zooms {extent.low} to {extent.high} within "
                    + ", ".join(f"{value:.5f}" for value in extent.bounds)
                )  # fmt: skip
                raise NoTileError(f"the source {self.name!r} has no tile {zxy(tile)}{where}")

    def check_fit(self, card: ModelCard) -> None:
        """Raise `UnfitError` where this is not what a model takes, as far as that is known."""
        layers = self._chosen(card.channels)
        for channel in card.channels:
            layer = layers[channel.name]
            if layer.tile_size not in (None, card.tile_size):
                raise UnfitError(
                    f"the tiles of the source {self.name!r} have {layer.tile_size} pixels a side, the model takes "
                    f"{card.tile_size}"
                )
        if len(self.layers) > 1 or len(card.channels) > 1:
            return
        try:
            bands, kind = self.about()
        except (TileError, SourceError):
            return  # the tile that is asked for will tell
        channel = card.channels[0]
        if channel.value_type not in (None, kind):
            raise UnfitError(
                f"the source {self.name!r} holds {kind} values, the model takes {channel.value_type}"
                + (" (a raster is scaled by #range=MIN,MAX)" if self.kind == "raster" else "")
            )
        if bands < max(channel.bands):
            raise UnfitError(
                f"the source {self.name!r} has {bands} band{'' if bands == 1 else 's'}, the model takes band "
                f"{max(channel.bands)}"
            )

    def _chosen(self, channels: Sequence[Channel]) -> dict[str, Layer]:
        """Return the layer of each channel."""
        names = {channel.name for channel in channels}
        if len(names) == 1 and len(self.layers) == 1:
            return dict.fromkeys(names, self.first)
        if missing := sorted(names - self.layers.keys()):
            has = ", ".join(filter(None, self.layers)) or "one without a name"
            raise UnfitError(
                f"the model takes the channels {', '.join(sorted(names))}; the source {self.name!r} lacks "
                f"{', '.join(missing)} (it has {has})"
            )
        return {name: self.layers[name] for name in names}

    def window(self, tile: Tile, channels: Sequence[Channel], overlap: int, side: int) -> tuple[Array, str]:
        """Return a tile with its border as `rsp predict` cuts it, and the `etag` of just these pixels.

        Args:
            tile: The tile.
            channels: Of the model. Of a single one all bands are returned: whoever predicts picks them.
            overlap: Width of the border in pixels.
            side: Of the tile, where the source makes tiles of any size.

        Raises:
            NoTileError: there is none.
            TileError: it is not what the model takes.
            SourceError: the source does not answer now.
        """
        self.check(tile)
        images = self._tiles(channels, side)
        for _ in range(3):
            before = self.etag(tile, overlap, side)
            if self._fetchers is not None and overlap:
                # Over a network nine journeys at once, not in turn.
                wait([self._fetchers.submit(_quietly, images.get, each) for each in neighbours(tile).values()])
            window = read_window(images, tile, overlap)
            if self.etag(tile, overlap, side) == before:
                return window, before
        raise SourceError(f"the source {self.name!r} changes faster than it can be read")

    def _tiles(self, channels: Sequence[Channel], side: int) -> TileImages:
        key = (tuple(channels), side)
        with self._lock:
            if key not in self._images:
                layers = {name: layer.sized(side) for name, layer in self._chosen(channels).items()}

                def revision(tile: Tile) -> tuple[str, ...]:
                    return tuple(layer.revision(tile) for layer in layers.values())

                self._images[key] = TileImages(layers, channels, raw=True, revision=revision, keep=KEEP)
            return self._images[key]

    def picture(self, tile: Tile, kind: Picture) -> bytes:
        """Return a tile of the first layer as people see it, 8 bits; raises as `window` does."""
        stored = self.first.encoded(tile)
        if stored is not None and sniff(stored) == kind:
            return stored
        image = self.first.image(tile)
        image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
        if image.dtype != np.uint8:
            low, high = self._limits()
            scaled = (image.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
            image = np.nan_to_num(np.clip(scaled, 0, 255)).astype(np.uint8)
        return encode(image, kind)

    def _limits(self) -> tuple[float, float]:
        """Return which values are shown as black and white, the same for all tiles."""
        if self._stretch is None:
            sample = self.first.image(self.first.sample())[:, :, :3]
            sample = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
            low, high = np.percentile(sample, (2, 98)) if sample.size else (0.0, 1.0)
            self._stretch = float(low), float(high)
        return self._stretch

    def close(self) -> None:
        """Close the layers."""
        if self._fetchers is not None:
            self._fetchers.shutdown(cancel_futures=True)
        for layer in self.layers.values():
            layer.close()


def _quietly(read: Callable[[Tile], Array], tile: Tile) -> None:
    """Read a neighbour ahead; what is wrong with it is found again, and said, when its turn comes."""
    with suppress(TileError, SourceError):
        read(tile)


def open_source(text: str) -> Source:
    """Open what the operator named.

    Args:
        text: `NAME=LOCATION[#OPTION=VALUE&...]`, as `rsp serve --source` takes it.

    Raises:
        UsageError: it is not of this form, or its options make no sense.
        TileSetError, RasterError, SourceError: there is nothing that can be read.
    """
    spec = parse_source(text)
    where, options = spec.location, spec.options
    if "{" in where and where.lower().startswith(("http://", "https://")):
        layers, takes = {"": _server(spec)}, {"zooms", "bounds", "type", "rate", "ttl"}
    elif urlsplit(where).path.lower().endswith(_RASTERS):
        layers, takes = {"": _raster(spec)}, {"zooms", "bands", "range"}
    else:
        layers, takes = _tiles(spec), set()
    if wrong := sorted(options.keys() - takes - {"attribution"}):
        raise UsageError(f"--source {spec.name}: {wrong[0]} is {OPTIONS[wrong[0]]}, which {where} is not")
    owners = options.get("attribution") or joined(layer.attribution for layer in layers.values())
    return Source(spec.name, layers, to_html(owners))


def _server(spec: Spec) -> Layer:
    from rsp.serving.sources.servers import TTL, ServerLayer

    kind = spec.options.get("type", "WMS" if re.search(r"\{(bbox|xmin)\}", spec.location) else "XYZ").upper()
    low, high = spec.zooms() or (0, 22)
    bounds = spec.numbers("bounds", 4) or WORLD
    (rate,), (ttl,) = spec.numbers("rate", 1) or (50.0,), spec.numbers("ttl", 1) or (TTL,)
    if rate <= 0 or ttl < 1:
        raise UsageError(f"--source {spec.name}: rate must be above 0, and ttl at least 1")
    extent = Extent(low, high, (bounds[0], bounds[1], bounds[2], bounds[3]))
    return ServerLayer(spec.location, kind, extent, rate=rate, ttl=ttl)  # type: ignore[arg-type]


def _raster(spec: Spec) -> Layer:
    from rsp.serving.sources.rasters import RasterLayer

    bands, span = spec.numbers("bands"), spec.numbers("range", 2)
    if span is not None and not span[0] < span[1]:
        raise UsageError(f"--source {spec.name}: range is two numbers, the lesser first, as 0,4095")
    where = spec.location if "://" in spec.location else str(Path(spec.location).expanduser().absolute())
    return RasterLayer(
        where,
        _stamp(where),
        bands=None if bands is None else tuple(map(int, bands)),
        value_range=None if span is None else (span[0], span[1]),
        zooms=spec.zooms(),
    )


def _tiles(spec: Spec) -> dict[str, Layer]:
    where = spec.location
    if "://" in where:
        return {"": ArchiveLayer(where, _stamp(where), remote=True)}
    path = Path(where).expanduser()
    if not path.is_dir():
        open_reader(path).close()  # says what is wrong with it
        return {"": ArchiveLayer(path, _stamp(str(path)))}
    try:
        return {"": FolderLayer(path)}
    except TileSetError as error:
        # A folder that holds a tile set for each channel, as `rsp predict` takes it.
        names = sorted({child.name.removesuffix(".pmtiles") for child in path.iterdir() if child.name[0] != "."})
        found: dict[str, Layer] = {}
        for name in names:
            try:
                child = find_tileset(path, name)
                found[name] = FolderLayer(child) if child.is_dir() else ArchiveLayer(child, _stamp(str(child)))
            except (TileSetError, SourceError):
                continue
        if not found:
            raise error from None
        return dict(sorted(found.items(), key=lambda item: (item[0] != "images", item[0])))


def _stamp(where: str) -> Callable[[], str]:
    """Return what tells whether a file has changed."""
    if "://" in where:
        from rsp.serving.sources.remote import remote_stamp

        return remote_stamp(where)
    return lambda: file_stamp(Path(where))
