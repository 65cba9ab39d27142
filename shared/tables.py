"""Writes features as a table with a geometry: FlatGeobuf, GeoPackage and GeoParquet, through Arrow.

Features wait in a temporary file: its columns and their types, bounds and types of geometries are known at the end
only. So memory is bounded by a batch, however many features there are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from rsp.shared.atomic import atomic_path, is_stream
from rsp.shared.errors import StorageError, UsageError
from rsp.shared.featurewriter import Objects, Properties, prepared
from rsp.shared.locations import Location

if TYPE_CHECKING:
    import pyarrow as pa

GEOMETRY = "geometry"

# Features, and bytes of geometries, that are written together: a row group of a GeoParquet file.
ROWS, BYTES = 1 << 16, 1 << 26

# The date that a GeoPackage says it was changed at, so that the same features make the same bytes.
EPOCH = 0

_DRIVERS = {".fgb": "FlatGeobuf", ".gpkg": "GPKG"}


class TableWriter:
    """Takes features, as `FeatureWriter` says, and keeps them in a temporary file in Arrow's format."""

    def __init__(self, spool: pa.RecordBatchFileWriter, schema: Mapping[str, type]) -> None:
        self.count = 0
        self.types: dict[str, type | None] = dict(schema)
        self.kinds: set[int] = set()
        self.nowhere = False
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._spool, self._given = spool, dict(schema)
        self._geometries: list[Any] = []
        self._properties: list[bytes] = []
        self._size = 0

    def write(self, geometry: BaseGeometry | None, properties: Mapping[str, Any]) -> None:
        """Write a feature."""
        self.write_batch(np.array([geometry], dtype=object), [properties])

    def write_batch(self, geometries: Objects, properties: Properties) -> None:
        """Write features, as `FeatureWriter` says."""
        ready = prepared(geometries)
        self.kinds.update(np.unique(shapely.get_type_id(ready)).tolist())
        bounds = shapely.bounds(ready)
        somewhere = ~np.isnan(bounds).any(axis=1)
        self.nowhere = self.nowhere or not somewhere.all()
        bounds = bounds[somewhere]
        if len(bounds):
            self.bounds[:2] = np.minimum(self.bounds[:2], bounds[:, :2].min(axis=0))
            self.bounds[2:] = np.maximum(self.bounds[2:], bounds[:, 2:].max(axis=0))
        for data, each in zip(shapely.to_wkb(ready).tolist(), properties, strict=True):
            self._learn(each)
            self._geometries.append(data)
            self._properties.append(_dumps(each))
            self._size += len(data or b"") + len(self._properties[-1])
            self.count += 1
            if len(self._geometries) == ROWS or self._size >= BYTES:
                self.flush()

    def write_text(self, text: str) -> None:
        """Write what `feature_text` has made."""
        feature = orjson.loads(text)
        self.write(shape(feature["geometry"]) if feature["geometry"] else None, feature["properties"])

    def flush(self) -> None:
        """Put what waits into the temporary file."""
        import pyarrow as pa

        if self._geometries:
            columns = [pa.array(self._geometries, pa.binary()), pa.array(self._properties, pa.binary())]
            self._spool.write_batch(pa.record_batch(columns, schema=self._spool_schema()))
            self._geometries, self._properties, self._size = [], [], 0

    @staticmethod
    def _spool_schema() -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(GEOMETRY, pa.binary()), ("properties", pa.binary())])

    def _learn(self, properties: Mapping[str, Any]) -> None:
        """Widen the types of columns to those of the properties."""
        for key, value in properties.items():
            known = self.types.get(key)
            if value is None:
                self.types.setdefault(key, None)
            elif key in self._given:
                if not isinstance(value, _ALLOWED.get(self._given[key], object)):
                    raise UsageError(
                        f"the property {key!r} is {value!r}, and its column is {self._given[key].__name__}"
                    )
            elif known is not type(value) or known is int:
                self.types[key] = _wider(known, value)

    def table(self, spool: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Return the columns of all features, and the batches of the temporary file as such."""
        import pyarrow as pa

        kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
        columns = {key: kinds.get(found or str, pa.string()) for key, found in self.types.items()}
        name = self.geometry
        schema = pa.schema([*columns.items(), pa.field(name, pa.binary(), metadata=_WKB)])

        def batches() -> Iterator[pa.RecordBatch]:
            for index in range(spool.num_record_batches):
                batch = spool.get_batch(index)
                rows = [orjson.loads(data) for data in batch.column(1).to_pylist()]
                arrays = [_column(key, rows, kind) for key, kind in columns.items()]
                yield pa.record_batch([*arrays, batch.column(0)], schema=schema)

        return schema, batches()

    @property
    def geometry(self) -> str:
        """The name of the column of geometries."""
        return self.free(GEOMETRY)

    def free(self, name: str) -> str:
        """Return a name for a column that no property has."""
        while any(key.lower() == name for key in self.types):
            name += "_"
        return name


_WKB = {"ARROW:extension:name": "geoarrow.wkb"}


# Values that a column takes.
_ALLOWED: dict[type, Any] = {bool: bool, int: int, float: (int, float)}


def _wider(known: type | None, value: Any) -> type:
    """Return the type of a column that holds a value beside those of a type."""
    found = type(value)
    if found is int and not -(1 << 63) <= value < 1 << 63:
        found = float
    if found not in (bool, int, float, str):
        found = list  # JSON
    if known in (None, found):
        return found
    return float if {known, found} == {int, float} else list


def _dumps(properties: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(properties, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return json.dumps(dict(properties), ensure_ascii=False, default=str).encode()


def _column(key: str, rows: Sequence[dict[str, Any]], kind: pa.DataType) -> pa.Array:
    """Return the values of a property, as the type of its column."""
    import pyarrow as pa

    values = [row.get(key) for row in rows]
    if pa.types.is_string(kind):
        values = [
            value if value is None or isinstance(value, str) else orjson.dumps(value).decode() for value in values
        ]
    elif pa.types.is_floating(kind):
        values = [None if value is None or not math.isfinite(value) else float(value) for value in values]
    return pa.array(values, kind)


@contextmanager
def table_writer(
    path: Location, *, crs: int, schema: Mapping[str, type], attribution: str | None
) -> Iterator[TableWriter]:
    """Open a table for writing, as `feature_writer` says."""
    try:
        import pyarrow as pa
        import pyogrio  # noqa: F401 (better now than after hours of work)
    except ImportError as error:
        raise UsageError(
            f"writing {path.suffix} needs pyarrow and pyogrio: pip install 'rsp-tools[vector]'"
        ) from error
    if is_stream(path):
        raise UsageError(f"cannot write {path.suffix} to {path}: only GeoJSON can be streamed")
    with atomic_path(path) as temporary:
        spool = temporary.with_name(f"{temporary.name}.arrow")
        try:
            with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_file(sink, TableWriter._spool_schema()) as file:
                writer = TableWriter(file, schema)
                yield writer
                writer.flush()
            with pa.memory_map(str(spool)) as source:
                finish = _write_parquet if path.suffix.lower() == ".parquet" else _write_gdal
                finish(temporary, path, writer, pa.ipc.open_file(source), crs, attribution)
        finally:
            spool.unlink(missing_ok=True)


def _write_parquet(
    temporary: Path, path: Location, writer: TableWriter, spool: Any, crs: int, attribution: str | None
) -> None:
    """Write GeoParquet 1.1."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from rasterio.crs import CRS

    name = "OGC:CRS84" if crs == 4326 else f"EPSG:{crs}"
    schema, batches = writer.table(spool)
    kinds = {kind for kind in writer.kinds if kind >= 0}
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(_TYPES[kind] for kind in kinds),
        "crs": CRS.from_user_input(name).to_dict(projjson=True),
        "orientation": "counterclockwise",
    }
    if np.isfinite(writer.bounds).all():
        column["bbox"] = writer.bounds.tolist()
    geo = {"version": "1.1.0", "primary_column": writer.geometry, "columns": {writer.geometry: column}}
    metadata = {"geo": json.dumps(geo)}
    if attribution is not None:
        metadata["attribution"] = attribution
    # What says that a column holds WKB is in `geo`; Arrow's name for it would ask readers for an extension.
    schema = schema.set(len(schema) - 1, schema.field(len(schema) - 1).remove_metadata())
    with pq.ParquetWriter(temporary, schema, compression="zstd", store_schema=False) as file:
        file.add_key_value_metadata(metadata)
        for batch in batches:
            file.write_batch(pa.record_batch(batch.columns, schema=schema), row_group_size=ROWS)


_TYPES = {
    0: "Point", 1: "LineString", 2: "LineString", 3: "Polygon", 4: "MultiPoint", 5: "MultiLineString",
    6: "MultiPolygon", 7: "GeometryCollection",
}  # fmt: skip


def _write_gdal(
    temporary: Path, path: Location, writer: TableWriter, spool: Any, crs: int, attribution: str | None
) -> None:
    """Write FlatGeobuf or GeoPackage."""
    import pyarrow as pa
    import pyogrio

    suffix = path.suffix.lower()
    schema, batches = writer.table(spool)
    kinds = {_TYPES[kind] for kind in writer.kinds if kind >= 0}
    options: dict[str, Any] = {}
    if suffix == ".gpkg":
        options["dataset_metadata"] = {"ATTRIBUTION": attribution} if attribution else None
        options["layer_options"] = {
            "GEOMETRY_NAME": writer.geometry, "IDENTIFIER": path.stem, "FID": writer.free("fid"),
        }  # fmt: skip
        if attribution:
            options["layer_options"]["DESCRIPTION"] = attribution
    else:
        # An index finds features by where they are: those that are nowhere cannot be in it.
        options["layer_options"] = {"SPATIAL_INDEX": "NO" if writer.nowhere or not writer.count else "YES"}
        if attribution:
            options["layer_options"]["DESCRIPTION"] = attribution
    try:
        with _same_date():
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(schema, batches), str(temporary), layer=path.stem,
                driver=_DRIVERS[suffix], geometry_name=writer.geometry, crs=f"EPSG:{crs}",
                geometry_type=next(iter(kinds)) if len(kinds) == 1 else "Unknown", **options,
            )  # fmt: skip
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FieldError) as error:
        raise StorageError(f"cannot write {path}: {' '.join(str(error).split())}") from error


@contextmanager
def _same_date() -> Iterator[None]:
    """Let GDAL write the same date on every run, that of SOURCE_DATE_EPOCH where it is set."""
    import pyogrio

    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    date = np.datetime64(seconds, "s").astype(str) + ".000Z"
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": date})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
