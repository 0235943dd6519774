"""Which type a column has, as far as it has been read."""

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from tasks.download.schema import ID, SPLIT
from tasks.errors import UserError

NUMBERS = (int, float, bool)
OWN = {ID: pa.field(ID, pa.string()), SPLIT: pa.field(SPLIT, pa.string())}
UNFIT = (pa.ArrowException, UnicodeError, OverflowError)
"""What Arrow raises for a value that a column cannot hold."""
MOST_FIELDS = 5_000
"""Fields of one column's objects, those inside counted: every row would hold them all."""
MOST_LEVELS = 50
"""Lists and objects in each other: Parquet and Python end somewhere above a hundred."""
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
        if _is_deep(array.type):
            raise UserError(
                f"data: column {name} holds lists or objects more than {MOST_LEVELS} deep in each other; "
                "write such values as JSON text."
            )
        if _has_empty(array.type):  # Parquet has no object without fields: it is read as no value
            columns[name] = [_without_empty(value) for value in columns[name]]
            array = pa.array(columns[name])
        return array
    except UNFIT:
        if name in OWN:
            return OWN[name].type
        kinds = Counter(type(value) for value in columns[name] if value is not None)
        if kinds.keys() <= {str, *NUMBERS} and (str in kinds or any(map(_is_large, columns[name]))):
            return pa.string()
        kind = kinds.most_common(1)[0][0]
        return pa.string() if kind is str else _first_type(v for v in columns[name] if type(v) is kind)


def as_text(value: Any) -> Any:
    """A number in a column of text as its text, a whole one without `.0`; other values as they are."""
    if type(value) is float and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value) if type(value) in NUMBERS else value


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_large(value: Any) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**63


def _is_deep(kind: pa.DataType) -> bool:
    level = [kind]
    for _ in range(MOST_LEVELS):
        structs = [field.type for kind in level if pa.types.is_struct(kind) for field in kind]
        level = structs + [kind.value_type for kind in level if pa.types.is_list(kind)]
    return bool(level)


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
    text = next((field for field in (known, found) if pa.types.is_string(field.type)), None)
    if text and any(map(_is_number, (known.type, found.type))):
        return text
    try:
        return pa.unify_schemas([pa.schema([known]), pa.schema([found])], promote_options="permissive").field(0)
    except pa.ArrowException:
        return known
