"""What a file holds, whatever it is called, and its rows in blocks: a dict a row, or why it could not be read."""

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, BinaryIO, cast

from tasks.download.places import ENDINGS, Place, trouble
from tasks.errors import UserError

BLOCK_ROWS = 10_000
BLOCK_BYTES = 8 << 20
LONGEST_LINE = 64 << 20
"""Bytes of a line: far above any row that can be learnt, so that a file without line ends does not fill the memory."""
BOM = b"\xef\xbb\xbf"
Row = dict[str, Any]
csv.field_size_limit(LONGEST_LINE)


class BadRow(str):
    """Stands in the place of a row that could not be read; the text says where and why."""


Block = list[Row | BadRow]


def read_file(place: Place, formats: Counter[str]) -> Iterator[Block]:
    """Rows of one file in order, in blocks of at most BLOCK_ROWS rows and about BLOCK_BYTES bytes.

    Args:
        formats: counts the formats that were recognised.
    Raises:
        UserError: the file as a whole cannot be read as what it is.
    """
    import pyarrow as pa  # here and below: `import flows.retrain` stays light

    try:
        with trouble(place.where, place.field) if place.remote else contextlib.nullcontext(), place.open() as file:
            stream = _unpacked(file, place)
            kind = _recognised(stream, place)
            formats[kind] += 1
            yield from READERS[kind](stream, place)
        place.check_unchanged()
    except (UserError, ConnectionError):
        raise
    except (EOFError, OSError, pa.ArrowException, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the file
            raise
        raise UserError(f"{place.shown} is cut short or damaged: {error}.") from error


def _unpacked(file: BinaryIO, place: Place) -> BinaryIO:
    """The file, through gzip or zstd where its first bytes say so."""
    head = _head(file)
    name = place.name.lower()
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), 1 << 20))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa

        return cast(BinaryIO, io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(file), "zstd"))))
    if head and name.endswith((".gz", ".zst")):
        raise UserError(f"{place.shown} is cut short or damaged: it is not packed as its name says.")
    return file


def _head(file: BinaryIO) -> bytes:
    return cast(io.BufferedReader, file).peek(64)


def _recognised(stream: BinaryIO, place: Place) -> str:
    """The format by the first bytes, and by the name where these leave it open."""
    head = _head(stream)
    text = head.removeprefix(BOM).lstrip()
    name = place.name.lower().removesuffix(".gz").removesuffix(".zst")
    named = next((kind for ending, kind in NAMES.items() if name.endswith(ending)), "")
    found = ""
    if head.startswith(b"PAR1"):
        found = "Parquet"
    elif head.startswith(b"ARROW1") or head.startswith(b"\xff\xff\xff\xff"):
        found = "Arrow"
    elif named != "CSV" and text.startswith(b"["):
        found = "JSON list"
    elif named != "CSV" and text.startswith(b"{"):
        found = "JSON lines"
    if found and named and found != named and not {found, named} <= {"JSON list", "JSON lines"}:
        raise UserError(f"{place.shown} holds {found} and is named like {named}; its name has to say what it holds.")
    if not found and named in ("Parquet", "Arrow") and head:
        raise UserError(f"{place.shown} is cut short or damaged: it does not begin like {named}.")
    if not (found or named):
        raise UserError(
            f"{place.field}: {place.shown} may be anything: it is none of JSON, Parquet or Arrow by its first bytes, "
            f"and its name ends in none of {', '.join(ENDINGS)}. Name it by what it holds."
        )
    return found or named


def _json_lines(stream: BinaryIO, place: Place) -> Iterator[Block]:
    number = 0
    for lines in _lines(stream):
        for start in range(0, len(lines), BLOCK_ROWS):
            part = lines[start : start + BLOCK_ROWS]
            yield _parsed(part, place, number + start + 1)
        if not number and place.name.lower().endswith((".json", ".json.gz", ".json.zst")):
            _check_lines(lines, place)
        number += len(lines)


def _lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """All lines in chunks of about BLOCK_BYTES. Of one beyond LONGEST_LINE, what is over is never held."""
    rest: list[bytes] = []
    held = 0
    while chunk := stream.read(BLOCK_BYTES):
        first, newline, tail = chunk.partition(b"\n")
        if held <= LONGEST_LINE:
            rest.append(first)
            held += len(first)
        if newline:
            *lines, last = tail.split(b"\n")
            yield [b"".join(rest), *lines]
            rest, held = [last], len(last)
    if held:
        yield [b"".join(rest)]


def _parsed(lines: list[bytes], place: Place, first: int) -> Block:
    """Many lines at once, with a 0 between them: twice as fast as one by one. One by one where a line is wrong."""
    if first == 1:
        lines[0] = lines[0].removeprefix(BOM)
    if b"" not in lines:
        try:
            values = json.loads((b"[" + b",0,".join(lines) + b"]").decode("utf-8"))
        except (ValueError, RecursionError):
            values = []
        rows = values[::2]
        if len(values) == 2 * len(lines) - 1 and all(type(row) is dict for row in rows) and not any(values[1::2]):
            return cast(Block, rows)
    return [
        _row(line, f"{place.name} line {number}") for number, line in enumerate(lines, first) if line and line.strip()
    ]


def _row(text: bytes, where: str) -> Row | BadRow:
    if len(text) > LONGEST_LINE:
        return BadRow(f"{where} is longer than {LONGEST_LINE:,} bytes")
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"{where} is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"{where} is not JSON: {error}")
    return value if isinstance(value, dict) else BadRow(f"{where} is not an object of columns")


def _check_lines(lines: list[bytes], place: Place) -> None:
    """A .json that begins with an object is lines of rows, or one object that holds the rows somewhere."""
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


def _json_list(stream: BinaryIO, place: Place) -> Iterator[Block]:
    """One list of objects, read object by object."""
    text = io.TextIOWrapper(stream, "utf-8-sig")
    decode = json.JSONDecoder().raw_decode
    number, want = 0, BLOCK_BYTES
    block: Block = []
    try:
        held = text.read(BLOCK_BYTES)
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
                if len(held) > LONGEST_LINE:
                    raise ValueError(f"item {number + 1} is longer than {LONGEST_LINE:,} characters") from error
                continue
            number, at, want = number + 1, end, BLOCK_BYTES
            where = f"{place.name} item {number}"
            block.append(value if isinstance(value, dict) else BadRow(f"{where} is not an object of columns"))
            if len(block) >= BLOCK_ROWS:
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


def _csv(stream: BinaryIO, place: Place) -> Iterator[Block]:
    """Every value stays text: `007` is not 7."""
    # what is no UTF-8 becomes half characters, so that it costs its row and not the file
    reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
    try:
        header = _header(next(reader, None), place)
        while block := list(islice(_csv_rows(reader, header, place), BLOCK_ROWS)):
            yield block
    except csv.Error as error:
        raise UserError(f"{place.shown} line {reader.line_num + 1} cannot be read as CSV: {error}.") from error


def _header(header: list[str] | None, place: Place) -> list[str]:
    if not header:
        raise UserError(f"{place.shown} is empty; a .csv file starts with a line of column names.")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise UserError(f"{place.shown} has two columns called {twice[0]!r}; every column needs a name of its own.")
    if len(header) == 1 and (sign := next((sign for sign in ";\t|" if sign in header[0]), "")):
        raise UserError(f"{place.shown} has columns between {sign!r}; a .csv file has them between commas.")
    if not _is_text(header):
        raise UserError(f"{place.shown} is not UTF-8 in its first line; write the file as UTF-8.")
    return header


def _csv_rows(reader: Any, header: list[str], place: Place) -> Iterator[Row | BadRow]:
    size = 0
    for values in reader:
        where = f"{place.name} line {reader.line_num}"
        if len(values) == len(header):
            if _is_text(values):
                yield dict(zip(header, values, strict=True))
            else:
                yield BadRow(f"{where} is not UTF-8")
        elif values:
            yield BadRow(f"{where} has {len(values)} values for {len(header)} columns")
        size += sum(map(len, values))
        if size > BLOCK_BYTES:
            return


def _is_text(values: list[str]) -> bool:
    text = "".join(values)
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _parquet(stream: BinaryIO, place: Place) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # a local file is read page by page; over the network that would fetch the same bytes again and again
        source = pa.PythonFile(stream) if place.remote else place.where
        for batch in pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=place.remote).iter_batches(1024):
            yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        if place.remote and not isinstance(error, pa.ArrowException):  # the network, not the file
            raise
        raise UserError(f"{place.shown} cannot be read as Parquet: {error}.") from error


def _arrow(stream: BinaryIO, place: Place) -> Iterator[Block]:
    """An Arrow file, or the stream that `datasets` saves under the same ending."""
    import pyarrow as pa

    if _head(stream).startswith(b"ARROW1"):
        reader = pa.ipc.open_file(pa.PythonFile(stream) if place.remote else pa.memory_map(place.where))
        batches: Iterator[Any] = (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(pa.PythonFile(stream)))
    for batch in batches:
        for start in range(0, len(batch), 1024):
            yield batch.slice(start, 1024).to_pylist()


NAMES = {".jsonl": "JSON lines", ".json": "JSON list", ".csv": "CSV", ".parquet": "Parquet", ".arrow": "Arrow"}
READERS: dict[str, Callable[[BinaryIO, Place], Iterator[Block]]] = {
    "JSON lines": _json_lines,
    "JSON list": _json_list,
    "CSV": _csv,
    "Parquet": _parquet,
    "Arrow": _arrow,
}
