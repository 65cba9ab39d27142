"""Rasters as tiles: projects them to the tile grid, and cuts, composes and encodes tiles."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from rsp.shared.errors import TileError
from rsp.shared.gdal import RasterEnv, gdal_name
from rsp.shared.images import Array, Rgb, encode, encode_mask
from rsp.shared.rasters import MERCATOR, RasterGroup, footprint, open_raster
from rsp.shared.tiles import Tile, bounds_mercator

# A row of tiles is cut out of the same blocks of a raster: so many bytes of them stay decoded, in each process.
CACHE = 256 << 20


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know to make a tile.

    Attributes:
        source: The rasters.
        zoom: Zoom of the tiles.
        tile_size: Side of a tile in pixels.
        tile_format: How tiles are encoded.
        value_range: What becomes 0 and 255, where values are scaled to a byte.
        no_data: Drop tiles with a border of this value.
        colors: The palette of the classes, where tiles are labels.
    """

    source: RasterGroup
    zoom: int
    tile_size: int
    tile_format: str
    value_range: tuple[float, float] | None = None
    no_data: int | None = None
    colors: tuple[Rgb, ...] | None = None

    def open(self) -> Mosaic:
        """Open the rasters."""
        return Mosaic(self)


@dataclass(frozen=True)
class Made:
    """What became of a tile.

    Attributes:
        data: The encoded tile.
        dropped: Why there is none: `empty` (no raster has a pixel here) or `border` (see `--no_data`).
    """

    data: bytes | None = None
    dropped: str | None = None


class Mosaic:
    """Rasters projected to the tile grid, open for reading in one process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open()

    def _open(self) -> None:
        self._stack = ExitStack()
        self._env = self._stack.enter_context(RasterEnv(self._job.source.paths, GDAL_CACHEMAX=CACHE))
        try:
            self._layers = [self._layer(path) for path in self._job.source.paths]
        except BaseException:
            self._stack.close()
            raise

    def _layer(self, path: str) -> tuple[WarpedVRT, Tile, Tile, int]:
        """Open a raster; return it projected, its first and last tile, and the index of its mask."""
        job = self._job
        first, last = footprint(path, job.zoom, job.tile_size)
        west, _, _, north = bounds_mercator(first)
        _, south, east, _ = bounds_mercator(last)
        width = (last.x - first.x + 1) * job.tile_size
        height = (last.y - first.y + 1) * job.tile_size
        label = job.colors is not None
        path = self._without_alpha(path)
        raster = self._stack.enter_context(open_raster(path, **self._overview(path, (east - west) / width, label)))
        alpha = raster.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in raster.colorinterp else 0
        options: dict[str, Any] = {}
        if np.dtype(job.source.dtype).kind == "f" and raster.nodata is None:
            options["src_nodata"] = float("nan")  # a NaN would spread to the pixels around it
        masked = any(MaskFlags.per_dataset in flags for flags in raster.mask_flag_enums)
        projected = WarpedVRT(
            raster,
            crs=MERCATOR,
            transform=Affine((east - west) / width, 0, west, 0, (south - north) / height, north),
            width=width,
            height=height,
            resampling=Resampling.nearest if label else Resampling.bilinear,
            add_alpha=not alpha,
            # A pixel has no data where all of its bands say so: black in one band is a colour.
            UNIFIED_SRC_NODATA="YES",
            **({} if masked else options),
        )
        return self._stack.enter_context(projected), first, last, alpha or projected.count

    def _without_alpha(self, path: str) -> str:
        """Return the raster, or a view of it without an alpha band where that band was asked for as data.

        GDAL takes the fourth band of a GeoTIFF for alpha unless told otherwise, as the near infrared of many
        pictures, and weighs all others by it.
        """
        with open_raster(path) as raster:
            meanings = raster.colorinterp
            taken = any(meanings[band - 1] == ColorInterp.alpha for band in self._job.source.bands)
        if not taken:
            return path
        view = f"/vsimem/{secrets.token_hex(8)}.vrt"
        rasterio.shutil.copy(gdal_name(path), view, driver="VRT")
        self._stack.callback(rasterio.shutil.delete, view)
        with rasterio.open(view, "r+") as raster:
            raster.colorinterp = [
                ColorInterp.undefined if meaning == ColorInterp.alpha else meaning for meaning in meanings
            ]
        return view

    @staticmethod
    def _overview(path: str, resolution: float, label: bool) -> dict[str, int]:
        """Return the option that opens the overview to read, for pictures that are shown much smaller.

        Overviews of labels may be averages, which are not classes.
        """
        with open_raster(path) as raster:
            factors = raster.overviews(1)
            if label or not factors:
                return {}
            with WarpedVRT(raster, crs=MERCATOR) as full:
                shrink = resolution / full.res[0] * 1.001
        levels = [level for level, factor in enumerate(factors) if factor <= shrink]
        return {"overview_level": levels[-1]} if levels else {}

    def close(self) -> None:
        """Close the rasters."""
        self._stack.close()

    def __call__(self, tile: Tile) -> Made:
        """Cut, compose and encode a tile."""
        job = self._job
        pixels, valid = self.read(tile)
        if not valid.any():
            return Made(dropped="empty")
        if job.colors is not None:
            label = _classes(pixels[:, :, 0], len(job.colors))
            if _has_border(label[:, :, np.newaxis], valid, job.no_data):
                return Made(dropped="border")
            return Made(encode_mask(label, job.colors))
        pixels = self._values(pixels, valid)
        if _has_border(pixels, valid, job.no_data):
            return Made(dropped="border")
        return Made(encode(pixels, job.tile_format))

    def image(self, tile: Tile) -> Array | None:
        """Return the pixels that a tile of imagery has, shape (height, width, bands); None where it is empty.

        Raises:
            TileError: a raster cannot be read here.
        """
        pixels, valid = self.read(tile)
        return self._values(pixels, valid) if valid.any() else None

    def _values(self, pixels: Array, valid: npt.NDArray[np.bool_]) -> Array:
        """Scale values to bytes where that is asked for."""
        return pixels if self._job.value_range is None else _scaled(pixels, valid, *self._job.value_range)

    def read(self, tile: Tile) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the pixels of a tile, (height, width, bands), and which of them a raster has, (height, width).

        Where rasters overlap the first one counts, and the next ones where it has nothing. What none has is 0.

        Raises:
            TileError: a raster cannot be read here.
        """
        if self._env.expired:
            self.close()
            self._open()
        side = self._job.tile_size
        bands = list(self._job.source.bands)
        pixels = np.zeros((len(bands), side, side), self._job.source.dtype)
        valid = np.zeros((side, side), bool)
        for projected, first, last, mask in self._layers:
            if not (first.x <= tile.x <= last.x and first.y <= tile.y <= last.y):
                continue
            window = Window((tile.x - first.x) * side, (tile.y - first.y) * side, side, side)
            try:
                read = projected.read([*bands, mask], window=window)
            except RasterioError as error:
                raise TileError(
                    f"cannot read {projected.src_dataset.name} here: {error.__cause__ or error}"
                ) from error
            new = (read[-1] > 0) & ~valid
            if new.all():
                return np.moveaxis(read[:-1], 0, 2), new
            pixels[:, new] = read[:-1, new]
            valid |= new
            if valid.all():
                break
        return np.moveaxis(pixels, 0, 2), valid


def _classes(values: Array, count: int) -> npt.NDArray[np.uint8]:
    """Return class indices as bytes; raise `TileError` for one that the configuration does not have."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise TileError(
            f"it holds class {low if low < 0 else high}, the configuration has {count} (0 to {count - 1})"
        )
    return values.astype(np.uint8)


def _scaled(pixels: Array, valid: npt.NDArray[np.bool_], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Scale values to 0..255."""
    with np.errstate(invalid="ignore"):
        scaled = np.rint((pixels.astype(np.float32) - low) * (255 / (high - low)))
    return np.where(valid[:, :, np.newaxis], np.nan_to_num(np.clip(scaled, 0, 255)), 0).astype(np.uint8)


def _has_border(pixels: Array, valid: npt.NDArray[np.bool_], no_data: int | None) -> bool:
    """Tell whether a whole row or column at the border of a tile is of the no-data value, or of no raster."""
    if no_data is None:
        return False
    nothing = (pixels == no_data).all(axis=2) | ~valid
    return any(bool(line.all()) for line in (nothing[0], nothing[-1], nothing[:, 0], nothing[:, -1]))
