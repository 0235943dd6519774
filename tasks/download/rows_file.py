"""rows.parquet while it is written."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.download.schema import COLUMNS, ROW_SCHEMA

GROUP_ROWS, GROUP_BYTES = 10_000, 16 << 20


class RowsFile:
    """Takes rows one by one. One row group is in memory while the previous one is compressed."""

    def __init__(self, file: Path) -> None:
        self._writer = pq.ParquetWriter(file, ROW_SCHEMA, compression="zstd", use_dictionary=["split", "group"])
        self._rows: list[tuple[str, str, str | None, bytes]] = []
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1)
        self._packing: Future[None] | None = None

    def add(self, id: str, split: str, group: str | None, row: bytes) -> None:
        self._rows.append((id, split, group, row))
        self._bytes += len(row)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
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
        if self._rows:
            *known, rows = zip(*self._rows, strict=True)
            arrays = [
                *(pa.array(column, pa.string()) for column in known),
                pa.array(rows, pa.binary()).view(pa.string()),
            ]
            table = pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)
            self._packing = self._thread.submit(self._writer.write_table, table)
            self._rows, self._bytes = [], 0
