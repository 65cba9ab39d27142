"""One raster, projected to the tile grid tile by tile."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds, from_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject, transform

from rsp.shared.errors import TileError
from rsp.shared.images import Array
from rsp.shared.mercator import AROUND
from rsp.shared.rasters import MERCATOR, by_control_points, control, natural_grid, open_raster
from rsp.shared.tiles import Tile, bounds_lonlat, bounds_mercator
from rsp.shared.views import usable

Valid = npt.NDArray[np.bool_]

# Points on the border of a tile, of side 1, by which is told where it lies in a raster: nine on each side.
_STEPS = np.linspace(0, 1, 9)
_AROUND_X = np.concatenate([_STEPS, _STEPS, np.zeros(9), np.ones(9)])
_AROUND_Y = np.concatenate([np.zeros(9), np.ones(9), _STEPS, _STEPS])
# Below this zoom a tile may reach to where the projection of a raster goes astray.
EXACT = 6
# Pixels of a raster at its border that count as outside it there: GDAL may be wrong by an eighth of one.
MARGIN = 2.0

_CRS = rasterio.CRS.from_string(MERCATOR)


@dataclass(frozen=True)
class Cut:
    """What a raster has in a tile.

    Attributes:
        pixels: Shape (bands, height, width).
        valid: Where it has data, shape (height, width); None where it is everywhere.
    """

    pixels: Array
    valid: Valid | None


class Projected:
    """A raster open for cutting tiles out of it, in one process and one thread.

    Each tile is warped on a grid of its own: to read windows of one grid for the whole raster takes three times as
    long. An alpha band is made only for tiles that the raster may not fill.

    Args:
        path: The raster.
        bands: The bands to take, counted from 1.
        tile_size: Side of a tile in pixels.
        label: It holds classes, which are not interpolated.
        pixel: Side of a pixel of the tiles in metres of EPSG:3857; a picture that has an overview of about that
            is read from there.

    Raises:
        RasterError: it cannot be opened.
    """

    def __init__(self, path: str, bands: tuple[int, ...], tile_size: int, *, label: bool, pixel: float) -> None:
        self.path, self._bands, self._side = path, bands, tile_size
        self._resampling = Resampling.nearest if label else Resampling.bilinear
        self._stack = ExitStack()
        try:
            self._open(label, pixel)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, label: bool, pixel: float) -> None:
        with open_raster(self.path) as plain:
            name = usable(plain, self.path, self._bands, label=label)
        with open_raster(name, of=self.path) as plain:
            level = {} if label else _overview(plain, pixel)
        raster = self._raster = self._stack.enter_context(open_raster(name, of=self.path, **level))
        self._control = control(raster) if by_control_points(raster) else None
        self._inverse = ~raster.transform
        # GDAL goes on beyond the antimeridian in degrees, `transform` does not.
        self._around = 0.0 if self._control else _around(raster)
        self._located = self._control is None and not self._around
        meanings = raster.colorinterp
        self._alpha = meanings.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in meanings else 0
        flags = raster.mask_flag_enums
        masked = any(MaskFlags.per_dataset in each for each in flags)
        floats = np.dtype(raster.dtypes[self._bands[0] - 1]).kind == "f"
        # A NaN would spread to the pixels around it.
        self._nan = floats and raster.nodata is None and not masked
        self._whole = not floats and self._control is None and all(MaskFlags.all_valid in each for each in flags)

    def close(self) -> None:
        """Close the raster."""
        self._stack.close()

    def cut(self, tile: Tile) -> Cut | None:
        """Return what the raster has in a tile; None where the tile lies outside it.

        Raises:
            TileError: it cannot be read here.
        """
        inside = self._inside(tile)
        if inside is False:
            return None
        bounds = bounds_mercator(tile)
        target = from_bounds(*bounds, self._side, self._side)
        try:
            if self._control is not None:
                return self._controlled(target)
            return self._warped(target, self._turned(tile), whole=inside is True and self._whole)
        except (RasterioError, CPLE_BaseError) as error:
            raise TileError(f"cannot read {self.path} here: {error.__cause__ or error}") from error

    def _turned(self, tile: Tile) -> dict[str, Affine]:
        """Return where a raster that crosses the antimeridian lies as seen from a tile beyond it."""
        if not self._around:
            return {}
        raster = self._raster
        west, _, east, _ = array_bounds(raster.height, raster.width, raster.transform)
        left, _, right, _ = bounds_lonlat(tile) if raster.crs.is_geographic else bounds_mercator(tile)
        around = self._around
        turn = -around if left + around < east else around if right - around > west else 0
        return {"src_transform": Affine.translation(turn, 0) * raster.transform} if turn else {}

    def _warped(self, target: Affine, source: dict[str, Affine], *, whole: bool) -> Cut:
        options: dict[str, Any] = {"src_nodata": float("nan")} if self._nan else {}
        with WarpedVRT(
            self._raster,
            crs=_CRS,
            transform=target,
            width=self._side,
            height=self._side,
            resampling=self._resampling,
            add_alpha=not whole and not self._alpha,
            # A pixel has no data where all of its bands say so: black in one band is a colour.
            UNIFIED_SRC_NODATA="YES",
            **source,
            **options,
        ) as projected:
            if whole:
                return Cut(projected.read(list(self._bands)), None)
            read = projected.read([*self._bands, self._alpha or projected.count])
        return _masked(read)

    def _controlled(self, target: Affine) -> Cut:
        """Cut a tile out of a raster that is located by control points or by the model of its sensor."""
        assert self._control is not None
        bands = [*self._bands, *([self._alpha] if self._alpha else [])]
        read = np.zeros((len(self._bands) + 1, self._side, self._side), self._raster.dtypes[bands[0] - 1])
        options: dict[str, Any] = {"src_alpha": len(bands)} if self._alpha else {}
        if self._nan:
            options["src_nodata"] = float("nan")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            reproject(
                rasterio.band(self._raster, bands), read, dst_crs=_CRS, dst_transform=target,
                resampling=self._resampling, dst_alpha=len(read), UNIFIED_SRC_NODATA="YES",
                **self._control, **options,
            )  # fmt: skip
        return _masked(read)

    def _inside(self, tile: Tile) -> bool | None:
        """Tell whether a tile lies inside the raster, or wholly outside; None where it may be neither."""
        if tile.z < EXACT or not self._located:
            return None
        west, south, east, north = bounds_mercator(tile)
        xs, ys = west + _AROUND_X * (east - west), south + _AROUND_Y * (north - south)
        with suppress(RasterioError, CPLE_BaseError):  # beyond what the projection of the raster is defined for
            eastings, northings = transform(_CRS, self._raster.crs, xs, ys)
            columns, rows = self._inverse * (np.array(eastings), np.array(northings))
            if np.isfinite(columns).all() and np.isfinite(rows).all():
                return _within(columns, rows, self._raster.width, self._raster.height)
        return None


def _around(raster: rasterio.DatasetReader) -> float:
    """Return how far it is around the earth, where a raster crosses the antimeridian in degrees or web mercator.

    In any other case 0: what other projections have beyond it, GDAL finds by itself.
    """
    around = 360.0 if raster.crs.is_geographic else AROUND if raster.crs == _CRS else 0.0
    west, _, east, _ = array_bounds(raster.height, raster.width, raster.transform)
    return around if west < -around / 2 or east > around / 2 else 0.0


def _within(columns: Array, rows: Array, width: int, height: int) -> bool | None:
    """Tell whether the border of a tile, and so the tile, lies in a raster; None where it meets its border."""
    low_x, high_x, low_y, high_y = columns.min(), columns.max(), rows.min(), rows.max()
    if low_x >= MARGIN and low_y >= MARGIN and high_x <= width - MARGIN and high_y <= height - MARGIN:
        return True
    if high_x < -MARGIN or high_y < -MARGIN or low_x > width + MARGIN or low_y > height + MARGIN:
        return False
    return None


def _masked(read: Array) -> Cut:
    """Return pixels with their mask, which is the last band."""
    valid = read[-1] > 0
    return Cut(read[:-1], None if valid.all() else valid)


def _overview(raster: rasterio.DatasetReader, pixel: float) -> dict[str, int]:
    """Return the option that opens the overview to read, for pictures that are shown much smaller.

    Overviews of labels may be averages, which are not classes.
    """
    factors = raster.overviews(1)
    if not factors or by_control_points(raster):
        return {}
    shrink = pixel / natural_grid(raster)[0].a * 1.001
    levels = [level for level, factor in enumerate(factors) if factor <= shrink]
    return {"overview_level": levels[-1]} if levels else {}
