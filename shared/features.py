"""Vector features: GeoJSON in, one feature at a time, and GeoJSON out, atomically."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import IO, Any, NamedTuple

import ijson
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from shared.atomic import atomic_text
from shared.errors import FeatureError

# 7 decimals of a degree are about a centimetre.
DECIMALS = 7

# Web mercator: the sphere's radius in metres, and the latitude where its square ends.
EARTH_RADIUS = 6378137.0
MAX_LATITUDE = 85.0511287798066
_CRS = re.compile(r"(?:EPSG|CRS):*(?:[\d.]*:)*(\w+)$", re.IGNORECASE)


class Feature(NamedTuple):
    """A feature: its geometry (None where the file says null) and its properties."""

    geometry: BaseGeometry | None
    properties: dict[str, Any]


def expand(pattern: str | Path) -> list[Path]:
    """Return the files that a path or glob pattern names, sorted; raise `FeatureError` where there is none."""
    text = str(Path(pattern).expanduser())
    paths = [Path(text)] if Path(text).exists() else sorted(map(Path, glob(text)))  # noqa: PTH207 (absolute too)
    if not paths:
        raise FeatureError(f"no file matches {pattern}")
    return paths


def read_crs(path: Path) -> int:
    """Return the EPSG code that a GeoJSON file states in its (old) `crs` member; 4326 where it states none.

    Only a `crs` before the features is seen, which is where every writer puts it.
    """
    try:
        with path.open("rb") as file:
            for prefix, event, value in ijson.parse(file, multiple_values=True):
                if prefix == "crs.properties.name" and event == "string":
                    return _epsg(str(value), path)
                if prefix == "features" and event == "start_array":
                    break
    except (OSError, ijson.JSONError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read the GeoJSON {path}: {error}") from error
    return 4326


def _epsg(name: str, path: Path) -> int:
    """Return the EPSG code of a CRS name as `urn:ogc:def:crs:OGC:1.3:CRS84` or `EPSG:3857`."""
    if name.upper().endswith("CRS84"):
        return 4326
    match = _CRS.search(name)
    if match and match[1].isdecimal():
        return {900913: 3857}.get(int(match[1]), int(match[1]))
    raise FeatureError(f"{path}: unknown CRS {name!r}; expected EPSG:<code>")


def read_features(path: Path) -> Iterator[Feature]:
    """Yield the features of a GeoJSON file, in the CRS that `read_crs` gives.

    Takes a FeatureCollection, a Feature, a bare geometry, or one of these a line. One feature is in memory at a
    time.

    Raises:
        FeatureError: no JSON, no GeoJSON, or a geometry that cannot be built; says which feature.
    """
    number = 0
    try:
        with path.open("rb") as file:
            collection = False
            for prefix, event, value in ijson.parse(file, multiple_values=True):
                if prefix == "features" and event == "start_array":
                    collection = True
                    break
                if (prefix, event, value) == ("type", "string", "FeatureCollection"):
                    collection = True
                    break
            file.seek(0)
            items = ijson.items(file, "features.item" if collection else "", multiple_values=True, use_float=True)
            for item in items:
                yield _feature(item, path, number)
                number += 1
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    except ijson.JSONError as error:
        raise FeatureError(f"{path} is no valid JSON after feature {number}: {error}") from error


def _feature(item: Any, path: Path, number: int) -> Feature:
    if not isinstance(item, dict) or "type" not in item:
        raise FeatureError(f"{path}: feature {number} is no GeoJSON object")
    geometry = item.get("geometry") if item["type"] == "Feature" else item
    properties = item.get("properties") if item["type"] == "Feature" else None
    if not geometry:
        return Feature(None, properties or {})
    try:
        return Feature(shape(geometry), properties or {})
    except Exception as error:
        raise FeatureError(f"{path}: the geometry of feature {number} cannot be built: {error}") from error


def to_mercator(geometry: BaseGeometry, epsg: int) -> BaseGeometry:
    """Project a geometry, vertex by vertex, to metres of EPSG:3857; further dimensions are dropped.

    Latitudes beyond the square of web mercator (85.0511 degrees) are clipped to it.

    Raises:
        FeatureError: the CRS is unknown, or coordinates are not finite in it.
    """

    def project(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if epsg == 3857:
            return points
        if epsg == 4326:
            latitude = np.clip(points[:, 1], -MAX_LATITUDE, MAX_LATITUDE)
            y = EARTH_RADIUS * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))
            return np.column_stack([EARTH_RADIUS * np.radians(points[:, 0]), y])
        from rasterio.errors import CRSError
        from rasterio.warp import transform as warp

        try:
            xs, ys = warp(f"EPSG:{epsg}", "EPSG:3857", points[:, 0], points[:, 1])
        except CRSError as error:
            raise FeatureError(f"unknown CRS EPSG:{epsg}: {error}") from error
        return np.column_stack([xs, ys])

    projected: BaseGeometry = shapely.transform(shapely.force_2d(geometry), project)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise FeatureError(f"a geometry has coordinates that are none in EPSG:{epsg}")
    return projected


class FeatureWriter:
    """Writes one FeatureCollection, a feature at a time."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def write(self, geometry: BaseGeometry, properties: dict[str, Any]) -> None:
        """Write a feature, its coordinates in degrees."""
        feature = {"type": "Feature", "properties": properties, "geometry": _rounded(mapping(geometry))}
        self._file.write(",\n" if self.count else "")
        json.dump(feature, self._file, separators=(",", ":"), ensure_ascii=False)
        self.count += 1


def _rounded(value: Any) -> Any:
    """Round every coordinate of a geometry mapping."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


@contextmanager
def feature_writer(path: Path) -> Iterator[FeatureWriter]:
    """Open a GeoJSON file for writing; it takes the place of `path` when the block ends well."""
    with atomic_text(path) as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        yield FeatureWriter(file)
        file.write("\n]}\n")
