"""From the pixels of one mask to polygons, and from polygons of pixels to features on the ground.

Polygons are in pixels of the whole grid until they are finished: x = tile.x * size + column, y down. These are
whole numbers, so that parts of a feature in neighbouring tiles fit together exactly. They go in arrays, all those
of a tile or of a row of tiles at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from rsp.shared.contours import Flags, trace
from rsp.shared.errors import TileError
from rsp.shared.featureset import Features, no_sums
from rsp.shared.featuretext import DECIMALS
from rsp.shared.images import Mask
from rsp.shared.regular import regularize
from rsp.shared.tiles import Tile

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]

# WGS 84.
SEMI_MAJOR = 6378137.0
ECCENTRICITY = 0.0818191908426215

# The types of shapely that have polygons only.
_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


@dataclass(frozen=True)
class Grid:
    """The pixels of all tiles of a zoom."""

    zoom: int
    size: int

    def to_lonlat(self, pixels: Floats) -> Floats:
        """Return degrees, by web mercator (so exact at every zoom, not linear inside a tile)."""
        turns = pixels / (self.size << self.zoom)
        latitude = np.arctan(np.sinh(np.pi * (1 - 2 * turns[:, 1])))
        return np.column_stack([turns[:, 0] * 360 - 180, np.degrees(latitude)])


class Shaping(NamedTuple):
    """What becomes of the outlines of features.

    Attributes:
        tolerance: How far, in pixels, they may move where they are simplified.
        min_area: Features, and holes in them, that are smaller go, in square metres.
        regularize: Whether they get right angles (see `rsp.shared.regular`).
        shared: Whether they are simplified before, tile by tile and with all that they border on (see
            `rsp.shared.borders`), and stay as they are.
        lines: Whether features are the centre lines of regions (see `rsp.shared.centrelines`), not their outlines.
        apart: Whether features keep their outlines, as they, or those of another class, are to be kept out of each
            other (see `rsp.shared.apart`).
    """

    tolerance: float = 1.0
    min_area: float = 1.0
    regularize: bool = False
    shared: bool = False
    lines: bool = False
    apart: bool = False


def polygons_of(pixels: Flags, tile: Tile, size: int) -> Objects:
    """Return the regions of a tile's pixels that are True, as `trace` does, in pixels of a grid of such tiles."""
    return placed_in(trace(pixels), pixels.shape, tile, size)


def placed_in(found: Objects, shape: tuple[int, ...], tile: Tile, size: int) -> Objects:
    """Return polygons in pixels of a mask of some shape in those of a grid of such tiles."""
    height, width = shape
    scale, corner = np.array([size / width, size / height]), np.array([tile.x * size, tile.y * size])
    placed: Objects = shapely.transform(found, lambda points: points * scale + corner)
    return placed


def parts(geometry: BaseGeometry) -> list[Polygon]:
    """Return the polygons of a geometry, made valid; lines and points that this leaves are dropped."""
    if not geometry.is_valid:
        geometry = shapely.make_valid(geometry)
    if isinstance(geometry, Polygon):
        return [] if geometry.is_empty else [geometry]
    return [polygon for part in getattr(geometry, "geoms", ()) for polygon in parts(part)]


def finish(
    pieces: Objects,
    feature: Integers,
    starts: Integers,
    tiles: Integers,
    sums: Integers,
    grid: Grid,
    shaping: Shaping,
) -> tuple[Features, int]:
    """Join the pieces of features, simplify these, and bring them to the ground.

    Args:
        pieces: Polygons in pixels of the grid; those of a feature touch along edges.
        feature: The number of the feature of each, from 0, ascending.
        starts: x and y of the tile where each feature starts: of its tiles the northernmost, of these the
            westernmost. Shape (features, 2).
        tiles: How many tiles each feature lies in.
        sums: What the probabilities of each feature's pixels sum to, and how many these are; see `Features`.
        grid: The grid.
        shaping: What becomes of their outlines.

    Returns:
        The features, and how many were too small. More come out than go in only where joining leaves parts that
        touch in a point.
    """
    joined, numbers = _joined(pieces, feature, stairs=not shaping.shared)
    placed, kept = _placed(joined, grid, shaping)
    numbers, outlines = numbers[kept], joined[kept]
    placed = without_small_holes(placed, shaping.min_area)
    areas = ground_area(placed)
    large = areas >= shaping.min_area
    numbers = numbers[large]
    dropped = len(starts) - len(np.unique(numbers))
    return Features(
        placed[large], areas[large], starts[numbers], tiles[numbers], sums[numbers], grid.zoom,
        outlines[large] if shaping.apart else None,
    ), dropped  # fmt: skip


def _joined(pieces: Objects, feature: Integers, *, stairs: bool) -> tuple[Objects, Integers]:
    """Return the polygons that pieces become, and the feature of each, ascending.

    Args:
        pieces: See `finish`.
        feature: The same.
        stairs: Whether edges are those of pixels.
    """
    several = (np.bincount(feature) > 1)[feature]
    if not several.any():
        return pieces, feature
    numbers, groups = np.unique(feature[several], return_inverse=True)
    collections: Any = shapely.geometrycollections(pieces[several], indices=groups)
    together: Any = shapely.union_all(collections[:, np.newaxis], axis=1)
    unions, of = _parts_of(together)
    unions = _as_traced(unions) if stairs else shapely.normalize(unions)
    polygons = np.concatenate([pieces[~several], unions])
    numbers = np.concatenate([feature[~several], numbers[of]])
    order = np.argsort(numbers, kind="stable")
    return polygons[order], numbers[order]


def _as_traced(polygons: Objects) -> Objects:
    """Return polygons of axis-parallel edges with the vertices that `trace` gives to what it sees whole.

    A union has vertices where the edges of tiles were, and its rings begin anywhere: simplification would follow
    from how a feature is cut.
    """
    normal = shapely.normalize(
        polygons
    )  # outlines turn clockwise (y up), which has the region on the left (y down)
    rings, of = shapely.get_rings(shapely.orient_polygons(normal, exterior_cw=True), return_index=True)
    points, starts, lengths = _open(rings)
    ahead, behind = turn(starts, lengths, 1), turn(starts, lengths, -1)
    straight = (points[ahead] == points[behind]).any(axis=1)
    points, ring = points[~straight], np.repeat(np.arange(len(rings)), lengths)[~straight]
    lengths = np.bincount(ring, minlength=len(rings))
    starts = np.cumsum(lengths) - lengths
    order = np.lexsort((points[:, 0], points[:, 1], ring))
    points = points[turn(starts, lengths, order[starts] - starts)]
    # The outline of each first, then its holes by where they begin.
    firsts, shell = points[starts], np.append(True, of[1:] != of[:-1])
    order = np.lexsort((firsts[:, 0], firsts[:, 1], ~shell, of))
    lines: Any = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), lengths))
    found: Any = shapely.polygons(lines[order], indices=of[order])
    return np.asarray(found, dtype=object)


def _open(rings: Objects) -> tuple[Floats, Integers, Integers]:
    """Return the points of rings without the last one, where each begins, and how many it has."""
    lengths = shapely.get_num_points(rings).astype(np.int64) - 1
    points = np.delete(shapely.get_coordinates(rings), np.cumsum(lengths + 1) - 1, axis=0)
    return points, np.cumsum(lengths) - lengths, lengths


def turn(starts: Integers, lengths: Integers, steps: Integers | int) -> Integers:
    """Return the places of the points of rings that begin so many points later."""
    behind = np.repeat(starts, lengths)
    within = np.arange(len(behind)) - behind
    return (within + np.repeat(np.broadcast_to(steps, lengths.shape), lengths)) % np.repeat(
        lengths, lengths
    ) + behind


def _parts_of(geometries: Objects) -> tuple[Objects, Integers]:
    """Return the polygons of geometries, as `parts` does, and the place of the geometry of each."""
    plain = shapely.is_valid(geometries) & np.isin(shapely.get_type_id(geometries), _POLYGONAL)
    if plain.all():
        found, of = shapely.get_parts(geometries, return_index=True)
        return found, of
    listed = [(part, place) for place, geometry in enumerate(geometries) for part in parts(geometry)]
    polygons = np.empty(len(listed), object)
    polygons[:] = [part for part, _ in listed]
    return polygons, np.array([place for _, place in listed], np.int64)


def mask_features(
    mask: Mask,
    titles: Sequence[str],
    tile: Tile,
    *,
    max_outline: int | None = None,
) -> Iterator[tuple[Polygon, dict[str, Any]]]:
    """Yield the features of a lone mask and their properties, class by class, as `rsp vectorize` does by default.

    Args:
        mask: Shape (height, width).
        titles: Of the classes. The first is the background, which has no features.
        tile: Where the mask lies.
        max_outline: How long, in pixels, the outlines of all classes may be together. The time that this takes
            follows them, and those of noise are as long as the mask is large.

    Raises:
        TileError: they are longer.
    """
    outline = sum(int(np.count_nonzero(np.diff(mask.astype(np.int16), axis=axis))) for axis in (0, 1))
    if max_outline is not None and outline > max_outline:
        raise TileError(f"the outlines of the mask have {outline} pixels, and the limit is {max_outline}")
    grid = Grid(tile.z, mask.shape[1])
    for value, title in enumerate(titles[1:], 1):
        outlines = polygons_of(mask == value, tile, grid.size)
        found, _ = finish_whole(outlines, no_sums(len(outlines)), tile, grid, Shaping())
        found = Features.sorted([found], tile.z)
        yield from zip(found.polygons, found.properties(title), strict=True)


def finish_whole(
    polygons: Objects, sums: Integers, tile: Tile, grid: Grid, shaping: Shaping
) -> tuple[Features, int]:
    """Finish, as `finish`, features that are a polygon each and lie in one tile."""
    count = len(polygons)
    starts, tiles = np.tile(np.array([tile.x, tile.y]), (count, 1)), np.ones(count, np.int64)
    return finish(polygons, np.arange(count), starts, tiles, sums, grid, shaping)


def _placed(polygons: Objects, grid: Grid, shaping: Shaping) -> tuple[Objects, Integers]:
    """Simplify polygons, or give them right angles, and bring them to degrees.

    What has no form of right angles is simplified, and what would become invalid is simplified less.

    Returns:
        The polygons, and the place of the one that each was.
    """
    if shaping.shared:
        found, of = _parts_of(rounded(polygons, grid))
        return shapely.orient_polygons(found), of
    turned = from_a_corner(polygons)
    placed, rest = turned.copy(), np.arange(len(turned))
    forms: list[Callable[[Objects], Objects]] = [_regular] if shaping.regularize else []
    forms += [partial(_simple, allowed) for allowed in (shaping.tolerance, shaping.tolerance / 2, 0.0)]
    for form in forms:
        placed[rest] = rounded(form(turned[rest]), grid)
        rest = rest[~shapely.is_valid(placed[rest]) | shapely.is_empty(placed[rest])]
        if not len(rest):
            break
    found, of = (placed, np.arange(len(placed))) if not len(rest) else _parts_of(placed)
    return shapely.orient_polygons(found), of


def rounded(polygons: Objects, grid: Grid) -> Objects:
    """Return polygons in degrees, with the decimals that are written."""
    found: Objects = shapely.transform(polygons, lambda pixels: np.round(grid.to_lonlat(pixels), DECIMALS))
    return found


def _simple(tolerance: float, polygons: Objects) -> Objects:
    found: Objects = shapely.simplify(polygons, tolerance, preserve_topology=True)
    return found


def _regular(polygons: Objects) -> Objects:
    """Return polygons with right angles; an empty one where that would be another form."""
    found, right = regularize(polygons)
    found[~right] = Polygon()
    return found


def without_small_holes(polygons: Objects, least: float) -> Objects:
    """Return polygons, of one part or several, in degrees without the holes smaller than so many square metres."""
    parts, whole = shapely.get_parts(polygons, return_index=True)
    rings, of = shapely.get_rings(parts, return_index=True)
    hole = np.zeros(len(rings), bool)
    hole[1:] = of[1:] == of[:-1]
    if not hole.any():
        return polygons
    small = np.zeros(len(rings), bool)
    small[hole] = ground_area(shapely.polygons(rings[hole])) < least
    changed, left = np.unique(of[small]), ~small
    left &= np.isin(of, changed)
    parts[changed] = shapely.polygons(rings[left], indices=np.searchsorted(changed, of[left]))
    found = polygons.copy()
    several = np.bincount(whole)[whole[changed]] > 1
    found[whole[changed[~several]]] = parts[changed[~several]]
    for number in np.unique(whole[changed[several]]):
        found[number] = shapely.multipolygons(parts[slice(*np.searchsorted(whole, [number, number + 1]))])
    return found


def from_a_corner(polygons: Objects) -> Objects:
    """Return the same polygons whose rings start at the vertex farthest from their middle.

    Simplification keeps the first vertex of a ring: it had better be a corner than somewhere on an edge.
    """
    rings, of = shapely.get_rings(polygons, return_index=True)
    if not len(rings):
        return polygons
    points, starts, lengths = _open(rings)
    # All times the number of vertices, and so whole: which of those that are as far is taken must not follow from
    # rounding, and so from where in the world the ring lies.
    sums = np.repeat(np.add.reduceat(points, starts, axis=0), lengths, axis=0)
    away = ((points * np.repeat(lengths, lengths)[:, np.newaxis] - sums) ** 2).sum(axis=1)
    farthest = np.flatnonzero(away == np.repeat(np.maximum.reduceat(away, starts), lengths))
    first = farthest[np.searchsorted(farthest, starts)] - starts  # of those that are as far, the first
    turned = points[turn(starts, lengths, first)]
    lines: Any = shapely.linearrings(turned, indices=np.repeat(np.arange(len(rings)), lengths))
    found: Any = shapely.polygons(lines, indices=of)
    return np.asarray(found, dtype=object)


def ground_area(polygons: BaseGeometry | Objects) -> Any:
    """Return the areas of polygons in degrees, in square metres of the WGS 84 ellipsoid.

    The plane area in the cylindrical equal-area projection of the ellipsoid (Snyder, Map Projections: A Working
    Manual, 1987, equations 3-12 and 10-13 to 10-16 with the equator as standard parallel).
    """

    def project(degrees: Floats) -> Floats:
        e, sine = ECCENTRICITY, np.sin(np.radians(degrees[:, 1]))
        q = (1 - e**2) * (sine / (1 - (e * sine) ** 2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))
        return np.column_stack([SEMI_MAJOR * np.radians(degrees[:, 0]), SEMI_MAJOR * q / 2])

    return shapely.area(shapely.transform(polygons, project))
