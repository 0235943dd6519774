"""What the tests of download share: files of rows, and what became of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tasks.config import DataConfig
from tasks.download.rows import write_rows
from tests.tiny import read_rows_file, write_jsonl


def download(tmp_path: Path, **fields: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows, ledger and facts."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    info = write_rows(DataConfig(**fields), out).model_dump()
    return read_rows_file(out / "rows.parquet"), pq.read_table(out / "ledger.parquet").to_pylist(), info


def splits(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["_id"]: row["_split"] for row in rows}


def write(file: Path, content: str | bytes) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def write_kind(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a .jsonl, .json, .csv or .parquet file, by its name."""
    kind = file.suffix[1:]
    if kind == "jsonl":
        return write_jsonl(file, rows)
    if kind == "json":
        file.write_text(json.dumps(rows, indent=1))
        return file
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, file) if kind == "parquet" else pa.csv.write_csv(table, file)
    return file
