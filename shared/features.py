"""Vector features in batches: GeoJSON in, and GeoJSON out, atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

from rsp.shared.crs import Crs, epsg_code
from rsp.shared.errors import FeatureError, NotFoundError, RspError
from rsp.shared.featurewriter import (
    DECIMALS,
    OPENSTREETMAP,
    FeatureWriter,
    feature_collection,
    feature_text,
    feature_texts,
    feature_writer,
)
from rsp.shared.geojson import BOM, Items, mentions_crs
from rsp.shared.geojsonshapes import build
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
from rsp.shared.locations import matching
from rsp.shared.webfiles import FileAt, WebFile, is_url, local_file

if TYPE_CHECKING:
    from rsp.shared.vectors import Table

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


def expand(pattern: str | FileAt) -> list[FileAt]:
    """Return the files that a path, an address in S3, or a glob pattern of either names, sorted; or a URL.

    Raises:
        FeatureError: there is none.
        StorageError: the store cannot be reached.
    """
    if isinstance(pattern, WebFile):
        return [pattern]
    if isinstance(pattern, str) and is_url(pattern):
        return [WebFile(pattern)]
    found = matching(pattern)
    if not found or (isinstance(found[0], Path) and not found[0].exists()):
        raise FeatureError(f"no file matches {pattern}")
    return list(found)


# First bytes of GeoJSON, and of files that another reader takes; of the rest the suffix tells.
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_BINARY = (b"SQLite format 3", b"PK", b"fgb", b"\x00\x00\x27\x0a")
_JSON = (".json", ".geojson", ".geojsonl", ".geojsons")


def _format(path: FileAt, local: Path) -> str:
    """Return which reader takes a file: geojson, parquet or gdal."""
    if local.is_dir():
        if local.suffix.lower() == ".gdb":
            return "gdal"
        raise IsADirectoryError(f"{local} is a directory")
    with local.open("rb") as file:
        head = file.read(1 << 10)
    if head.startswith(_PARQUET):
        return "parquet"
    if head.startswith(_BINARY):
        return "gdal"
    if head.startswith(_GZIP):
        raise FeatureError(f"{path} is compressed by gzip: unpack it first, with gunzip")
    text = head.removeprefix(BOM).lstrip(b" \t\r\n\x1e")
    json = text[:1] in (b"", b"{", b"[") or local.suffix.lower() in _JSON
    return "geojson" if json else "gdal"


@contextmanager
def _local(path: FileAt) -> Iterator[Path]:
    """Yield a file on this machine, and turn what can go wrong with it into `FeatureError`."""
    try:
        local = local_file(path)
        try:
            yield local
        except RspError as error:
            if isinstance(path, WebFile):
                error.args = tuple(str(each).replace(str(local), str(path)) for each in error.args)
            raise
    except NotFoundError as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error


@contextmanager
def _open(local: Path) -> Iterator[IO[bytes]]:
    """Open a JSON file past its byte order mark."""
    with local.open("rb") as file:
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        yield file


def read_crs(path: FileAt, layer: str | None = None) -> Crs:
    """Return the CRS of a file: an EPSG code, or the WKT of a CRS that has none.

    Of GeoJSON it is what the (old) member `crs` states, which may stand after the features too, else 4326. Only
    where the text `"crs"` occurs at all is the file looked through.

    Args:
        path: The file, an object in S3, or a URL.
        layer: Which layer, of several.

    Raises:
        FeatureError: no file that can be read, no such layer, or a CRS that is not stated, or not known.
    """
    with _local(path) as local:
        kind = _format(path, local)
        if kind != "geojson":
            from rsp.shared.vectors import read_gdal_crs, read_parquet_crs

            if kind == "gdal":
                return read_gdal_crs(local, path, layer)
            _no_layers(path, layer)
            return read_parquet_crs(local, path)
        _no_layers(path, layer)
        with _open(local) as file:
            items = Items(file, path, parse=False)
            if not mentions_crs(local):
                items.check()
                return 4326
            for _ in items:
                if items.crs is not None:
                    break
    return _stated(items.crs, path)


def _no_layers(path: FileAt, layer: str | None) -> None:
    if layer is not None:
        raise FeatureError(f"{path} has no layers: leave out --layer {layer}")


def _stated(crs: Any, path: FileAt) -> int:
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
    path: FileAt,
    *,
    layer: str | None = None,
    properties: bool = False,
    size: int = 4096,
    broken: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """Yield the features of a file in batches, in the CRS that `read_crs` gives.

    Takes GeoJSON (a FeatureCollection, a Feature, a bare geometry, or several of these one after another),
    GeoParquet, and what GDAL reads: GeoPackage, Shapefile (also zipped), FlatGeobuf and others; its content says
    which. Heights and measures are dropped, curves become lines. A batch and what the largest feature takes are
    in memory at a time.

    Args:
        path: The file, an object in S3, or a URL; both are downloaded once.
        layer: Which layer, of several.
        properties: Read properties too.
        size: How many features a batch has, but for the last.
        broken: Called with the reason for each feature whose geometry cannot be built, which is then passed
            over; without it the first such feature is an error.

    Raises:
        FeatureError: a file that cannot be read or is damaged, no such layer, or a geometry that cannot be built;
            says which feature.
    """
    with _local(path) as local:
        kind = _format(path, local)
        if kind == "gdal":
            from rsp.shared.vectors import read_gdal

            tables = read_gdal(local, path, layer, properties=properties, size=size)
            yield from _passed_over(tables, path, broken)
            return
        _no_layers(path, layer)
        if kind == "parquet":
            from rsp.shared.vectors import read_parquet

            tables = read_parquet(local, path, properties=properties, size=size)
            yield from _passed_over(tables, path, broken)
            return
        with _open(local) as file:
            yield from _read_geojson(file, path, size, broken, properties=properties)


def _passed_over(tables: Iterator[Table], path: FileAt, broken: Callable[[str], None] | None) -> Iterator[Batch]:
    """Yield features but for those whose geometries cannot be built."""
    first = 0
    for table in tables:
        numbers = np.arange(first, first + len(table.geometries))
        first += len(numbers)
        for number in numbers[table.broken].tolist():
            reason = (
                f"{path}: the geometry of feature {number} cannot be built: it is damaged, or of an unknown type"
            )
            if broken is None:
                raise FeatureError(reason)
            broken(reason)
        if table.broken.any():
            kept = ~table.broken
            told = [each for each, keep in zip(table.properties, kept, strict=False) if keep]
            yield Batch(table.geometries[kept], told, numbers[kept])
        else:
            yield Batch(table.geometries, table.properties, numbers)


def _read_geojson(
    file: IO[bytes], path: FileAt, size: int, broken: Callable[[str], None] | None, *, properties: bool
) -> Iterator[Batch]:
    """Yield the features of GeoJSON, in batches of the size."""
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


def read_features(path: FileAt, broken: Callable[[str], None] | None = None) -> Iterator[Feature]:
    """Yield the features that `read_batches` reads one by one, with their properties."""
    for batch in read_batches(path, properties=True, broken=broken):
        yield from map(Feature, batch.geometries, batch.properties, batch.numbers.tolist())
