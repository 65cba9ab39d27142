"""Crops: pieces of the ground that training tiles cover, of any place, scale and angle, cut across their borders.

All tiles of a zoom are one picture. A crop that would leave the tiles that are trained on is moved back onto them,
so that it sees no pixel of any other tile; only where they are smaller than it is, it is mirrored at their edge.
It is resampled once, from the pixels of the tiles: images bilinear, over the whole area that becomes a pixel where
they shrink, labels and planes of classes by what lies under the centre of each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from rsp.shared.errors import TileError
from rsp.shared.images import Array, Mask
from rsp.shared.kept import Kept
from rsp.shared.tiles import Tile, zxy

# Bytes of decoded tiles that are kept: some 500 of 512 px. Of more, a crop decodes the two or three it is on.
KEPT_BYTES = 512 << 20


class Sheets(NamedTuple):
    """A tile or a crop: image (height, width, bands), label and weights of the pixels (height, width) uint8."""

    image: Array
    label: Mask
    weights: Mask | None


@dataclass(frozen=True)
class Place:
    """Where a crop is cut.

    Attributes:
        tile: The tile that it is drawn in.
        x: Its centre, in pixels to the right of the left edge of the tile.
        y: Likewise, down from the upper edge.
        scale: By how much it is enlarged.
        angle: By how much it is turned counterclockwise, in radians.
    """

    tile: Tile
    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0


class Ground(NamedTuple):
    """A rectangle of tiles, in pixels from the corner of one of them: left, top, right, bottom."""

    left: int
    top: int
    right: int
    bottom: int


class Crops:
    """Cuts crops.

    Args:
        tiles: Those that are trained on; no pixel of another is looked at.
        side: Of each of them, in pixels.
        crop: Side of the crops.
        read: Returns a tile; raises `TileError`. The last tiles are kept.
        keep: Bytes of tiles to keep.
    """

    def __init__(
        self,
        tiles: Collection[Tile],
        side: int,
        crop: int,
        read: Callable[[Tile], Sheets],
        keep: int = KEPT_BYTES,
    ) -> None:
        self._tiles, self._side, self._crop, self._read = tiles, side, crop, read
        self._kept: Kept[Sheets] = Kept(_size, keep)

    def cut(self, place: Place, classes: Sequence[int] = ()) -> Sheets:
        """Return a crop.

        Args:
            place: Where; it is moved onto the tiles.
            classes: The bands of the image that hold 0 and 1 for a class.

        Raises:
            TileError: a tile that it lies on cannot be read.
        """
        extent = self._crop / place.scale * (abs(math.cos(place.angle)) + abs(math.sin(place.angle)))
        ground, x, y = self.settle(place, extent)
        if place.scale == 1 and not place.angle:
            # Pixels as they lie.
            left, top = (math.floor(at - self._crop / 2) for at in (x, y))
            return self._region(place.tile, ground, (left, top, left + self._crop, top + self._crop))
        half = extent / 2
        box = (x - half, y - half, x + half, y + half)
        # Resampling looks a little beyond the edge, as it would in the whole picture.
        margin = math.ceil(max(1.0, 1 / place.scale)) + 1
        wanted = tuple(math.floor(at) - margin for at in box[:2]) + tuple(math.ceil(at) + margin for at in box[2:])
        # Where the crop itself has room on the tiles, what is beyond them is not needed.
        spare_x, spare_y = (extent <= end - start + 1e-6 for start, end in (ground[::2], ground[1::2]))
        left, top, right, bottom = wanted
        if spare_x:
            left, right = max(left, ground.left), min(right, ground.right)
        if spare_y:
            top, bottom = max(top, ground.top), min(bottom, ground.bottom)
        sheets = self._region(place.tile, ground, (left, top, right, bottom))
        centre = x - left, y - top
        view = View(self._crop, *centre, place.scale, place.angle)
        weights = None if sheets.weights is None else view.nearest(sheets.weights)
        return Sheets(view.image(sheets.image, classes), view.nearest(sheets.label), weights)

    def settle(self, place: Place, extent: float) -> tuple[Ground, float, float]:
        """Return the tiles that a crop is cut from, and its centre, moved as little as it must be onto them.

        Args:
            place: Of the crop.
            extent: Side of the square that it is cut from, in pixels.
        """
        best: tuple[float, float] | None = None
        found = Ground(0, 0, self._side, self._side), place.x, place.y
        for ground in self._grounds(place.tile, math.ceil(extent / self._side)):
            x = _moved(place.x, extent, ground.left, ground.right)
            y = _moved(place.y, extent, ground.top, ground.bottom)
            seen_x = min(extent, ground.right - ground.left)
            seen_y = min(extent, ground.bottom - ground.top)
            cost = (round(extent**2 - seen_x * seen_y, 3), math.hypot(x - place.x, y - place.y))
            if best is None or cost < best:
                best, found = cost, (ground, x, y)
        return found

    def _grounds(self, tile: Tile, reach: int) -> list[Ground]:
        """Return rectangles of tiles around one, none of which lies in another, up to so many tiles away."""
        x, y, z = tile

        def has(dx: int, dy: int) -> bool:
            return (x + dx, y + dy, z) in self._tiles

        def run(step: int) -> int:
            far = 0
            while far < reach and has((far + 1) * step, 0):
                far += 1
            return far

        found = []
        for west in range(run(-1) + 1):
            for east in range(run(1) + 1):
                columns = range(-west, east + 1)
                north = south = 0
                while north < reach and all(has(dx, -north - 1) for dx in columns):
                    north += 1
                while south < reach and all(has(dx, south + 1) for dx in columns):
                    south += 1
                edges = (-west, -north, east + 1, south + 1)
                found.append(Ground(*(edge * self._side for edge in edges)))
        return found

    def _region(self, tile: Tile, ground: Ground, box: tuple[int, int, int, int]) -> Sheets:
        """Return pixels, mirrored where they are beyond the ground."""
        left, top, right, bottom = box
        inner = (
            max(left, ground.left), max(top, ground.top), min(right, ground.right), min(bottom, ground.bottom)
        )  # fmt: skip
        sheets = self._joined(tile, inner)
        pad = (inner[1] - top, bottom - inner[3]), (inner[0] - left, right - inner[2])
        if not any(any(pair) for pair in pad):
            return sheets
        weights = None if sheets.weights is None else np.pad(sheets.weights, pad, mode="reflect")
        return Sheets(
            np.pad(sheets.image, (*pad, (0, 0)), mode="reflect"),
            np.pad(sheets.label, pad, mode="reflect"),
            weights,
        )

    def _joined(self, tile: Tile, box: tuple[int, int, int, int]) -> Sheets:
        """Return pixels that all lie on tiles; not to be written to, since they may be those of a kept one."""
        side = self._side
        left, top, right, bottom = box
        columns = range(left // side, -(-right // side))
        rows = range(top // side, -(-bottom // side))
        parts = []
        for row in rows:
            for column in columns:
                sheets = self.tile(Tile(tile.x + column, tile.y + row, tile.z))
                x0, x1 = max(0, left - column * side), min(side, right - column * side)
                y0, y1 = max(0, top - row * side), min(side, bottom - row * side)
                parts.append(Sheets(*(None if s is None else s[y0:y1, x0:x1] for s in sheets)))  # type: ignore[arg-type]
        if len(parts) == 1:
            return parts[0]
        if len({part.image.dtype for part in parts}) > 1:
            kinds = sorted({str(part.image.dtype) for part in parts})
            raise TileError(f"the tiles around {zxy(tile)} hold values of the types {' and '.join(kinds)}")
        wide = len(columns)
        lines = [[_glued(sheet, 1) for sheet in zip(*parts[at : at + wide], strict=True)]
                 for at in range(0, len(parts), wide)]  # fmt: skip
        return Sheets(*(_glued(sheet, 0) for sheet in zip(*lines, strict=True)))  # type: ignore[arg-type]

    def tile(self, tile: Tile) -> Sheets:
        """Return a whole tile; raise `TileError`."""
        return self._kept.get(tile, lambda: self._read(tile))


class View:
    """How pixels of a crop lie on those that it is cut from.

    Args:
        crop: Its side in pixels.
        x: Where its centre is on them, from the left.
        y: From above.
        scale: By how much it is enlarged.
        angle: By how much it is turned, in radians.
    """

    def __init__(self, crop: int, x: float, y: float, scale: float, angle: float) -> None:
        self._crop, self._x, self._y, self._scale, self._angle = crop, x, y, scale, angle

    def image(self, image: Array, classes: Sequence[int] = ()) -> Array:
        """Return an image of the side of the crop, of the same type; `classes` are bands that are not mixed."""
        bands = image.shape[2]
        smooth = [band for band in range(bands) if band not in classes]
        if len(smooth) == bands == 3 and image.dtype == np.uint8:
            return np.asarray(self._smooth(Image.fromarray(image)))
        result = np.empty((self._crop, self._crop, bands), image.dtype)
        for band in smooth:
            plane = np.ascontiguousarray(image[:, :, band])
            # Pillow computes in bytes or in float32, which holds integers of up to 24 bits.
            values: npt.NDArray[Any] = np.asarray(
                self._smooth(Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32)))
            )
            if image.dtype.kind in "ui" and image.dtype != np.uint8:
                limits = np.iinfo(image.dtype)
                values = np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max)
            result[:, :, band] = values
        if classes:
            result[:, :, list(classes)] = self.nearest(image[:, :, list(classes)])
        return result

    def nearest(self, mask: Array) -> Array:
        """Return a mask (height, width), or such bands, of the side of the crop: what is under each centre."""
        if self._angle:
            if mask.ndim == 3:
                return np.stack([self.nearest(mask[:, :, band]) for band in range(mask.shape[2])], axis=2)
            # Of whole numbers up to 255 also where they stand among floats.
            turned = self._turned(Image.fromarray(mask.astype(np.uint8, order="C")), 1, Image.Resampling.NEAREST)
            return np.asarray(turned).astype(mask.dtype, copy=False)
        steps = (np.arange(self._crop) + 0.5 - self._crop / 2) / self._scale
        rows, columns = (
            # Rounding may put the last one beyond the edge.
            np.clip(np.floor(steps + at).astype(np.intp), 0, size - 1)
            for at, size in zip((self._y, self._x), mask.shape[:2], strict=True)
        )
        found: Array = mask[rows][:, columns]
        return found

    def _smooth(self, image: Image.Image) -> Image.Image:
        if self._angle:
            # A transform looks at four pixels: where more of them become one, they are averaged before.
            fewer = max(1, math.floor(1 / self._scale))
            return self._turned(image.reduce(fewer) if fewer > 1 else image, fewer, Image.Resampling.BILINEAR)
        half = self._crop / self._scale / 2
        # Of a crop that just fits, rounding may put an edge beyond the last pixel.
        left, top = max(0.0, self._x - half), max(0.0, self._y - half)
        box = (left, top, min(float(image.width), self._x + half), min(float(image.height), self._y + half))
        return image.resize((self._crop, self._crop), Image.Resampling.BILINEAR, box=box)

    def _turned(self, image: Image.Image, fewer: int, how: Image.Resampling) -> Image.Image:
        """Return a turned crop of an image, of which one pixel stands for `fewer` in each direction."""
        step, half = 1 / self._scale / fewer, self._crop / 2
        cos, sin = math.cos(self._angle) * step, math.sin(self._angle) * step
        x, y = self._x / fewer, self._y / fewer
        data = (cos, -sin, x - (cos - sin) * half, sin, cos, y - (sin + cos) * half)
        return image.transform((self._crop, self._crop), Image.Transform.AFFINE, data, how)


def _moved(at: float, extent: float, start: int, end: int) -> float:
    """Return the centre of what lies within some pixels, or covers all of them where it is longer."""
    low, high = sorted((start + extent / 2, end - extent / 2))
    return min(max(at, low), high)


def _glued(parts: Sequence[Array | None], axis: int) -> Array | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return known[0] if len(known) == 1 else np.concatenate(known, axis=axis)


def _size(sheets: Sheets) -> int:
    return sum(sheet.nbytes for sheet in sheets if sheet is not None)
