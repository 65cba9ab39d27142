"""Vector features: GeoJSON in, one feature at a time, and GeoJSON out, atomically."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import ijson
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from rsp.shared.atomic import atomic_text
from rsp.shared.errors import FeatureError

# 7 decimals of a degree are about a centimetre.
DECIMALS = 7

# Web mercator: the sphere's radius in metres, and the latitude where its square ends.
EARTH_RADIUS = 6378137.0
MAX_LATITUDE = 85.0511287798066
_CRS = re.compile(r"(?:EPSG|CRS)[:/]*(?:[\d.]*[:/]+)*(\d+)$", re.IGNORECASE)

# Other names of web mercator.
_MERCATOR = {900913: 3857, 102100: 3857, 102113: 3857, 3785: 3857}
_BOM = b"\xef\xbb\xbf"


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

    Raises:
        FeatureError: no JSON, or a CRS that is not stated as an EPSG code.
    """
    with _open(path) as file:
        for prefix, event, value in ijson.parse(file, multiple_values=True):
            if prefix == "crs.properties.name" and event == "string":
                return _epsg(str(value), path)
            if prefix == "crs.properties.code" and event in ("number", "string"):
                return _epsg(f"EPSG:{value}", path)
            if prefix == "crs.properties.href":
                raise FeatureError(f"{path}: its CRS is only a link; expected EPSG:<code>")
            if (prefix, event) in (("features", "start_array"), ("", "end_map")):
                break
    return 4326


def _epsg(name: str, path: Path) -> int:
    """Return the EPSG code of a CRS name as `urn:ogc:def:crs:OGC:1.3:CRS84` or `EPSG:3857`."""
    if name.upper().endswith("CRS84"):
        return 4326
    match = _CRS.search(name)
    code = _MERCATOR.get(int(match[1]), int(match[1])) if match else 0
    if code in (4326, 3857):
        return code
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        CRS.from_epsg(code)
    except CRSError as error:
        raise FeatureError(f"{path}: unknown CRS {name!r}; expected EPSG:<code>") from error
    return code


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a JSON file past its byte order mark, and turn what can go wrong with it into `FeatureError`."""
    try:
        with path.open("rb") as file:
            if file.read(len(_BOM)) != _BOM:
                file.seek(0)
            yield file
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())
        raise FeatureError(f"{path} is not valid JSON, or is cut off: {reason}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error


def read_features(path: Path, broken: Callable[[str], None] | None = None) -> Iterator[Feature]:
    """Yield the features of a GeoJSON file, in the CRS that `read_crs` gives.

    Takes a FeatureCollection, a Feature, a bare geometry, or one of these a line. One feature is in memory at a
    time.

    Args:
        path: The file.
        broken: Called with the reason for each feature whose geometry cannot be built, which is then passed
            over; without it the first such feature is an error.

    Raises:
        FeatureError: no JSON, no GeoJSON, or a geometry that cannot be built; says which feature.
    """
    with _open(path) as file:
        start = file.tell()
        collection = empty = False
        for prefix, event, value in ijson.parse(file, multiple_values=True):
            if (prefix, event) == ("features", "start_array") or (prefix, value) == ("type", "FeatureCollection"):
                collection = True
                break
            if (prefix, event) == ("", "end_map"):
                break
        else:
            empty = True
        if empty:
            raise FeatureError(f"{path} holds no GeoJSON object")
        file.seek(start)
        items = ijson.items(file, "features.item" if collection else "", multiple_values=True, use_float=True)
        for number, item in enumerate(items):
            if not isinstance(item, dict) or "type" not in item:
                raise FeatureError(f"{path}: feature {number} is not a GeoJSON object")
            try:
                feature = _feature(item)
            except FeatureError as error:
                reason = f"{path}: the geometry of feature {number} cannot be built: {error}"
                if broken is None:
                    raise FeatureError(reason) from error
                broken(reason)
                continue
            yield feature


def _feature(item: dict[str, Any]) -> Feature:
    geometry = item.get("geometry") if item["type"] == "Feature" else item
    properties = item.get("properties") if item["type"] == "Feature" else None
    if not geometry:
        return Feature(None, properties or {})
    try:
        try:
            built = shape(geometry)
        except ValueError:  # more than three dimensions, or some points with a height and some without
            built = shape(_flattened(geometry))
    except Exception as error:
        raise FeatureError(str(error) or type(error).__name__) from error
    return Feature(built, properties or {})


def _flattened(value: Any) -> Any:
    """Return a geometry with two numbers a point."""
    if isinstance(value, dict):
        return {key: _flattened(item) for key, item in value.items()}
    if isinstance(value, list):
        number = bool(value) and isinstance(value[0], int | float)
        return value[:2] if number else [_flattened(item) for item in value]
    return value


def polygonal(geometry: BaseGeometry) -> BaseGeometry | None:
    """Return the valid Polygon or MultiPolygon that a geometry amounts to, or None where it has no area.

    An invalid geometry is repaired; of a collection, the polygons are taken together.
    """
    if geometry.geom_type not in ("Polygon", "MultiPolygon") or not geometry.is_valid:
        parts = [
            part
            for part in _parts(shapely.make_valid(geometry, method="structure", keep_collapsed=False))
            if part.geom_type == "Polygon"
        ]
        geometry = shapely.union_all(parts) if len(parts) > 1 else parts[0] if parts else shapely.Polygon()
    return geometry if geometry.area > 0 else None


def _parts(geometry: BaseGeometry) -> Iterator[BaseGeometry]:
    """Yield the simple geometries of a collection, however nested."""
    if hasattr(geometry, "geoms"):
        for part in geometry.geoms:
            yield from _parts(part)
    else:
        yield geometry


# One geometry, or an array of them.
Shapes = TypeVar("Shapes", BaseGeometry, npt.NDArray[np.object_])


def to_mercator(geometry: Shapes, epsg: int) -> Shapes:
    """Project a geometry, or an array of them at once, to metres of EPSG:3857.

    Every vertex is projected, further dimensions are dropped. Latitudes beyond the square of web mercator (85.0511
    degrees) are clipped to it.

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

    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        projected: Shapes = shapely.transform(shapely.force_2d(geometry), project)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise FeatureError(f"a geometry has coordinates that are none in EPSG:{epsg}")
    return projected


class FeatureWriter:
    """Writes one FeatureCollection, a feature at a time."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def write(self, geometry: BaseGeometry, properties: dict[str, Any]) -> None:
        """Write a feature, its coordinates in degrees; rings turn as RFC 7946 wants, NaN becomes null."""
        rounded = shapely.transform(shapely.orient_polygons(geometry), lambda points: points.round(DECIMALS))
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in properties.items()
        }
        feature = {"type": "Feature", "properties": finite, "geometry": mapping(rounded)}
        self._file.write(",\n" if self.count else "")
        # Not json.dump: writing in pieces, it takes a path several times slower than dumps.
        self._file.write(json.dumps(feature, separators=(",", ":"), ensure_ascii=False))
        self.count += 1


@contextmanager
def feature_writer(path: Path) -> Iterator[FeatureWriter]:
    """Open a GeoJSON file for writing; it takes the place of `path` when the block ends well."""
    with atomic_text(path) as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        yield FeatureWriter(file)
        file.write("\n]}\n")
