"""Rasters as tiles: opens them, projects them to the tile grid, and cuts and composes tiles."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from shared.errors import RasterError, TileError
from shared.images import Array, Rgb, encode, encode_mask
from shared.tiles import Tile, bounds_mercator

MERCATOR = "EPSG:3857"
MAX_LATITUDE = 85.0511287798066
MAX_SIDE = (1 << 31) - 1  # pixels that GDAL can count in a row
# A row of tiles is cut out of the same blocks of a raster: so many bytes of them stay decoded, in each process.
CACHE = 256 << 20
# Depths of sensors in bits: a 16-bit raster is scaled by the least that holds its values.
DEPTHS = (8, 10, 11, 12, 13, 14, 15, 16)
SAMPLE = 1024  # side in pixels of the overview in which the greatest value is looked for

_NO_GEOREFERENCE = (
    "has no georeference, so nothing says where its tiles are. If there is a world file, put it beside; if you "
    "know the CRS and the corners: "
    "gdal_translate -a_srs EPSG:<code> -a_ullr <west> <north> <east> <south> {path} new.tif"
)


@dataclass(frozen=True)
class Source:
    """What is common to the rasters of one run.

    Attributes:
        paths: The rasters; the first lies on top.
        bands: The bands to take, counted from 1.
        dtype: Their type.
    """

    paths: tuple[str, ...]
    bands: tuple[int, ...]
    dtype: str


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

    source: Source
    zoom: int
    tile_size: int
    tile_format: str
    value_range: tuple[float, float] | None = None
    no_data: int | None = None
    colors: tuple[Rgb, ...] | None = None


@dataclass(frozen=True)
class Made:
    """What became of a tile: its data, or why it has none.

    Attributes:
        data: The encoded tile.
        dropped: `empty` (no raster has a pixel here) or `border` (see `--no_data`).
        error: Why it failed.
    """

    data: bytes | None = None
    dropped: str | None = None
    error: str | None = None


def expand(rasters: Iterable[str]) -> list[str]:
    """Return the rasters that paths, glob patterns and URLs name, each once."""
    found: list[str] = []
    for name in rasters:
        if "://" in name or name.startswith("/vsi"):
            found.append(name)
            continue
        path = Path(name).expanduser()
        matches = [] if path.exists() else sorted(glob(str(path)))  # noqa: PTH207 (absolute patterns too)
        found += matches or [str(path)]
    return list(dict.fromkeys(found))


def open_raster(path: str, **options: Any) -> rasterio.DatasetReader:
    """Open a raster; raise `RasterError` where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path, **options)
    except (RasterioError, OSError, ValueError) as error:
        raise RasterError(f"cannot read the raster {path}: {error}") from error


def inspect(paths: Sequence[str], bands: Sequence[int] | None, *, label: bool) -> Source:
    """Check that rasters can be tiled together, and return what they have in common.

    Args:
        paths: The rasters.
        bands: The bands to take; None takes all but an alpha band.
        label: They hold classes.

    Raises:
        RasterError: says which raster, and what to do.
    """
    first: tuple[str, tuple[int, ...], str] | None = None
    for path in paths:
        with open_raster(path) as raster:
            _check_georeference(raster, path)
            chosen = tuple(bands or _color_bands(raster))
            wrong = [band for band in chosen if not 1 <= band <= raster.count]
            if wrong:
                raise RasterError(f"{path} has no band {wrong[0]}; it has 1 to {raster.count}")
            kinds = sorted({raster.dtypes[band - 1] for band in chosen})
            if len(kinds) > 1:
                raise RasterError(
                    f"the bands of {path} differ in type ({', '.join(kinds)}); choose some by --bands"
                )
            dtype = kinds[0]
            if np.dtype(dtype).kind not in "uif":
                raise RasterError(f"{path} holds {dtype} values, which tiles cannot hold")
            if label:
                _check_label(chosen, dtype, path)
            elif len(chosen) == 1 and raster.colorinterp[chosen[0] - 1] == ColorInterp.palette:
                raise RasterError(
                    f"{path} holds indices of a colour table; for classes take --type label, for a picture expand "
                    f"it before: gdal_translate -expand rgb {path} new.tif"
                )
        if first is None:
            first = (path, chosen, dtype)
        elif (chosen, dtype) != first[1:]:
            raise RasterError(
                f"rasters that are tiled together must be alike: {first[0]} has the bands "
                f"{', '.join(map(str, first[1]))} of {first[2]}, "
                f"{path} has {', '.join(map(str, chosen))} of {dtype}"
            )
    assert first is not None
    return Source(tuple(paths), first[1], first[2])


def _check_georeference(raster: rasterio.DatasetReader, path: str) -> None:
    if raster.transform == Affine.identity():
        if raster.gcps[0] or raster.rpcs:
            raise RasterError(
                f"{path} is located by control points or a sensor model only; project it first: "
                f"gdalwarp -t_srs {MERCATOR} {path} new.tif"
            )
        raise RasterError(f"{path} {_NO_GEOREFERENCE.format(path=path)}")
    if raster.crs is None:
        raise RasterError(
            f"{path} has corners and no CRS, so nothing says where its tiles are; state it: "
            f"gdal_translate -a_srs EPSG:<code> {path} new.tif"
        )
    try:
        _bounds(raster)
    except (RasterioError, CRSError) as error:
        raise RasterError(f"{path} has a CRS that cannot be projected to {MERCATOR}: {error}") from error


def _color_bands(raster: rasterio.DatasetReader) -> list[int]:
    """Return all bands but an alpha band."""
    return [
        band
        for band, meaning in zip(raster.indexes, raster.colorinterp, strict=True)
        if meaning != ColorInterp.alpha
    ]


def _check_label(bands: tuple[int, ...], dtype: str, path: str) -> None:
    if len(bands) != 1:
        raise RasterError(f"labels are one band of class indices, {path} has {len(bands)}; choose one by --bands")
    if np.dtype(dtype).kind == "f":
        raise RasterError(f"labels are whole numbers, {path} holds {dtype}")


def default_range(source: Source) -> tuple[float, float]:
    """Return what a 16-bit raster is scaled by: from 0 to the greatest value of the sensor's depth.

    The depth is the least one that holds the greatest value found, so pictures of 12-bit sensors are not dark.
    """
    greatest = 0
    for path in source.paths:
        with open_raster(path) as raster:
            shrink = max(1.0, max(raster.width, raster.height) / SAMPLE)
            shape = (
                len(source.bands),
                max(1, round(raster.height / shrink)),
                max(1, round(raster.width / shrink)),
            )
            try:
                sample = raster.read(source.bands, out_shape=shape, masked=True)
            except RasterioError as error:
                raise RasterError(f"cannot read the raster {path}: {error}") from error
            greatest = max(greatest, int(sample.max() if sample.count() else 0))
    depth = next(depth for depth in DEPTHS if greatest < 1 << depth)
    return 0.0, float((1 << depth) - 1)


def _bounds(raster: rasterio.DatasetReader) -> tuple[float, float, float, float]:
    """Return west, south, east, north in degrees, also of a raster that is turned."""
    corners = array_bounds(raster.height, raster.width, raster.transform)
    west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *corners)
    return west, south, east, north


def footprint(path: str, zoom: int, tile_size: int) -> list[Tile]:
    """Return the tiles that the bounding box of a raster meets, row after row."""
    with open_raster(path) as raster:
        west, south, east, north = _bounds(raster)
    if not np.isfinite([west, south, east, north]).all():
        raise RasterError(f"{path} lies, at least in part, where {MERCATOR} is not defined")
    south, north = max(south, -MAX_LATITUDE), min(north, MAX_LATITUDE)
    if south >= north:
        raise RasterError(f"{path} lies beyond the latitudes of the tile grid ({MAX_LATITUDE:.2f} degrees)")
    tiles = list(mercantile.tiles(max(west, -180.0), south, min(east, 180.0), north, zoom))
    columns = [tile.x for tile in tiles]
    if (max(columns) - min(columns) + 1) * tile_size > MAX_SIDE:
        raise RasterError(f"{path} has more than {MAX_SIDE} pixels in a row at zoom {zoom}; cut it into parts")
    return sorted(tiles, key=lambda tile: (tile.y, tile.x))


class Mosaic:
    """Rasters projected to the tile grid, open for reading in one process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stack = ExitStack()
        self._stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE))
        self._layers = [self._layer(path) for path in job.source.paths]

    def _layer(self, path: str) -> tuple[WarpedVRT, Tile, Tile, int]:
        """Open a raster; return it projected, its first and last tile, and the index of its mask."""
        job = self._job
        tiles = footprint(path, job.zoom, job.tile_size)
        first = Tile(min(tile.x for tile in tiles), min(tile.y for tile in tiles), job.zoom)
        last = Tile(max(tile.x for tile in tiles), max(tile.y for tile in tiles), job.zoom)
        west, _, _, north = bounds_mercator(first)
        _, south, east, _ = bounds_mercator(last)
        width = (last.x - first.x + 1) * job.tile_size
        height = (last.y - first.y + 1) * job.tile_size
        label = job.colors is not None
        raster = self._stack.enter_context(open_raster(path, **self._overview(path, (east - west) / width, label)))
        alpha = raster.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in raster.colorinterp else 0
        options: dict[str, Any] = {}
        if np.dtype(job.source.dtype).kind == "f" and raster.nodata is None:
            options["src_nodata"] = float("nan")  # a pixel that is no number would spoil those around it
        masked = any(MaskFlags.per_dataset in flags for flags in raster.mask_flag_enums)
        projected = WarpedVRT(
            raster,
            crs=MERCATOR,
            transform=Affine((east - west) / width, 0, west, 0, (south - north) / height, north),
            width=width,
            height=height,
            resampling=Resampling.nearest if label else Resampling.bilinear,
            add_alpha=not alpha,
            # A pixel is none where all of its bands say so: black in one band is a colour.
            UNIFIED_SRC_NODATA="YES",
            **({} if masked else options),
        )
        return self._stack.enter_context(projected), first, last, alpha or projected.count

    @staticmethod
    def _overview(path: str, resolution: float, label: bool) -> dict[str, int]:
        """Return the option that opens the overview to read, for pictures that are shown much smaller.

        Overviews of labels may be averages, which are no classes.
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

    def make(self, tile: Tile) -> Made:
        """Cut, compose and encode a tile."""
        job = self._job
        try:
            pixels, valid = self.read(tile)
            if not valid.any():
                return Made(dropped="empty")
            if job.colors is not None:
                label = _classes(pixels[:, :, 0], len(job.colors))
                if _has_border(label[:, :, np.newaxis], valid, job.no_data):
                    return Made(dropped="border")
                return Made(data=encode_mask(label, job.colors))
            if job.value_range is not None:
                pixels = _scaled(pixels, valid, *job.value_range)
            if _has_border(pixels, valid, job.no_data):
                return Made(dropped="border")
            return Made(data=encode(pixels, job.tile_format))
        except TileError as error:
            return Made(error=str(error))

    def read(self, tile: Tile) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the pixels of a tile, (height, width, bands), and which of them a raster has, (height, width).

        Where rasters overlap the first one counts, and the next ones where it has nothing. What none has is 0.

        Raises:
            TileError: a raster cannot be read here.
        """
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
                raise TileError(f"cannot read {projected.src_dataset.name} here: {error}") from error
            new = (read[-1] > 0) & ~valid
            if new.all():
                return np.moveaxis(read[:-1], 0, 2), new
            pixels[:, new] = read[:-1, new]
            valid |= new
            if valid.all():
                break
        return np.moveaxis(pixels, 0, 2), valid


def _classes(values: Array, count: int) -> npt.NDArray[np.uint8]:
    """Return class indices as bytes; raise `TileError` where one is no class of the configuration."""
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


_mosaic: Mosaic | None = None


def begin(job: Job) -> None:
    """Open the rasters of a job in this process."""
    global _mosaic
    _mosaic = Mosaic(job)


def end() -> None:
    """Close them."""
    global _mosaic
    if _mosaic is not None:
        _mosaic.close()
        _mosaic = None


def make_tiles(tiles: list[Tile]) -> list[Made]:
    """Make some tiles with the rasters that `begin` opened."""
    assert _mosaic is not None
    return [_mosaic.make(tile) for tile in tiles]
