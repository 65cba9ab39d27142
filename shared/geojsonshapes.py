"""Builds the geometries of GeoJSON features: those of one type at once, odd ones each by itself."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import shape

from rsp.shared.errors import FeatureError
from rsp.shared.webfiles import FileAt

Objects = npt.NDArray[np.object_]


def build(
    items: Sequence[Any], first: int, path: FileAt, broken: Callable[[str], None] | None
) -> tuple[Objects, npt.NDArray[np.int64]]:
    """Build the geometries of features, of which the first has this number in its file.

    Returns:
        Geometries in two dimensions, None where there is none, and the number of each in the file. Those that
        cannot be built are passed over where `broken` takes the reason.

    Raises:
        FeatureError: what is not GeoJSON, or, without `broken`, a geometry that cannot be built.
    """
    found: list[Any] = []
    for number, item in enumerate(items, first):
        try:
            found.append(item.get("geometry") if item["type"] == "Feature" else item)
        except (TypeError, KeyError, AttributeError):
            raise FeatureError(f"{path}: feature {number} is not a GeoJSON object") from None
    geometries = np.full(len(found), None, dtype=object)
    groups: dict[Any, list[int]] = {}
    for index, geometry in enumerate(found):
        if geometry:
            kind = geometry.get("type") if isinstance(geometry, dict) else None
            groups.setdefault(kind if isinstance(kind, str) else None, []).append(index)
    kept = np.ones(len(found), dtype=np.bool_)
    for kind, members in groups.items():
        if kind in _DEPTHS:
            try:
                geometries[members] = _ragged(kind, [found[index]["coordinates"] for index in members])
                continue
            except Exception:  # noqa: BLE001, S110 (whatever it is, the loop below finds the geometry, and says it)
                pass
        for index in members:
            try:
                geometries[index] = _single(found[index])
            except FeatureError as error:
                reason = f"{path}: the geometry of feature {first + index} cannot be built: {error}"
                if broken is None:
                    raise FeatureError(reason) from error
                broken(reason)
                kept[index] = False
    numbers = np.arange(first, first + len(found))
    return (geometries, numbers) if kept.all() else (geometries[kept], numbers[kept])


# How many levels of lists are above the points.
_DEPTHS = {
    "Point": (shapely.GeometryType.POINT, 0),
    "LineString": (shapely.GeometryType.LINESTRING, 1),
    "Polygon": (shapely.GeometryType.POLYGON, 2),
    "MultiPolygon": (shapely.GeometryType.MULTIPOLYGON, 3),
}


def _ragged(kind: str, coordinates: list[Any]) -> Objects:
    """Build geometries of one type at once; raise anything where one of them is odd."""
    type_, levels = _DEPTHS[kind]
    lists = coordinates
    offsets: list[npt.NDArray[np.int64]] = []
    for _ in range(levels):
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        if not lengths.all():
            raise ValueError("an empty list")
        offsets.append(np.concatenate([[0], lengths.cumsum()]))
        lists = list(chain.from_iterable(lists))
    (width,) = set(map(len, lists))
    if width < 2:
        raise ValueError("a point of one number")
    # An array takes numbers only, where numpy would take None for NaN and parse text.
    flat = np.frombuffer(array("d", chain.from_iterable(lists)))
    points = np.ascontiguousarray(flat.reshape(-1, width)[:, :2])
    return shapely.from_ragged_array(type_, points, tuple(reversed(offsets)) or None)


def _single(geometry: Any) -> Any:
    """Build one geometry; raise `FeatureError` where that is not possible."""
    try:
        try:
            built = shape(geometry)
        except ValueError:  # more than three dimensions, or some points with a height and some without
            built = shape(_flattened(geometry))
        return shapely.force_2d(built)
    except Exception as error:
        raise FeatureError(str(error) or type(error).__name__) from error


def _flattened(value: Any) -> Any:
    """Return a geometry with two numbers a point."""
    if isinstance(value, dict):
        return {key: _flattened(item) for key, item in value.items()}
    if isinstance(value, list):
        number = bool(value) and isinstance(value[0], int | float)
        return value[:2] if number else [_flattened(item) for item in value]
    return value
