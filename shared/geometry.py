"""Geometries on their way to tiles: to metres of web mercator, and to valid polygons, all of a batch at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.crs import Crs, check_coordinates, crs_name
from rsp.shared.errors import FeatureError
from rsp.shared.mercator import MAX_LATITUDE, RADIUS

Objects = npt.NDArray[np.object_]

# One geometry, or an array of them.
Shapes = TypeVar("Shapes", BaseGeometry, Objects)

# Reasons to leave a feature out, beside the types of geometry that have no area.
NULL = "null geometry"
BROKEN = "geometry that cannot be built"
FLAT = "polygon without an area"
TANGLED = "outline that crosses itself too often to be repaired"

# Outlines of fewer points are repaired however they cross themselves; of others the crossings are estimated from
# so many of their segments.
MANY_POINTS, SAMPLE, MAX_CROSSINGS = 2000, 200, 200_000

# Type ids of shapely.
POLYGON, MULTIPOLYGON, COLLECTION = 3, 6, 7


def to_mercator(geometry: Shapes, crs: Crs) -> Shapes:
    """Project a geometry, or an array of them at once, to metres of EPSG:3857.

    Every vertex is projected, further dimensions are dropped. Latitudes beyond the square of web mercator (85.0511
    degrees) are clipped to it.

    Raises:
        FeatureError: the CRS is unknown, or coordinates are not finite in it.
    """

    def project(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if crs == 3857:
            return points
        if crs == 4326:
            latitude = np.clip(points[:, 1], -MAX_LATITUDE, MAX_LATITUDE)
            y = RADIUS * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))
            return np.column_stack([RADIUS * np.radians(points[:, 0]), y])
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import CRSError
        from rasterio.warp import transform as warp

        name = f"EPSG:{crs}" if isinstance(crs, int) else crs
        try:
            xs, ys = warp(name, "EPSG:3857", points[:, 0], points[:, 1])
        except CRSError as error:
            raise FeatureError(f"unknown CRS {crs_name(crs)}: {error}") from error
        except CPLE_BaseError as error:  # outside of what the projection can show
            raise FeatureError(f"coordinates that do not exist in {crs_name(crs)}: {error}") from error
        return np.column_stack([xs, ys])

    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        projected: Shapes = shapely.transform(shapely.force_2d(geometry), project)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise FeatureError(f"coordinates that do not exist in {crs_name(crs)}; is that their CRS?")
    return projected


def to_lonlat(geometries: Objects) -> Objects:
    """Return geometries in degrees, of those in metres of EPSG:3857."""

    def unproject(metres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        latitude = np.arctan(np.sinh(metres[:, 1] / RADIUS))
        degrees: npt.NDArray[np.float64] = np.degrees(np.column_stack([metres[:, 0] / RADIUS, latitude]))
        return degrees

    found: Objects = shapely.transform(geometries, unproject)
    return found


def project(geometries: Objects, crs: Crs, where: Callable[[int], str]) -> Objects:
    """Project an array of geometries to metres of EPSG:3857, as `to_mercator`, and refuse what cannot be meant.

    Args:
        geometries: The geometries, of which none is None.
        crs: Their CRS.
        where: Says which geometry the n-th is, for the message.

    Raises:
        FeatureError: coordinates that are not finite, not degrees where the CRS has degrees, or outside the world.
    """
    check_coordinates(shapely.bounds(geometries), crs, where)
    try:
        mercator = to_mercator(geometries, crs)
    except FeatureError:
        for number in range(len(geometries)):
            try:
                to_mercator(geometries[number : number + 1], crs)
            except FeatureError as error:
                raise FeatureError(f"{where(number)}: {error}") from error
        raise
    if crs not in (4326, 3857):
        check_coordinates(shapely.bounds(mercator), crs, where, projected=True)
    return mercator


def polygons_of(
    geometries: Objects,
    skipped: Counter[str],
    *,
    crs: Crs = 3857,
    where: Callable[[int], str] = "geometry {}".format,
) -> Objects:
    """Return the valid Polygon or MultiPolygon that each geometry amounts to, in metres of EPSG:3857.

    Args:
        geometries: Geometries, or None.
        skipped: Counts, by reason, those that amount to none.
        crs: Their CRS.
        where: Says which geometry the n-th is, for messages.

    Returns:
        As many polygons; None where there is none.

    Raises:
        FeatureError: coordinates of a polygon that cannot be meant.
    """
    polygons = np.full(len(geometries), None, dtype=object)
    types = shapely.get_type_id(geometries)  # -1 for None
    null = (types == -1) | shapely.is_empty(geometries)
    areal = (types == POLYGON) | (types == MULTIPOLYGON)
    for index in np.flatnonzero((types == COLLECTION) & ~null):
        areal[index] = has_polygon(geometries[index])
    areal &= ~null
    if null.any():
        skipped[NULL] += int(null.sum())
    if not areal.all():
        skipped.update(geometry.geom_type for geometry in geometries[~areal & ~null])
    members = np.flatnonzero(areal)
    mercator = project(geometries[members], crs, lambda nth: where(int(members[nth])))
    fine = (types[members] != COLLECTION) & shapely.is_valid(mercator)
    for index in np.flatnonzero(~fine):
        if is_tangled(mercator[index]):
            skipped[TANGLED] += 1
            mercator[index] = None
        else:
            mercator[index] = _repaired(mercator[index])
    flat = shapely.area(mercator) == 0  # the area of None is NaN
    if flat.any():
        skipped[FLAT] += int(flat.sum())
        mercator[flat] = None
    polygons[members] = mercator
    return polygons


def polygonal(geometry: BaseGeometry) -> BaseGeometry | None:
    """Return the valid Polygon or MultiPolygon that a geometry amounts to, or None where it has no area.

    An invalid geometry is repaired; of a collection, the polygons are taken together.
    """
    if geometry.geom_type not in ("Polygon", "MultiPolygon") or not geometry.is_valid:
        geometry = _repaired(geometry)
    return geometry if geometry.area > 0 else None


def _repaired(geometry: BaseGeometry) -> BaseGeometry:
    """Return the polygons of a geometry, made valid; an empty one where there are none."""
    parts = [
        part
        for part in _parts(shapely.make_valid(geometry, method="structure", keep_collapsed=False))
        if part.geom_type == "Polygon"
    ]
    return shapely.union_all(parts) if len(parts) > 1 else parts[0] if parts else shapely.Polygon()


def _parts(geometry: BaseGeometry) -> Iterator[BaseGeometry]:
    """Yield the simple geometries of a collection, however nested."""
    if hasattr(geometry, "geoms"):
        for part in geometry.geoms:
            yield from _parts(part)
    else:
        yield geometry


def is_tangled(geometry: BaseGeometry) -> bool:
    """Tell whether an outline crosses itself so often that its repair would not end.

    The number of crossings is estimated from some of the segments: what they meet beside their neighbours.
    """
    if shapely.get_num_coordinates(geometry) < MANY_POINTS or geometry.is_valid:
        return False
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts([geometry])), return_index=True)
    segments = np.asarray(shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1)[ring[:-1] == ring[1:]]))
    sample = segments[:: max(1, len(segments) // SAMPLE)]
    tree = shapely.STRtree(segments)
    met = sum(len(tree.query(segment, predicate="crosses")) for segment in sample)
    return met / len(sample) * len(segments) / 2 > MAX_CROSSINGS


def has_polygon(geometry: BaseGeometry) -> bool:
    """Tell whether a geometry is, or holds, a polygon."""
    if geometry.geom_type == "GeometryCollection":
        return any(map(has_polygon, geometry.geoms))  # type: ignore[attr-defined]
    return geometry.geom_type in ("Polygon", "MultiPolygon")
