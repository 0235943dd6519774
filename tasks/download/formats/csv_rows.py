"""Rows of a CSV table."""

import csv
import functools
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from tasks.download.formats import blocks
from tasks.download.formats.blocks import BadRow, Block, Row, in_blocks
from tasks.download.places import Place, check_names
from tasks.errors import UserError

csv.field_size_limit(blocks.LONGEST_LINE)
LINE_ENDS = ("\n", "\r")
NO_CSV = '"x"x\n'
"""A line that csv refuses, inside and outside of quotes."""
TOO_LONG = f"it is longer than {blocks.LONGEST_LINE >> 20} MiB"


def csv_rows(stream: BinaryIO, place: Place) -> Iterator[Block]:
    """Rows of a table whose first line has the column names. Every value stays text: `007` is not 7.

    Raises:
        UserError: the first line is no header, or a quote never closes, so that what follows it is not known.
    """
    # invalid UTF-8 becomes surrogates, so that a row is lost and not the file
    lines = _Lines(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
    reader = csv.reader(lines, strict=True)
    try:
        header = _header(next(reader, None), place)
    except csv.Error as error:
        why = TOO_LONG if lines.too_long else error
        raise UserError(f"{place.shown} has no line of column names that can be read: {why}.") from error
    yield from in_blocks(_rows(reader, lines, header, place))


class _Lines:
    """The lines of a text. The end of a line beyond LONGEST_LINE is skipped, and `too_long` is set."""

    too_long = False

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def __iter__(self) -> Iterator[str]:
        read = functools.partial(self._text.readline, blocks.LONGEST_LINE)
        for line in iter(read, ""):
            if len(line) == blocks.LONGEST_LINE and not line.endswith(LINE_ENDS):
                while (more := read()) and not more.endswith(LINE_ENDS):
                    pass
                self.too_long, line = True, NO_CSV
            yield line


def _header(header: list[str] | None, place: Place) -> list[str]:
    if not header:
        raise UserError(f"{place.shown} is empty; a .csv file starts with a line of column names.")
    header = [name.strip() for name in header]
    check_names(header, place)
    if len(header) == 1 and (sign := next((sign for sign in ";\t|" if sign in header[0]), "")):
        raise UserError(f"{place.shown} has columns between {sign!r}; a .csv file has them between commas.")
    if not _is_text(header):
        raise UserError(f"{place.shown} is not UTF-8 in its first line; write the file as UTF-8.")
    return header


def _rows(reader: Any, lines: _Lines, header: list[str], place: Place) -> Iterator[tuple[Row | BadRow, int]]:
    """Rows, each with its size, or what is wrong with them, with the numbers of the lines that they span."""
    while True:
        began, wrong = reader.line_num + 1, ""
        values: list[str] = []
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise UserError(f"{place.shown} has a quote in line {began} or later that never closes.") from error
            wrong = f"cannot be read as CSV: {TOO_LONG if lines.too_long else error}"
            lines.too_long = False
        if values == header:
            wrong = "repeats the line of column names"
        elif values and len(values) != len(header):
            wrong = f"has {len(values)} values for {len(header)} columns"
        elif not _is_text(values):
            wrong = "is not UTF-8"
        if wrong:
            to = f" to {reader.line_num}" if reader.line_num > began else ""
            # how many rows are in lines that cannot be read is unknown: each line counts
            for _ in range(1 if values else reader.line_num - began + 1):
                yield BadRow(f"{place.name} line {began}{to} {wrong}"), 0
        elif values:
            yield dict(zip(header, values, strict=True)), sum(map(len, values))


def _is_text(values: list[str]) -> bool:
    text = "".join(values)
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
