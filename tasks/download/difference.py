"""The difference between two downloads: rows added, removed and changed, by id and content."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.download.facts import DifferenceFacts
from tasks.download.schema import CONTENT, ROWS, absent_left_out

DIFFERENCE = "difference.parquet"
DIFFERENCE_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("what", pa.string())])


def write_difference(before: Path, now: Path, folder: Path) -> DifferenceFacts:
    """Compare two download folders. difference.parquet gets a line for every row that is not the same in both.

    A row without an id is identified by its content: when that changes, one row is removed and one is added.
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
    """A hash of the id and a hash of the content of every row."""
    ids: list[bytes] = []
    content: list[bytes] = []
    for batch in pq.ParquetFile(file).iter_batches(4096, columns=["id", "row"]):
        ids.append(b"".join(map(_mark, batch["id"].to_pylist())))
        # a new column does not change the rows that have no value in it
        content.append(b"".join(_mark(CONTENT(absent_left_out(json.loads(row)))) for row in batch["row"].to_pylist()))
    return np.frombuffer(b"".join(ids), np.uint64), np.frombuffer(b"".join(content), np.uint64)


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _names(file: Path, wanted: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Id and split of the wanted rows."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(columns=["id", "split"]):
        yield batch.filter(pa.array(wanted[start : start + len(batch)]))
        start += len(batch)
