"""Parquet files of the stages, read without what imports pandas."""

from pathlib import Path
from typing import Any


def read(file: Path, columns: list[str] | None = None) -> Any:
    """A Parquet file as a table, without the data set machinery of read_table, which imports pandas."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read(columns)


def rows_at(file: Path, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Rows of a Parquet file by their number; the others pass by in slices."""
    import pyarrow.parquet as pq

    found: dict[int, dict[str, Any]] = {}
    first = 0
    for batch in pq.ParquetFile(file).iter_batches(1024):
        for index in wanted & set(range(first, first + len(batch))):
            found[index] = batch.slice(index - first, 1).to_pylist()[0]
        first += len(batch)
    return found
