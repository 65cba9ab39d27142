"""Vector features: GeoJSON in, one feature at a time, and GeoJSON out, atomically."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

import ijson
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from rsp.shared.atomic import atomic_text
from rsp.shared.crs import check_coordinates, epsg_code
from rsp.shared.errors import FeatureError, NotFoundError
from rsp.shared.locations import Location, fetched, matching
from rsp.shared.mercator import MAX_LATITUDE, RADIUS

# 7 decimals of a degree are about a centimetre.
DECIMALS = 7

# Bytes of JSON that are parsed at a time, and how deep brackets may be nested (those of GeoJSON go 8 deep).
CHUNK, MAX_DEPTH = 1 << 14, 200

_BOM = b"\xef\xbb\xbf"


class Feature(NamedTuple):
    """A feature: its geometry (None where the file says null), properties, and number in the file, from 0."""

    geometry: BaseGeometry | None
    properties: dict[str, Any]
    number: int = 0


def expand(pattern: str | Location) -> list[Location]:
    """Return the files that a path, an address in S3, or a glob pattern of either names, sorted.

    Raises:
        FeatureError: there is none.
        StorageError: the store cannot be reached.
    """
    found = matching(pattern)
    if not found or (isinstance(found[0], Path) and not found[0].exists()):
        raise FeatureError(f"no file matches {pattern}")
    return found


def read_crs(path: Location) -> int:
    """Return the EPSG code that a GeoJSON file states in its (old) `crs` member; 4326 where it states none.

    A `crs` after the features counts too. Only where the text `"crs"` occurs at all is the file parsed up to its
    end for it, which takes as long as reading the features.

    Raises:
        FeatureError: no JSON, or a CRS that is not stated as an EPSG code.
    """
    with _open(path) as file:
        start = file.tell()
        code = _find_crs(file, path, whole=False)
        if code is None:
            file.seek(start)
            if _mentions_crs(file):
                file.seek(start)
                code = _find_crs(file, path, whole=True)
    return 4326 if code is None else code


def _mentions_crs(file: IO[bytes]) -> bool:
    """Tell whether `"crs"` occurs in a file."""
    before = b""
    while data := file.read(1 << 20):
        if b'"crs"' in before + data:
            return True
        before = data[-8:]
    return False


def _find_crs(file: IO[bytes], path: Location, *, whole: bool) -> int | None:
    """Return the code of the `crs` member, of what stands before the features or of the whole object."""
    for prefix, event, value in ijson.parse(file, multiple_values=True):
        if prefix == "crs.properties.name" and event == "string":
            return _epsg(str(value), path)
        if prefix == "crs.properties.code" and event in ("number", "string"):
            return _epsg(f"EPSG:{value}", path)
        if prefix == "crs.properties.href":
            raise FeatureError(f"{path}: its CRS is only a link; expected EPSG:<code>")
        if (prefix, event) == ("", "end_map") or ((prefix, event) == ("features", "start_array") and not whole):
            break
    return None


def _epsg(name: str, path: Location) -> int:
    code = epsg_code(name)
    if code is None:
        raise FeatureError(f"{path}: unknown CRS {name!r}; expected EPSG:<code> (--crs overrides it)")
    return code


class _Guarded:
    """A JSON file whose reader stops where brackets are nested beyond all reason.

    The parser's work grows with the square of the depth. Brackets are counted as the file is read; text may hold
    some too, so what looks deep is looked at once, token by token.
    """

    def __init__(self, file: IO[bytes], path: Path, where: Location) -> None:
        self._file, self._path, self._where = file, path, where
        self._depth, self._sure = 0, False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, CHUNK) if size > 0 else size)
        if not self._sure:
            opened, closed = data.count(b"[") + data.count(b"{"), data.count(b"]") + data.count(b"}")
            self._depth += opened - closed
            if self._depth > MAX_DEPTH:
                self._check()
        return data

    def _check(self) -> None:
        depth = 0
        with self._path.open("rb") as file:
            if file.read(len(_BOM)) != _BOM:
                file.seek(0)
            for event, _ in ijson.basic_parse(file, multiple_values=True):
                if event in ("start_map", "start_array"):
                    depth += 1
                    if depth > MAX_DEPTH:
                        raise FeatureError(f"{self._where} nests brackets more than {MAX_DEPTH} deep: not GeoJSON")
                elif event in ("end_map", "end_array"):
                    depth -= 1
        self._sure = True

    def seek(self, offset: int) -> int:
        self._depth = 0
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


# First bytes of files that are taken for GeoJSON.
_OTHERS = {
    b"SQLite format 3": "a GeoPackage or another SQLite database",
    b"PK": "a zip archive",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "Parquet",
    b"fgb": "FlatGeobuf",
    b"\x00\x00\x27\x0a": "a shapefile",
}


def _check_json(head: bytes, path: Location) -> None:
    """Say what a file is that cannot be GeoJSON, rather than where it ceases to be JSON."""
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise FeatureError(
                f"{path} is {what}, not GeoJSON; convert it first: "
                f"ogr2ogr -f GeoJSON -t_srs EPSG:4326 new.json {path}"
            )


@contextmanager
def _open(path: Location) -> Iterator[IO[bytes]]:
    """Open a JSON file past its byte order mark, and turn what can go wrong with it into `FeatureError`."""
    try:
        local = fetched(path)
    except NotFoundError as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    try:
        with local.open("rb") as file:
            head = file.read(len(_BOM) + CHUNK // 16)
            file.seek(len(_BOM) if head.startswith(_BOM) else 0)
            _check_json(head, path)
            yield cast("IO[bytes]", _Guarded(file, local, path))
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())
        raise FeatureError(f"{path} is not valid JSON, or is cut off: {reason}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error


def read_features(path: Location, broken: Callable[[str], None] | None = None) -> Iterator[Feature]:
    """Yield the features of a GeoJSON file, in the CRS that `read_crs` gives.

    Takes a FeatureCollection, a Feature, a bare geometry, or one of these a line. One feature is in memory at a
    time.

    Args:
        path: The file, or an object in S3, which is downloaded once.
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
            yield feature._replace(number=number)


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
            y = RADIUS * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))
            return np.column_stack([RADIUS * np.radians(points[:, 0]), y])
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
        raise FeatureError(f"coordinates that do not exist in EPSG:{epsg}; is that their CRS?")
    return projected


def project(
    geometries: npt.NDArray[np.object_], epsg: int, where: Callable[[int], str]
) -> npt.NDArray[np.object_]:
    """Project an array of geometries to metres of EPSG:3857, as `to_mercator`, and refuse what cannot be meant.

    Args:
        geometries: The geometries, of which none is None.
        epsg: Their CRS.
        where: Says which geometry the n-th is, for the message.

    Raises:
        FeatureError: coordinates that are not finite, not degrees where the CRS has degrees, or outside the world.
    """
    check_coordinates(shapely.bounds(geometries), epsg, where)
    try:
        mercator = to_mercator(geometries, epsg)
    except FeatureError:
        for number in range(len(geometries)):
            try:
                to_mercator(geometries[number : number + 1], epsg)
            except FeatureError as error:
                raise FeatureError(f"{where(number)}: {error}") from error
        raise
    if epsg not in (4326, 3857):
        check_coordinates(shapely.bounds(mercator), epsg, where, projected=True)
    return mercator


_HEAD, _TAIL = '{"type":"FeatureCollection","features":[\n', "\n]}\n"


class FeatureWriter:
    """Writes one FeatureCollection, a feature at a time."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def write(self, geometry: BaseGeometry, properties: dict[str, Any]) -> None:
        """Write a feature, its coordinates in degrees; rings turn as RFC 7946 wants, NaN becomes null."""
        self.write_text(feature_text(geometry, properties))

    def write_text(self, text: str) -> None:
        """Write what `feature_text` has made."""
        self._file.write(",\n" if self.count else "")
        self._file.write(text)
        self.count += 1


def feature_text(geometry: BaseGeometry, properties: dict[str, Any]) -> str:
    """Return a feature as `FeatureWriter.write` writes it, on one line."""
    rounded = shapely.transform(shapely.orient_polygons(geometry), lambda points: points.round(DECIMALS))
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in properties.items()
    }
    feature = {"type": "Feature", "properties": finite, "geometry": mapping(rounded)}
    # Not json.dump: writing in pieces, it takes a path several times slower than dumps.
    return json.dumps(feature, separators=(",", ":"), ensure_ascii=False)


@contextmanager
def feature_writer(path: Location) -> Iterator[FeatureWriter]:
    """Open a GeoJSON file for writing; it takes the place of `path` when the block ends well (`atomic_path`)."""
    with atomic_text(path) as file:
        file.write(_HEAD)
        yield FeatureWriter(file)
        file.write(_TAIL)


def feature_collection(features: Iterable[tuple[BaseGeometry, dict[str, Any]]]) -> str:
    """Return the text of a GeoJSON file of these features, each a geometry in degrees and its properties."""
    file = io.StringIO()
    file.write(_HEAD)
    writer = FeatureWriter(file)
    for geometry, properties in features:
        writer.write(geometry, properties)
    file.write(_TAIL)
    return file.getvalue()
