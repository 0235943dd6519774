"""Rows of a CSV table."""

import csv
import functools
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from tasks.download.formats import blocks
from tasks.download.formats.blocks import BadRow, Block, Row
from tasks.download.places import Place
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
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    try:
        header = _header(next(reader, None), place)
    except csv.Error as error:
        why = TOO_LONG if lines.too_long else error
        raise UserError(f"{place.shown} has no line of column names that can be read: {why}.") from error
    rows = _rows(reader, lines, header, place)
    while block := list(_together(rows)):
        yield block


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


def _together(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The rows of a block."""
    size = 0
    for row in islice(rows, blocks.BLOCK_ROWS):
        yield row
        size += 0 if isinstance(row, BadRow) else sum(map(len, row.values()))
        if size > blocks.BLOCK_BYTES:
            return


def _header(header: list[str] | None, place: Place) -> list[str]:
    if not header:
        raise UserError(f"{place.shown} is empty; a .csv file starts with a line of column names.")
    header = [name.strip() for name in header]
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise UserError(f"{place.shown} has two columns called {twice[0]!r}; every column needs a name of its own.")
    if len(header) == 1 and (sign := next((sign for sign in ";\t|" if sign in header[0]), "")):
        raise UserError(f"{place.shown} has columns between {sign!r}; a .csv file has them between commas.")
    if not _is_text(header):
        raise UserError(f"{place.shown} is not UTF-8 in its first line; write the file as UTF-8.")
    return header


def _rows(reader: Any, lines: _Lines, header: list[str], place: Place) -> Iterator[Row | BadRow]:
    while True:
        began = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):
                raise UserError(f"{place.shown} has a quote in line {began} or later that never closes.") from error
            where = _where(place, began, reader)  # the number of rows in these lines is unknown
            why, lines.too_long = TOO_LONG if lines.too_long else error, False
            yield from (BadRow(f"{where} cannot be read as CSV: {why}") for _ in range(began, reader.line_num + 1))
            continue
        if values is None:
            return
        if values == header:
            yield BadRow(f"{_where(place, began, reader)} repeats the line of column names")
        elif len(values) == len(header):
            if _is_text(values):
                yield dict(zip(header, values, strict=True))
            else:
                yield BadRow(f"{_where(place, began, reader)} is not UTF-8")
        elif values:
            where = _where(place, began, reader)
            yield BadRow(f"{where} has {len(values)} values for {len(header)} columns")


def _where(place: Place, began: int, reader: Any) -> str:
    """The line numbers of a row, which spans several lines if a quoted value has line ends."""
    to = f" to {reader.line_num}" if reader.line_num > began else ""
    return f"{place.name} line {began}{to}"


def _is_text(values: list[str]) -> bool:
    text = "".join(values)
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
