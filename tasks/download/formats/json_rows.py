"""Rows of JSON: one object a line, or one list of objects."""

import io
import json
import math
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
import orjson

from tasks.download.formats import blocks
from tasks.download.formats.blocks import BadRow, Block, Row, in_blocks
from tasks.download.places import Place
from tasks.errors import UserError

BOM = b"\xef\xbb\xbf"
DECODER = json.JSONDecoder(parse_constant=lambda name: None)
"""NaN and infinity, which JSON does not have, become null."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, none of whose names stands twice; Python's reader would drop the first value."""
    if len(found := dict(pairs)) < len(pairs):
        twice = next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n]))
        raise ValueError(f"an object has two values for {twice!r}")
    return found


def finite(number: str) -> float | None:
    return value if math.isfinite(value := float(number)) else None  # 1e999


UNIQUE = json.JSONDecoder(parse_constant=lambda name: None, parse_float=finite, object_pairs_hook=unique)


def _names_twice(text: bytes, value: Any) -> bool:
    """Whether a text may have more names than the value read from it: it has more quotes than that takes."""
    try:
        written = orjson.dumps(value)
    except TypeError:  # of large numbers and half characters
        return True
    return _quotes(text) > _quotes(written)


def _quotes(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord('"')))  # bytes.count takes five times as long


def json_lines(stream: BinaryIO, place: Place) -> Iterator[Block]:
    number = 1
    for text in _whole_lines(stream):
        text = text.removeprefix(BOM) if number == 1 else text
        if (rows := _read_together(text)) is None:
            named = enumerate(text.split(b"\n"), number)
            rows = [_row(line, f"{place.name} line {n}") for n, line in named if line and line.strip()]
        yield rows
        if number == 1 and place.name.lower().endswith((".json", ".json.gz", ".json.zst")):
            _check_lines(text.split(b"\n"), place)
        number += 1 + text.count(b"\n")


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """All lines, in chunks of about BLOCK_BYTES. The end of a line beyond LONGEST_LINE is skipped."""
    while chunk := stream.read(blocks.BLOCK_BYTES):
        rest = stream.readline(blocks.LONGEST_LINE + 1)
        yield chunk + rest.removesuffix(b"\n") if rest else chunk.removesuffix(b"\n")
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(blocks.LONGEST_LINE)


def _read_together(text: bytes) -> Block | None:
    """Many lines at once with a 0 between them, which is twice as fast as one by one. None if a line is wrong."""
    together = b"[%b]" % text.replace(b"\n", b",0,")
    try:
        values = DECODER.decode(together.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    rows = values[::2]
    if len(values) != 2 * text.count(b"\n") + 1 or any(values[1::2]) or not all(type(row) is dict for row in rows):
        return None
    return None if _names_twice(together, rows) else cast(Block, rows)


def _row(text: bytes, where: str) -> Row | BadRow:
    if len(text) > blocks.LONGEST_LINE:
        return BadRow(f"{where} is longer than {blocks.LONGEST_LINE:,} bytes")
    try:
        value = UNIQUE.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"{where} is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"{where} is not JSON: {error}")
    return value if isinstance(value, dict) else BadRow(f"{where} is not an object of columns")


def _check_lines(lines: list[bytes], place: Place) -> None:
    """A .json file that begins with an object has a row on each line; refuse one object that contains the rows."""
    filled = [line for line in lines if line.strip()]
    try:
        value = json.loads(filled[0])
    except (ValueError, RecursionError):
        value = None
    wraps = len(filled) == 1 and isinstance(value, dict) and any(isinstance(v, list) for v in value.values())
    if wraps or not isinstance(value, dict):
        raise UserError(
            f"{place.shown} begins with one object; a .json file takes a list of objects, or one object a line. "
            "If that object is a row, name the file .jsonl."
        )


def json_list(stream: BinaryIO, place: Place) -> Iterator[Block]:
    """One list of objects, read object by object."""
    try:
        yield from in_blocks(_items(io.TextIOWrapper(stream, "utf-8-sig"), place))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place.shown} is not one JSON list: {error}.") from error


def _items(text: io.TextIOWrapper, place: Place) -> Iterator[tuple[Row | BadRow, int]]:
    """The objects of a list, each with its length."""
    number, at, want = 0, 0, blocks.BLOCK_BYTES
    held = text.read(want).lstrip(" \t\r\n")
    if held[:1] != "[":
        raise ValueError("it takes a list of objects, or one object a line")
    held = held[1:]
    while True:
        while held[at : at + 1] and held[at] in (", \t\r\n" if number else " \t\r\n"):
            at += 1
        if held[at : at + 1] == "]":
            break
        try:
            value, end = DECODER.raw_decode(held, at)
            if end == len(held) and not isinstance(value, dict | list | str):  # a number may go on
                raise ValueError("it ends within the list")
        except ValueError as error:
            more = text.read(want)
            if not more:
                raise ValueError(f"item {number + 1}: {error}") from error
            held, at, want = held[at:] + more, 0, want * 2
            if len(held) > blocks.LONGEST_LINE:
                raise ValueError(f"item {number + 1} is longer than {blocks.LONGEST_LINE:,} characters") from error
            continue
        item, number, at, want = held[at:end].encode("utf-8", "surrogatepass"), number + 1, end, blocks.BLOCK_BYTES
        fits = isinstance(value, dict) and not _names_twice(item, value)
        yield value if fits else _row(item, f"{place.name} item {number}"), len(item)
    if held[at + 1 :].strip() or text.read(64).strip():
        raise ValueError("something follows the list")
