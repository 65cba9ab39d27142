"""Reads features in the formats that GDAL reads, and GeoParquet, in batches through Arrow."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.shared.crs import Crs, epsg_code
from rsp.shared.errors import FeatureError
from rsp.shared.webfiles import FileAt, local_file
from rsp.shared.wkb import geometries_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMATS = (
    "GeoJSON, GeoJSONSeq, GeoPackage, Shapefile (also zipped), FlatGeobuf, GeoParquet, and others that GDAL reads"
)

# What an archive may grow to beyond so many bytes, and how many files it may hold.
MAX_GROWTH, SMALL, MAX_MEMBERS = 100, 1 << 30, 10_000

# How a shapefile begins.
_SHP = b"\x00\x00\x27\x0a"

_MAGIC = {
    b"SQLite format 3": "a GeoPackage or another SQLite database",
    b"PK": "a zip archive",
    b"fgb": "FlatGeobuf",
    _SHP: "a shapefile",
}

# Warnings that were said.
_said: set[str] = set()

_IN_ARCHIVES = (".shp", ".gpkg", ".fgb")


class Table(NamedTuple):
    """Features as they come out of a file.

    Attributes:
        geometries: In two dimensions; None where there is none.
        broken: Which geometries cannot be built.
        properties: One a geometry; empty where they were not asked for.
    """

    geometries: npt.NDArray[np.object_]
    broken: npt.NDArray[np.bool_]
    properties: list[dict[str, Any]]


def read_parquet_crs(local: Path, path: FileAt) -> Crs:
    """Return the CRS of a GeoParquet file."""
    with _parquet(local, path) as file:
        _, column = _geometry_column(file, path)
        if "crs" not in column:
            return 4326
        if column["crs"] is None:
            raise _no_crs(path)
        return _crs_of(json.dumps(column["crs"]), path)


def read_parquet(local: Path, path: FileAt, *, properties: bool, size: int) -> Iterator[Table]:
    """Yield the features of a GeoParquet file."""
    import pyarrow as pa

    with _parquet(local, path) as file:
        name, column = _geometry_column(file, path)
        if column.get("encoding") != "WKB":
            raise FeatureError(
                f"{path}: geometries encoded as {column.get('encoding')!r} cannot be read; only WKB"
            )
        if not pa.types.is_binary(file.schema_arrow.field(name).type):
            raise FeatureError(f"{path}: its column {name!r} does not hold bytes")
        wanted = None if properties else [name]
        # Pages are read as they are needed, not row groups whole; and what a page holds once and names a thousand
        # times is kept once.
        once = [column for column in file.schema_arrow.names if _is_bytes(file.schema_arrow.field(column).type)]
    with _parquet(local, path, pre_buffer=False, buffer_size=1 << 16, read_dictionary=once) as file:
        for batch in file.iter_batches(batch_size=size, columns=wanted):
            yield _table(batch, name, properties=properties)


def _is_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column holds text or bytes."""
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_string(kind))


@contextmanager
def _parquet(local: Path, path: FileAt, **options: Any) -> Iterator[pq.ParquetFile]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise FeatureError(f"reading {path} needs pyarrow: pip install 'rsp-tools[vector]'") from error
    try:
        with pq.ParquetFile(local, **options) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise FeatureError(f"{path} is damaged, or is not Parquet: {_first_line(error)}") from error


def _geometry_column(file: pq.ParquetFile, path: FileAt) -> tuple[str, dict[str, Any]]:
    """Return the name of the column of geometries, and what is said of it."""
    try:
        geo = json.loads((file.metadata.metadata or {})[b"geo"])
        name = geo["primary_column"]
        column = geo["columns"][name]
        if not isinstance(column, dict) or name not in file.schema_arrow.names:
            raise ValueError(name)
    except KeyError as error:
        raise FeatureError(f"{path} is Parquet, but says nothing of geometries: it is not GeoParquet") from error
    except (ValueError, TypeError) as error:
        raise FeatureError(f"{path}: its metadata `geo` are not those of GeoParquet") from error
    return name, column


def quiet_gdal() -> None:
    """Tell the GDAL of pyogrio to write nothing beside what it reads.

    It repeats the metadata of a GeoPackage in a file `.aux.xml`, also of one that is opened to be read.
    """
    import pyogrio

    pyogrio.set_gdal_config_options({"GDAL_PAM_ENABLED": "NO"})


def read_gdal_crs(local: Path, path: FileAt, layer: str | None) -> Crs:
    """Return the CRS of a layer."""
    with _errors(path):
        import pyogrio

        quiet_gdal()
        with _warnings(path):
            name, layer = _dataset(local, path, layer)
            crs = pyogrio.read_info(name, layer=layer)["crs"]
    if not crs:
        raise _no_crs(path)
    return _crs_of(crs, path)


def read_gdal(local: Path, path: FileAt, layer: str | None, *, properties: bool, size: int) -> Iterator[Table]:
    """Yield the features of a layer."""
    with _errors(path):
        import pyogrio

        quiet_gdal()
        # The driver of FlatGeobuf hands out wrong offsets behind features without geometry (GDAL 3.12).
        pyogrio.set_gdal_config_options({"OGR_FLATGEOBUF_STREAM_BASE_IMPL": "YES"})
        with _warnings(path):
            name, layer = _dataset(local, path, layer)
            info = pyogrio.read_info(name, layer=layer, force_feature_count=True)
        count = 0
        with pyogrio.open_arrow(
            name, layer=layer, columns=None if properties else [], batch_size=size, use_pyarrow=True
        ) as (meta, reader):
            geometry = meta["geometry_name"] or "wkb_geometry"
            while True:
                with _warnings(path):
                    batch = next(reader, None)
                if batch is None:
                    break
                count += batch.num_rows
                yield _table(batch, geometry, properties=properties)
        # Records that were deleted are still counted in a shapefile.
        if count < info["features"] and info["driver"] != "ESRI Shapefile":
            raise FeatureError(
                f"{path} should have {info['features']} features, but only {count} can be read: it is damaged or "
                "cut off"
            )


@contextmanager
def _errors(path: FileAt) -> Iterator[None]:
    """Turn the errors of GDAL into ours."""
    try:
        import pyarrow as pa
        from pyogrio import errors
    except ImportError as error:
        raise FeatureError(f"reading {path} needs pyogrio: pip install 'rsp-tools[vector]'") from error
    try:
        yield
    except errors.DataSourceError as error:
        reason = _first_line(error)
        if "not recognized" in reason:
            raise FeatureError(f"{path} is in no format that can be read: {FORMATS}") from error
        raise FeatureError(f"cannot read {path}{_looks_like(path)}: {reason}") from error
    except (errors.DataLayerError, errors.FeatureError, errors.GeometryError, errors.CRSError) as error:
        raise FeatureError(f"cannot read {path}: {_first_line(error)}") from error
    except (  # what a damaged file does to GDAL, Arrow and zipfile
        pa.ArrowException,
        OSError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise FeatureError(f"{path} is damaged or cut off: {_first_line(error)}") from error


def _looks_like(path: FileAt) -> str:
    """Return what a file is by its first bytes, for a message."""
    try:
        with local_file(path).open("rb") as file:
            head = file.read(16)
    except OSError:
        return ""
    return next((f", which looks like {what}" for magic, what in _MAGIC.items() if head.startswith(magic)), "")


@contextmanager
def _warnings(path: FileAt) -> Iterator[None]:
    """Say each of GDAL's warnings once, in one line."""
    found: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield
    finally:
        for each in found:
            text = f"warning: {path}: {' '.join(str(each.message).split())}"
            if text not in _said:
                _said.add(text)
                print(text, file=sys.stderr)


def _dataset(local: Path, path: FileAt, layer: str | None) -> tuple[str, str]:
    """Return what GDAL is to open, and which layer of it."""
    import pyogrio

    name = str(local)
    with local.open("rb") if local.is_file() else _nothing() as file:
        head = file.read(28) if file else b""
    if head[:2] == b"PK" and local.suffix.lower() not in (".kmz", ".xlsx", ".ods"):
        name, layer = _in_archive(local, path, layer)
    elif head[:4] == _SHP:
        _check_length(head, local.stat().st_size, path)
        if not isinstance(path, Path):
            raise FeatureError(
                f"{path}: a shapefile is several files; to be fetched it has to be one .zip of them"
            )
    layers = [str(each) for each, kind in pyogrio.list_layers(name) if kind is not None]
    if not layers:
        raise FeatureError(f"{path} has no layer with geometries")
    if layer is None and len(layers) > 1:
        raise FeatureError(f"{path} has {len(layers)} layers: choose one with --layer: {_listed(layers)}")
    if layer is not None and layer not in layers:
        raise FeatureError(f"{path} has no layer {layer!r} with geometries, but {_listed(layers)}")
    return name, layer or layers[0]


def _check_length(head: bytes, size: int, path: FileAt) -> None:
    """Refuse a shapefile that is shorter than it says: GDAL would read null geometries."""
    stated = 2 * int.from_bytes(head[24:28], "big")
    if size < stated:
        raise FeatureError(f"{path} is cut off: it has {size} bytes, and should have {stated}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _in_archive(local: Path, path: FileAt, layer: str | None) -> tuple[str, str | None]:
    """Return what GDAL is to open in a zip archive, and the layer, if it is still to be chosen."""
    with zipfile.ZipFile(local) as archive:
        members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise FeatureError(f"{path} holds {len(members)} files: unpack it, and name the one to read")
    size = sum(member.file_size for member in members)
    if size > max(SMALL, MAX_GROWTH * sum(member.compress_size for member in members)):
        raise FeatureError(
            f"{path} would grow to {size >> 20} MiB, more than {MAX_GROWTH} times its size: unpack it yourself "
            "if it can be trusted"
        )
    found = {
        member.filename: PurePosixPath(member.filename).stem
        for member in members
        if PurePosixPath(member.filename).suffix.lower() in _IN_ARCHIVES
        and not PurePosixPath(member.filename).name.startswith(".")
    }
    if not found:
        raise FeatureError(f"{path} is a zip archive without {' or '.join(_IN_ARCHIVES)}")
    chosen = [name for name, stem in found.items() if layer in (None, stem)]
    if len(found) == 1:
        chosen = list(found)
    if len(chosen) != 1:
        raise FeatureError(f"{path} has {len(found)} layers: choose one with --layer: {_listed(found.values())}")
    if chosen[0].lower().endswith(".shp"):
        with zipfile.ZipFile(local) as archive, archive.open(chosen[0]) as file:
            _check_length(file.read(28), archive.getinfo(chosen[0]).file_size, path)
    rest = layer if len(found) == 1 and layer != found[chosen[0]] else None
    return f"/vsizip/{{{local}}}/{chosen[0]}", rest


def _listed(names: Any) -> str:
    shown = [str(each) for each in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _no_crs(path: FileAt) -> FeatureError:
    return FeatureError(f"{path} does not say in which CRS it is: give --crs EPSG:<code>")


def _crs_of(text: str, path: FileAt) -> Crs:
    """Return the EPSG code of a CRS as GDAL or PROJ write it, or its WKT where it has none."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    code = epsg_code(text) if ":" in text and len(text) < 32 else None
    if code is not None:
        return code
    try:
        crs = CRS.from_string(text)
        name = json.loads(text).get("id", {}) if text.startswith("{") else {}
        if (name.get("authority"), name.get("code")) == ("OGC", "CRS84"):
            return 4326
        found = crs.to_epsg(confidence_threshold=100)
        wkt: str = crs.to_wkt()
    except (CRSError, ValueError, AttributeError) as error:
        raise FeatureError(f"{path}: unknown CRS: {_first_line(error)} (--crs overrides it)") from error
    return wkt if found is None else epsg_code(f"EPSG:{found}") or wkt


def _table(batch: pa.RecordBatch, geometry: str, *, properties: bool) -> Table:
    """Return a batch as geometries and properties."""
    index = batch.schema.get_field_index(geometry)
    if index < 0:
        geometries, broken = np.full(batch.num_rows, None, dtype=object), np.zeros(batch.num_rows, dtype=np.bool_)
    else:
        geometries, broken = _geometries(batch.column(index))
    if not properties:
        return Table(geometries, broken, [])
    names = [name for name in batch.schema.names if name != geometry]
    columns = [_values(batch.column(batch.schema.get_field_index(name))) for name in names]
    if not names:
        return Table(geometries, broken, [{} for _ in range(batch.num_rows)])
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return Table(geometries, broken, rows)


def _geometries(column: pa.Array) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.bool_]]:
    """Build a column of geometries; each one that a dictionary holds only once."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return geometries_of(column.to_numpy(zero_copy_only=False))
    known, bad = geometries_of(column.dictionary.to_numpy(zero_copy_only=False))
    missing = column.indices.is_null().to_numpy(zero_copy_only=False)
    which = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
    if not len(known):
        return np.full(len(column), None, dtype=object), np.zeros(len(column), dtype=np.bool_)
    geometries = known[which]
    geometries[missing] = None
    return geometries, bad[which] & ~missing


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column as JSON has them: dates and decimals as text, bytes in hexadecimal."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        known = _values(column.dictionary)
        return [None if index is None else known[index] for index in column.indices.to_pylist()]
    kind = column.type
    found: list[Any] = column.to_pylist()
    if pa.types.is_temporal(kind):
        return [
            None if each is None else each.isoformat() if hasattr(each, "isoformat") else str(each)
            for each in found
        ]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return [None if each is None else each.hex() for each in found]
    return [None if each is None else str(each) for each in found] if pa.types.is_decimal(kind) else found


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].partition("; It might help")[0].rstrip(".") if text else type(error).__name__
