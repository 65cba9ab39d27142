"""Writes features as GeoJSON, GeoJSONSeq, FlatGeobuf, GeoPackage or GeoParquet: the suffix says which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.shared.atomic import atomic_text
from rsp.shared.featuretext import DECIMALS, TAIL, feature_collection, feature_text, feature_texts, head_of
from rsp.shared.locations import Location

__all__ = [
    "DECIMALS", "OPENSTREETMAP", "FeatureWriter", "GeoJsonWriter", "feature_collection", "feature_text",
    "feature_texts", "feature_writer", "prepared",
]  # fmt: skip

Objects = npt.NDArray[np.object_]
Properties = Sequence[Mapping[str, Any]]

# What is said in a file of data that are OpenStreetMap's.
OPENSTREETMAP = "© OpenStreetMap contributors, ODbL 1.0, https://www.openstreetmap.org/copyright"

SEQUENCES = (".geojsonl", ".geojsons")
TABLES = (".fgb", ".gpkg", ".parquet")
STDOUT = Path("/dev/stdout")


class FeatureWriter(Protocol):
    """What writes features; `feature_writer` opens one.

    Attributes:
        count: How many were written.
    """

    count: int

    def write(self, geometry: BaseGeometry | None, properties: Mapping[str, Any]) -> None:
        """Write a feature, as `write_batch`."""
        ...

    def write_batch(self, geometries: Objects, properties: Properties) -> None:
        """Write features.

        Rings turn as RFC 7946 wants, further dimensions are dropped, coordinates are rounded to 7 decimals, and
        NaN becomes null.

        Args:
            geometries: Geometries, or None, in the CRS of the file.
            properties: As many.
        """
        ...

    def write_text(self, text: str) -> None:
        """Write what `feature_text` has made."""
        ...


def prepared(geometries: Objects) -> Objects:
    """Return geometries as they are written."""
    flat = shapely.orient_polygons(shapely.force_2d(geometries))
    return shapely.transform(flat, lambda points: points.round(DECIMALS))


class GeoJsonWriter:
    """Writes GeoJSON, a line for each feature."""

    def __init__(self, file: IO[str], separator: str = ",\n") -> None:
        self._file, self._separator = file, separator
        self.count = 0

    def write(self, geometry: BaseGeometry | None, properties: Mapping[str, Any]) -> None:
        """Write a feature, as `write_batch`."""
        self.write_batch(np.array([geometry], dtype=object), [properties])

    def write_batch(self, geometries: Objects, properties: Properties) -> None:
        """Write features, as `FeatureWriter` says."""
        texts = list(feature_texts(geometries, properties))
        if texts:
            self._put(self._separator.join(texts), len(texts))

    def write_text(self, text: str) -> None:
        """Write what `feature_text` has made."""
        self._put(text, 1)

    def _put(self, text: str, count: int) -> None:
        if self.count:
            self._file.write(self._separator)
        self._file.write(text)
        self.count += count


@contextmanager
def feature_writer(
    path: Location,
    *,
    crs: int = 4326,
    schema: Mapping[str, type] | None = None,
    attribution: str | None = None,
) -> Iterator[FeatureWriter]:
    """Open a file of features for writing; it takes the place of `path` when the block ends well (`atomic_path`).

    Its suffix says what it is: `.geojsonl` or `.geojsons` for GeoJSONSeq, `.fgb` for FlatGeobuf, `.gpkg` for
    GeoPackage, `.parquet` for GeoParquet, anything else for GeoJSON. `-` is standard output, as GeoJSON.

    Args:
        path: The file, or an object in S3.
        crs: EPSG code of the coordinates: x, y.
        schema: Names and types (bool, int, float, str) of properties, which become the columns of a table, first
            and in this order. Others follow as they come, with the type that holds all their values; what is
            neither a number nor text is written as JSON.
        attribution: Whose the data are and under which licence; GeoJSONSeq has no place for it.

    Raises:
        UsageError: a format whose library is not installed, or that cannot be streamed.
        StorageError: as `atomic_path`.
    """
    if isinstance(path, Path) and str(path) == "-":
        path = STDOUT
    suffix = path.suffix.lower()
    if suffix in TABLES:
        from rsp.shared.tables import table_writer

        with table_writer(path, crs=crs, schema=schema or {}, attribution=attribution) as table:
            yield table
        return
    with atomic_text(path) as file:
        if suffix in SEQUENCES:
            sequence = GeoJsonWriter(file, "\n")
            yield sequence
            file.write("\n" if sequence.count else "")
            return
        file.write(head_of(crs, attribution))
        yield GeoJsonWriter(file)
        file.write(TAIL)
