"""Recognizes the format of a file by its content and name, and reads its rows in blocks."""

import contextlib
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from tasks.download.formats.blocks import BLOCK_BYTES, Block
from tasks.download.formats.csv_rows import csv_rows
from tasks.download.formats.json_rows import BOM, json_lines, json_list
from tasks.download.places import ENDINGS, Place, check_names, trouble
from tasks.errors import UserError

BATCH_ROWS = 1024
MOST_MEMORY = 4 << 30
"""Bytes that a block of rows may take while it is read, in any format."""
AT_ONCE = "Write it with smaller values, or with fewer rows in a row group or record batch."


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
    except MemoryError as error:
        raise UserError(
            f"{place.shown} takes more than {MOST_MEMORY >> 30} GiB of memory to read. {AT_ONCE}"
        ) from error
    except (EOFError, OSError, pa.ArrowException, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the file
            raise
        raise UserError(f"{place.shown} is cut short or damaged: {error}.") from error


def _unpacked(file: BinaryIO, place: Place) -> BinaryIO:
    """The file, decompressed if its first bytes are those of gzip or zstd."""
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
    """The format, by the first bytes or else by the name."""
    head = _head(stream)
    text = head.removeprefix(BOM).lstrip()
    name = place.name.lower().removesuffix(".gz").removesuffix(".zst")
    named = next((kind for ending, kind in NAMES.items() if name.endswith(ending)), "")
    found = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if not found and named != "CSV":
        found = {b"[": "JSON list", b"{": "JSON lines"}.get(text[:1], "")
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


def _parquet(stream: BinaryIO, place: Place) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # a local file is read page by page; over the network that would fetch the same bytes again and again
        source = pa.PythonFile(stream) if place.remote else place.where
        file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=place.remote)
        groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
        row_bytes = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)
        check_names(file.schema_arrow.names, place)
        size = max(1, min(BATCH_ROWS, BLOCK_BYTES // max(1, row_bytes)))
        # of a remote file one row group at a time, since all that are asked for are fetched ahead
        for some in [[n] for n in range(file.num_row_groups)] if place.remote else [None]:
            for batch in file.iter_batches(size, row_groups=some):
                yield _typed(batch, place)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        if place.remote and not isinstance(error, pa.ArrowException):  # the network, not the file
            raise
        raise UserError(f"{place.shown} cannot be read as Parquet: {error}.") from error


def _arrow(stream: BinaryIO, place: Place) -> Iterator[Block]:
    """An Arrow file, or the stream that `datasets` saves under the same ending."""
    import pyarrow as pa

    if _head(stream).startswith(b"ARROW1"):
        reader = pa.ipc.open_file(pa.PythonFile(stream) if place.remote else pa.memory_map(place.where))
        check_names(reader.schema.names, place)
        batches: Iterator[Any] = (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        batches = iter(reader := pa.ipc.open_stream(pa.PythonFile(stream)))
        check_names(reader.schema.names, place)
    for batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            yield _typed(batch.slice(start, BATCH_ROWS), place)


def _typed(batch: Any, place: Place) -> Block:
    from tasks.download.formats.typed import typed_rows

    try:
        return typed_rows(batch)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{place.shown} holds a value that cannot be read: {error}.") from error


MAGIC = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow"}
NAMES = {".jsonl": "JSON lines", ".json": "JSON list", ".csv": "CSV", ".parquet": "Parquet", ".arrow": "Arrow"}
READERS: dict[str, Callable[[BinaryIO, Place], Iterator[Block]]] = {
    "JSON lines": json_lines,
    "JSON list": json_list,
    "CSV": csv_rows,
    "Parquet": _parquet,
    "Arrow": _arrow,
}
