"""Rasters as tiles: composes, scales and encodes what rasters have in a tile."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import TileError
from rsp.shared.footprints import MOST_CACHE, Footprint, footprint
from rsp.shared.gdal import RasterEnv
from rsp.shared.images import Array, Rgb, encode, encode_mask
from rsp.shared.mercator import AROUND
from rsp.shared.projected import Projected
from rsp.shared.rasters import RasterGroup
from rsp.shared.tiles import Tile

# Rasters that a process has open: each holds a file and its directory of blocks.
OPEN = 64

Valid = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know to make a tile.

    Attributes:
        source: The rasters.
        zoom: Zoom of the tiles.
        tile_size: Side of a tile in pixels.
        tile_format: How tiles are encoded.
        value_range: What becomes 0 and 255, where values are scaled to a byte: two numbers, or two for each band.
        no_data: The value that means no data, in all bands of a pixel, beside what the rasters say.
        keep_borders: Keep tiles with a border of that value.
        threshold: Drop tiles of which at least so many percent are no data.
        colors: The palette of the classes, where tiles are labels.
        footprints: Where the tiles of each raster are; None to find it.
    """

    source: RasterGroup
    zoom: int
    tile_size: int
    tile_format: str
    value_range: tuple[float, ...] | None = None
    no_data: float | None = None
    keep_borders: bool = False
    threshold: float | None = None
    colors: tuple[Rgb, ...] | None = None
    footprints: tuple[Footprint, ...] | None = None

    def open(self) -> Mosaic:
        """Open the rasters."""
        return Mosaic(self)


@dataclass(frozen=True)
class Made:
    """What became of a tile.

    Attributes:
        data: The encoded tile.
        dropped: Why there is none: `empty` (no raster has a pixel here), `border` or `sparse` (see `Job`).
    """

    data: bytes | None = None
    dropped: str | None = None


class Mosaic:
    """Rasters projected to the tile grid, open for reading in one process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._enter()
        try:
            paths = job.source.paths
            found = job.footprints or [footprint(path, job.zoom, job.tile_size) for path in paths]
            # First column and row, last column and row of each block, and the number of its raster.
            self._blocks = np.array(
                [(a.x, a.y, b.x, b.y, number) for number, each in enumerate(found) for a, b in each.blocks],
                np.int64,
            ).reshape(-1, 5)
            if len(paths) == 1:
                self._raster(0)  # a live layer says at once that it cannot be read
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        # Tiles of a row are cut out of the same blocks of a raster.
        cache = max((each.cache for each in self._job.footprints or ()), default=MOST_CACHE)
        self._env = RasterEnv(self._job.source.paths, GDAL_CACHEMAX=cache)
        self._env.__enter__()
        self._rasters: OrderedDict[int, Projected] = OrderedDict()

    def _raster(self, number: int) -> Projected:
        """Return a raster, open; close the one that was longest of no use where there are many."""
        job = self._job
        if number not in self._rasters:
            while len(self._rasters) >= OPEN:
                self._rasters.popitem(last=False)[1].close()
            self._rasters[number] = Projected(
                job.source.paths[number], job.source.bands, job.tile_size,
                label=job.colors is not None, pixel=AROUND / (1 << job.zoom) / job.tile_size,
            )  # fmt: skip
        self._rasters.move_to_end(number)
        return self._rasters[number]

    def close(self) -> None:
        """Close the rasters."""
        try:
            for raster in reversed(self._rasters.values()):
                raster.close()
        finally:
            self._env.__exit__()

    def __call__(self, tile: Tile) -> Made:
        """Cut, compose and encode a tile."""
        job = self._job
        found = self.read(tile)
        if found is None:
            return Made(dropped="empty")
        pixels, valid = found
        if job.colors is not None:
            pixels = _classes(pixels[:, :, 0], len(job.colors))[:, :, np.newaxis]
        if (dropped := self._dropped(pixels, valid)) is not None:
            return Made(dropped=dropped)
        if job.colors is not None:
            return Made(encode_mask(pixels[:, :, 0], job.colors))
        return Made(encode(self._values(pixels, valid), job.tile_format))

    def _dropped(self, pixels: Array, valid: Valid | None) -> str | None:
        """Return why a tile is not wanted."""
        job = self._job
        border = job.no_data is not None and not job.keep_borders
        if not border and (job.threshold is None or (valid is None and job.no_data is None)):
            return None
        nothing = np.zeros(pixels.shape[:2], bool) if valid is None else ~valid
        if job.no_data is not None:
            nothing |= (pixels == job.no_data).all(axis=2)
        if border and any(bool(line.all()) for line in (nothing[0], nothing[-1], nothing[:, 0], nothing[:, -1])):
            return "border"
        if job.threshold is not None and 100 * np.count_nonzero(nothing) >= job.threshold * nothing.size:
            return "sparse"
        return None

    def image(self, tile: Tile) -> Array | None:
        """Return the pixels that a tile of imagery has, shape (height, width, bands); None where it is empty.

        Raises:
            TileError: a raster cannot be read here.
        """
        found = self.read(tile)
        return None if found is None else self._values(*found)

    def _values(self, pixels: Array, valid: Valid | None) -> Array:
        """Scale values to bytes where that is asked for."""
        return pixels if self._job.value_range is None else _scaled(pixels, valid, self._job.value_range)

    def read(self, tile: Tile) -> tuple[Array, Valid | None] | None:
        """Return the pixels of a tile and which of them a raster has; None where no raster has any.

        Where rasters overlap the first one counts, and the next ones where it has nothing. What none has is 0.

        Returns:
            The pixels, (height, width, bands), and the mask, (height, width), or None in its place where a raster
            has every pixel.

        Raises:
            TileError: a raster cannot be read here.
            RasterError: one cannot be opened any more.
        """
        if self._env.expired:
            self.close()
            self._enter()
        west, north, east, south, numbers = self._blocks.T
        here = (west <= tile.x) & (tile.x <= east) & (north <= tile.y) & (tile.y <= south)
        pixels: Array | None = None
        valid = np.zeros(0, bool)
        for number in np.unique(numbers[here]).tolist():
            cut = self._raster(number).cut(tile)
            if cut is None:
                continue
            if pixels is None:
                if cut.valid is None:
                    return np.moveaxis(cut.pixels, 0, 2), None
                pixels, valid = np.where(cut.valid, cut.pixels, 0), cut.valid
            else:
                new = ~valid if cut.valid is None else cut.valid & ~valid
                pixels[:, new] = cut.pixels[:, new]
                valid |= new
            if valid.all():
                return np.moveaxis(pixels, 0, 2), None
        if pixels is None or not valid.any():
            return None
        return np.moveaxis(pixels, 0, 2), valid


def _classes(values: Array, count: int) -> npt.NDArray[np.uint8]:
    """Return class indices as bytes; raise `TileError` for one that the configuration does not have."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise TileError(
            f"it holds class {low if low < 0 else high}, the configuration has {count} (0 to {count - 1})"
        )
    return values.astype(np.uint8)


def _scaled(pixels: Array, valid: Valid | None, value_range: tuple[float, ...]) -> npt.NDArray[np.uint8]:
    """Scale values to 0..255."""
    low, high = np.array(value_range, np.float64).reshape(-1, 2).T.astype(np.float32)
    with np.errstate(invalid="ignore"):
        scaled = np.rint((pixels.astype(np.float32) - low) * (255 / (high - low)))
    scaled = np.nan_to_num(np.clip(scaled, 0, 255))
    return (scaled if valid is None else np.where(valid[:, :, np.newaxis], scaled, 0)).astype(np.uint8)
