"""Reads Parquet files of the stages without importing pandas."""

from pathlib import Path
from typing import Any


def read(file: Path, columns: list[str] | None = None) -> Any:
    """A Parquet file as a table. `pyarrow.parquet.read_table` would import pandas."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read(columns)


def rows_at(file: Path, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Rows of a Parquet file by their number, without reading the whole file into memory."""
    import pyarrow.parquet as pq

    found: dict[int, dict[str, Any]] = {}
    first = 0
    for batch in pq.ParquetFile(file).iter_batches(1024):
        for index in wanted & set(range(first, first + len(batch))):
            found[index] = batch.slice(index - first, 1).to_pylist()[0]
        first += len(batch)
    return found
