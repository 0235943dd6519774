"""Slices of the held-out rows: by columns of the data, by length of the prompt, by whether it was shortened."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.download.schema import ROWS, columns_of
from tasks.errors import UserError
from tasks.evaluation.facts import WATCH
from tasks.evaluation.schema import prediction_schema
from tasks.store.ledger import LEDGER

LENGTH, SHORTENED = "prompt_tokens", "shortened"
PARTS = 4
"""Number of slices by length, with about the same number of rows each."""
MOST = 20
"""Most values of a column that get a slice; the most frequent ones do."""


def check_slices(rows: Path | None, columns: Sequence[str], metrics: Sequence[str]) -> None:
    """Raises UserError if the data (the folder of the download stage) has no such column, or its name is taken."""
    own = {*prediction_schema(metrics).names, LENGTH, SHORTENED, WATCH}
    there = columns_of(pq.ParquetFile(rows / ROWS)) if rows and columns else set()
    for column in columns:
        if column in own:
            raise UserError(f"evaluation.slices: {column} is a name that predictions.parquet has itself; rename it.")
        if column not in there:
            raise UserError(f"evaluation.slices: no row has a column {column!r}; there are {', '.join(sorted(there))}.")


def add_slices(rows: list[dict[str, Any]], tokens: Path, source: Path | None, columns: Sequence[str]) -> None:
    """Write the slice values of each column, of LENGTH and of SHORTENED into every row.

    Args:
        rows: with id and prompt_ids.
        tokens, source: folders of the stages tokenize and download.
    """
    values: dict[str, dict[str, Any]] = {}
    if source and columns:
        table = pq.read_table(source / ROWS, columns=["id", "row"], filters=pc.field("split") == "test")
        pairs = zip(table["id"].to_pylist(), table["row"].to_pylist(), strict=True)
        values = {id: json.loads(row) for id, row in pairs}
    ledger = tokens / LEDGER
    changed = set(pq.read_table(ledger, filters=pc.field("verdict") == "changed")["id"].to_pylist())
    lengths = sorted(len(row["prompt_ids"]) for row in rows)
    ends = sorted({lengths[(part + 1) * len(lengths) // PARTS - 1] for part in range(PARTS) if len(lengths) >= PARTS})
    for row in rows:
        length = len(row["prompt_ids"])
        place = next((n for n, end in enumerate(ends) if length <= end), 0)
        row[LENGTH] = f"{ends[place - 1] + 1 if place else lengths[0]}–{ends[place]}" if ends else "all"
        row[SHORTENED] = "yes" if row["id"] in changed else "no"
        for column in columns:
            value = values[row["id"]].get(column)
            row[column] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def slices_of(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[tuple[str, str, list[int]]]:
    """Column, value and row numbers of each slice; a column with a single value has no slices."""
    found = []
    for column in (*columns, LENGTH, SHORTENED):
        counts = Counter(row[column] for row in rows)
        for value, _ in counts.most_common(MOST) if len(counts) > 1 else ():
            found.append((column, value, [n for n, row in enumerate(rows) if row[column] == value]))
    return found
