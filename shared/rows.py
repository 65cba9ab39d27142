"""Tables of numbers and texts, as CSV or as Parquet: written batch by batch, so that memory is bounded."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Protocol

from rsp.shared.atomic import atomic_path, atomic_text
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location
from rsp.shared.texttables import cell

# The columns of some rows, by name: sequences of one length. A float that is NaN is nothing.
Columns = Mapping[str, Sequence[Any]]

PARQUET = ".parquet"


class RowWriter(Protocol):
    """Writes rows to a table."""

    def write(self, columns: Columns) -> None:
        """Write rows, which have all columns that the table was opened with."""


@contextmanager
def row_writer(path: Location, columns: Mapping[str, type]) -> Iterator[RowWriter]:
    """Open a table, which appears when the block ends well: Parquet under that suffix, else CSV.

    Args:
        path: Where the table goes.
        columns: The types of the columns by name, in their order: int, float or str.

    Raises:
        UsageError: Parquet, and what writes it is not installed.
    """
    if path.suffix.lower() == PARQUET:
        with _parquet(path, columns) as writer:
            yield writer
    else:
        with atomic_text(path) as file:
            yield _Csv(file, columns)


class _Csv:
    def __init__(self, file: IO[str], columns: Mapping[str, type]) -> None:
        self._writer, self._columns = csv.writer(file, lineterminator="\n"), columns
        self._writer.writerow(columns)

    def write(self, columns: Columns) -> None:
        cells = [
            map(cell, columns[name]) if kind is float else columns[name] for name, kind in self._columns.items()
        ]
        self._writer.writerows(zip(*cells, strict=True))


@contextmanager
def _parquet(path: Location, columns: Mapping[str, type]) -> Iterator[RowWriter]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"writing {PARQUET} needs pyarrow: pip install 'rsp-tools[vector]'") from error
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])

    class Writer:
        def write(self, columns: Columns) -> None:
            arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]
            file.write_batch(pa.record_batch(arrays, schema=schema))

    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as file:
        yield Writer()
