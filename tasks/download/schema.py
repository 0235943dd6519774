"""What download writes: each row of the source as JSON text, with its id, split and group."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = "rows.parquet"
ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # the id column as text, or a digest of the row's content
        ("split", pa.string()),  # `train` or `test`
        ("group", pa.string()),  # a digest of the row's group; null: it has none
        ("row", pa.string()),  # one JSON object: names in their order, whole numbers and fractions as they were
    ]
)
COLUMNS = "columns"
"""Key of the file's metadata: the names that any row has, a JSON list."""
CONTENT = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
"""A row as text, equal for equal content."""


def columns_of(file: pq.ParquetFile) -> set[str]:
    """The names that any row of rows.parquet has."""
    return set(json.loads((file.metadata.metadata or {}).get(COLUMNS.encode(), b"[]")))


def absent_left_out(value: Any) -> Any:
    """A value without the names whose value is null."""
    if isinstance(value, dict):
        return {name: absent_left_out(item) for name, item in value.items() if item is not None}
    return [absent_left_out(item) for item in value] if isinstance(value, list) else value
