"""A row as it is stored: which text is cleaned, and which makes the row unusable."""

import json
import re
from typing import Any

import orjson

from tasks.download.formats.blocks import Row

LONGEST_FIELD = 10_000_000
"""Characters of one text: twice what the longest row that can be learnt (1,048,576 tokens) holds."""
TEXT_CONTROLS = "\t\n\r\f\x1b"
"""Control characters that occur in code and terminal logs. All others come from broken conversions."""
CONTROLS = {code: None for code in (*range(32), 127) if chr(code) not in TEXT_CONTROLS}
ESCAPES = re.compile(rb"\\(?:b|u00)")
"""Escapes of control characters in JSON."""
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def stored(row: Row) -> tuple[bytes, list[tuple[str, int]]]:
    """A row as JSON in UTF-8, and the columns with the number of control characters that were removed.

    Raises:
        ValueError: the reason why the row cannot be stored.
        RecursionError: it is nested too deeply.
    """
    text = _as_json(row)
    if len(text) <= LONGEST_FIELD and not (b"\\" in text and ESCAPES.search(text)) and b"\x7f" not in text:
        return text, []
    clean, removed = {}, []
    for name, value in row.items():
        try:
            clean[name], count = _mended(value)
        except ValueError as error:
            raise ValueError(f"column {name} {error}") from None
        removed += [(name, count)] if count else []
    return _as_json(clean), removed


def _as_json(row: Row) -> bytes:
    try:
        return orjson.dumps(row)  # infinity becomes null
    except TypeError:  # a whole number beyond 64 bits, half a character, many levels
        pass
    row = json.loads(json.dumps(row), parse_constant=lambda name: None)
    try:
        return COMPACT(row).encode()
    except UnicodeEncodeError as error:
        column = next(name for name in row if re.search("[\ud800-\udfff]", COMPACT({name: row[name]})))
        raise ValueError(f"column {column} holds a lone surrogate, which is no character") from error


def _mended(value: Any) -> tuple[Any, int]:
    """A value without control characters, and the number that was removed.

    Raises:
        ValueError: a text is too long.
    """
    if isinstance(value, str):
        if len(value) > LONGEST_FIELD:
            raise ValueError(f"has a text of {len(value):,} characters, and {LONGEST_FIELD:,} are the most")
        clean = value.translate(CONTROLS)
        return clean, len(value) - len(clean)
    if isinstance(value, dict):
        inside = {name: _mended(item) for name, item in value.items()}
        return {name: item for name, (item, _) in inside.items()}, sum(count for _, count in inside.values())
    if isinstance(value, list):
        items = [_mended(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0
