"""Rows of JSON: one object a line, or one list of objects."""

import io
import json
from collections.abc import Iterator
from typing import BinaryIO, cast

from tasks.download.formats import blocks
from tasks.download.formats.blocks import BadRow, Block, Row
from tasks.download.places import Place
from tasks.errors import UserError

BOM = b"\xef\xbb\xbf"
DECODER = json.JSONDecoder(parse_constant=lambda name: None)
"""NaN and infinity, which JSON does not have, become null."""


def json_lines(stream: BinaryIO, place: Place) -> Iterator[Block]:
    number = 0
    for lines in _lines(stream):
        for start in range(0, len(lines), blocks.BLOCK_ROWS):
            part = lines[start : start + blocks.BLOCK_ROWS]
            yield _parsed(part, place, number + start + 1)
        if not number and place.name.lower().endswith((".json", ".json.gz", ".json.zst")):
            _check_lines(lines, place)
        number += len(lines)


def _lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """All lines, in chunks of about BLOCK_BYTES. The end of a line beyond LONGEST_LINE is skipped."""
    rest: list[bytes] = []
    held = 0
    while chunk := stream.read(blocks.BLOCK_BYTES):
        first, newline, tail = chunk.partition(b"\n")
        if held <= blocks.LONGEST_LINE:
            rest.append(first)
            held += len(first)
        if newline:
            *lines, last = tail.split(b"\n")
            yield [b"".join(rest), *lines]
            rest, held = [last], len(last)
    if held:
        yield [b"".join(rest)]


def _parsed(lines: list[bytes], place: Place, first: int) -> Block:
    """Many lines at once with a 0 between them, which is twice as fast as one by one. One by one if a line is wrong."""
    if first == 1:
        lines[0] = lines[0].removeprefix(BOM)
    if b"" not in lines:
        try:
            values = DECODER.decode((b"[" + b",0,".join(lines) + b"]").decode("utf-8"))
        except (ValueError, RecursionError):
            values = []
        rows = values[::2]
        if len(values) == 2 * len(lines) - 1 and all(type(row) is dict for row in rows) and not any(values[1::2]):
            return cast(Block, rows)
    return [
        _row(line, f"{place.name} line {number}") for number, line in enumerate(lines, first) if line and line.strip()
    ]


def _row(text: bytes, where: str) -> Row | BadRow:
    if len(text) > blocks.LONGEST_LINE:
        return BadRow(f"{where} is longer than {blocks.LONGEST_LINE:,} bytes")
    try:
        value = DECODER.decode(text.decode("utf-8"))
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
    text = io.TextIOWrapper(stream, "utf-8-sig")
    decode = DECODER.raw_decode
    number, want = 0, blocks.BLOCK_BYTES
    block: Block = []
    try:
        held = text.read(blocks.BLOCK_BYTES)
        at = _skip(held, 0, " \t\r\n") + 1
        if held[at - 1 : at] != "[":
            raise ValueError("it takes a list of objects, or one object a line")
        while True:
            at = _skip(held, at, ", \t\r\n" if number else " \t\r\n")
            if held[at : at + 1] == "]":
                break
            try:
                value, end = decode(held, at)
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
            number, at, want = number + 1, end, blocks.BLOCK_BYTES
            where = f"{place.name} item {number}"
            block.append(value if isinstance(value, dict) else BadRow(f"{where} is not an object of columns"))
            if len(block) >= blocks.BLOCK_ROWS:
                yield block
                block = []
        if held[at + 1 :].strip() or text.read(64).strip():
            raise ValueError("something follows the list")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place.shown} is not one JSON list: {error}.") from error
    yield block


def _skip(text: str, at: int, signs: str) -> int:
    while at < len(text) and text[at] in signs:
        at += 1
    return at
