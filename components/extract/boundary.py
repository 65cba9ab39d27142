"""The boundary of an area, and which features lie in it: `--bbox`, and `--poly`, a .poly file or features."""

from __future__ import annotations

import math

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.components.extract.pending import Batch
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.geometry import polygonal
from rsp.shared.locations import Location, fetched

# Longest .poly that is read: borders of countries have some megabytes.
LONGEST = 256 << 20


class Boundary:
    """An area in degrees that features may lie in.

    Attributes:
        region: The area.
        cut: How many features were cut off at it.
        outside: How many features do not meet it.
    """

    def __init__(self, region: BaseGeometry, *, clip: bool = False) -> None:
        """Take an area; with `clip` features are cut off at it, without they are kept whole if they meet it."""
        shapely.prepare(region)
        self.region = region
        self.cut = self.outside = 0
        self._clip = clip

    def within(self, batch: Batch) -> Batch:
        """Return the features of a batch that meet the area."""
        geometries, properties = batch
        if not len(geometries):
            return batch
        meets = shapely.intersects(self.region, geometries)
        if self._clip:
            geometries = geometries.copy()
            inside = shapely.covers(self.region, geometries)
            for number in np.flatnonzero(meets & ~inside).tolist():
                geometries[number] = polygonal(shapely.intersection(geometries[number], self.region))
                meets[number] = geometries[number] is not None  # it may have touched the border only
                self.cut += bool(meets[number])
        self.outside += int(len(meets) - meets.sum())
        if meets.all():
            return Batch(geometries, properties)
        return Batch(geometries[meets], [each for each, stays in zip(properties, meets, strict=True) if stays])


def box_of(text: str) -> BaseGeometry:
    """Return the area of `west,south,east,north`; west beyond east crosses the antimeridian.

    Raises:
        UsageError: other than four numbers, or a box that is not on Earth or has no area.
    """
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--bbox is west,south,east,north in degrees, got {text!r}") from None
    if not (-90 <= south < north <= 90 and -180 <= west <= 180 and -180 <= east <= 180 and west != east):
        raise UsageError(
            f"the bbox {text} is not on Earth: expected west,south,east,north in degrees, south below north"
        )
    if west < east:
        return shapely.box(west, south, east, north)
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def read_boundary(path: Location) -> BaseGeometry:
    """Return the area that a file describes: a .poly file, or the polygons of all features of another one.

    Raises:
        FeatureError: it cannot be read, is not in degrees, or has no area.
        StorageError: the store cannot be reached.
    """
    region = _poly(path) if path.suffix.lower() == ".poly" else _features(path)
    if region is None:
        raise FeatureError(f"{path} has no area, so nothing can lie within it")
    west, south, east, north = region.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise FeatureError(f"{path} is not in degrees: it reaches from {west:g},{south:g} to {east:g},{north:g}")
    return region


def _features(path: Location) -> BaseGeometry | None:
    """Return the area of all polygons of a file of features."""
    from rsp.shared.features import read_crs, read_features

    epsg = read_crs(path)
    if epsg != 4326:
        raise FeatureError(f"{path} is in EPSG:{epsg}; a boundary has to be in degrees (EPSG:4326)")
    found = [feature.geometry for feature in read_features(path) if feature.geometry is not None]
    parts = [part for part in map(polygonal, found) if part is not None]
    return polygonal(shapely.union_all(parts)) if parts else None


def _poly(path: Location) -> BaseGeometry | None:
    """Return the area of a .poly file: its sections, less those that `!` marks."""
    local = fetched(path)
    try:
        if local.stat().st_size > LONGEST:
            raise FeatureError(f"{path} is too large for a boundary: {local.stat().st_size >> 20} MB")
        lines = local.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    added: list[BaseGeometry] = []
    removed: list[BaseGeometry] = []
    section: list[tuple[float, float]] | None = None
    hole = ended = False
    for number, line in enumerate(lines, 1):
        words = line.split()
        if number == 1 or not words:  # the first line is the name of the file
            continue
        if ended:
            raise FeatureError(f"{path}, line {number}: something follows the last END")
        if section is None:
            ended, section, hole = words == ["END"], [], words[0].startswith("!")
        elif words == ["END"]:
            polygon = polygonal(shapely.Polygon(section)) if len(section) > 2 else None
            if polygon is None:
                raise FeatureError(f"{path}, line {number}: the section that ends here encloses no area")
            (removed if hole else added).append(polygon)
            section = None
        else:
            section.append(_place(words, path, number))
    if not ended:
        raise FeatureError(f"{path} is no .poly file, or is cut off: its last END is missing")
    return polygonal(shapely.difference(shapely.union_all(added), shapely.union_all(removed)))


def _place(words: list[str], path: Location, number: int) -> tuple[float, float]:
    """Return the longitude and latitude of a line of a .poly file."""
    try:
        lon, lat = map(float, words)
        if not (math.isfinite(lon) and math.isfinite(lat)):
            raise ValueError
    except ValueError:
        raise FeatureError(
            f"{path}, line {number}: expected a longitude and a latitude, got {' '.join(words)[:60]!r}"
        ) from None
    return lon, lat
