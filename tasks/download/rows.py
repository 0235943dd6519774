"""Source rows → rows.parquet: every row gets an id and a side, train or test, that it keeps in every later run."""

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import DataConfig
from tasks.download.schema import ID, ROWS, SPLIT
from tasks.download.sources import BadRow, Row, find_files, hub_splits, read_file, read_hub
from tasks.errors import UserError
from tasks.store.ledger import Ledger

BATCH = 10_000
UNFIT = (pa.ArrowException, UnicodeError, OverflowError)
"""What Arrow raises for a value that a column cannot hold."""

Reader = Callable[[], Iterator[Row | BadRow]]


def write_rows(data: DataConfig, folder: Path) -> dict[str, Any]:
    """Read the source and write rows.parquet and ledger.parquet.

    Returns:
        counts for the manifest: rows, train, test, unused, columns, and what the ledger says.
    Raises:
        UserError: the source cannot be read, or leaves a side empty.
    """
    ledger = Ledger("download", folder)
    counts = {"train": 0, "test": 0, "unused": 0}
    parts = source_parts(data)
    schema = _schema(parts)
    _check_columns(data, schema)
    with pq.ParquetWriter(folder / ROWS, schema, compression="zstd") as writer:
        rows = _sided(parts, data, ledger, counts)
        while batch := list(islice(rows, BATCH)):
            writer.write_table(_table(batch, schema, ledger, counts))
    for side, field in (("train", "data.path"), ("test", "data.test_share or data.test_path")):
        if not counts[side]:
            raise UserError(
                f"data: none of the rows read is left for the {side} side; look at {field}{_why(data, ledger, counts)}."
            )
    total = counts["train"] + counts["test"]
    return {"rows": total, **counts, "columns": [n for n in schema.names if n != ID], **ledger.write()}


def source_parts(data: DataConfig) -> list[tuple[str, Reader]]:
    """The source as (side, reader) parts; side is empty where the rows themselves decide."""
    if data.hub_id:
        names = {data.train_split: "train", data.test_split: "test"}
        there = hub_splits(data)
        if data.train_split not in there:
            raise UserError(
                f"data.train_split: {data.hub_id} has no split {data.train_split!r}, only {', '.join(there)}."
            )
        given = data.test_split in there
        return [
            (side if given else "", functools.partial(read_hub, data, split))
            for split, side in names.items()
            if split in there
        ]
    files = [("", path) for path in find_files(data.path, "data.path")]
    by_name = {data.train_split: "train", data.test_split: "test"}
    if data.test_path:
        files = [("train", path) for _, path in files]
        files += [("test", path) for path in find_files(data.test_path, "data.test_path")]
    elif {path.stem for _, path in files} >= set(by_name):
        files = [(by_name.get(path.stem, "unused"), path) for _, path in files]
    return [(side, functools.partial(read_file, path)) for side, path in files]


def _sided(parts: list[tuple[str, Reader]], data: DataConfig, ledger: Ledger, counts: dict[str, int]) -> Iterator[Row]:
    seen: set[bytes] = set()
    for part_side, rows in parts:
        for row in rows():
            if isinstance(row, BadRow):
                ledger.lost("", part_side, "unreadable", row)
                continue
            given = row.get(data.id_column)
            id = str(given) if given not in (None, "") else _content_id(row)
            side = part_side or _side(row, id, data)
            mark = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=12).digest()
            if mark in seen:
                ledger.lost(id, side, "duplicate id", f"an earlier row has {data.id_column} {id!r}")
                continue
            seen.add(mark)
            if side == "train" and data.max_train_rows and counts["train"] >= data.max_train_rows:
                side = "unused"
            counts[side] += 1
            if side != "unused":
                yield {**row, ID: id, SPLIT: side}


def _side(row: Row, id: str, data: DataConfig) -> str:
    """A `split` column decides; without one a hash of the group or id does, the same for ever."""
    if SPLIT in row:
        return {data.train_split: "train", data.test_split: "test"}.get(str(row[SPLIT]), "unused")
    own = row.get(data.group_column) if data.group_column else None
    group = id if own in (None, "") else str(own)  # rows without a group are no group
    share = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    return "test" if share < data.test_share else "train"


def _check_columns(data: DataConfig, schema: pa.Schema) -> None:
    """A column that is asked for by name is there; the default `id` may be absent."""
    there = [name for name in schema.names if name != ID]
    optional = {"", DataConfig.model_fields["id_column"].default}
    for field, name in (("id_column", data.id_column), ("group_column", data.group_column)):
        if name not in optional and name not in there:
            raise UserError(f"data.{field}: no column is called {name}; the data has {', '.join(there)}.")


def _why(data: DataConfig, ledger: Ledger, counts: dict[str, int]) -> str:
    """What became of the rows instead, as far as it is known."""
    if ledger.first_lost:
        return f"; {ledger.counts['lost']:,} were lost, the first: {ledger.first_lost[0]}"
    if counts["unused"]:
        return f"; {counts['unused']:,} are of no split called {data.train_split!r} or {data.test_split!r}"
    return ""


def _content_id(row: Row) -> str:
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _table(batch: list[Row], schema: pa.Schema, ledger: Ledger, counts: dict[str, int]) -> pa.Table:
    """The rows as a table; a row with a value that its column cannot hold goes into the ledger."""
    try:
        return pa.Table.from_pylist(batch, schema)
    except UNFIT:
        good = []
        for row in batch:
            if wrong := _misfit(row, schema):
                ledger.lost(row[ID], row[SPLIT], "wrong value", wrong)
                counts[row[SPLIT]] -= 1
            else:
                good.append(row)
        return pa.Table.from_pylist(good, schema)


def _misfit(row: Row, schema: pa.Schema) -> str:
    """Which value does not fit its column, empty when all do."""
    for field in schema:
        value = row.get(field.name)
        try:
            pa.array([value], field.type)
        except UnicodeError:
            return f"column {field.name} holds a lone surrogate, which is no character: {value!r}"
        except UNFIT:
            return f"column {field.name} takes {field.type}, not {value!r}"
    return ""


def _schema(parts: list[tuple[str, Reader]]) -> pa.Schema:
    """Columns of all rows together, each of the type that most of its values have."""
    fields: dict[str, pa.Field] = {}
    for _, rows in parts:
        good = (row for row in rows() if not isinstance(row, BadRow))
        while batch := list(islice(good, BATCH)):
            for name in dict.fromkeys(name for row in batch for name in row):
                found = pa.field(name, _type_of([row.get(name) for row in batch]))
                fields[name] = _unified(fields.get(name, found), found)
    if ID in fields:
        raise UserError(f"data: a column is called {ID}, which this stage adds itself; rename it in the source.")
    own = [pa.field(ID, pa.string()), pa.field(SPLIT, pa.string())]
    return pa.schema([field for name, field in fields.items() if name not in (ID, SPLIT)] + own)


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except UNFIT:
        kinds = Counter(type(value) for value in values if value is not None)
        kind = kinds.most_common(1)[0][0]
        return pa.string() if kind is str else _first_type([value for value in values if type(value) is kind])


def _first_type(values: list[Any]) -> pa.DataType:
    """The type of as many values as go together with the first."""
    found = pa.null()
    for value in values:
        with contextlib.suppress(*UNFIT):
            found = _unified(pa.field("", found), pa.field("", pa.array([value]).type)).type
    return found


def _unified(known: pa.Field, found: pa.Field) -> pa.Field:
    """A type that holds both; the known one where there is none."""
    try:
        return pa.unify_schemas([pa.schema([known]), pa.schema([found])], promote_options="permissive").field(0)
    except pa.ArrowException:
        return known
