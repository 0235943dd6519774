"""Which type a column has, as far as it has been read."""

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from tasks.download.schema import ID, SPLIT
from tasks.errors import UserError

OWN = {ID: pa.field(ID, pa.string()), SPLIT: pa.field(SPLIT, pa.string())}
UNFIT = (pa.ArrowException, UnicodeError, OverflowError)
"""What Arrow raises for a value that a column cannot hold."""
MOST_FIELDS = 5_000
"""Fields of one column's objects, those inside counted: every row would hold them all."""
Columns = dict[str, list[Any]]


def widened(schema: pa.Schema, guesses: dict[str, pa.Array | pa.DataType]) -> pa.Schema:
    """The schema with what a batch brings; ID and SPLIT stay last."""
    known = {field.name: field for field in schema}
    for name, guess in guesses.items():
        found = pa.field(name, guess.type if isinstance(guess, pa.Array) else guess)
        known[name] = _unified(known.get(name, found), found)
        if _fields(known[name].type) > MOST_FIELDS:
            raise UserError(
                f"data: column {name} holds objects of more than {MOST_FIELDS:,} different fields; "
                "write such objects as JSON text."
            )
    fields = [field for name, field in known.items() if name not in (ID, SPLIT)]
    return pa.schema([*fields, OWN[ID], OWN[SPLIT]], schema.metadata)


def guess(columns: Columns, name: str) -> pa.Array | pa.DataType:
    """A column as Arrow takes it, or else the type that most of its values have."""
    try:
        array = pa.array(columns[name], OWN[name].type if name in OWN else None)
        if _has_empty(array.type):  # Parquet has no object without fields: it is read as no value
            columns[name] = [_without_empty(value) for value in columns[name]]
            array = pa.array(columns[name])
        return array
    except UNFIT:
        if name in OWN:
            return OWN[name].type
        kinds = Counter(type(value) for value in columns[name] if value is not None)
        kind = kinds.most_common(1)[0][0]
        return pa.string() if kind is str else _first_type(v for v in columns[name] if type(v) is kind)


def _fields(kind: pa.DataType) -> int:
    if pa.types.is_struct(kind):
        return sum(1 + _fields(field.type) for field in kind)
    return _fields(kind.value_type) if pa.types.is_list(kind) else 0


def _has_empty(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return not kind.num_fields or any(_has_empty(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty(kind.value_type)


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_empty(item) for name, item in value.items()} or None
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _first_type(values: Iterable[Any]) -> pa.DataType:
    """The type of as many values as go together with the first."""
    found = pa.null()
    for value in values:
        with contextlib.suppress(*UNFIT):
            found = _unified(pa.field("", found), pa.field("", pa.array([_without_empty(value)]).type)).type
    return found


def _unified(known: pa.Field, found: pa.Field) -> pa.Field:
    """A type that holds both; the known one where there is none."""
    if known.type.equals(found.type):
        return known
    try:
        return pa.unify_schemas([pa.schema([known]), pa.schema([found])], promote_options="permissive").field(0)
    except pa.ArrowException:
        return known
