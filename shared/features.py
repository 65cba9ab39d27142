"""Vector features in batches: GeoJSON in, and GeoJSON out, atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

from rsp.shared.crs import epsg_code
from rsp.shared.errors import FeatureError, NotFoundError
from rsp.shared.featurewriter import (
    DECIMALS,
    OPENSTREETMAP,
    FeatureWriter,
    feature_collection,
    feature_text,
    feature_texts,
    feature_writer,
)
from rsp.shared.geojson import BOM, Items, build, mentions_crs
from rsp.shared.geometry import (
    BROKEN,
    FLAT,
    NULL,
    TANGLED,
    has_polygon,
    is_tangled,
    polygonal,
    polygons_of,
    project,
    to_mercator,
)
from rsp.shared.locations import Location, fetched, matching

__all__ = [
    "BROKEN",
    "DECIMALS",
    "FLAT",
    "NULL",
    "OPENSTREETMAP",
    "TANGLED",
    "Batch",
    "Feature",
    "FeatureWriter",
    "expand",
    "feature_collection",
    "feature_text",
    "feature_texts",
    "feature_writer",
    "has_polygon",
    "is_tangled",
    "polygonal",
    "polygons_of",
    "project",
    "read_batches",
    "read_crs",
    "read_features",
    "to_mercator",
]  # fmt: skip


class Feature(NamedTuple):
    """A feature: its geometry (None where the file says null), properties, and number in the file, from 0."""

    geometry: BaseGeometry | None
    properties: dict[str, Any]
    number: int = 0


class Batch(NamedTuple):
    """Features that are read together.

    Attributes:
        geometries: In two dimensions; None where the file says null.
        properties: One a geometry; empty where they were not asked for.
        numbers: The number of each feature in its file, from 0.
    """

    geometries: npt.NDArray[np.object_]
    properties: list[dict[str, Any]]
    numbers: npt.NDArray[np.int64]


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
def _local(path: Location) -> Iterator[Path]:
    """Yield a file on this machine, and turn what can go wrong with it into `FeatureError`."""
    try:
        yield fetched(path)
    except NotFoundError as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error


@contextmanager
def _open(path: Location, local: Path) -> Iterator[IO[bytes]]:
    """Open a JSON file past its byte order mark."""
    with local.open("rb") as file:
        head = file.read(1 << 10)
        file.seek(len(BOM) if head.startswith(BOM) else 0)
        _check_json(head, path)
        yield file


def read_crs(path: Location) -> int:
    """Return the EPSG code that a GeoJSON file states in its (old) `crs` member; 4326 where it states none.

    A `crs` after the features counts too. Only where the text `"crs"` occurs at all is the file looked through.

    Raises:
        FeatureError: no JSON, or a CRS that is not stated as an EPSG code.
    """
    with _local(path) as local, _open(path, local) as file:
        items = Items(file, path, parse=False)
        if not mentions_crs(local):
            items.check()
            return 4326
        for _ in items:
            if items.crs is not None:
                break
    return _stated(items.crs, path)


def _stated(crs: Any, path: Location) -> int:
    """Return the code that a member `crs` names."""
    properties = crs.get("properties") if isinstance(crs, dict) else None
    if not isinstance(properties, dict):
        return 4326
    if "href" in properties:
        raise FeatureError(f"{path}: its CRS is only a link; expected EPSG:<code>")
    name = properties.get("name", f"EPSG:{properties['code']}" if "code" in properties else "CRS84")
    code = epsg_code(str(name))
    if code is None:
        raise FeatureError(f"{path}: unknown CRS {name!r}; expected EPSG:<code> (--crs overrides it)")
    return code


def read_batches(
    path: Location,
    *,
    properties: bool = False,
    size: int = 4096,
    broken: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """Yield the features of a file in batches, in the CRS that `read_crs` gives.

    Takes a FeatureCollection, a Feature, a bare geometry, or several of these one after another. A batch and what
    the largest feature takes are in memory at a time.

    Args:
        path: The file, or an object in S3, which is downloaded once.
        properties: Read properties too.
        size: How many features a batch has, but for the last.
        broken: Called with the reason for each feature whose geometry cannot be built, which is then passed
            over; without it the first such feature is an error.

    Raises:
        FeatureError: no JSON, no GeoJSON, or a geometry that cannot be built; says which feature.
    """
    with _local(path) as local, _open(path, local) as file:
        first = waiting = 0
        parts: list[Batch] = []
        for items in Items(file, path):
            for start in range(0, len(items), size):
                some = items[start : start + size]
                geometries, numbers = build(some, first, path, broken)
                told = [_properties(some[number - first]) for number in numbers] if properties else []
                first += len(some)
                parts.append(Batch(geometries, told, numbers))
                waiting += len(numbers)
            while waiting >= size:
                batch, rest = _split(parts, size)
                yield batch
                parts, waiting = [rest], len(rest.numbers)
        if waiting:
            yield _split(parts, waiting)[0]


def _properties(item: dict[str, Any]) -> dict[str, Any]:
    found = item.get("properties") if item["type"] == "Feature" else None
    return found if isinstance(found, dict) else {}


def _split(parts: list[Batch], size: int) -> tuple[Batch, Batch]:
    """Return the first features of some batches as one, and the others."""
    geometries = np.concatenate([part.geometries for part in parts])
    told = [each for part in parts for each in part.properties]
    numbers = np.concatenate([part.numbers for part in parts])
    return (
        Batch(geometries[:size], told[:size], numbers[:size]),
        Batch(geometries[size:], told[size:], numbers[size:]),
    )


def read_features(path: Location, broken: Callable[[str], None] | None = None) -> Iterator[Feature]:
    """Yield the features that `read_batches` reads one by one, with their properties."""
    for batch in read_batches(path, properties=True, broken=broken):
        yield from map(Feature, batch.geometries, batch.properties, batch.numbers.tolist())
