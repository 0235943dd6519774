"""What download writes: each row of the source as JSON text, with its id, split and group."""

import json
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
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
GROUP_ROWS, GROUP_BYTES = 10_000, 16 << 20


class RowsFile:
    """Writes rows.parquet row by row. One row group is in memory while a thread compresses the previous one."""

    def __init__(self, file: Path) -> None:
        self._writer = pq.ParquetWriter(file, ROW_SCHEMA, compression="zstd", use_dictionary=["split", "group"])
        self._known: list[tuple[str, str, str | None]] = []
        self._text, self._ends = bytearray(), array("i", [0])
        self._thread = ThreadPoolExecutor(1)
        self._packing: Future[None] | None = None

    def add(self, id: str, split: str, group: str | None, row: bytes) -> None:
        self._known.append((id, split, group))
        self._text += row
        self._ends.append(len(self._text))
        if len(self._known) >= GROUP_ROWS or len(self._text) >= GROUP_BYTES:
            self._write_group()

    def close(self, columns: list[str]) -> None:
        """Write the last rows. `columns`: the names that any row has."""
        self._write_group()
        if self._packing:
            self._packing.result()
        self._writer.add_key_value_metadata({COLUMNS: json.dumps(columns)})
        self._writer.close()

    def _write_group(self) -> None:
        if self._packing:
            self._packing.result()
        if self._known:
            arrays: list[pa.Array] = [pa.array(column, pa.string()) for column in zip(*self._known, strict=True)]
            ends, text = pa.py_buffer(self._ends), pa.py_buffer(self._text)
            arrays.append(pa.StringArray.from_buffers(len(self._known), ends, text))
            table = pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)
            self._packing = self._thread.submit(self._writer.write_table, table)
            self._known, self._text, self._ends = [], bytearray(), array("i", [0])


def columns_of(file: pq.ParquetFile) -> set[str]:
    """The names that any row of rows.parquet has."""
    return set(json.loads((file.metadata.metadata or {}).get(COLUMNS.encode(), b"[]")))


def absent_left_out(value: Any) -> Any:
    """A value without the names whose value is null."""
    if isinstance(value, dict):
        return {name: absent_left_out(item) for name, item in value.items() if item is not None}
    return [absent_left_out(item) for item in value] if isinstance(value, list) else value
