"""The scores of the tiles of a comparison, as arrays: there may be millions of tiles."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsp.shared.tiles import Tile, bounds_lonlat
from rsp.shared.webmap import Extent, extent

# Of the longer side of the picture of all tiles; of larger areas a pixel is the mean of several tiles.
PICTURE_PIXELS = 512
# From the lowest quality to the highest: also for those who do not tell red from green.
RAMP = ((215, 48, 31), (253, 187, 99), (255, 250, 205), (116, 173, 209), (49, 84, 149))
LEVELS = 24
EMPTY = (150, 156, 165)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What `compare` found tile by tile.

    Attributes:
        tiles: x, y and z, (N, 3).
        foreground: The larger foreground share of label and mask in percent, (N,).
        quality: Quality of data, 0 to 100, (N,).
    """

    tiles: Integers
    foreground: Floats
    quality: Floats

    def __len__(self) -> int:
        return len(self.tiles)

    def worst(self, count: int) -> dict[Tile, dict[str, float]]:
        """Return the tiles of lowest quality, the worst first, with their scores by name."""
        x, y, z = self.tiles.T
        order = np.lexsort((z, y, x, -self.foreground, self.quality))[:count]
        return {
            Tile(*map(int, self.tiles[index])): {
                "fg": float(self.foreground[index]),
                "qod": float(self.quality[index]),
            }
            for index in order
        }

    def histogram(self, bins: int) -> tuple[list[int], list[float], int]:
        """Return how many tiles with foreground have which quality, the edges of the bins, and the other tiles."""
        some = self.foreground > 0
        counts, edges = np.histogram(self.quality[some], bins, (0, 100))
        return counts.tolist(), edges.tolist(), int((~some).sum())

    def picture(self) -> tuple[Extent, bytes]:
        """Return a PNG of the quality of all tiles, and where it lies.

        A pixel is a square of 1, 2, 4 ... tiles a side, so that the picture is small whatever the area; it has the
        mean quality of its tiles with foreground. Tiles of one zoom are meant, as `compare` takes them.
        """
        x, y, z = self.tiles[:, 0], self.tiles[:, 1], int(self.tiles[0, 2])
        side, top, bottom = 1 << z, int(y.min()), int(y.max())
        west = extent([Tile(int(column), top, z) for column in np.unique(x)]).west
        first = round((west + 180) / 360 * side)
        right = (x - first) % side  # across 180 degrees, too
        cell = 1
        while max(int(right.max()), bottom - top) >= PICTURE_PIXELS * cell:
            cell *= 2
        top -= top % cell  # the squares at the bottom end within the world
        width, height = int(right.max()) // cell + 1, (bottom - top) // cell + 1
        place = (y - top) // cell * width + right // cell
        some = self.foreground > 0
        total = np.bincount(place[some], self.quality[some], width * height)
        count = np.bincount(place[some], minlength=width * height)
        pixels = np.zeros(width * height, np.uint8)
        pixels[place] = 1  # there are tiles
        found = count > 0
        pixels[found] = 2 + np.rint(total[found] / count[found] / 100 * (LEVELS - 1)).astype(np.uint8)
        image = Image.fromarray(pixels.reshape(height, width))
        image.putpalette([0, 0, 0, *EMPTY, *(value for color in _ramp() for value in color)])
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=0, optimize=True)
        south = bounds_lonlat(Tile(0, top + height * cell - 1, z))[1]
        north = bounds_lonlat(Tile(0, top, z))[3]
        return Extent(west, south, west + width * cell * 360 / side, north), buffer.getvalue()

    def legend(self) -> list[tuple[str, str]]:
        """Return the colours of the picture, as `#RRGGBB`, and what each means."""
        names = {0: "QoD 0", len(RAMP) // 2: "QoD 50", len(RAMP) - 1: "QoD 100"}
        colors = [(RAMP[index], name) for index, name in names.items()] + [(EMPTY, "no foreground")]
        return [(f"#{red:02x}{green:02x}{blue:02x}", name) for (red, green, blue), name in colors]


def read_scores(path: Path) -> Scores:
    """Return what `compare --mode list` wrote: lines of `x,y,z`, foreground and quality."""
    rows = np.loadtxt(io.StringIO(path.read_text("utf-8").replace(",", " ")), np.float64, ndmin=2)
    return Scores(rows[:, :3].astype(np.int64), rows[:, 3], rows[:, 4])


def _ramp() -> list[tuple[int, int, int]]:
    stops = np.array(RAMP, np.float64)
    places = np.linspace(0, len(stops) - 1, LEVELS)
    bands = [np.interp(places, np.arange(len(stops)), stops[:, band]) for band in range(3)]
    return [(round(red), round(green), round(blue)) for red, green, blue in zip(*bands, strict=True)]
