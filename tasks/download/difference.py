"""What changed between two downloads: rows added, removed and changed, by id and content."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.download.facts import DifferenceFacts
from tasks.download.schema import ENCODE, ID, ROWS, SPLIT

DIFFERENCE = "difference.parquet"
DIFFERENCE_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("what", pa.string())])


def write_difference(before: Path, now: Path, folder: Path) -> DifferenceFacts:
    """Compare two download folders; a line in difference.parquet for every row that is not the same in both.

    A row without an id of its own is named by its content: when that changes, it is one removed and one added.
    """
    old_ids, old_content = _marks(before / ROWS)
    ids, content = _marks(now / ROWS)
    order = np.argsort(old_ids, kind="stable")
    place = order[np.minimum(np.searchsorted(old_ids[order], ids), len(order) - 1)]
    there = old_ids[place] == ids
    changed = there & (old_content[place] != content)
    removed = ~np.isin(old_ids, ids)
    with pq.ParquetWriter(folder / DIFFERENCE, DIFFERENCE_SCHEMA, compression="zstd") as writer:
        for what, file, rows in (("added", now, ~there), ("removed", before, removed), ("changed", now, changed)):
            for names in _names(file / ROWS, rows):
                what_column = pa.array([what] * len(names), pa.string())
                writer.write_batch(pa.record_batch([*names.columns, what_column], schema=DIFFERENCE_SCHEMA))
    counts = {"added": int((~there).sum()), "removed": int(removed.sum()), "changed": int(changed.sum())}
    return DifferenceFacts(rows=sum(counts.values()), **counts, same=int((there & ~changed).sum()))


def _marks(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """For every row a number for its id and one for its content."""
    ids: list[bytes] = []
    content: list[bytes] = []
    for batch in pq.ParquetFile(file).iter_batches(4096):
        block = batch.to_pylist()
        ids.append(b"".join(_mark(row[ID]) for row in block))
        content.append(
            b"".join(_mark(ENCODE(_given({k: v for k, v in row.items() if k not in (ID, SPLIT)}))) for row in block)
        )
    return np.frombuffer(b"".join(ids), np.uint64), np.frombuffer(b"".join(content), np.uint64)


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _given(value: Any) -> Any:
    """A value without what is absent: a column that comes new to the table changes no row that has none of it."""
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _names(file: Path, wanted: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Id and side of the wanted rows."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(columns=[ID, SPLIT]):
        yield batch.filter(pa.array(wanted[start : start + len(batch)]))
        start += len(batch)
