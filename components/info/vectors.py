"""What tables with a geometry are: GeoPackage, FlatGeobuf and Shapefile by GDAL, GeoParquet by its footer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rsp.shared.errors import FeatureError
from rsp.shared.vectors import quiet_gdal

# Columns and layers that are listed.
LISTED = 50
_SQLITE, _FGB, _SHP, _PARQUET = b"SQLite format 3\x00", b"fgb\x03", b"\x00\x00\x27\x0a", b"PAR1"
FORMS = {_SQLITE: "GeoPackage", _FGB: "FlatGeobuf", _SHP: "Shapefile", _PARQUET: "GeoParquet"}
# How large the footer of a GeoParquet file may be.
MAX_FOOTER = 16 << 20


def type_of(kind: str) -> str:
    """Return what the values of a property are, as the same words whichever format holds them.

    Args:
        kind: A type as numpy or Arrow writes it, as `int64`, `double`, `object` or `large_string`.
    """
    begins = {
        "object": "str", "string": "str", "large_string": "str", "int": "int", "uint": "int", "float": "float",
        "double": "float", "bool": "bool", "date": "date", "timestamp": "date",
    }  # fmt: skip
    return next((word for name, word in begins.items() if kind.startswith(name)), kind)


def form_of(head: bytes) -> str | None:
    """Return what form a file begins as; None where it is no table of features."""
    return next((form for magic, form in FORMS.items() if head.startswith(magic)), None)


def describe_table(path: Path, form: str) -> dict[str, Any]:
    """Describe each layer of a table of features, without reading them into memory.

    Raises:
        FeatureError: it cannot be read, or what reads it is not installed.
    """
    about: dict[str, Any] = {"kind": "features", "form": form, "bytes": path.stat().st_size}
    try:
        return about | (_parquet(path) if form == "GeoParquet" else _gdal(path))
    except ModuleNotFoundError as error:
        raise FeatureError(f"reading {form} needs {error.name}: pip install 'rsp-tools[vector]'") from error


def _gdal(path: Path) -> dict[str, Any]:
    import pyogrio
    from pyogrio.errors import CRSError, DataLayerError, DataSourceError

    quiet_gdal()
    layers: dict[str, Any] = {}
    try:
        names = [str(name) for name, _ in pyogrio.list_layers(path)]
        if not names:
            raise FeatureError(f"cannot read {path}: it has no layer")
        for name in names[:LISTED]:
            found = pyogrio.read_info(path, layer=name, force_feature_count=True, force_total_bounds=True)
            bounds = found["total_bounds"]
            layers[name] = {
                "features": int(found["features"]),
                "type": found["geometry_type"],
                "crs": found["crs"] if len(found["crs"] or "") < 40 else "of its own",
                "bounds": None if bounds is None else [round(float(value), 7) for value in bounds],
                "properties": {
                    str(field): type_of(str(kind))
                    for field, kind in list(zip(found["fields"], found["dtypes"], strict=True))[:LISTED]
                },
            }
    except (DataSourceError, DataLayerError, CRSError) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    return {"features": sum(each["features"] for each in layers.values()), "layers": layers}


def _parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            file.seek(-8, 2)
            size = int.from_bytes(file.read(4), "little")
        if size > MAX_FOOTER:
            raise FeatureError(f"the footer of {path} has {size} bytes, the limit is {MAX_FOOTER}")
        footer = pq.read_metadata(path)
        schema = footer.schema.to_arrow_schema()
        told = json.loads((footer.metadata or {}).get(b"geo", b"{}"))
        name = told.get("primary_column", "geometry")
        column = told.get("columns", {}).get(name, {})
        crs = column.get("crs", {}) if column else None
        code = (crs or {}).get("id", {})
        bounds = column.get("bbox")
        layer = {
            "features": footer.num_rows,
            "type": ", ".join(column.get("geometry_types", [])) or None,
            "crs": f"{code['authority']}:{code['code']}" if code else ("EPSG:4326" if column else None),
            "bounds": None if bounds is None else [round(float(value), 7) for value in bounds],
            "properties": {
                each.name: type_of(str(each.type)) for each in list(schema)[:LISTED] if each.name != name
            },
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, pa.ArrowException) as error:
        raise FeatureError(f"cannot read {path}: {error}") from error
    return {"features": footer.num_rows, "layers": {path.stem: layer}}
