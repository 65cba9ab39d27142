"""A raster (a cloud-optimised GeoTIFF, as a rule) as a source of live imagery: cut as `rsp tile` cuts it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from rsp.serving.sources.layers import Extent, Layer, NoTileError, tile_at
from rsp.shared.errors import RasterError, SourceError, TileError
from rsp.shared.gdal import RasterEnv
from rsp.shared.images import Array
from rsp.shared.mercator import AROUND, MAX_LATITUDE
from rsp.shared.rasters import default_range, geographic_bounds, inspect, natural_grid, open_raster
from rsp.shared.tiles import Tile, zxy
from rsp.shared.warp import Job, Mosaic

# A raster is shown from where a tile shrinks its smallest overview eightfold (more would read too much) to where a
# pixel is drawn fourfold.
SHRINK, ENLARGE = 3, 2
# Threads that read a raster, each with datasets of its own (GDAL's must not be shared), and how many of them.
READERS, OPEN = 4, 6
# Side of the tiles of the page's background.
SIDE = 256

# GDAL reads over the network what it is asked for, and nothing beside it; it gives up when a person would.
NETWORK = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_USE_HEAD": "NO",  # addresses that are signed for GET know no HEAD
    "GDAL_HTTP_TIMEOUT": "20",
    "GDAL_HTTP_CONNECTTIMEOUT": "5",
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
}


class Readers:
    """Reads a raster in threads of its own.

    Args:
        path: The raster, as rasterio takes it.
        bands: Bands to take; None for all but alpha.
        value_range: What becomes 0 and 255; None keeps the values.
    """

    def __init__(self, path: str, bands: tuple[int, ...] | None, value_range: tuple[float, float] | None) -> None:
        self.path, self._bands, self._range = path, bands, value_range
        self._options = _options(path)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(READERS, "raster", initializer=self._enter)
        self.generation = 0

    def _enter(self) -> None:
        RasterEnv([self.path], **self._options).__enter__()  # for the life of the thread
        self._local.mosaics, self._local.generation = {}, -1

    def describe(self) -> tuple[Extent, float]:
        """Return where the raster has tiles, and the zoom of its own resolution."""
        return self._pool.submit(self._describe).result()

    def _describe(self) -> tuple[Extent, float]:
        with RasterEnv([self.path]):  # with credentials that have not expired
            return self._described()

    def _described(self) -> tuple[Extent, float]:
        group = inspect([self.path], self._bands, label=False)
        with open_raster(self.path) as raster:
            west, south, east, north = geographic_bounds(raster)
            overviews = max(raster.overviews(1), default=1)
            transform, *_ = natural_grid(raster)
        self.group = group
        native = math.log2(AROUND / (SIDE * transform.a))
        low = math.ceil(native - math.log2(overviews)) - SHRINK
        west, east = (west, east) if west < east else (-180.0, 180.0)  # it crosses the antimeridian
        bounds = (west, max(south, -MAX_LATITUDE), east, min(north, MAX_LATITUDE))
        return Extent(max(0, low), min(24, max(0, round(native)) + ENLARGE), bounds), native

    def read(self, tile: Tile, side: int) -> Array | None:
        """Return the pixels of a tile of this side; None where the raster has nothing."""
        return self._pool.submit(self._read, tile, side).result()

    def _read(self, tile: Tile, side: int) -> Array | None:
        mosaics: dict[tuple[int, int], Mosaic] = self._local.mosaics
        key = (tile.z, side)
        if self._local.generation != self.generation or (key not in mosaics and len(mosaics) >= OPEN):
            self._local.generation = self.generation
            for mosaic in reversed(mosaics.values()):
                mosaic.close()
            mosaics.clear()
        if key not in mosaics:
            mosaics[key] = Mosaic(Job(self.group, tile.z, side, "tif", self._range))
        return mosaics[key].image(tile)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class RasterLayer(Layer):
    """Tiles of one raster, of any size.

    Args:
        address: A path, or an http(s):// or s3:// address.
        stamp: Tells what the file is now.
        bands: Bands to take, counted from 1; None for all but an alpha band.
        value_range: What becomes 0 and 255, as `rsp tile --range` has it; None keeps the values as they are.
        extent: Zooms that the operator names; None for those that its resolution suggests.

    Raises:
        RasterError: it cannot be read, or nothing says where it lies.
    """

    kind = "raster"

    def __init__(
        self,
        address: str,
        stamp: Callable[[], str],
        *,
        bands: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        zooms: tuple[int, int] | None = None,
        side: int = SIDE,
    ) -> None:
        self.path, self._stamp, self.side = address, stamp, side
        self.slow = 10.0 if "://" in address else 2.0
        self._now = stamp()
        self._readers = Readers(address, bands, value_range)
        self.extent, self._native = self._readers.describe()
        if zooms:
            self.extent = self.extent._replace(low=zooms[0], high=zooms[1])

    def sized(self, side: int) -> Layer:
        return _Sized(self, side)

    def __contains__(self, tile: object) -> bool:
        return isinstance(tile, Tile) and self.extent.holds(tile)

    def image(self, tile: Tile) -> Array:
        return self.image_of(tile, self.side)

    def image_of(self, tile: Tile, side: int) -> Array:
        """Return the pixels of a tile of a size."""
        try:
            image = self._readers.read(tile, side) if tile in self else None
        except RasterError as error:
            raise SourceError(str(error)) from None
        except TileError as error:
            raise SourceError(f"{zxy(tile)}: {error}") from None
        if image is None:
            raise NoTileError(f"{self.path} has no pixel in {zxy(tile)}")
        return image

    def revision(self, tile: Tile) -> str:
        return f"{self._now} {self._readers.generation}"

    def refresh(self) -> None:
        stamp = self._stamp()
        if stamp != self._now:
            self._readers.generation += 1
            try:
                self._readers.describe()
            except RasterError as error:
                raise SourceError(str(error)) from None
            self._now = stamp

    def sample(self) -> Tile:
        west, south, east, north = self.extent.bounds
        zoom = min(self.extent.high, max(self.extent.low, round(self._native)))
        return tile_at((west + east) / 2, (south + north) / 2, zoom)

    def close(self) -> None:
        self._readers.close()


class _Sized(Layer):
    """A raster with tiles of a size."""

    kind = RasterLayer.kind

    def __init__(self, layer: RasterLayer, side: int) -> None:
        self._layer, self.tile_size = layer, side
        self.path, self.extent, self.slow = layer.path, layer.extent, layer.slow

    def __contains__(self, tile: object) -> bool:
        return tile in self._layer

    def image(self, tile: Tile) -> Array:
        assert self.tile_size is not None
        return self._layer.image_of(tile, self.tile_size)

    def revision(self, tile: Tile) -> str:
        return self._layer.revision(tile)

    def sample(self) -> Tile:
        return self._layer.sample()


def sensor_range(address: str) -> tuple[float, float]:
    """Return what `rsp tile` scales a 16-bit raster by where nobody says anything else."""
    with RasterEnv([address], **_options(address)):
        return default_range(inspect([address], None, label=False))


def _options(address: str) -> dict[str, Any]:
    """Return what GDAL must be told to read an address as the other tools read it."""
    if "://" not in address:
        return {}
    parts = urlsplit(address)
    vsi = f"/vsis3/{parts.netloc}{parts.path}" if parts.scheme == "s3" else f"/vsicurl/{address}"
    return {**NETWORK, "CPL_VSIL_CURL_NON_CACHED": vsi}
