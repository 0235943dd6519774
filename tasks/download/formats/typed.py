"""Rows of a typed table (Parquet, Arrow, a data set on the Hub) as JSON values."""

import base64
import decimal
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.download.formats.blocks import Block

Convert = Callable[[Any], Any]


def typed_rows(table: pa.Table | pa.RecordBatch) -> Block:
    """The rows of a table. A struct has every name of its type: names without a value are left out, as in the row that
    it was made from.

    Raises:
        ValueError, OverflowError: Python has no such value, for instance a time after the year 9999.
    """
    converts = {field.name: convert for field in table.schema if (convert := _convert(field.type))}
    try:
        rows = table.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        raise ValueError("a map has two values for one name") from error
    for name, convert in converts.items():
        for row in rows:
            row[name] = convert(row[name])
    return rows


def _convert(kind: pa.DataType) -> Convert | None:
    """The function that converts values of a type to JSON; None if they need no conversion."""
    types = pa.types
    if isinstance(kind, pa.JsonType):
        return lambda value: value if value is None else json.loads(value)
    if isinstance(kind, pa.BaseExtensionType):
        return _convert(kind.storage_type) or _scalar
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _convert(kind.value_type)
    if types.is_map(kind):
        item = _convert(kind.item_type) or _same
        return lambda value: value and {str(_scalar(name)): item(inside) for name, inside in value.items()}
    if types.is_struct(kind):
        items = {field.name: _convert(field.type) or _same for field in kind}
        return lambda value: (
            value and {name: items[name](inside) for name, inside in value.items() if inside is not None}
        )
    if hasattr(kind, "value_type"):  # every kind of list
        item_of = _convert(kind.value_type)
        return item_of and (lambda value: value and [item_of(inside) for inside in value])
    if types.is_float16(kind) or types.is_float32(kind):  # 0.1, and not 0.10000000149011612
        return lambda value: _scalar(value if value is None else float(str(np.float32(value))))
    if any(is_plain(kind) for is_plain in (types.is_integer, types.is_boolean, types.is_null, types.is_unicode)):
        return None
    return None if types.is_large_string(kind) or types.is_string_view(kind) else _scalar


def _same(value: Any) -> Any:
    return value


def _scalar(value: Any) -> Any:
    """A scalar: NaN and infinity become None, dates ISO text, bytes their UTF-8 text or base64."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, list | dict | tuple):
        raise ValueError(f"{str(value)[:40]} is of a type that JSON does not have")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
