"""Rows from files or the Hub, one dict a row, whatever the format."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from tasks.config import DataConfig
from tasks.errors import UserError

TEXT = (".jsonl", ".json", ".csv")
FORMATS = (*TEXT, ".parquet", ".arrow", *(kind + packed for kind in TEXT for packed in (".gz", ".zst")))
BOM = b"\xef\xbb\xbf"
Row = dict[str, Any]
csv.field_size_limit(sys.maxsize)


class BadRow(str):
    """Stands in the place of a row that could not be read; the text says where and why."""


def find_files(pattern: str, field: str) -> list[Path]:
    """The data files behind a path, folder or glob, sorted by name.

    Raises:
        UserError: nothing is there, or nothing of a known format.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        candidates = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.is_file():
        if not path.name.lower().endswith(FORMATS):
            raise UserError(f"{field}: {path} is none of {', '.join(FORMATS)}.")
        return [path]
    else:
        candidates = sorted(p for p in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if p.is_file())
    files = [p for p in candidates if p.name.lower().endswith(FORMATS)]
    if not files:
        what = "holds no" if candidates or path.is_dir() else "does not exist; it takes a"
        raise UserError(f"{field}: {path.absolute()} {what} {', '.join(FORMATS)} file.")
    return files


def read_file(path: Path) -> Iterator[Row | BadRow]:
    """Rows of one file in order.

    Raises:
        UserError: the file as a whole cannot be read as what its name says.
    """
    import pyarrow as pa  # here and below: `import flows.retrain` stays light

    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
    try:
        yield from readers[name[name.rindex(".") :]](path)
    except UserError:
        raise
    except (EOFError, OSError, pa.ArrowException, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the file
            raise
        raise UserError(f"{path} is cut short or damaged: {error}.") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def read_hub(data: DataConfig, split: str) -> Iterator[Row]:
    """Rows of one split of a Hub data set at a pinned commit."""
    import datasets

    yield from datasets.load_dataset(data.hub_id, data.hub_subset or None, split=split, revision=data.hub_revision)


def hub_splits(data: DataConfig) -> list[str]:
    import datasets

    return datasets.get_dataset_split_names(data.hub_id, data.hub_subset or None, revision=data.hub_revision)


def _jsonl(path: Path) -> Iterator[Row | BadRow]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.removeprefix(BOM).lstrip().startswith(b"["):
                raise UserError(
                    f"{path} begins with a list; a .jsonl file has one object a line, a list goes in a .json."
                )
            if line.strip():
                yield _row(line.removeprefix(BOM), f"{path.name} line {number}")


def _row(text: bytes, where: str) -> Row | BadRow:
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"{where} is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"{where} is not JSON: {error}")
    return value if isinstance(value, dict) else BadRow(f"{where} is not an object of columns")


def _json(path: Path) -> Iterator[Row | BadRow]:
    try:
        with _open(path) as file:
            value = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not one JSON value ({error}); a file with one object a line is named .jsonl."
        ) from error
    if not isinstance(value, list):
        raise UserError(f"{path} holds {type(value).__name__}; a .json file takes a list of objects.")
    for number, item in enumerate(value, 1):
        yield item if isinstance(item, dict) else BadRow(f"{path.name} item {number} is not an object of columns")


def _csv(path: Path) -> Iterator[Row | BadRow]:
    """Every value stays text: `007` is not 7."""
    with io.TextIOWrapper(_open(path), "utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, None)
            if not header:
                raise UserError(f"{path} is empty; a .csv file starts with a line of column names.")
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise UserError(f"{path} has two columns called {twice[0]!r}; every column needs a name of its own.")
            for values in reader:
                if len(values) == len(header):
                    yield dict(zip(header, values, strict=True))
                elif values:
                    yield BadRow(
                        f"{path.name} line {reader.line_num} has {len(values)} values for {len(header)} columns"
                    )
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} line {reader.line_num + 1} cannot be read as UTF-8 CSV: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _arrow(path: Path) -> Iterator[Row]:
    """An Arrow file, or the stream that `datasets` saves under the same ending."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, len(batch), 1024):
                yield from batch.slice(start, 1024).to_pylist()
